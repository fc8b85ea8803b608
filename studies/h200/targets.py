"""What the fast path is asked to reach on an H200, how far each target was met, and where a miss loses time.

Targets are ratios of medians, or bytes. A target that is missed stays where it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from colq_utils.base.names import GRAIN, SAME
from colq_utils.report import markdown as md
from studies.h200.speed import PAGES, PUBLISHED, QUERIES
from studies.h200.words import page

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
    """`wanted` of `what`, at least or (with `most`) at most; asked of `sizes`, it compares `variants`.

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
    """The speed of role `ours` over role `theirs` (properties of `Speed`), as a function of the results."""

    def value(speed):
        return speed.ratio(getattr(speed, ours), getattr(speed, theirs), kind, batch)

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


def _against_bf16(load: str) -> str:
    return f"W4A16 against bf16 on the fast path, real queries, {load} (times)"


PLAIN = "W4A16 on the fast path against bf16 on the plain path, text queries as published, batch 8 (times)"
LIMIT = "bf16 on the fast path against its roofline limit, text queries as published, batch 8 (times)"
PEAK = "Peak memory of W4A16, text queries as published (GiB; the published MB are 2^20 bytes)"
SMALL = "Peak memory of W4A16 with the eight-bit options (GiB)"
COSINE = "Token cosine between the fast and the plain path, bf16"
BOTH = ("4b", "8b")
TARGETS = (
    _faster(PLAIN, "w4", "eager", PUBLISHED, 8, 4.0, "4b"),
    _faster(_against_bf16("batch 1"), "w4", "base", QUERIES, 1, 1.15, "4b"),
    _faster(_against_bf16("batch 1"), "w4", "base", QUERIES, 1, 1.3, "8b"),
    _faster(_against_bf16("batch 8"), "w4", "base", QUERIES, 8, 0.95),
    _faster(_against_bf16("batch 32"), "w4", "base", QUERIES, 32, 0.95),
    Target(LIMIT, BOTH, 2.0, _floors, ("base",), most=True),
    _faster("FP8 against bf16 on the fast path, pages, batch 8 (times)", "fp8", "base", PAGES, 8, 1.5),
    Target(PEAK, ("8b",), 5.9, _peak("w4"), most=True),
    Target(SMALL, ("8b",), 5.0, _peak("small"), most=True),
    Target(COSINE, BOTH, SAME, _agreement, kind="agreement", digits=5),
)


def reached(speed) -> pd.DataFrame:
    """The targets of a model size: what, wanted, measured with its interval (None if not), met, target."""
    rows = []
    for target in TARGETS:
        if speed.experiment.model.size in target.sizes:
            result = target.value(speed)
            value, low, high = result if isinstance(result, tuple) else (result, None, None)
            row = {"what": target.what, "wanted": target.wanted, "measured": value, "low": low, "high": high}
            row["met"] = None if value is None else _met(target, value)
            rows.append(row | {"target": target})
    return pd.DataFrame(rows, dtype=object)


def _met(target: Target, value: float) -> bool:
    return bool(value <= target.wanted if target.most else value >= target.wanted)


def text(speed) -> str:
    """The table of targets, and under it a line for each that was missed."""
    rows, missed = [], []
    for r in reached(speed).itertuples():
        wanted = md.number(r.wanted, 4 if r.target.digits > 2 else 2)
        row = {"what": r.what, "wanted": f"{'≤' if r.target.most else '≥'} {wanted}", "verdict": _verdict(r)}
        row["measured"] = md.number(r.measured, r.target.digits)
        if r.low is not None:
            row["measured"] = md.value_ci(r.measured, r.low, r.high, 2)
        rows.append(row)
        missed += [_why(speed, r)] if r.met is False else []
    return page("targets.md.j2", speed, rows=rows, missed=tuple(missed))


def _verdict(row) -> str:
    """Met or missed, and whether another sample of the calls could turn it."""
    if row.met is None:
        return md.MISSING
    word = "met" if row.met else "**missed**"
    close = row.low is not None and row.low <= row.wanted <= row.high
    return f"{word}, but the interval includes the target" if close else word


def _why(speed, row) -> str:
    """By how much a target was missed, and what takes the time."""
    target: Target = row.target
    if target.kind == "agreement":
        table = speed.read("benchmark/agreement.csv")
        own = table[(table.variant == speed.base) & (table.kind == GRAIN)]["mean"]
        return page("missed.md.j2", speed, row=row, own=own, n_digits=target.digits, parts=None).strip()
    profiles = {
        name: parts(speed, getattr(speed, name), target.kind, target.batch) for name in target.variants
    }
    known = bool(profiles) and None not in profiles.values()
    return page(
        "missed.md.j2",
        speed,
        row=row,
        own=None,
        off_pct=100 * abs(row.measured / row.wanted - 1),
        parts={getattr(speed, name): _seconds(profile) for name, profile in profiles.items()}
        if known
        else {},
        names=PART_NAMES,
        **(_reading(speed, target, profiles) if known else {}),
    ).strip()


def _seconds(profile: dict[str, float]) -> dict[str, float]:
    return {part: value for part, value in profile.items() if part != "kernels"}


def _reading(speed, target: Target, profiles: dict[str, dict[str, float]]) -> dict[str, float]:
    """The GEMMs against the roofline limit, or against the other variant's, and all but attention."""
    if len(profiles) == 1:
        ((name, profile),) = profiles.items()
        limit = speed.row(getattr(speed, name), target.kind, target.batch).floor_s
        return {"times_limit": profile["products"] / limit}
    ours, theirs = profiles.values()
    rest = [sum(_seconds(profile).values()) - profile.get("attention", 0.0) for profile in (ours, theirs)]
    return {"gemms_ratio": theirs["products"] / ours["products"], "rest_ratio": rest[1] / rest[0]}


def parts(speed, name: str | None, kind: str, batch: int) -> dict[str, float] | None:
    """Seconds of GPU work per call by part (mean over rounds), largest first, then the count of kernels."""
    table = speed.read("benchmark/profile.csv")
    if table is None:
        return None
    rows = table[(table.variant == name) & (table.kind == kind) & (table.batch == batch)]
    profile = rows.groupby("part").seconds.mean()
    order = sorted(profile.index, key=lambda part: (part == "kernels", -profile[part]))
    return {part: float(profile[part]) for part in order} or None
