"""A frame as a markdown table: the name of a column decides how its values are written, and nothing else does.

`*_bytes` become MB (10^6 bytes), `*_pct` and `*_share` percent, `*_s` milliseconds, all with three significant digits;
scores have three, whole numbers their thousands; text stands as it is.
"""

import pandas as pd

from colq_utils.report import markdown as md

#: End of a column's name -> how a value is written.
FORMATS = {
    "bytes": lambda v: md.significant(v / 1e6),
    "pct": md.significant,
    "share": lambda v: md.significant(100 * v),
    "_s": lambda v: md.significant(v * 1e3),
    "score": md.significant,
    "points": lambda v: md.number(v, 2),
}


def table(frame: pd.DataFrame, columns: dict[str, str]) -> str:
    """`columns` of a frame (name -> heading) as a table; columns of text on the left are aligned left."""
    texts = [name for name in columns if not pd.api.types.is_numeric_dtype(frame[name])]
    left = next((i for i, name in enumerate(columns) if name not in texts), len(columns))
    return md.table(
        list(columns.values()),
        zip(*([_written(name, v) for v in frame[name]] for name in columns)),
        max(1, left),
    )


def _written(name: str, value) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return md.MISSING
    if isinstance(value, bool):
        return md.yes_no(value)
    written = next((FORMATS[end] for end in FORMATS if name.endswith(end)), None)
    return (
        written(float(value))
        if written
        else md.number(value, 0)
        if float(value).is_integer()
        else md.significant(value)
    )
