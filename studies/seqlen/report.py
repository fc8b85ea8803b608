"""The report of the study, from its result files alone: the answer first, the details folded.

Every number is computed from the results and every sentence is chosen by an interval; `sections` and
`formats` hold what is folded. ``python -m studies.seqlen.report seqlen`` writes the report and the figures
that it shows; with ``--against results/tiny/evaluate/queries.parquet`` it first compares the scores with
those that `evaluate` gave the same weights.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from colq_utils.base import config, files
from colq_utils.base.errors import ColqError
from colq_utils.report import markdown as md
from colq_utils.report import stats
from studies.seqlen import agreement, analysis, drift, formats, lengths, recipes, sections
from studies.seqlen import plots as study_plots
from studies.seqlen.analysis import SeqlenStudy
from studies.seqlen.sections import designs, page

#: Title of a folded part and the function that writes it.
FOLDED = (
    ("Design: the calibration sets", sections.design),
    ("Length against length, pair by pair", sections.length_section),
    ("What the seed alone moves", sections.seed_section),
    ("What the published design adds", sections.confounded_section),
    ("Text against pages and queries, and the token budget", sections.content_section),
    ("Number formats: bytes and NDCG@5", formats.format_section),
    ("The vision tower quantized too", formats.vision_section),
    ("Which part of the language model hurts", formats.sensitivity_section),
    ("Drift of vectors and scores, by format, language, query and page", formats.drift_section),
    ("Which differences this study can detect", formats.power_section),
    ("Limits", formats.limits),
    ("How it was made", formats.provenance),
)
CAPTION = "Each dot is one checkpoint; diamonds are means over seeds with 95 % intervals."


def build(study: SeqlenStudy) -> Path:
    """Draw the figures and write ``reports/<name>_study.md`` beside the results."""
    study_plots.draw(study)
    return files.write_text(study.folder / "reports" / f"{study.spec.name}_study.md", text(study))


def text(study: SeqlenStudy) -> str:
    """The whole report."""
    folded = (md.fold(title, write(study)) for title, write in FOLDED)
    return md.document(f"# {study.spec.title}", summary(study), *folded)


def summary(study: SeqlenStudy) -> str:
    """The part that is not folded: question, answer, one table, one figure, what was not measured."""
    return page(
        "summary.md.j2",
        study,
        answer=answer(study).strip(),
        rows=_by_length(study),
        arm=study.arm("length").sort_values("iters").iloc[-1],
        short_of_iterations=_short_of_iterations(study),
        **_headline(study),
        picture=sections.picture(study, "seeds.png", CAPTION),
    )


def answer(study: SeqlenStudy) -> str:
    """The five answers as a list, each sentence chosen by an interval."""
    content, table = sections.content_rows(study), recipes.table(study)
    best, alone = (recipes.smallest(t) for t in (table, table[~table["vision"]]))
    return page(
        "answer.md.j2",
        study,
        lengths=[_compared(study, iters, blocks) for iters, blocks in designs(study, "length")],
        closest=_closest(study),
        gap=lengths.single_run_gap,
        published=_published(study),
        content=content[0] if content else None,
        content_drift=_content_drift(study) if content else [],
        resolved=_resolved,
        best=best,
        alone=alone,
        change=sections.change,
        base_bytes=study.runs.set_index("variant")["bytes"][study.spec.base],
        nearly=recipes.nearly(table),
        n_recipes=len(table),
    )


def _resolved(row: dict) -> bool:
    return bool(stats.resolved(row["low"], row["high"]))


def _compared(study: SeqlenStudy, iters: int, blocks: pd.DataFrame) -> dict:
    """Lengths at one budget: the differences that are detected, and the largest."""
    rows = lengths.pairs(study, blocks)
    detected = [
        f"{study.spec.length(row['first']):,} {'above' if row['diff'] > 0 else 'below'} "
        f"{study.spec.length(row['second']):,}"
        for _, row in rows[rows["resolved"]].iterrows()
    ]
    widest = rows.loc[rows["diff"].abs().idxmax()]
    part = {"iters": iters, "detected": detected, "widest": widest, "equivalent": rows["equivalent"].all()}
    return part | {"spread": lengths.anova(study, blocks)}


def _closest(study: SeqlenStudy) -> int | None:
    """The length that keeps query vectors closest to the base's, where every pair of lengths agrees on it."""
    closest = set()
    for _, table in designs(study, "length"):
        rows = drift.pairs(study, table)
        rows = rows[rows["resolved"] & (rows["measure"] == "query_cosine")]
        up = rows["diff"] > 0
        beaten = set(rows["second"].where(up, rows["first"]))
        best = set(rows["first"].where(up, rows["second"])) - beaten
        alone = len(best) == 1 and len(beaten) == table.shape[1] - 1
        closest.add(study.spec.length(best.pop()) if alone else None)
    return closest.pop() if len(closest) == 1 else None


def _published(study: SeqlenStudy) -> dict | None:
    """What the published design changes, at the first iterations that both designs were run with."""
    clean = dict(designs(study, "length"))
    for iters, table in designs(study, "confounded"):
        if iters in clean:
            rows = [row for _, row in lengths.interaction(study, table, clean[iters]).iterrows()]
            detected = [
                f"{study.spec.length(row['first']):,} with {study.spec.length(row['second']):,}"
                for row in rows
                if _resolved(row["added"])
            ]
            return {"detected": detected, "widest": max(rows, key=lambda row: abs(row["added"]["diff"]))}
    return None


def _content_drift(study: SeqlenStudy) -> list[str]:
    """Where pages and queries move vectors, in words."""
    phrases = []
    for words, row in sections.content_drift(study):
        moved = "keep their distance to"
        if _resolved(row):
            moved = "stay closer to" if row["diff"] > 0 else "move further from"
        phrases.append(f"{words} {moved} bf16")
    return phrases


def _by_length(study: SeqlenStudy) -> pd.DataFrame:
    """One row per length and number of iterations, at one token budget."""
    cosines, rows = drift.by_variant(study)["query_cosine"], []
    for iters, table in designs(study, "length"):
        for name, variants in table.items():
            mean = analysis.mean_score(study, variants.tolist())
            row = {"tokens": study.spec.length(name), "iters": iters, "seeds": mean["seeds"]}
            row |= {"score": md.score(mean["score"]), "change": sections.change(mean)}
            rows.append(row | {"cosine": md.number(cosines[variants].mean(), 5)})
    return pd.DataFrame(rows)


def _headline(study: SeqlenStudy) -> dict:
    """The AutoRound recipes of the experiment on the same model, and whether an arm has their iterations."""
    experiment = config.load(study.spec.model.size)
    tuned = [v for v in experiment.quantized.values() if v.method == "autoround"]
    iters = sorted({v.iters for v in tuned})
    words = f"{md.listing([f'{i:,}' for i in iters])} iterations, one seed"
    return {"headline": words, "headline_iterations": set(iters) <= set(study.good["iters"])}


def _short_of_iterations(study: SeqlenStudy) -> list[str]:
    """Which designs were run with fewer iterations than the lengths were."""
    most = study.arm("length")["iters"].max()
    named = (("confounded", "the published design"), ("content", "calibration on pages and queries"))
    return [name for family, name in named if most not in set(study.arm(family)["iters"])]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="studies.seqlen.report",
        description="Write the report and the figures of a study from its results.",
    )
    parser.add_argument("study")
    parser.add_argument(
        "--against",
        type=Path,
        help="queries.parquet of an experiment with the same weights: writes agreement.csv for the report",
    )
    options = parser.parse_args(arguments)
    try:
        study = analysis.load_named(options.study)
        if options.against:
            files.write_table(study.folder / "agreement.csv", agreement.table(study, options.against))
        print(build(study))
    except ColqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
