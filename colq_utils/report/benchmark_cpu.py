"""benchmark.md: memory and speed, each number beside the kernel that made it.

Reads the benchmark stage alone, the predicted sizes of the published models, and what the GPU runs of their
dimensions held. This module makes frames, the template words them.
"""

import numpy as np
import pandas as pd

from colq_utils.report import markdown as md
from colq_utils.report import speed, wording
from colq_utils.report.analysis import Study
from colq_utils.report.parts import environment, figures, page
from colq_utils.report.speed import KINDS, METRICS

#: Drawn by 01_inspect and 04_benchmark.
OTHERS = {
    "throughput_queries.png": "Text queries per second.",
    "throughput_pages.png": "Pages per second.",
    "memory.png": "Memory.",
    "bytes_per_tower.png": "Bytes of the checkpoint by part, stored and predicted.",
}
WORDS = ("faster", "slower", wording.UNDECIDED, md.MISSING)


def write(study: Study) -> str:
    """The whole report as markdown; every part says 'not measured' where the stage has not run."""
    ratios, memory, results = speed.ratios(study), _memory(study), study.results
    return page(
        "benchmark.md.j2",
        study,
        slower=(ratios.word[ratios.variant.isin(speed.packed(study))] == "slower").any(),
        packed=speed.packed(study),
        tensors=speed.memory_table(study).get("tensors_bytes", pd.Series()),
        speeds=[_speed(name, rows) for name, rows in ratios.groupby("variant", sort=False)],
        ratios=_compared(study, ratios),
        memory=memory,
        metrics={"label": "Variant"}
        | {name: f"{words} (MB)" for name, words in METRICS.items() if name in memory},
        fits=speed.fits(study),
        cards_gb=speed.CARDS_GB,
        left_out=(results.benchmark_environment or {}).get("left_out", []),
        census=_census(study),
        limits=results.ceilings or {},
        machine=environment(results.benchmark_environment, "benchmark"),
        rows=_rows(study),
        more=figures(study, OTHERS, name_missing=False),
    )


def _speed(name: str, rows: pd.DataFrame) -> dict:
    """What the ratios of one variant show: the workloads of each word."""
    workloads = {word: _workloads(rows[rows.word == word]) for word in WORDS}
    return {"name": name, "workloads": workloads, "ark": speed.ran_ark(rows)}


def _workloads(rows: pd.DataFrame) -> list[str]:
    """Workloads in words: 'pages in batches of 1 and 4'."""
    batches = rows.batch.astype(str).groupby(rows.kind, sort=False).agg(md.listing)
    return [f"{KINDS.get(kind, kind)} in batches of {each}" for kind, each in batches.items()]


def _compared(study: Study, ratios: pd.DataFrame) -> pd.DataFrame:
    written = [md.value_ci(r.ratio, r.low, r.high, 2) for r in ratios.itertuples()]
    return _named(study, ratios).assign(ratio=written, tokens_per_call=ratios.tokens_per_call.round())


def _named(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(label=rows.variant.replace(study.labels), workload=rows.kind.replace(KINDS))


def _memory(study: Study) -> pd.DataFrame:
    """MB of each metric as text, with the change against the base in brackets."""
    wide, base = speed.memory_table(study), study.experiment.base
    change = 100 * (wide / wide.reindex([base]).iloc[0] - 1)
    change[change.index == base] = np.nan
    table = pd.DataFrame({"label": wide.index.map(study.labels)}, index=wide.index)
    for metric in wide:
        brackets = [f" ({md.number(c, 1, True, ' %')})" if c == c else "" for c in change[metric]]
        table[metric] = wide[metric].div(1e6).map(md.significant) + brackets
    return table


def _census(study: Study) -> pd.DataFrame | None:
    census = study.results.census
    if census is None:
        return None
    return census.assign(label=census.variant.replace(study.labels), tower=census.tower.str.replace("_", " "))


def _rows(study: Study) -> pd.DataFrame | None:
    """Everything measured, ready for the tables by workload."""
    rows = study.results.rows
    if rows is None:
        return None
    written = rows.filter(["items_per_s", "load_s", "times_floor"]).map(md.significant)
    ms = (1e3 * rows.filter(like="latency_s_")).map(md.significant)
    kernel = rows.kernel.mask(rows.latency_s_mean.isna(), "failed")
    errors = rows.error.map(md.cell)
    return _named(study, rows).assign(kernel=kernel, error=errors, **written, **ms)
