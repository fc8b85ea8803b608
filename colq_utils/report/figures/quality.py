"""Figures of the reports: one message each, units and n in the labels, 95 % intervals, colours that everyone can distinguish.

Every function draws from the same `Study` tables as the reports, writes a PNG that is readable at the
width of a README and returns its path; a figure whose results are missing returns None. Values far outside the
range that matters are drawn as an arrow at the edge with their number, so that a collapse of 2 bits does not
flatten the rest.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

from colq_utils.base.files import atomic
from colq_utils.report import analysis, findings, speed
from colq_utils.report.analysis import Study

WIDTH, DPI = 8.0, 150
GREY, EDGE = "0.45", 0.97
MARKERS = "oDs^vPX*<>"
#: More tasks than this are drawn closer, and without their languages where each would need a row of panels.
MANY = 12


def draw(study: Study) -> list[Path]:
    """Every figure that the results allow."""
    return [
        path
        for function in (
            headline,
            average,
            comparison,
            difference,
            comparison_english,
            difference_english,
            resolution,
            latency,
        )
        if (path := function(study)) is not None
    ]


def save(study: Study, figure, name: str) -> Path:
    """Write a figure to figures/<experiment>/; no dates or versions inside, so that it is reproducible."""
    path = study.experiment.figures / name
    with atomic(path) as target:
        figure.savefig(target, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return path


def show(path: Path | None):
    """A figure for a notebook's last expression, or 'not measured'."""
    from IPython.display import Image, Markdown

    return Markdown("not measured") if path is None else Image(filename=str(path), width=900)


def canvas(height: float, columns: int = 1, **options):
    """A figure of README width with `columns` axes side by side."""
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette="colorblind",
        font_scale=0.85,
        rc={"axes.titlelocation": "left", "axes.titlesize": 11, "figure.titlesize": 11.5},
    )
    return plt.subplots(1, columns, figsize=(WIDTH, height), layout="constrained", **options)


def style(study: Study, name: str) -> dict:
    """Colour and marker of a variant, the same in every figure; the base is black. Another kernel on the same weights looks the same."""
    ids, stored = (
        list(study.experiment.by_id),
        study.experiment.by_id[name].stored(study.experiment.model.size),
    )
    at = ids.index(stored if stored in ids else name)
    return {
        "color": "black" if at == 0 else sns.color_palette("colorblind")[(at - 1) % 10],
        "marker": MARKERS[at % len(MARKERS)],
    }


def short(task: str) -> str:
    """A task's name as figures write it."""
    return task.removesuffix("Retrieval").replace("SyntheticDocQA", "Syn")


def interval(
    axis,
    y: float,
    value: float,
    low: float,
    high: float,
    limit: float | None = None,
    text: str = "{:+.1f}",
    size: float = 5,
    **look,
) -> None:
    """A dot with its interval; beyond ± `limit` an arrow at the edge with the value as text."""
    if not np.isfinite(value):
        axis.text(
            0.02, y, "not measured", transform=axis.get_yaxis_transform(), va="center", fontsize=8, color=GREY
        )
    elif limit is not None and abs(value) > limit:
        side = np.sign(value)
        axis.plot(
            side * EDGE * limit,
            y,
            marker="<" if side < 0 else ">",
            color=look["color"],
            markersize=7,
            linestyle="none",
        )
        axis.text(
            side * 0.9 * limit,
            y,
            text.format(value),
            ha="left" if side < 0 else "right",
            va="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    else:
        axis.errorbar(
            value,
            y,
            xerr=[[max(0, value - low)], [max(0, high - value)]],
            capsize=size / 2,
            markersize=size,
            elinewidth=1.3,
            linestyle="none",
            **look,
        )


def rows(axis, labels: list[str]) -> None:
    """Name the rows of a dot plot, the first on top."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)


def reach(table, names: list[str], low: str, high: str, at_least: float) -> float:
    """Half-width of an axis that holds the intervals of `names`."""
    near = table[table.variant.isin(names)]
    widest = (
        np.nanmax(np.abs(near[[low, high]].to_numpy(float))) if len(near) and near[low].notna().any() else 0.0
    )
    return 1.15 * max(widest, at_least)


def span(limit: float, high) -> tuple[float, float]:
    """From -limit to where the intervals end, with some room right of 0."""
    inside = [h for h in high if np.isfinite(h) and h <= limit]
    return -limit, limit if (np.asarray(high) > limit).any() else min(
        limit, max(0.35 * limit, 1.15 * max(inside, default=0))
    )


def headline(study: Study) -> Path:
    """What each variant saves, and what it costs."""
    table = study.suite.merge(analysis.sizes(study.results)[["variant", "bytes"]], on="variant", how="left")
    table = table[table.variant.isin([study.experiment.base, *study.experiment.quantized])].reset_index(
        drop=True
    )
    figure, (left, right) = canvas(
        1.5 + 0.42 * len(table), 2, sharey=True, gridspec_kw={"width_ratios": [1, 1.7]}
    )
    margin = 100 * study.experiment.evaluation.margin
    limit = 100 * reach(table, findings.four_bits(study), "diff_low", "diff_high", 1.5 * margin / 100)
    right.axvspan(-margin, 0, color="0.9", zorder=0, label=f"margin, {margin:g} points")
    for y, r in table.iterrows():
        look = style(study, r.variant)
        known = np.isfinite(r["bytes"])
        left.barh(y, r["bytes"] / 1e6 if known else 0, color=look["color"], alpha=0.8, height=0.6)
        left.text(
            r["bytes"] / 1e6 if known else 0,
            y,
            f" {r['bytes'] / 1e6:.1f}" if known else " not measured",
            va="center",
            fontsize=8.5,
        )
        if r.variant != study.experiment.base:
            interval(right, y, 100 * r["diff"], 100 * r.diff_low, 100 * r.diff_high, limit, **look)
    rows(left, [study.labels[n] for n in table.variant])
    rows(right, [study.labels[n] for n in table.variant])
    left.set(
        title="Checkpoint",
        xlabel="tensors (MB, 10⁶ bytes)",
        xlim=(0, 1.2 * np.nanmax([1e-6, *table["bytes"] / 1e6])),
    )
    right.set(
        title="Change of NDCG@5 against the base",
        xlabel=f"points (NDCG@5 × 100), 95 % intervals\nn = {_queries(study, study.counted)}",
        xlim=span(limit, 100 * table.diff_high),
    )
    right.axvline(0, color="black", linewidth=1)
    right.legend(loc="upper right", fontsize=8)
    return save(study, figure, "headline.png")


def _queries(study: Study, keep) -> str:
    return f"{int(study.entries.n_queries[keep].sum()):,} queries"


def average(study: Study) -> Path:
    """Averages of all variants beside word matching and random weights."""
    table, frame = study.suite.set_index("variant"), analysis.references(study).set_index("variant")
    names = (
        [n for n in ("bm25",) if n in frame.index]
        + list(table.index)
        + [n for n in ("random-init",) if n in frame.index]
    )
    figure, axis = canvas(1.3 + 0.36 * len(names))
    for y, name in enumerate(names):
        if name in frame.index:
            r = frame.loc[name]
            axis.plot(
                r.score, y, marker="|", markersize=14, markeredgewidth=2.5, color=GREY, linestyle="none"
            )
            if np.isfinite(r.low):
                interval(axis, y, r.score, r.low, r.high, color=GREY, marker="|")
            value, note = (
                np.nanmax([r.score, r.high]),
                ""
                if frame.entries[name] == frame.of[name]
                else f" (on {frame.entries[name]} of {frame.of[name]} pairs)",
            )
        else:
            r, note = table.loc[name], ""
            interval(axis, y, r.score, r.low, r.high, **style(study, name))
            value = r.high
        if np.isfinite(value):
            shown = frame.score[name] if name in frame.index else table.score[name]
            axis.text(value + 0.015, y, f"{shown:.3f}{note}", va="center", fontsize=8.5)
    rows(axis, [study.labels[n] for n in names])
    axis.set(
        xlim=(0, 1.06),
        title="Average over all counted tasks and languages",
        xlabel=f"NDCG@5, 95 % intervals, {int(study.counted.sum())} task-language pairs, n = {_queries(study, study.counted)}",
    )
    return save(study, figure, "average.png")


def comparison(study: Study) -> Path:
    """Scores by task, all languages."""
    return _dots(
        study,
        analysis.by_task(study, study.counted),
        study.names,
        "comparison.png",
        "NDCG@5 by task, mean over languages",
    )


def comparison_english(study: Study) -> Path | None:
    """Scores by task, English queries."""
    if not study.english.any():
        return None
    names = [study.experiment.base, *findings.four_bits(study)]
    return _dots(
        study,
        analysis.by_task(study, study.english),
        names,
        "comparison_english.png",
        "NDCG@5 by task, English queries",
    )


def difference_english(study: Study) -> Path | None:
    """Changes by task, English queries."""
    if not study.english.any():
        return None
    return _dots(
        study,
        analysis.by_task(study, study.english),
        findings.four_bits(study),
        "difference_english.png",
        "Change of NDCG@5 against the base by task, English queries",
        difference=True,
    )


def _dots(study: Study, table, names: list[str], file: str, title: str, difference: bool = False) -> Path:
    tasks, step = list(dict.fromkeys(table.task)), 0.78 / max(1, len(names))
    many = len(tasks) > MANY
    figure, axis = canvas(1.6 + len(tasks) * max(0.34, (0.07 if many else 0.115) * len(names)))
    columns, scale = (["diff", "diff_low", "diff_high"], 100) if difference else (["score", "low", "high"], 1)
    for i, name in enumerate(names):
        for y, task in enumerate(tasks):
            r = table[(table.variant == name) & (table.task == task)].iloc[0]
            if np.isfinite(r.score):
                interval(
                    axis,
                    y + (i - (len(names) - 1) / 2) * step,
                    *(scale * r[c] for c in columns),
                    size=3.5 if many else 5,
                    **style(study, name),
                )
        axis.plot([], [], linestyle="none", label=study.labels[name], **style(study, name))
    counts = table.drop_duplicates("task").n_queries
    rows(axis, [f"{short(t)}\nn = {int(n):,}" for t, n in zip(tasks, counts)])
    for y in range(1, len(tasks)):
        axis.axhline(y - 0.5, color="0.85", linewidth=0.8)
    if difference:
        axis.axvline(0, color="black", linewidth=1)
    axis.set(
        title=title,
        xlabel=("points (NDCG@5 × 100)" if difference else "NDCG@5") + ", 95 % intervals, n in queries",
    )
    figure.legend(loc="outside lower center", ncols=2 if len(names) == 4 else 3, fontsize=8.5, frameon=False)
    return save(study, figure, file)


def difference(study: Study) -> Path:
    """Changes by task and language, a panel per variant; of many tasks their mean over languages, a column per variant."""
    if study.entries.task[study.counted].nunique() > MANY:
        return _difference_by_task(study)
    table, tasks = (
        study.by_entry[study.by_entry.counted.astype(bool)],
        sorted(study.entries.task[study.counted].unique()),
    )
    names, languages = (
        [n for n in study.names if n in study.experiment.quantized],
        sorted(study.entries.lang[study.counted].unique()),
    )
    lines = -(-len(names) // 3)
    figure, axes = plt.subplots(
        lines,
        3,
        figsize=(WIDTH, 1.2 + lines * (0.7 + 0.3 * len(tasks))),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    near = table[table.variant.isin(findings.four_bits(study))]["diff"].abs().max()
    limit = max(1.0, np.ceil(100 * (near if np.isfinite(near) else 0)))
    for axis, name in zip(axes.ravel(), names):
        mine = table[table.variant == name]
        values = 100 * mine.pivot(index="task", columns="lang", values="diff").reindex(
            index=tasks, columns=languages
        )
        clear = (
            mine.assign(clear=analysis.stats.resolved(mine.diff_low, mine.diff_high))
            .pivot(index="task", columns="lang", values="clear")
            .reindex_like(values)
        )
        texts = values.map(
            lambda v: "" if np.isnan(v) else f"{v:.1f}" if abs(v) < 9.95 else f"{v:.0f}"
        ).replace("-0.0", "0.0") + clear.map(lambda c: "*" if c is True else "")
        sns.heatmap(
            values,
            ax=axis,
            vmin=-limit,
            vmax=limit,
            cmap="PuOr",
            annot=texts,
            fmt="",
            annot_kws={"fontsize": 7},
            linewidths=0.5,
            cbar=False,
        )
        axis.set(title=study.labels[name].replace(", ", ",\n", 1), xlabel="", ylabel="")
        axis.title.set_fontsize(9)
        axis.tick_params(labelsize=8, rotation=0)
    for axis in axes.ravel()[len(names) :]:
        axis.set_visible(False)
    bar = figure.colorbar(
        axes[0, 0].collections[0], ax=axes, location="bottom", shrink=0.5, aspect=40, extend="both"
    )
    bar.set_label(
        "points (NDCG@5 × 100) against the base; * the 95 % interval of the cell leaves 0 out", fontsize=8.5
    )
    figure.suptitle("Change of NDCG@5 by task and language", x=0.01, ha="left")
    return save(study, figure, "difference.png")


def _difference_by_task(study: Study) -> Path:
    names = [n for n in study.names if n in study.experiment.quantized]
    table = analysis.by_task(study, study.counted)
    table = table[table.variant.isin(names)].assign(
        clear=lambda t: analysis.stats.resolved(t.diff_low, t.diff_high)
    )
    values = 100 * table.pivot(index="task", columns="variant", values="diff")[names]
    clear = table.pivot(index="task", columns="variant", values="clear")[names]
    limit = max(1.0, np.ceil(np.nanmax(np.abs(values[findings.four_bits(study)].to_numpy()), initial=0)))
    texts = values.map(lambda v: "" if np.isnan(v) else f"{v:.1f}").replace("-0.0", "0.0") + clear.map(
        lambda c: "*" if c else ""
    )
    figure, axis = canvas(2.2 + 0.27 * len(values))
    sns.heatmap(
        values,
        ax=axis,
        vmin=-limit,
        vmax=limit,
        cmap="PuOr",
        annot=texts,
        fmt="",
        annot_kws={"fontsize": 8.5},
        linewidths=0.5,
        cbar_kws={"location": "bottom", "shrink": 0.5, "aspect": 40, "extend": "both"},
    )
    axis.set_xticklabels([study.labels[n].replace(" ", "\n") for n in names], rotation=0, fontsize=8.5)
    axis.set_yticklabels([short(t) for t in values.index], rotation=0, fontsize=8.5)
    axis.xaxis.tick_top()
    axis.set(xlabel="", ylabel="")
    axis.collections[0].colorbar.set_label(
        "points (NDCG@5 × 100) against the base; * the 95 % interval of the cell leaves 0 out", fontsize=8.5
    )
    figure.suptitle("Change of NDCG@5 by task, mean over languages", x=0.01, ha="left")
    return save(study, figure, "difference.png")


def resolution(study: Study) -> Path:
    """Which measure shows that a variant differs from the base."""
    table, others = analysis.drift(study), [n for n in study.names if n != study.experiment.base]
    units = {
        "ndcg": ("NDCG@5", "points", 100, "{:+.1f}"),
        "margin": ("Score margin", "MaxSim per query token,\n× 1000", 1000, "{:+.1f}"),
        "overlap": ("Top-5 overlap", "percentage points", 100, "{:+.1f}"),
    }
    figure, axes = canvas(1.4 + 0.42 * len(others), 3, sharey=True)
    for axis, (measure, (title, unit, scale, text)) in zip(axes, units.items()):
        mine = table[table.measure == measure]
        limit = scale * reach(mine, findings.four_bits(study), "low", "high", 1e-6)
        for y, name in enumerate(others):
            r = mine[mine.variant == name].iloc[0]
            interval(
                axis, y, scale * r["diff"], scale * r.low, scale * r.high, limit, text, **style(study, name)
            )
        rows(axis, [study.labels[n] for n in others])
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title=title, xlabel=unit, xlim=span(limit, scale * mine.high))
        axis.locator_params(axis="x", nbins=4)
    figure.suptitle(
        f"Change against the base by three measures, 95 % intervals, n = {_queries(study, study.counted)}",
        x=0.01,
        ha="left",
    )
    return save(study, figure, "resolution.png")


def latency(study: Study) -> Path | None:
    """Latency against the base, by workload."""
    table = speed.ratios(study)
    if table.empty:
        return None
    loads, names = list(dict.fromkeys(zip(table.kind, table.batch))), list(dict.fromkeys(table.variant))
    figure, axis = canvas(1.5 + len(loads) * max(0.42, 0.2 * len(names)))
    for i, name in enumerate(names):
        for y, (kind, batch) in enumerate(loads):
            for _, r in table[
                (table.variant == name) & (table.kind == kind) & (table.batch == batch)
            ].iterrows():
                interval(
                    axis,
                    y + (i - (len(names) - 1) / 2) * 0.6 / len(names),
                    r.ratio,
                    r.low,
                    r.high,
                    **style(study, name),
                )
        axis.plot(
            [],
            [],
            linestyle="none",
            label=f"{study.labels[name]} ({table.kernel[table.variant == name].iloc[0]})",
            **style(study, name),
        )
    tokens = table.drop_duplicates(["kind", "batch"]).tokens_per_call
    rows(
        axis,
        [f"{speed.KINDS.get(k, k)}, batch {b}\n{t:,.0f} tokens per call" for (k, b), t in zip(loads, tokens)],
    )
    axis.axvline(1, color="black", linewidth=1)
    axis.set(
        title=f"Latency of a call against {study.labels[study.experiment.base]}",
        xlabel="times the base's median latency (1 = alike, below 1 = faster), 95 % intervals",
    )
    figure.legend(loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    return save(study, figure, "latency.png")
