"""summary.md and the README's table: the answer on a page, every number computed from result files.

The answer is three bullets: cost and gain, what a person who searches would notice, which recipe to take.
"""

from colq_utils.report import documents, findings, mixed_precision, speed
from colq_utils.report.analysis import Study
from colq_utils.report.findings import variant_frame
from colq_utils.report.parts import TO_FIGURES, page


def write(study: Study) -> str:
    """The whole page as markdown."""
    figure = f"{TO_FIGURES}/{study.experiment.name}/headline.png"
    drawn = (study.experiment.figures / "headline.png").exists()
    told = answer(study)
    asked = [study.experiment.base, *findings.four_bits(study)]
    told["frame"] = told["frame"][told["frame"].variant.isin(asked) | told["frame"].eight]
    return page(
        "summary.md.j2",
        study,
        figure=figure if drawn else "",
        mixed=mixed_precision.of(study, told["picked"]),
        speed=speed.in_one_sentence(study),
        **documents.values(study),
        **told | {"chances": []},  # in the analysis and the README; a page has no room for it
    )


def headline(study: Study) -> str:
    """What stands between the README's markers: the answer and its table."""
    return page("headline.md.j2", study, **answer(study))


def answer(study: Study) -> dict:
    """What headline.md.j2 words: the variants, best and worst at four bits, the recipe."""
    frame, four = variant_frame(study), findings.four_bits(study)
    rows = {row["variant"]: row for row in frame.to_dict("records")}
    shown = frame[frame.variant.isin(four) & frame.diff_low.notna()].set_index("variant")["diff"]
    recipe, pairs = findings.recommend(study), findings.lengths(study)
    picked = rows.get(recipe.variant or findings.closest(study))
    return {
        "frame": frame,
        "rows": rows,
        "recipes": list(shown.index),
        "best": rows[shown.idxmax()] if len(shown) else None,
        "worst": rows[shown.idxmin()] if len(shown) else None,
        "recipe": recipe,
        "eight": frame[frame.eight],
        "alike": [study.labels[name] for name in recipe.alike],
        "picked": picked,
        "chances": findings.chances(study, picked),
        "bits": "four bits" if all(study.experiment.by_id[name].bits == 4 for name in four) else "few bits",
        "undecided_length": len(pairs) > 0 and not pairs.resolved[pairs.measure == "ndcg"].any(),
        "entries": study.entries[study.counted],
    }
