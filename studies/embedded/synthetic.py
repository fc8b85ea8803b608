"""Synthetic pages: real sentences, set in many fonts and layouts, with the box of every word.

They teach reading in languages that have few free manuals. A page is a stack of blocks (headings,
paragraphs, lists, code, tables, ruled boxes) in one or two columns; sizes and leading are those of
manuals rendered at about 1.4 pixels a point. Scanning faults are not drawn here but added on the
fly (`augment`), so that one page serves many times. The text makes sense, the documents do not.
"""

import gzip
import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAGE_HEIGHT, PAGE_WIDTH = 920, 832  # pixels
MONOSPACED = ("mono", "cursor", "cour", "inconsolata", "cmuntt")
BULLETS = ("•", "–", "*", "-", "›", "1.", "a)", "(i)")


@dataclass
class Sheet:
    """A page being set: the image, its pen and the words drawn so far."""

    image: Image.Image
    pen: ImageDraw.ImageDraw
    ink: int
    words: list[tuple[str, tuple[float, float, float, float]]] = field(default_factory=list)


class Writer:
    """Draws synthetic pages.

    Args:
        texts: folder of `<language>.txt.gz`, a paragraph a line, headings marked `# `.
        fonts: folder of font files.
        seed: of the random generator; the same seed draws the same pages.
    """

    def __init__(self, texts: Path, fonts: Path, seed: int):
        self.random = random.Random(seed)
        self.paragraphs = {}
        for path in sorted(Path(texts).glob("*.txt.gz")):
            lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
            self.paragraphs[path.name.split(".")[0]] = lines
        files = sorted(str(path) for path in Path(fonts).iterdir())
        self.mono = [name for name in files if any(part in Path(name).name.lower() for part in MONOSPACED)]
        self.fonts = [name for name in files if name not in self.mono]

    def page(self, language: str) -> tuple[np.ndarray, list]:
        """Return an image (920, 832) uint8 grey and its words [(text, (x0, y0, x1, y1))] in reading order."""
        r = self.random
        paper = r.choice((255, 255, 255, r.randint(225, 254)))
        image = Image.new("L", (PAGE_WIDTH, PAGE_HEIGHT), paper)
        sheet = Sheet(image, ImageDraw.Draw(image), r.choice((0, 0, r.randint(0, 100))))
        left = r.randint(4, 60)
        width = r.randint(560, min(PAGE_WIDTH - left - 6, 780))
        columns = r.choices((1, 2, 3), (75, 22, 3))[0]
        gap = r.randint(16, 36)
        each = (width - gap * (columns - 1)) // columns
        body = r.choice(self.fonts if r.random() < 0.94 else self.mono)
        head = body if r.random() < 0.5 else r.choice(self.fonts)
        size = r.triangular(10.5, 19, 13.5) * (0.92 if columns > 1 else 1)
        at = r.randrange(len(self.paragraphs[language]))
        for column in range(columns):
            x, y = left + column * (each + gap), r.randint(2, 30)
            while y < PAGE_HEIGHT - size:
                at = (at + 1) % len(self.paragraphs[language])
                text = self.paragraphs[language][at]
                y = self._block(sheet, text, (x, y), each, body, head, size)
        return np.asarray(image).copy(), sheet.words

    def _block(
        self, sheet: Sheet, text: str, at: tuple[float, float], width: int, body: str, head: str, size: float
    ):
        """Set one paragraph or heading at (x, y) and return the y below it."""
        r, (x, y) = self.random, at
        kind = r.random()
        if text.startswith("# ") or (len(text) < 60 and kind < 0.2):
            return self._heading(sheet, text.removeprefix("# "), at, width, head, size)
        words = text.split()[: r.choice((30, 60, 120))]
        if kind < 0.10:
            return self._table(sheet, words, at, width, body, size)
        leading = size * r.uniform(1.12, 1.45)
        indent, font, shade = 0.0, body, False
        if kind < 0.25:  # a list item
            mark = r.choice(BULLETS)
            indent = size * r.uniform(1.2, 2.5)
            sheet.pen.text((x + indent / 3, y), mark, fill=sheet.ink, font=face(body, size))
        elif kind < 0.34 and self.mono:  # code, sometimes on a grey ground
            font, indent, shade = r.choice(self.mono), size * r.uniform(0, 2), r.random() < 0.4
        elif kind < 0.42:
            font, indent = r.choice(self.fonts), size * r.uniform(0, 3)
        lines = self._fill(words, width - indent, font, size)
        bottom = y + leading * len(lines)
        if shade:
            sheet.pen.rectangle((x, y - 2, x + width, bottom + 2), fill=r.randint(215, 240))
        elif kind > 0.97:
            sheet.pen.rectangle((x - 3, y - 3, x + width, bottom + 3), outline=sheet.ink)
        justify = font == body and r.random() < 0.6
        for number, line in enumerate(lines):
            room = width - indent - sum(w for _, _, w in line)
            space = (
                room / max(1, len(line) - 1)
                if justify and number < len(lines) - 1
                else face(font, size).getlength(" ")
            )
            self._line(sheet, line, (x + indent, y), min(space, 1.6 * size), size)
            y += leading
        return y + size * r.choice((0.1, 0.4, 0.8, 1.2))

    def _heading(
        self, sheet: Sheet, text: str, at: tuple[float, float], width: int, font: str, size: float
    ) -> float:
        r, (x, y) = self.random, at
        bold = bolder(font)
        large = size * r.choice((1.0, 1.2, 1.2, 1.4, 1.7, 2.2))
        words = text.split()[:14]
        if r.random() < 0.4:
            words.insert(
                0, ".".join(str(r.randint(1, 19)) for _ in range(r.randint(1, 3))) + r.choice(("", "."))
            )
        y += size * r.uniform(0.2, 1.2)
        for line in self._fill(words, width, bold, large):
            room = width - sum(w + 0.3 * large for _, _, w in line)
            start = x + (max(0, room / 2) if r.random() < 0.1 else 0)
            self._line(sheet, line, (start, y), face(bold, large).getlength(" "), large)
            y += large * 1.25
        if r.random() < 0.15:
            sheet.pen.line((x, y + 2, x + width, y + 2), fill=sheet.ink)
        return y + size * r.uniform(0.2, 0.8)

    def _table(
        self, sheet: Sheet, words: list[str], at: tuple[float, float], width: int, font: str, size: float
    ) -> float:
        r, (x, y) = self.random, at
        columns, ruled = r.randint(2, 4), r.random() < 0.6
        cell, step = width / columns, size * r.uniform(1.3, 1.7)
        for _row in range(r.randint(2, 6)):
            for column in range(columns):
                take, words = words[: r.randint(1, 3)], words[r.randint(1, 3) :]
                for line in self._fill(take, cell - 8, font, size)[:1]:
                    self._line(
                        sheet, line, (x + column * cell + 4, y + 1), face(font, size).getlength(" "), size
                    )
                if ruled:
                    sheet.pen.rectangle(
                        (x + column * cell, y - 1, x + (column + 1) * cell, y + step - 1), outline=sheet.ink
                    )
            y += step
        return y + size

    def _fill(self, words: list[str], width: float, font: str, size: float) -> list[list[tuple]]:
        """Break words into lines of (word, face, advance) no wider than `width`; some words change face."""
        r, plain = self.random, face(font, size)
        other = face(r.choice((bolder(font), r.choice(self.fonts), *self.mono[:1])), size)
        space, lines, used = plain.getlength(" "), [[]], 0.0
        for word in words:
            chosen = other if r.random() < 0.05 else plain
            advance = chosen.getlength(word)
            if lines[-1] and used + advance > width:
                lines.append([])
                used = 0.0
            if advance <= width:
                lines[-1].append((word, chosen, advance))
                used += advance + space
        return [line for line in lines if line]

    def _line(
        self, sheet: Sheet, line: list[tuple], at: tuple[float, float], space: float, size: float
    ) -> None:
        x, y = at
        for word, chosen, advance in line:
            sheet.pen.text((x, y + size * 0.95), word, fill=sheet.ink, font=chosen, anchor="ls")
            below = 0.22 if any(letter in "gjpqyçQ,;()[]{}" for letter in word) else 0.02
            sheet.words.append((word, (x, y + 0.22 * size, x + advance, y + (0.95 + below) * size)))
            x += advance + space


@lru_cache(maxsize=512)
def _face(name: str, quarter_pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(name, quarter_pixels / 4, layout_engine=ImageFont.Layout.BASIC)


def face(name: str, size: float) -> ImageFont.FreeTypeFont:
    """Return a font at a size in pixels, rounded to quarters."""
    return _face(name, max(28, round(4 * size)))


@lru_cache(maxsize=512)
def bolder(name: str) -> str:
    """Return the bold face beside a font file where its folder has one, else the file itself."""
    path = Path(name)
    base = path.stem.lower()
    for part in ("regular", "roman", "light", "book", "medium"):
        base = base.removesuffix(part).rstrip("-_")
    for other in sorted(path.parent.iterdir()):
        stem = other.stem.lower()
        if stem.startswith(base) and "bold" in stem and "italic" not in stem and "oblique" not in stem:
            return str(other)
    return name
