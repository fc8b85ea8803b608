"""Every printed value of the published reports against its recomputation from other printed values."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd

from colq_utils.report import stats
from studies.published.figures_data import ORIGINAL, Published, percent, saved

REPRODUCED, ROUNDING, DIFFERS, AS_PUBLISHED = "reproduced", "within rounding", "differs", "as published"
#: Decimals of a number that is counted or computed, not printed.
EXACT = 9


def table(p: Published) -> pd.DataFrame:
    """A row a printed value; `recomputed` is NaN where its inputs are not printed."""
    parts = (_tasks, _averages, _counts, _sizes, _speed, _serving, _recommendations)
    columns = ["source", "table", "what", "printed", "recomputed", "status"]
    return pd.DataFrame([row for part in parts for row in part(p)], columns=columns)


def compared(
    printed: float, digits: int, inputs: list[tuple[float, int]], formula: Callable[..., float]
) -> tuple[float, str]:
    """Recompute a printed value from printed inputs.

    Args:
        digits: decimals of the printed value.
        inputs: values with their decimals.

    Returns:
        The recomputed value and how it compares: reproduced to the last digit; within what rounding of the
        inputs allows; or neither.
    """
    value, half = formula(*(v for v, _ in inputs)), 0.5 * 10.0**-digits
    if abs(printed - value) <= half * (1 + 1e-9):
        return value, REPRODUCED
    ranges = [(v - 0.5 * 10.0**-d, v + 0.5 * 10.0**-d) for v, d in inputs]
    corners = [formula(*corner) for corner in product(*ranges)]
    inside = min(corners) - half - 1e-12 <= printed <= max(corners) + half + 1e-12
    return value, ROUNDING if inside else DIFFERS


def _row(
    r, what: str, printed: float, digits: int, inputs: list, formula: Callable[..., float] = float
) -> tuple:
    return r.source, r.table, what, printed, *compared(printed, digits, inputs, formula)


def _as_published(r, what: str, printed: float) -> tuple:
    return r.source, r.table, what, printed, np.nan, AS_PUBLISHED


def _change(r, what: str, new: float, old: float, decimals: int = 5, digits: int = 2) -> tuple:
    """The row of a printed change in percent, from two values printed with `decimals`."""
    return _row(r, f"{what}, change (%)", r.change_pct, digits, [(new, decimals), (old, decimals)], percent)


def _tasks(p: Published):
    for r in p.scores_by_task.assign(table="NDCG@5 Performance Comparison").itertuples():
        what = f"{r.task}, {r.variant}"
        yield _as_published(r, f"{what}, NDCG@5", r.ndcg_at_5)
        if r.variant != ORIGINAL:
            yield _change(r, what, r.ndcg_at_5, p.english.loc[r.task, ORIGINAL])


def _averages(p: Published):
    for (source, *_), group in p.averages.groupby(["source", "table", "model", "scope"], sort=False):
        own = source == p.own  # the mean is recomputed from the task scores where the report prints them
        means = p.english.mean() if own else group.set_index("variant").ndcg_at_5
        for r in group.itertuples():
            what = f"{r.model}, {r.scope}, {r.variant}"
            if own:
                yield _row(r, f"{what}, average", r.ndcg_at_5, 5, [(means[r.variant], 5)])
            else:
                yield _as_published(r, f"{what}, average", r.ndcg_at_5)
            if r.variant != ORIGINAL:
                yield _change(r, what, means[r.variant], means[ORIGINAL])


def _counts(p: Published):
    for r in p.counts.itertuples():
        what = f"{r.model}, {r.scope}, {r.variant}"
        improved, unchanged, degraded = stats.win_tie_loss(p.differences[r.variant])
        recomputed = {"improved": improved, "degraded": degraded, "unchanged": unchanged}
        for word, count in recomputed.items():
            if r.source == p.own:
                yield _row(r, f"{what}, {word}", getattr(r, word), 0, [(count, EXACT)])
            else:
                yield _as_published(r, f"{what}, {word}", getattr(r, word))
        total = r.improved + r.degraded + r.unchanged
        yield _row(r, f"{what}, sum of the counts", r.entries, 0, [(total, EXACT)])


def _sizes(p: Published):
    for r in p.sizes.dropna(subset="reduction_pct").itertuples():
        digits = 1 if r.table == "Memory Efficiency" else 0
        inputs = [(r.original_gb, 1), (r.quantized_gb, 1)]
        yield _row(r, f"{r.model}, {r.quantity}, reduction (%)", r.reduction_pct, digits, inputs, saved)


def _speed(p: Published):
    for r in p.benchmark_8b.dropna(subset="change_pct").itertuples():
        yield _change(r, f"8b, {r.metric}", r.quantized, r.original, 0, 1)
    detail = p.benchmark_8b[p.benchmark_8b.table == "Text Queries Benchmark"].set_index("metric")
    steps = int(p.setting("measurement steps"))
    for column in ("original", "quantized"):
        printed = detail[column]
        items, time_s = printed["total items"], [(printed["total time"], 3)]
        row = detail.loc["throughput"]
        yield _row(
            row, f"8b, {column}, throughput", printed["throughput"], 1, time_s, lambda t, n=items: n / t
        )
        row = detail.loc["mean latency"]
        yield _row(
            row, f"8b, {column}, mean latency", printed["mean latency"], 2, time_s, lambda t: 1000 * t / steps
        )


def _serving(p: Published):
    for r in p.fp8_serving.dropna(subset="change_pct").itertuples():
        yield _change(r, f"FP8, {r.metric}", r.quantized, r.original, 1 if r.unit == "GB" else 0, 0)
    served = p.fp8_serving[p.fp8_serving.table == "Results"].set_index("metric")
    n = int(p.setting("requests of a configuration"))
    for column in ("original", "quantized"):  # the first request, the slowest, is the warm-up
        printed, row = served[column], served.loc["steady-state latency"]
        what = f"FP8, {column}, mean of the requests after the first (ms)"
        inputs = [(printed["mean latency"], 0), (printed["maximum latency"], 0)]
        yield _row(row, what, row[column], -1, inputs, lambda mean, first: (n * mean - first) / (n - 1))


def _recommendations(p: Published):
    averages = p.averages[p.averages.scope == "all languages"]
    for r in p.recommendations.dropna(subset="change_pct").itertuples():
        rows = averages[
            (averages.model == ("8b" if "8b" in r.scenario else "4b")) & (averages.source == r.source)
        ]
        scores = rows.set_index("variant").ndcg_at_5
        yield _change(r, f"{r.scenario}, {r.recommendation}", scores[r.recommendation], scores[ORIGINAL])
