"""Numbers and tables as markdown: one place decides digits, units, signs and what a missing value is called.

A number that was not measured is written as such, never as an empty cell or a zero. MB are 10^6 bytes,
points are NDCG@5 x 100. No numbers are computed here beyond the change of unit.
"""

import math
from collections.abc import Iterable, Sequence

import pandas as pd

MISSING = "not measured"


def table(header: Sequence[str], rows: Iterable[Sequence], left: int = 1) -> str:
    """A markdown table; the first `left` columns are aligned left, the others right."""
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


def cell(value) -> str:
    """Text of a table cell, safe inside a table."""
    text = yes_no(value) if _missing(value) or isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def number(value, digits: int = 2, signed: bool = False, unit: str = "") -> str:
    """A number with fixed digits, '-0.00' written as '0.00'; `unit` is appended as given."""
    if _missing(value):
        return MISSING
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    if not any(c in text for c in "123456789"):
        text = text.lstrip("+-")
    return text + unit


def significant(value, digits: int = 3, signed: bool = False, unit: str = "") -> str:
    """A number with so many significant digits: 30.1, 0.807, 1,230."""
    if _missing(value):
        return MISSING
    rounded = float(f"{value:.{digits}g}")
    decimals = 0 if rounded == 0 else max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return number(rounded, decimals, signed, unit)


def change_ci(diff, low, high, scale: float = 100) -> str:
    """A difference (in points, unless scaled) with its interval: two decimals, one from ten on."""
    if _missing(diff):
        return MISSING
    largest = max(abs(scale * value) for value in (diff, low, high) if not _missing(value))
    return value_ci(diff, low, high, 2 if largest < 9.995 else 1, signed=True, scale=scale)


def score(value) -> str:
    """NDCG@5 between 0 and 1, four decimals."""
    return number(value, 4)


def score_ci(value, low, high) -> str:
    """NDCG@5 with its interval."""
    return value_ci(value, low, high, 4)


def points_ci(diff, low, high) -> str:
    """A difference in points (NDCG@5 x 100) with its interval."""
    return value_ci(diff, low, high, 2, signed=True, scale=100)


def percent_ci(diff, low, high, base) -> str:
    """A difference in percent of `base`, the interval scaled alike (the base's score taken as fixed)."""
    if _missing(diff) or _missing(base) or base == 0:
        return MISSING
    return number(100 * diff / base, 2, True, "%") + _brackets(low, high, 2, 100 / base, True)


def value_ci(value, low, high, digits: int, signed: bool = False, scale: float = 1) -> str:
    """Any value with its interval, multiplied by `scale`."""
    if _missing(value):
        return MISSING
    return number(scale * value, digits, signed) + _brackets(low, high, digits, scale, signed)


def megabytes(n_bytes, digits: int = 2) -> str:
    """Bytes as MB (10^6 bytes), without the unit."""
    return MISSING if _missing(n_bytes) else number(n_bytes / 1e6, digits)


def milliseconds(seconds, digits: int = 2) -> str:
    """Seconds as ms, without the unit."""
    return MISSING if _missing(seconds) else number(seconds * 1e3, digits)


def p_value(value) -> str:
    """A p-value with four decimals."""
    return "< 0.0001" if not _missing(value) and value < 1e-4 else number(value, 4)


def yes_no(value) -> str:
    """A truth value out of a CSV file."""
    if _missing(value):
        return MISSING
    return "yes" if str(value).lower() in ("true", "1", "1.0", "yes") else "no"


def listing(items: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    items = list(items)
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else "none"


def label_list(items: Sequence[str]) -> str:
    """As `listing`, with semicolons between three or more names that hold commas themselves."""
    items = list(items)
    if len(items) > 2 and "," in "".join(items):
        return "; ".join(items[:-1]) + f"; and {items[-1]}"
    return listing(items)


def document(*sections: str) -> str:
    """Sections (empty ones left out) as one text with one newline at its end."""
    return "\n\n".join(s.strip("\n") for s in sections if s) + "\n"


def fold(title: str, body: str) -> str:
    """`body` behind a line to click on; the blank lines let the markdown inside render."""
    return f"<details>\n<summary>{title}</summary>\n\n{body.strip()}\n\n</details>"


def picture(path: str, caption: str) -> str:
    """A figure with its caption below."""
    return f"![{caption}]({path})\n\n*{caption}*"


def _brackets(low, high, digits: int, scale: float, signed: bool) -> str:
    if _missing(low) or _missing(high):
        return f" [interval {MISSING}]"
    return f" [{number(scale * low, digits, signed)}, {number(scale * high, digits, signed)}]"


def _missing(value) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA
