"""Tasks, their subsets and sources; a corpus is encoded once for all of its languages."""

from types import SimpleNamespace

import local_tasks
import pytest
import torch

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.model import encode
from colq_utils.stages.evaluate import evaluate, retriever, tasks
from colq_utils.stages.evaluate.store import VectorStore


def test_translations_share_a_source_and_other_questions_do_not():
    images = {"a": "picture 1", "b": "picture 2", "a-fr": "picture 1", "c": "picture 3"}
    assert tasks.source("T", {"a": 1, "b": 0}, images) == tasks.source("T", {"a-fr": 1}, images)
    others = {
        tasks.source("T", answers, images) for answers in ({"a": 1}, {"a": 2}, {"c": 1}, {"a": 1, "b": 1})
    }
    assert len(others) == 4 and tasks.source("U", {"a": 1}, images) not in others


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


@pytest.mark.parametrize("shared", [True, False])
def test_a_corpus_is_encoded_once_for_all_languages(random_model, tmp_path, shared):
    width = encode.feature_width(random_model)
    features = VectorStore(tmp_path / "features", width, random_model.model.dtype) if shared else None
    searcher = retriever.Retriever(random_model, tmp_path / "pages", features, batch=2)
    frame = evaluate.evaluate_task(searcher, local_tasks.LocalShared())
    assert searcher.encoded == 7 == frame["encoded_pages"].iloc[0]
    assert frame["lang"].value_counts().to_dict() == {"en": 4, "fr": 4, "de": 4}
    assert evaluate.evaluate_task(searcher, local_tasks.LocalShared())["encoded_pages"].eq(0).all()
    direct = encode.pages(random_model, list(local_tasks.corpus(2, 7)["image"]), 2)
    for key, vectors in zip(searcher._keys, direct, strict=True):
        assert torch.equal(searcher.pages[key], vectors)


def test_scores_that_are_not_mtebs_are_refused(random_model, tmp_path, monkeypatch):
    """Every query scores half a thousandth more than mteb says."""
    per_query = tasks.per_query

    def shifted(*arguments):
        frame = per_query(*arguments)
        return frame.assign(ndcg_at_5=frame["ndcg_at_5"] + 5e-4)

    searcher = retriever.Retriever(random_model, tmp_path / "pages", None, batch=2)
    agreed = evaluate.evaluate_task(searcher, local_tasks.LocalSingle())
    assert agreed["ndcg_at_5"].mean() == pytest.approx(agreed["mteb_ndcg_at_5"].iloc[0], abs=1e-4)
    monkeypatch.setattr(tasks, "per_query", shifted)
    with pytest.raises(ColqError, match=r"LocalSingle default: per-query NDCG@5 averages .*, mteb says"):
        evaluate.evaluate_task(searcher, local_tasks.LocalSingle())


def test_an_unknown_task_is_refused_with_those_that_come_close():
    experiment = config.load("tomoro-4b")
    wrong = experiment.evaluation.model_copy(
        update={"tasks": ("VidoreArxivQARetrieval", "VidoreDocVQARetrival")}
    )
    with pytest.raises(ColqError, match="no task 'VidoreDocVQARetrival'; did you mean VidoreDocVQARetrieval"):
        evaluate.tasks_of(experiment.model_copy(update={"evaluation": wrong}))


def test_variants_with_a_vision_tower_of_their_own_share_a_process():
    tiny = config.load("tiny")
    shares = evaluate._shares(tiny, list(tiny.compared), 2)
    assert sorted([*shares[0], *shares[1]]) == sorted(tiny.compared)
    assert {"tiny-fp8-fp8vision", "tiny-w4a16-rtn-int8embed-fp8vision"} == set(shares[0])
    assert evaluate._shares(tiny, ["tiny-fp8"], 2) == [["tiny-fp8"]]
