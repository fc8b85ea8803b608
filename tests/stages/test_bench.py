"""The benchmark's bookkeeping: failures become rows, percentiles need samples, finished work is kept."""

import importlib
import inspect
import json

import pytest
import torch

from colq_utils.base import config, process
from colq_utils.base.errors import ColqError
from colq_utils.report import results
from colq_utils.stages.benchmark import bench, measure, tables, workloads

LIMITS = {"copy_bytes_per_s": 1e9, "float32_flop_per_s": 1e9, "threads": 1}


@pytest.fixture
def exp(experiment_file, tmp_path):
    """Two floating-point variants of the random checkpoint, tiny workloads, drawn pages."""
    workloads_of = [
        {"kind": "queries", "batch": 2, "iterations": 2, "warmup": 1, "items": 4},
        {"kind": "pages", "batch": 1, "iterations": 2, "warmup": 1, "items": 2},
    ]
    variants = ["random-bf16", "random-fp32"]
    sections = {
        "runtime": {"threads": 1},
        "calibration": {"source": "none", "sets": []},
        "variants": [{"scheme": "bf16"}, {"scheme": "fp32"}],
        "benchmark": {"variants": variants, "rounds": 1, "workloads": workloads_of},
        "evaluation": {"tasks": [], "suite": "mteb"},
    }
    return config.load(experiment_file(tmp_path, "made", **sections), tmp_path)


def test_a_kernel_that_this_processor_cannot_run_is_a_row_that_says_so(exp, monkeypatch):
    """ark needs AVX2: without it the others are measured, and its variant is named with the reason."""
    packed = exp.model_copy(
        update={
            "variants": (
                *exp.variants,
                config.Variant(scheme="w4a16", method="rtn"),
                config.Variant(scheme="w4a16", method="rtn", backend="ark", tag="ark"),
            ),
            "benchmark": exp.benchmark.model_copy(
                update={"variants": ("random-bf16", "random-w4a16-rtn-ark"), "rounds": 1}
            ),
        }
    )
    packed = config.Experiment.model_validate(packed.model_dump())
    monkeypatch.setattr(bench, "required", lambda *a: None)
    monkeypatch.setattr(
        process,
        "call",
        lambda function, arguments, *rest: process.Outcome(
            value=LIMITS if "ceilings" in function else {"workloads": []}
        ),
    )
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: False)
    rows = bench.run(packed).set_index("variant")
    assert (
        rows.loc["random-w4a16-rtn-ark", "error"]
        .str.contains("'ark' needs an x86-64 processor with AVX2")
        .all()
    )
    assert any(
        "random-w4a16-rtn-ark is not measured" in note
        for note in results.of_benchmark(packed, "environment.json")["left_out"]
    )


def test_a_run_is_complete_and_kept(exp, monkeypatch):
    """One round in the test's own process; then again, with nothing left to measure."""
    called = []

    def here(function, arguments, threads, timeout_s):
        called.append(function)
        if function.startswith("colq_utils.stages.benchmark.ceilings"):
            return process.Outcome(value=LIMITS)
        if arguments["variant"] == "random-fp32" and len(called) < 4:
            return process.Outcome(error="the process was ended by SIGKILL (out of memory?)")
        return process.Outcome(value=measure.run(**arguments))

    monkeypatch.setattr(process, "call", here)
    monkeypatch.setattr(
        workloads,
        "PUBLISHED",
        ("queries_published", config.Workload(kind="queries", batch=2, iterations=3, items=4)),
    )
    threads = torch.get_num_threads()
    try:
        first = bench.run(exp).set_index(["variant", "kind"])
        assert (
            first.loc["random-fp32", "error"].str.contains("SIGKILL").all()
            and first.loc["random-fp32", "items_per_s"].isna().all()
        )
        assert (
            first.loc["random-bf16", "error"].isna().all()
            and (first.loc["random-bf16", "times_floor"] > 0).all()
        )
        assert first.loc[("random-bf16", "queries_published"), "n_samples"] == 3
        assert (first.loc["random-bf16", "kernel"] == "torch float32").all()
        second = bench.run(exp).set_index(["variant", "kind"])
        assert called.count("colq_utils.stages.benchmark.measure:run") == 3, (
            "the finished process is kept, the failed one tried again"
        )
        assert second["error"].isna().all()
        bench.run(exp)
        assert len(called) == 4
    finally:
        torch.set_num_threads(threads)
    memory = results.memory_table(results.of_benchmark(exp, "memory.csv"), exp.by_id)
    assert memory.loc["random-fp32", "tensors_bytes"] == memory.loc["random-bf16", "tensors_bytes"], (
        "a CPU computes both in fp32"
    )
    assert {p.name for p in exp.results("benchmark").iterdir()} == {
        "rows.csv",
        "samples.parquet",
        "memory.csv",
        "census.csv",
        "agreement.csv",
        "ceilings.json",
        "environment.json",
    }
    assert len(results.of_benchmark(exp, "samples.parquet")) == second["n_samples"].sum()


def test_extras_are_files_of_their_own(exp, monkeypatch):
    """Tuning comes first and its schedules reach all that follows; a failure is a row, and is tried again."""
    module, called = "studies.h200.extras", []
    plan = {
        "tune": {"file": "tuning.csv", "call": f"{module}.schedules:tune"},
        "extras": [
            {"file": "gemms.csv", "call": f"{module}.sweeps:gemms", "arguments": {"of": 2}},
            {"file": "cost.json", "call": f"{module}.autoround:cost"},
            {"file": "broken.csv", "call": f"{module}.options:effects", "reads": ["models/tiny-colqwen3"]},
        ],
    }
    results_of = {
        "tune": {"rows": [{"product": "o", "tuned_s": 1.0}], "schedules": {"2x2": "[]"}},
        "gemms": [{"kernel": "bf16", "layer_s": 2.0}],
        "cost": {"block_s": [1.0]},
        "measure": LIMITS,
        "run": {"workloads": []},
    }

    def child(function, arguments, threads, timeout_s):
        called.append((name := function.split(":")[1], arguments))
        return (
            process.Outcome(value=results_of[name]) if name in results_of else process.Outcome(error="none")
        )

    monkeypatch.setattr(process, "call", child)
    fields = exp.model_dump(mode="json")
    fields["benchmark"] |= plan
    exp = config.Experiment.model_validate(fields)
    bench.run(exp)
    names = [name for name, _ in called]
    assert names == ["tune", "measure", "run", "run", "gemms", "cost", "effects"]
    assert all(given["schedules"] == {"2x2": "[]"} for _, given in called[2:]) and called[4][1]["of"] == 2
    folder = exp.results("benchmark")
    written = {name: (folder / name).read_text() for name in ("tuning.csv", "gemms.csv", "broken.csv")}
    assert written == {
        "tuning.csv": "product,tuned_s\no,1\n",
        "gemms.csv": "kernel,layer_s\nbf16,2\n",
        "broken.csv": "error\nnone\n",
    }
    assert json.loads((folder / "cost.json").read_text()) == {"block_s": [1.0]}
    called.clear()
    bench.run(exp)
    assert [name for name, _ in called] == ["effects"]


@pytest.mark.parametrize(
    "call", ["os:system", "subprocess:run", "studies:x", "studies.h200.extras", "colq_utils.x:y:z"]
)
def test_an_extra_calls_nothing_but_this_repository(call):
    with pytest.raises(ValueError, match="call"):
        config.Extra(file="a.csv", call=call)


def test_the_extras_of_the_experiments_are_there():
    """Every function that an experiment file names can be imported and takes what it is given."""
    for name in config.available():
        plan = config.load(name).benchmark
        for extra in (*plan.extras, *filter(None, [plan.tune])):
            module, function = extra.call.split(":")
            signature = inspect.signature(getattr(importlib.import_module(module), function))
            signature.bind(experiment={}, schedules={}, **extra.arguments)
            assert all((config.ROOT / path).exists() for path in extra.reads)


def test_running_out_of_memory_is_one_workload(exp, monkeypatch):
    class Full:
        device = "cpu"
        processor = None

    def fail(*_):
        raise torch.OutOfMemoryError("tried to allocate too much")

    monkeypatch.setattr(measure, "batches", fail)
    record = measure._record(exp, Full(), "queries", exp.benchmark.workloads[0])
    assert record == {"kind": "queries", "batch": 2, "error": "OutOfMemoryError: tried to allocate too much"}


def test_p99_needs_a_hundred_samples():
    few, enough = tables.summarize([0.1] * 99), tables.summarize([i / 100 for i in range(1, 101)])
    assert few["latency_s_p99"] != few["latency_s_p99"] and few["latency_s_std"] == pytest.approx(0)
    assert enough["latency_s_p99"] == pytest.approx(0.9901) and enough["latency_s_median"] == pytest.approx(
        0.505
    )
    assert tables.summarize([]) == {"n_samples": 0}


def test_a_run_that_ended_early_says_what_it_lacks():
    experiment = config.load("h200-8b")
    parts = [{"variant": name, "round": r} for r in (1, 2) for name in experiment.benchmark.variants]
    assert bench.unfinished(experiment, parts) == []
    assert bench.unfinished(experiment, parts[:-1]) == [
        f"The run ended before all of its 2 rounds; fewer were measured of {parts[-1]['variant']} (1)."
    ]


def test_mistakes_are_refused(exp, tmp_path):
    fields = exp.model_dump(mode="json")
    with pytest.raises(ValueError, match="benchmark names the variant 'nothing'"):
        config.Experiment.model_validate(
            fields | {"benchmark": fields["benchmark"] | {"variants": ["nothing"]}}
        )
    with pytest.raises(ColqError, match="no variant 'nothing'"):
        measure.run(fields, "nothing", [])
    quantized = fields | {
        "variants": fields["variants"] + [{"scheme": "w4a16", "method": "rtn"}],
        "benchmark": fields["benchmark"] | {"variants": ["random-w4a16-rtn"]},
    }
    with pytest.raises(ColqError, match="run `make quantize EXPERIMENT=made` first"):
        bench.run(config.Experiment.model_validate(quantized))
    with pytest.raises(ColqError, match="make benchmark EXPERIMENT=made"):
        results.of_benchmark(exp, "rows.csv")


def test_drawn_pages_differ_and_come_again():
    assert workloads.drawn_page(0) == workloads.drawn_page(0) != workloads.drawn_page(1)
    assert len(set(workloads.questions())) == 32
