"""What the fast path is asked to reach on an H200, and how far each target was met; for a miss, what takes the time.

Targets are ratios of medians, or bytes. A target that is missed stays where it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from colq_utils.base.names import GRAIN, SAME
from colq_utils.report import markdown as md
from colq_utils.report import stats
from studies.h200.speed import PAGES, PUBLISHED, QUERIES

GIB = 1 << 30
#: The parts of a profile in the words of the report.
PART_NAMES = {
    "products": "GEMMs",
    "attention": "attention",
    "steps": "element-wise kernels",
    "rest": "everything else",
}


@dataclass(frozen=True)
class Target:
    """`wanted` of `what`, at least or (with `most`) at most; `sizes` it is asked of, and the two variants it compares.

    `value` gives a number, or a number with its interval, or None.
    """

    what: str
    sizes: tuple[str, ...]
    wanted: float
    value: Callable
    variants: tuple[str, ...] = ()
    kind: str = PUBLISHED
    batch: int = 8
    most: bool = False
    digits: int = 2


def ratio(ours: str, theirs: str, kind: str, batch: int) -> Callable:
    """The speed of role `ours` over role `theirs` (names of `Speed` properties) as a function of the results: ratio, low, high, or None."""

    def value(speed):
        names = [getattr(speed, role) for role in (theirs, ours)]
        if any(speed.row(name, kind, batch) is None for name in names):
            return None
        return stats.median_ratio(*(speed.calls(name, kind, batch) for name in names))

    return value


def _faster(what: str, ours: str, theirs: str, kind: str, batch: int, wanted: float, *sizes: str) -> Target:
    return Target(
        what, sizes or ("4b", "8b"), wanted, ratio(ours, theirs, kind, batch), (ours, theirs), kind, batch
    )


def _floors(speed):
    row = speed.row(speed.base, PUBLISHED, 8)
    return None if row is None else row.latency_s_median / row.floor_s


def _peak(variant: str) -> Callable:
    def value(speed):
        peak = speed.peak(getattr(speed, variant), PUBLISHED)
        return None if peak is None else peak / GIB

    return value


def _agreement(speed):
    table = speed.read("benchmark/agreement.csv")
    cosines = (
        None
        if table is None
        else table[(table.variant == speed.base) & table.kind.isin(["queries", "pages"])]["mean"]
    )
    return None if cosines is None or cosines.empty else cosines.min()


TARGETS = (
    _faster(
        "W4A16 on the fast path against bf16 on the plain path, text queries as published, batch 8 (times)",
        "w4",
        "eager",
        PUBLISHED,
        8,
        4.0,
        "4b",
    ),
    _faster(
        "W4A16 against bf16 on the fast path, real queries, batch 1 (times)",
        "w4",
        "base",
        QUERIES,
        1,
        1.15,
        "4b",
    ),
    _faster(
        "W4A16 against bf16 on the fast path, real queries, batch 1 (times)",
        "w4",
        "base",
        QUERIES,
        1,
        1.3,
        "8b",
    ),
    _faster(
        "W4A16 against bf16 on the fast path, real queries, batch 8 (times)", "w4", "base", QUERIES, 8, 0.95
    ),
    _faster(
        "W4A16 against bf16 on the fast path, real queries, batch 32 (times)", "w4", "base", QUERIES, 32, 0.95
    ),
    Target(
        "bf16 on the fast path against its roofline limit, text queries as published, batch 8 (times)",
        ("4b", "8b"),
        2.0,
        _floors,
        ("base",),
        most=True,
    ),
    _faster("FP8 against bf16 on the fast path, pages, batch 8 (times)", "fp8", "base", PAGES, 8, 1.5),
    Target(
        "Peak memory of W4A16, text queries as published (GiB; the published MB are 2^20 bytes)",
        ("8b",),
        5.9,
        _peak("w4"),
        most=True,
    ),
    Target("Peak memory of W4A16 with the eight-bit options (GiB)", ("8b",), 5.0, _peak("small"), most=True),
    Target(
        "Token cosine between the fast and the plain path, bf16",
        ("4b", "8b"),
        SAME,
        _agreement,
        kind="agreement",
        digits=5,
    ),
)


def reached(speed) -> pd.DataFrame:
    """The targets of a model size: what, wanted, measured (None if it was not) with low and high where there is an interval, met, and the `Target`."""
    rows = []
    for target in TARGETS:
        if speed.experiment.model.size in target.sizes:
            result = target.value(speed)
            value, low, high = result if isinstance(result, tuple) else (result, None, None)
            met = (
                None
                if value is None
                else bool(value <= target.wanted if target.most else value >= target.wanted)
            )
            rows.append(
                {
                    "what": target.what,
                    "wanted": target.wanted,
                    "measured": value,
                    "low": low,
                    "high": high,
                    "met": met,
                    "target": target,
                }
            )
    return pd.DataFrame(rows, dtype=object)


def text(speed) -> str:
    """The table of targets, and under it a line for each that was missed."""
    table = reached(speed)
    rows = [
        (
            r.what,
            f"{'≤' if r.target.most else '≥'} {md.number(r.wanted, 4 if r.target.digits > 2 else 2)}",
            md.number(r.measured, r.target.digits)
            if r.low is None
            else md.value_ci(r.measured, r.low, r.high, 2),
            _verdict(r),
        )
        for r in table.itertuples()
    ]
    lines = [_why(speed, r) for r in table.itertuples() if r.met is False]
    note = "\n\nThe parts are those of one batch under the profiler and need not add up to the timed call; see *Where the time of a call goes*."
    return md.table(["Target", "Wanted", "Measured", "Result"], rows, left=1) + (
        "\n\n" + "\n".join(lines) + note if lines else ""
    )


def _verdict(row) -> str:
    """Met or missed, and whether another sample of the calls could turn it."""
    if row.met is None:
        return md.MISSING
    word = "met" if row.met else "**missed**"
    return (
        f"{word}, but the interval includes the target"
        if row.low is not None and row.low <= row.wanted <= row.high
        else word
    )


def _why(speed, row) -> str:
    """By how much a target was missed, and what takes the time."""
    target: Target = row.target
    if target.kind == "agreement":
        table = speed.read("benchmark/agreement.csv")
        own = table[(table.variant == speed.base) & (table.kind == GRAIN)]["mean"]
        grain = (
            f" The plain path, given the same queries one by one, agrees with itself to {md.number(own.min(), target.digits)}."
            if len(own)
            else ""
        )
        return f"- {row.what}: {md.number(row.measured, target.digits)}.{grain}"
    off = 100 * abs(row.measured / row.wanted - 1)
    profiles = {
        name: parts(speed, getattr(speed, name), target.kind, target.batch) for name in target.variants
    }
    if None in profiles.values():
        return f"- {row.what}: missed by {md.number(off, 0)} %."
    lines = [
        f"`{getattr(speed, name)}`: "
        + ", ".join(
            f"{PART_NAMES[part]} {md.milliseconds(value)} ms"
            for part, value in profile.items()
            if part != "kernels"
        )
        + "."
        for name, profile in profiles.items()
    ]
    return f"- {row.what}: missed by {md.number(off, 0)} %. {' '.join(lines)} {_reading(speed, target, profiles)}".rstrip()


def _reading(speed, target: Target, profiles: dict[str, dict[str, float]]) -> str:
    """What the parts say: the GEMMs against the roofline limit, or against each other and without attention."""
    if len(profiles) == 1:
        ((name, profile),) = profiles.items()
        limit = speed.row(getattr(speed, name), target.kind, target.batch).floor_s
        return f"The GEMMs alone take {md.number(profile['products'] / limit, 2)} times the roofline limit."
    ours, theirs = profiles.values()
    rest = [
        sum(value for part, value in profile.items() if part not in ("kernels", "attention"))
        for profile in (ours, theirs)
    ]
    return f"The GEMMs alone are {md.number(theirs['products'] / ours['products'], 2)} times as fast, everything but attention {md.number(rest[1] / rest[0], 2)} times."


def parts(speed, name: str | None, kind: str, batch: int) -> dict[str, float] | None:
    """Seconds of GPU work per call by part (mean over rounds), largest first, and the count of kernels; None where not measured."""
    table = speed.read("benchmark/profile.csv")
    if table is None:
        return None
    profile = (
        table[(table.variant == name) & (table.kind == kind) & (table.batch == batch)]
        .groupby("part")
        .seconds.mean()
    )
    return (
        None
        if profile.empty
        else {
            part: float(profile[part])
            for part in sorted(profile.index, key=lambda part: (part == "kernels", -profile[part]))
        }
    )
