"""summary.md and the README's table: the answer on a page, every number computed from result files.

The answer is three bullets: what the bits cost and save, what a person who searches would notice, which recipe to take.
A part whose stage has not run says "not measured".
"""

import pandas as pd

from colq_utils.report import analysis, findings, speed, wording
from colq_utils.report import markdown as md
from colq_utils.report.analysis import Study
from colq_utils.report.parts import TO_FIGURES, failed, is_bundled, rejected
from colq_utils.report.prose import render
from colq_utils.report.tables import table

COLUMNS = {
    "label": "Variant",
    "bytes": "Checkpoint (MB)",
    "reduction_pct": "Saved (%)",
    "change": "Change in NDCG@5 (points)",
    "changed": "Top page changes (%)",
    "shows": "What the interval shows",
}


def write(study: Study) -> str:
    """The whole page as markdown."""
    return render(
        "summary.md.j2",
        title=study.experiment.title,
        warning=rejected(study),
        bundled=is_bundled(study),
        model=study.experiment.model.path,
        bits=_bits(study),
        answer=answer(study),
        table=variant_table(study),
        counted=counted(study),
        figure=_figure(study),
        speed=speed.in_one_sentence(study),
        failed=failed(study),
        unmeasured=_unmeasured(study),
    )


def headline(study: Study) -> str:
    """What stands between the README's markers: the answer and its table."""
    return render("headline.md.j2", answer=answer(study), table=variant_table(study), counted=counted(study))


def answer(study: Study) -> str:
    """Three bullets and what is undecided, as markdown."""
    table = variant_frame(study).set_index("variant")
    shown = [
        name for name in findings.four_bits(study) if name in table.index and pd.notna(table.diff_low[name])
    ]
    best, worst = (
        (max(shown, key=table["diff"].get), min(shown, key=table["diff"].get)) if shown else (None, None)
    )
    size = table.loc[best] if shown else None
    recipe = findings.recommend(study)
    picked = recipe.variant or findings.closest(study)
    return render(
        "answer.md.j2",
        bits=_bits(study),
        n_recipes=len(shown),
        best=best and _row(table, best),
        worst=worst and _row(table, worst),
        size=None
        if size is None or pd.isna(size["bytes"])
        else {
            "base": md.significant(size.base_bytes / 1e6),
            "quantized": md.significant(size["bytes"] / 1e6),
            "saved": md.significant(size.reduction_pct),
        },
        picked=picked and _row(table, picked),
        recipe=recipe.text,
        undecided=_undecided(study, table),
    ).strip()


def variant_frame(study: Study) -> pd.DataFrame:
    """A row per variant, base first: the averages, sizes and top-page changes, and their text for the tables."""
    frame = study.suite.merge(analysis.sizes(study.results), on="variant", how="left").merge(
        analysis.top_page_changes(study), on="variant"
    )
    frame = frame[frame.variant.isin([study.experiment.base, *study.experiment.quantized])].reset_index(
        drop=True
    )
    margin, is_base = study.experiment.evaluation.margin, frame.variant == study.experiment.base
    return frame.assign(
        label=frame.variant.map(study.labels),
        change=[md.change_ci(r["diff"], r.diff_low, r.diff_high) for _, r in frame.iterrows()],
        changed=[md.number(100 * value, 1) for value in frame.top_changed],
        shows=[wording.change(low, high, margin) for low, high in zip(frame.diff_low, frame.diff_high)],
    ).assign(
        **{name: lambda t, name=name: t[name].mask(is_base, "-") for name in ("change", "changed", "shows")}
    )


def variant_table(study: Study) -> str:
    """The one table of the summary and the README."""
    frame = variant_frame(study)
    saved = [md.significant(value) for value in frame.reduction_pct]
    return table(
        frame.assign(
            reduction_pct=[
                "-" if name == study.experiment.base and value == "0" else value
                for name, value in zip(frame.variant, saved)
            ]
        ),
        COLUMNS,
    )


def counted(study: Study) -> str:
    """What the averages are over, in a sentence."""
    entries = study.entries[study.counted]
    return (
        f"Mean over {int(entries.n_queries.sum()):,} queries in {len(entries)} task-language pairs. A point is 0.01 NDCG@5; "
        f"brackets: 95 % intervals; margin: {findings.points(study)} points."
    )


def _figure(study: Study) -> str:
    """The link of the headline figure, empty where it was not drawn."""
    return (
        f"{TO_FIGURES}/{study.experiment.name}/headline.png"
        if (study.experiment.figures / "headline.png").exists()
        else ""
    )


def _row(table: pd.DataFrame, name: str) -> dict:
    return {"label": table.label[name], "change": table.change[name], "changed_ci": _share(table.loc[name])}


def _share(row) -> str:
    return md.value_ci(row.top_changed, row.top_changed_low, row.top_changed_high, 1, scale=100)


def _bits(study: Study) -> str:
    """'four bits' where the variants that the answer is about have four, else 'few bits'."""
    return (
        "four bits"
        if all(study.experiment.by_id[name].bits == 4 for name in findings.four_bits(study))
        else "few bits"
    )


def _undecided(study: Study, table: pd.DataFrame) -> list[str]:
    """The questions that the intervals leave open, a phrase each."""
    margin = findings.points(study)
    nothing = [r.label for r in table.itertuples() if r.verdict == "not resolved"]
    more = [r.label for r in table.itertuples() if r.verdict == "lower"]
    questions = (
        [f"whether {_few(nothing)} {'loses' if len(nothing) == 1 else 'lose'} anything"] if nothing else []
    )
    questions += (
        [f"whether {_few(more)} {'loses' if len(more) == 1 else 'lose'} more than {margin} points"]
        if more
        else []
    )
    pairs = findings.lengths(study)
    pairs = pairs[pairs.measure == "ndcg"]
    return questions + (
        ["whether the calibration length matters"] if len(pairs) and not pairs.resolved.any() else []
    )


def _few(labels: list[str]) -> str:
    """One or two variants by name, more by their number (the table names them)."""
    return md.label_list(labels) if len(labels) < 3 else f"{len(labels)} recipes"


def _unmeasured(study: Study) -> list[str]:
    """What this experiment says nothing about, a sentence each."""
    results = study.results
    stages = [
        ("quantize", results.variants, "checkpoint sizes and acceptance"),
        ("benchmark", results.rows, "memory and speed"),
        ("inspect", results.towers, "bytes per part of the model"),
    ]
    lines = [
        f"{what} (`make {stage} EXPERIMENT={study.experiment.name}`)"
        for stage, table, what in stages
        if table is None
    ]
    lines.append("another seed of the quantizer")
    if study.experiment.runtime.device == "cpu":
        lines.append("anything on a GPU")
    if is_bundled(study):
        lines.append("what the published 4B and 8B checkpoints lose")
    return lines
