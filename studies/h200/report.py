"""benchmark_4b.md and benchmark_8b.md: speed and memory on one GPU, the answer first, details folded.

Sentences are chosen by the measured ratios and their intervals. Reads the inspect and benchmark stages alone;
the folded tables, with every row of the published benchmark, come from the modules that `FOLDED` names.
"""

from pathlib import Path

from colq_utils.base import config, files
from colq_utils.base.config import Experiment
from colq_utils.report import markdown as md
from colq_utils.report.build import update_readme
from studies.h200 import detail, published, runs, tables, targets, words
from studies.h200.speed import KINDS, PAGES, PUBLISHED, QUERIES, Speed

#: Title of a folded part and the function that writes it.
FOLDED = (
    ("Targets: which were met, which were missed and why", targets.text),
    ("All speed ratios with intervals", tables.ratios_table),
    ("Which variant is fastest, workload by workload", tables.recommendations),
    ("Memory for text queries, with the published figures", published.memory_summary),
    ("Throughput for text queries, with the published figures", published.throughput_summary),
    ("Text queries as published, every row", published.as_published),
    ("Text queries of real lengths and pages, every batch size", runs.workloads),
    ("Loading and the first call", runs.loading),
    ("Where the time of a call goes", detail.profile),
    ("Predicted and measured bytes", detail.predicted),
    ("Eight-bit options for the embedding table and the vision tower", detail.options),
    ("Why 4 bits are slower or faster", detail.why),
    ("Scoring: MaxSim of queries against pages", detail.scoring),
    ("What quantizing costs", detail.cost),
    ("Do the fast path and the plain path agree?", detail.agreement),
    ("4B and 8B", published.sizes),
    ("Variants and their kernels", runs.overview),
    ("How it was measured", runs.notes),
    ("Test environment", runs.environment),
    ("How to run it again", runs.reproduction),
    ("More figures", words.figures),
)
LOADS = (
    ("1 query", QUERIES, 1),
    ("8 queries", QUERIES, 8),
    ("32 queries", QUERIES, 32),
    ("128 queries", QUERIES, 128),
    ("8 pages", PAGES, 8),
)
#: What a ratio has to be to count in a headline: speeds of one sweep differ by a few per cent from another's.
CLEAR = 1.05


def write(experiment: Experiment) -> Path:
    """Write the report into results/<experiment>/reports/.

    Raises:
        ColqError: the benchmark stage has not run.
    """
    path = experiment.results("reports") / f"benchmark_{experiment.model.size}.md"
    return files.write_text(path, text(Speed(experiment)))


def text(speed: Speed) -> str:
    """The whole report."""
    failed = speed.rows[speed.rows.error.fillna("") != ""]
    opening = words.page(
        "report.md.j2",
        speed,
        paths=_ratios(speed, "base", "eager", [LOADS[i] for i in (0, 2, 4)]),
        four=_ratios(speed, "w4", "base", LOADS),
        eight=_ratios(speed, "fp8", "base", LOADS),
        clear=CLEAR,
        said=_said,
        peaks=_peaks(speed),
        targets=targets.reached(speed),
        single=speed.samples.groupby("variant")["round"].nunique().max() == 1,
        rows=_numbers(speed),
        picture=words.picture(speed, "gemms.png"),
        missing=tuple(f"`{name}`" for name in speed.missing),
        failed=failed.assign(kind=failed.kind.map(KINDS).fillna(failed.kind)),
    )
    return md.document(opening, *(md.fold(title, part(speed)) for title, part in FOLDED))


def _ratios(speed: Speed, ours: str, theirs: str, loads) -> dict[str, tuple[float, float, float]]:
    """Speed ratio of two variants with its interval by workload in words, of those that were measured."""
    values = {load: targets.ratio(ours, theirs, kind, batch)(speed) for load, kind, batch in loads}
    return {load: value for load, value in values.items() if value is not None}


def _said(values: dict) -> str:
    return md.listing([f"{md.value_ci(*value, 2)} for {load}" for load, value in values.items()])


def _peaks(speed: Speed) -> tuple[str, ...]:
    """Peak memory of text queries in words, and what the smaller variants save."""
    peaks = {name: speed.peak(name, PUBLISHED) for name in (speed.base, speed.w4, speed.small) if name}
    peaks, phrases = {name: peak for name, peak in peaks.items() if peak}, []
    for name, peak in peaks.items():
        first = next(iter(peaks.values()))
        saved = "" if peak == first else f" (−{100 * (1 - peak / first):.0f} %)"
        phrases.append(f"{peak / 1e9:.2f} GB in {words.spoken(speed, name)}{saved}")
    return tuple(phrases)


def _numbers(speed: Speed) -> list[dict[str, str]]:
    """One row per variant: four workloads and the peak."""
    rows = []
    for name in speed.shown:
        row, peak = {"variant": words.spoken(speed, name)}, speed.peak(name, PUBLISHED)
        for kind, batch, heading in tables.HEADLINE:
            cell = speed.row(name, kind, batch)
            row[heading] = md.MISSING if cell is None else words.digits(1e3 * cell.latency_s_median)
        rows.append(row | {"peak": md.MISSING if peak is None else md.number(peak / 1e9, 2)})
    return rows


if __name__ == "__main__":
    print(update_readme(config.ROOT / "README.md", tables.readme(), tables.SPEED_MARKER))
