"""MiniVidore: the embedded benchmark of real pages in six languages.

It shows the effect of a few bits on a small retriever, offline and in minutes: the large benchmarks take
hours, and everything answers an easy one perfectly. One corpus holds all languages and several regions of
each page, so that every page has near twins. Its queries are words that stand on the pages: it measures
reading and matching, says little about meaning, and cannot be compared with ViDoRe. Made by
studies/embedded/build_benchmark.py.
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

from colq_utils.base import files
from colq_utils.base.config import ROOT
from colq_utils.base.errors import ColqError
from colq_utils.data.scan import scan
from colq_utils.data.words import bm25, tokens

DEFAULT = ROOT / "data" / "minividore"
#: Language as results and reports name it -> as mteb does (ISO 639-3); each is written in Latin script.
LANGUAGES = {"en": "eng", "fr": "fra", "de": "deu", "es": "spa", "it": "ita", "pt": "por"}
SCAN_STRENGTH = 1.0


@dataclass(frozen=True)
class Task:
    """What a task asks.

    queries: the query set it uses; pages: which pages are searched (all; scanned: half, as bad scans;
    reading: a few of the query's language; foreign: those of other languages); counted: in the suite's mean.
    """

    description: str
    queries: str
    pages: str = "all"
    counted: bool = True
    languages: tuple[str, ...] = tuple(LANGUAGES)


_WITH_PICTURES = ("en", "fr")
TASKS = {
    f"MiniVidore{name}": Task(description, name, *rest)
    for name, description, *rest in (
        ("Headings", "Find a section by its title, on clean pages.", "all", False),
        ("Phrases", "Find two consecutive words, each of them common."),
        ("Keywords", "Find one or two words, anywhere on the page."),
        ("Misspelt", "Find two consecutive words, typed with errors."),
        ("Shuffled", "Find common words of one paragraph, out of order."),
        ("Science", "Find one or two words on pages full of figures.", "all", True, _WITH_PICTURES),
        ("ScannedHeadings", "Find a section by its title in bad scans.", "scanned"),
        ("ScannedPhrases", "Find a few consecutive words in bad scans.", "scanned"),
        ("Crosslingual", "Find the section of a title in other languages.", "foreign", False),
        ("Reading", "Find a title or a long phrase among some 50 pages.", "reading", False),
    )
}


@dataclass(frozen=True)
class MiniVidore:
    """The benchmark: two tables.

    pages: page_id, document, lang, page (from 1), part (from 0, from the top), image (lossless WebP bytes),
    width, height (pixels), text (for BM25, overlap checks), scanned, reading (whether these tasks search it).
    queries: query_id, task, lang, text, type, relevant (page ids).
    """

    pages: pd.DataFrame
    queries: pd.DataFrame


def load(root: Path = DEFAULT) -> MiniVidore:
    """Read the benchmark from its folder; raises ColqError where a file is missing."""
    return MiniVidore(*(pd.read_parquet(_there(root, f"{name}.parquet")) for name in ("pages", "queries")))


def _there(root: Path, name: str) -> Path:
    path = Path(root) / name
    if not path.is_file():
        raise ColqError(f"the benchmark lacks {path}; restore it with `git checkout -- {path.parent}`")
    return path


def image(page_row) -> Image.Image:
    """The picture of a row of the pages table, RGB, 704 x 384 pixels."""
    return Image.open(io.BytesIO(page_row["image"])).convert("RGB")


def scanned(page_row) -> Image.Image:
    """The same page in grey, as the scanned tasks show it."""
    return scan(image(page_row), page_row["page_id"], SCAN_STRENGTH).convert("L")


def corpus_of(benchmark: MiniVidore, task: str, lang: str) -> pd.DataFrame:
    """The pages that a task searches for queries of a language."""
    pages, kind = benchmark.pages, TASKS[task].pages
    if kind == "scanned":
        return pages[pages.scanned]
    if kind == "reading":
        return pages[pages.reading & (pages.lang == lang)]
    if kind == "foreign":
        return pages[pages.lang != lang]
    return pages


def queries_of(benchmark: MiniVidore, task: str, lang: str) -> pd.DataFrame:
    """A task's queries in a language."""
    queries = benchmark.queries
    return queries[(queries.task == TASKS[task].queries) & (queries.lang == lang)]


def sources(benchmark: MiniVidore) -> dict[str, str]:
    """What each query was made from, as {query id: the first query id of the same source}.

    Queries of one language with the same words share a source, whichever tasks ask them; so do cross-lingual
    queries whose answers agree in every language but the two they are asked in: translations of one title.
    Links are followed, so a title in six languages and four tasks is one source.
    """
    queries = benchmark.queries.reset_index(drop=True)
    words = [" ".join([lang, *tokens(text)]) for lang, text in zip(queries.lang, queries.text)]
    links = [(rows[0], row) for rows in queries.groupby(words).groups.values() for row in rows]
    titles = list(queries[queries.task == "Crosslingual"].itertuples())
    answers = {q.Index: {page.split("__")[0]: page for page in q.relevant} | {q.lang: None} for q in titles}
    for a, b in combinations(titles, 2):
        first, second = answers[a.Index], answers[b.Index]
        alike = first.keys() == second.keys() and sum(first[lang] != second[lang] for lang in first) == 2
        if alike and a.lang != b.lang:
            links.append((a.Index, b.Index))
    graph = coo_matrix((np.ones(len(links)), np.array(links).T), shape=(len(queries), len(queries)))
    source = connected_components(graph, directed=False)[1]
    first = queries.groupby(source).query_id.first()
    return dict(zip(queries.query_id, first[source]))


def bm25_scores(benchmark: MiniVidore, task: str) -> dict[str, dict[str, float]]:
    """BM25 of a task's queries over the pages' text as {query id: {page id: score}}.

    On scanned tasks too the text is the printed one, which no system that reads the picture has.
    """
    scores = {}
    for lang in TASKS[task].languages:
        texts = corpus_of(benchmark, task, lang).set_index("page_id").text.to_dict()
        scores |= bm25(texts, queries_of(benchmark, task, lang).set_index("query_id").text.to_dict())
    return scores


def fingerprint(root: Path = DEFAULT) -> dict:
    """Counts, and the sha256 of the pages (ids, text, decoded pixels) and of the queries."""
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
    files.write_json(Path(root) / "fingerprint.json", fingerprint(root))


def verify(root: Path = DEFAULT) -> dict:
    """The fingerprint, if it is the recorded one; raises ColqError where the data differ from it."""
    recorded, stored = recorded_fingerprint(root), fingerprint(root)
    wrong = [key for key in stored if stored[key] != recorded.get(key)]
    if wrong:
        raise ColqError(
            f"the benchmark in {root} is not the recorded one ({', '.join(wrong)} differ);"
            f" restore it with `git checkout -- {root}`, scores would not be comparable"
        )
    return stored


def recorded_fingerprint(root: Path = DEFAULT) -> dict:
    """What `write_fingerprint` wrote; raises ColqError where it is missing."""
    return json.loads(_there(root, "fingerprint.json").read_text(encoding="utf-8"))
