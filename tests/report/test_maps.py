"""Similarity maps and rows of pages, on pages where it is known what must come out."""

import numpy as np
import pytest
import torch

from colq_utils.model.maxsim import maxsim
from colq_utils.report.figures import maps

GRID, PATCH = (3, 5), 8
TOKENS = ["first", "second"]


@pytest.fixture
def constructed():
    """A query of two orthogonal tokens and a page of noise with one match each: at (2, 5) and (3, 1)."""
    query = torch.eye(2, 6)
    page = 0.1 * torch.rand(GRID[0] * GRID[1], 6, generator=torch.Generator().manual_seed(0))
    page[9, 0], page[10, 1] = 0.9, 0.7
    return query, page


def test_a_map_peaks_where_the_match_was_put(constructed):
    query, page = constructed
    table = maps.maxima(TOKENS, (query @ page.T).numpy(), GRID)
    assert table[["token", "row", "column"]].values.tolist() == [["first", 2, 5], ["second", 3, 1]]
    assert table["similarity"].to_numpy() == pytest.approx([0.9, 0.7])


def test_the_maxima_add_up_to_maxsim():
    generator = torch.Generator().manual_seed(1)
    query, page = (torch.randn(n, 16, generator=generator) for n in (7, 15))
    table = maps.maxima(list("abcdefg"), (query @ page.T).numpy(), GRID)
    assert table["similarity"].sum() == pytest.approx(maxsim([query], 1, lambda i: page).item(), rel=1e-6)


def test_a_map_is_drawn_over_the_page_with_a_box_around_the_peak(constructed):
    query, page = constructed
    values = (query @ page.T).numpy()
    pixels = np.full((GRID[0] * PATCH, GRID[1] * PATCH), 255, dtype=np.uint8)
    figure = maps.similarity_maps(
        pixels, GRID, TOKENS, {"base": values, "quantized": np.roll(values, 1, axis=1)}
    )
    drawn = {axis.get_title(loc="left"): axis for axis in figure.axes if axis.get_title(loc="left")}
    assert len(drawn) == 2 * 3, "two variants, the whole query and its two tokens"
    for variant, corner in (("base", (4, 1)), ("quantized", (0, 2))):
        axis = drawn[f"{variant} · token “first” (highest 0.90)"]
        box = axis.patches[0]
        assert (box.get_x(), box.get_y()) == pytest.approx((corner[0] * PATCH, corner[1] * PATCH))
        page_image, glow = axis.images
        assert page_image.get_array().shape == pixels.shape and glow.get_array().shape == GRID
        assert tuple(glow.get_extent()) == (0, GRID[1] * PATCH, GRID[0] * PATCH, 0), (
            "the map covers the page exactly"
        )
    norms = {(axis.images[1].norm.vmin, axis.images[1].norm.vmax) for axis in drawn.values()}
    assert len(norms) == 1, "one scale, or base and quantized could not be compared"


def test_only_the_best_tokens_are_drawn_in_the_order_of_the_query():
    values = np.array([[0.2, 0.1], [0.9, 0.1], [0.3, 0.1], [0.1, 0.8]])
    figure = maps.similarity_maps(np.zeros((8, 16)), (1, 2), ["a", "b", "c", "d"], {"base": values}, most=2)
    titles = [axis.get_title(loc="left") for axis in figure.axes][:3]
    assert ["mean" in titles[0], "“b”" in titles[1], "“d”" in titles[2]] == [True] * 3


@pytest.mark.parametrize(("tokens", "grid"), [(TOKENS, (3, 4)), (["one"], GRID)])
def test_another_shape_is_refused(constructed, tokens, grid):
    query, page = constructed
    with pytest.raises(ValueError, match="have the shape"):
        maps.maxima(tokens, (query @ page.T).numpy(), grid)


def test_pages_that_answer_say_so_in_words_too():
    pixels = np.zeros((6, 10), dtype=np.uint8)
    figure = maps.pages_in_rows(
        {
            "base": [maps.Shown(pixels, "rank 1", True), maps.Shown(pixels, "rank 2")],
            "short row": [maps.Shown(pixels, "rank 1")],
        }
    )
    titles = [title for axis in figure.axes if (title := axis.get_title(loc="left"))]
    assert titles == ["rank 1 · answers it", "rank 2", "rank 1"]
    assert maps.pages_in_rows({}) is None
