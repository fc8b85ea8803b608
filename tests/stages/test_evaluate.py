"""Tasks, their subsets and sources; a corpus is encoded once for all of its languages."""

from types import SimpleNamespace

import pytest
import torch

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.stages.evaluate import evaluate, retriever
from colq_utils.stages.evaluate.store import VectorStore


def test_translations_share_a_source_and_other_questions_do_not():
    images = {"a": "picture 1", "b": "picture 2", "a-fr": "picture 1", "c": "picture 3"}
    assert evaluate.source("T", {"a": 1, "b": 0}, images) == evaluate.source("T", {"a-fr": 1}, images)
    others = {
        evaluate.source("T", answers, images) for answers in ({"a": 1}, {"a": 2}, {"c": 1}, {"a": 1, "b": 1})
    }
    assert len(others) == 4 and evaluate.source("U", {"a": 1}, images) not in others


@pytest.mark.parametrize(
    ("scripts", "expected"),
    [
        ({"default": ["eng-Latn"]}, {"default": "en"}),
        ({"french": ["fra-Latn"], "english": ["eng-Latn"]}, {"french": "fr", "english": "en"}),
        ({"korean": ["kor-Hang"]}, {"korean": "kor"}),
        ({"a": ["eng-Latn"], "b": ["eng-Latn"]}, {"a": "a", "b": "b"}),
        ({"mixed": ["eng-Latn", "fra-Latn"]}, {"mixed": "mixed"}),
    ],
)
def test_subsets_are_named_by_their_language(scripts, expected):
    task = SimpleNamespace(
        hf_subsets=list(scripts), metadata=SimpleNamespace(hf_subsets_to_langscripts=scripts)
    )
    assert evaluate.languages(task) == expected


class Task:
    """A local mteb task of two languages over one corpus of pictures."""

    def __new__(cls, images):
        from datasets import Dataset, Features, Image, Value
        from mteb.abstasks.retrieval import AbsTaskRetrieval
        from mteb.abstasks.task_metadata import TaskMetadata

        corpus = Dataset.from_dict(
            {"id": [f"p{i}" for i in range(len(images))], "image": images},
            Features({"id": Value("string"), "image": Image()}),
        )
        metadata = TaskMetadata(
            name="Pictures",
            description="pictures",
            dataset={"path": "none", "revision": "1"},
            type="DocumentUnderstanding",
            category="t2i",
            modalities=["text", "image"],
            eval_splits=["test"],
            eval_langs={"en": ["eng-Latn"], "fr": ["fra-Latn"]},
            main_score="ndcg_at_5",
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

        def load_data(self, num_proc=None, **unused):
            self.dataset = {
                lang: {
                    "test": {
                        "corpus": corpus,
                        "queries": Dataset.from_dict(
                            {"id": [f"{lang}{i}" for i in range(3)], "text": ["alpha", "beta", "gamma delta"]}
                        ),
                        "relevant_docs": {f"{lang}{i}": {f"p{i}": 1} for i in range(3)},
                        "top_ranked": None,
                    }
                }
                for lang in ("en", "fr")
            }
            self.data_loaded = True

        return type(
            "Pictures",
            (AbsTaskRetrieval,),
            {"metadata": metadata, "load_data": load_data, "k_values": (1, 5, 10)},
        )()


@pytest.mark.parametrize("shared", [True, False])
def test_a_corpus_is_encoded_once_and_scores_agree_with_mteb(random_model, page_images, tmp_path, shared):
    from colq_utils.model import encode

    features = (
        VectorStore(tmp_path / "features", encode.feature_width(random_model), random_model.model.dtype)
        if shared
        else None
    )
    searcher = retriever.Retriever(random_model, tmp_path / "pages", features, batch=2)
    frame = evaluate.evaluate_task(searcher, Task(page_images))
    assert searcher.encoded == len(page_images) == frame["encoded_pages"].iloc[0]
    assert len(frame) == 6 and set(frame["lang"]) == {"en", "fr"}
    assert evaluate.evaluate_task(searcher, Task(page_images))["encoded_pages"].eq(0).all()
    direct = encode.pages(random_model, page_images, 2)
    assert all(
        torch.equal(searcher.pages[key], vectors) for key, vectors in zip(searcher._keys, direct, strict=True)
    )


def test_an_unknown_task_is_refused_with_those_that_come_close():
    experiment = config.load("tomoro-4b")
    wrong = experiment.evaluation.model_copy(
        update={"tasks": ("VidoreArxivQARetrieval", "VidoreDocVQARetrival")}
    )
    with pytest.raises(ColqError, match="no task 'VidoreDocVQARetrival'; did you mean VidoreDocVQARetrieval"):
        evaluate.tasks_of(experiment.model_copy(update={"evaluation": wrong}))
