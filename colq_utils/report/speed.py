"""Speed and memory as numbers: ratios of latency with intervals, bytes by variant, and which card a published model fits.

"Faster" and "slower" are said only where the interval of the ratio of median latencies leaves 1 out. No text but one sentence.
"""

import numpy as np
import pandas as pd

from colq_utils.base import files
from colq_utils.report import markdown as md
from colq_utils.report import results, stats, wording
from colq_utils.report.analysis import Study

KINDS = {"queries": "text queries", "pages": "pages", "queries_published": "text queries as published"}
METRICS = {
    "tensors_bytes": "Tensors in memory",
    "rss_loaded_bytes": "Process after loading",
    "peak_rss_bytes": "Process at its peak",
    "allocated_bytes": "Allocated after loading",
    "reserved_bytes": "Reserved after loading",
    "peak_allocated_bytes": "Peak allocated",
    "peak_reserved_bytes": "Peak reserved",
}
#: Memory of common cards, in GB.
CARDS_GB = (8, 12, 16, 24, 40)
#: What `fits` takes for a batch of each kind.
BATCHES = (("queries", 32), ("pages", 8))


def measured(study: Study) -> pd.DataFrame:
    """Rows that hold a measurement (no error, a latency)."""
    rows = study.results.rows
    return (
        pd.DataFrame(columns=["variant", "kind", "batch"])
        if rows is None
        else rows[rows.latency_s_mean.notna()]
    )


def packed(study: Study) -> list[str]:
    """Variants that run quantized weights, on whatever kernel."""
    return [name for name, spec in study.experiment.by_id.items() if spec.bits is not None]


def ratios(study: Study) -> pd.DataFrame:
    """Median latency of each variant over that of the base, by workload, with a 95 % interval and a word for it."""
    rows, base = measured(study), study.experiment.base
    workloads = rows[rows.variant == base].set_index(["kind", "batch"]).index
    compared = [
        (r, *ratio(study, r.variant, base, r.kind, r.batch))
        for _, r in rows[rows.variant != base].iterrows()
        if (r.kind, r.batch) in workloads
    ]
    return pd.DataFrame(
        [
            {
                "variant": r.variant,
                "kind": r.kind,
                "batch": int(r.batch),
                "ratio": value,
                "low": low,
                "high": high,
                "word": wording.speed(low, high),
                "kernel": r.get("kernel"),
                "tokens_per_call": r.get("tokens_per_call"),
            }
            for r, value, low, high in compared
        ],
        columns=["variant", "kind", "batch", "ratio", "low", "high", "word", "kernel", "tokens_per_call"],
    )


def ratio(study: Study, above: str, below: str, kind: str, batch: int) -> tuple[float, float, float]:
    """`stats.median_ratio` of two variants' calls; NaN where one has none."""
    both = [results.calls(study.results.samples, name, kind, batch) for name in (above, below)]
    return stats.median_ratio(*both) if all(both) else (np.nan, np.nan, np.nan)


def in_one_sentence(study: Study) -> str:
    """How long a call of the quantized variants takes against the base's, over all workloads."""
    table = ratios(study)
    table = table[table.variant.isin(packed(study))]
    if table.empty:
        return f"Speed: {md.MISSING}."
    unheld = " (base held to AVX2, ark not)" if table.kernel.astype(str).str.startswith("ark").any() else ""
    where = "the CPU" if study.experiment.runtime.device == "cpu" else "the GPU"
    spans = [
        f"{study.labels[name]} ({t.kernel.iloc[0]}) takes {md.number(t.ratio.min())} to {md.number(t.ratio.max())} times the base's time per call"
        for name, t in table.groupby("variant", sort=False)
    ]
    return f"Speed on {where}{unheld}: {md.label_list(spans)}."


def memory_table(study: Study) -> pd.DataFrame:
    """Bytes by variant and metric: the largest over workloads, the mean over rounds."""
    table = study.results.memory
    if table is None:
        return pd.DataFrame()
    largest = table.groupby(["variant", "round", "metric"], sort=False)["bytes"].max()
    wide = largest.groupby(["variant", "metric"], sort=False).mean().unstack("metric")
    return wide.reindex(
        index=[n for n in study.experiment.by_id if n in wide.index],
        columns=[m for m in METRICS if m in wide],
    )


def fits(study: Study) -> pd.DataFrame:
    """A row per published model and scheme: predicted weights, and per kind of batch what it peaks at and the smallest card.

    Columns: model; weights_bytes (what is loaded: without an unused head); <kind>_bytes (weights and what the GPU benchmark of the
    same dimensions held beyond its weights); <kind>_card_gb. NaN where that benchmark's results are not there or no card is enough.
    """
    table, rows = study.results.published, []
    for r in () if table is None else table.itertuples():
        path = study.experiment.output / "results" / f"h200-{r.size}" / "benchmark" / "memory.csv"
        memory = files.read_table(path, f"benchmark EXPERIMENT=h200-{r.size}") if path.exists() else None
        for scheme, name, weights in (
            ("BF16", f"{r.size}-bf16", r.bf16_bytes - r.unused_head_bytes),
            ("W4A16", f"{r.size}-w4a16-pack", r.w4a16_bytes),
        ):
            row = {"model": f"{r.size.upper()} {scheme}", "weights_bytes": weights}
            for kind, batch in BATCHES:
                peak = weights + _beyond_weights(memory, name, kind, batch)
                row |= {
                    f"{kind}_bytes": peak,
                    f"{kind}_card_gb": next((card for card in CARDS_GB if peak <= card * 1e9), np.nan),
                }
            rows.append(row)
    return pd.DataFrame(rows)


def _beyond_weights(memory: pd.DataFrame | None, variant: str, kind: str, batch: int) -> float:
    """Bytes that a batch held at its peak beyond the tensors of the model, the largest of the rounds; NaN if not measured."""
    if memory is None:
        return np.nan
    of_variant = memory[memory.variant == variant]
    peak = of_variant[
        (of_variant.metric == "peak_allocated_bytes")
        & (of_variant.kind == kind)
        & (of_variant.batch == batch)
    ].bytes.max()
    return peak - of_variant[of_variant.metric == "tensors_bytes"].bytes.max()
