"""The benchmark's bookkeeping: failures become rows, percentiles need samples, finished work is kept."""

import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from colq_utils.base import config, process
from colq_utils.base.errors import ColqError
from colq_utils.report import results
from colq_utils.stages.benchmark import bench, ceilings, measure, tables, workloads

LIMITS = {"copy_bytes_per_s": 1e9, "float32_flop_per_s": 1e9, "threads": 1}


@pytest.fixture
def exp(random_checkpoint, tmp_path):
    """Two floating-point variants of the random checkpoint, tiny workloads, drawn pages."""
    return config.Experiment.model_validate(
        {
            "name": "made",
            "title": "made",
            "output": str(tmp_path),
            "model": {"path": str(random_checkpoint), "size": "random"},
            "runtime": {"threads": 1},
            "calibration": {"source": "none", "sets": []},
            "variants": [{"scheme": "bf16"}, {"scheme": "fp32"}],
            "benchmark": {
                "variants": ["random-bf16", "random-fp32"],
                "rounds": 1,
                "workloads": [
                    {"kind": "queries", "batch": 2, "iterations": 2, "warmup": 1, "items": 4},
                    {"kind": "pages", "batch": 1, "iterations": 2, "warmup": 1, "items": 2},
                ],
            },
            "evaluation": {"tasks": [], "suite": "mteb"},
        }
    )


@pytest.mark.parametrize(
    "function, message",
    [
        ("killed", "ended by SIGKILL"),
        ("broken", "MemoryError: too little of it"),
        ("left", "status 3"),
        ("slept", "no result within"),
    ],
)
def test_a_dying_child_is_a_reason(tmp_path, monkeypatch, function, message):
    (tmp_path / "isolated.py").write_text(
        "import os, time\n"
        f"def killed(): os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "def broken(): raise MemoryError('too little of it')\n"
        "def left(): os._exit(3)\n"
        "def slept(): time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = process.call(f"isolated:{function}", {}, timeout_s=2 if function == "slept" else 60)
    assert outcome.value is None and message in outcome.error


def test_side_by_side_keeps_the_order_and_an_interrupt_ends_all(tmp_path, monkeypatch):
    (tmp_path / "isolated.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        "def half(x): return 10 / x\n"
        "def slept(file): Path(file).write_text(str(os.getpid())); time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first, second = process.side_by_side("isolated:half", [{"x": 0}, {"x": 5}], 1, lambda: None)
    assert "ZeroDivisionError" in first.error and second.value == 2

    pids = [tmp_path / "1", tmp_path / "2"]

    def interrupt():
        if all(file.exists() and file.read_text() for file in pids):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.side_by_side("isolated:slept", [{"file": str(file)} for file in pids], 1, interrupt)
    assert not any(Path("/proc", file.read_text()).exists() for file in pids)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_child_outlives_its_parent(tmp_path, how):
    """Ctrl-C and kill -9 of the parent, while its child works."""
    (tmp_path / "isolated.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        f"def slept(): Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(60)\n"
    )
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from colq_utils.base import process; process.call('isolated:slept', {})"
    )
    search = os.pathsep.join([str(config.ROOT), str(tmp_path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": search}, stderr=subprocess.DEVNULL
    )
    assert _until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    parent.send_signal(how)
    parent.wait(10)
    child = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    assert _until(lambda: not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def _until(done, seconds: float = 20) -> bool:
    """Whether `done` comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.05)
    return False


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
    memory = results.memory_table(exp)
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


def test_floors():
    need = ceilings.Demand(weight_bytes=100, text_flop=600, vision_flop=300, attention_flop=100)
    found = ceilings.floors(
        need,
        {"copy_bytes_per_s": 100, "bfloat16_flop_per_s": 100, "fp8_flop_per_s": 200},
        "fp8",
        "bfloat16",
        "bfloat16",
    )
    assert found == {"bandwidth_floor_s": 1.0, "compute_floor_s": 7.0, "floor_s": 7.0}


def test_demand_counts_products_and_weights(random_model, page_images):
    """Against a count of what passes through every layer."""
    model, passed = random_model.model, []

    def note(module, arguments, output):
        fan_in = module.weight[0].numel() if isinstance(module, torch.nn.Conv3d) else module.in_features
        passed.append(2 * output.numel() * fan_in)

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv3d))]
    hooks = [m.register_forward_hook(note) for _, m in layers]
    text, vision = model.config.text_config, model.config.vision_config
    for inputs in (
        dict(random_model.processor.queries(["alpha beta"])),
        dict(random_model.processor.pages(page_images)),
    ):
        passed.clear()
        model(**inputs)
        rows, n = inputs["input_ids"].shape
        attention = (
            2 * rows * n**2 * text.num_attention_heads * text.head_dim * text.num_hidden_layers
        )  # causal: half
        attention += sum(
            4 * int(grid.prod()) ** 2 * vision.hidden_size * vision.depth
            for grid in inputs.get("image_grid_thw", [])
        )
        need = ceilings.demand(model, inputs)
        assert need.flop == sum(passed) + attention
        linear = sum(m.weight.nbytes for n, m in layers if "image_grid_thw" in inputs or ".visual" not in n)
        assert linear <= need.weight_bytes < 1.1 * linear  # norms, biases and positions besides
    for hook in hooks:
        hook.remove()


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


def test_drawn_pages_differ():
    assert workloads.drawn_page(0) != workloads.drawn_page(1) and len(set(workloads.questions())) == 32
