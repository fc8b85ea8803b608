"""Figures of a study: one message each, units and n in the labels, intervals, readable at the width of a README."""

from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns

from colq_utils.base.config import ROOT
from colq_utils.report import markdown as md
from colq_utils.report.figures import drawing
from colq_utils.report.figures.drawing import DPI, GREY, canvas, rows
from studies.seqlen import analysis
from studies.seqlen.analysis import SeqlenStudy

COLORS = sns.color_palette("colorblind")
#: Kinds of checkpoint in the figure of sizes, by colour and marker.
KINDS = {
    "rtn": "integers to nearest",
    "tuned": "AutoRound (mean of seeds)",
    "vision": "vision tower too",
    "float": "FP8, MXFP4",
}
#: The sets that stand for each length, in the controlled design and in the published one.
LENGTHS = {"s256": 256, "s512": 512, "s1024": 1024, "p256": 256, "p512": 512, "p1024": 1024}


def draw(study: SeqlenStudy) -> list[Path]:
    """Every figure that the results allow."""
    return [path for function in (seeds, pareto, sensitivity, drift) if (path := function(study)) is not None]


def folder(study: SeqlenStudy) -> Path:
    path = ROOT / "figures" / f"{study.spec.name}-study"
    path.mkdir(parents=True, exist_ok=True)
    return path


def save(study: SeqlenStudy, figure, name: str) -> Path:
    return drawing.save(figure, folder(study) / name, DPI)


def seeds(study: SeqlenStudy) -> Path | None:
    """Every run as a dot, by length: what the seed moves beside what the length moves."""
    designs = [
        (family, iters)
        for family in ("length", "confounded")
        for iters in sorted(study.arm(family)["iters"].unique())
    ]
    if not designs:
        return None
    figure, axes = canvas(4.4, len(designs), sharey=True, squeeze=False)
    value, base = study.suite[0], study.suite[0][study.spec.base]
    floor = 100 * (value["w4-rtn"] - base) if "w4-rtn" in value else None
    for axis, (family, iters) in zip(axes[0], designs):
        table = analysis.blocks(study, family, iters)
        y = 100 * (value[table.to_numpy().ravel()].to_numpy().reshape(table.shape) - base)
        shift = np.linspace(-0.24, 0.24, len(table)) if len(table) > 1 else [0.0]
        for i, name in enumerate(table.columns):
            mean, reach = analysis.mean_score(study, table[name].tolist()), analysis.seed_reach(y[:, i])
            axis.plot(
                i + np.array(shift),
                y[:, i],
                "o",
                color=COLORS[0],
                markersize=5,
                alpha=0.75,
                label="one checkpoint (one seed)" if i == 0 else None,
            )
            axis.errorbar(
                i,
                100 * mean["diff"],
                yerr=[[100 * (mean["diff"] - mean["diff_low"])], [100 * (mean["diff_high"] - mean["diff"])]],
                fmt="none",
                ecolor=GREY,
                elinewidth=1,
                capsize=3,
                label="95 % interval over queries and seeds" if i == 0 else None,
            )
            axis.errorbar(
                i,
                100 * mean["diff"],
                yerr=reach,
                fmt="D",
                color="black",
                elinewidth=2.5,
                capsize=4,
                markersize=5.5,
                zorder=3,
                label="mean, 95 % interval over seeds alone" if i == 0 else None,
            )
        axis.axhline(0, color="black", linewidth=1)
        if floor is not None:
            axis.axhline(floor, color=GREY, linestyle="--", linewidth=1)
            axis.text(
                table.shape[1] - 0.55,
                floor,
                "rounding to nearest",
                ha="right",
                va="bottom",
                fontsize=8,
                color=GREY,
            )
        axis.set_xticks(range(table.shape[1]), [str(LENGTHS.get(c, c)) for c in table.columns])
        title = "Equal token budget" if family == "length" else "Published design (a tenth)"
        axis.set(
            title=f"{title},\n{iters} iterations",
            xlabel="calibration length (tokens)",
            xlim=(-0.5, table.shape[1] - 0.5),
        )
        axis.title.set_fontsize(9.5)
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("change of NDCG@5 from bf16 (points)")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=8.5,
        frameon=False,
    )
    figure.suptitle(
        f"W4A16 AutoRound by calibration length, one dot per checkpoint (n = {study.n_queries:,} queries)",
        x=0.01,
        ha="left",
    )
    return save(study, figure, "seeds.png")


def pareto(study: SeqlenStudy) -> Path | None:
    """Checkpoint size against NDCG@5 with intervals: one row per format and method, sizes as numbers beside the names."""
    table = points(study)
    if len(table) < 3:
        return None
    table = table.sort_values(["bytes", "diff"], ascending=[True, True], ignore_index=True)
    figure, (left, right) = canvas(
        1.5 + 0.24 * len(table), 2, sharey=True, gridspec_kw={"width_ratios": [1, 1.5]}
    )
    kinds = list(KINDS)
    for kind, subset in table.groupby("group", sort=False):
        look = {"fmt": "oD^sv"[kinds.index(kind)], "color": COLORS[kinds.index(kind)], "linestyle": "none"}
        for axis in (left, right):
            axis.errorbar(
                100 * subset["diff"],
                subset.index,
                xerr=[
                    100 * (subset["diff"] - subset["diff_low"]),
                    100 * (subset["diff_high"] - subset["diff"]),
                ],
                capsize=2.5,
                markersize=5,
                elinewidth=1.1,
                label=KINDS[kind],
                **look,
            )
    for axis in (left, right):
        axis.axvspan(-100 * study.spec.margin, 0, color="0.9", zorder=0)
        axis.axvline(0, color="black", linewidth=1)
        axis.set(xlabel="change of NDCG@5 from bf16 (points)")
    rows(left, [f"{name}   {md.megabytes(size, 1)} MB" for name, size in zip(table["label"], table["bytes"])])
    left.set(title="All formats, smallest first")
    right.set(title="The same, losses under 3 points", xlim=(-3, 0.6))
    figure.legend(
        *right.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
        columnspacing=1.2,
    )
    figure.suptitle(
        f"Checkpoint size and quality; 95 % intervals, n = {study.n_queries:,} queries; grey: within {100 * study.spec.margin:g} points",
        x=0.01,
        ha="left",
    )
    return save(study, figure, "pareto.png")


def points(study: SeqlenStudy) -> pd.DataFrame:
    """One row per checkpoint kind for `pareto`: seeds pooled; group, label, bytes, diff and its interval."""
    table, checkpoints = analysis.scores(study), []
    for _, row in table[table["family"].isin(["rtn", "float", "vision"])].iterrows():
        checkpoints.append(
            {"group": row["family"], "label": shape(row), **row[["bytes", "diff", "diff_low", "diff_high"]]}
        )
    tuned = table[
        table["family"].isin(["length", "tuned"])
        & ((table["family"] == "tuned") | (table["set"] == "s512"))
        & (table["iters"] == 200)
    ]
    for _, subset in tuned.groupby(["format", "group_size", "sym"]):
        checkpoints.append(
            {
                "group": "tuned",
                "label": shape(subset.iloc[0]),
                "bytes": subset["bytes"].iloc[0],
                **{
                    k: v
                    for k, v in analysis.mean_score(study, subset["variant"].tolist()).items()
                    if k.startswith("diff")
                },
            }
        )
    return pd.DataFrame(checkpoints)


def shape(row: pd.Series) -> str:
    """Format, group size and symmetry of a run, and the vision tower's format where it is rounded too."""
    text = str(row["format"]).upper()
    if row["visual"] != "bf16":
        return f"{text.replace('BF16', 'bf16')}, vision {row['visual'].upper()}"
    return (
        text if not text.startswith("W") else f"{text} g{row['group_size']}{'' if row['sym'] else ' asym.'}"
    )


def sensitivity(study: SeqlenStudy) -> Path | None:
    """What one layer, or one kind of Linear, costs when it alone is rounded."""
    table = analysis.sensitivity(study)
    if table.empty:
        return None
    figure, axes = canvas(3.9, 2)
    for axis, family, title in (
        (axes[0], "layers", "One decoder layer at a time"),
        (axes[1], "kinds", "One kind of linear layer at a time, all layers"),
    ):
        chosen = table[table["family"] == family]
        scopes = list(dict.fromkeys(chosen["scope"]))
        for i, (form, color) in enumerate((("w4", COLORS[0]), ("w2", COLORS[1]))):
            subset = chosen[chosen["format"] == form].set_index("scope").reindex(scopes)
            y = np.arange(len(scopes)) + (i - 0.5) * 0.3
            axis.errorbar(
                100 * subset["diff"],
                y,
                xerr=[
                    100 * (subset["diff"] - subset["diff_low"]),
                    100 * (subset["diff_high"] - subset["diff"]),
                ],
                fmt="oD"[i],
                color=color,
                capsize=2.5,
                markersize=5.5,
                elinewidth=1.2,
                linestyle="none",
                label=f"{form.upper()}, rounded to nearest",
            )
        rows(axis, [s.replace("_proj", "") for s in scopes])
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title=title, xlabel="change of NDCG@5 (points), 95 % intervals")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5, frameon=False
    )
    figure.suptitle(
        f"Which part of the language model hurts (group 128, symmetric, n = {study.n_queries:,} queries)",
        x=0.01,
        ha="left",
    )
    return save(study, figure, "sensitivity.png")


def drift(study: SeqlenStudy) -> Path | None:
    """Drift of vectors and scores by format: what moves before ranks do."""
    table = analysis.drift(study).merge(
        study.runs[["variant", "format", "method", "group_size", "sym", "set", "iters"]], on="variant"
    )
    wanted = groups(study)
    if len(wanted) < 3:
        return None
    measures = (
        ("query_cosine", "Query vectors", "1 − cosine"),
        ("page_cosine", "Page vectors", "1 − cosine"),
        ("score_drift", "MaxSim", "change per\nquery token"),
        ("top5_kept", "Top five", "changed (%)"),
    )
    by_variant = table.set_index("variant")
    order = sorted(wanted, key=lambda name: by_variant["top5_kept"][wanted[name]].mean(), reverse=True)
    figure, axes = canvas(1.7 + 0.26 * len(wanted), 4, sharey=True)
    for axis, (measure, title, unit) in zip(axes, measures):
        for y, name in enumerate(order):
            values = by_variant[measure][wanted[name]].to_numpy()
            shown = {
                "query_cosine": 1 - values,
                "page_cosine": 1 - values,
                "top5_kept": 100 * (1 - values),
            }.get(measure, values)
            exact = measure != "top5_kept" and shown.mean() < 1e-7
            if exact:
                axis.text(
                    0.03,
                    y,
                    "unchanged",
                    transform=axis.get_yaxis_transform(),
                    va="center",
                    fontsize=7.5,
                    color=GREY,
                )
                continue
            axis.plot(shown, np.full(len(shown), y), "|", color=COLORS[0], markersize=9)
            axis.plot(shown.mean(), y, "D", color="black", markersize=3.5)
        rows(axis, order)
        axis.set(title=title, xlabel=unit)
        axis.title.set_fontsize(9.5)
        axis.set_xscale("linear" if measure == "top5_kept" else "log")
        axis.margins(x=0.12)
        axis.tick_params(axis="x", labelsize=8)
        axis.xaxis.label.set_fontsize(8.5)
    figure.suptitle(
        f"Drift from bf16, least on top; n = {len(study.asked):,} queries\ndiamonds: means, bars: single seeds; the first three scales are logarithmic",
        x=0.01,
        ha="left",
    )
    return save(study, figure, "drift.png")


def groups(study: SeqlenStudy) -> dict[str, list[str]]:
    """Variants that figures and tables of drift show, seeds together."""
    there = set(study.names)
    plain = {
        "fp32": "FP32",
        "w8-rtn": "W8",
        "fp8-rtn": "FP8",
        "w4-rtn-g32": "W4, groups of 32",
        "mxfp4-rtn": "MXFP4",
        "w4-rtn": "W4",
    }
    labelled = {label: [name] for name, label in plain.items() if name in there}
    for iters in (200, 1000):
        for name in ("s256", "s512", "s1024"):
            variants = study.arm("length", iters=iters, set=name)["variant"].tolist()
            if variants:
                labelled[f"W4 AutoRound, {LENGTHS[name]:,} tokens, {iters:,} it."] = variants
    for label, family, choices in (
        ("W4 AutoRound, pages+queries, 200 it.", "content", {"iters": 200}),
        ("W3 AutoRound, 512 tokens, 200 it.", "tuned", {"format": "w3"}),
        ("W2 AutoRound, 512 tokens, 200 it.", "tuned", {"format": "w2"}),
    ):
        variants = study.arm(family, **choices)["variant"].tolist()
        if variants:
            labelled[label] = variants
    labelled |= {
        label: [name]
        for name, label in {"w3-rtn": "W3", "w2-rtn": "W2", "bf16-vision-w4": "vision tower W4 alone"}.items()
        if name in there
    }
    return labelled
