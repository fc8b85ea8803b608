"""The mteb side of MiniVidore: one AbsTaskRetrieval a task, loaded from the embedded files, offline.

Corpora are made once and shared by the tasks and languages that search the same pages, so that a
model that remembers pages by their id encodes each only once: a page's id is the same in every
task, and a scanned page's ends in `@scan`. mteb decides how to score; this module only hands it data.
"""

import io
from functools import lru_cache
from pathlib import Path

import pandas as pd
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from colq_utils.base.errors import ColqError
from colq_utils.data import minividore

CODES = {
    "en": "eng-Latn",
    "fr": "fra-Latn",
    "de": "deu-Latn",
    "es": "spa-Latn",
    "it": "ita-Latn",
    "pt": "por-Latn",
}
SCANNED = "@scan"


class MiniVidoreTask(AbsTaskRetrieval):
    """A task of MiniVidore; a subclass for each names it in its metadata."""

    root: Path = minividore.DEFAULT
    k_values = (1, 5)  # mteb computes a dozen measures at each cut-off, most of them slowly

    def load_data(self, num_proc: int | None = None, **kwargs) -> None:
        """Fill `dataset[lang]["test"]` with corpus, queries and relevant_docs."""
        if self.data_loaded:
            return
        name = self.metadata.name
        self.dataset = {
            lang: {"test": _split(str(self.root), name, lang)} for lang in minividore.TASKS[name].languages
        }
        self.data_loaded = True


def make_task(name: str, root: Path) -> MiniVidoreTask:
    """Return the mteb task of a name in minividore.TASKS."""
    task = minividore.TASKS[name]
    metadata = TaskMetadata(
        name=name,
        description=task.description,
        dataset={"path": "data/minividore", "revision": minividore_revision(str(root))},
        type="DocumentUnderstanding",
        category="t2i",
        modalities=["text", "image"],
        eval_splits=["test"],
        eval_langs={lang: [CODES[lang]] for lang in task.languages},
        main_score="ndcg_at_5",
        date=("2023-01-01", "2024-12-31"),
        domains=["Programming", "Non-fiction"],
        task_subtypes=["Image Text Retrieval"],
        license="not specified",
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
        reference=None,
    )
    return type(name, (MiniVidoreTask,), {"metadata": metadata, "root": root})()


@lru_cache(maxsize=4)
def _benchmark(root: str) -> minividore.MiniVidore:
    return minividore.load(Path(root))


@lru_cache(maxsize=4)
def minividore_revision(root: str) -> str:
    """Return the data's version for mteb: the start of the two recorded checksums."""
    path = Path(root) / "fingerprint.json"
    recorded = pd.read_json(path, typ="series")
    return recorded["pages_sha256"][:12] + recorded["queries_sha256"][:12]


def _split(root: str, name: str, lang: str) -> dict:
    benchmark, task = _benchmark(root), minividore.TASKS[name]
    queries = minividore.queries_of(benchmark, name, lang)
    suffix = SCANNED if task.pages == "scanned" else ""
    one_for_all = task.pages in ("all", "scanned")
    return {
        "corpus": _corpus(root, name if not one_for_all else task.pages, "" if one_for_all else lang),
        "queries": Dataset.from_dict({"id": list(queries.query_id), "text": list(queries.text)}),
        "relevant_docs": {
            query.query_id: {page_id + suffix: 1 for page_id in query.relevant}
            for query in queries.itertuples()
        },
        "top_ranked": None,
    }


@lru_cache(maxsize=32)
def _corpus(root: str, which: str, lang: str) -> Dataset:
    """Return a corpus (id, image); which: all, scanned, or the name of a task with pages of its own."""
    benchmark = _benchmark(root)
    if which == "scanned":
        pages = benchmark.pages[benchmark.pages.scanned]
        ids = [page_id + SCANNED for page_id in pages.page_id]
        pictures = [_scanned(row) for row in pages.to_dict("records")]
    else:
        pages = benchmark.pages if which == "all" else minividore.corpus_of(benchmark, which, lang)
        ids, pictures = list(pages.page_id), list(pages.image)
    features = Features({"id": Value("string"), "image": ImageFeature()})
    return Dataset.from_dict(
        {"id": ids, "image": [{"bytes": data, "path": None} for data in pictures]}, features
    )


def _scanned(row: dict) -> bytes:
    buffer = io.BytesIO()
    page = minividore.scan(minividore.image(row), row["page_id"], minividore.SCAN_STRENGTH).convert(
        "L"
    )  # mteb makes it RGB
    page.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def tasks(names: list[str] | None = None, root: Path = minividore.DEFAULT) -> list:
    """Return mteb task objects, all of them or those named; raises ColqError for an unknown name."""
    unknown = sorted(set(names or ()) - set(minividore.TASKS))
    if unknown:
        raise ColqError(f"unknown task {', '.join(unknown)}; there are {', '.join(minividore.TASKS)}")
    return [make_task(name, Path(root)) for name in (names or minividore.TASKS)]
