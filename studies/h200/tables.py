"""Speed ratios with intervals: all of them, the README's, and the fastest variant by workload."""

import pandas as pd

from colq_utils.base import config
from colq_utils.report import markdown as md
from colq_utils.report import stats
from studies.h200.speed import EXPERIMENTS, KINDS, PAGES, PUBLISHED, QUERIES, Speed
from studies.h200.words import page, scheme

#: Around the snippet of `headline` in the README.
SPEED_MARKER = "<!-- speed -->"
HOW_TO_READ = (
    "Ratios of median forward passes per call; brackets resample processes and calls (too few processes for "
    "a 95 % interval); above 1 is faster. Memory: peak of what torch allocates."
)
#: Workloads of the README's table: kind, batch, heading.
HEADLINE = (
    (QUERIES, 1, "1 query"),
    (QUERIES, 8, "8 queries"),
    (QUERIES, 32, "32 queries"),
    (PAGES, 8, "8 pages"),
)


def _comparisons(speed: Speed) -> list[tuple]:
    """What a user decides on: label, variant, the one it is compared with, workload, batch."""
    eager, base, w4, fp8, small = speed.eager, speed.base, speed.w4, speed.fp8, speed.small
    eight = "FP8 with the vision tower" if fp8 and speed.experiment.by_id[fp8].vision else "FP8"
    same, fast = "against bf16 on the same path", "bf16 on the fast path, against the base as published"
    queries = [(QUERIES, batch) for batch in (1, 8, 32, 128)]
    loads = ((PUBLISHED, 8), (QUERIES, 32), (QUERIES, 128), (PAGES, 1), (PAGES, 8))
    return [
        ("W4A16, against the base as published", w4, eager, PUBLISHED, 8),
        *((f"W4A16, {same}", w4, base, *load) for load in [*queries, (PUBLISHED, 8)]),
        ("W4A16, all eight-bit options, against bf16", small, base, QUERIES, 8),
        *((f"{eight}, {same}", fp8, base, *load) for load in queries),
        *((fast, base, eager, *load) for load in loads),
        (f"W4A16, {same}", w4, base, PAGES, 8),
        (f"{eight}, {same}", fp8, base, PAGES, 8),
    ]


def ratios(speed: Speed) -> pd.DataFrame:
    """Ratios of medians with intervals (`stats.median_ratio`): label, kind, batch, ratio, low, high."""
    rows = []
    for label, ours, theirs, kind, batch in _comparisons(speed):
        ratio = speed.ratio(ours, theirs, kind, batch)
        if ratio is not None:
            rows.append((label, kind, batch, *ratio))
    return pd.DataFrame(rows, columns=["label", "kind", "batch", "ratio", "low", "high"])


def ratios_table(speed: Speed) -> str:
    table = ratios(speed)
    table["speed"] = [md.value_ci(*row, 2) for row in zip(table["ratio"], table["low"], table["high"])]
    table["kind"] = table["kind"].map(KINDS)
    base = speed.row(speed.base, PUBLISHED, 8)
    return page("ratios.md.j2", speed, rows=table, base=base)


def headline(speed: Speed) -> str:
    """A size in the README: speed of each scheme against bf16 on the same path, and what the GPU holds."""
    loads = [(kind, batch) for kind, batch, _ in HEADLINE]
    medians = [speed.row(speed.base, *load) for load in loads]
    rows = [["BF16", *(_one(row) for row in medians), _peak_gb(speed, speed.base)]]
    for name in filter(None, (speed.fp8, speed.w4, speed.small)):
        times = [_times(speed.ratio(name, speed.base, *load)) for load in loads]
        rows.append([scheme(speed.experiment.by_id[name]), *times, _peak_gb(speed, name)])
    plain = [ratio[0] for load in loads if (ratio := speed.ratio(speed.base, speed.eager, *load)) is not None]
    header = ["Weights", *(heading for *_, heading in HEADLINE), "Peak memory, 32 queries (GB)"]
    return page("headline.md.j2", speed, table=md.table(header, rows), plain=pd.Series(plain)).strip()


def readme() -> str:
    """The README's snippet: both sizes, and how to read them."""
    sizes = [headline(Speed(config.load(EXPERIMENTS[size]))) for size in ("8b", "4b")]
    return "\n\n".join([*sizes, HOW_TO_READ])


def _one(row: pd.Series | None) -> str:
    return md.MISSING if row is None else f"1 ({md.significant(1e3 * row.latency_s_median)} ms)"


def _times(ratio: tuple | None) -> str:
    return md.MISSING if ratio is None else md.value_ci(*ratio, 2)


def _peak_gb(speed: Speed, name: str) -> str:
    peak = speed.peak(name, QUERIES, 32)
    return md.MISSING if not peak else md.significant(peak / 1e9)


def best(speed: Speed) -> pd.DataFrame:
    """The fastest variant by workload and batch, its speed against bf16, and who is as fast.

    Of variants without a detected difference from the fastest, the one that is named first counts.
    """
    base, rows, measured = speed.base, [], speed.rows[speed.rows.latency_s_median.notna()]
    for (kind, batch), subset in measured.groupby(["kind", "batch"], sort=False):
        if base not in set(subset.variant):
            continue
        fastest = subset.loc[subset.latency_s_median.idxmin()].variant
        names = [name for name in speed.names if name in set(subset.variant)]
        tied = [name for name in names if _as_fast(speed, fastest, name, kind, batch)]
        ratio, low, high = stats.median_ratio(
            speed.calls(base, kind, batch), speed.calls(tied[0], kind, batch)
        )
        row = {
            "kind": kind,
            "batch": int(batch),
            "variant": tied[0],
            "ratio": ratio,
            "low": low,
            "high": high,
        }
        rows.append(row | {"resolved": base not in tied and low > 1, "tied": tied[1:]})
    return pd.DataFrame(rows)


def _as_fast(speed: Speed, fastest: str, name: str, kind: str, batch: int) -> bool:
    if name == fastest:
        return True
    calls = speed.calls(name, kind, batch), speed.calls(fastest, kind, batch)
    return stats.median_ratio(*calls)[1] <= 1


def recommendations(speed: Speed) -> str:
    rows = []
    for _, r in best(speed).iterrows():
        row = {"workload": KINDS[r.kind], "batch": r.batch, "fastest": f"`{speed.base}`", "tied": "-"}
        row["speed"] = "we detect no faster variant"
        if r.resolved:
            row |= {"fastest": f"`{r.variant}`", "speed": md.value_ci(r.ratio, r.low, r.high, 2)}
            row["tied"] = md.listing([f"`{name}`" for name in r.tied]) if r.tied else "-"
        rows.append(row)
    peaks = ((speed.peak(name, PUBLISHED), name) for name in speed.names)
    least = min((peak for peak in peaks if peak[0]), default=None)
    return page("recommendations.md.j2", speed, rows=rows, least=least)
