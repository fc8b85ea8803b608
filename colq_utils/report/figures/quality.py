"""Figures of the reports: one message each, units and n in the labels, 95 % intervals, colours for every eye.

Every function draws from the same `Study` tables as the reports, writes a PNG that is readable at the width
of a README and returns its path; a figure whose results are missing returns None.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns

from colq_utils.report import analysis, findings, speed, stats
from colq_utils.report import markdown as md
from colq_utils.report.analysis import Study
from colq_utils.report.figures.drawing import (
    GREY,
    canvas,
    fit,
    grouped,
    interval,
    legend,
    rows,
    save,
    short,
    style,
)

#: More tasks than this are drawn closer, and without their languages where each would need a row of panels.
MANY = 12
POINTS = "points (NDCG@5 × 100)"
CELLS = f"{POINTS} against the base; *: the 95 % interval of the cell leaves 0 out"
EMPTY = "empty: no queries of this task in this language"
#: Measure -> title, unit and scale of its panel.
MEASURES = {
    "ndcg": ("NDCG@5", "points", 100),
    "margin": ("Score lead", "MaxSim per query token,\n× 1000", 1000),
    "overlap": ("Top-5 overlap", "percentage points", 100),
}


def draw(study: Study) -> list[Path]:
    """Every figure that the results allow."""
    tasks = (comparison, difference, comparison_english, difference_english)
    paths = [figure(study) for figure in (headline, average, *tasks, resolution, latency)]
    return [path for path in paths if path is not None]


def show(path: Path | None):
    """A figure for a notebook's last expression, or 'not measured'."""
    from IPython.display import Image, Markdown

    return Markdown("not measured") if path is None else Image(filename=str(path), width=900)


def headline(study: Study) -> Path:
    """What each variant saves, and what it costs."""
    experiment = study.experiment
    table = study.suite.merge(analysis.sizes(study.results)[["variant", "bytes"]], on="variant", how="left")
    table = table[table.variant.isin([experiment.base, *experiment.compared])].reset_index(drop=True)
    figure, (left, right) = canvas(1.5 + 0.42 * len(table), 2, sharey=True, width_ratios=[1, 1.7])
    mb, margin = table["bytes"] / 1e6, 100 * experiment.evaluation.margin
    changes = 100 * table.set_index("variant")[["diff", "diff_low", "diff_high"]]
    limit = fit(right, changes[["diff_low", "diff_high"]], findings.close(study), 1.5 * margin)
    right.axvspan(-margin, 0, color="0.9", zorder=0, label=f"margin, {margin:g} points")
    for y, name in enumerate(table.variant):
        look, known = style(experiment, name), np.isfinite(mb[y])
        width, text = (mb[y], f" {mb[y]:.1f}") if known else (0, " not measured")
        left.barh(y, width, color=look["color"], alpha=0.8, height=0.6)
        left.text(width, y, text, va="center", fontsize=8.5)
        if name != experiment.base:
            interval(right, y, *changes.loc[name], limit, **look)
    for axis in (left, right):
        rows(axis, [study.labels[n] for n in table.variant])
    left.set(title="Checkpoint", xlabel="tensors (MB, 10⁶ bytes)", xlim=(0, 1.2 * np.nanmax([1e-6, *mb])))
    right.set(
        title="Change of NDCG@5 against the base", xlabel=f"{POINTS}, 95 % intervals\nn = {_queries(study)}"
    )
    right.axvline(0, color="black", linewidth=1)
    right.legend(loc="upper right", fontsize=8)
    return _save(study, figure, "headline.png")


def average(study: Study) -> Path:
    """Averages of all variants beside word matching and random weights."""
    references = analysis.references(study).set_index("variant")
    below = references.index.intersection(["random-init"])
    table = pd.concat([references.drop(below), study.suite.set_index("variant"), references.loc[below]])
    figure, axis = canvas(1.3 + 0.36 * len(table))
    near = table.score.drop(below)
    left = near.min() - 0.35 * (near.max() - near.min())  # a score far below is an arrow at the edge
    for y, (name, r) in enumerate(table.iterrows()):
        note = ""
        if r.score < left:
            edge = axis.get_yaxis_transform()
            axis.plot(0.015, y, "<", markersize=7, color=GREY, transform=edge)
            axis.text(0.035, y, f"{r.score:.3f}", transform=edge, va="center", fontsize=8.5)
            continue
        if name not in references.index:
            interval(axis, y, r.score, r.low, r.high, **style(study.experiment, name))
        else:
            axis.plot(r.score, y, "|", markersize=14, markeredgewidth=2.5, color=GREY)
            if np.isfinite(r.low):
                interval(axis, y, r.score, r.low, r.high, color=GREY, marker="|")
            if r.entries != r.of:
                note = f" (on {r.entries:.0f} of {r.of:.0f} pairs)"
        if np.isfinite(r.score):
            end = np.nanmax([r.score, r.high])
            text = f"{r.score:.3f}{note}"
            axis.annotate(text, (end, y), (6, 0), textcoords="offset points", va="center", fontsize=8.5)
    rows(axis, [study.labels[n] for n in table.index])
    counts = f"{int(study.counted.sum())} task-language pairs, n = {_queries(study)}"
    axis.set(
        xlim=(left, near.max() + 0.35 * (near.max() - left)),
        title="Average over all counted tasks and languages",
        xlabel=f"NDCG@5, 95 % intervals, {counts}",
    )
    return _save(study, figure, "average.png")


def comparison(study: Study) -> Path:
    """Scores by task, all languages."""
    title = "NDCG@5 by task, mean over languages"
    return _by_task(study, study.counted, study.names, "comparison.png", title)


def comparison_english(study: Study) -> Path | None:
    """Scores by task, English queries."""
    names, title = [study.experiment.base, *findings.four_bits(study)], "NDCG@5 by task, English queries"
    return _by_task(study, study.english, names, "comparison_english.png", title)


def difference_english(study: Study) -> Path | None:
    """Changes by task, English queries."""
    names, title = findings.four_bits(study), "Change of NDCG@5 against the base by task, English queries"
    return _by_task(study, study.english, names, "difference_english.png", title, change=True)


def _by_task(
    study: Study, keep, names: list[str], file: str, title: str, change: bool = False
) -> Path | None:
    """A row per task with entries in `keep`; with `change` the differences from the base in points."""
    if not keep.any():
        return None
    table = analysis.by_task(study, keep)
    many, columns = table.task.nunique() > MANY, ["value", "low", "high"]
    table = table.assign(y=pd.factorize(table.task)[0], value=table.score)
    tasks = table.drop_duplicates("task")
    if change:
        table[columns] = 100 * table[["diff", "diff_low", "diff_high"]]
    figure, axis = canvas(1.6 + len(tasks) * max(0.34, (0.07 if many else 0.115) * len(names)))
    labels = {name: study.labels[name] for name in names}
    grouped(axis, study, table[table.score.notna()], labels, 0.78, 3.5 if many else 5)
    rows(axis, [f"{short(r.task)}\nn = {int(r.n_queries):,}" for r in tasks.itertuples()], "0.85")
    if change:
        axis.axvline(0, color="black", linewidth=1)
    axis.set(title=title, xlabel=(POINTS if change else "NDCG@5") + ", 95 % intervals, n in queries")
    legend(figure, 2 if len(names) == 4 else 3)
    return _save(study, figure, file)


def difference(study: Study) -> Path:
    """Changes by task and language, a panel per variant; of many tasks their means, a column per variant."""
    names = [n for n in study.names if n in study.experiment.compared]
    if study.entries.task[study.counted].nunique() > MANY:
        return _difference_of_many(study, names)
    table = study.by_entry[study.by_entry.counted.astype(bool)]
    tasks, languages = (sorted(table[column].unique()) for column in ("task", "lang"))
    lines = -(-len(names) // 3)
    height = 1.2 + lines * (0.7 + 0.3 * len(tasks))
    figure, axes = canvas(height, 3, lines, sharex=True, sharey=True, squeeze=False)
    limit = _limit(study, table)
    for axis, name in zip(axes.ravel(), names):
        _heatmap(axis, table[table.variant == name], "lang", languages, limit, fontsize=7, cbar=False)
        axis.set_title(study.labels[name].replace(", ", ",\n", 1))
        axis.tick_params(labelsize=8, rotation=0)
    for axis in axes.ravel()[len(names) :]:
        axis.set_visible(False)
    scale = axes[0, 0].collections[0]
    bar = figure.colorbar(scale, ax=axes, location="bottom", shrink=0.5, aspect=40, extend="both")
    bar.set_label(f"{CELLS}\n{EMPTY}", fontsize=8.5)
    figure.suptitle("Change of NDCG@5 by task and language", x=0.01, ha="left")
    return _save(study, figure, "difference.png")


def _difference_of_many(study: Study, names: list[str]) -> Path:
    table = analysis.by_task(study, study.counted)
    figure, axis = canvas(2.2 + 0.27 * table.task.nunique())
    bar = {"location": "bottom", "shrink": 0.5, "aspect": 40, "extend": "both"}
    _heatmap(axis, table, "variant", names, _limit(study, table), fontsize=8.5, cbar_kws=bar)
    axis.set_xticklabels([study.labels[n].replace(" ", "\n") for n in names], rotation=0, fontsize=8.5)
    axis.set_yticklabels([short(t) for t in sorted(table.task.unique())], rotation=0, fontsize=8.5)
    axis.xaxis.tick_top()
    axis.collections[0].colorbar.set_label(CELLS, fontsize=8.5)
    figure.suptitle("Change of NDCG@5 by task, mean over languages", x=0.01, ha="left")
    return _save(study, figure, "difference.png")


def _limit(study: Study, table: pd.DataFrame) -> float:
    """Points at which colours end: the largest change at 4 bits."""
    near = table["diff"][table.variant.isin(findings.four_bits(study))]
    return np.ceil(np.nanmax([1.0, 100 * near.abs().max()]))


def _heatmap(axis, table, across: str, columns: list[str], limit: float, fontsize: float, **options) -> None:
    """Changes in points, a row per task; a star where the interval leaves 0 out."""
    points = 100 * table["diff"]
    digits = np.where((across == "lang") & (points.abs() >= 9.95), 0, 1)
    stars = np.where(stats.resolved(table.diff_low, table.diff_high), "*", "")
    texts = [md.number(v, d) + star if np.isfinite(v) else "" for v, d, star in zip(points, digits, stars)]
    cells = table.assign(points=points, text=texts).pivot(index="task", columns=across)
    sns.heatmap(
        cells["points"][columns],
        ax=axis,
        vmin=-limit,
        vmax=limit,
        cmap="PuOr",
        annot=cells["text"][columns].fillna(""),
        fmt="",
        annot_kws={"fontsize": fontsize},
        linewidths=0.5,
        **options,
    )
    axis.grid(visible=False)
    axis.set(xlabel="", ylabel="")


def resolution(study: Study) -> Path:
    """Which measure shows that a variant differs from the base."""
    others = [n for n in study.names if n != study.experiment.base]
    table = analysis.drift(study).set_index(["measure", "variant"])[["diff", "low", "high"]]
    figure, axes = canvas(1.4 + 0.42 * len(others), 3, sharey=True)
    for axis, (measure, (title, unit, scale)) in zip(axes, MEASURES.items()):
        changes = scale * table.loc[measure]
        limit = fit(axis, changes.loc[others, ["low", "high"]], findings.close(study), scale * 1e-6)
        for y, name in enumerate(others):
            interval(axis, y, *changes.loc[name], limit, **style(study.experiment, name))
        rows(axis, [study.labels[n] for n in others])
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title=title, xlabel=unit)
        axis.locator_params(axis="x", nbins=4)
    title = f"Change against the base by three measures, 95 % intervals, n = {_queries(study)}"
    figure.suptitle(title, x=0.01, ha="left")
    return _save(study, figure, "resolution.png")


def latency(study: Study) -> Path | None:
    """Latency against the base, by workload."""
    table = speed.ratios(study)
    if table.empty:
        return None
    loads = table.drop_duplicates(["kind", "batch"])
    kernels = table.drop_duplicates("variant").set_index("variant").kernel
    labels = {name: f"{study.labels[name]} ({kernel})" for name, kernel in kernels.items()}
    table = table.assign(y=table.groupby(["kind", "batch"], sort=False).ngroup(), value=table.ratio)
    figure, axis = canvas(1.5 + len(loads) * max(0.42, 0.2 * len(labels)))
    grouped(axis, study, table, labels, 0.6)
    words = loads.kind.replace(speed.KINDS) + ", batch " + loads.batch.astype(str)
    rows(axis, [f"{w}\n{t:,.0f} tokens per call" for w, t in zip(words, loads.tokens_per_call)])
    axis.axvline(1, color="black", linewidth=1)
    axis.set(
        title=f"Latency of a call against {study.labels[study.experiment.base]}",
        xlabel="times the base's median latency (1 = alike, below 1 = faster), 95 % intervals",
    )
    legend(figure)
    return _save(study, figure, "latency.png")


def _queries(study: Study) -> str:
    return f"{int(study.entries.n_queries[study.counted].sum()):,} queries"


def _save(study: Study, figure, name: str) -> Path:
    return save(figure, study.experiment.figures / name)
