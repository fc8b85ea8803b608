"""Figures of a study: one message each, units, n and intervals, readable at the width of a README."""

from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns

from colq_utils.base.config import ROOT
from colq_utils.report import markdown as md
from colq_utils.report.figures import drawing
from colq_utils.report.figures.drawing import DPI, GREY, canvas, rows
from studies.seqlen import analysis, lengths, recipes
from studies.seqlen import drift as study_drift
from studies.seqlen.analysis import SeqlenStudy

COLORS = sns.color_palette("colorblind")
#: Losses in points beyond which the figure of sizes has arrows, so that 2 bits do not flatten the rest.
SHOWN = 4.0
#: Kinds of checkpoint in the figure of sizes, by colour and marker.
KINDS = {
    "rtn": "integers to nearest",
    "tuned": "AutoRound (mean of seeds)",
    "vision": "vision tower too",
    "float": "FP8, MXFP4",
}


def draw(study: SeqlenStudy) -> list[Path]:
    """Every figure that the results allow."""
    return [path for function in (seeds, pareto, sensitivity, drift) if (path := function(study)) is not None]


def folder(study: SeqlenStudy) -> Path:
    path = ROOT / "figures" / f"{study.spec.name}-study"
    path.mkdir(parents=True, exist_ok=True)
    return path


def save(study: SeqlenStudy, figure, name: str) -> Path:
    return drawing.save(figure, folder(study) / name, DPI)


def span(rows: pd.DataFrame | dict) -> list:
    """The two lengths of the error bars of `diff`, in points."""
    return [100 * (rows["diff"] - rows["diff_low"]), 100 * (rows["diff_high"] - rows["diff"])]


def finish(study: SeqlenStudy, figure, name: str, title: str, axis=None, **legend) -> Path:
    """Give a figure its title, and the legend of `axis` below, and write it."""
    if axis is not None:
        handles = axis.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", frameon=False, **legend)
    figure.suptitle(title, x=0.01, ha="left")
    return save(study, figure, name)


def seeds(study: SeqlenStudy) -> Path | None:
    """Every run as a dot, by length: what the seed moves beside what the length moves."""
    titles = {"length": "Equal token budget", "confounded": "Published design (a tenth)"}
    designs = [(family, iters) for family in titles for iters in sorted(study.arm(family)["iters"].unique())]
    if not designs:
        return None
    figure, axes = canvas(4.4, len(designs), sharey=True, squeeze=False)
    for axis, (family, iters) in zip(axes[0], designs):
        table = lengths.blocks(study, family, iters)
        _dots(axis, study, table)
        axis.set_xticks(range(table.shape[1]), [f"{study.spec.length(name):,}" for name in table.columns])
        axis.set(
            title=f"{titles[family]},\n{iters:,} iterations",
            xlabel="calibration length (tokens)",
            xlim=(-0.5, table.shape[1] - 0.5),
        )
        axis.title.set_fontsize(9.5)
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("change of NDCG@5 from bf16 (points)")
    title = f"W4A16 AutoRound by calibration length, one dot per checkpoint (n = {study.n_queries:,} queries)"
    return finish(study, figure, "seeds.png", title, axes[0][0], ncols=3, fontsize=8.5)


def _dots(axis, study: SeqlenStudy, table: pd.DataFrame) -> None:
    """The runs of `lengths.blocks`, their means with both intervals, and rounding to nearest as a line."""
    value, base = study.score, study.score[study.spec.base]
    shift = np.linspace(-0.36, -0.08, len(table)) if len(table) > 1 else np.array([-0.2])
    for i, (_, variants) in enumerate(table.items()):
        y, mean = 100 * (value[variants].to_numpy() - base), analysis.mean_score(study, variants.tolist())
        labels = (
            "one checkpoint (one seed)",
            "95 % interval over queries and seeds",
            "mean, 95 % interval over seeds alone",
        )
        dot, wide, narrow = labels if i == 0 else (None, None, None)
        axis.plot(i + shift, y, "o", color=COLORS[0], markersize=5, alpha=0.75, label=dot)
        both = {"yerr": [[length] for length in span(mean)], "ecolor": GREY, "elinewidth": 1, "capsize": 3}
        axis.errorbar(i + 0.14, 100 * mean["diff"], fmt="none", label=wide, **both)
        alone = {"yerr": analysis.seed_reach(y), "color": "black", "elinewidth": 2.5, "capsize": 4}
        axis.errorbar(i + 0.14, 100 * mean["diff"], fmt="D", markersize=5.5, zorder=3, label=narrow, **alone)
    axis.axhline(0, color="black", linewidth=1)
    if "w4-rtn" in value:
        nearest, place = 100 * (value["w4-rtn"] - base), table.shape[1] / 2 - 0.5
        axis.axhline(nearest, color=GREY, linestyle="--", linewidth=1)
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": GREY, "bbox": paper}
        axis.text(place, nearest, "rounding to nearest", **style)


def pareto(study: SeqlenStudy) -> Path | None:
    """NDCG@5 with intervals by checkpoint size: one row per format and method, sizes beside the names."""
    table = recipes.checkpoints(study)
    if len(table) < 3:
        return None
    table = table.sort_values(["bytes", "diff"], ascending=[True, True], ignore_index=True)
    figure, axis = canvas(1.6 + 0.24 * len(table))
    looks = {kind: {"marker": m, "color": c} for kind, m, c in zip(KINDS, "oD^s", COLORS)}
    for y, row in table.iterrows():
        value, *ends = 100 * row[["diff", "diff_low", "diff_high"]].astype(float)
        drawing.interval(axis, y, value, *ends, SHOWN, **looks[row["group"]])
    for kind in dict.fromkeys(table["group"]):
        axis.plot([], [], linestyle="none", label=KINDS[kind], **looks[kind])
    axis.axvspan(-100 * study.spec.margin, 0, color="0.9", zorder=0)
    axis.axvline(0, color="black", linewidth=1)
    axis.set(xlabel=f"change of NDCG@5 from bf16 (points); arrows: losses over {SHOWN:g}", xlim=(-SHOWN, 0.6))
    methods = np.where(table["group"] == "tuned", " AutoRound", "")
    names = zip(table["label"], methods, table["bytes"])
    rows(axis, [f"{name}{method}   {md.megabytes(size, 1)} MB" for name, method, size in names])
    title = (
        f"Checkpoint size and quality, smallest first; 95 % intervals, n = {study.n_queries:,} queries\n"
        f"grey: within {100 * study.spec.margin:g} points"
    )
    return finish(study, figure, "pareto.png", title, axis, ncols=4, fontsize=8.5, columnspacing=1.2)


def sensitivity(study: SeqlenStudy) -> Path | None:
    """What one layer, or one kind of Linear, costs when it alone is rounded."""
    table = study_drift.sensitivity(study)
    if table.empty:
        return None
    figure, axes = canvas(3.9, 2)
    titles = ("One decoder layer at a time", "One kind of linear layer at a time, all layers")
    for axis, family, title in zip(axes, ("layers", "kinds"), titles):
        parts = table[table["family"] == family]
        scopes = list(dict.fromkeys(parts["scope"]))
        for i, form in enumerate(("w4", "w2")):
            subset = parts[parts["format"] == form].set_index("scope").reindex(scopes)
            style = {"capsize": 2.5, "markersize": 5.5, "elinewidth": 1.2, "linestyle": "none"}
            style |= {"fmt": "oD"[i], "color": COLORS[i], "label": f"{form.upper()}, rounded to nearest"}
            places = np.arange(len(scopes)) + (i - 0.5) * 0.3
            axis.errorbar(100 * subset["diff"], places, xerr=span(subset), **style)
        rows(axis, [scope.replace("_proj", "") for scope in scopes])
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title=title, xlabel="change of NDCG@5 (points), 95 % intervals")
    title = f"Which part of the language model hurts (group 128, symmetric, n = {study.n_queries:,} queries)"
    return finish(study, figure, "sensitivity.png", title, axes[0], ncols=2, fontsize=8.5)


def drift(study: SeqlenStudy) -> Path | None:
    """Drift of vectors and scores by format: what moves before ranks do."""
    moved, groups = study_drift.by_variant(study), recipes.groups(study)
    if len(groups) < 3:
        return None
    for cosine in ("query_cosine", "page_cosine"):
        moved[cosine] = 1 - moved[cosine]
    order = sorted(groups, key=lambda name: moved["top5_kept"][groups[name]].mean(), reverse=True)
    moved["top5_changed"] = 100 * (1 - moved["top5_kept"])
    measures = (
        ("query_cosine", "Query vectors", "1 − cosine"),
        ("page_cosine", "Page vectors", "1 − cosine"),
        ("score_drift", "MaxSim", "change per\nquery token"),
        ("top5_changed", "Top five", "changed (%)"),
    )
    figure, axes = canvas(1.7 + 0.26 * len(groups), 4, sharey=True)
    for axis, (measure, title, unit) in zip(axes, measures):
        for y, name in enumerate(order):
            values = moved[measure][groups[name]].to_numpy()
            if measure != "top5_changed" and values.mean() < 1e-7:
                style = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": 7.5}
                axis.text(0.03, y, "unchanged", color=GREY, **style)
                continue
            if len(values) > 1:
                axis.plot(values, np.full(len(values), y), "|", color=COLORS[0], markersize=13)
            axis.plot(values.mean(), y, "D", color="black", markersize=3.5, zorder=3)
        rows(axis, order, "0.9")
        axis.set(title=title, xlabel=unit)
        axis.title.set_fontsize(9.5)
        axis.set_xscale("linear" if measure == "top5_changed" else "log")
        axis.margins(x=0.12)
        axis.tick_params(axis="x", labelsize=8)
        axis.xaxis.label.set_fontsize(8.5)
    title = (
        f"Drift from bf16, least on top; n = {len(study.asked):,} queries\n"
        "diamonds: means, bars: single seeds; the first three scales are logarithmic"
    )
    return finish(study, figure, "drift.png", title)
