"""The tables of the benchmark's results, from what its processes returned.

A part is what `measure.run` returned (or ``{"error": …}``), with ``variant`` and ``round``.
"""

import numpy as np
import pandas as pd

from colq_utils.base.config import Experiment
from colq_utils.stages.benchmark import ceilings, workloads

#: Fewest samples from which a 99th percentile is given.
ENOUGH_FOR_P99 = 100
COLUMNS = [
    *("variant", "scheme", "encode", "kernel", "kind", "batch", "n_samples", "items_per_s"),
    *(f"latency_s_{statistic}" for statistic in ("mean", "median", "std", "p90", "p99")),
    *("first_call_s", "load_s", "tokens_per_call", "floor_s", "times_floor", "error"),
    *("bandwidth_floor_s", "compute_floor_s", "weight_bytes", "flop"),
]


def summarize(latency_s: list[float]) -> dict:
    """Mean, median, standard deviation, 90th and (from 100 samples) 99th percentile, in seconds."""
    if not latency_s:
        return {"n_samples": 0}
    n, values = len(latency_s), np.asarray(latency_s)
    return {
        "n_samples": n,
        "latency_s_mean": values.mean(),
        "latency_s_median": np.median(values),
        "latency_s_std": values.std(ddof=1) if n > 1 else np.nan,
        "latency_s_p90": np.percentile(values, 90),
        "latency_s_p99": np.percentile(values, 99) if n >= ENOUGH_FOR_P99 else np.nan,
    }


def files(experiment: Experiment, parts: list[dict], limits: dict) -> dict[str, pd.DataFrame]:
    """Every table by its file: what was timed, all calls, bytes, kernels, the two paths, GPU time by part.

    Args:
        limits: what `colq_utils.stages.benchmark.ceilings.measure` returned.
    """
    memory = _values(parts, "memory", "metric", "bytes").astype({"batch": "Int64"})
    memory.insert(1, "scheme", [experiment.by_id[name].scheme for name in memory.variant])
    census = _entries(parts, "census", ["variant", "tower", "kernel", "weight_bits", "layers"])
    agreement = ["variant", "round", "kind", "mean", "min", "tokens"]
    tables = {
        "rows.csv": rows(experiment, parts, limits),
        "samples.parquet": _values(parts, "latency_s", "index", "latency_s"),
        "memory.csv": memory,
        "census.csv": census.drop_duplicates(),
        "agreement.csv": _entries(parts, "agreement", agreement),
    }
    if experiment.runtime.device == "cuda":
        tables["profile.csv"] = _values(parts, "profile", "part", "seconds")
    return tables


def rows(experiment: Experiment, parts: list[dict], limits: dict) -> pd.DataFrame:
    """One line a variant and workload: samples of all rounds pooled, first call and load averaged."""
    lines = []
    for name in experiment.benchmark.variants:
        rounds = [part for part in parts if part["variant"] == name]
        encode = next((part["encode"] for part in rounds if "encode" in part), None)
        shared = {"variant": name, "scheme": experiment.by_id[name].scheme, "encode": encode}
        shared["kernel"] = _kernel(rounds)
        for kind, work in workloads.plan(experiment):
            key = {"kind": kind, "batch": work.batch}
            lines.append(shared | key | _line(experiment, name, rounds, key, limits))
    return pd.DataFrame(lines, columns=COLUMNS)


def _line(experiment: Experiment, name: str, rounds: list[dict], key: dict, limits: dict) -> dict:
    """Figures of one variant and workload over its rounds."""
    records = [r for part in rounds for r in part.get("workloads", []) if key.items() <= r.items()]
    errors = [record["error"] for record in rounds + records if "error" in record]
    measured = [record for record in records if "error" not in record]
    line = summarize([seconds for record in measured for seconds in record["latency_s"]])
    line["error"] = errors[0] if errors else None
    if not measured:
        return line
    for column in ("first_call_s", "tokens_per_call"):
        line[column] = np.mean([record[column] for record in measured])
    line["load_s"] = np.mean([part["load_s"] for part in rounds if "load_s" in part])
    line["items_per_s"] = key["batch"] / line["latency_s_median"]
    need, spec = ceilings.Demand(**measured[0]["demand"]), experiment.by_id[name]
    if "error" not in limits:
        plain = "float32" if spec.scheme == "fp32" else experiment.runtime.dtype
        text = "fp8" if spec.scheme == "fp8" else plain
        line |= ceilings.floors(need, limits, text, spec.vision or plain, plain)
        line["times_floor"] = line["latency_s_median"] / line["floor_s"]
    return line | {"weight_bytes": need.weight_bytes, "flop": need.flop}


def _kernel(parts: list[dict]) -> str | None:
    """The kernel under most of the language model's layers."""
    uses = [use for part in parts for use in part.get("census", []) if use["tower"] == "language_model"]
    return max(uses, key=lambda use: use["layers"])["kernel"] if uses else None


def _entries(parts: list[dict], field: str, columns: list[str]) -> pd.DataFrame:
    """A line for each entry of the list `field` of each part."""
    lines = [part | entry for part in parts for entry in part.get(field, [])]
    return pd.DataFrame(lines, columns=columns)


def _values(parts: list[dict], field: str, name: str, value: str) -> pd.DataFrame:
    """A line per entry of the dict or list `field` of a part (without a kind) or of one of its workloads."""
    lines = []
    for part in parts:
        for record in (part, *part.get("workloads", [])):
            key = (part["variant"], part["round"], record.get("kind"), record.get("batch"))
            values = record.get(field, {})
            entries = values.items() if isinstance(values, dict) else enumerate(values)
            lines += [(*key, *entry) for entry in entries]
    return pd.DataFrame(lines, columns=["variant", "round", "kind", "batch", name, value])
