"""Write the queries of the embedded benchmark from the words of its pages.

Every query has its answer in print: the regions that hold the words it was made from, found by
exact comparison of the page text, all of them, so that no relevant page counts as wrong. What
makes a query hard is chosen here and nowhere else, in `Recipe`: how many words, how common they
are in the corpus, how many letters are wrong. No question is invented and none was written by a
model: what is measured is reading and matching, not understanding.
"""
# ruff: noqa: RUF009 (Span is frozen, a default may be shared)

import random
from collections import defaultdict
from dataclasses import dataclass, replace

import pandas as pd

from colq_utils.data.words import tokens
from studies.embedded.wording import Corpus, Query, Span, bare, misspell, runs


@dataclass(frozen=True)
class Recipe:
    """The knobs of the benchmark; counts are queries for each language.

    common: a word on more regions than this is no content word; shuffle_window: words are taken from
    so many consecutive ones; errors_per_word: share of the longer words that get a typing error.
    """

    seed: int = 7
    common: int = 45
    headings: int = 70
    phrases: int = 55
    keywords: int = 60
    misspelt: int = 55
    shuffled: int = 55
    science: int = 130
    crosslingual: int = 60
    reading: int = 60
    heading: Span = Span((2, 9), min_regions=3, max_relevant=3)
    phrase: Span = Span((2, 2), min_regions=12, max_relevant=5)
    keyword: Span = Span((1, 2), min_regions=2, max_regions=60, max_relevant=5)
    misspell: Span = Span((2, 2), min_regions=6)
    shuffle: Span = Span((3, 3), min_regions=10)
    shuffle_window: int = 30
    scanned_heading: Span = Span((1, 6), min_regions=2, max_relevant=3)
    scanned_phrase: Span = Span((3, 4), min_regions=2)
    experiment: Span = Span((1, 2), min_regions=3, max_relevant=5)
    long_heading: Span = Span((3, 12), max_relevant=1)
    long_phrase: Span = Span((6, 8), max_relevant=1)
    errors_per_word: float = 1.0


@dataclass(frozen=True)
class Heading:
    """A section title found in print, with the number its section has in every translation."""

    lang: str
    family: str
    number: int
    section: str
    title: str
    page_id: str


def phrases(corpus: Corpus, row: dict, span: Span, rng: random.Random) -> list[Query]:
    """Return spans of consecutive words that begin and end with a content word, in random order."""
    candidates = []
    for run in runs(row):
        for start in range(len(run)):
            length = rng.randint(*span.words)
            piece = [bare(word) for word in run[start : start + length]]
            words = tokens(" ".join(piece))
            if (
                len(piece) < length
                or not all(piece)
                or not (corpus.is_content(words[0]) and corpus.is_content(words[-1]))
            ):
                continue
            if (
                sum(map(corpus.is_content, words)) < min(2, length)
                or len(words) > length + 2
                or not corpus.fits(words, span)
            ):
                continue
            relevant = corpus.printing(words)
            if 0 < len(relevant) <= span.max_relevant:
                candidates.append(Query(row["lang"], " ".join(piece), f"phrase of {length}", tuple(relevant)))
    rng.shuffle(candidates)
    return candidates


def keywords(corpus: Corpus, row: dict, span: Span, rng: random.Random) -> list[Query]:
    """Return single words, and pairs of words that need not stand together."""
    words = sorted(
        {word for word in corpus.words[row["page_id"]] if corpus.is_content(word) and len(word) > 4}
    )
    candidates = []
    for _ in range(20):
        count = rng.randint(*span.words)
        chosen = rng.sample(words, min(count, len(words)))
        relevant = corpus.having(chosen)
        if corpus.fits(chosen, span) and 0 < len(relevant) <= span.max_relevant:
            candidates.append(Query(row["lang"], " ".join(chosen), f"{count} words", tuple(sorted(relevant))))
    return candidates


def shuffled(corpus: Corpus, row: dict, span: Span, window: int, rng: random.Random) -> list[Query]:
    """Return content words of one paragraph out of order, that together occur nowhere else."""
    words, candidates = corpus.words[row["page_id"]], []
    for _ in range(40):
        start = rng.randrange(max(1, len(words) - window))
        near = sorted({word for word in words[start : start + window] if corpus.is_content(word)})
        if len(near) < span.words[1]:
            continue
        chosen = rng.sample(near, rng.randint(*span.words))
        relevant = corpus.having(chosen)
        if corpus.fits(chosen, span) and 0 < len(relevant) <= span.max_relevant:
            candidates.append(
                Query(row["lang"], " ".join(chosen), f"{len(chosen)} words", tuple(sorted(relevant)))
            )
    return candidates


def titles(corpus: Corpus, headings: list[Heading], span: Span, rng: random.Random) -> list[Query]:
    """Return section titles, without their numbers, that few regions print."""
    by_words = {}
    for heading in headings:
        words = tokens(heading.title)
        relevant = corpus.printing(words)
        known = heading.page_id in corpus.words and span.words[0] <= len(words) <= span.words[1]
        if known and corpus.fits(words, span) and len(relevant) <= span.max_relevant:
            by_words[heading.lang, tuple(words)] = Query(
                heading.lang, heading.title, "heading", tuple(relevant)
            )
    candidates = list(by_words.values())
    rng.shuffle(candidates)
    return candidates


def crosslingual(corpus: Corpus, headings: list[Heading], rng: random.Random) -> list[Query]:
    """Return titles whose section is answered by the same section in at least three other languages.

    A title of which half the words are printed in the other language's title is left out: it can be
    matched by reading alone.
    """
    sections = defaultdict(dict)
    for heading in headings:
        sections[heading.family, heading.number][heading.lang] = heading
    candidates = []
    for group in sections.values():
        for lang, heading in group.items():
            words = set(tokens(heading.title))
            others = [h for other, h in group.items() if other != lang]
            foreign = [h for h in others if len(words & set(tokens(h.title))) < 0.5 * len(words)]
            if len(words) >= 2 and len(others) >= 3 and len(foreign) == len(others):
                relevant = tuple(sorted({h.page_id for h in others}))
                candidates.append(Query(lang, heading.title, "heading", relevant))
    rng.shuffle(candidates)
    return candidates


def spread(corpus_rows: list[dict], make, count: int, rng: random.Random) -> list[Query]:
    """Return `count` queries for each language, at most one from a region before all had their turn."""
    chosen = []
    for lang in sorted({row["lang"] for row in corpus_rows}):
        rows = [row for row in corpus_rows if row["lang"] == lang]
        rng.shuffle(rows)
        queues, picked, seen = [make(row) for row in rows], [], set()
        while len(picked) < count and any(queues):
            for queue in queues:
                while queue and queue[-1].text.lower() in seen:
                    queue.pop()
                if queue and len(picked) < count:
                    picked.append(queue.pop())
                    seen.add(picked[-1].text.lower())
        chosen += picked
    return chosen


def write_queries(rows: list[dict], headings: list[Heading], recipe: Recipe) -> pd.DataFrame:
    """Return all queries: query_id, task (its query set), lang, text, type, relevant (page ids).

    rows: as build_benchmark.page_rows returns them, with `scanned` and `reading` set.
    """
    manual = [row for row in rows if not row["document"].endswith("eyes17")]
    science = [row for row in rows if row["document"].endswith("eyes17")]
    scans = [row for row in manual if row["scanned"]]
    corpus = Corpus(rows, recipe.common)
    scanned = Corpus([row for row in rows if row["scanned"]], recipe.common)
    named = [heading for heading in headings if heading.family != "eyes17"]
    sets = {}

    def add(task: str, make) -> None:
        sets[task] = make(random.Random(f"{recipe.seed} {task}"))

    def spans(pool: Corpus, pages: list[dict], span: Span, count: int):
        return lambda rng: spread(pages, lambda row: phrases(pool, row, span, rng), count, rng)

    def scattered(rng: random.Random) -> list[Query]:
        make = lambda row: shuffled(corpus, row, recipe.shuffle, recipe.shuffle_window, rng)  # noqa: E731
        return spread(manual, make, recipe.shuffled, rng)

    def misspelt(rng: random.Random) -> list[Query]:
        clean = spans(corpus, manual, recipe.misspell, recipe.misspelt)(rng)
        return [replace(query, text=misspell(query.text, recipe.errors_per_word, rng)) for query in clean]

    add("Headings", lambda rng: per_language(titles(corpus, named, recipe.heading, rng), recipe.headings))
    add("Phrases", spans(corpus, manual, recipe.phrase, recipe.phrases))
    add(
        "Keywords",
        lambda rng: spread(
            manual, lambda row: keywords(corpus, row, recipe.keyword, rng), recipe.keywords, rng
        ),
    )
    add("Misspelt", misspelt)
    add("Shuffled", scattered)
    add("Science", spans(corpus, science, recipe.experiment, recipe.science))
    add(
        "ScannedHeadings",
        lambda rng: per_language(titles(scanned, named, recipe.scanned_heading, rng), recipe.headings),
    )
    add("ScannedPhrases", spans(scanned, scans, recipe.scanned_phrase, recipe.phrases))
    add("Crosslingual", lambda rng: per_language(crosslingual(corpus, headings, rng), recipe.crosslingual))
    add("Reading", lambda rng: reading([row for row in manual if row["reading"]], named, recipe, rng))
    return pd.DataFrame(
        dict(
            query_id=f"{task.lower()}-{i:04d}",
            task=task,
            lang=q.lang,
            text=q.text,
            type=q.type,
            relevant=list(q.relevant),
        )
        for task, queries in sets.items()
        for i, q in enumerate(queries)
    )


def reading(rows: list[dict], headings: list[Heading], recipe: Recipe, rng: random.Random) -> list[Query]:
    """Return titles and long phrases for the pages of the reading check, each language's searched alone."""
    queries = []
    for lang in sorted({row["lang"] for row in rows}):
        pool = [row for row in rows if row["lang"] == lang]
        small = Corpus(pool, recipe.common)
        names = titles(small, headings, recipe.long_heading, rng)[: recipe.reading // 2]
        rest = recipe.reading - len(names)
        queries += names + spread(
            pool, lambda row, small=small: phrases(small, row, recipe.long_phrase, rng), rest, rng
        )
    return queries


def per_language(queries: list[Query], count: int) -> list[Query]:
    """Return the first `count` queries of each language."""
    return [
        query
        for lang in sorted({q.lang for q in queries})
        for query in [q for q in queries if q.lang == lang][:count]
    ]
