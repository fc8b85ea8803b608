"""quantization_analysis.md: what each way of quantizing costs and saves, with intervals, and what follows from it.

The shape is that of the published analysis (summary, methodology, results, memory, analysis,
recommendation, figures); what is added are intervals, tests and the reasons why a question stays open.
Published figures are not quoted here: other checkpoints, other tasks.
"""
import numpy as np
import pandas as pd

from colq_utils.report import analysis, findings, stats
from colq_utils.report import markdown as md
from colq_utils.report.analysis import Study
from colq_utils.report.parts import environment, figures, limits, missing, rejected

GROUPS = {"graded": "counted suite", "reading": "reading check", "crosslingual": "cross-lingual", "mteb": "mteb"}
FIGURES = {
    "headline.png": "Checkpoint size and change of NDCG@5 against the base, 95 % intervals.",
    "average.png": "Average NDCG@5 of every variant between BM25 on the text layer and random weights.",
    "comparison.png": "NDCG@5 by task, averaged over languages, 95 % intervals.",
    "difference.png": "Change of NDCG@5 by task and language.",
    "resolution.png": "Which measure tells a variant from the base.",
}


def write(study: Study) -> str:
    """The whole report as markdown."""
    return md.document(
        f"# Quantization analysis: {study.experiment.title}", rejected(study), "## Executive summary", _summary(study), "### Key findings", _key_findings(study),
        "## Methodology", "### Quantization configuration", _configuration(study), "### Calibration sets", calibration_sets(study),
        "### Evaluation set", _evaluation_set(study), _failures(study), "### Statistics", statistics(study),
        "## Results", "### All languages", scores(study, study.counted), "### English", scores(study, study.english),
        "### Task by task", counts(study, study.counted), findings.falling_tasks(study), "### Word matching and random weights", _references(study), "### Reported apart", _apart(study),
        "### Drift of the scores", drift(study), "### Acceptance of the checkpoints", acceptance(study),
        "## Memory", memory(study),
        "## Analysis", "### Does the calibration length matter?", _lengths(study), "### AutoRound or round-to-nearest?", _rounding(study),
        "### Fewer bits", _ladder(study), "### What resolves four bits", findings.resolution_answer(study),
        "## Recommendation", findings.rule(study), findings.recommend(study).text, "### Which one for what", _use_cases(study), "### Recipe", _recipe(study),
        "## Limits", limits(study), "## Environment", environment(study.results.evaluate_environment, "evaluate"),
        "## Figures", figures(study, FIGURES), "## Conclusion", _conclusion(study))


def _summary(study: Study) -> str:
    used = study.entries[study.counted]
    quantized = [n for n in study.names if n in study.experiment.quantized]
    return (f"This report gives what quantizing the language model of `{study.experiment.model.path}` changes ({len(quantized)} variants against "
            f"{study.labels[study.experiment.base]}): NDCG@5 on {used.task.nunique()} tasks in {used.lang.nunique()} languages "
            f"({int(used.n_queries.sum()):,} queries), score drift and size. Differences are paired; brackets are 95 % intervals over queries; "
            f"points are NDCG@5 x 100; MB are 10^6 bytes.\n\n{findings.near_lossless(study)} {findings.recommend(study).text}")


def _key_findings(study: Study) -> str:
    table = study.suite.merge(analysis.sizes(study.results), on="variant", how="left")
    rows = [(study.labels[r.variant], md.megabytes(r["bytes"]), md.number(r.reduction_pct, 1, unit=" %"),
             md.points_ci(r["diff"], r.diff_low, r.diff_high), r.verdict) for _, r in table.iterrows() if r.variant in study.experiment.quantized]
    return md.table(["Variant", "Checkpoint (MB)", "Saved", "Change of NDCG@5 (points)", f"At a margin of {findings.points(study)} points"], rows)


def _configuration(study: Study) -> str:
    made = study.results.variants
    if made is None:
        return missing("quantize", "what was quantized; the settings below are those asked for") + "\n\n" + _asked(study)
    rows = [(study.labels[r.variant], r.method, r.group_size, md.yes_no(r.sym), r.calibration or "none", r.iters, r.export, r.backend,
             r.fallback or "none") for _, r in made.iterrows()]
    header = ["Variant", "Method", "Group size", "Symmetric", "Calibration set", "Iterations", "Export", "Kernel backend", "Fallback used"]
    return md.table(header, rows, left=9) + (
        "\n\nOnly the Linear layers of the language model's blocks are quantized; vision tower, embedding table and projection keep "
        f"{study.experiment.runtime.dtype}, so page features before the language model are the same for every variant.")


def _asked(study: Study) -> str:
    rows = [(study.labels[n], v.method, v.group_size, md.yes_no(v.sym), v.calibration or "none", v.iters)
            for n, v in study.experiment.quantized.items()]
    return md.table(["Variant", "Method", "Group size", "Symmetric", "Calibration set", "Iterations"], rows, left=6)


def calibration_sets(study: Study) -> str:
    """The sets as packed, with the tokens of one tuning step."""
    table = study.results.sets
    if table is None:
        return missing("calibrate", "the calibration sets")
    rows = [(r["set"], r.kind, r.seqlen, r.blocks, r.batch_rows, md.number(r.tokens, 0), md.number(r.tokens / r.blocks * r.batch_rows, 0),
             md.number(r.padding_pct, 1), md.number(r.get("overlap_8grams"), 0)) for _, r in table.iterrows()]
    header = ["Set", "Kind", "Length", "Blocks", "Rows a step", "Tokens", "Tokens a step", "Padding (%)", "8-grams shared with the queries"]
    text = table[table.kind == "text"]
    designs = [list(t["set"]) for _, t in text.groupby([text.tokens, text.tokens / text.blocks * text.batch_rows], sort=False)]
    alike, alone = [names for names in designs if len(names) > 1], [names[0] for names in designs if len(names) == 1]
    note = " ".join(f"{md.listing(names)} hold the same number of tokens and give the same number to a step: they differ in length alone." for names in alike)
    if len(alone) > 1:
        note += f" {md.listing(alone)} differ in tokens or tokens a step as well as in length: a difference between them is not the length's alone."
    return md.table(header, rows, left=2) + f"\n\nSource: `{study.experiment.calibration.source}`. {note}"


def _evaluation_set(study: Study) -> str:
    rows = [(task, GROUPS.get(t.group.iloc[0], t.group.iloc[0]), md.yes_no(t.counted.iloc[0]), " ".join(t.lang), f"{int(t.n_queries.sum()):,}",
             f"{int(t.n_pages.max()):,}") for task, t in study.entries.groupby("task")]
    return md.table(["Task", "Group", "In the average", "Languages", "Queries", "Pages searched"], rows, left=4)


def _failures(study: Study) -> str:
    """Tasks that could not be run, with the reason; nothing if there are none."""
    table = study.results.failures
    if table is None or table.empty:
        return ""
    rows = [(r.task, study.labels.get(r.variant, r.variant), r.error) for r in table.itertuples()]
    return (f"**Tasks that failed**, so that a variant named here has no average over the suite (`make evaluate EXPERIMENT={study.experiment.name}` tries them again):\n\n"
            + md.table(["Task", "Variant", "Error"], rows, left=3))


def _use_cases(study: Study) -> str:
    return md.table(["Purpose", "Choice", "Why"], findings.use_cases(study), left=3)


def _conclusion(study: Study) -> str:
    sizes = analysis.sizes(study.results).set_index("variant").reduction_pct
    table = study.suite.set_index("variant")
    lines = [f"- **{study.labels[n]}**: {md.points_ci(table['diff'][n], table.diff_low[n], table.diff_high[n])} points ({table.verdict[n]}), "
             f"{md.number(sizes.get(n), 1, unit=' %')} smaller" for n in findings.four_bits(study)]
    return "On this model and this suite:\n\n" + "\n".join(lines) + f"\n\n{findings.near_lossless(study)}"


def statistics(study: Study) -> str:
    """How averages, intervals, tests and verdicts are made, in words."""
    drawn, where, signs = "queries", "within each entry", "random signs of the paired differences"
    if study.clusters is not None:
        drawn, where = "sources, each with all its queries (translations, one title asked twice)", "within each entry, or within all entries that sources link"
        signs += ", one sign a source"
    return (f"- An entry is a task in one language. An average is the mean over entries of the mean over queries.\n"
            f"- Intervals: paired bootstrap of {drawn}, {where}; {study.ndcg.replicates.shape[0]:,} resamples, percentiles 2.5 and 97.5, seed "
            f"{study.experiment.seed}.\n"
            f"- p: two-sided randomization test ({signs}; at most {stats.FLIPS:,}), adjusted by Holm over the quantized variants.\n"
            f"- Margin, in the experiment file before the run: {findings.points(study)} points. *non-inferior*: the whole interval lies above "
            f"-{findings.points(study)} (which is not *equal*: it may lie below 0), and only then is a variant called near-lossless; *inferior*: below that; *lower*: below 0, with the margin inside; "
            "*not resolved*: the interval contains 0 and the margin.\n"
            "- Detectable: the true difference found in 80 % of such suites, (1.96 + 0.84) x the standard error of the paired difference.\n"
            "- The intervals are those of the queries. Seeds of the quantizer are not varied.")


def scores(study: Study, keep) -> str:
    """Averages over the entries in `keep`: score, difference, test, verdict, wins."""
    if not np.any(keep):
        return f"No counted entry: {md.MISSING}."
    table = analysis.averages(study, keep)
    rows = [(study.labels[r.variant], md.score_ci(r.score, r.low, r.high), *((["-"] * 6) if r.variant == study.experiment.base else (
        md.points_ci(r["diff"], r.diff_low, r.diff_high), md.number(r.relative, 2, True, "%"), "-" if np.isnan(r.p_holm) and np.isfinite(r.p) else md.p_value(r.p_holm), md.number(100 * r.mdd),
        r.verdict, f"{r.wins}/{r.ties}/{r.losses}" if np.isfinite(r["diff"]) else md.MISSING))) for _, r in table.iterrows()]
    header = ["Variant", "NDCG@5", "Change (points)", "Change (%)", "p (Holm)", "Detectable (points)", "Verdict", "Queries won/tied/lost"]
    n, error = study.entries[keep], table.set_index("variant").se[study.experiment.base]
    return md.table(header, rows) + (f"\n\n{len(n)} entries, {int(n.n_queries.sum()):,} queries; standard error of the base's mean {md.number(100 * error)} "
                                     "points. p is adjusted over the quantized variants, so it is not given for another precision of the base.")


def counts(study: Study, keep) -> str:
    """Entries improved, degraded and unchanged, and how many of them beyond their own interval."""
    table = analysis.averages(study, keep) if np.any(keep) else pd.DataFrame()
    rows = [(study.labels[r.variant], r.improved, r.degraded, r.unchanged, r.clearly_improved, r.clearly_degraded)
            for _, r in table.iterrows() if r.variant != study.experiment.base]
    header = ["Variant", "Improved", "Degraded", "Unchanged", "Improved, interval above 0", "Degraded, interval below 0"]
    return md.table(header, rows) + ("\n\nThe first three columns count signs of entries (equal to five decimals: unchanged) and say nothing about "
                                     "chance; the last two count entries whose own 95 % interval leaves 0 out, one in twenty of which would by chance.")


def _references(study: Study) -> str:
    table = analysis.references(study)
    base = study.suite.set_index("variant").loc[study.experiment.base]
    rows = [(study.labels[r.variant], md.score_ci(r.score, r.low, r.high), f"{r.entries} of {r.of}") for _, r in table.iterrows()]
    rows.insert(len(table[table.variant == "bm25"]), (study.labels[study.experiment.base], md.score_ci(base.score, base.low, base.high), f"{int(study.counted.sum())} of {int(study.counted.sum())}"))
    absent = [name for name in study.labels if name in analysis.REFERENCES and name not in set(table.variant)]
    note = "".join(f"\n\n{study.labels[name]}: {md.MISSING}." for name in absent)
    return md.table(["System", "NDCG@5", "Entries"], rows) + note + (
        "\n\nBM25 reads the documents' text layer, which no variant is given; the random weights have the base's shape. They frame the scale." + _below(study))


def _below(study: Study) -> str:
    """The tasks on which BM25 lies below the base."""
    scores = study.results.scores
    means = scores[scores.counted].pivot_table(index="task", columns="variant", values="ndcg_at_5")
    if "bm25" not in means:
        return ""
    tasks = list(means.index[means["bm25"] < means[study.experiment.base]])
    return f" BM25 is no bound: it knows exact words and not their order, and lies below the base on {md.listing(tasks)}." if tasks else ""


def _apart(study: Study) -> str:
    parts = []
    for group in study.entries.group[~study.counted].unique():
        keep = study.group(group) & ~study.counted
        rows = [(study.labels[r.variant], md.score_ci(r.score, r.low, r.high), *(("-", "-") if r.variant == study.experiment.base else (
                 md.points_ci(r["diff"], r.diff_low, r.diff_high), md.number(100 * r.mdd)))) for _, r in analysis.averages(study, keep).iterrows()]
        parts.append(f"Group *{GROUPS.get(group, group)}* ({int(keep.sum())} entries), outside the average:\n\n"
                     + md.table(["Variant", "NDCG@5", "Change (points)", "Detectable (points)"], rows))
    return "\n\n".join(parts) or "Every entry is in the average."


def drift(study: Study) -> str:
    """Score margin, top 5 and cosine: what moves before a rank does."""
    table = analysis.drift(study).pivot(index="variant", columns="measure", values=["value", "diff", "low", "high"]).reindex(study.names)
    made = study.results.variants
    cosine = pd.DataFrame() if made is None else made.drop_duplicates("variant").set_index("variant")
    rows = []
    for name in study.names:
        if name != study.experiment.base:
            margin, kept = (md.value_ci(table["diff", "margin"][name], table["low", "margin"][name], table["high", "margin"][name], 5, True),
                            md.value_ci(table["value", "overlap"][name], 1 + table["low", "overlap"][name], 1 + table["high", "overlap"][name], 1, scale=100))
            rows.append((study.labels[name], margin, kept, *(_cosine(cosine, name, kind) for kind in ("query", "page"))))
    base = md.number(table["value", "margin"][study.experiment.base], 5)
    other = [n for n in study.names if n != study.experiment.base and n not in study.experiment.quantized]
    yardstick = "" if other else ", which was not evaluated here"
    return md.table(["Variant", "Change of the score margin", "Top 5 kept (%)", "Cosine of query tokens, mean (min)", "Cosine of page tokens, mean (min)"], rows) + (
        f"\n\nThe score margin is the MaxSim score of the best relevant page minus that of the best other page, by query token; the base's mean is {base}. "
        "The overlap of any two runs is below 100 % as soon as one page moves; it speaks of the bits only where it is below that of another precision "
        f"of the same weights{yardstick}. Cosines are those of the acceptance check, on its own few texts and pages, and have no interval.")


def _cosine(table: pd.DataFrame, name: str, kind: str) -> str:
    if name not in table.index or f"cosine_{kind}_mean" not in table:
        return md.MISSING
    return f"{md.number(table[f'cosine_{kind}_mean'][name], 4)} ({md.number(table[f'cosine_{kind}_min'][name], 4)})"


def acceptance(study: Study) -> str:
    """The published acceptance list, one row a variant and export."""
    table = study.results.variants
    if table is None:
        return missing("quantize", "the acceptance of the checkpoints")
    rows = [(study.labels[r.variant], r.export, *(md.yes_no(r.get(c)) for c in ("loads", "runs", "finite")), md.number(r.get("cosine_query_mean"), 4),
             md.number(r.get("cosine_page_mean"), 4), md.megabytes(r.tensor_bytes), md.yes_no(r.get("accepted"))) for _, r in table.iterrows()]
    header = ["Variant", "Export", "Loads", "Runs", "No NaN/Inf", "Cosine, queries", "Cosine, pages", "Size (MB)", "Accepted"]
    judged = study.suite.set_index("variant")["verdict"]
    passed = [study.labels[v] for v in table[table.accepted.astype(bool)].variant.unique() if judged.get(v) == "inferior"]
    warning = f" The bar is no test of retrieval: it lets {md.listing(passed)} pass, inferior by NDCG@5 above." if passed else ""
    return md.table(header, rows, left=5) + ("\n\nAccepted: loads, runs on text and on pages, only finite numbers, smaller than the base, mean "
                                             "cosines above 0.90." + warning)


def memory(study: Study) -> str:
    """Bytes of the stored tensors, predicted and found, and where they are."""
    made, towers = study.results.variants, study.results.towers
    if made is None:
        return missing("quantize", "the size of the checkpoints")
    rows = [(study.labels[r.variant], r.export, md.megabytes(r.base_bytes), md.megabytes(r.tensor_bytes), md.number(100 * (1 - r.tensor_bytes / r.base_bytes), 1),
             md.megabytes(r.get("predicted_bytes"))) for _, r in made.iterrows()]
    text = md.table(["Variant", "Export", "Base (MB)", "Quantized (MB)", "Reduction (%)", "Predicted (MB)"], rows, left=2)
    if towers is None:
        return text + "\n\n" + missing("inspect", "the bytes of each tower")
    parts = [(r.tower, f"{int(r.tensors):,}", f"{int(r.parameters):,}", md.megabytes(r.bytes), md.number(100 * r.share, 1)) for _, r in towers.iterrows()]
    return text + "\n\nTensor bytes of the checkpoint. Only the language model's share can shrink; the base's bytes are:\n\n" + md.table(
        ["Part", "Tensors", "Parameters", "Size (MB)", "Share (%)"], parts)


def pair_table(study: Study, table: pd.DataFrame) -> str:
    """Differences between pairs of variants by NDCG@5 and score margin."""
    if table.empty:
        return ""
    rows = []
    for (first, second), t in table.groupby(["first", "second"], sort=False):
        ndcg, margin = (t[t.measure == m].iloc[0] for m in ("ndcg", "margin"))
        rows.append((f"{study.labels[first]} minus {study.labels[second]}", md.points_ci(ndcg["diff"], ndcg.low, ndcg.high),
                     "resolved" if ndcg.resolved else "not resolved", md.value_ci(margin["diff"], margin.low, margin.high, 5, True),
                     "resolved" if margin.resolved else "not resolved"))
    return md.table(["Pair", "NDCG@5 (points)", "By NDCG@5", "Score margin", "By margin"], rows) + (
        "\n\nThese intervals hold for all pairs of the table together (Bonferroni).")


def _lengths(study: Study) -> str:
    parts, other = [findings.length_answer(study), pair_table(study, findings.lengths(study))], findings.confounded_lengths(study)
    if len(other):
        parts += ["Pairs whose calibration differs in tokens or tokens a step as well, as published comparisons do; what they find is not the length's alone:",
                  pair_table(study, other)]
    return "\n\n".join(filter(None, parts))


def _rounding(study: Study) -> str:
    return "\n\n".join(filter(None, [findings.rounding_answer(study), pair_table(study, findings.rounding_pairs(study))]))


def _ladder(study: Study) -> str:
    return "\n\n".join(filter(None, [findings.ladder_answer(study), pair_table(study, findings.rungs(study))]))


def _recipe(study: Study) -> str:
    chosen = findings.recommend(study).variant
    if chosen is None:
        return "No variant clears the margin, so there is no recipe to recommend. Each variant is a line under `variants` in the experiment file."
    v = study.experiment.by_id[chosen]
    line = ", ".join(f"{k}: {str(x).lower() if isinstance(x, bool) else x}" for k, x in v.model_dump(exclude_defaults=True, exclude={"exports"}).items())
    return (f"As it stands in the experiment file:\n\n```yaml\nvariants:\n  - {{{line}}}\n```\n\n```bash\nmake quantize EXPERIMENT={study.experiment.name}\n```")
