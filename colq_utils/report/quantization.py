"""quantization_analysis.md: what each way of quantizing costs and saves, and what follows from it; the evidence is folded below.

Published figures are not quoted here: other checkpoints, other tasks.
"""

import numpy as np
import pandas as pd

from colq_utils.report import analysis, findings, stats, summary, wording
from colq_utils.report import markdown as md
from colq_utils.report.analysis import Study
from colq_utils.report.parts import environment, failed, figures, limits, missing, rejected
from colq_utils.report.prose import render
from colq_utils.report.tables import table

GROUPS = {
    "graded": "counted suite",
    "reading": "reading check",
    "crosslingual": "cross-lingual",
    "mteb": "mteb",
}
HEADLINE = {"headline.png": "Checkpoint size and change of NDCG@5 against the base, 95 % intervals."}
RESOLUTION = {"resolution.png": "Change against the base by three measures, 95 % intervals."}
OTHERS = {
    "average.png": "Average NDCG@5 of every variant between BM25 on the text layer and random weights.",
    "comparison.png": "NDCG@5 by task, averaged over languages, 95 % intervals.",
    "difference.png": "Change of NDCG@5 by task and language.",
}


def write(study: Study) -> str:
    """The whole report as markdown."""
    return render(
        "quantization_analysis.md.j2",
        title=study.experiment.title,
        warning=rejected(study),
        failed=failed(study),
        answer=summary.answer(study),
        table=summary.variant_table(study),
        counted=summary.counted(study),
        detectable=_detectable(study),
        headline=figures(study, HEADLINE),
        near_lossless=findings.near_lossless(study),
        rule=findings.rule(study),
        use_cases=md.table(["Purpose", "Choice", "Why"], findings.use_cases(study), left=3),
        recipe=_recipe(study),
        length=findings.length_answer(study),
        rounding=findings.rounding_answer(study),
        ladder=findings.ladder_answer(study),
        falling=findings.falling_tasks(study),
        measures=findings.resolution_answer(study),
        resolution=figures(study, RESOLUTION),
        limits=limits(study),
        configuration=_configuration(study),
        sets=calibration_sets(study),
        tasks=_evaluation_set(study),
        statistics=statistics(study),
        scores=scores(study, study.counted),
        english=scores(study, study.english),
        counts=counts(study, study.counted),
        references=_references(study),
        apart=_apart(study),
        pairs=_pairs(study),
        drift=drift(study),
        acceptance=acceptance(study),
        memory=memory(study),
        environment=environment(study.results.evaluate_environment, "evaluate"),
        figures=figures(study, OTHERS),
    )


def _detectable(study: Study) -> str:
    """How small a change of a 4-bit variant the counted tasks can show; nothing without an interval."""
    finest = study.suite.mdd[study.suite.variant.isin(findings.four_bits(study))].max()
    return "" if np.isnan(finest) else wording.detectable(100 * finest)


def _configuration(study: Study) -> str:
    """What was quantized as stage quantize recorded it, or as the experiment asks for it."""
    columns = {
        "label": "Variant",
        "method": "Method",
        "group_size": "Group size",
        "symmetric": "Symmetric",
        "set": "Calibration set",
        "iters": "Iterations",
    }
    if study.results.variants is None:
        asked = pd.DataFrame(
            [
                {
                    "label": study.labels[n],
                    "method": v.method,
                    "group_size": v.group_size,
                    "symmetric": md.yes_no(v.sym),
                    "set": v.calibration or "none",
                    "iters": v.iters,
                }
                for n, v in study.experiment.quantized.items()
            ]
        )
        return (
            missing("quantize", "what was quantized; the settings below are those asked for")
            + "\n\n"
            + table(asked, columns)
        )
    used = study.results.variants.assign(
        label=lambda t: t.variant.map(study.labels),
        symmetric=lambda t: t.sym.map(md.yes_no),
        set=lambda t: t.calibration.replace("", "none"),
        fallback=lambda t: t.fallback.replace("", "none"),
    )
    return table(
        used, columns | {"export": "Export", "backend": "Kernel backend", "fallback": "Fallback used"}
    )


def calibration_sets(study: Study) -> str:
    """The sets as packed, with the tokens of one tuning step."""
    sets = study.results.sets
    if sets is None:
        return missing("calibrate", "the calibration sets")
    rows = [
        (
            r["set"],
            r.kind,
            md.number(r.seqlen, 0),
            r.blocks,
            r.batch_rows,
            md.number(r.tokens, 0),
            md.number(r.tokens / r.blocks * r.batch_rows, 0),
            md.number(r.padding_pct, 1),
            md.number(r.get("overlap_8grams"), 0),
        )
        for _, r in sets.iterrows()
    ]
    header = [
        "Set",
        "Kind",
        "Length",
        "Blocks",
        "Rows per step",
        "Tokens",
        "Tokens per step",
        "Padding (%)",
        "8-grams shared with the queries",
    ]
    text = sets[sets.kind == "text"]
    designs = [
        list(t["set"])
        for _, t in text.groupby([text.tokens, text.tokens / text.blocks * text.batch_rows], sort=False)
    ]
    alike, alone = (
        [names for names in designs if len(names) > 1],
        [names[0] for names in designs if len(names) == 1],
    )
    note = " ".join(
        f"{md.listing(names)} hold the same number of tokens in all and per step: they differ in length alone."
        for names in alike
    )
    if len(alone) > 1:
        note += f" {md.listing(alone)} differ in tokens or tokens per step as well as in length: a difference between them is not due to the length alone."
    return md.table(header, rows, left=2) + f"\n\nSource: `{study.experiment.calibration.source}`. {note}"


def _evaluation_set(study: Study) -> str:
    rows = [
        (
            task,
            GROUPS.get(t.group.iloc[0], t.group.iloc[0]),
            md.yes_no(t.counted.iloc[0]),
            " ".join(t.lang),
            f"{int(t.n_queries.sum()):,}",
            f"{int(t.n_pages.max()):,}",
        )
        for task, t in study.entries.groupby("task")
    ]
    return md.table(
        ["Task", "Group", "In the average", "Languages", "Queries", "Pages searched"], rows, left=4
    )


def statistics(study: Study) -> str:
    """How averages, intervals, tests and words are made."""
    return render(
        "statistics.md.j2",
        clustered=study.clusters is not None,
        resamples=f"{study.ndcg.replicates.shape[0]:,}",
        flips=f"{stats.FLIPS:,}",
        seed=study.experiment.seed,
        margin=findings.points(study),
    ).strip()


def scores(study: Study, keep) -> str:
    """Averages over the entries in `keep`: score, difference, test, and what the interval shows."""
    if not np.any(keep):
        return f"No counted entry: {md.MISSING}."
    averages = analysis.averages(study, keep)
    rows = [
        (
            study.labels[r.variant],
            md.significant(r.score),
            *(["-"] * 5 if r.variant == study.experiment.base else _tested(study, r)),
        )
        for _, r in averages.iterrows()
    ]
    entries, error = study.entries[keep], averages.set_index("variant").se[study.experiment.base]
    header = [
        "Variant",
        "NDCG@5",
        "Change (points)",
        "p (Holm)",
        "Detectable (points)",
        "Queries better/same/worse",
        "What the interval shows",
    ]
    return md.table(header, rows) + (
        f"\n\n{len(entries)} task-language pairs, {int(entries.n_queries.sum()):,} queries; the standard error of the base's mean is "
        f"{md.significant(100 * error)} points."
    )


def _tested(study: Study, r) -> tuple:
    """Cells of a variant's change: interval, p-value, what could have been detected, counts, words."""
    return (
        md.change_ci(r["diff"], r.diff_low, r.diff_high),
        "-" if np.isnan(r.p_holm) and np.isfinite(r.p) else md.p_value(r.p_holm),
        md.significant(100 * r.mdd),
        f"{r.wins}/{r.ties}/{r.losses}" if np.isfinite(r["diff"]) else md.MISSING,
        wording.change(r.diff_low, r.diff_high, study.experiment.evaluation.margin),
    )


def counts(study: Study, keep) -> str:
    """Entries improved, degraded and unchanged, and how many of them beyond their own interval."""
    averages = analysis.averages(study, keep) if np.any(keep) else pd.DataFrame()
    rows = [
        (study.labels[r.variant], r.improved, r.degraded, r.unchanged, r.clearly_improved, r.clearly_degraded)
        for _, r in averages.iterrows()
        if r.variant != study.experiment.base
    ]
    header = [
        "Variant",
        "Improved",
        "Degraded",
        "Unchanged",
        "Improved, interval above 0",
        "Degraded, interval below 0",
    ]
    return md.table(header, rows) + (
        "\n\nThe first three columns count the signs of the changes per task and language (equal to five decimals: unchanged), whatever chance does; the last "
        "two count those whose own 95 % interval leaves 0 out, as one in twenty would by chance."
    )


def _references(study: Study) -> str:
    references = analysis.references(study)
    base = study.suite.set_index("variant").loc[study.experiment.base]
    everything = int(study.counted.sum())
    rows = [
        (study.labels[r.variant], md.significant(r.score), f"{r.entries} of {r.of}")
        for _, r in references.iterrows()
    ]
    rows.insert(
        len(references[references.variant == "bm25"]),
        (study.labels[study.experiment.base], md.significant(base.score), f"{everything} of {everything}"),
    )
    absent = [
        name for name in study.labels if name in analysis.REFERENCES and name not in set(references.variant)
    ]
    note = "".join(f"\n\n{study.labels[name]}: {md.MISSING}." for name in absent)
    return (
        md.table(["System", "NDCG@5", "Task-language pairs"], rows)
        + note
        + (
            "\n\nBM25 reads the documents' text layer, which no variant is given; the random weights have the base's shape. They frame the scale."
            + _below(study)
        )
    )


def _below(study: Study) -> str:
    """The tasks on which BM25 lies below the base."""
    scores = study.results.scores
    means = scores[scores.counted].pivot_table(index="task", columns="variant", values="ndcg_at_5")
    if "bm25" not in means:
        return ""
    tasks = list(means.index[means["bm25"] < means[study.experiment.base]])
    return (
        f" BM25 is no upper bound: it matches exact words, whatever their order, and scores lower than the base on {md.listing(tasks)}."
        if tasks
        else ""
    )


def _apart(study: Study) -> str:
    parts, margin = [], study.experiment.evaluation.margin
    for group in study.entries.group[~study.counted].unique():
        keep = study.group(group) & ~study.counted
        rows = [
            (
                study.labels[r.variant],
                md.significant(r.score),
                *(
                    ["-"] * 3
                    if r.variant == study.experiment.base
                    else (
                        md.change_ci(r["diff"], r.diff_low, r.diff_high),
                        md.significant(100 * r.mdd),
                        wording.change(r.diff_low, r.diff_high, margin),
                    )
                ),
            )
            for _, r in analysis.averages(study, keep).iterrows()
        ]
        parts.append(
            f"Group *{GROUPS.get(group, group)}* ({int(keep.sum())} task-language pairs), outside the average:\n\n"
            + md.table(
                ["Variant", "NDCG@5", "Change (points)", "Detectable (points)", "What the interval shows"],
                rows,
            )
        )
    return "\n\n".join(parts) or "Every task and language is in the average."


def drift(study: Study) -> str:
    """Score margin, top 5 and cosine: what moves before a rank does."""
    wide = (
        analysis.drift(study)
        .pivot(index="variant", columns="measure", values=["value", "diff", "low", "high"])
        .reindex(study.names)
    )
    checkpoints = study.results.variants
    cosine = (
        pd.DataFrame() if checkpoints is None else checkpoints.drop_duplicates("variant").set_index("variant")
    )
    top = {
        r.variant: md.value_ci(r.top_changed, r.top_changed_low, r.top_changed_high, 1, scale=100)
        for r in analysis.top_page_changes(study).itertuples()
    }
    rows = []
    for name in study.names:
        if name != study.experiment.base:
            of = {key: wide[key].loc[name] for key in ("value", "diff", "low", "high")}
            rows.append(
                (
                    study.labels[name],
                    md.change_ci(of["diff"]["margin"], of["low"]["margin"], of["high"]["margin"], 1000),
                    top[name],
                    md.value_ci(
                        of["value"]["overlap"],
                        1 + of["low"]["overlap"],
                        1 + of["high"]["overlap"],
                        1,
                        scale=100,
                    ),
                    *(_cosine(cosine, name, kind) for kind in ("query", "page")),
                )
            )
    header = [
        "Variant",
        "Change of the score margin (x 1000)",
        "Top page changes (%)",
        "Top 5 kept (%)",
        "Cosine of query tokens, mean (min)",
        "Cosine of page tokens, mean (min)",
    ]
    other = any(n != study.experiment.base and n not in study.experiment.quantized for n in study.names)
    return (
        md.table(header, rows)
        + "\n\n"
        + render(
            "drift.md.j2",
            base=md.significant(1000 * wide["value", "margin"][study.experiment.base]),
            other=other,
        ).strip()
    )


def _cosine(table: pd.DataFrame, name: str, kind: str) -> str:
    if name not in table.index or f"cosine_{kind}_mean" not in table:
        return md.MISSING
    return f"{md.number(table[f'cosine_{kind}_mean'][name], 4)} ({md.number(table[f'cosine_{kind}_min'][name], 4)})"


def acceptance(study: Study) -> str:
    """The published acceptance list, one row per variant and export."""
    checkpoints = study.results.variants
    if checkpoints is None:
        return missing("quantize", "the acceptance of the checkpoints")
    rows = [
        (
            study.labels[r.variant],
            r.export,
            *(md.yes_no(r.get(c)) for c in ("loads", "runs", "finite")),
            md.significant(r.get("cosine_query_mean")),
            md.significant(r.get("cosine_page_mean")),
            md.significant(r.tensor_bytes / 1e6),
            md.yes_no(r.get("accepted")),
        )
        for _, r in checkpoints.iterrows()
    ]
    header = [
        "Variant",
        "Export",
        "Loads",
        "Runs",
        "No NaN/Inf",
        "Cosine, queries",
        "Cosine, pages",
        "Size (MB)",
        "Accepted",
    ]
    judged = study.suite.set_index("variant")["verdict"]
    passed = [
        study.labels[v]
        for v in checkpoints[checkpoints.accepted.astype(bool)].variant.unique()
        if judged.get(v) == "inferior"
    ]
    warning = (
        f" This is no test of retrieval: {md.label_list(passed)} pass it, and lose more than {findings.points(study)} points of NDCG@5."
        if passed
        else ""
    )
    return md.table(header, rows, left=5) + (
        "\n\nAccepted: loads, runs on text and on pages, only finite numbers, smaller than the base, mean "
        "cosines above 0.90." + warning
    )


def memory(study: Study) -> str:
    """Bytes of the stored tensors, predicted and found, and where they are."""
    checkpoints, towers = study.results.variants, study.results.towers
    if checkpoints is None:
        return missing("quantize", "the size of the checkpoints")
    rows = checkpoints.assign(
        label=lambda t: t.variant.map(study.labels),
        saved_pct=lambda t: 100 * (1 - t.tensor_bytes / t.base_bytes),
    )
    text = table(
        rows,
        {
            "label": "Variant",
            "export": "Export",
            "base_bytes": "Base (MB)",
            "tensor_bytes": "Quantized (MB)",
            "saved_pct": "Saved (%)",
            "predicted_bytes": "Predicted (MB)",
        },
    )
    if towers is None:
        return text + "\n\n" + missing("inspect", "the bytes of each part of the model")
    parts = table(
        towers.assign(tower=towers.tower.str.replace("_", " ")),
        {
            "tower": "Part",
            "tensors": "Tensors",
            "parameters": "Parameters",
            "bytes": "Size (MB)",
            "share": "Share (%)",
        },
    )
    return (
        text
        + "\n\nTensor bytes of the checkpoint. Only the language model's share can shrink; the base's bytes are:\n\n"
        + parts
    )


def pair_table(study: Study, pairs: pd.DataFrame) -> str:
    """Differences between pairs of variants by NDCG@5 and score margin."""
    if pairs.empty:
        return ""
    rows = []
    for (first, second), t in pairs.groupby(["first", "second"], sort=False):
        ndcg, margin = (t[t.measure == m].iloc[0] for m in ("ndcg", "margin"))
        rows.append(
            (
                f"{study.labels[first]} minus {study.labels[second]}",
                md.change_ci(ndcg["diff"], ndcg.low, ndcg.high),
                wording.pair(ndcg.low, ndcg.high),
                md.change_ci(margin["diff"], margin.low, margin.high, 1000),
                wording.pair(margin.low, margin.high),
            )
        )
    return md.table(
        ["Pair", "NDCG@5 (points)", "The first is, by NDCG@5", "Score margin (x 1000)", "By the margin"], rows
    )


def _pairs(study: Study) -> list[tuple[str, str]]:
    """Title and table of every family of pairs; families without a pair are left out."""
    families = (
        ("Calibration length", findings.lengths(study)),
        (
            "Calibrations that differ in tokens or tokens per step as well, as published comparisons do; a difference is not due to the length alone",
            findings.confounded_lengths(study),
        ),
        ("AutoRound against round-to-nearest", findings.rounding_pairs(study)),
        ("Fewer bits", findings.rungs(study)),
    )
    return [(title, pair_table(study, pairs)) for title, pairs in families if len(pairs)]


def _recipe(study: Study) -> str:
    """Code to copy for the recommended variant, or for the closest one where none clears the margin."""
    chosen = findings.recommend(study).variant
    name = chosen or findings.closest(study)
    if name is None:
        return f"No variant has an interval, so there is no recipe to copy: {md.MISSING}."
    variant = study.experiment.by_id[name]
    fields = variant.model_dump(exclude_defaults=True, exclude={"exports"})
    line = ", ".join(
        f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in fields.items()
    )
    return render(
        "recipe.md.j2",
        chosen=chosen,
        label=study.labels[name],
        line=line,
        experiment=study.experiment.name,
        variant=name,
        export=variant.exports[0],
    ).strip()
