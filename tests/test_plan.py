"""The plan of an experiment: counts from mteb, sizes from shapes, hours from measurements, no guesses."""

import json
from types import SimpleNamespace

import huggingface_hub
import pandas as pd
import pytest

from colq_utils import plan
from colq_utils.base import config


@pytest.fixture
def offline(monkeypatch):
    """A hub that does not answer; counts how often it was asked."""
    asked = []
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "dataset_info",
        lambda self, name, **options: asked.append(name) or (_ for _ in ()).throw(OSError("offline")),
    )
    return asked


@pytest.fixture
def measured(tmp_path):
    """Benchmark rows of an 8B as they would be measured, and AutoRound's cost of a block."""
    (tmp_path / "benchmark").mkdir()
    rows = [
        ("8b-bf16", "bf16", "pages", 4, 2.0),
        ("8b-bf16", "bf16", "pages", 8, 4.0),
        ("8b-bf16-plain", "bf16", "pages", 8, 99.0),
        ("8b-bf16", "bf16", "queries", 32, 100.0),
        ("8b-w4a16-pack", "w4a16", "pages", 8, 3.0),
        ("8b-w4a16-pack-marlin", "w4a16", "pages", 8, 99.0),
        ("8b-w4a16-pack", "w4a16", "pages", 16, None),
    ]
    pd.DataFrame(rows, columns=["variant", "scheme", "kind", "batch", "items_per_s"]).assign(
        tokens_per_call=lambda t: 1272 * t.batch
    ).to_csv(tmp_path / "benchmark" / "rows.csv", index=False)
    cost = {"block_s": [50.0, 36.0, 30.0], "iters": 500, "batch_rows": 8, "seqlen": 1024}
    (tmp_path / "benchmark" / "autoround_cost.json").write_text(json.dumps(cost))
    return tmp_path


def test_published_experiment_offline(offline, tmp_path):
    import mteb

    for size, mebibytes in (("4b", 8466), ("8b", 16724)):
        experiment = config.load(f"tomoro-{size}")
        planned = plan.make(experiment, tmp_path)
        tasks = planned.tasks
        totals = tasks[["entries", "pages", "queries"]].sum().tolist()
        assert len(tasks) == 22 and totals == [71, 30208, 19537]
        base = planned.downloads.iloc[0]
        assert round(base["bytes"] / 2**20) == mebibytes, (
            "the size that mteb knows of the published checkpoint"
        )
        assert (
            base.revision == mteb.get_model_meta(experiment.model.path).revision == experiment.model.revision
        )
        assert planned.downloads["bytes"].iloc[1:].isna().all() and len(planned.downloads) == 24
        shown = plan.text(planned)
        assert shown.count("not known offline") == 23 and "not measured" in shown and "| nan" not in shown
    assert len(offline) == 2, "a hub that does not answer is asked once"


def test_hours_by_hand(offline, measured):
    hours = plan.make(config.load("tomoro-8b"), measured).hours.set_index("variant")
    assert hours.pages_h["8b-bf16"] == pytest.approx(30208 / 4.0 / 3600)
    assert hours.pages_h["8b-w4a16-rtn"] == pytest.approx(30208 / 3.0 / 3600)
    assert hours.queries_h["8b-bf16"] == pytest.approx(19537 / 100 / 3600)
    assert hours.queries_h["8b-w4a16-rtn":].isna().all()
    block_h = 36.0 * 2 / 3600  # twice the iterations
    assert hours.quantize_h["8b-w4a16-autoround-s1024"] == pytest.approx(block_h * 36), "36 blocks"
    tokens = 150 * 512 / 8192
    assert hours.quantize_h["8b-w4a16-autoround-p512"] == pytest.approx(block_h * tokens * 36)
    assert hours.quantize_h["8b-w4a16-rtn"] == 0
    assert hours.rests_on["8b-bf16"] == "8b-bf16, 4 pages/s of 1,272 tokens at batch 8"


def test_sizes_of_data_sets_come_from_the_hub(monkeypatch):
    files = [
        SimpleNamespace(rfilename="a.parquet", size=3_000_000_000),
        SimpleNamespace(rfilename="README.md", size=None),
    ]
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *a, **options: SimpleNamespace(siblings=files)
    )
    assert (
        plan.hub_bytes("x/y", "1" * 40) == 3e9 == plan.hub_bytes("x/y", "1" * 40, "a.parquet")
        and plan.hub_bytes("x/y", "1" * 40, "README.md") == 0
    )


def test_embedded_experiment_downloads_nothing():
    planned = plan.make(config.load("tiny"))
    assert planned.downloads.empty and "## Downloads\n\nNone." in plan.text(planned)
    assert planned.tasks.set_index("task").queries["MiniVidoreScience"] == 260
    manifests = pd.read_csv(config.ROOT / "results" / "tiny" / "quantize" / "variants.csv")
    assert planned.disk.set_index("what")["bytes"]["quantized checkpoints"] == manifests.tensor_bytes.sum(), (
        "as the checkpoints came out"
    )
