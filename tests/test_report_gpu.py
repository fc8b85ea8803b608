"""The report of a GPU benchmark: every figure from its files, published figures beside them, holes named."""
import shutil

import pandas as pd
import pytest

from colq_utils import config, report, report_gpu


@pytest.fixture
def speed(tmp_path):
    """The committed results of the 4B, in a folder of their own."""
    shutil.copytree(config.ROOT / "results" / "h200-4b", tmp_path / "results" / "h200-4b")
    return report_gpu.Speed(config.load("h200-4b", tmp_path))


def test_ratios_are_those_of_the_rows(speed):
    rows = speed.rows.set_index(["variant", "kind", "batch"]).latency_s_median
    found = report_gpu.ratios(speed)
    first = found[(found.label == "W4A16, against the base as published") & (found.batch == 8)].iloc[0]
    assert first.ratio == pytest.approx(rows["4b-bf16-plain", "queries_published", 8] / rows["4b-w4a16-pack", "queries_published", 8])
    assert (found.low < found.high).all()


def test_the_readme_says_what_the_results_say(speed):
    assert (config.ROOT / "README.md").read_text().split(report.SPEED_MARKER)[1].strip() == report_gpu.headline(speed).strip()


def test_the_committed_report_follows_from_the_committed_results(speed):
    name = "benchmark_4b.md"
    assert report_gpu.text(speed).split("## 4B and 8B")[0] == (config.ROOT / "results" / "h200-4b" / "reports" / name).read_text().split("## 4B and 8B")[0]


def test_recommendations_follow_the_table(speed):
    best = report_gpu.best(speed).set_index(["kind", "batch"])
    fastest = speed.rows.dropna(subset=["latency_s_median"]).sort_values("latency_s_median").drop_duplicates(["kind", "batch"])
    assert best.variant.to_dict() == fastest.set_index(["kind", "batch"]).variant.to_dict()


def test_another_number_in_a_file_is_another_in_the_report(speed):
    before = report_gpu.text(speed)
    path = speed.experiment.results("benchmark") / "rows.csv"
    table = pd.read_csv(path)
    chosen = (table.variant == "4b-bf16") & (table.kind == "pages") & (table.batch == 8)
    table.loc[chosen, ["latency_s_median", "latency_s_mean"]] *= 2
    table.to_csv(path, index=False)
    after = report_gpu.text(report_gpu.Speed(speed.experiment))
    assert before != after and f"{table.loc[chosen, 'latency_s_median'].iloc[0] * 1e3:,.2f}" in after


def test_what_was_not_measured_is_named(speed):
    folder = speed.experiment.results("benchmark")
    for name in ("gemms.csv", "agreement.csv", "ceilings.json"):
        (folder / name).unlink(missing_ok=True)
    text = report_gpu.text(report_gpu.Speed(speed.experiment))
    assert "## Why 4 bits are slower or faster\n\nNot measured." in text and "random weights" in text.lower()
