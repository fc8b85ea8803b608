"""MiniVidore: the embedded benchmark of real pages in six languages.

It exists so that a small retriever can be measured, offline and in minutes, where the effect of a
few bits can be seen: the large benchmarks take hours, and an easy one is answered perfectly by
everything. One corpus holds all languages and several regions of each page, so that every page has
near twins; see `TASKS` for what is asked. Its queries are words that stand on the pages: it
measures reading and matching, says little about meaning, and its scores cannot be compared with
ViDoRe's. How it was made: studies/embedded/build_benchmark.py.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from colq_utils.base.errors import ColqError
from colq_utils.data.scan import scan
from colq_utils.data.words import bm25, tokens

__all__ = ["DEFAULT", "LANGUAGES", "SCAN_STRENGTH", "TASKS", "MiniVidore", "Task", "bm25_scores", "corpus_of",
           "fingerprint", "image", "load", "queries_of", "scan", "sources", "verify", "write_fingerprint"]  # fmt: skip

DEFAULT = Path(__file__).resolve().parents[2] / "data" / "minividore"
LANGUAGES = ("en", "fr", "de", "es", "it", "pt")
SCAN_STRENGTH = 1.0


@dataclass(frozen=True)
class Task:
    """What a task asks.

    queries: the query set it uses; pages: which pages are searched (all; scanned: half of them, as bad
    scans; reading: a few of the query's language; foreign: those of the other languages); counted:
    whether it enters the suite's mean.
    """

    description: str
    queries: str
    pages: str = "all"
    counted: bool = True
    languages: tuple[str, ...] = LANGUAGES


TASKS = {
    "MiniVidoreHeadings": Task("Find a section by its title, on clean pages.", "Headings", counted=False),
    "MiniVidorePhrases": Task("Find two consecutive words, each of them common.", "Phrases"),
    "MiniVidoreKeywords": Task("Find one or two words, anywhere on the page.", "Keywords"),
    "MiniVidoreMisspelt": Task("Find two consecutive words, typed with errors.", "Misspelt"),
    "MiniVidoreShuffled": Task("Find common words of one paragraph, out of order.", "Shuffled"),
    "MiniVidoreScience": Task(
        "Find one or two words on pages full of figures.", "Science", languages=("en", "fr")
    ),
    "MiniVidoreScannedHeadings": Task(
        "Find a section by its title in bad scans.", "ScannedHeadings", "scanned"
    ),
    "MiniVidoreScannedPhrases": Task(
        "Find a few consecutive words in bad scans.", "ScannedPhrases", "scanned"
    ),
    "MiniVidoreCrosslingual": Task(
        "Find the section of a title in other languages.", "Crosslingual", "foreign", False
    ),
    "MiniVidoreReading": Task(
        "Find a title or a long phrase among some 50 pages.", "Reading", "reading", False
    ),
}


@dataclass(frozen=True)
class MiniVidore:
    """The benchmark: two tables.

    pages: page_id, document, lang, page (from 1), part (from 0, from the top), image (lossless WebP
    bytes), width, height (pixels), text (for BM25 and overlap checks only), scanned, reading (whether
    it is among the pages of the scanned tasks and of the reading check).
    queries: query_id, task, lang, text, type, relevant (page ids).
    """

    pages: pd.DataFrame
    queries: pd.DataFrame


def load(root: Path = DEFAULT) -> MiniVidore:
    """Read the benchmark from its folder; raises ColqError where a file is missing."""
    tables = []
    for name in ("pages", "queries"):
        path = Path(root) / f"{name}.parquet"
        if not path.is_file():
            raise ColqError(f"the benchmark lacks {path}; restore it with `git checkout -- {path.parent}`")
        tables.append(pd.read_parquet(path))
    return MiniVidore(*tables)


def image(page_row) -> Image.Image:
    """Return the picture of a row of the pages table as an RGB image, 704 x 384 pixels."""
    return Image.open(io.BytesIO(page_row["image"])).convert("RGB")


def corpus_of(benchmark: MiniVidore, task: str, lang: str) -> pd.DataFrame:
    """Return the rows of the pages that a task searches for queries of a language."""
    pages, kind = benchmark.pages, TASKS[task].pages
    if kind == "scanned":
        return pages[pages.scanned]
    if kind == "reading":
        return pages[pages.reading & (pages.lang == lang)]
    if kind == "foreign":
        return pages[pages.lang != lang]
    return pages


def queries_of(benchmark: MiniVidore, task: str, lang: str) -> pd.DataFrame:
    """Return the rows of a task's queries in a language."""
    queries = benchmark.queries
    return queries[(queries.task == TASKS[task].queries) & (queries.lang == lang)]


def sources(benchmark: MiniVidore) -> dict[str, str]:
    """Say what each query was made from, as {query id: the first query id of the same source}.

    Queries of one language with the same words share a source, whichever tasks ask them; so do cross-lingual
    queries whose answers agree in every language but the two they are asked in: they are translations of one
    title. Links are followed, so a title in six languages and four tasks is one source.
    """
    queries = benchmark.queries.reset_index(drop=True)
    words = [lang + " " + " ".join(tokens(text)) for lang, text in zip(queries.lang, queries.text)]
    links = [(rows[0], row) for rows in queries.groupby(words).groups.values() for row in rows]
    answers = [
        (row.Index, {page.split("__")[0]: page for page in row.relevant} | {row.lang: None})
        for row in queries[queries.task == "Crosslingual"].itertuples()
    ]
    for (a, first), (b, second) in combinations(answers, 2):
        if (
            first.keys() == second.keys()
            and sum(first[lang] != second[lang] for lang in first) == 2
            and queries.lang[a] != queries.lang[b]
        ):
            links.append((a, b))
    graph = coo_matrix((np.ones(len(links)), np.array(links).T), shape=(len(queries), len(queries)))
    source = connected_components(graph, directed=False)[1]
    first = queries.groupby(source).query_id.first()
    return dict(zip(queries.query_id, first[source]))


def bm25_scores(benchmark: MiniVidore, task: str) -> dict[str, dict[str, float]]:
    """Score a task's queries by BM25 over the pages' text as {query id: {page id: score}}.

    On scanned tasks too the text is the printed one, which no system that reads the picture has.
    """
    scores = {}
    for lang in TASKS[task].languages:
        corpus, queries = corpus_of(benchmark, task, lang), queries_of(benchmark, task, lang)
        texts = corpus.set_index("page_id").text.to_dict()
        scores |= bm25(texts, queries.set_index("query_id").text.to_dict())
    return scores


def fingerprint(root: Path = DEFAULT) -> dict:
    """Return counts and the sha256 of the pages (ids, text, decoded pixels) and of the queries."""
    benchmark = load(root)
    pages, queries = hashlib.sha256(), hashlib.sha256()
    for row in benchmark.pages.to_dict("records"):
        fields = [row[name] for name in ("page_id", "document", "lang", "text", "scanned", "reading")]
        pages.update(json.dumps(fields, ensure_ascii=False, default=bool).encode())
        pages.update(np.asarray(image(row).convert("L")).tobytes())
    for row in benchmark.queries.to_dict("records"):
        queries.update(json.dumps({**row, "relevant": list(row["relevant"])}, ensure_ascii=False).encode())
    return {
        "pages": len(benchmark.pages),
        "queries": len(benchmark.queries),
        "pages_sha256": pages.hexdigest(),
        "queries_sha256": queries.hexdigest(),
    }


def write_fingerprint(root: Path = DEFAULT) -> None:
    """Write fingerprint.json for the tables in a folder."""
    text = json.dumps(fingerprint(root), indent=1) + "\n"
    (Path(root) / "fingerprint.json").write_text(text, encoding="utf-8")


def verify(root: Path = DEFAULT) -> dict:
    """Return the fingerprint if it is the recorded one; raises ColqError where the data differ from it."""
    path = Path(root) / "fingerprint.json"
    if not path.is_file():
        raise ColqError(f"the benchmark lacks {path}; restore it with `git checkout -- {path.parent}`")
    recorded, found = json.loads(path.read_text(encoding="utf-8")), fingerprint(root)
    wrong = [key for key in found if found[key] != recorded.get(key)]
    if wrong:
        raise ColqError(
            f"the benchmark in {root} is not the recorded one ({', '.join(wrong)} differ);"
            f" restore it with `git checkout -- {root}`, scores would not be comparable"
        )
    return found
