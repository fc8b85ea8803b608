"""What a query finds on a page, as pictures: similarity maps, and pages in the order of a ranking.

Takes numpy arrays and returns figures or tables; whoever loaded a model draws with it.
A map colours each patch of the page by its cosine with a token of the query (Faysse et al., 2024, section
4.4); one colour that grows opaque keeps the print below legible and needs no colour vision.
"""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

#: Blue and vermilion of Okabe and Ito; the second from transparent to nearly opaque, slowly at first so that
#: the best patches stand out.
BLUE, VERMILION = "#0072B2", (0.835, 0.369, 0.0)
SHADES = [(*VERMILION, 0.85 * share**1.7) for share in np.linspace(0, 1, 33)]
GLOW = LinearSegmentedColormap.from_list("glow", SHADES)
LEGEND = "cosine of patch and query token (clear at or below the page's median); box: best patch"


class Shown(NamedTuple):
    """A page as `pages_in_rows` draws it: pixels, the line above it, whether it answers the query."""

    image: np.ndarray
    caption: str
    relevant: bool = False


def maxima(tokens: Sequence[str], similarities: np.ndarray, grid: tuple[int, int]) -> pd.DataFrame:
    """The best patch of each query token; the column ``similarity`` adds up to the MaxSim of the page.

    Args:
        similarities: dot products ``(n_query_tokens, n_patches)``, patches row by row.
        grid: rows and columns of patches on the page.

    Raises:
        ValueError: `similarities` has another number of tokens or patches than `tokens` and `grid`.
    """
    _require_shape(tokens, similarities, grid)
    rows, columns = np.unravel_index(similarities.argmax(1), grid)
    places = {"row": rows + 1, "column": columns + 1}
    return pd.DataFrame({"token": list(tokens), "similarity": similarities.max(1)} | places)


def similarity_maps(
    page: np.ndarray,
    grid: tuple[int, int],
    tokens: Sequence[str],
    similarities: dict[str, np.ndarray],
    most: int = 2,
) -> Figure:
    """Where the query finds its match: a column per variant, a row for the query and each of its best tokens.

    Args:
        page: pixels ``(height, width)`` or ``(height, width, 3)``.
        grid: rows and columns of patches on the page.
        similarities: variant -> ``(n_query_tokens, n_patches)``; the first variant chooses the tokens.
        most: tokens shown at most.

    Raises:
        ValueError: as in `maxima`.
    """
    for values in similarities.values():
        _require_shape(tokens, values, grid)
    first = next(iter(similarities.values()))
    chosen = sorted(np.argsort(-first.max(1), kind="stable")[:most])
    drawn = {name: [values.mean(0), *values[chosen]] for name, values in similarities.items()}
    labels = ["all tokens, mean", *(f"token “{tokens[i].strip()}”" for i in chosen)]
    scale = Normalize(float(np.median(first)), max(float(np.max(maps)) for maps in drawn.values()), clip=True)
    width = 10.0
    height = len(labels) * (width / len(drawn) * page.shape[0] / page.shape[1] + 0.3) + 0.6
    grid_options = {"figsize": (width, height), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(len(labels), len(drawn), **grid_options)
    for column, (name, maps) in zip(axes.T, drawn.items(), strict=True):
        for axis, label, values in zip(column, labels, maps, strict=True):
            _draw_map(axis, page, values.reshape(grid), scale)
            axis.set_title(f"{name} · {label} (highest {values.max():.2f})", fontsize=9, loc="left")
    bar = {"location": "bottom", "shrink": 0.5, "aspect": 40, "pad": 0.01}
    figure.colorbar(ScalarMappable(scale, GLOW), ax=axes, label=LEGEND, **bar)
    plt.close(figure)
    return figure


def pages_in_rows(rows: dict[str, Sequence[Shown]], width: float = 11.0) -> Figure | None:
    """Pages side by side, a row per key, which stands at its left; None if there are no rows.

    Pages that answer the query have a thick blue frame and say so.
    """
    if not rows:
        return None
    columns = max(map(len, rows.values()))
    each = width / (columns + 0.6)
    image = next(iter(rows.values()))[0].image
    height = len(rows) * (each * image.shape[0] / image.shape[1] + 0.42)
    grid = {"squeeze": False, "layout": "constrained", "width_ratios": [0.6, *[1] * columns]}
    figure, axes = plt.subplots(len(rows), columns + 1, figsize=(width, height), **grid)
    for line, (label, pages) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.axis("off")
        wrapped = [textwrap.fill(piece, max(10, int(each * 8))) for piece in label.split("\n")]
        line[0].text(0, 0.5, "\n".join(wrapped), transform=line[0].transAxes, va="center", fontsize=8.5)
        for axis, page in zip(line[1:], pages, strict=False):
            _draw_page(axis, page)
    plt.close(figure)
    return figure


def _draw_map(axis, page: np.ndarray, values: np.ndarray, scale: Normalize) -> None:
    """A page with its patches coloured by `values` ``(rows, columns)`` and a box around the best."""
    height, width = page.shape[:2]
    axis.imshow(page, cmap="gray", vmin=0, vmax=255)
    axis.imshow(values, cmap=GLOW, norm=scale, extent=(0, width, height, 0), interpolation="nearest")
    row, column = np.unravel_index(values.argmax(), values.shape)
    tall, wide = height / values.shape[0], width / values.shape[1]
    best = Rectangle((column * wide, row * tall), wide, tall, fill=False, edgecolor=BLUE, linewidth=2)
    axis.add_patch(best)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)


def _draw_page(axis, page: Shown) -> None:
    note, colour, frame = (" · answers it", BLUE, (3, BLUE)) if page.relevant else ("", "black", (0.8, "0.5"))
    axis.axis("on")
    axis.imshow(page.image, cmap="gray", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
    axis.set_title(page.caption + note, fontsize=8, loc="left", color=colour)
    for side in axis.spines.values():
        side.set(visible=True, linewidth=frame[0], edgecolor=frame[1])


def _require_shape(tokens: Sequence[str], similarities: np.ndarray, grid: tuple[int, int]) -> None:
    wanted = (len(tokens), grid[0] * grid[1])
    if similarities.shape != wanted:
        place = f"{len(tokens)} tokens on {grid[0]} x {grid[1]} patches"
        raise ValueError(f"similarities of {place} have the shape {wanted}, not {similarities.shape}")
