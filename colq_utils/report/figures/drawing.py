"""What figures of reports share: their size, colours, intervals, rows, and how a PNG is written.

Values far outside the range that matters are drawn as an arrow at the edge with their number, so that a
collapse of 2 bits does not flatten the rest.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from colq_utils.base.config import Experiment, Variant
from colq_utils.base.files import atomic
from colq_utils.report.analysis import Study

WIDTH, DPI = 8.0, 150
GREY, EDGE = "0.45", 0.97
_COLOURS = sns.color_palette("colorblind")
#: Scheme -> colour and marker of weights that nothing was tuned for, the same in every experiment.
ROUNDED = {
    "bf16": ("black", "o"),
    "fp32": ("0.4", "h"),
    "fp8": (_COLOURS[9], "*"),
    "nf4": ("#7A6A00", ">"),
    "w8a16": (_COLOURS[7], "<"),
    "w4a16": (_COLOURS[0], "D"),
    "w3a16": (_COLOURS[4], "P"),
    "w2a16": (_COLOURS[5], "X"),
}
#: The same with parts in eight bits: scheme, embedding, vision.
WITH_EIGHT_BITS = {("fp8", None, "fp8"): ("#4B0092", "p"), ("w4a16", "int8", "fp8"): ("#882255", "H")}
#: Colour and marker of the others, in the order of the experiment: tuned weights, unusual groups and parts.
OTHERS = (*zip(_COLOURS[1:4], "s^v"), (_COLOURS[6], "d"), ("#117733", "8"), ("#661100", "1"))


def save(figure, path: Path, dpi: int | str = DPI) -> Path:
    """Write a figure as PNG; no dates or versions inside, so that it is reproducible."""
    with atomic(path) as target:
        figure.savefig(target, format="png", dpi=dpi, metadata={"Software": None})
    plt.close(figure)
    return path


def canvas(height: float, columns: int = 1, lines: int = 1, **options):
    """A figure of README width with a grid of axes, all text in one style."""
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette="colorblind",
        font_scale=0.85,
        rc={"axes.titlelocation": "left", "axes.titlesize": 11, "figure.titlesize": 11.5},
    )
    return plt.subplots(lines, columns, figsize=(WIDTH, height), layout="constrained", **options)


def style(experiment: Experiment, name: str) -> dict:
    """Colour and marker of a variant, the same in every figure and for every kernel on the same numbers."""
    by_id, size = experiment.by_id, experiment.model.size
    keys = {n: (v.stored(size), v.embedding, v.vision) for n, v in by_id.items() if _fixed(v) is None}
    look = _fixed(by_id[name]) or OTHERS[list(dict.fromkeys(keys.values())).index(keys[name]) % len(OTHERS)]
    return dict(zip(("color", "marker"), look))


def _fixed(variant: Variant) -> tuple | None:
    """Colour and marker of a variant that has them in every experiment."""
    if variant.method == "autoround" or variant.group is not None or not variant.sym:
        return None
    if variant.embedding or variant.vision:
        return WITH_EIGHT_BITS.get((variant.scheme, variant.embedding, variant.vision))
    return ROUNDED[variant.scheme]


def short(task: str) -> str:
    """A task's name as figures write it."""
    return task.removesuffix("Retrieval").replace("SyntheticDocQA", "Syn")


def interval(axis, y: float, value: float, low: float, high: float, limit=np.inf, size: float = 5, **look):
    """A dot with its interval; beyond ± `limit` an arrow at the edge with the value as text."""
    if not np.isfinite(value):
        at_left = axis.get_yaxis_transform()
        axis.text(0.02, y, "not measured", transform=at_left, va="center", fontsize=8, color=GREY)
        return
    if abs(value) <= limit:
        ends = [[max(0, value - low)], [max(0, high - value)]]
        look |= {"capsize": size / 2, "markersize": size, "elinewidth": 1.3, "linestyle": "none"}
        axis.errorbar(value, y, xerr=ends, **look)
        return
    side, arrow, align = (-1, "<", "left") if value < 0 else (1, ">", "right")
    axis.plot(side * EDGE * limit, y, arrow, color=look["color"], markersize=7)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axis.text(side * 0.9 * limit, y, f"{value:+.1f}", ha=align, va="center", fontsize=8.5, bbox=paper)


def grouped(axis, study: Study, table: pd.DataFrame, labels: dict[str, str], height: float, size: float = 5):
    """Dots with intervals, the variants of a row side by side.

    Args:
        table: columns variant, y (the row), value, low, high.
        labels: variant -> what the legend calls it, in the order within a row.
        height: what the variants fill of a row.
    """
    for i, (name, label) in enumerate(labels.items()):
        shift, look = (i - (len(labels) - 1) / 2) * height / len(labels), style(study.experiment, name)
        for r in table[table.variant == name].itertuples():
            interval(axis, r.y + shift, r.value, r.low, r.high, size=size, **look)
        axis.plot([], [], linestyle="none", label=label, **look)


def rows(axis, labels: list[str], lines: str | None = None) -> None:
    """Name the rows of a dot plot, the first on top, with lines of the colour `lines` between them."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    for y in range(1, len(labels) if lines else 0):
        axis.axhline(y - 0.5, color=lines, linewidth=0.8)


def legend(figure, columns: int = 3) -> None:
    """One legend below all axes."""
    figure.legend(loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False)


def fit(axis, ends: pd.DataFrame, near: list[str], at_least: float) -> float:
    """Half-width that holds the intervals of the variants `near`; the axis ends there, or soon right of 0.

    Args:
        ends: low and high end of each interval, indexed by variant.
    """
    limit = 1.15 * np.nanmax([at_least, ends.loc[near].abs().max().max()])
    right = 1.15 * np.nanmax([0, ends.iloc[:, 1].max()])
    axis.set_xlim(-limit, min(limit, max(0.35 * limit, right)))
    return limit
