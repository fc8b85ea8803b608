"""Figures of the calibration and quantization notebooks; the report's own are in `quality`."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from colq_utils.base.config import Experiment
from colq_utils.report import labels
from colq_utils.report.figures import drawing

sns.set_theme(style="whitegrid", palette="colorblind")


def gallery(images: list[np.ndarray], width: float = 11.0) -> Figure | None:
    """Grey page images side by side, two in a row; None if there are none."""
    if not images:
        return None
    rows = (len(images) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(width, rows * width * 0.29), squeeze=False)
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    figure.tight_layout()
    plt.close(figure)
    return figure


def token_ranks(sets: dict[str, np.ndarray]) -> Figure:
    """How often the n-th most frequent token occurs in each set of token ids, both axes logarithmic."""
    figure, axis = plt.subplots(figsize=(8, 4))
    for (name, ids), style in zip(sets.items(), ("-", "--", ":", "-."), strict=False):
        counts = np.sort(np.unique(ids, return_counts=True)[1])[::-1]
        label = f"{name} ({ids.size:,} tokens)"
        axis.loglog(np.arange(1, len(counts) + 1), counts, style, label=label, linewidth=2.5)
    axis.set(xlabel="rank of the token", ylabel="occurrences", title="Equal budgets hold equal tokens")
    if sets:
        axis.legend()
    figure.tight_layout()
    plt.close(figure)
    return figure


def rounding(stored: np.ndarray, rounded: dict[int, np.ndarray]) -> Figure:
    """One group of weights before and after rounding: a panel per bit width, on the line if unchanged.

    Args:
        stored: ``(n,)`` weights of one group; rounded: bits -> ``(n,)``, the same weights rounded.
    """
    grid = {"sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(rounded), figsize=(10, 3.6), **grid)
    ends = [stored.min(), stored.max()]
    for axis, (bits, values) in zip(axes[0], rounded.items(), strict=True):
        error = np.sqrt(np.mean((values - stored) ** 2) / np.mean(stored**2))
        axis.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
        axis.scatter(stored, values, s=14, color="#0072B2", zorder=2)
        levels = f"{bits} bits: {len(np.unique(values))} of {2**bits} levels used"
        axis.set_title(f"{levels}\nRMS error {100 * error:.2g} % of RMS weight", fontsize=10)
        axis.set_xlabel("stored weight")
    axes[0][0].set_ylabel("rounded weight")
    plt.close(figure)
    return figure


def agreement(table: pd.DataFrame, experiment: Experiment, path: Path, bar: float, aim: float) -> Figure:
    """Mean token cosine with the base, text and pages, a row per variant and export; written to `path`."""
    exports = table.groupby("variant")["export"].transform("nunique")
    names = table["variant"].map(labels.of(experiment))
    places = np.arange(len(table))
    figure, axis = drawing.canvas(1.5 + 0.5 * len(table))
    axis.plot(table["cosine_query_mean"], places - 0.16, "o", markersize=7, label="query tokens")
    axis.plot(table["cosine_page_mean"], places + 0.16, "s", markersize=7, label="page tokens")
    above = axis.get_xaxis_transform()
    for x, name, line in ((bar, "bar", "--"), (aim, "aim", ":")):
        axis.axvline(x, color="0.3", linestyle=line, linewidth=1)
        axis.text(x, 1.01, f"{name} {x}", transform=above, ha="center", va="bottom", fontsize=9)
    axis.set(xlabel="mean token cosine with the base (1 = unchanged)")
    drawing.rows(axis, names.where(exports == 1, names + "\n" + table["export"]).tolist(), "0.85")
    drawing.legend(figure, 2)
    drawing.save(figure, path)
    return figure
