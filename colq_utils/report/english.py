"""comparison_english.md: base against the 4-bit variants, task by task, on English queries alone.

Published comparisons of these models report English; here every change has an interval. The answer first, scores and settings folded.
"""

import numpy as np
import pandas as pd

from colq_utils.report import analysis, findings, wording
from colq_utils.report import markdown as md
from colq_utils.report.analysis import Study
from colq_utils.report.parts import environment, failed, figures, is_bundled, rejected
from colq_utils.report.prose import render
from colq_utils.report.quantization import calibration_sets, counts, scores, statistics
from colq_utils.report.tables import table

DIFFERENCE = {
    "difference_english.png": "Change of NDCG@5 against the base by task, English queries, 95 % intervals."
}
SCORES = {"comparison_english.png": "NDCG@5 of English queries by task, 95 % intervals."}
#: Variants side by side in one table of changes.
SIDE_BY_SIDE = 5


def write(study: Study) -> str:
    """The whole report as markdown."""
    if not study.english.any():
        return md.document(
            f"# English queries: {study.experiment.title}",
            f"No counted task has English queries: {md.MISSING}.",
        )
    entries = study.entries[study.english]
    return render(
        "comparison_english.md.j2",
        title=study.experiment.title,
        warning=rejected(study),
        failed=failed(study),
        findings=_findings(study),
        n_queries=f"{int(entries.n_queries.sum()):,}",
        n_tasks=len(entries),
        scores=scores(study, study.english),
        changes=_changes(study),
        difference=figures(study, DIFFERENCE),
        counts=counts(study, study.english),
        holes=md.label_list(_holes(study)),
        by_task=_by_task(study),
        comparison=figures(study, SCORES),
        model=_model(study),
        configuration=_configuration(study),
        sets=calibration_sets(study),
        statistics=statistics(study),
        environment=environment(study.results.evaluate_environment, "evaluate"),
    )


def _findings(study: Study) -> list[str]:
    """A sentence per 4-bit variant, and how fine English alone is."""
    averages, margin = (
        analysis.averages(study, study.english).set_index("variant"),
        study.experiment.evaluation.margin,
    )
    shown = [name for name in findings.four_bits(study) if np.isfinite(averages["diff"][name])]
    lines = [
        f"{study.labels[n]}: {md.change_ci(averages['diff'][n], averages.diff_low[n], averages.diff_high[n])} points "
        f"({wording.change(averages.diff_low[n], averages.diff_high[n], margin)})"
        for n in shown
    ]
    return lines + (
        [
            wording.detectable(100 * max(averages.mdd[n] for n in shown)).replace(
                "This benchmark", "English alone"
            )
        ]
        if shown
        else []
    )


def _holes(study: Study) -> list[str]:
    """Variants without a score on an English entry, and so without an average."""
    rows = study.by_entry.merge(study.entries[study.english][["task", "lang"]])
    return [study.labels[n] for n in study.names if not np.isfinite(rows.score[rows.variant == n]).all()]


def _changes(study: Study) -> str:
    """Changes by task in points, a column per 4-bit variant, at most `SIDE_BY_SIDE` in one table."""
    names, entries = findings.four_bits(study), study.entries[study.english]
    rows, averages = (
        study.by_entry.set_index(["variant", "task", "lang"]),
        analysis.averages(study, study.english).set_index("variant"),
    )
    cell = lambda r: md.change_ci(r["diff"], r.diff_low, r.diff_high)  # noqa: E731
    tables = []
    for start in range(0, len(names), SIDE_BY_SIDE):
        shown = names[start : start + SIDE_BY_SIDE]
        lines = [
            (
                f"{e.task} ({int(e.n_queries)})",
                md.significant(rows.score[study.experiment.base, e.task, e.lang]),
                *(cell(rows.loc[name, e.task, e.lang]) for name in shown),
            )
            for e in entries.itertuples()
        ]
        lines.append(
            (
                "**Average**",
                f"**{md.significant(averages.score[study.experiment.base])}**",
                *(f"**{cell(averages.loc[name])}**" for name in shown),
            )
        )
        tables.append(md.table(["Task (queries)", "Base", *(study.labels[name] for name in shown)], lines))
    return "\n\n".join(tables)


def _by_task(study: Study) -> str:
    """Scores and relative changes by task, the shape of the published comparison."""
    names = findings.four_bits(study)
    header = ["Task (queries)", study.labels[study.experiment.base]] + [
        c for n in names for c in (study.labels[n], "Change (%)")
    ]
    by_entry, averages = (
        study.by_entry.set_index(["variant", "task", "lang"]),
        analysis.averages(study, study.english).set_index("variant"),
    )
    rows = []
    for e in study.entries[study.english].itertuples():
        base = by_entry.score[study.experiment.base, e.task, e.lang]
        rows.append(
            [f"{e.task} ({int(e.n_queries)})", md.significant(base)]
            + [c for n in names for c in _relative(by_entry.loc[n, e.task, e.lang], base)]
        )
    base = averages.score[study.experiment.base]
    rows.append(
        ["**Average**", f"**{md.significant(base)}**"]
        + [f"**{c}**" for n in names for c in _relative(averages.loc[n], base)]
    )
    return md.table(header, rows)


def _relative(row, base: float) -> tuple[str, str]:
    return md.significant(row.score), md.percent_ci(row["diff"], row.diff_low, row.diff_high, base)


def _model(study: Study) -> str:
    model, towers, sizes = (
        study.experiment.model,
        study.results.towers,
        analysis.sizes(study.results).set_index("variant")["bytes"],
    )
    base = sizes.get(study.experiment.base)
    rows = [
        ("Model", f"`{model.path}`" + (" (bundled demo model)" if is_bundled(study) else "")),
        ("Revision", model.revision or "as committed"),
        ("Parameters", md.MISSING if towers is None else f"{int(towers.parameters.sum()):,}"),
        ("Tensors of the base (MB)", md.MISSING if base is None else md.significant(base / 1e6)),
        ("Precision", study.labels[study.experiment.base]),
    ]
    return table(pd.DataFrame(rows, columns=["key", "value"]), {"key": "Property", "value": "Base"})


def _configuration(study: Study) -> str:
    """A column per 4-bit variant: how it was quantized, and its size."""
    names, checkpoints = findings.four_bits(study), study.results.variants
    specs = [study.experiment.by_id[n] for n in names]
    sizes = analysis.sizes(study.results).set_index("variant")["bytes"]
    rows = [
        ("bits", [v.bits for v in specs]),
        ("group size", [v.group_size for v in specs]),
        ("symmetric", [md.yes_no(v.sym) for v in specs]),
        ("method", [v.method for v in specs]),
        ("iterations", [v.iters for v in specs]),
        ("calibration set", [v.calibration or "none" for v in specs]),
        ("size (MB)", [md.significant(sizes[n] / 1e6) if n in sizes else md.MISSING for n in names]),
    ]
    if checkpoints is not None and "fallback" in checkpoints:
        fallback = checkpoints.drop_duplicates("variant").set_index("variant").fallback
        rows.append(
            ("fallback used", [md.MISSING if n not in fallback else fallback[n] or "none" for n in names])
        )
    return md.table(["Property", *(study.labels[n] for n in names)], [(key, *values) for key, values in rows])
