"""Throughput, latency and memory of every variant, with the kernel that made them and the floor under them.

A fresh process for each variant and round (`colq_utils.base.process`), rounds interleaved so that a slow
minute of the machine falls on all variants, every sample kept. A process that fails becomes a row with its
reason. A finished one is kept under build/ and not measured again by a run that was interrupted, as long as
all that it depends on is the same. Times are of the forward pass; tokenizing, image processing and MaxSim are
outside.
"""

import hashlib
import json
import subprocess
from pathlib import Path

import pandas as pd
import torch

from colq_utils.base import cache, process, provenance
from colq_utils.base.config import ROOT, Experiment, Extra
from colq_utils.base.errors import ColqError
from colq_utils.base.files import required, sha256, write_json, write_table
from colq_utils.base.progress import track
from colq_utils.model import footprint, kernels
from colq_utils.stages.benchmark import tables, workloads

#: What child processes run: a round of a variant, and the machine's best rates.
VARIANT = "colq_utils.stages.benchmark.measure:run"
CEILINGS = "colq_utils.stages.benchmark.ceilings:measure"
#: What a driver, and the context of the notebook itself, may hold of an otherwise idle GPU, in bytes.
IDLE = 1500 << 20


def run(experiment: Experiment, timeout_s: float = 1800) -> pd.DataFrame:
    """Measure all variants of ``experiment.benchmark``, and its extras, and write the stage's results.

    Args:
        timeout_s: limit for one process (one variant, one round, all workloads; or one extra).

    Returns:
        The table ``rows.csv``: one line a variant, workload and batch size, all rounds pooled.

    Raises:
        ColqError: a checkpoint that is not there yet, a backend that is not installed, no CUDA device
            where the experiment asks for one, no embedded benchmark.
    """
    idle, plan = check(experiment), experiment.benchmark
    tuned = _extra(experiment, plan.tune, {}, timeout_s) if plan.tune else {}
    schedules = tuned.get("schedules", {})
    on = {"device": experiment.runtime.device, "threads": experiment.runtime.threads}
    limits = _kept(experiment, "ceilings", CEILINGS, on, timeout_s)
    jobs = [(round_, name) for round_ in range(1, plan.rounds + 1) for name in plan.variants]
    parts: list[dict] = []
    for round_, name in track(jobs, "benchmark", unit="process"):
        part = {"variant": name, "round": round_}
        if name in idle:
            parts.append(part | {"error": idle[name]})
        else:
            parts.append(part | _variant(experiment, name, round_, schedules, timeout_s))
        table = _write(experiment, parts, limits, idle)  # each time: what is cut off leaves what it measured
        if (round_, name) == (1, plan.variants[-1]):
            for extra in plan.extras:
                _extra(experiment, extra, schedules, timeout_s)
    return table


def check(experiment: Experiment) -> dict[str, str]:
    """Raise now what every child would otherwise fail with; see `run` for the errors.

    Returns:
        Variants that this processor cannot run while others take their place, with the reason: they become
        rows of it.
    """
    idle = {}
    if experiment.runtime.device == "cuda" and not torch.cuda.is_available():
        raise ColqError(
            "the experiment asks for device cuda and no CUDA device is visible; set runtime.device to cpu"
        )
    for name in experiment.benchmark.variants:
        spec = experiment.by_id[name]
        if spec.is_stored:
            required(experiment.checkpoint(name) / "config.json", f"quantize EXPERIMENT={experiment.name}")
        if spec.bits is None:
            continue
        try:
            kernels.require(experiment.backend(name))
        except ColqError as reason:
            if spec.backend != "ark":  # the one kernel here that hangs on the processor
                raise
            idle[name] = str(reason)
    for _, work in workloads.plan(experiment):
        workloads.items(experiment, work, 1)
    return idle


def _variant(experiment: Experiment, name: str, round_: int, schedules: dict, timeout_s: float) -> dict:
    """One round of a variant; it also depends on the stored weights and the workloads' items."""
    spec = experiment.by_id[name]
    arguments = {
        "experiment": experiment.model_dump(mode="json"),
        "variant": name,
        "plan": [(kind, work.model_dump()) for kind, work in workloads.plan(experiment)],
        "schedules": schedules,
    }
    folder = experiment.checkpoint(name) if spec.is_stored else Path(experiment.model_path)
    stored = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.glob("*"))]
    items = sha256(*filter(Path.exists, (workloads.EMBEDDED / "fingerprint.json", workloads.MADE)))
    basis = [spec.model_dump(), experiment.evaluation.suite, items, stored]
    return _kept(experiment, f"{name}-r{round_}", VARIANT, arguments, timeout_s, basis)


def _extra(experiment: Experiment, extra: Extra, schedules: dict, timeout_s: float) -> dict | list:
    """Take a measurement beside the variants and write its file; a failure is a row of it."""
    arguments = {"experiment": experiment.model_dump(mode="json"), "schedules": schedules, **extra.arguments}
    module = ROOT / f"{extra.call.split(':')[0].replace('.', '/')}.py"
    sources = [*sorted(module.parent.glob("*.py")), *(ROOT / name for name in extra.reads)]
    basis = [extra.call, sha256(*sources), footprint.configuration(experiment)]
    file = experiment.results("benchmark") / extra.file
    outcome = _kept(experiment, file.stem, extra.call, arguments, timeout_s, basis)
    if file.suffix == ".json":
        write_json(file, outcome)
    else:
        lines = outcome if isinstance(outcome, list) else outcome.get("rows", [outcome])
        write_table(file, pd.DataFrame(lines))
    return outcome


def _kept(experiment: Experiment, name: str, function: str, arguments: dict, timeout_s: float, basis=()):
    """The child's result, of an earlier run on the same `basis` or measured now; a failure is never kept."""
    file = experiment.build("benchmark", f"{name}-{fingerprint(experiment, arguments, basis)[:12]}.json")
    if file.exists():
        return json.loads(file.read_text())
    outcome = process.call(function, arguments, experiment.runtime.threads, timeout_s)
    if outcome.error is not None:
        return {"error": outcome.error}
    write_json(file, outcome.value)
    return outcome.value


def fingerprint(experiment: Experiment, arguments: dict, basis=()) -> str:
    """Digest of all that a measurement depends on: arguments, its own `basis`, code, packages, machine."""
    machine = provenance.collect(experiment)
    if "experiment" in arguments:  # of which not all counts
        used = experiment.model_dump(mode="json", include={"model", "runtime", "seed"})
        arguments = arguments | {"experiment": used}
    here = {key: machine[key] for key in ("packages", "cpu", "cores", "gpu", "cuda")}
    everything = [arguments, basis, cache.code(experiment, "benchmark"), here]
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()


def _write(experiment: Experiment, parts: list[dict], limits: dict, idle: dict[str, str]) -> pd.DataFrame:
    """Write every file of the stage but those of extras; returns the table of rows."""
    folder, runtime = experiment.results("benchmark"), experiment.runtime
    written = tables.files(experiment, parts, limits)
    for name, table in written.items():
        write_table(folder / name, table)
    write_json(folder / "ceilings.json", limits)
    environment = {
        "threads": limits.get("threads"),
        "omp_wait_policy": limits.get("omp_wait_policy"),
        "device": runtime.device,
        "attention": runtime.attention,
        "rounds": max(part["round"] for part in parts),
        "left_out": left_out(experiment, idle) + unfinished(experiment, parts),
        "weights": "random" if experiment.model.is_random else "stored",
    }
    write_json(folder / "environment.json", provenance.collect(experiment) | environment)
    return written["rows.csv"]


def left_out(experiment: Experiment, idle: dict[str, str]) -> list[str]:
    """What this run cannot tell, in sentences; `idle` are the variants that it could not run."""
    if experiment.runtime.device == "cuda":
        notes = [
            "Resident memory of the host process is given, but the GPU figures are those that limit "
            "the batch size."
        ]
        if experiment.model.is_random:
            notes.append(
                "Random weights in the published dimensions: bytes do not depend on their values; that times "
                "do not is assumed, not measured. Embeddings and scores would."
            )
        if others := foreign():
            notes.append(
                f"Before and after the run other processes held {others / 1e6:,.0f} MB of the GPU: "
                "times may have suffered."
            )
        return notes
    return [
        "No GPU: allocated, peak and reserved device memory and CUDA kernels are not measured.",
        "Speed on this CPU says nothing about the speed of 4-bit kernels on a GPU.",
        "The base is computed in float32 with the instructions of AVX2. The packed kernel (ark) takes "
        "whatever this processor has, AVX-512 and AMX included: a ratio between the two is one of this "
        "processor, not of the number of bits alone.",
        *(f"{name} is not measured: {reason}." for name, reason in idle.items()),
    ]


def unfinished(experiment: Experiment, parts: list[dict]) -> list[str]:
    """Which variants these parts have in fewer rounds than planned, in a sentence; none of a complete run."""
    rounds = experiment.benchmark.rounds
    done = {name: sum(part["variant"] == name for part in parts) for name in experiment.benchmark.variants}
    short = ", ".join(f"{name} ({n})" for name, n in done.items() if n < rounds)
    return (
        [f"The run ended before all of its {rounds} rounds; fewer were measured of {short}."] if short else []
    )


def foreign() -> int:
    """Bytes of the GPU in use while no process of ours runs, by the driver; 0 if that cannot be asked."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
        used = int(answer.stdout.splitlines()[0]) << 20
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return 0
    return used if used > IDLE else 0
