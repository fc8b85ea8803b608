"""The mteb side of MiniVidore: one AbsTaskRetrieval a task, loaded from the embedded files, offline.

Corpora are made once and shared by the tasks and languages that search the same pages, so that a
model that remembers pages by their id encodes each only once: a page's id is the same in every
task, and a scanned page's ends in `@scan`. mteb decides how to score; this module only hands it data.
"""

import io
from functools import lru_cache
from pathlib import Path

from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from PIL import Image

from colq_utils.base.errors import ColqError
from colq_utils.data import minividore

#: What is the same for all tasks of MiniVidore in mteb's view of them.
COMMON = {
    "type": "DocumentUnderstanding",
    "category": "t2i",
    "modalities": ["text", "image"],
    "eval_splits": ["test"],
    "main_score": "ndcg_at_5",
    "date": ("2023-01-01", "2024-12-31"),
    "domains": ["Programming", "Non-fiction"],
    "task_subtypes": ["Image Text Retrieval"],
    "license": "not specified",
    "annotations_creators": "derived",
    "dialect": [],
    "sample_creation": "found",
    "bibtex_citation": "",
    "reference": None,
}


class MiniVidoreTask(AbsTaskRetrieval):
    """A task of MiniVidore; a subclass for each names it in its metadata."""

    root: Path = minividore.DEFAULT
    k_values = (1, 5)  # mteb computes a dozen measures at each cut-off, most of them slowly

    def load_data(self, num_proc: int | None = None, **unused) -> None:
        """Fill `dataset[lang]["test"]` with corpus, queries and relevant_docs."""
        if not self.data_loaded:
            name = self.metadata.name
            languages = minividore.TASKS[name].languages
            self.dataset = {lang: {"test": _split(self.root, name, lang)} for lang in languages}
            self.data_loaded = True


def tasks(names: list[str] | None = None, root: Path = minividore.DEFAULT) -> list[MiniVidoreTask]:
    """mteb task objects, all of them or those named; raises ColqError for an unknown name."""
    unknown = sorted(set(names or ()) - set(minividore.TASKS))
    if unknown:
        raise ColqError(f"unknown task {', '.join(unknown)}; there are {', '.join(minividore.TASKS)}")
    return [_make_task(name, Path(root)) for name in (names or minividore.TASKS)]


def _make_task(name: str, root: Path) -> MiniVidoreTask:
    task, recorded = minividore.TASKS[name], minividore.recorded_fingerprint(root)
    revision = recorded["pages_sha256"][:12] + recorded["queries_sha256"][:12]
    metadata = TaskMetadata(
        name=name,
        description=task.description,
        dataset={"path": "data/minividore", "revision": revision},
        eval_langs={lang: [f"{minividore.LANGUAGES[lang]}-Latn"] for lang in task.languages},
        **COMMON,
    )
    return type(name, (MiniVidoreTask,), {"metadata": metadata, "root": root})()


_benchmark = lru_cache(maxsize=4)(minividore.load)


def _split(root: Path, name: str, lang: str) -> dict:
    queries = minividore.queries_of(_benchmark(root), name, lang)
    pages = minividore.TASKS[name].pages
    suffix = "@scan" if pages == "scanned" else ""
    relevant = [{page_id + suffix: 1 for page_id in answers} for answers in queries.relevant]
    return {
        "corpus": _corpus(root, name, lang) if pages in ("reading", "foreign") else _corpus(root, pages),
        "queries": Dataset.from_dict({"id": list(queries.query_id), "text": list(queries.text)}),
        "relevant_docs": dict(zip(queries.query_id, relevant)),
        "top_ranked": None,
    }


@lru_cache(maxsize=32)
def _corpus(root: Path, which: str, lang: str = "") -> Dataset:
    """A corpus (id, image); `which`: all, scanned, or a task with pages of its own per language."""
    pages = _benchmark(root).pages
    if which == "scanned":
        pages = pages[pages.scanned]
        scans = [_png(minividore.scanned(row)) for row in pages.to_dict("records")]
        pages = pages.assign(page_id=pages.page_id + "@scan", image=scans)
    elif which != "all":
        pages = minividore.corpus_of(_benchmark(root), which, lang)
    images = [{"bytes": content, "path": None} for content in pages.image]
    features = Features({"id": Value("string"), "image": ImageFeature()})
    return Dataset.from_dict({"id": list(pages.page_id), "image": images}, features)


def _png(page: Image.Image) -> bytes:
    buffer = io.BytesIO()
    page.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
