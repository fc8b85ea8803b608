"""The report of a GPU benchmark: every figure from its files, published figures beside them, holes named."""

import shutil
from types import SimpleNamespace

import pandas as pd
import pytest

from colq_utils.base import config
from colq_utils.fast import profiling
from studies.h200 import report as report_gpu
from studies.h200 import tables, targets


@pytest.fixture(params=["4b", "8b"])
def speed(tmp_path, request):
    """The committed results of a size, in a folder of their own."""
    name = f"h200-{request.param}"
    for kind in ("results", "figures"):
        shutil.copytree(config.ROOT / kind / name, tmp_path / kind / name)
    return report_gpu.Speed(config.load(name, tmp_path))


def test_ratios_are_those_of_the_rows(speed):
    rows = speed.rows.set_index(["variant", "kind", "batch"]).latency_s_median
    table = tables.ratios(speed)
    first = table[(table.label == "W4A16, against the base as published") & (table.batch == 8)].iloc[0]
    assert first.ratio == pytest.approx(
        rows[speed.eager, "queries_published", 8] / rows[speed.w4, "queries_published", 8], rel=1e-5
    )  # rows.csv has six digits
    assert (table.low < table.high).all()


def test_the_readme_says_what_the_results_say():
    snippet = (config.ROOT / "README.md").read_text().split(tables.SPEED_MARKER)[1]
    assert snippet.strip() == tables.readme() and "4B dimensions" in snippet


def test_the_readme_gives_ratios_to_bf16_on_the_same_path(speed):
    rows = speed.rows.set_index(["variant", "kind", "batch"]).latency_s_median
    text = tables.headline(speed)
    (cells,) = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| W4A16 | ")]
    for cell, (kind, batch, _) in zip(cells[1:], tables.HEADLINE):
        assert float(cell.split(" [")[0]) == pytest.approx(
            rows[speed.base, kind, batch] / rows[speed.w4, kind, batch], abs=0.0051
        )
    assert "random weights" in text.splitlines()[0] and len(cells) == 6


def test_the_committed_report_follows_from_the_committed_results(speed):
    name = f"benchmark_{speed.experiment.model.size}.md"
    apart = "<summary>4B and 8B</summary>"  # a table that reads the other size too, which is not in this copy
    committed = (config.ROOT / "results" / speed.experiment.name / "reports" / name).read_text()
    assert report_gpu.text(speed).split(apart)[0] == committed.split(apart)[0], "write the reports again"
    assert len(committed.split("<details")[0].split()) < 900 and committed.count("<details>") == len(
        report_gpu.FOLDED
    )


def test_the_fastest_is_recommended_and_a_tie_goes_to_the_first(speed):
    """With one variant twice as fast as any, it is the one; with another as fast, the first named is."""
    path, key = (
        speed.experiment.results("benchmark"),
        (speed.rows.kind == "queries") & (speed.rows.batch == 8),
    )
    samples, rows = speed.samples.copy(), speed.rows.copy()

    def with_calls(name, calls):
        nonlocal samples
        chosen = (samples.variant == name) & (samples.kind == "queries") & (samples.batch == 8)
        timed = pd.DataFrame(
            {
                "variant": name,
                "round": 1,
                "kind": "queries",
                "batch": 8,
                "index": range(len(calls)),
                "latency_s": calls,
            }
        )
        samples = pd.concat([samples[~chosen], timed], ignore_index=True)
        rows.loc[key & (rows.variant == name), "latency_s_median"] = timed.latency_s.median()
        samples.to_parquet(path / "samples.parquet")
        rows.to_csv(path / "rows.csv", index=False)
        return (
            tables.best(report_gpu.Speed(speed.experiment)).set_index(["kind", "batch"]).loc[("queries", 8)]
        )

    quick = rows[key].latency_s_median.min() / 2
    calls = [quick * (1 + 0.001 * (i % 5)) for i in range(100)]
    fastest = with_calls(speed.w4, calls)
    assert fastest.variant == speed.w4 and fastest.resolved and fastest.tied == [] and fastest.low > 1.9
    first, second = (name for name in speed.names if name in (speed.w4, speed.fp8))
    fastest = with_calls(speed.fp8, calls)
    assert fastest.variant == first and fastest.tied == [second]


def test_another_number_in_a_file_is_another_in_the_report(speed):
    before = report_gpu.text(speed)
    path = speed.experiment.results("benchmark") / "rows.csv"
    table = pd.read_csv(path)
    chosen = (table.variant == speed.base) & (table.kind == "pages") & (table.batch == 8)
    table.loc[chosen, ["latency_s_median", "latency_s_mean"]] *= 2
    table.to_csv(path, index=False)
    after = report_gpu.text(report_gpu.Speed(speed.experiment))
    assert before != after and f"{table.loc[chosen, 'latency_s_median'].iloc[0] * 1e3:,.2f}" in after


def test_the_opening_words_follow_the_ratios(speed):
    """With every call of the 4-bit variant twice as slow, the report does not say that 4 bits are faster."""
    assert "**4 bits are faster for small calls only.**" in report_gpu.text(speed)
    samples = speed.samples.copy()
    samples.loc[samples.variant == speed.w4, "latency_s"] *= 2
    samples.to_parquet(speed.experiment.results("benchmark") / "samples.parquet")
    assert "**4 bits are not faster.**" in report_gpu.text(report_gpu.Speed(speed.experiment))


def test_what_was_not_measured_is_named(speed):
    folder = speed.experiment.results("benchmark")
    for name in ("gemms.csv", "agreement.csv", "ceilings.json"):
        (folder / name).unlink(missing_ok=True)
    text = report_gpu.text(report_gpu.Speed(speed.experiment))
    assert (
        "<summary>Why 4 bits are slower or faster</summary>\n\nNot measured." in text
        and "random weights" in text.lower()
    )


def test_targets_follow_the_table(speed):
    """A target is met by the rows, not by what the report says; a row made slower misses it."""
    before = targets.reached(speed).set_index("what")
    what = "bf16 on the fast path against its roofline limit, text queries as published, batch 8 (times)"
    row = speed.row(speed.base, "queries_published", 8)
    assert before.measured[what] == pytest.approx(row.latency_s_median / row.floor_s) and before.met[
        what
    ] == (before.measured[what] <= 2)
    path = speed.experiment.results("benchmark") / "rows.csv"
    table = pd.read_csv(path)
    table.loc[(table.variant == speed.base) & (table.kind == "queries_published"), "latency_s_median"] *= 3
    table.to_csv(path, index=False)
    slower = targets.reached(report_gpu.Speed(speed.experiment)).set_index("what")
    assert slower.met[what] is False and slower.measured[what] == pytest.approx(3 * before.measured[what])
    assert f"- {what}: missed by" in targets.text(report_gpu.Speed(speed.experiment))


@pytest.mark.parametrize(
    "met, low, high, word",
    [
        (True, 1.1, 1.3, "met"),
        (True, 0.9, 1.3, "met, but the interval includes the target"),
        (False, 0.7, 1.1, "**missed**, but the interval includes the target"),
        (False, 0.7, 0.9, "**missed**"),
        (True, None, None, "met"),
        (None, None, None, "not measured"),
    ],
)
def test_a_verdict_that_other_calls_could_turn_says_so(met, low, high, word):
    assert targets._verdict(SimpleNamespace(met=met, low=low, high=high, wanted=1.0)) == word


def test_kernels_belong_to_parts():
    names = {
        "nvjet_sm90_tst_192x208_64x4_4x1_v_bz_coopB_TNT": "products",
        "void humming<MmaOpClass>": "products",
        "_attend_packed": "attention",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop": "attention",
        "_residual_norm": "steps",
        "Memset (Device)": "rest",
    }
    assert {name: profiling.part_of(name) for name in names} == names


def test_time_that_two_kernels_share_counts_once():
    table = profiling.alone(
        [(10.0, 14.0, "_rotate"), (0.0, 10.0, "humming"), (8.0, 13.0, "_residual_norm"), (1.0, 4.0, "Memset")]
    )
    assert table == pytest.approx({"products": 10e-6, "steps": 4e-6, "rest": 0.0})
