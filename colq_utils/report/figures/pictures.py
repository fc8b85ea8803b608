"""Figures of the calibration and quantization notebooks, from numpy arrays and tables; the report's own are in `quality`."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from colq_utils.base.files import atomic

sns.set_theme(style="whitegrid", palette="colorblind")


def gallery(images: list[np.ndarray], width: float = 11.0) -> Figure | None:
    """Grey page images side by side, two in a row; None if there are none."""
    if not images:
        return None
    rows = (len(images) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(width, rows * width * 0.29), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.axis("on")
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    plt.close(figure)
    return figure


def token_ranks(sets: dict[str, np.ndarray]) -> Figure:
    """How often the n-th most frequent token occurs in each set of token ids, both axes logarithmic."""
    figure, axis = plt.subplots(figsize=(8, 4))
    for (name, ids), style in zip(sets.items(), ("-", "--", ":", "-."), strict=False):
        counts = np.sort(np.unique(ids, return_counts=True)[1])[::-1]
        axis.loglog(
            np.arange(1, len(counts) + 1), counts, style, label=f"{name} ({ids.size:,} tokens)", linewidth=2.5
        )
    axis.set(xlabel="rank of the token", ylabel="occurrences", title="Equal budgets hold equal tokens")
    if sets:
        axis.legend()
    figure.tight_layout()
    plt.close(figure)
    return figure


def rounding(stored: np.ndarray, rounded: dict[int, np.ndarray]) -> Figure:
    """One group of weights before and after rounding: a panel per bit width, a dot per weight, on the line if unchanged.

    Args:
        stored: ``(n,)`` weights of one group; rounded: bits -> ``(n,)``, the same weights rounded.
    """
    figure, axes = plt.subplots(
        1, len(rounded), figsize=(10, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    ends = [stored.min(), stored.max()]
    for axis, (bits, values) in zip(axes[0], rounded.items(), strict=True):
        error = np.sqrt(np.mean((values - stored) ** 2) / np.mean(stored**2))
        axis.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
        axis.scatter(stored, values, s=14, color="#0072B2", zorder=2)
        axis.set_title(
            f"{bits} bits: {len(np.unique(values))} of {2**bits} levels used\nRMS error {100 * error:.2g} % of RMS weight",
            fontsize=10,
        )
        axis.set_xlabel("stored weight")
    axes[0][0].set_ylabel("rounded weight")
    plt.close(figure)
    return figure


def agreement(table: pd.DataFrame, path: Path, bar: float, aim: float) -> Figure:
    """Mean token cosine with the base, text and pages, a row per variant and export; written to `path`."""
    exports = table.groupby("variant")["export"].transform("nunique")
    label = table["variant"].where(exports == 1, table["variant"] + "\n" + table["export"])
    figure, axis = plt.subplots(figsize=(9, 0.6 * len(table) + 1.8), layout="constrained")
    for column, kind, marker in (
        ("cosine_query_mean", "query tokens", "o"),
        ("cosine_page_mean", "page tokens", "s"),
    ):
        axis.plot(table[column], label, marker, markersize=8, label=kind)
    axis.axvline(bar, color="0.3", linestyle="--", linewidth=1)
    axis.axvline(aim, color="0.3", linestyle=":", linewidth=1)
    axis.text(bar, -0.7, f"bar {bar}", ha="center", va="bottom", fontsize=9)
    axis.text(aim, -0.7, f"aim {aim}", ha="center", va="bottom", fontsize=9)
    axis.set(xlabel="mean token cosine with the base (1 = unchanged)", ylabel="")
    axis.set_ylim(len(table) - 0.5, -0.9)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    with atomic(path) as target:
        figure.savefig(target, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    return figure
