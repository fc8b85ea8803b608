"""The report of one experiment, from its rows alone."""

from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from colq_utils.base.config import Experiment
from colq_utils.report import markdown as md
from studies.interop.engines import ENGINES

#: Mean token cosine with ColQ, on queries and on pages, from which on an engine counts as agreeing.
AIM = 0.999
BASE = "base"
PACKINGS = (BASE, "auto_round", "auto_awq", "auto_gptq", "compressed_tensors")


def line(row: dict) -> str:
    """One line about a finished row, for the terminal."""
    place = f"{row['engine']}, {row['checkpoint']}"
    if _given(row.get("reason")):
        return f"{place}: {row['reason']}"
    ranked = f"{row['queries_ranked_alike']} of {row['queries']} queries rank the pages alike"
    return f"{place}: queries {row['cosine_query_mean']:.6f}, pages {row['cosine_page_mean']:.6f}, {ranked}"


def text(experiment: Experiment, rows: pd.DataFrame) -> str:
    """The whole report as markdown."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("interop.md.j2").render(
        title=experiment.title,
        aim=AIM,
        agreeing=md.listing([e.title for e in ENGINES if _agrees(rows[rows.engine == e.name])]),
        others=md.listing([e.title for e in ENGINES if not _agrees(rows[rows.engine == e.name])]),
        overview=md.table(["Engine", *PACKINGS], [_overview(rows, engine) for engine in ENGINES]),
        details=md.table(
            ["Engine", "Checkpoint", "Queries: mean", "least", "Pages: mean", "least", "Ranked alike"],
            [_detail(row) for row in rows.to_dict("records")],
            left=2,
        ),
        reasons=_reasons(rows),
        differences=md.table(
            ["Engine", "What differs from ColQ"], [(e.title, e.difference) for e in ENGINES], left=2
        ),
        versions=_versions(rows),
    )


def packing(checkpoint: str) -> str:
    """The export's name in a checkpoint's, or `BASE`."""
    return checkpoint.split("/")[1] if "/" in checkpoint else BASE


def _agrees(rows: pd.DataFrame) -> bool:
    """Whether at least one export reaches the aim on queries and on pages."""
    exports = rows[rows.checkpoint.str.contains("/")]
    return bool((exports[["cosine_query_mean", "cosine_page_mean"]].min(axis=1, skipna=False) >= AIM).any())


def _overview(rows: pd.DataFrame, engine) -> list[str]:
    """An engine's line: the lowest mean cosine of each packing over variants, queries and pages."""
    own = rows[rows.engine == engine.name]
    cells = [engine.title]
    for name in PACKINGS:
        group = own[own.checkpoint.map(packing) == name]
        refused = group.reason.map(_given).astype(bool)  # of no rows: no dtype
        lowest = group[~refused][["cosine_query_mean", "cosine_page_mean"]].min().min()
        few = f"; no: {refused.sum()} of {len(group)}" if refused.any() else ""
        cells.append("no" if len(group) and refused.all() else md.number(lowest, 6) + few)
    return cells


def _detail(row: dict) -> tuple:
    title = next(engine.title for engine in ENGINES if engine.name == row["engine"])
    names = ("cosine_query_mean", "cosine_query_min", "cosine_page_mean", "cosine_page_min")
    ranked = row["queries_ranked_alike"]
    alike = f"{ranked:.0f} of {row['queries']:.0f}" if _given(ranked) else "-"
    return (title, row["checkpoint"], *(_cosine(row[name]) for name in names), alike)


def _cosine(value) -> str:
    return f"{value:.6f}" if _given(value) else "-"


def _reasons(rows: pd.DataFrame) -> list[dict]:
    failed = rows[rows.reason.map(_given)]
    grouped = failed.groupby(["engine", "reason"], sort=False).checkpoint.agg(list)
    return [
        {"engine": e, "reason": md.cell(r), "checkpoints": md.listing(c)} for (e, r), c in grouped.items()
    ]


def _versions(rows: pd.DataFrame) -> list[str]:
    return [
        f"{engine}: {group.iloc[0]}"
        for engine, group in rows[rows.versions.map(_given)].groupby("engine", sort=False).versions
    ]


def _given(value) -> bool:
    return value is not None and value == value and value != ""
