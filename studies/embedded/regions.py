"""Render PDF pages and cut them into the regions that the embedded model reads.

A page is rendered in grey at 1.4 pixels a point, where 10-point text is just legible, loses its
running header and footer (they repeat section titles and page numbers, which would give answers
away), is cropped to its ink and cut into regions of exactly 384 x 704 pixels. Words come with
their boxes, so that a region's text is known to be what can be read in it: a word is kept only
where there is ink under its box and it lies wholly inside. Every region has the same size, so that
a page costs the same whatever its length. No OCR: pages without a text layer have no words.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
from PIL import Image

from studies.embedded.pdf_words import Word, outward, page_words

SCALE = 1.4  # pixels a point
WIDTH = 704  # pixels
HEIGHT = 384  # pixels
MARGIN = 6  # white pixels kept around a page's ink and above and left of a region's
INK = 200  # a pixel darker than this is ink
SHRINK = 1.15  # a page at most this much too wide is scaled down, a wider one is cut into columns

BAND = 0.16  # running headers and footers lie in this share of the page's height, at either end
SAMPLES = 24  # pages looked at to find a document's running header and footer


@dataclass(frozen=True)
class Page:
    """A rendered page cropped to its ink: image (height, width) uint8 grey, words in reading order."""

    image: np.ndarray
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Region:
    """A part of a page: image (384, 704) uint8 grey, the words wholly inside it."""

    image: np.ndarray
    words: tuple[Word, ...]


def render(pdf: Path | str, index: int, scale: float = SCALE) -> Page:
    """Render page `index` (from 0) of a PDF at `scale` pixels a point, cropped to the ink.

    Raises pypdfium2.PdfiumError for an unreadable file and IndexError for a page it does not have.
    """
    document = open_pdf(str(pdf))
    if not 0 <= index < len(document):
        raise IndexError(f"{pdf}: no page {index}, it has {len(document)}")
    top, bottom = body(str(pdf))
    page = document[index]
    image = np.array(page.render(scale=scale, grayscale=True).to_numpy()).squeeze()  # (height, width)
    words = [word for word in page_words(page, scale) if _inked(image, word.box)]
    page.close()
    height = image.shape[0]
    return _crop(image, words, round(top * height), round(bottom * height))


def cut(page: Page) -> list[Region]:
    """Cut a page into regions of exactly 384 x 704 pixels, from the top, between lines where it can.

    A page slightly too wide is scaled down, a much wider one is cut into columns first; what is
    smaller than a region is padded with white on the right and below.
    """
    if not page.image.size:
        return []
    width = page.image.shape[1]
    if WIDTH < width <= WIDTH * SHRINK:
        page = _resize(page, WIDTH / width)
    regions = []
    for x0, x1 in _spans((page.image < INK).sum(axis=0), WIDTH):
        column = page.image[:, x0:x1]
        for y0, y1 in _spans((column < INK).sum(axis=1), HEIGHT):
            image = np.full((HEIGHT, WIDTH), 255, np.uint8)
            left, top = min(MARGIN, WIDTH - (x1 - x0)), min(MARGIN, HEIGHT - (y1 - y0))
            image[top : top + y1 - y0, left : left + x1 - x0] = column[y0:y1]
            regions.append(Region(image, _inside(page.words, (x0, y0, x1, y1), left, top)))
    return regions


@lru_cache(maxsize=4)
def open_pdf(path: str) -> pdfium.PdfDocument:
    return pdfium.PdfDocument(path)


def _inked(image: np.ndarray, box: tuple[int, int, int, int]) -> bool:
    x0, y0, x1, y1 = box
    patch = image[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    return patch.size > 0 and int(patch.max()) - int(patch.min()) > 60


@lru_cache(maxsize=64)
def body(path: str) -> tuple[float, float]:
    """Return where the body of a document's pages begins and ends, as shares of the page height.

    A running header is a first line that stands at the same height on most pages, apart from
    the second; likewise a footer. Without one nothing is stripped.
    """
    document = open_pdf(path)
    picks = sorted(set(np.linspace(0, len(document) - 1, SAMPLES).round().astype(int).tolist()))
    heads, feet = [], []
    for index in picks:
        page = document[index]
        height = page.get_height()
        lines = _lines([word.box for word in page_words(page, 1.0)])
        page.close()
        if len(lines) >= 3:
            heads.append((lines[0][1] / height, lines[1][0] / height, (lines[0][1] - lines[0][0]) / height))
            feet.append(
                (1 - lines[-1][0] / height, 1 - lines[-2][1] / height, (lines[-1][1] - lines[-1][0]) / height)
            )
    return _edge(heads), 1 - _edge(feet)


def _edge(ends: list[tuple[float, float, float]]) -> float:
    """Return the share of the height that a running line takes, 0 where there is none.

    ends: for each page the inner edge of its outermost line, the near edge of the next, and the
    line's own height, all as shares of the page height measured from that end of the page.
    """
    apart = [end for end in ends if end[0] < BAND and end[1] - end[0] > 0.7 * end[2]]
    if not apart:
        return 0.0
    mode = Counter(round(inner * 200) for inner, _, _ in apart).most_common(1)[0][0] / 200
    same = [end for end in apart if abs(end[0] - mode) < 0.006]
    if len(same) < 0.5 * len(ends):
        return 0.0
    inner, following = max(end[0] for end in same), min(end[1] for end in same)
    return inner + 0.8 * max(0.0, following - inner)


def _lines(boxes: list[tuple]) -> list[tuple[int, int]]:
    """Merge word boxes into lines (top, bottom) from top to bottom."""
    lines = []
    for top, bottom in sorted((box[1], box[3]) for box in boxes):
        if lines and top < lines[-1][1] + 0.5:
            lines[-1] = (lines[-1][0], max(lines[-1][1], bottom))
        else:
            lines.append((top, bottom))
    return lines


def _crop(image: np.ndarray, words: list[Word], top: int, bottom: int) -> Page:
    body = image[top:bottom]
    ys, xs = np.flatnonzero((body < INK).any(axis=1)), np.flatnonzero((body < INK).any(axis=0))
    if not len(ys):
        return Page(np.zeros((0, 0), np.uint8), ())
    y0, y1, x0, x1 = ys[0] + top, ys[-1] + 1 + top, xs[0], xs[-1] + 1
    cropped = np.pad(image[y0:y1, x0:x1], MARGIN, constant_values=255)
    inside = [word for word in words if word.box[1] >= y0 - 2 and word.box[3] <= y1 + 2]
    return Page(cropped, tuple(_shift(word, MARGIN - x0, MARGIN - y0, cropped.shape) for word in inside))


def _shift(word: Word, dx: int, dy: int, shape: tuple[int, int]) -> Word:
    height, width = shape
    corners = np.array(word.box).reshape(2, 2) + np.array([dx, dy])
    x0, y0, x1, y1 = np.clip(corners, 0, (width, height)).ravel().tolist()
    return Word(word.text, (x0, y0, x1, y1))


def _inside(
    words: tuple[Word, ...], span: tuple[int, int, int, int], left: int, top: int
) -> tuple[Word, ...]:
    """Return the words inside a span of the page, moved to the region; boxes may stick out by 2 pixels."""
    x0, y0, x1, y1 = span
    return tuple(
        _shift(word, left - x0, top - y0, (HEIGHT, WIDTH))
        for word in words
        if word.box[0] >= x0 - 2 and word.box[1] >= y0 - 2 and word.box[2] <= x1 + 2 and word.box[3] <= y1 + 2
    )


def _resize(page: Page, factor: float) -> Page:
    height, width = page.image.shape
    size = (int(width * factor), max(1, round(height * factor)))
    image = np.asarray(Image.fromarray(page.image).resize(size, Image.Resampling.LANCZOS))
    return Page(image, tuple(Word(word.text, outward([v * factor for v in word.box])) for word in page.words))


def _spans(ink: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Divide a profile of ink counts into spans that begin and end in ink, each at most `limit` long.

    A span ends at the last white gap in its last 40 %, or else where there is least ink (between the
    rows of a ruled table). Gaps of less than 3 pixels do not count: an accent is that far from its letter.
    """
    inked = np.flatnonzero(ink)
    blank = (ink == 0) & (np.roll(ink, 1) == 0) & (np.roll(ink, 2) == 0)
    spans, begin = [], 0  # begin is an index into inked
    while begin < len(inked):
        start = int(inked[begin])
        stop = start + limit
        if stop <= inked[-1]:
            late = slice(start + int(0.6 * limit), stop + 1)
            gaps = blank[late] if blank[late].any() else ink[late] == ink[late].min()
            stop = late.start + int(np.flatnonzero(gaps)[-1])
        end = int(np.searchsorted(inked, stop))
        spans.append((start, int(inked[end - 1]) + 1))
        begin = end
    return spans
