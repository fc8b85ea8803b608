"""Figures of a study: one message each, units and n in the labels, intervals, readable at the width of a README."""
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from colq_utils.base.config import ROOT
from colq_utils.base.files import atomic
from colq_utils.report.figures.quality import DPI, GREY, canvas, rows
from studies.seqlen import analysis
from studies.seqlen.analysis import Study

COLORS = sns.color_palette("colorblind")
VISION = "vision tower too"
#: The sets that stand for each length, in the controlled design and in the published one.
LENGTHS = {"s256": 256, "s512": 512, "s1024": 1024, "p256": 256, "p512": 512, "p1024": 1024}


def draw(found: Study) -> list[Path]:
    """Every figure that the results allow."""
    return [path for function in (seeds, pareto, sensitivity, drift) if (path := function(found)) is not None]


def folder(found: Study) -> Path:
    path = ROOT / "figures" / f"{found.spec.name}-study"
    path.mkdir(parents=True, exist_ok=True)
    return path


def save(found: Study, figure, name: str) -> Path:
    """Write a figure without dates or versions inside, so that it is reproducible."""
    path = folder(found) / name
    with atomic(path) as target:
        figure.savefig(target, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return path


def seeds(found: Study) -> Path | None:
    """Every run as a dot, by length: what the seed moves beside what the length moves."""
    designs = [(family, iters) for family in ("length", "confounded") for iters in sorted(found.arm(family)["iters"].unique())]
    if not designs:
        return None
    figure, axes = canvas(4.4, len(designs), sharey=True, squeeze=False)
    value, base = found.suite[0], found.suite[0][found.spec.base]
    floor = 100 * (value["w4-rtn"] - base) if "w4-rtn" in value else None
    for axis, (family, iters) in zip(axes[0], designs):
        table = analysis.blocks(found, family, iters)
        y = 100 * (value[table.to_numpy().ravel()].to_numpy().reshape(table.shape) - base)
        shift = np.linspace(-0.24, 0.24, len(table)) if len(table) > 1 else [0.0]
        for i, name in enumerate(table.columns):
            mean, reach = analysis.mean_score(found, table[name].tolist()), analysis.seed_reach(y[:, i])
            axis.plot(i + np.array(shift), y[:, i], "o", color=COLORS[0], markersize=5, alpha=0.75, label="one seed" if i == 0 else None)
            axis.errorbar(i, 100 * mean["diff"], yerr=[[100 * (mean["diff"] - mean["diff_low"])], [100 * (mean["diff_high"] - mean["diff"])]],
                          fmt="none", ecolor=GREY, elinewidth=1, capsize=3, label="95 % interval over queries and seeds" if i == 0 else None)
            axis.errorbar(i, 100 * mean["diff"], yerr=reach, fmt="D", color="black", elinewidth=2.5, capsize=4, markersize=5.5, zorder=3,
                          label="mean, 95 % interval over seeds alone" if i == 0 else None)
        axis.axhline(0, color="black", linewidth=1)
        if floor is not None:
            axis.axhline(floor, color=GREY, linestyle="--", linewidth=1)
            axis.text(table.shape[1] - 0.55, floor, "rounding to nearest", ha="right", va="bottom", fontsize=8, color=GREY)
        axis.set_xticks(range(table.shape[1]), [str(LENGTHS.get(c, c)) for c in table.columns])
        title = "One budget and step size" if family == "length" else "As published (a tenth)"
        axis.set(title=f"{title},\n{iters} iterations", xlabel="calibration length (tokens)", xlim=(-0.5, table.shape[1] - 0.5))
        axis.title.set_fontsize(9.5)
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("change of NDCG@5 against bf16 (points)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    figure.suptitle(f"W4A16 by calibration length, every run a dot (n = {found.n_queries:,} queries)", x=0.01, ha="left")
    return save(found, figure, "seeds.png")


def pareto(found: Study) -> Path | None:
    """Bytes against NDCG@5, with intervals."""
    table = points(found)
    if len(table) < 3:
        return None
    figure, (left, right) = canvas(4.4, 2, gridspec_kw={"width_ratios": [1, 1]})
    for axis, keep in ((left, table["diff"].notna()), (right, (table["diff"] > -0.03) & (table["group"] != VISION) & (table["group"] != "bf16"))):
        kinds = list(dict.fromkeys(table["group"]))
        for group, some in table[keep].groupby("group", sort=False):
            i = kinds.index(group)
            axis.errorbar(some["bytes"] / 1e6, 100 * some["diff"], yerr=[100 * (some["diff"] - some["diff_low"]), 100 * (some["diff_high"] - some["diff"])],
                          fmt="oDs^vPX*"[i % 8], color="black" if group == "bf16" else COLORS[(i - 1) % 10], capsize=2.5, markersize=5.5, elinewidth=1.1,
                          linestyle="none", label=group)
        axis.axhline(0, color="black", linewidth=1)
        axis.axhspan(-100 * found.spec.margin, 0, color="0.9", zorder=0)
        axis.set(xlabel="checkpoint (MB, 10⁶ bytes)")
        axis.xaxis.set_major_locator(MaxNLocator(5))
    left.set(title="All formats", ylabel="change of NDCG@5 (points)")
    right.set(title="Losses under 3 points, vision tower in bf16")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    figure.suptitle(f"Bytes and NDCG@5, 95 % intervals, n = {found.n_queries:,} queries; grey: within {100 * found.spec.margin:g} points", x=0.01, ha="left")
    return save(found, figure, "pareto.png")


def points(found: Study) -> pd.DataFrame:
    """One row a checkpoint kind for the Pareto figure: seeds pooled; group, label, bytes, diff and its interval."""
    table, made = analysis.scores(found), []
    names = {"base": "bf16", "rtn": "RTN", "float": "FP8, MXFP4", "vision": VISION}
    for _, row in table[table["family"].isin(names) & (table["variant"] != "fp32")].iterrows():
        made.append({"group": names[row["family"]], "label": row["variant"], **row[["bytes", "diff", "diff_low", "diff_high"]]})
    tuned = table[table["family"].isin(["length", "tuned"]) & ((table["family"] == "tuned") | (table["set"] == "s512")) & (table["iters"] == 200)]
    for (form, group, sym), some in tuned.groupby(["format", "group_size", "sym"]):
        made.append({"group": "AutoRound (200 iterations, mean of seeds)", "label": f"{form} g{group} {'sym' if sym else 'asym'}", "bytes": some["bytes"].iloc[0],
                     **{k: v for k, v in analysis.mean_score(found, some["variant"].tolist()).items() if k.startswith("diff")}})
    return pd.DataFrame(made)


def sensitivity(found: Study) -> Path | None:
    """What one layer, or one kind of Linear, costs when it alone is rounded."""
    table = analysis.sensitivity(found)
    if table.empty:
        return None
    figure, axes = canvas(3.9, 2)
    for axis, family, title in ((axes[0], "layers", "One decoder layer at a time"), (axes[1], "kinds", "One kind of Linear at a time, all layers")):
        mine = table[table["family"] == family]
        scopes = list(dict.fromkeys(mine["scope"]))
        for i, (form, color) in enumerate((("w4", COLORS[0]), ("w2", COLORS[1]))):
            some = mine[mine["format"] == form].set_index("scope").reindex(scopes)
            y = np.arange(len(scopes)) + (i - 0.5) * 0.3
            axis.errorbar(100 * some["diff"], y, xerr=[100 * (some["diff"] - some["diff_low"]), 100 * (some["diff_high"] - some["diff"])], fmt="oD"[i], color=color,
                          capsize=2.5, markersize=5.5, elinewidth=1.2, linestyle="none", label=f"{form.upper()} RTN")
        rows(axis, [s.replace("_proj", "") for s in scopes])
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title=title, xlabel="change of NDCG@5 (points), 95 % intervals")
    axes[0].legend(fontsize=8.5, loc="lower left")
    figure.suptitle(f"Which part of the language model hurts (group 128, symmetric, n = {found.n_queries:,} queries)", x=0.01, ha="left")
    return save(found, figure, "sensitivity.png")


def drift(found: Study) -> Path | None:
    """Drift of vectors and scores by format: what moves before ranks do."""
    table = analysis.drift(found).merge(found.runs[["variant", "format", "method", "group_size", "sym", "set", "iters"]], on="variant")
    wanted = groups(found)
    if len(wanted) < 3:
        return None
    measures = (("query_cosine", "Queries,\n1 - token cosine"), ("page_cosine", "Pages,\n1 - token cosine"), ("score_drift", "MaxSim drift\na query token"),
                ("top5_kept", "Top five\nchanged (%)"))
    figure, axes = canvas(1.5 + 0.26 * len(wanted), 4, sharey=True)
    for axis, (measure, title) in zip(axes, measures):
        for y, variants in enumerate(wanted.values()):
            values = table.set_index("variant")[measure][variants].to_numpy()
            shown = {"query_cosine": 1 - values, "page_cosine": 1 - values, "top5_kept": 100 * (1 - values)}.get(measure, values)
            axis.plot(shown, np.full(len(shown), y), "o", color=COLORS[0], alpha=0.45, markersize=4)
            axis.plot(shown.mean(), y, "D", color="black", markersize=5)
        rows(axis, list(wanted))
        axis.set(title=title)
        axis.title.set_fontsize(9)
        axis.set_xscale("linear" if measure == "top5_kept" else "log")
        axis.tick_params(axis="x", labelsize=8)
    figure.suptitle("Drift from bf16 (dots: seeds, diamonds: their mean; the first three axes are logarithmic)", x=0.01, ha="left")
    return save(found, figure, "drift.png")


def groups(found: Study) -> dict[str, list[str]]:
    """Variants that figures and tables of drift show, seeds together."""
    there = set(found.names)
    plain = {"fp32": "FP32", "w8-rtn": "W8 RTN", "fp8-rtn": "FP8 (weights, activations)", "w4-rtn-g32": "W4 RTN g32", "mxfp4-rtn": "MXFP4", "w4-rtn": "W4 RTN"}
    made = {label: [name] for name, label in plain.items() if name in there}
    for iters in (200, 1000):
        for name in ("s256", "s512", "s1024"):
            variants = found.arm("length", iters=iters, set=name)["variant"].tolist()
            if variants:
                made[f"W4 AutoRound {name} i{iters}"] = variants
    for label, family, choices in (("W4 AutoRound pages+queries i200", "content", {"iters": 200}), ("W3 AutoRound s512 i200", "tuned", {"format": "w3"}),
                                   ("W2 AutoRound s512 i200", "tuned", {"format": "w2"})):
        variants = found.arm(family, **choices)["variant"].tolist()
        if variants:
            made[label] = variants
    made |= {label: [name] for name, label in {"w3-rtn": "W3 RTN", "w2-rtn": "W2 RTN", "bf16-vision-w4": "vision W4 alone"}.items() if name in there}
    return made
