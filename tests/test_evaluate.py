"""NDCG by hand and against mteb and trec_eval, what queries share, what is encoded once, what is kept."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from colq_utils.base import cache, config
from colq_utils.base.errors import ColqError
from colq_utils.stages.evaluate import evaluate, references, retriever, scores, tasks
from colq_utils.stages.evaluate.store import VectorStore


@pytest.mark.parametrize(
    ("ranked", "ideal", "expected"),
    [
        ([1, 0, 0, 0, 0], [1], 1.0),
        ([0, 1, 0, 0, 0], [1], 1 / np.log2(3)),
        ([0, 0, 0, 0, 0, 1], [1], 0.0),
        ([0, 1, 1], [1, 1], (1 / np.log2(3) + 0.5) / (1 + 1 / np.log2(3))),
        ([2, 0, 1], [1, 2], (2 + 0.5) / (2 + 1 / np.log2(3))),
    ],
)
def test_ndcg_known_answers(ranked, ideal, expected):
    assert scores.ndcg(np.array(ranked, dtype=float), np.array(ideal, dtype=float)) == pytest.approx(
        expected, abs=1e-12
    )


def test_per_query_rank_margin_and_top():
    found = torch.tensor([[1.0, 4.0, 3.0], [5.0, 1.0, 1.0]])
    frame = scores.per_query(found, ["q1", "q2"], ["a", "b", "c"], [2, 4], {"q1": {"c": 1}, "q2": {"a": 1}})
    assert frame["first_rank"].tolist() == [2, 1]
    assert frame["margin"].tolist() == [(3 - 4) / 2, (5 - 1) / 4]
    assert frame["top5"].iloc[0] == ["b", "c", "a"]
    assert frame["ndcg_at_5"].tolist() == pytest.approx([1 / np.log2(3), 1.0])


def test_ndcg_is_trec_evals():
    """Graded relevance, many queries: the reference implementation to 1e-9."""
    import pytrec_eval

    rng = np.random.default_rng(0)
    pages, queries = [f"p{i}" for i in range(30)], [f"q{i}" for i in range(200)]
    found = torch.tensor(rng.normal(size=(200, 30)))
    asked = [*pages, "not in the corpus"]
    relevant = {
        q: {p: int(g) for p, g in zip(rng.choice(asked, 6, replace=False), rng.integers(0, 4, 6))}
        | {asked[i % 31]: 1}
        for i, q in enumerate(queries)
    }
    run = {q: dict(zip(pages, row.tolist())) for q, row in zip(queries, found)}
    theirs = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.5"}).evaluate(run)
    ours = scores.per_query(found, queries, pages, [1] * 200, relevant).set_index("query_id")["ndcg_at_5"]
    assert len(ours) == 200 and max(abs(ours[q] - theirs[q]["ndcg_cut_5"]) for q in queries) < 1e-9


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


def test_two_machines_do_not_make_one_table(tmp_path):
    with pytest.raises(ColqError, match=r"GPU B and on GPU A .*c\.parquet"):
        evaluate._one_machine(
            {
                tmp_path / "a.parquet": "GPU A",
                tmp_path / "b.parquet": "GPU A",
                tmp_path / "c.parquet": "GPU B",
            }
        )
    evaluate._one_machine({tmp_path / "a.parquet": "GPU A"})


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from colq_utils.model.maxsim import maxsim
from colq_utils.stages.evaluate.store import VectorStore
folder, n = Path(sys.argv[1]), int(sys.argv[2])
store = VectorStore(folder, 320, torch.bfloat16)
page = torch.randn(1280, 320).bfloat16()
for i in range(n):
    store.extend([str(i)], [page])
scores = maxsim([torch.randn(8, 320)], n, lambda i: store[str(i)])
assert scores.shape == (1, n)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Twenty and 300 pages of 1280 x 320, 16 and 246 MB on disk, each in a process of its own."""
    peak = [
        int(
            subprocess.run(
                [sys.executable, "-c", MEMORY, str(tmp_path / str(n)), str(n)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for n in (20, 300)
    ]
    assert peak[1] - peak[0] < 40_000, f"{peak} kB"


def test_an_answer_that_the_corpus_lacks_is_not_found():
    frame = scores.per_query(torch.tensor([[1.0, 2.0]]), ["q"], ["a", "b"], [1], {"q": {"elsewhere": 1}})
    assert (
        frame["ndcg_at_5"].tolist() == [0.0]
        and frame["first_rank"].tolist() == [3]
        and frame["margin"].isna().all()
    )


def test_queries_without_an_answer_do_not_count():
    assert scores.per_query(torch.ones(1, 2), ["q"], ["a", "b"], [1], {"q": {"a": 0}}).empty


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


class Meddling:
    """A matrix that does something when its turn to be stored has come."""

    def __init__(self, matrix: torch.Tensor, meddle):
        self.matrix, self.meddle = matrix, meddle

    def detach(self) -> torch.Tensor:
        self.meddle()
        return self.matrix


LARGE = (
    5000  # rows of two fp32: more than a file buffer, so that they are on disk before the next record's turn
)


def test_a_failed_append_shifts_no_later_record(tmp_path):
    def fail():
        raise MemoryError

    store = VectorStore(tmp_path, 2, torch.float32)
    store.extend(["a"], [torch.ones(3, 2)])
    with pytest.raises(MemoryError):
        store.extend(["b", "c"], [torch.full((LARGE, 2), 9.0), Meddling(torch.ones(1, 2), fail)])
    assert "b" not in store
    store.extend(["d"], [torch.full((4, 2), 2.0)])
    for found in (store, VectorStore(tmp_path, 2, torch.float32)):
        assert (
            len(found) == 2
            and torch.equal(found["a"], torch.ones(3, 2))
            and torch.equal(found["d"], torch.full((4, 2), 2.0))
        )


def test_opening_a_store_leaves_another_process_s_append_alone(tmp_path):
    store, others = VectorStore(tmp_path, 2, torch.float32), []
    store.extend(
        ["a", "b"],
        [
            torch.full((LARGE, 2), 1.0),
            Meddling(torch.full((3, 2), 2.0), lambda: others.append(VectorStore(tmp_path, 2, torch.float32))),
        ],
    )
    assert "a" not in others[0], "a record counts once its append has ended"
    others[0].extend(["c"], [torch.full((2, 2), 3.0)])
    for found in (others[0], VectorStore(tmp_path, 2, torch.float32)):
        assert [found[key].unique().tolist() for key in "abc"] == [[1.0], [2.0], [3.0]]


@pytest.fixture
def study(random_checkpoint, random_model, tmp_path, monkeypatch):
    """An experiment on copies of the random checkpoint and of the code, whose digest is forgotten later."""
    shutil.copytree(
        config.ROOT / "colq_utils", tmp_path / "colq_utils", ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    monkeypatch.setattr(evaluate.load, "load", lambda experiment, variant: random_model)
    monkeypatch.setattr(references.loading, "plain", lambda experiment, variant: random_model)
    fields = config.load("smoke").model_dump()
    fields["model"]["path"], fields["output"] = (
        str(shutil.copytree(random_checkpoint, tmp_path / "checkpoint")),
        tmp_path,
    )
    cache.digest.cache_clear()
    yield config.Experiment.model_validate(fields)
    cache.digest.cache_clear()


def changed(experiment, section: str, **values):
    """`experiment` with other values in a section; "base": in its first variant."""
    fields = experiment.model_dump()
    (fields["variants"][0] if section == "base" else fields[section]).update(values)
    return config.Experiment.model_validate(fields)


def alter_file(name: str):
    def alter(experiment, tmp_path, monkeypatch):
        path = tmp_path / name
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"altered": 1})
            if path.suffix == ".json"
            else path.read_text() + "# altered\n"
        )
        cache.digest.cache_clear()
        return experiment

    return alter


def alter_package(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluate.provenance, "version_of", lambda name: "another" if name == "transformers" else "1"
    )
    return experiment


CHANGES = {
    "code": alter_file("colq_utils/model/maxsim.py"),
    "scans": alter_file("colq_utils/data/scan.py"),
    "package": alter_package,
    "processor": alter_file("checkpoint/processor_config.json"),
    "tokenizer": alter_file("checkpoint/tokenizer.json"),
    "configuration": alter_file("checkpoint/config.json"),
    "visual tokens": lambda e, *_: changed(e, "model", max_visual_tokens=8),
    "batch": lambda e, *_: changed(e, "evaluation", batch=3),
    "path of features": lambda e, *_: changed(e, "evaluation", share_vision=False),
    "runtime": lambda e, *_: changed(e, "runtime", attention="eager"),
    "kernel": lambda e, *_: changed(e, "base", backend="torch"),
}


OUTCOME = {"query_id": "q", "ndcg_at_5": 0.5, "queries": "own", "pages": "own"}


@pytest.mark.parametrize("variant", ["tiny-bf16", references.RANDOM_INIT])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_kept_scores_are_used_until_what_they_depend_on_changes(
    study, variant, change, tmp_path, monkeypatch
):
    task, measured = SimpleNamespace(metadata=SimpleNamespace(name="T")), []
    monkeypatch.setattr(evaluate, "evaluate_task", lambda *_: measured.append(1) or pd.DataFrame([OUTCOME]))
    for _ in range(2):
        evaluate.run_variant(study, variant, [task], "data")
        cache.digest.cache_clear()  # the next process
    assert len(measured) == 1
    evaluate.run_variant(change(study, tmp_path, monkeypatch), variant, [task], "data")
    assert len(measured) == 2


@pytest.mark.parametrize("change", ["package", "processor", "encode"])
def test_page_features_are_made_anew_with_what_decides_them(
    study, random_model, change, tmp_path, monkeypatch
):
    before = evaluate._features(study, random_model).folder
    assert evaluate._features(study, random_model).folder == before
    alter = CHANGES.get(change, alter_file("colq_utils/model/encode.py"))
    assert evaluate._features(alter(study, tmp_path, monkeypatch), random_model).folder != before


def test_the_committed_floor_is_that_of_the_default_experiment():
    tiny = config.load("tiny")
    data = evaluate.data_fingerprint(tiny)
    stamp = references.floor_stamp(tiny, data)
    assert set(pd.read_parquet(references.FLOOR, columns=["stamp"])["stamp"]) == {stamp}
    others = {
        references.floor_stamp(changed(tiny, "model", max_visual_tokens=limit), data) for limit in (64, 128)
    }
    assert len(others | {stamp}) == 3


def test_scores_of_two_machines_are_told_by_their_folders(study, monkeypatch):
    machines = {"tiny-bf16": "GPU A", "tiny-w4a16-rtn": "GPU B", "tiny-w4a16-autoround-s64": "GPU A"}
    monkeypatch.setattr(evaluate, "data_fingerprint", lambda experiment: "data")
    monkeypatch.setattr(evaluate.checkpoints, "revision", lambda experiment, variant: f"weights of {variant}")
    monkeypatch.setattr(evaluate, "_side_by_side", lambda *_: None)
    monkeypatch.setattr(
        evaluate,
        "run_variant",
        lambda experiment, name, *_: pd.DataFrame({"variant": [name], "machine": [machines[name]]}),
    )
    monkeypatch.setattr(references, "word_matching", lambda tasks: pd.DataFrame({"variant": ["bm25"]}))
    with pytest.raises(ColqError) as caught:
        evaluate.run_all(study, [])
    assert f"remove {evaluate._folder(study, 'tiny-w4a16-rtn', 'data')} and run" in str(caught.value)
