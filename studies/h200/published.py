"""Measured speed and memory with the published figures of an A100 beside them."""

import pandas as pd

from colq_utils.base import config
from colq_utils.report import markdown as md
from studies.h200.speed import EXPERIMENTS, PUBLISHED, Speed
from studies.h200.words import MIB, mib, page, percent
from studies.published import figures_data

ITEMS, CALLS = 80, 10
ROLES = {"original": "BASE", "quantized": "W4A16"}


def _figures(speed: Speed) -> pd.DataFrame | None:
    """The published benchmark of text queries by metric; it is of the 8B alone."""
    if speed.experiment.model.size != "8b":
        return None
    table = figures_data.load().benchmark_8b
    return table[table.table == "Text Queries Benchmark"].drop_duplicates("metric").set_index("metric")


def memory_summary(speed: Speed) -> str:
    figures, rows = _figures(speed), []
    for label, metric, kind, name in (
        ("Peak memory", "peak_allocated_bytes", PUBLISHED, "CUDA peak allocated"),
        ("Allocated after loading", "allocated_bytes", None, "CUDA allocated"),
        ("Peak reserved", "peak_reserved_bytes", PUBLISHED, "CUDA peak reserved"),
    ):
        start = speed.bytes(speed.eager, metric, kind)
        for variant in speed.shown:
            value = speed.bytes(variant, metric, kind)
            row = {
                "metric": label,
                "variant": f"`{variant}`",
                "mib": mib(value),
                "mb": md.megabytes(value, 0),
            }
            rows.append(row | {"change": "-" if variant == speed.eager else percent(value, start)})
        if figures is not None:
            before = figures.original[name]
            for role, words in ROLES.items():
                value = figures[role][name]
                row = {"metric": label, "variant": f"published {words} (A100)", "mib": md.number(value, 0)}
                change = "-" if role == "original" else percent(value, before)
                rows.append(row | {"mb": md.MISSING, "change": change})
    return page("memory.md.j2", speed, rows=rows)


def throughput_summary(speed: Speed) -> str:
    figures, rows = _figures(speed), []
    for variant in speed.shown:
        row, cells = speed.row(variant, PUBLISHED, 8), {"variant": f"`{variant}`"}
        if row is not None:
            cells |= {"kernel": row.kernel, "items": md.number(8 / row.latency_s_mean, 1)}
            cells["latency"] = md.milliseconds(row.latency_s_mean)
        rows.append(cells)
    if figures is not None:
        for role, words in ROLES.items():
            cells = {"kernel": "fallback" if role == "quantized" else "torch"}
            cells["items"] = md.number(figures[role]["throughput"], 1)
            cells["latency"] = md.number(figures[role]["mean latency"], 2)
            rows.append({"variant": f"published {words} (A100)"} | cells)
    return page("throughput.md.j2", speed, rows=rows)


#: Rows of `as_published`: label, published metric and its digits.
METRICS = (
    ("Timed items", "total items", 0),
    (f"Time of {ITEMS} items (s)", "total time", 3),
    ("Throughput (items/s)", "throughput", 1),
    ("Mean latency (ms/batch)", "mean latency", 2),
    ("Std of latency (ms/batch)", "standard deviation of latency", 2),
    ("Median latency (ms/batch)", None, 0),
    ("CUDA allocated (MiB)", "CUDA allocated", 0),
    ("CUDA peak allocated (MiB)", "CUDA peak allocated", 0),
    ("CUDA peak reserved (MiB)", "CUDA peak reserved", 0),
    ("Tokens per call", None, 0),
    ("Times the roofline limit", None, 0),
)


def as_published(speed: Speed) -> str:
    columns = {"metric": [label for label, *_ in METRICS]}
    for name in speed.shown:
        row = speed.row(name, PUBLISHED, 8)
        columns[f"`{name}`"] = [md.MISSING] * len(METRICS) if row is None else _as_published(speed, name, row)
    figures = _figures(speed)
    if figures is not None:
        for role, words in ROLES.items():
            columns[f"published {words}"] = [
                md.number(figures[role].get(metric), digits) if metric else md.MISSING
                for _, metric, digits in METRICS
            ]
    headings = {name: name for name in columns} | {"metric": "Metric"}
    return page("as_published.md.j2", speed, rows=pd.DataFrame(columns), headings=headings)


def _as_published(speed: Speed, name: str, row: pd.Series) -> list[str]:
    """The cells of a variant, in the order of `METRICS`."""
    return [
        str(int(8 * row.n_samples)),
        md.number(CALLS * row.latency_s_mean, 4),
        md.number(8 / row.latency_s_mean, 1),
        md.milliseconds(row.latency_s_mean),
        md.milliseconds(row.latency_s_std),
        md.milliseconds(row.latency_s_median),
        mib(speed.bytes(name, "allocated_bytes")),
        mib(speed.peak(name, PUBLISHED)),
        mib(speed.bytes(name, "peak_reserved_bytes", PUBLISHED)),
        md.number(row.tokens_per_call, 0),
        md.number(row.latency_s_median / row.floor_s, 2),
    ]


def sizes(speed: Speed) -> str:
    """Memory of both sizes, measured and published; another experiment's report shows its own alone."""
    own = speed.experiment
    names = EXPERIMENTS if own.name in EXPERIMENTS.values() else {own.model.size: own.name}
    figures, rows = figures_data.load().sizes, []
    figures = figures[figures.source == "benchmark_8b_report.md"]
    output = "" if own.output == config.ROOT else own.output
    for size in EXPERIMENTS:
        other = Speed(config.load(names[size], output)) if size in names else None
        if other is not None and other.read("benchmark/memory.csv") is not None:
            rows.append({"model": size.upper(), "figures": "measured"} | _allocated(other))
        for r in figures[figures.model == size].itertuples():
            row = {"model": size.upper(), "figures": "published", "base": md.number(r.original_gb, 1)}
            row["w4"] = md.number(r.quantized_gb, 1)
            rows.append(row | {"change": md.number(-r.reduction_pct, 0, True, " %"), "small": md.MISSING})
    return page("sizes.md.j2", speed, rows=rows)


def _allocated(speed: Speed) -> dict[str, str]:
    """What a size occupies after loading, in thousands of MiB."""
    names = speed.eager, speed.w4, speed.small
    base, w4, small = (speed.bytes(name, "allocated_bytes") for name in names)
    cells = {"base": mib(base, 2, 1e3 * MIB), "w4": mib(w4, 2, 1e3 * MIB), "change": percent(w4, base)}
    with_options = f"{mib(small, 2, 1e3 * MIB)} ({percent(small, base)})"
    return cells | {"small": md.MISSING if small is None else with_options}
