"""Local mteb tasks in the three shapes of ViDoRe's, for tests: nothing is downloaded.

v1: one subset named default, attributes in mteb's older format. v2: languages that share one corpus object,
relevant pages of all languages in each. v3: a corpus per language of the same pictures, graded relevance.
"""

import io

import numpy as np
from datasets import Dataset, Features, Image, Value
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from PIL import Image as Picture

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon"]


def metadata(name: str, eval_langs) -> TaskMetadata:
    """What mteb wants to know of a task."""
    return TaskMetadata(
        name=name,
        description=f"pictures of {name}",
        dataset={"path": "none", "revision": "1" * 40},
        type="DocumentUnderstanding",
        category="t2i",
        modalities=["text", "image"],
        eval_splits=["test"],
        eval_langs=eval_langs,
        main_score="ndcg_at_10",
        date=("2024-01-01", "2024-12-31"),
        domains=["Non-fiction"],
        task_subtypes=[],
        license="not specified",
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
        reference=None,
    )


def corpus(seed: int, n: int) -> Dataset:
    """n pictures of noise with ids of their own."""
    rng, images = np.random.default_rng(seed), []
    for _ in range(n):
        buffer = io.BytesIO()
        Picture.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    return Dataset.from_dict(
        {"id": [f"corpus-test-{i}" for i in range(n)], "image": images},
        Features({"id": Value("string"), "image": Image()}),
    )


def queries(prefix: str, n: int) -> Dataset:
    return Dataset.from_dict(
        {
            "id": [f"{prefix}-{i}" for i in range(n)],
            "text": [f"{WORDS[i % 5]} {WORDS[(2 * i + 1) % 5]} {prefix}" for i in range(n)],
        }
    )


class LocalSingle(AbsTaskRetrieval):
    """v1's shape."""

    metadata = metadata("LocalSingle", ["eng-Latn"])

    def load_data(self, num_proc=None, **unused):
        self.corpus, self.queries = {"test": corpus(1, 6)}, {"test": queries("query", 5)}
        self.relevant_docs = {"test": {f"query-{i}": {f"corpus-test-{i}": 1} for i in range(5)}}
        self.data_loaded = True


class LocalShared(AbsTaskRetrieval):
    """v2's shape."""

    metadata = metadata(
        "LocalShared", {"french": ["fra-Latn"], "english": ["eng-Latn"], "german": ["deu-Latn"]}
    )

    def load_data(self, num_proc=None, **unused):
        if self.data_loaded:
            return
        shared, langs = corpus(2, 7), list(self.metadata.eval_langs)
        every = {
            f"{lang}-{i}": {f"corpus-test-{i}": 1, f"corpus-test-{i + 1}": 1}
            for lang in langs
            for i in range(4)
        }
        self.corpus = {lang: {"test": shared} for lang in langs}
        self.queries = {lang: {"test": queries(lang, 4)} for lang in langs}
        self.relevant_docs = {lang: {"test": every} for lang in langs}
        self.data_loaded = True


class LocalCopies(AbsTaskRetrieval):
    """v3's shape."""

    metadata = metadata("LocalCopies", {"english": ["eng-Latn"], "italian": ["ita-Latn"]})

    def load_data(self, num_proc=None, **unused):
        self.dataset = {
            lang: {
                "test": {
                    "corpus": corpus(3, 8),
                    "queries": queries(lang, 6),
                    "top_ranked": None,
                    "relevant_docs": {
                        f"{lang}-{i}": {f"corpus-test-{i}": 2, f"corpus-test-{i + 2}": 1, "corpus-test-0": 0}
                        for i in range(6)
                    },
                }
            }
            for lang in self.metadata.eval_langs
        }
        self.data_loaded = True


class LocalBroken(AbsTaskRetrieval):
    """A task whose data cannot be had."""

    metadata = metadata("LocalBroken", ["eng-Latn"])

    def load_data(self, num_proc=None, **unused):
        raise ConnectionError("the data cannot be had")


TASKS = {task.metadata.name: task for task in (LocalSingle, LocalShared, LocalCopies, LocalBroken)}
