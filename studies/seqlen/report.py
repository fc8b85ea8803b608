"""The report of the calibration-length study, from its result files alone: the answer first, the details folded.

Every number is computed from the results and every sentence is chosen by an interval; `sections` holds what is folded.
``python -m studies.seqlen.report seqlen`` writes the report and the figures that it shows; with ``--against
results/tiny/evaluate/queries.parquet`` it first compares the scores with those that `evaluate` gave the same weights.
"""

import argparse
import sys
from pathlib import Path

from colq_utils.base import files
from colq_utils.base.errors import ColqError
from colq_utils.report import markdown as md
from colq_utils.report import stats
from studies.seqlen import analysis, recipes, sections
from studies.seqlen import plots as study_plots
from studies.seqlen.analysis import SeqlenStudy
from studies.seqlen.sections import LENGTHS, designs, points, two

#: Title of a folded part and the function that writes it.
FOLDED = (
    ("Design: the calibration sets", sections.design),
    ("Length against length, pair by pair", sections.length_section),
    ("What the seed alone moves", sections.seed_section),
    ("What the published design adds", sections.confounded_section),
    ("Text against pages and queries, and the token budget", sections.content_section),
    ("Number formats: bytes and NDCG@5", sections.format_section),
    ("The vision tower quantized too", sections.vision_section),
    ("Which part of the language model hurts", sections.sensitivity_section),
    ("Drift of vectors and scores, by format, language, query and page", sections.drift_section),
    ("Which differences this study can detect", sections.power_section),
    ("Limits", sections.limits),
    ("How it was made", sections.provenance),
)


def build(study: SeqlenStudy) -> Path:
    """Draw the figures and write ``reports/<name>_study.md`` beside the results."""
    study_plots.draw(study)
    return files.write_text(study.folder / "reports" / f"{study.spec.name}_study.md", text(study))


def text(study: SeqlenStudy) -> str:
    """The whole report."""
    return md.document(
        f"# {study.spec.title}", summary(study), *(md.fold(title, write(study)) for title, write in FOLDED)
    )


def summary(study: SeqlenStudy) -> str:
    """The part that is not folded: question, answer, one table, one figure, what was not measured."""
    caption = "Each dot is one checkpoint; diamonds are means over seeds with 95 % intervals."
    return md.document(
        "## The question",
        question(study),
        "## The answer",
        answer(study),
        "## The numbers",
        lengths_table(study),
        sections.picture(study, "seeds.png", caption),
        "## What was not measured",
        not_measured(study),
    )


def question(study: SeqlenStudy) -> str:
    return (
        "AutoRound quantizes a model to 4 bits by tuning how each weight is rounded while it reads calibration text. "
        "The published ColQwen3 checkpoints were calibrated with rows of 256, 512 or 1,024 tokens, and ranked by the "
        "result. Their sample counts and batch sizes changed along with the length, and each was made with a single "
        "random seed. Does the length itself matter once everything else is held fixed?\n\n"
        f"We made {_made(study)} checkpoints of the bundled demo model (15 million parameters) and scored each on "
        f"{study.n_queries:,} queries. The score is NDCG@5, which is 1 when the right page always comes first; a *point* is a "
        "hundredth of that. Brackets are 95 % intervals over queries and seeds."
    )


def _made(study: SeqlenStudy) -> int:
    return int((study.runs["error"] == "").sum())


def answer(study: SeqlenStudy) -> str:
    lines = (
        length_answer(study),
        seed_answer(study),
        confounded_answer(study),
        content_answer(study),
        choice_answer(study),
    )
    return "\n".join(f"- {line}" for line in filter(None, lines))


def length_answer(study: SeqlenStudy) -> str:
    parts = []
    for iters, table in designs(study, "length"):
        rows = analysis.pairs(study, table)
        clear, widest = rows[rows["resolved"]], rows.loc[rows["diff"].abs().idxmax()]
        what = (
            "we could not detect a difference between any two lengths"
            if clear.empty
            else "we detect a difference: " + md.listing([_order(row) for _, row in clear.iterrows()])
        )
        parts.append(
            f"After {iters:,} iterations {what}; the largest is {LENGTHS[widest['first']]:,} against "
            f"{LENGTHS[widest['second']]:,} tokens, {points(widest)} points."
        )
    return f"**The length, at one token budget.** {' '.join(parts)} {drift_answer(study)}" if parts else ""


def _order(row) -> str:
    return f"{LENGTHS[row['first']]:,} {'above' if row['diff'] > 0 else 'below'} {LENGTHS[row['second']]:,}"


def drift_answer(study: SeqlenStudy) -> str:
    """Which lengths keep query vectors closest to the base's, where every pair of lengths agrees on it."""
    closest = set()
    for _, table in designs(study, "length"):
        rows = analysis.drift_pairs(study, table)
        rows = rows[rows["measure"] == "query_cosine"]
        best = {row["first" if row["diff"] > 0 else "second"] for _, row in rows[rows["resolved"]].iterrows()}
        beaten = {
            row["second" if row["diff"] > 0 else "first"] for _, row in rows[rows["resolved"]].iterrows()
        }
        closest.add(
            LENGTHS[next(iter(best - beaten))]
            if len(best - beaten) == 1 and len(beaten) == table.shape[1] - 1
            else None
        )
    if len(closest) == 1 and None not in closest:
        return (
            f"A finer measure does move: rows of {closest.pop():,} tokens leave the query vectors closest to bf16 "
            "(last column)."
        )
    return "The direction of query vectors, a finer measure, gives no one order of lengths either."


def seed_answer(study: SeqlenStudy) -> str:
    for iters, table in designs(study, "length"):
        spread = analysis.anova(study, table)
        return (
            f"**The seed alone.** A new seed and nothing else moves the score with a standard deviation of "
            f"{two(spread['seed_sd'])} points ({iters:,} iterations, {spread['seeds']} seeds per length). Two single runs of one "
            f"recipe therefore differ by {two(sections.single_run_gap(spread))} points or more in one case of twenty, so a "
            "ranking of single runs closer than that is chance."
        )
    return ""


def confounded_answer(study: SeqlenStudy) -> str:
    published, clean = dict(designs(study, "confounded")), dict(designs(study, "length"))
    for iters in (i for i in published if i in clean):
        rows = analysis.interaction(study, published[iters], clean[iters])
        clear = [
            row for _, row in rows.iterrows() if stats.resolved(row["added"]["low"], row["added"]["high"])
        ]
        widest = max((row for _, row in rows.iterrows()), key=lambda row: abs(row["added"]["diff"]))
        what = (
            "we could not detect that the published design changes a comparison"
            if not clear
            else "the published design changes the comparison of "
            + md.listing([f"{LENGTHS[row['first']]:,} with {LENGTHS[row['second']]:,}" for row in clear])
        )
        return (
            f"**The published design.** With sample counts and batch sizes in the published proportions (a tenth of each), {what}; "
            f"the largest change is {points(widest['added'])} points, for {LENGTHS[widest['first']]:,} against "
            f"{LENGTHS[widest['second']]:,} tokens."
        )
    return ""


def content_answer(study: SeqlenStudy) -> str:
    rows = sections.content_rows(study)
    if not rows:
        return ""
    iters, row = rows[0]
    word = (
        "we could not detect a difference"
        if not stats.resolved(row["low"], row["high"])
        else ("scores are higher" if row["diff"] > 0 else "scores are lower")
    )
    drift = [
        f"{what} {'stay closer to' if low > 0 else 'move further from' if high < 0 else 'keep their distance to'} bf16"
        for what, _, low, high in sections.content_drift(study)
    ]
    return (
        f"**Pages and queries instead of plain text.** Calibrating on what the model will see, {word} "
        f"({points(row)} points, {iters:,} iterations); {md.listing(drift)}."
    )


def choice_answer(study: SeqlenStudy) -> str:
    """The smallest checkpoint whose whole interval clears the margin, of all recipes and of those that leave the vision tower alone."""
    table, margin = recipes.table(study), study.spec.margin
    lead = f"The smallest checkpoint shown to lose less than {two(margin, 1)} points"
    parts = [
        f"{lead} is {_chosen(best, margin)}."
        if (best := recipes.smallest(table, margin)) is not None
        else f"No quantized checkpoint is shown to lose less than {two(margin, 1)} points: keep bf16."
    ]
    alone = recipes.smallest(table[~table["vision"]], margin)
    if best is not None and best["vision"]:
        parts.append(
            "None that leaves the vision tower in bf16 is shown to do so."
            if alone is None
            else f"Of those that leave the vision tower in bf16 it is {_chosen(alone, margin)}."
        )
    base = study.runs.set_index("variant")["bytes"][study.spec.base]
    return (
        f"**What to choose.** {' '.join(parts)} The bf16 checkpoint has {md.megabytes(base, 1)} MB. "
        f"These are the best of {len(table)} recipes, picked after the fact."
    )


def _chosen(recipe, margin: float) -> str:
    seeds = "" if recipe["seeds"] == 1 else f", {recipe['seeds']} seeds"
    near = (
        f" (its interval ends within {recipes.NEAR} points of the margin)"
        if recipe["diff_low"] + margin <= recipes.NEAR / 100
        else ""
    )
    change = md.points_ci(recipe["diff"], recipe["diff_low"], recipe["diff_high"])
    return f"{recipe['label']}: {md.megabytes(recipe['bytes'], 1)} MB, {change} points{seeds}{near}"


def lengths_table(study: SeqlenStudy) -> str:
    """One row per length and number of iterations, at one token budget."""
    drift, rows = analysis.drift(study).set_index("variant")["query_cosine"], []
    for iters, table in designs(study, "length"):
        for name in table.columns:
            mean = analysis.mean_score(study, table[name].tolist())
            rows.append(
                (
                    f"{LENGTHS[name]:,}",
                    f"{iters:,}",
                    mean["seeds"],
                    md.score(mean["score"]),
                    md.points_ci(mean["diff"], mean["diff_low"], mean["diff_high"]),
                    md.number(drift[table[name]].mean(), 5),
                )
            )
    header = [
        "Tokens per row",
        "Iterations",
        "Seeds",
        "NDCG@5",
        "Change from bf16 (points)",
        "Cosine of query vectors to bf16",
    ]
    base = md.score(study.suite[0][study.spec.base])
    arm = study.arm("length").iloc[0]
    return (
        md.table(header, rows) + "\n\nAll rows: W4A16 AutoRound, groups of 128, "
        f"{int(arm['set_seqlen'] * arm['set_blocks']):,} calibration tokens, {int(arm['set_seqlen'] * arm['set_batch_rows']):,} tokens "
        f"per step. bf16 itself scores {base}."
    )


def not_measured(study: SeqlenStudy) -> str:
    left_out = len(study.provenance["left_out"])
    return "\n".join(
        f"- {line}"
        for line in filter(
            None,
            (
                "The published 4B and 8B models. A demo model shows how such a comparison has to be made and how large its noise is, "
                "not what a larger model loses.",
                "Speed: rounded weights are multiplied in bf16 here, so no 4-bit kernel enters.",
                _short_of_iterations(study),
                f"Left out of the plan for want of device time: {left_out} run{'s' if left_out > 1 else ''}, named under *Limits*."
                if left_out
                else "",
            ),
        )
    )


def _short_of_iterations(study: SeqlenStudy) -> str:
    """Which designs were run with fewer iterations than the lengths were."""
    most = study.arm("length")["iters"].max()
    named = (("confounded", "the published design"), ("content", "calibration on pages and queries"))
    short = [name for family, name in named if most not in set(study.arm(family)["iters"])]
    return f"{md.listing(short).capitalize()} at {int(most):,} iterations." if short else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="studies.seqlen.report",
        description="Write the report and the figures of a study from its results.",
    )
    parser.add_argument("study")
    parser.add_argument(
        "--against",
        help="queries.parquet of an experiment with the same weights: writes agreement.csv, which the report shows",
    )
    options = parser.parse_args(arguments)
    try:
        study = analysis.load_named(options.study)
        if options.against:
            files.write_table(
                study.folder / "agreement.csv", analysis.agreement(study, Path(options.against))
            )
        print(build(study))
    except ColqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
