"""comparison_english.md: base against the 4-bit variants, task by task, on English queries alone.

The shape is that of the published comparison (model, configuration, a row a task, average, counts,
overall scores, graphs), with an interval in every cell that makes a claim.
"""
import numpy as np

from colq_utils.report import analysis, findings
from colq_utils.report import markdown as md
from colq_utils.report.analysis import Study
from colq_utils.report.parts import environment, figures, is_embedded, missing, rejected
from colq_utils.report.quantization import calibration_sets, counts, scores, statistics

FIGURES = {"comparison_english.png": "NDCG@5 of English queries by task, 95 % intervals.",
           "difference_english.png": "Change of NDCG@5 against the base by task, English queries, 95 % intervals."}


def write(study: Study) -> str:
    """The whole report as markdown."""
    title = f"# Base and quantized, English only: {study.experiment.title}"
    if not study.english.any():
        return md.document(title, f"No counted task has English queries: {md.MISSING}.")
    return md.document(
        title, rejected(study), "## Model information", _model(study), "## Quantization configuration", _configuration(study), calibration_sets(study),
        "## NDCG@5 by task", _by_task(study), "## Summary", _entries(study), "### Improved, degraded, unchanged", counts(study, study.english),
        "### Overall scores", scores(study, study.english), "### How to read the numbers", statistics(study),
        "## Environment", environment(study.results.evaluate_environment, "evaluate"), "## Performance graphs", figures(study, FIGURES))


def _model(study: Study) -> str:
    model, towers, sizes = study.experiment.model, study.results.towers, analysis.sizes(study.results).set_index("variant")
    known = study.experiment.base in sizes.index
    rows = [("Model", f"`{model.path}`" + (" (embedded in this repository)" if is_embedded(study) else "")),
            ("Revision", model.revision or "as committed"),
            ("Parameters", md.MISSING if towers is None else f"{int(towers.parameters.sum()):,}"),
            ("Tensors of the base (MB)", md.megabytes(sizes["bytes"][study.experiment.base] if known else None)),
            ("Precision", study.labels[study.experiment.base])]
    return md.table(["Property", "Base"], rows, left=2)


def _configuration(study: Study) -> str:
    names, made = findings.four_bits(study), study.results.variants
    specs = [study.experiment.by_id[n] for n in names]
    sizes = analysis.sizes(study.results).set_index("variant")["bytes"]
    rows = [("bits", [v.bits for v in specs]), ("group_size", [v.group_size for v in specs]), ("sym", [md.yes_no(v.sym) for v in specs]),
            ("method", [v.method for v in specs]), ("iters", [v.iters for v in specs]), ("calibration set", [v.calibration or "none" for v in specs]),
            ("size (MB)", [md.megabytes(sizes.get(n)) for n in names])]
    if made is not None:
        first = made.drop_duplicates("variant").set_index("variant")
        rows.append(("fallback used", [(first.fallback[n] or "none") if n in first.index and "fallback" in first else md.MISSING for n in names]))
    note = "" if made is not None else "\n\n" + missing("quantize", "what was used in place of what was asked for")
    return md.table(["Property", *(study.labels[n] for n in names)], [(key, *values) for key, values in rows]) + note


def _by_task(study: Study) -> str:
    names = findings.four_bits(study)
    header = ["Task (queries)", study.labels[study.experiment.base]] + [c for n in names for c in (study.labels[n], "Change (%)")]
    entries = study.entries[study.english]
    table = study.by_entry.set_index(["variant", "task", "lang"])
    rows = []
    for _, e in entries.iterrows():
        base = table.loc[study.experiment.base, e.task, e.lang]
        cells = [_pair(table.loc[n, e.task, e.lang], base.score) for n in names]
        rows.append([f"{e.task} ({int(e.n_queries)})", md.score(base.score)] + [c for pair in cells for c in pair])
    suite = analysis.averages(study, study.english).set_index("variant")
    base = suite.loc[study.experiment.base]
    rows.append(["**Average**", f"**{md.score(base.score)}**"] + [f"**{c}**" for n in names for c in _pair(suite.loc[n], base.score)])
    return md.table(header, rows) + (
        "\n\nThe change is relative to the base's score, which is taken as fixed; brackets are 95 % intervals of the paired difference. "
        "A change whose bracket contains 0 is not told apart from none.")


def _pair(row, base: float) -> tuple[str, str]:
    return md.score(row.score), md.percent_ci(row["diff"], row.diff_low, row.diff_high, base)


def _entries(study: Study) -> str:
    entries = study.entries[study.english]
    holes = [study.labels[n] for n in study.names
             if not np.isfinite(study.by_entry[(study.by_entry.variant == n)].merge(entries[["task", "lang"]]).score).all()]
    text = f"- **Entries evaluated:** {len(entries)}\n- **Queries:** {int(entries.n_queries.sum()):,}"
    return text + (f"\n- **With holes, so without an average:** {md.listing(holes)}" if holes else "")
