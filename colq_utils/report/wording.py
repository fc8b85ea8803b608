"""What an interval shows, in words: the one place that turns verdicts into what a reader is told.

The codes of `stats.verdict` stay in result files, where code compares them; texts use these words instead.
"""

import numpy as np
import pandas as pd

from colq_utils.report import stats
from colq_utils.report.analysis import Study
from colq_utils.report.markdown import MISSING, change_ci, number, p_value, significant

UNDECIDED = "undecided"


def change(low: float, high: float, margin: float) -> str:
    """What the 95 % interval of (variant - base) shows against a margin.

    Args:
        low, high, margin: in NDCG units; the words are in points.
    """
    verdict = stats.verdict(low, high, margin)
    if verdict == "not measured":
        return MISSING
    if verdict == "non-inferior":
        return f"within the margin of {100 * margin:g}"
    if verdict == "inferior":
        return f"loses at least {_points(-high)} points"
    if verdict == "at the margin":
        return f"at the margin: between {_points(low, True)} and {_points(high, True)}"
    if verdict == "lower":
        return f"loses between {_points(-high)} and {_points(-low)} points"
    return f"{UNDECIDED}: between {_points(low, True)} and {_points(high, True)}"


def pair(low: float, high: float) -> str:
    """What the interval of (first - second) shows about the first of a pair."""
    if not stats.resolved(low, high):
        return UNDECIDED
    return "higher" if low > 0 else "lower"


def speed(low: float, high: float) -> str:
    """What the interval of a ratio of latencies (variant / base) shows about the variant."""
    if np.isnan([low, high]).any():  # no calls to compare
        return MISSING
    if low > 1:
        return "slower"
    return "faster" if high < 1 else UNDECIDED


def averages(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `analysis.averages` with the words of the tables; those of a change are '-' for the base."""
    margin, rows = study.experiment.evaluation.margin, table.to_dict("records")
    words = {
        "change": [change_ci(r["diff"], r["diff_low"], r["diff_high"]) for r in rows],
        "shows": [change(r["diff_low"], r["diff_high"], margin) for r in rows],
        "detectable": [significant(100 * r["mdd"]) for r in rows],
        "tested": [_tested(r["p"], r["p_holm"]) for r in rows],
        "queries": [_counts(r["wins"], r["ties"], r["losses"], r["diff"]) for r in rows],
    }
    words = pd.DataFrame(words, index=table.index).mask(table.variant == study.experiment.base, "-")
    return table.assign(label=table.variant.map(study.labels), **words)


def pairs(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `analysis.pairs` in words: names, change (points, or margin x 1000), what is shown."""
    first, second = table["first"].map(study.labels), table.second.map(study.labels)
    scales = table.measure.map({"ndcg": 100, "margin": 1000})
    words = pd.Series([pair(*limits) for limits in zip(table.low, table.high)], table.index, dtype=object)
    return table.assign(
        label=first + " minus " + second,
        sentence=first + " scores " + words + " than " + second,
        below=first + " below " + second,
        change=[change_ci(*change) for change in zip(table["diff"], table.low, table.high, scales)],
        word=words,
    )


def _tested(p: float, p_holm: float) -> str:
    """The adjusted p-value; '-' for a variant that was tested but is not quantized, so not adjusted."""
    return "-" if np.isnan(p_holm) and np.isfinite(p) else p_value(p_holm)


def _counts(wins: int, ties: int, losses: int, diff: float) -> str:
    return f"{wins}/{ties}/{losses}" if np.isfinite(diff) else MISSING


def _points(value: float, signed: bool = False) -> str:
    """NDCG units as points with one decimal, or two where one would read as nothing; 0 is 0."""
    if abs(100 * value) < 0.005:
        return "0"
    return number(100 * value, 1 if abs(100 * value) >= 0.05 else 2, signed)
