"""Documents of one's own as mteb tasks: one per kind of query, over the same pages.

Queries without labels make a task too; mteb has nothing to score there, so `has_labels` tells the evaluation
to search and to keep the rankings alone.
"""

from functools import lru_cache

import pandas as pd
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from colq_utils.base.config import Experiment
from colq_utils.base.names import DOCUMENT_QUERIES
from colq_utils.data import documents


class DocumentsTask(AbsTaskRetrieval):
    """Queries of one kind over all pages; made by `tasks`."""

    k_values = (1, 5)
    has_labels: bool
    content: dict

    def load_data(self, num_proc: int | None = None, **kwargs) -> None:
        """Fill `dataset` with corpus, queries and relevant_docs; pages stay files until they are needed."""
        self.dataset, self.data_loaded = {"default": {"test": self.content}}, True


@lru_cache(maxsize=2)
def _read(settings_json: str, cache: str, seed: int) -> tuple[documents.Collection, pd.DataFrame]:
    settings = documents.Documents.model_validate_json(settings_json)
    collection = documents.collect(settings, documents.Path(cache))
    return collection, documents.questions(settings, collection.pages, seed)


def read(experiment: Experiment) -> tuple[documents.Collection, pd.DataFrame]:
    """The documents and queries, read once per process; see `documents.collect` and `documents.questions`."""
    settings = experiment.evaluation.documents.model_dump_json()
    return _read(settings, str(experiment.build("documents")), experiment.seed)


def tasks(experiment: Experiment) -> list[DocumentsTask]:
    """A task per kind of query that there is, the labelled first."""
    collection, asked = read(experiment)
    revision = documents.fingerprint(collection.pages, asked)
    features = Features({"id": Value("string"), "image": ImageFeature()})
    pictures = [{"bytes": None, "path": path} for path in collection.pages.path]
    corpus = Dataset.from_dict({"id": list(collection.pages.page_id), "image": pictures}, features)
    loadable = []
    for kind, rows in asked.groupby("kind", sort=False):
        name, words = DOCUMENT_QUERIES[kind]
        fields = {"metadata": _metadata(name, words, revision), "has_labels": kind != "unlabelled"}
        task = type(name, (DocumentsTask,), fields)()
        task.content = {
            "corpus": corpus,
            "queries": Dataset.from_dict({"id": list(rows.query_id), "text": list(rows.text)}),
            "relevant_docs": dict(zip(rows.query_id, rows.relevant)),
            "top_ranked": None,
        }
        loadable.append(task)
    return loadable


def _metadata(name: str, description: str, revision: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description=description,
        dataset={"path": "documents", "revision": revision},
        type="DocumentUnderstanding",
        category="t2i",
        modalities=["text", "image"],
        eval_splits=["test"],
        eval_langs=["und-Latn"],
        main_score="ndcg_at_5",
        date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None, dialect=None,
        sample_creation=None, bibtex_citation="", reference=None,
    )  # fmt: skip
