"""benchmark.md: memory and speed, each number beside the kernel that made it; the findings first, the details folded.

Reads the benchmark stage alone, the predicted sizes of the published models, and what the GPU runs of their dimensions held.
"""

import numpy as np
import pandas as pd

from colq_utils.report import markdown as md
from colq_utils.report import speed, wording
from colq_utils.report.analysis import Study
from colq_utils.report.parts import environment, figures, missing, rejected
from colq_utils.report.prose import render
from colq_utils.report.speed import KINDS, METRICS
from colq_utils.report.tables import table

FIGURES = {"latency.png": "Latency of a call against the base, by workload, 95 % intervals."}
#: Drawn by 01_inspect and 04_benchmark.
OTHERS = {
    "throughput_queries.png": "Text queries per second.",
    "throughput_pages.png": "Pages per second.",
    "memory.png": "Memory.",
    "bytes_per_tower.png": "Bytes of the checkpoint by part, stored and predicted.",
}
FITS = {
    "model": "Model",
    "weights_bytes": "Weights (GB)",
    "queries_bytes": "Peak, 32 queries (GB)",
    "queries_card": "Smallest card",
    "pages_bytes": "Peak, 8 pages (GB)",
    "pages_card": "Smallest card",
}


def write(study: Study) -> str:
    """The whole report as markdown; every part says 'not measured' where the stage has not run."""
    ratios = speed.ratios(study)
    slower = (ratios.word[ratios.variant.isin(speed.packed(study))] == "slower").any()
    return render(
        "benchmark.md.j2",
        title=study.experiment.title,
        name=study.experiment.name,
        warning=rejected(study),
        device=study.experiment.runtime.device,
        findings=_findings(study) or missing("benchmark", "memory and speed"),
        slower=slower,
        fits=_fits(study),
        cards=md.listing([str(card) for card in speed.CARDS_GB]),
        comparison=_comparison(study),
        memory=_memory(study),
        figure=figures(study, FIGURES),
        left_out=(study.results.benchmark_environment or {}).get("left_out", []),
        kernels=_kernels(study),
        ceilings=_ceilings(study),
        environment=environment(study.results.benchmark_environment, "benchmark"),
        details=_details(study),
        figures=figures(study, OTHERS, name_missing=False),
    )


def _findings(study: Study) -> list[str]:
    """A sentence per quantized variant on memory, and one on speed."""
    lines, wide = [], speed.memory_table(study)
    if study.experiment.base in wide.index and "tensors_bytes" in wide:
        base = wide.tensors_bytes[study.experiment.base]
        lines += [
            f"**Memory.** {study.labels[n]} holds {md.significant(wide.tensors_bytes[n] / 1e6)} MB of tensors against the base's {md.significant(base / 1e6)} MB "
            f"({md.significant(100 * (wide.tensors_bytes[n] / base - 1), signed=True)} %)."
            for n in wide.index
            if n in speed.packed(study)
        ]
    for name, workloads in speed.ratios(study).groupby("variant", sort=False):
        said = [
            f"{word} for {md.listing(_loads(workloads[workloads.word == word]))}"
            for word in ("faster", "slower", wording.UNDECIDED, md.MISSING)
            if (workloads.word == word).any()
        ]
        use = (
            ""
            if name not in speed.packed(study)
            else (
                " Elsewhere choose it for memory alone."
                if (workloads.word == "faster").any()
                else " Choose it for memory and disk, not for speed."
            )
        )
        unheld = (
            " The base is held to the instructions of AVX2, ark is not."
            if workloads.kernel.astype(str).str.startswith("ark").any()
            else ""
        )
        lines.append(f"**Speed.** {study.labels[name]} against the base: {'; '.join(said)}.{use}{unheld}")
    return lines


def _loads(rows: pd.DataFrame) -> list[str]:
    """Workloads in words: 'pages in batches of 1 and 4'."""
    return [
        f"{KINDS.get(kind, kind)} in batches of {md.listing([str(b) for b in t.batch])}"
        for kind, t in rows.groupby("kind", sort=False)
    ]


def _fits(study: Study) -> str:
    frame = speed.fits(study)
    if frame.empty:
        return missing("inspect", "the sizes of the published models")
    gigabytes = {
        name: [md.significant(value / 1e9) for value in frame[name]]
        for name in frame
        if name.endswith("_bytes")
    }
    cards = {
        f"{kind}_card": [
            _card(peak, card) for peak, card in zip(frame[f"{kind}_bytes"], frame[f"{kind}_card_gb"])
        ]
        for kind, _ in speed.BATCHES
    }
    return table(frame.assign(**gigabytes, **cards), FITS)


def _card(peak: float, card: float) -> str:
    if np.isnan(peak):
        return md.MISSING
    return f"over {max(speed.CARDS_GB)} GB" if np.isnan(card) else f"{card:.0f} GB"


def _kernels(study: Study) -> str:
    if study.results.census is None:
        return missing("benchmark", "which kernel each layer runs on")
    rows = study.results.census.assign(
        label=lambda t: [study.labels.get(name, name) for name in t.variant],
        tower=lambda t: t.tower.str.replace("_", " "),
    )
    return table(
        rows,
        {
            "label": "Variant",
            "tower": "Part",
            "kernel": "Kernel",
            "weight_bits": "Weight bits",
            "layers": "Layers",
        },
    )


def _ceilings(study: Study) -> str:
    limits = study.results.ceilings
    if limits is None or "copy_bytes_per_s" not in limits:
        return missing("benchmark", "the machine's own limits")
    rows = [("Copy in memory (GB/s)", md.significant(limits["copy_bytes_per_s"] / 1e9))]
    rows += [
        (f"Matrix multiplication, {key.removesuffix('_flop_per_s')} (GFLOP/s)", md.significant(value / 1e9))
        for key, value in limits.items()
        if key.endswith("_flop_per_s")
    ]
    return md.table(["Measured limit", "Rate"], rows)


def _memory(study: Study) -> str:
    wide = speed.memory_table(study)
    if wide.empty:
        return missing("benchmark", "memory")
    base = wide.loc[study.experiment.base] if study.experiment.base in wide.index else None
    rows = []
    for name, row in wide.iterrows():
        changes = [
            100 * (row[m] / base[m] - 1) if base is not None and name != study.experiment.base else np.nan
            for m in wide.columns
        ]
        rows.append(
            (
                study.labels[name],
                *(
                    md.significant(row[m] / 1e6)
                    + ("" if np.isnan(c) else f" ({md.number(c, 1, True, ' %')})")
                    for m, c in zip(wide.columns, changes)
                ),
            )
        )
    return md.table(["Variant", *(f"{METRICS[m]} (MB)" for m in wide.columns)], rows)


def _comparison(study: Study) -> str:
    ratios = speed.ratios(study)
    if ratios.empty:
        return missing("benchmark", "latency against the base")
    rows = [
        (
            study.labels[r.variant],
            KINDS.get(r.kind, r.kind),
            r.batch,
            md.number(r.tokens_per_call, 0),
            r.kernel,
            md.value_ci(r.ratio, r.low, r.high, 2),
            r.word,
        )
        for _, r in ratios.iterrows()
    ]
    return md.table(
        ["Variant", "Workload", "Batch", "Tokens per call", "Kernel", "Latency / base", "In this run"],
        rows,
        left=2,
    )


def _details(study: Study) -> str:
    """A table per workload with everything measured, and the rows that failed."""
    if study.results.rows is None:
        return missing("benchmark", "the detailed results")
    header = [
        "Variant",
        "Kernel",
        "Samples",
        "Items/s",
        "Mean (ms)",
        "Median (ms)",
        "Std (ms)",
        "p90 (ms)",
        "p99 (ms)",
        "First call (ms)",
        "Load (s)",
        "Times the roofline limit",
    ]
    parts = []
    for (kind, batch), rows in study.results.rows.groupby(["kind", "batch"], sort=False):
        cells = [(study.labels[r.variant], *_detail(r)) for _, r in rows.iterrows()]
        parts.append(
            f"**{KINDS.get(kind, kind).capitalize()}, batch {int(batch)}**\n\n"
            + md.table(header, cells, left=2)
        )
    failed = study.results.rows[study.results.rows.error != ""]
    errors = "".join(
        f"\n- {study.labels[r.variant]}, {KINDS.get(r.kind, r.kind)}, batch {int(r.batch)}: {md.cell(r.error)}"
        for _, r in failed.iterrows()
    )
    return "\n\n".join(parts + ([f"Failed:\n{errors}"] if errors else []))


def _detail(r) -> list[str]:
    if not np.isfinite(r.latency_s_mean):
        return ["failed", *([md.MISSING] * 10)]
    times = [_milliseconds(r.get(f"latency_s_{k}")) for k in ("mean", "median", "std", "p90", "p99")]
    return [
        r.get("kernel"),
        int(r.n_samples),
        md.significant(r.get("items_per_s")),
        *times,
        _milliseconds(r.get("first_call_s")),
        md.significant(r.get("load_s")),
        md.significant(r.get("times_floor")),
    ]


def _milliseconds(seconds) -> str:
    return md.MISSING if seconds is None else md.significant(1e3 * seconds)
