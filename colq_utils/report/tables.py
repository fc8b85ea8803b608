"""A frame as a markdown table: the name of a column decides how its values are written, and nothing else.

`*_bytes` become MB (10^6 bytes), `*_pct` and `*_share` percent, `*_s` milliseconds, all to three
significant digits, as scores and cosines; whole numbers show their thousands, truths become yes and no.
A column that the frame lacks was not measured.
"""

import numpy as np
import pandas as pd

from colq_utils.report import markdown as md

#: End of a column's name -> how a value is written.
FORMATS = {
    "bytes": lambda v: md.significant(v / 1e6),
    "share": lambda v: md.significant(100 * v),
    "_s": lambda v: md.significant(v * 1e3),
    **dict.fromkeys(("pct", "score", "query_mean", "page_mean"), md.significant),
}


def table(frame: pd.DataFrame, columns: dict[str, str], left: int | None = None) -> str:
    """`columns` (name -> heading) as a table, the first `left` (or all up to a number) aligned left."""
    frame = frame.reindex(columns=list(columns))
    if left is None:
        left = next((i for i, name in enumerate(columns) if _is_number(frame[name])), len(columns))
    cells = [[_written(name, value) for value in frame[name]] for name in columns]
    return md.table(list(columns.values()), zip(*cells), max(1, left))


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _written(name: str, value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return md.yes_no(value)
    if pd.isna(value):
        return md.MISSING
    for end, written in FORMATS.items():
        if name.endswith(end):
            return written(float(value))
    return md.number(value, 0) if float(value).is_integer() else md.significant(value)
