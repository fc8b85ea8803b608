"""What an interval shows, in words: the one place that turns verdicts into what a reader is told.

The verdict codes of `stats.verdict` stay in result files, where code compares them; texts use these words instead.
"""

from colq_utils.report import stats
from colq_utils.report.markdown import MISSING, number

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
    if verdict == "lower" and -100 * high < 0.005:
        return f"loses up to {_points(-low)} points"
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
    if not (low == low and high == high):  # NaN: no calls to compare
        return MISSING
    return "slower" if low > 1 else "faster" if high < 1 else UNDECIDED


def detectable(points: float, unit: str = "points", digits: int = 2) -> str:
    """How fine the benchmark is, in one sentence."""
    return f"This benchmark reliably detects (80 % power) differences of {number(points, digits)} {unit} or more."


def _points(value: float, signed: bool = False) -> str:
    """NDCG units as points with one decimal, or two where one would read as nothing; 0 is 0."""
    if abs(100 * value) < 0.005:
        return "0"
    return number(100 * value, 1 if abs(100 * value) >= 0.05 else 2, signed)
