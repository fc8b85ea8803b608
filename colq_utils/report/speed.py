"""Speed and memory as numbers: ratios of latency, bytes by variant, and which card a published model fits.

"Faster" and "slower" are said only where the interval of the ratio of median latencies leaves 1 out.
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
RATIOS = ["variant", "kind", "batch", "ratio", "low", "high", "word", "kernel", "tokens_per_call"]
#: An interval over fewer processes would be too narrow to show.
FEWEST_ROUNDS = 5
#: Memory of common cards, in GB.
CARDS_GB = (8, 12, 16, 24, 40)
#: What `fits` takes for a batch of each kind.
BATCHES = (("queries", 32), ("pages", 8))


def packed(study: Study) -> list[str]:
    """Variants that run quantized weights, on whatever kernel."""
    return [name for name, spec in study.experiment.by_id.items() if spec.bits is not None]


def ratios(study: Study) -> pd.DataFrame:
    """Median latency of each variant over the base's, by workload, with a 95 % interval and a word for it."""
    rows, base = study.results.rows, study.experiment.base
    if rows is None:
        return pd.DataFrame(columns=RATIOS)
    rows = rows[rows.latency_s_mean.notna()]
    workloads = rows[rows.variant == base][["kind", "batch"]].drop_duplicates()
    table = rows[rows.variant != base].merge(workloads, on=["kind", "batch"]).reindex(columns=RATIOS)
    for i, r in table.iterrows():
        both = [results.calls(study.results.samples, name, r.kind, r.batch) for name in (r.variant, base)]
        if all(both):
            table.loc[i, ["ratio", "low", "high"]] = stats.median_ratio(*both)
    words = [wording.speed(*limits) for limits in zip(table.low, table.high)]
    return table.astype({"batch": int}).assign(word=words)


def ran_ark(rows: pd.DataFrame) -> bool:
    """True where a kernel of ark made some of `rows`: the base is held to AVX2, ark is not."""
    return rows.kernel.astype(str).str.startswith("ark").any()


def in_one_sentence(study: Study) -> str:
    """How long a call of the quantized variants takes against the base's, over all workloads."""
    table = ratios(study)
    table = table[table.variant.isin(packed(study)) & table.ratio.notna()]
    if table.empty:
        return f"Speed: {md.MISSING}."
    unheld = " (base held to AVX2, ark not)" if ran_ark(table) else ""
    where = "CPU" if study.experiment.runtime.device == "cpu" else "GPU"
    rounds, spans = study.results.samples["round"].nunique(), []
    few = f" ({rounds} processes, no interval)" if rounds < FEWEST_ROUNDS else ""
    for name, t in table.groupby("variant", sort=False):
        ends = t.loc[[t.ratio.idxmin(), t.ratio.idxmax()], ["ratio", "low", "high"]].to_numpy()
        written = [md.number(end[0]) if few else md.value_ci(*end, 2) for end in ends]
        span = " to ".join(written)
        spans.append(f"{study.labels[name]} ({t.kernel.iloc[0]}) takes {span} times the base")
    return f"{where} speed{unheld}: {md.label_list(spans)}{few}."


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
    """A row per published model and scheme: predicted weights, per kind of batch the peak and smallest card.

    Columns: model; weights_bytes (what is loaded: without an unused head); <kind>_bytes (weights and what the
    GPU benchmark of the same dimensions held beyond its weights); <kind>_card_gb. NaN where that benchmark's
    results are not there or no card is enough.
    """
    table, rows = study.results.published, []
    for r in () if table is None else table.itertuples():
        path = study.experiment.output / "results" / f"h200-{r.size}" / "benchmark" / "memory.csv"
        memory = files.read_table(path, f"benchmark EXPERIMENT=h200-{r.size}") if path.exists() else None
        weights = {"bf16": r.bf16_bytes - r.unused_head_bytes, "w4a16-pack": r.w4a16_bytes}
        for build, n_bytes in weights.items():
            scheme = build.removesuffix("-pack").upper()
            row = {"model": f"{r.size.upper()} {scheme}", "weights_bytes": n_bytes}
            for kind, batch in BATCHES:
                peak = n_bytes + _beyond_weights(memory, f"{r.size}-{build}", kind, batch)
                row[f"{kind}_bytes"] = peak
                row[f"{kind}_card_gb"] = next((gb for gb in CARDS_GB if peak <= gb * 1e9), np.nan)
            rows.append(row)
    return pd.DataFrame(rows)


def _beyond_weights(memory: pd.DataFrame | None, variant: str, kind: str, batch: int) -> float:
    """Bytes that a batch held at its peak beyond the model's tensors, largest of the rounds; else NaN."""
    if memory is None:
        return np.nan
    rows = memory[memory.variant == variant]
    peaks = rows[(rows.metric == "peak_allocated_bytes") & (rows.kind == kind) & (rows.batch == batch)]
    return peaks.bytes.max() - rows.bytes[rows.metric == "tensors_bytes"].max()
