"""benchmark.md: memory and speed, each number beside the kernel that made it, caveats before the tables.

"Faster" and "slower" are written only where the interval of the ratio of median latencies leaves 1 out.
Reads the benchmark stage alone (and the towers, for what can shrink).
"""
import numpy as np
import pandas as pd

from colq_utils.report import markdown as md
from colq_utils.report import results, stats
from colq_utils.report.analysis import Study
from colq_utils.report.parts import environment, figures, missing, rejected

KINDS = {"queries": "text queries", "pages": "pages", "queries_published": "text queries as published"}
FIGURES = {"latency.png": "Latency of a call against the base, by workload, 95 % intervals."}
#: Drawn by 01_inspect and 04_benchmark.
OTHERS = {"throughput_queries.png": "Text queries a second.", "throughput_pages.png": "Pages a second.", "memory.png": "Memory.",
          "bytes_per_tower.png": "Bytes of the checkpoint by part, stored and predicted."}
METRICS = {"tensors_bytes": "Tensors in memory", "rss_loaded_bytes": "Process after loading", "peak_rss_bytes": "Process at its peak",
           "allocated_bytes": "Allocated after loading", "reserved_bytes": "Reserved after loading",
           "peak_allocated_bytes": "Peak allocated", "peak_reserved_bytes": "Peak reserved"}


SLOWER = {
    "cpu": "**Some quantized rows below are slower than the base, and that is to be expected on a CPU.** The kernel unpacks the stored bits to floating "
           "point and then multiplies in that precision. Unpacking is extra work; it pays only where reading the weights from memory is what takes the "
           "time. Where the model is small, a call holds many tokens, or the processor multiplies bf16 itself, the base does not wait for memory. Read "
           "tokens a call and kernel together. What fewer bits gain there is memory and disk, not speed.",
    "cuda": "**Some quantized rows below are slower than the base.** With many tokens a call the time goes into multiplying, which a weight-only kernel does "
            "no faster than the base's and after unpacking; small calls, which wait for the weights, are where fewer bits can gain. Read tokens a call "
            "and kernel together.",
}


def write(study: Study) -> str:
    """The whole report as markdown; every part says 'not measured' where the stage has not run."""
    return md.document(
        f"# Benchmark: {study.experiment.title}", rejected(study), "## Overview", _overview(study), "## Important notes", _notes(study),
        "### Kernel census", _census(study), "## Test environment", environment(study.results.benchmark_environment, "benchmark"), _ceilings(study),
        "## Summary", "### Memory", _memory(study), "### Latency against the base", _comparison(study),
        "## Detailed results", _details(study), "## Key findings", _findings(study), "## Recommendations", _recommendations(study),
        "## Reproduction", f"```bash\nmake benchmark EXPERIMENT={study.experiment.name}\nmake report EXPERIMENT={study.experiment.name}\n```",
        "## Figures", figures(study, FIGURES), figures(study, OTHERS, name_missing=False))


def good(study: Study) -> pd.DataFrame:
    """Rows that hold a measurement (no error, a latency)."""
    rows = study.results.rows
    return pd.DataFrame(columns=["variant", "kind", "batch"]) if rows is None else rows[rows.latency_s_mean.notna()]


def ratios(study: Study) -> pd.DataFrame:
    """Median latency of each variant over that of the base, by workload, with a 95 % interval and a word for it."""
    rows, found = good(study), []
    base = rows[rows.variant == study.experiment.base].set_index(["kind", "batch"])
    for _, r in rows[rows.variant != study.experiment.base].iterrows():
        if (r.kind, r.batch) in base.index:
            ratio, low, high = _ratio(study, r.variant, study.experiment.base, r.kind, r.batch)
            word = md.MISSING if np.isnan(ratio) else "slower" if low > 1 else "faster" if high < 1 else "not resolved"
            found.append({"variant": r.variant, "kind": r.kind, "batch": int(r.batch), "ratio": ratio, "low": low, "high": high, "word": word,
                          "kernel": r.get("kernel"), "tokens_per_call": r.get("tokens_per_call")})
    return pd.DataFrame(found, columns=["variant", "kind", "batch", "ratio", "low", "high", "word", "kernel", "tokens_per_call"])


def _ratio(study: Study, above: str, below: str, kind: str, batch: int) -> tuple[float, float, float]:
    """`stats.median_ratio` of two variants' calls; NaN where one has none."""
    both = [results.calls(study.results.samples, name, kind, batch) for name in (above, below)]
    return stats.median_ratio(*both) if all(both) else (np.nan, np.nan, np.nan)


def _overview(study: Study) -> str:
    if study.results.rows is None:
        return missing("benchmark", "memory and speed")
    measured = list(dict.fromkeys(study.results.rows.variant))
    rows = [(study.labels[n], study.experiment.by_id[n].scheme.upper(), f"`{n}`") for n in measured]
    return ("Memory and latency of these variants of one checkpoint, each in fresh processes, rounds interleaved:\n\n"
            + md.table(["Variant", "Scheme", "Id"], rows, left=3))


def _notes(study: Study) -> str:
    notes = ["Only the language model is quantized. Vision tower, embedding table and projection stay as they are, which bounds what memory and page "
             "encoding can gain.",
             "Timed is the forward pass: no tokenizing, image processing or MaxSim. Load and first call are given apart and are not in the means.",
             "Ratios are of median latencies. Their intervals draw processes (one a round) and the calls in each anew. Fewer than three processes make them "
             "narrow, and another hour of a shared machine is not in them."]
    notes += (study.results.benchmark_environment or {}).get("left_out", [])
    if (_quantized(study).word == "slower").any():
        notes.append(SLOWER[study.experiment.runtime.device])
    return "\n".join(f"- {n}" for n in notes)


def _quantized(study: Study) -> pd.DataFrame:
    table = ratios(study)
    return table[table.variant.isin(_packed(study))]


def _packed(study: Study) -> list[str]:
    """Variants that run quantized weights, on whatever kernel."""
    return [name for name, spec in study.experiment.by_id.items() if spec.bits is not None]


def _census(study: Study) -> str:
    if study.results.census is None:
        return missing("benchmark", "which kernel each layer runs on")
    table = study.results.census
    rows = [(study.labels.get(r.variant, r.variant), r.tower, r.kernel, int(r.weight_bits), int(r.layers)) for _, r in table.iterrows()]
    return md.table(["Variant", "Tower", "Kernel", "Weight bits", "Layers"], rows, left=3)


def _ceilings(study: Study) -> str:
    limits = study.results.ceilings
    if limits is None or "copy_bytes_per_s" not in limits:
        return missing("benchmark", "the machine's ceilings")
    rows = [("Copy in memory (GB/s)", md.number(limits["copy_bytes_per_s"] / 1e9, 1))]
    rows += [(f"Matrix product, {key.removesuffix('_flop_per_s')} (GFLOP/s)", md.number(value / 1e9, 0))
             for key, value in limits.items() if key.endswith("_flop_per_s")]
    return md.table(["Measured ceiling", "Rate"], rows)


def memory_table(study: Study) -> pd.DataFrame:
    """Bytes by variant and metric: the largest over workloads, the mean over rounds."""
    table = study.results.memory
    if table is None:
        return pd.DataFrame()
    largest = table.groupby(["variant", "round", "metric"], sort=False)["bytes"].max()
    wide = largest.groupby(["variant", "metric"], sort=False).mean().unstack("metric")
    return wide.reindex(index=[n for n in study.experiment.by_id if n in wide.index], columns=[m for m in METRICS if m in wide])


def _memory(study: Study) -> str:
    wide = memory_table(study)
    if wide.empty:
        return missing("benchmark", "memory")
    base = wide.loc[study.experiment.base] if study.experiment.base in wide.index else None
    rows = []
    for name, row in wide.iterrows():
        cells = []
        for metric in wide.columns:
            change = "" if base is None or name == study.experiment.base else f" ({md.number(100 * (row[metric] / base[metric] - 1), 1, True, ' %')})"
            cells.append(md.megabytes(row[metric], 1) + change)
        rows.append((study.labels[name], *cells))
    return md.table(["Variant", *(f"{METRICS[m]} (MB)" for m in wide.columns)], rows) + (
        "\n\nIn brackets the change against the base. A process also holds libraries and activations, which no quantization shrinks.")


def _comparison(study: Study) -> str:
    table = ratios(study)
    if table.empty:
        return missing("benchmark", "latency against the base")
    rows = [(study.labels[r.variant], KINDS.get(r.kind, r.kind), r.batch, md.number(r.tokens_per_call, 0), r.kernel,
             md.value_ci(r.ratio, r.low, r.high, 2), r.word) for _, r in table.iterrows()]
    return md.table(["Variant", "Workload", "Batch", "Tokens a call", "Kernel", "Latency / base", "In this run"], rows, left=2)


def _details(study: Study) -> str:
    if study.results.rows is None:
        return missing("benchmark", "the detailed results")
    parts = []
    for (kind, batch), table in study.results.rows.groupby(["kind", "batch"], sort=False):
        rows = [(study.labels[r.variant], *_detail(r)) for _, r in table.iterrows()]
        header = ["Variant", "Kernel", "Samples", "Items/s", "Mean (ms)", "Median (ms)", "Std (ms)", "p90 (ms)", "p99 (ms)", "First call (ms)", "Load (s)",
                  "Times the floor"]
        parts.append(f"### {KINDS.get(kind, kind).capitalize()}, batch {int(batch)}\n\n" + md.table(header, rows, left=2))
    note = ("Items a second and times the floor are of the median. p99 is given from 100 samples on. The floor is the time that moving the weights once, or the multiplications, would take at the measured "
            "ceilings, whichever is longer.")
    failed = study.results.rows[study.results.rows.error != ""]
    errors = "".join(f"\n- {study.labels[r.variant]}, {KINDS.get(r.kind, r.kind)}, batch {int(r.batch)}: {md.cell(r.error)}" for _, r in failed.iterrows())
    return "\n\n".join(parts + [note] + ([f"Failed:\n{errors}"] if errors else []))


def _detail(r) -> list[str]:
    if not np.isfinite(r.latency_s_mean):
        return ["failed", *([md.MISSING] * 10)]
    times = [md.milliseconds(r.get(f"latency_s_{k}")) for k in ("mean", "median", "std", "p90", "p99")]
    return [r.get("kernel"), int(r.n_samples), md.number(r.get("items_per_s"), 1), *times, md.milliseconds(r.get("first_call_s"), 1),
            md.number(r.get("load_s")), md.number(r.get("times_floor"), 1)]


def _findings(study: Study) -> str:
    lines, wide = [], memory_table(study)
    if study.experiment.base in wide.index and "tensors_bytes" in wide:
        base = wide.tensors_bytes[study.experiment.base]
        lines += [f"**Memory.** {study.labels[n]} holds {md.megabytes(wide.tensors_bytes[n], 1)} MB of tensors against {md.megabytes(base, 1)} MB of the base "
                  f"({md.number(100 * (wide.tensors_bytes[n] / base - 1), 1, True)} %)." for n in wide.index if n in _packed(study)]
    for (name, kind), t in ratios(study).groupby(["variant", "kind"], sort=False):
        words = [f"{word} in {int((t.word == word).sum())}" for word in ("faster", "slower", "not resolved", md.MISSING) if (t.word == word).any()]
        which = t.word.iloc[0] if len(t) == 1 else f"of {len(t)} batch sizes {md.listing(words)}"
        span = " to ".join(dict.fromkeys([md.number(t.ratio.min()), md.number(t.ratio.max())]))
        lines.append(f"**Speed, {KINDS.get(kind, kind)}.** {study.labels[name]} against the base: {which} (latency {span} times the base's).")
    return "\n".join(f"- {line}" for line in lines) or missing("benchmark", "memory and speed")


def _recommendations(study: Study) -> str:
    table, lines = _quantized(study), []
    for name, t in table.groupby("variant", sort=False):
        wins = t[t.word == "faster"]
        where = md.listing([f"{KINDS.get(r.kind, r.kind)} in batches of {r.batch}" for _, r in wins.iterrows()])
        lines.append(f"{study.labels[name]}: " + (f"faster than the base for {where}; elsewhere choose it for memory alone." if len(wins) else
                     "no workload here runs faster than on the base; choose it for memory and disk, not for speed."))
    fastest = _fastest(study)
    if fastest:
        lines.append(fastest)
    return "\n".join(f"- {line}" for line in lines) or missing("benchmark", "what to recommend")


def _fastest(study: Study) -> str:
    rows, best = good(study), []
    for (kind, batch), t in rows.groupby(["kind", "batch"], sort=False):
        names = list(t.sort_values("latency_s_median").variant)
        if len(names) > 1:
            _, _, high = _ratio(study, names[0], names[1], kind, batch)
            best.append(f"{KINDS.get(kind, kind)} at batch {int(batch)}: {study.labels[names[0]] if high < 1 else 'not resolved'}")
    return "Lowest median latency: " + "; ".join(best) + "." if best else ""
