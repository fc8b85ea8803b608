"""Scores and page features are kept until something that they depend on changes."""

import json
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest

from colq_utils.base import cache, config
from colq_utils.base.errors import ColqError
from colq_utils.stages.evaluate import evaluate, references


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


SCORED = {"query_id": "q", "ndcg_at_5": 0.5, "queries": "own", "pages": "own"}


@pytest.mark.parametrize("variant", ["tiny-bf16", references.RANDOM_INIT])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_kept_scores_are_used_until_what_they_depend_on_changes(
    study, variant, change, tmp_path, monkeypatch
):
    task, measured = SimpleNamespace(metadata=SimpleNamespace(name="T")), []
    monkeypatch.setattr(evaluate, "evaluate_task", lambda *_: measured.append(1) or pd.DataFrame([SCORED]))
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
