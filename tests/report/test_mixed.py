"""Mixed precision: known scores by hand, resumed runs, bases without vectors, what the report makes of it."""

import dataclasses
import shutil

import made_results
import pandas as pd
import pytest
import torch
from local_tasks import LocalShared, LocalSingle

from colq_utils.base import config
from colq_utils.report import analysis, build, mixed_precision, results
from colq_utils.stages.evaluate import evaluate, mixed, retriever
from colq_utils.stages.evaluate.mixed import BaseVectors


def test_both_directions_by_hand(tmp_path):
    base = BaseVectors(tmp_path, 2, torch.float32)
    base.pages.extend(["p", "q"], [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])])
    base.keep(["word"], [torch.tensor([[1.0, 1.0]])])
    own = {"p": torch.tensor([[5.0, 0.0]]), "q": torch.tensor([[0.0, 7.0]])}
    query = [torch.tensor([[1.0, 10.0], [2.0, 0.0]])]
    scores = base.scores(["word"], query, ["p", "q"], own.__getitem__, "cpu")
    assert scores[mixed.FORWARD].tolist() == [[1 + 2, 20 + 6]]
    assert scores[mixed.BACKWARD].tolist() == [[5, 7]]
    assert base.scores(["word"], query, ["p", "new"], own.__getitem__, "cpu") == {}
    assert base.scores(["another"], query, ["p"], own.__getitem__, "cpu") == {}


@pytest.fixture
def experiment(random_model, tmp_path, monkeypatch):
    """Two variants of the smoke experiment; the quantized one's weights are the base's, a little moved."""
    torch.manual_seed(0)
    moved = type(random_model.model)(random_model.model.config).eval().requires_grad_(False)
    moved.load_state_dict(random_model.model.state_dict())
    moved.embedding_proj_layer.weight += 0.05 * torch.randn_like(moved.embedding_proj_layer.weight)
    settings = config.load("smoke", tmp_path)
    models = {settings.base: random_model, "tiny-w4a16-rtn": dataclasses.replace(random_model, model=moved)}
    monkeypatch.setattr(evaluate.load, "load", lambda experiment, name: models[name])
    monkeypatch.setattr(evaluate.checkpoints, "revision", lambda experiment, name: name)
    return settings


def run(experiment, tasks) -> list[pd.DataFrame]:
    names = (experiment.base, "tiny-w4a16-rtn")
    return [evaluate.run_variant(experiment, name, tasks, "data") for name in names]


def test_a_run_keeps_both_directions_and_its_own_scores(experiment, monkeypatch):
    folder = evaluate._folder(experiment, "tiny-w4a16-rtn", "data")
    tasks = [LocalSingle(), LocalShared()]
    base, own = run(experiment, tasks)
    assert len(base) == len(own) == 5 + 12 and "pages" not in own
    paths = [mixed.path(folder, task.metadata.name) for task in tasks]
    mixed.write(experiment, paths, None)
    table = pd.read_parquet(experiment.results("evaluate") / "mixed.parquet")
    assert table.columns.to_list() == mixed.COLUMNS
    assert table.groupby(["queries", "pages"]).size().to_dict() == {mixed.FORWARD: 17, mixed.BACKWARD: 17}
    assert table.source.notna().all() and not (folder / "pages").exists()
    monkeypatch.setattr(retriever, "encode", None)  # nothing is embedded again
    again = run(experiment, tasks)
    pd.testing.assert_frame_equal(again[1], own)


def test_what_is_lacking_alone_is_run_again(experiment):
    folders = [evaluate._folder(experiment, name, "data") for name in (experiment.base, "tiny-w4a16-rtn")]
    path = mixed.path(folders[1], "LocalSingle")
    _, own = run(experiment, [LocalSingle()])
    first = pd.read_parquet(path)
    path.unlink()
    shutil.rmtree(folders[0] / "pages")  # an older build folder: the base is embedded again
    columns = ["query_id", "ndcg_at_5", "margin"]
    pd.testing.assert_frame_equal(run(experiment, [LocalSingle()])[1][columns], own[columns])
    columns = ["query_id", "queries", "ndcg_at_5", "margin"]
    pd.testing.assert_frame_equal(pd.read_parquet(path)[columns], first[columns])


def test_without_the_base_s_vectors_nothing_is_mixed_and_nothing_fails(experiment):
    evaluate.run_variant(experiment, "tiny-w4a16-rtn", [LocalSingle()], "data")
    folder = evaluate._folder(experiment, "tiny-w4a16-rtn", "data")
    assert not mixed.path(folder, "LocalSingle").exists()
    mixed.write(experiment, [mixed.path(folder, "LocalSingle")], None)
    assert not (experiment.results("evaluate") / "mixed.parquet").exists()
    run(experiment, [LocalSingle()])  # now the base is there, and the task is taken up again
    assert len(pd.read_parquet(mixed.path(folder, "LocalSingle"))) == 10


def made_mixed(exp, forward: float) -> None:
    """mixed.parquet: forward, every query scores that much more than the base; backward, as the variant."""
    queries = pd.read_parquet(exp.results("evaluate") / "queries.parquet")
    base = queries[queries.variant == exp.base]
    parts = []
    for name in exp.quantized:
        own = queries[queries.variant == name]
        moved = base.assign(variant=name, ndcg_at_5=base.ndcg_at_5 + forward)
        parts += [moved.assign(queries="own", pages="base"), own.assign(queries="base", pages="own")]
    pd.concat(parts).to_parquet(exp.results("evaluate") / "mixed.parquet", index=False)


@pytest.mark.parametrize(
    "forward, verdict, answer", [(0.0, "non-inferior", "**No**"), (-0.2, "inferior", "**Old page vectors")]
)
def test_the_report_answers_by_the_intervals(tmp_path, forward, verdict, answer):
    exp = made_results.experiment(tmp_path)
    made_results.write(exp, queries=8)
    made_mixed(exp, forward)
    study = analysis.study(results.load(exp))
    table = mixed_precision.changes(study)
    assert set(table.verdict) == {verdict}
    assert table.keep_low.to_numpy() == pytest.approx(forward)
    assert table.keep_high.to_numpy() == pytest.approx(forward)
    full = study.suite.set_index("variant").loc[table.variant]
    assert table.reverse_low.to_numpy() == pytest.approx(full.diff_low.to_numpy())  # the same draws
    assert table.again_high.to_numpy() == pytest.approx(full.diff_high.to_numpy() - forward)
    texts = build.render(study)
    assert f"- {answer}" in texts["quantization_analysis.md"]
    assert "**Must I re-embed?**" in texts["summary.md"]


def test_without_the_file_it_is_not_measured(tmp_path):
    exp = made_results.experiment(tmp_path)
    made_results.write(exp, queries=4)
    study = analysis.study(results.load(exp))
    texts = build.render(study)
    assert mixed_precision.changes(study) is None
    assert "Queries and pages of two precisions: not measured" in texts["quantization_analysis.md"]
    assert "whether a corpus must be embedded again" in texts["summary.md"]
