"""Training examples, made by worker processes while the accelerator trains.

A page (rendered from a manual or synthetic) gives a pair of canvases: parts of it slightly larger
than a region, so that zoom, rotation and crop can be drawn anew each time (`augment`). With each
canvas come candidate queries as tokens, the box in which each token is printed, and a coarse map
of the characters. Everything has a fixed size, so that examples travel through shared memory.
"""

import random
import unicodedata
from dataclasses import dataclass

import numpy as np
import pypdfium2 as pdfium
from tokenizers import Tokenizer

from studies.embedded import regions
from studies.embedded.synthetic import Writer
from studies.embedded.tokenizer import clean

HEIGHT, WIDTH = 448, 832  # pixels of a canvas
QUERIES, TOKENS = 14, 20  # candidate queries of a canvas, tokens of a query
CELL = 4  # pixels of an entry of the character map
LANGUAGES = {"en": 0.2, "fr": 0.18, "de": 0.18, "es": 0.15, "it": 0.15, "pt": 0.14}
LETTERS = "abcdefghijklmnopqrstuvwxyzàáâãäçèéêëìíîïñòóôõöùúûüßœABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLASSES = f""" {LETTERS}0123456789.,;:!?'"()-/=_<>[]@"""
NARROW, BROAD = set("iljtfrI.,;:!'()[]/1"), set("mwMWœ@")
FIELDS = {  # name -> (shape, dtype) of one canvas
    "image": ((HEIGHT, WIDTH), np.uint8),
    "characters": ((HEIGHT // CELL, WIDTH // CELL), np.uint8),
    "tokens": ((QUERIES, TOKENS), np.int16),
    "boxes": ((QUERIES, TOKENS, 4), np.int16),
    "page": ((2,), np.int32),  # an identity of the page; whether the pair's canvases overlap
}


@dataclass(frozen=True)
class Sources:
    """Where examples come from: PDFs by language, folders of texts and fonts, the tokenizer file."""

    pdfs: dict[str, list[str]]
    texts: str
    fonts: str
    tokenizer: str
    synthetic: float = 0.5


class Maker:
    """Makes pairs of canvases; one a worker process."""

    def __init__(self, sources: Sources, seed: int):
        self.random = random.Random(seed)
        self.sources = sources
        self.writer = Writer(sources.texts, sources.fonts, seed)
        self.tokenizer = Tokenizer.from_file(sources.tokenizer)
        self.classes = {char: i for i, char in enumerate(CLASSES)}
        self.documents, self.words, self.pieces = {}, {}, {}

    def pair(self) -> list[dict[str, np.ndarray]]:
        """Return two canvases of one page, each a dict with the arrays of `FIELDS`."""
        r = self.random
        while True:
            language = r.choices(list(LANGUAGES), LANGUAGES.values())[0]
            if r.random() < self.sources.synthetic or not self.sources.pdfs.get(language):
                (image, words), page = self.writer.page(language), r.getrandbits(31)
            else:
                image, words, page = self._manual(language)
            if len(words) >= 30:
                return self._cut(image, words, page)

    def _manual(self, language: str) -> tuple[np.ndarray, list, int]:
        """Render a random page of a manual at a random scale; its words are parsed once."""
        r, names = self.random, self.sources.pdfs[language]
        lengths = [len(self._open(name)) ** 0.7 for name in names]
        name = r.choices(names, lengths)[0]
        index = r.randrange(len(self._open(name)))
        page = self._open(name)[index]
        if (name, index) not in self.words:
            self.words[name, index] = [
                (clean(w.text), np.array(w.box) / 8) for w in regions.page_words(page, 8.0)
            ]
        scale = regions.SCALE if r.random() < 0.4 else r.uniform(1.15, 1.8)
        image = np.array(page.render(scale=scale, grayscale=True).to_numpy()).squeeze()  # (height, width)
        page.close()
        words = [(text, box * scale) for text, box in self.words[name, index]]
        ys, xs = (np.flatnonzero((image < regions.INK).any(axis=axis)) for axis in (1, 0))
        if not len(ys):
            return image, [], 0
        y, x = max(ys[0] - regions.MARGIN, 0), max(xs[0] - regions.MARGIN, 0)
        image = image[y : ys[-1] + regions.MARGIN, x : xs[-1] + regions.MARGIN]
        return image, [(text, box - (x, y, x, y)) for text, box in words], hash((name, index)) & 0x7FFFFFFF

    def _open(self, name: str) -> pdfium.PdfDocument:
        if name not in self.documents:
            self.documents[name] = pdfium.PdfDocument(name)
        return self.documents[name]

    def _cut(self, image: np.ndarray, words: list, page: int) -> list[dict[str, np.ndarray]]:
        r, (height, width) = self.random, image.shape
        x = [r.randint(0, max(0, width - WIDTH)) for _ in range(2)]
        if r.random() < 0.5:
            x[1] = x[0] = 0
        room = max(0, height - HEIGHT)
        y = [r.randint(0, room) for _ in range(2)]
        if height >= 2 * HEIGHT:
            y[0] = r.randint(0, height - 2 * HEIGHT)
            y[1] = r.randint(y[0] + HEIGHT, room)
        elif r.random() < 0.5:
            y = [0, room]
        overlap = abs(y[0] - y[1]) < HEIGHT - 10
        if r.random() < 0.5:
            x, y = x[::-1], y[::-1]
        pair = []
        for left, top in zip(x, y):
            canvas = np.full((HEIGHT, WIDTH), 255, np.uint8)
            part = image[top : top + HEIGHT, left : left + WIDTH]
            canvas[: part.shape[0], : part.shape[1]] = part
            boxes = np.array([box for _, box in words]) - (left, top, left, top)
            inside = (boxes[:, :2] >= -1).all(1) & (boxes[:, 2] <= WIDTH) & (boxes[:, 3] <= HEIGHT)
            here = [(words[i][0], boxes[i]) for i in np.flatnonzero(inside)]
            tokens, places = self._queries(here)
            pair.append(
                dict(
                    image=canvas,
                    characters=self._characters(here),
                    tokens=tokens,
                    boxes=places,
                    page=np.array([page, overlap], np.int32),
                )
            )
        return pair

    def _characters(self, words: list) -> np.ndarray:
        """Return the class of the character at each 4 x 4 pixels; letters of a word by usual widths."""
        grid = np.zeros((HEIGHT // CELL, WIDTH // CELL), np.uint8)
        for text, box in words:
            widths = np.array(
                [0.55 if c in NARROW else 1.5 if c in BROAD else 1.25 if c.isupper() else 1.0 for c in text]
            )
            edges = box[0] + np.concatenate([[0], np.cumsum(widths)]) / widths.sum() * (box[2] - box[0])
            top, bottom = max(0, round(box[1] / CELL)), round(box[3] / CELL)
            bottom = max(bottom, top + 1)
            marks = (np.round(edges / CELL)).clip(0).astype(int)
            for char, a, b in zip(text, marks[:-1], marks[1:]):
                grid[top:bottom, a : max(b, a + 1)] = self.classes.get(char, len(CLASSES))
        return grid

    def _queries(self, words: list) -> tuple[np.ndarray, np.ndarray]:
        """Return candidate queries as tokens (QUERIES, TOKENS) and the boxes they are printed in."""
        tokens = np.zeros((QUERIES, TOKENS), np.int16)
        boxes = np.zeros((QUERIES, TOKENS, 4), np.int16)
        words = [word for word in words if any(char.isalnum() for char in word[0])]
        lines = _lines(words)
        for i in range(QUERIES if len(words) >= 5 else 0):
            at = 0
            for text, box in self._query(words, lines):
                for piece, a, b in self._pieces(text):
                    if at < TOKENS:
                        width = box[2] - box[0]
                        tokens[i, at] = piece
                        boxes[i, at] = (box[0] + a * width, box[1], box[0] + b * width, box[3])
                        at += 1
        return tokens, boxes

    def _query(self, words: list, lines: list[list]) -> list:
        r = self.random
        if r.random() < 0.15:
            query = r.choice(lines)[:9]
        else:
            length = r.choices((1, 2, 3, 4, 5, 6, 7, 8), (14, 16, 12, 12, 14, 12, 10, 10))[0]
            start = r.randrange(len(words))
            query = words[start : start + length]
            if length <= 2 and r.random() < 0.8:  # short queries ask for something
                long = [word for word in words[start : start + 12] if len(word[0]) >= 5]
                query = long[:length] or query
        if r.random() < 0.5:
            query = [word for word in query if len(word[0]) >= 4] or query
        if r.random() < 0.6:
            query = [(strip(text) or text, box) for text, box in query]
        if r.random() < 0.12:
            query = r.sample(query, len(query))
        if r.random() < 0.2:
            spoilt = set(r.sample(range(len(query)), r.randint(1, max(1, len(query) // 2))))
            query = [
                (misspell(text, r), box) if i in spoilt else (text, box)
                for i, (text, box) in enumerate(query)
            ]
        return query

    def _pieces(self, word: str) -> list[tuple[int, float, float]]:
        """Return the tokens of a word with the shares of its width where each begins and ends."""
        if word not in self.pieces:
            encoded = self.tokenizer.encode(word, add_special_tokens=False)
            n = max(1, len(word))
            self.pieces[word] = [
                (i, a / n, max(b, a + 1) / n) for i, (a, b) in zip(encoded.ids, encoded.offsets)
            ]
        return self.pieces[word]


def _lines(words: list) -> list[list]:
    """Group words that follow each other at one height."""
    lines = []
    for word in words:
        if lines and abs(lines[-1][-1][1][3] - word[1][3]) < 5 and word[1][0] >= lines[-1][-1][1][0]:
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines


def strip(word: str) -> str:
    """Return a word without the punctuation around it."""
    return word.strip("".join(c for c in set(word) if not c.isalnum()))


def misspell(word: str, r: random.Random) -> str:
    """Return a word with one slip of the keyboard: swapped, lost, doubled or wrong letter, lost accents."""
    if len(word) < 4:
        return word
    i = r.randrange(1, len(word) - 1)
    kind = r.randrange(5)
    if kind == 0:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if kind == 1:
        return word[:i] + word[i + 1 :]
    if kind == 2:
        return word[:i] + word[i] + word[i:]
    if kind == 3:
        return word[:i] + r.choice("abcdefghijklmnopqrstuvwxyz") + word[i + 1 :]
    return "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
