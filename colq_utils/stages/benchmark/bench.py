"""Throughput, latency and memory of every variant, with the kernel that made them and the floor under them.

A fresh process for each variant and round (`colq_utils.base.process`), rounds interleaved so that a slow
minute of the machine falls on all variants, every sample kept. A process that fails becomes a row
with its reason. A finished (variant, round) is kept under build/ and not measured again by a run that
was interrupted, as long as checkpoint, workloads, code, packages and machine are the same. Times are
of the forward pass; tokenizing, image processing and MaxSim are outside.
"""

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd

from colq_utils.base import backends, cache, process, provenance
from colq_utils.base.config import ROOT, Experiment, load
from colq_utils.base.errors import ColqError
from colq_utils.base.files import required, sha256, write_json, write_table
from colq_utils.base.progress import track
from colq_utils.model import checkpoints, footprint, kernels
from colq_utils.stages.benchmark import ceilings, workloads

#: Fewest samples from which a 99th percentile is given.
ENOUGH_FOR_P99 = 100
#: What a driver, and the context of the notebook itself, may hold of an otherwise idle GPU, in bytes.
IDLE = 1500 << 20


def run(experiment: Experiment, timeout_s: float = 1800) -> pd.DataFrame:
    """Measure all variants of ``experiment.benchmark`` and write the stage's results.

    Args:
        timeout_s: limit for one process (one variant, one round, all workloads).

    Returns:
        The table ``rows.csv``: one line a variant, workload and batch size, all rounds pooled.

    Raises:
        ColqError: a checkpoint that is not there yet, a backend that is not installed, no CUDA device
            where the experiment asks for one, no embedded benchmark.
    """
    idle = check(experiment)
    plan = workloads.plan(experiment)
    runtime = experiment.runtime
    schedules = _tune(experiment, timeout_s)
    limits = _kept(
        experiment,
        "ceilings",
        "colq_utils.stages.benchmark.ceilings:measure",
        {"device": runtime.device, "threads": runtime.threads},
        timeout_s,
    )
    arguments = {
        "experiment": experiment.model_dump(mode="json"),
        "plan": [(name, work.model_dump()) for name, work in plan],
        "schedules": schedules,
    }
    jobs = [
        (round_, name)
        for round_ in range(1, experiment.benchmark.rounds + 1)
        for name in experiment.benchmark.variants
    ]
    parts: list[dict] = []
    for round_, name in track(jobs, "benchmark", unit="process"):
        parts.append(
            {
                "variant": name,
                "round": round_,
                **(
                    {"error": idle[name]}
                    if name in idle
                    else _kept(
                        experiment,
                        f"{name}-r{round_}",
                        "colq_utils.stages.benchmark.measure:run",
                        arguments | {"variant": name},
                        timeout_s,
                    )
                ),
            }
        )
        table = _write(experiment, parts, limits)  # each time: a run that is cut off leaves what it measured
        if (round_, name) == (1, experiment.benchmark.variants[-1]):
            _sweep(experiment, schedules, timeout_s)
    return table


def _tune(experiment: Experiment, timeout_s: float) -> str | None:
    """Fit the schedules of the 4-bit kernels to this GPU, once; the file of them, for all processes that follow."""
    if not experiment.benchmark.tune or experiment.runtime.device != "cuda":
        return None
    file = experiment.build("humming.json")
    text = footprint.configuration(experiment)["text_config"]
    found = _kept(
        experiment, "tuning", "colq_utils.fast.schedules:tune", {"text": text, "file": str(file)}, timeout_s
    )
    write_table(
        experiment.results("benchmark") / "tuning.csv",
        pd.DataFrame(found if isinstance(found, list) else [found]),
    )
    return str(file) if file.exists() else None


def _sweep(experiment: Experiment, schedules: str | None, timeout_s: float) -> None:
    """Measure and write what needs no variant: GEMM times, MaxSim, AutoRound's own cost. On CUDA, where asked for."""
    folder, plan = experiment.results("benchmark"), experiment.benchmark
    if experiment.runtime.device != "cuda":
        return
    if plan.sweeps:
        text = footprint.configuration(experiment)["text_config"]
        for name, arguments in (
            ("gemms", {"text": text, "backends": backends.ON_GPU, "schedules": schedules}),
            ("scoring", {}),
            ("options", {"model": checkpoints.base_digest(load("tiny"))}),
        ):
            function = (
                "colq_utils.stages.benchmark.options:measure"
                if name == "options"
                else f"colq_utils.fast.sweeps:{name}"
            )
            found = _kept(experiment, name, function, arguments, timeout_s)
            write_table(folder / f"{name}.csv", pd.DataFrame(found if isinstance(found, list) else [found]))
    if plan.autoround:
        arguments = {
            "size": experiment.model.size,
            "settings": plan.autoround.model_dump(),
            "scratch": str(experiment.build()),
        }
        write_json(
            folder / "autoround_cost.json",
            _kept(experiment, "autoround", "colq_utils.stages.benchmark.cost:measure", arguments, timeout_s),
        )


def check(experiment: Experiment) -> dict[str, str]:
    """Raise now what every child would otherwise fail with; see `run` for the errors.

    Returns:
        Variants that this processor cannot run while others take their place, with the reason: they become rows of it.
    """
    import torch

    idle = {}
    if experiment.runtime.device == "cuda" and not torch.cuda.is_available():
        raise ColqError(
            "the experiment asks for device cuda and no CUDA device is visible; set runtime.device to cpu"
        )
    for name in experiment.benchmark.variants:
        spec = experiment.by_id[name]
        if spec.bits is not None:
            required(experiment.checkpoint(name) / "config.json", f"quantize EXPERIMENT={experiment.name}")
            try:
                kernels.require(spec.backend or experiment.runtime.backend)
            except ColqError as reason:
                if spec.backend != "ark":  # the one kernel here that hangs on the processor
                    raise
                idle[name] = str(reason)
    for _, work in workloads.plan(experiment):
        workloads.items(experiment, work, 1)
    return idle


def _kept(experiment: Experiment, name: str, function: str, arguments: dict, timeout_s: float) -> dict:
    """The child's result, from an earlier run with the same fingerprint or measured now; a failure is never kept."""
    file = experiment.build("benchmark", f"{name}-{fingerprint(experiment, arguments)[:12]}.json")
    if file.exists():
        return json.loads(file.read_text())
    outcome = process.call(function, arguments, experiment.runtime.threads, timeout_s)
    if outcome.error is not None:
        return {"error": outcome.error}
    write_json(file, outcome.value)
    return outcome.value


def fingerprint(experiment: Experiment, arguments: dict) -> str:
    """Digest of all that a measurement depends on: arguments, checkpoint files, workloads, schedules, code, packages, machine."""
    machine = provenance.collect(experiment)
    name = arguments.get("variant")
    if (
        "experiment" in arguments
    ):  # of which this variant, what it runs on and the embedded items alone decide
        used = experiment.model_dump(mode="json", include={"model", "runtime", "seed"})
        items = ROOT / "data" / "minividore" / "fingerprint.json"
        arguments = arguments | {
            "experiment": used,
            "spec": experiment.by_id[name].model_dump(mode="json"),
            "suite": experiment.evaluation.suite,
            "items": sha256(items) if items.exists() else None,
        }
    if arguments.get("schedules"):
        arguments = arguments | {"schedules": sha256(Path(arguments["schedules"]))}
    folder = None if name is None else Path(experiment.model_path)
    if name is not None and experiment.by_id[name].bits is not None:
        folder = experiment.checkpoint(name)
    stored = (
        [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.glob("*"))]
        if folder and folder.is_dir()
        else []
    )
    basis = [
        arguments,
        stored,
        cache.code(experiment, "benchmark"),
        {key: machine[key] for key in ("packages", "cpu", "cores", "gpu", "cuda")},
    ]
    return hashlib.sha256(json.dumps(basis, sort_keys=True, default=str).encode()).hexdigest()


def summarize(latency_s: list[float]) -> dict:
    """Mean, median, standard deviation, 90th and (from 100 samples) 99th percentile, in seconds."""
    if not latency_s:
        return {"n_samples": 0}
    values = np.asarray(latency_s)
    enough = len(values) >= ENOUGH_FOR_P99
    return {
        "n_samples": len(values),
        "latency_s_mean": values.mean(),
        "latency_s_median": np.median(values),
        "latency_s_std": values.std(ddof=1) if len(values) > 1 else np.nan,
        "latency_s_p90": np.percentile(values, 90),
        "latency_s_p99": np.percentile(values, 99) if enough else np.nan,
    }


COLUMNS = [
    "variant",
    "scheme",
    "encode",
    "kernel",
    "kind",
    "batch",
    "n_samples",
    "items_per_s",
    "latency_s_mean",
    "latency_s_median",
    "latency_s_std",
    "latency_s_p90",
    "latency_s_p99",
    "first_call_s",
    "load_s",
    "tokens_per_call",
    "floor_s",
    "times_floor",
    "error",
    "bandwidth_floor_s",
    "compute_floor_s",
    "weight_bytes",
    "flop",
]


def rows(experiment: Experiment, parts: list[dict], limits: dict) -> pd.DataFrame:
    """One line a variant and workload: samples of all rounds pooled, first call and load averaged, errors named.

    Args:
        parts: what `colq_utils.stages.benchmark.measure.run` returned (or ``{"error": …}``), with ``variant`` and ``round``.
        limits: what `colq_utils.stages.benchmark.ceilings.measure` returned.
    """
    lines = []
    for name in experiment.benchmark.variants:
        mine = [part for part in parts if part["variant"] == name]
        for kind, work in workloads.plan(experiment):
            lines.append(
                {
                    "variant": name,
                    "scheme": experiment.by_id[name].scheme,
                    "kernel": _kernel(mine),
                    "encode": next((part["encode"] for part in mine if "encode" in part), None),
                    "kind": kind,
                    "batch": work.batch,
                    **_line(experiment, name, mine, kind, work.batch, limits),
                }
            )
    return pd.DataFrame(lines).reindex(columns=COLUMNS)


def _line(experiment: Experiment, name: str, parts: list[dict], kind: str, batch: int, limits: dict) -> dict:
    """Figures of one variant and workload over its rounds."""
    found = [
        record
        for part in parts
        for record in part.get("workloads", [])
        if (record["kind"], record["batch"]) == (kind, batch)
    ]
    errors = [holder["error"] for holder in parts + found if "error" in holder]
    good = [record for record in found if "error" not in record]
    line = summarize([value for record in good for value in record["latency_s"]]) | {
        "error": errors[0] if errors else None
    }
    if not good:
        return line
    mean = {
        key: float(np.mean([record[key] for record in good])) for key in ("first_call_s", "tokens_per_call")
    }
    need, spec = (
        ceilings.Demand(
            *(good[0][key] for key in ("weight_bytes", "text_flop", "vision_flop", "attention_flop"))
        ),
        experiment.by_id[name],
    )
    plain = "float32" if spec.scheme == "fp32" else experiment.runtime.dtype
    floors = (
        {}
        if "error" in limits
        else ceilings.floors(
            need, limits, "fp8" if spec.scheme == "fp8" else plain, spec.vision or plain, plain
        )
    )
    if floors:
        floors["times_floor"] = line["latency_s_median"] / floors["floor_s"]
    return (
        line
        | mean
        | floors
        | {
            "items_per_s": batch / line["latency_s_median"],
            "weight_bytes": need.weight_bytes,
            "flop": need.flop,
            "load_s": float(np.mean([part["load_s"] for part in parts if "load_s" in part])),
        }
    )


def _kernel(parts: list[dict]) -> str | None:
    """The kernel under most of the language model's layers."""
    uses = [use for part in parts for use in part.get("census", []) if use["tower"] == "language_model"]
    return max(uses, key=lambda use: use["layers"])["kernel"] if uses else None


def _write(experiment: Experiment, parts: list[dict], limits: dict) -> pd.DataFrame:
    """Write every file of the stage; returns the table of rows."""
    folder = experiment.results("benchmark")
    table = rows(experiment, parts, limits)
    write_table(folder / "rows.csv", table)
    write_table(folder / "samples.parquet", _samples(parts))
    write_table(folder / "memory.csv", _memory(experiment, parts))
    uses = {
        (part["variant"], *use.values()): {"variant": part["variant"], **use}
        for part in parts
        for use in part.get("census", [])
    }
    write_table(
        folder / "census.csv",
        pd.DataFrame(uses.values(), columns=["variant", "tower", "kernel", "weight_bits", "layers"]),
    )
    write_table(
        folder / "agreement.csv",
        pd.DataFrame(
            [
                {"variant": part["variant"], "round": part["round"], **entry}
                for part in parts
                for entry in part.get("agreement", [])
            ],
            columns=["variant", "round", "kind", "mean", "min", "tokens"],
        ),
    )
    if experiment.runtime.device == "cuda":
        write_table(folder / "profile.csv", _profile(parts))
    write_json(folder / "ceilings.json", limits)
    write_json(
        folder / "environment.json",
        provenance.collect(experiment)
        | {
            "threads": limits.get("threads"),
            "omp_wait_policy": limits.get("omp_wait_policy"),
            "device": experiment.runtime.device,
            "dtype": experiment.runtime.dtype,
            "attention": experiment.runtime.attention,
            "rounds": max(part["round"] for part in parts),
            "left_out": left_out(experiment) + unfinished(experiment, parts),
            "weights": "random" if experiment.model.is_random else "stored",
        },
    )
    return table


def _samples(parts: list[dict]) -> pd.DataFrame:
    """Every timed call: variant, round, workload, batch, its number, seconds."""
    columns = ["variant", "round", "kind", "batch", "index", "latency_s"]
    return pd.DataFrame(
        [
            (part["variant"], part["round"], record["kind"], record["batch"], i, value)
            for part in parts
            for record in part.get("workloads", [])
            for i, value in enumerate(record.get("latency_s", []))
        ],
        columns=columns,
    )


def _profile(parts: list[dict]) -> pd.DataFrame:
    """Seconds of GPU work by variant, round, workload and part; `kernels` is their number."""
    return pd.DataFrame(
        [
            (part["variant"], part["round"], record["kind"], record["batch"], name, value)
            for part in parts
            for record in part.get("workloads", [])
            for name, value in record.get("profile", {}).items()
        ],
        columns=["variant", "round", "kind", "batch", "part", "seconds"],
    )


def _memory(experiment: Experiment, parts: list[dict]) -> pd.DataFrame:
    """Long table of bytes: after loading (no kind), and the peak during a call of each workload."""
    lines = []
    for part in parts:
        key = (part["variant"], experiment.by_id[part["variant"]].scheme, part["round"])
        lines += [(*key, None, None, metric, value) for metric, value in part.get("memory", {}).items()]
        lines += [
            (*key, record["kind"], record["batch"], metric, value)
            for record in part.get("workloads", [])
            for metric, value in record.get("memory", {}).items()
        ]
    table = pd.DataFrame(lines, columns=["variant", "scheme", "round", "kind", "batch", "metric", "bytes"])
    return table.astype({"batch": "Int64"})


def left_out(experiment: Experiment) -> list[str]:
    """What this run cannot tell, in sentences."""
    if experiment.runtime.device == "cuda":
        notes = [
            "Resident memory of the host process is given, but the GPU figures are those that limit the batch size."
        ]
        if experiment.model.is_random:
            notes.append(
                "Random weights in the published dimensions: bytes do not depend on their values; that times do not is assumed, not measured. Embeddings and scores would."
            )
        others = foreign()
        if others:
            notes.append(
                f"Before and after the run other processes held {others / 1e6:,.0f} MB of the GPU: times may have suffered."
            )
        return notes
    return [
        "No GPU: allocated, peak and reserved device memory and CUDA kernels are not measured.",
        "Speed on this CPU says nothing about the speed of 4-bit kernels on a GPU.",
        "The base is computed in float32 with the instructions of AVX2. The packed kernel (ark) takes whatever this processor has, AVX-512 and AMX "
        "included: a ratio between the two is one of this processor, not of the number of bits alone.",
        *(f"{name} is not measured: {reason}." for name, reason in check(experiment).items()),
    ]


def unfinished(experiment: Experiment, parts: list[dict]) -> list[str]:
    """Which variants these parts have in fewer rounds than planned, in a sentence; nothing of a complete run."""
    rounds = experiment.benchmark.rounds
    done = {name: sum(part["variant"] == name for part in parts) for name in experiment.benchmark.variants}
    short = [f"{name} ({n})" for name, n in done.items() if n < rounds]
    return (
        [f"The run ended before all of its {rounds} rounds; fewer were measured of {', '.join(short)}."]
        if short
        else []
    )


def foreign() -> int:
    """Bytes of the GPU in use while no process of ours runs on it, by the driver's count; 0 where that cannot be asked."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        used = int(answer.stdout.splitlines()[0]) << 20
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return 0
    return used if used > IDLE else 0
