"""Words of the benchmark's regions: which are common, which stand together, how they are mistyped.

The parts that the query generators in queries.py are put together from; what to ask is decided there.
"""

import random
from collections import defaultdict
from dataclasses import dataclass, field

from colq_utils.data.words import contains, tokens

CONTENT_LETTERS = 4  # shorter words do not count as content
SENTENCE_END = (".", ":", ";", "!", "?")
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


@dataclass(frozen=True)
class Span:
    """What the words of one kind of query must be like.

    words: least and most words in it; min_regions: every content word occurs in at least so many
    regions of the corpus, which makes them poor evidence one by one; max_regions: the commonest
    may occur in at most so many; max_relevant: at most so many regions may answer it.
    """

    words: tuple[int, int]
    min_regions: int = 1
    max_regions: int = 10_000
    max_relevant: int = 2


@dataclass(frozen=True)
class Query:
    """A query before it gets its id: its text, the kind it was made as, the regions that answer it."""

    lang: str
    text: str
    type: str
    relevant: tuple[str, ...]


@dataclass
class Corpus:
    """Regions with an index of their words: rows as build_benchmark.page_rows returns them.

    common: a word on more regions than this is a function word.
    """

    rows: list[dict]
    common: int
    words: dict[str, list[str]] = field(init=False)
    holders: dict[str, set[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.words = {row["page_id"]: tokens(row["text"]) for row in self.rows}
        self.holders = defaultdict(set)
        for page_id, words in self.words.items():
            for word in words:
                self.holders[word].add(page_id)

    def is_content(self, word: str) -> bool:
        """Say whether a word can tell pages apart: four letters or more, and not on too many of them."""
        return word.isalpha() and len(word) >= CONTENT_LETTERS and len(self.holders[word]) <= self.common

    def having(self, words: list[str]) -> set[str]:
        """Return the regions that hold every one of the words, anywhere."""
        return set.intersection(*(self.holders[word] for word in words)) if words else set()

    def printing(self, words: list[str]) -> list[str]:
        """Return the regions that print the words next to each other and in order."""
        return sorted(page_id for page_id in self.having(words) if contains(self.words[page_id], words))

    def fits(self, words: list[str], span: Span) -> bool:
        """Say whether the words are as common as a span asks for."""
        counts = [len(self.holders[word]) for word in words if self.is_content(word)]
        return bool(counts) and min(counts) >= span.min_regions and min(counts) <= span.max_regions


def bare(word: str) -> str:
    """Return a word as printed without the punctuation around it."""
    start, end = 0, len(word)
    while start < end and not word[start].isalnum():
        start += 1
    while end > start and not word[end - 1].isalnum():
        end -= 1
    return word[start:end]


def runs(row: dict) -> list[list[str]]:
    """Return the runs of words of a region that were printed one after another within a sentence."""
    sequences, run, last = [], [], None
    for word, box in zip(row["words"], row["boxes"], strict=True):
        height = box[3] - box[1]
        apart = last is not None and not (
            -3 * height < last[1] - box[1] < height and box[3] - last[3] < 3 * height
        )
        if apart or not any(letter.isalnum() for letter in word):
            sequences.append(run)
            run = []
        if any(letter.isalnum() for letter in word):
            run.append(word)
        if word.endswith(SENTENCE_END):
            sequences.append(run)
            run = []
        last = box
    return [run for run in [*sequences, run] if run]


def misspell(text: str, rate: float, rng: random.Random) -> str:
    """Return a text with typing errors in `rate` of its longer words, one at least."""
    words = text.split()
    longer = [i for i, word in enumerate(words) if len(word) >= CONTENT_LETTERS]
    hit = [i for i in longer if rng.random() < rate] or rng.sample(longer, 1)
    return " ".join(_slip(word, rng) if i in hit else word for i, word in enumerate(words))


def _slip(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    kind = rng.choice(("swap", "drop", "double", "neighbour"))
    if kind == "swap" and word[at] != word[at - 1]:
        return word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]
    if kind == "double":
        return word[:at] + word[at] + word[at:]
    row = next((row for row in KEYBOARD if word[at].lower() in row), None)
    if kind == "neighbour" and row:
        place = row.index(word[at].lower())
        return word[:at] + row[place - 1 if place else 1] + word[at + 1 :]
    return word[:at] + word[at + 1 :]
