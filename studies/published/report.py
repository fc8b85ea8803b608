"""The published comparison and analysis again, from their transcribed tables, with what those figures can carry.

Two reports under results/published/reports: `comparison_4b_english.md` in the shape of the published comparison, and
`analysis.md` for the aggregates of the analysis, benchmark and serving reports. Every number is transcribed or
recomputed from transcribed ones (`published`); none was measured here, and both reports open by saying so.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from colq_utils.base import files
from colq_utils.base.config import ROOT
from colq_utils.report import markdown as md
from studies.published import figures_data as pub
from studies.published import plots as published_plots
from studies.published.figures_data import (
    AS_PUBLISHED,
    DIFFERS,
    LENGTHS,
    ORIGINAL,
    REPRODUCED,
    ROUNDING,
    Published,
)

NAMES = {ORIGINAL: "Original (FP16)", **{name: name.replace("-", "=") for name in LENGTHS}}
ORIGIN = (
    "Every figure below is one of the published reports (`data/published`) or is computed from them. None was measured in this "
    "repository, and none is comparable with the figures of its bundled demo model."
)
TESTS = {"sign": "Sign test", "wilcoxon": "Wilcoxon", "randomization": "Randomization"}


def write(output: Path, p: Published | None = None) -> list[Path]:
    """Write both reports to `output`/results/published/reports/, and their figures; the same bytes for the same tables."""
    p, folder = p or pub.load(), Path(output) / "results" / "published" / "reports"
    published_plots.draw(output, p)
    return [files.write_text(folder / name, text) for name, text in render(p).items()]


def render(p: Published) -> dict[str, str]:
    """File name -> text."""
    return {"comparison_4b_english.md": comparison(p), "analysis.md": analysis(p)}


def comparison(p: Published) -> str:
    """The published English comparison of the 4B, regenerated, and tests across its tasks."""
    return md.document(
        "# Published comparison: 4B, original against W4A16, English tasks",
        ORIGIN,
        "## Model information",
        _model(p),
        "## Quantization configuration",
        _configuration(p),
        "## NDCG@5 by task",
        _tasks(p),
        "## Summary",
        _entries(p),
        "### Performance by calibration length",
        _counts(p),
        "### Overall scores",
        _overall(p),
        "## What the differences carry",
        _across(p),
        "### Single tasks",
        _worth(p),
        "## Performance graphs",
        _figure("difference_4b_english.png"),
    )


def analysis(p: Published) -> str:
    """The other published reports, recomputed where their inputs are printed: the answer first, every table folded."""
    folded = (
        ("The 8B: averages and task entries", f"{_averages(p, '8b')}\n\n{_entry_counts(p, '8b')}"),
        ("The 4B: averages and task entries", f"{_averages(p, '4b')}\n\n{_entry_counts(p, '4b')}"),
        ("Comparisons over different task sets", _task_sets(p)),
        ("Calibration lengths that differ in more than length", _designs(p)),
        ("Memory", _sizes(p)),
        ("Speed of the 8B on text queries", _speed(p)),
        ("FP8 serving of another model", _serving(p)),
        ("Recommendations, as published", _recommendations(p)),
        ("Audit of every printed value", _audit(p)),
    )
    return md.document(
        "# What the published figures can carry",
        ORIGIN,
        "## The question",
        QUESTION,
        "## The answer",
        _short(p),
        "## The numbers",
        _changes(p),
        _figure("averages.png"),
        "## What is not published",
        _not_published(p),
        *(md.fold(title, body) for title, body in folded),
    )


QUESTION = (
    "The published ColQwen3 reports compare the 4B and 8B retrievers with 4-bit versions calibrated at three lengths (256, 512 and 1,024 tokens), and recommend one. "
    "Do the printed numbers agree with each other, and do they support that order? The score is NDCG@5; an *entry* is a task in one language."
)


def _changes(p: Published) -> str:
    """Change of each published average from its original, one row per report, model and set of tasks."""
    rows = []
    for (source, model, scope), group in p.averages.drop_duplicates(
        ["source", "model", "scope", "variant"]
    ).groupby(["source", "model", "scope"], sort=False):
        change = group.set_index("variant").change_pct
        rows.append(
            (
                model.upper(),
                scope.replace("english", "English"),
                _kind(source),
                _count(p, source, model, scope),
                *(md.number(change[n], 2, True) for n in LENGTHS),
            )
        )
    return md.table(
        ["Model", "Tasks", "Report", "Entries", "256 tokens (%)", "512 tokens (%)", "1,024 tokens (%)"],
        rows,
        left=3,
    ) + (
        "\n\nChange of the average NDCG@5 from the unquantized model, as published; no intervals are published."
    )


def _kind(source: str) -> str:
    return "comparison" if source.startswith("comparison") else "analysis"


def _count(p: Published, source: str, model: str, scope: str):
    """Entries that an average rests on, where the report says so."""
    count = p.counts[
        (p.counts.source == source) & (p.counts.model == model) & (p.counts.scope == scope)
    ].entries
    return int(count.iloc[0]) if len(count) else "not published"


def _not_published(p: Published) -> str:
    return "\n".join(
        f"- {line}"
        for line in (
            "Scores of single queries, and therefore any interval on a task.",
            "A second seed: every quantized model is a single run. How far a new seed alone moves a score is measured on the bundled demo model, in the "
            "[study of calibration length](../../seqlen-study/reports/seqlen_study.md).",
            "Scores by task of the analysis report; only its averages and counts are printed.",
            "Which kernel the quantized 8B ran on when it was timed.",
        )
    )


def _figure(name: str) -> str:
    return md.picture(f"../../../figures/published/{name}", published_plots.CAPTIONS[name])


def _sources(table: pd.DataFrame) -> str:
    return "Source: " + md.listing([f"`{name}`" for name in table.source.unique()]) + "."


def _model(p: Published) -> str:
    m = p.models[(p.models.source == p.scores_by_task.source.iloc[0])].iloc[0]
    size = p.sizes[p.sizes.source == m.source].iloc[0]
    return (
        md.table(
            ["Property", "Original (FP16)"],
            [
                ("Model", f"`{m['name']}`"),
                ("Parameters (10^9)", m.parameters_billions),
                ("Memory (GB)", size.original_gb),
                ("Memory of the quantized (GB)", size.quantized_gb),
                ("Release date", m.release_date),
            ],
            left=2,
        )
        + f"\n\nAs published. {_sources(p.scores_by_task)}"
    )


def _configuration(p: Published) -> str:
    c = p.configurations[p.configurations.source == p.scores_by_task.source.iloc[0]].set_index("seqlen")
    keys = [
        "bits",
        "group_size",
        "sym",
        "iters",
        "nsamples",
        "batch_size",
        "quant_method",
        "provider",
        "calibration",
    ]
    rows = [
        (key, *("none" if pd.isna(v) else f"{v:.0f}" if isinstance(v, float) else v for v in c[key]))
        for key in keys
    ]
    return (
        md.table(["Property", *_called(LENGTHS)], rows)
        + "\n\nAs published: samples, batch and method change with the length (see `analysis.md`)."
    )


def _called(names) -> list[str]:
    """How the reports call variants."""
    return [NAMES[n] for n in names]


def _tasks(p: Published) -> str:
    header = ["Task", "Original"] + [c for n in LENGTHS for c in (NAMES[n], "Δ%")]
    rows = [(f"{task} [English]", *_scores(r)) for task, r in p.english.iterrows()]
    rows.append(("**Average**", *(f"**{c}**" for c in _scores(p.english.mean()))))
    return md.table(header, rows) + "\n\nScores as published; changes and average recomputed."


def _scores(row) -> list[str]:
    return [md.number(row[ORIGINAL], 5)] + [
        c for n in LENGTHS for c in (md.number(row[n], 5), _percent(row[n], row[ORIGINAL]))
    ]


def _percent(new: float, old: float) -> str:
    return md.number(pub.percent(new, old), 2, True, "%")


def _entries(p: Published) -> str:
    n = len(p.english)
    return f"- **Tasks (original):** {n}\n- **Entries evaluated:** {n}"


def _counts(p: Published) -> str:
    counts = {n: pub.stats.win_tie_loss(p.differences[n]) for n in LENGTHS}
    rows = [
        (word, *(counts[n][i] for n in LENGTHS))
        for word, i in (("**Improved**", 0), ("**Degraded**", 2), ("**Unchanged**", 1))
    ]
    return md.table(["Metric", *_called(LENGTHS)], rows) + "\n\nRecomputed from the scores by task."


def _overall(p: Published) -> str:
    mean = p.english.mean()
    rows = [
        (
            NAMES[n] if n == ORIGINAL else f"AWQ ({NAMES[n]})",
            md.number(mean[n], 5),
            "-" if n == ORIGINAL else _percent(mean[n], mean[ORIGINAL]),
        )
        for n in NAMES
    ]
    return (
        md.table(["Model", "Average NDCG@5", "Change from original"], rows)
        + "\n\nRecomputed from the scores by task."
    )


def _across(p: Published) -> str:
    table = pub.across_tasks(p)
    rows = [
        (
            f"{NAMES[r['first']]} minus {_other(r['second'])}",
            md.points_ci(r["diff"], r.low, r.high),
            f"{r.wins}/{r.ties}/{r.losses}",
            *(f"{md.p_value(r[f'p_{t}'])} ({md.p_value(r[f'holm_{t}'])})" for t in TESTS),
        )
        for _, r in table.iterrows()
    ]
    header = [
        "Difference",
        "Mean (points)",
        "Tasks won/tied/lost",
        *(f"{t}, p (Holm)" for t in TESTS.values()),
    ]
    return (
        _across_words(table)
        + "\n\n"
        + md.table(header, rows)
        + (
            f"\n\nThe sample is the {len(p.english)} tasks, because the report prints no scores of queries. Brackets are 95 % intervals of a bootstrap over tasks "
            f"({pub.stats.RESAMPLES:,} resamples); p in brackets is adjusted by Holm, over the three lengths against the original and over the three pairs. "
            "The sign test and Wilcoxon leave out tasks that are exactly tied."
        )
    )


def _across_words(table: pd.DataFrame) -> str:
    lines = []
    for name, part in (
        ("against the original", table[table.second == ORIGINAL]),
        ("between two lengths", table[table.second != ORIGINAL]),
    ):
        alone = [
            f"{_named(r)} ({md.listing([w for t, w in TESTS.items() if r[f'p_{t}'] < 0.05])})"
            for _, r in part.iterrows()
            if any(r[f"p_{t}"] < 0.05 for t in TESTS)
        ]
        kept = [_named(r) for _, r in part.iterrows() if any(r[f"holm_{t}"] < 0.05 for t in TESTS)]
        lines.append(
            f"- Of the {len(part)} differences {name}, a test at 5 % supports {len(alone)} taken alone"
            + (f": {md.listing(alone)}" if alone else "")
            + f"; after Holm {md.listing(kept)}."
        )
    return "\n".join(lines)


def _named(r) -> str:
    return f"{NAMES[r['first']]} against {_other(r['second'])}"


def _other(name: str) -> str:
    return "the original" if name == ORIGINAL else NAMES[name]


def _worth(p: Published) -> str:
    queries = p.tasks.set_index("task").english_queries
    table = pub.worth(p)
    rows = [
        (task, f"{queries[task]:,}", *(md.number(r[n], 2, True) for n in LENGTHS))
        for task, r in table.iterrows()
    ]
    small = int((table.abs() < 1).sum().sum())
    return (
        f"None of the {table.size} differences of a single task can be tested: that needs scores of queries. But we can say how little they rest on. "
        f"A task's change times its number of English queries is the sum of the changes of its queries, where 1 is a single query that goes from "
        f"the right page on top to none among five. **{small} of {table.size} differences sum to less than one query**, and the median "
        f"(of absolute values) is {md.number(float(np.median(table.abs())), 2)} queries.\n\n"
        + md.table(["Task", "English queries", *_called(LENGTHS)], rows)
        + f"\n\nNumbers of queries from {p.tasks.source.iloc[0]}, not from the report; its version of the tasks may differ."
    )


def _analysis_averages(p: Published, model: str) -> pd.DataFrame:
    a = p.averages[(p.averages.source == "quantization_analysis_report.md") & (p.averages.model == model)]
    return a.pivot(index="variant", columns="scope", values="ndcg_at_5").loc[[ORIGINAL, *LENGTHS]]


def _averages(p: Published, model: str) -> str:
    table = _analysis_averages(p, model)
    rows = [
        (
            NAMES[n],
            *(
                c
                for scope in ("all languages", "english")
                for c in (
                    md.number(table[scope][n], 5),
                    "-" if n == ORIGINAL else _percent(table[scope][n], table[scope][ORIGINAL]),
                )
            ),
        )
        for n in table.index
    ]
    return md.table(
        ["Variant", "Average NDCG@5, all languages", "Change", "Average NDCG@5, English", "Change"], rows
    ) + ("\n\nAverages **as published** (the scores behind them are not printed); changes recomputed.")


def _entry_counts(p: Published, model: str) -> str:
    table = pub.count_tests(p)
    table = table[(table.model == model) & (table.source == "quantization_analysis_report.md")]
    rows = [
        (
            NAMES[r.variant],
            r.improved,
            r.degraded,
            r.unchanged,
            r.improved + r.degraded + r.unchanged,
            f"{md.p_value(r.p_sign)} ({md.p_value(r.holm_sign)})",
        )
        for r in table.itertuples()
    ]
    return md.table(
        ["Variant", "Improved", "Degraded", "Unchanged", "Entries (sum)", "Sign test, p (Holm)"], rows
    ) + (
        "\n\nCounts **as published**; sums and tests recomputed. The test takes the entries as independent, which they are not: languages of a task "
        "share pages and translated queries, which makes p too small."
    )


def _short(p: Published) -> str:
    """The answer in a few sentences, each computed from the tables."""
    audit, across, counted = pub.audit(p), pub.across_tasks(p), pub.count_tests(p)
    status = audit.status.value_counts()
    return "\n".join(
        f"- {line}"
        for line in (
            *_agreement(p),
            *_support(p, across, counted),
            f"**The printed values mostly agree with their own inputs.** Of {len(audit)} values, {status.get(REPRODUCED, 0)} are reproduced to the last digit, "
            f"{status.get(ROUNDING, 0)} within rounding, and {status.get(DIFFERS, 0)} differ; the inputs of the other {status.get(AS_PUBLISHED, 0)} are not printed.",
        )
    )


def _agreement(p: Published) -> list[str]:
    """Which averages may be compared, and whether two reports on one model agree."""
    english = {
        s: p.averages[(p.averages.source == s) & (p.averages.model == "4b") & (p.averages.scope == "english")]
        .drop_duplicates("variant")
        .set_index("variant")
        for s in p.averages.source.unique()
    }
    ours, theirs = (
        english[s] for s in ("comparison_4b_english_report.md", "quantization_analysis_report.md")
    )
    worst = {name: table.change_pct.idxmin() for name, table in (("comparison", ours), ("analysis", theirs))}
    entries = p.counts.drop_duplicates(["model", "scope"]).set_index(["model", "scope"]).entries
    order = (
        f"and so does the worst length: {_tokens(worst['comparison'])} in the comparison, {_tokens(worst['analysis'])} in the analysis."
        if worst["comparison"] != worst["analysis"]
        else f"though both find {_tokens(worst['comparison'])} worst."
    )
    return [
        f"**8B and 4B cannot be compared.** Their averages over all languages rest on {entries['8b', 'all languages']} entries for the 8B and "
        f"{entries['4b', 'all languages']} for the 4B, and no report says which are missing.",
        f"**Two reports on the 4B disagree.** Its English average without quantization is {ours.ndcg_at_5[ORIGINAL]:.5f} in one and {theirs.ndcg_at_5[ORIGINAL]:.5f} in the other, {order}",
    ]


def _support(p: Published, across: pd.DataFrame, counted: pd.DataFrame) -> list[str]:
    """What the tests support about the order of lengths."""
    kept = [
        f"the {r.model.upper()} at {_tokens(r.variant)}"
        for r in counted.itertuples()
        if r.scope == "all languages" and r.holm_sign < 0.05
    ]
    clear = int((across[[f"holm_{t}" for t in TESTS]] < 0.05).any(axis=1).sum())
    return [
        f"**The order of lengths is not shown.** The {len(p.english)} English tasks of the 4B allow {len(across)} comparisons; after correction for multiple tests (Holm) "
        f"we {'detect no difference' if not clear else f'detect {clear} differences'} among them. Besides, batch size and, where given, sample and token counts change with the length.",
        (
            f"**Counts point to a loss in {len(kept)} case{'s' if len(kept) > 1 else ''}.** Counting entries that got better or worse supports a loss for "
            f"{md.listing(kept)} if entries were independent. They are not: languages of a task share pages and translated queries."
        )
        if kept
        else "**Counts of entries support no loss.** No count of entries that got better or worse is uneven enough.",
    ]


def _tokens(variant: str) -> str:
    return f"{int(variant.removeprefix('seqlen-')):,} tokens"


def _task_sets(p: Published) -> str:
    entries = p.tasks.entries
    rows = []
    for (source, model, scope), a in p.averages.drop_duplicates(
        ["source", "model", "scope", "variant"]
    ).groupby(["source", "model", "scope"], sort=False):
        rows.append(
            (
                f"`{source}`",
                model.upper(),
                scope.replace("english", "English"),
                _count(p, source, model, scope),
                *(md.number(v, 5) for v in a.set_index("variant").ndcg_at_5[[ORIGINAL, *LENGTHS]]),
            )
        )
    return md.table(["Report", "Model", "Average over", "Entries", *_called(NAMES)], rows, left=3) + (
        f"\n\nThe {len(p.tasks)} tasks of the reports have {int(entries.sum())} entries (task x language) by {p.tasks.source.iloc[0]}, the number given for "
        "the 8B. The 4B was averaged over fewer, and no report says which. So:\n\n"
        "- *8B against 4B, all languages*: different task sets. The lower average of the 8B says nothing about the models.\n"
        "- *Loss of the 8B against loss of the 4B, all languages*: different task sets.\n"
        "- *4B English in the comparison against 4B English in the analysis*: the averages of all four variants differ, so tasks or runs differ. "
        "Those of the comparison can be recomputed from its task scores; those of the analysis cannot.\n"
        "- *Lengths of one model within one table*: one task set; these are the comparisons that may be read."
    )


def _designs(p: Published) -> str:
    table = pub.designs(p)
    rows = [
        (
            r.model.upper(),
            int(r.seqlen),
            *(
                "not published" if pd.isna(v) else f"{int(v):,}"
                for v in (r.nsamples, r.batch_size, r.tokens, r.tokens_per_step)
            ),
            "not published" if pd.isna(r.quant_method) else r.quant_method,
        )
        for r in table.itertuples()
    ]
    recipe = p.configurations[p.configurations.table == "Quantization Recipe"].iloc[0]
    long = table[(table.model == "4b") & (table.seqlen == recipe.seqlen)].iloc[0]
    return md.table(
        ["Model", "Length", "Samples", "Batch", "Tokens", "Tokens per step", "Method named"], rows
    ) + (
        "\n\nTokens are samples × length as published; packing may have dropped some of them.\n\n"
        + "\n".join(_pairs(table))
        + f"\n- The recommended recipe names {recipe.nsamples:.0f} samples at length {recipe.seqlen:.0f}; the 4B of that length was made with {long.nsamples:.0f}."
    )


def _pairs(table: pd.DataFrame) -> list[str]:
    lines, what = (
        [],
        {
            "nsamples": "samples",
            "batch_size": "batch size",
            "tokens": "tokens",
            "tokens_per_step": "tokens per step",
        },
    )
    for model, group in table.groupby("model"):
        known = group.set_index("seqlen")[list(what)]
        for a, b in pub.combinations(known.index, 2):
            both = known.loc[[a, b]].dropna(axis=1)
            unlike = [
                f"{what[c]} ({both[c][a]:,.0f} and {both[c][b]:,.0f})"
                for c in both
                if both[c][a] != both[c][b]
            ]
            hidden = [what[c] for c in known if c not in both]
            lines.append(
                f"- {model.upper()}, {a:.0f} against {b:.0f}: {md.listing(unlike)} differ too"
                + (f"; {md.listing(hidden)} are not published." if hidden else ".")
            )
    return lines


def _sizes(p: Published) -> str:
    rows = [
        (
            f"`{r.source}`",
            r.model.upper(),
            r.quantity,
            r.original_gb,
            r.quantized_gb,
            md.MISSING if pd.isna(r.reduction_pct) else f"{r.reduction_pct:g}",
            md.number(pub.saved(r.original_gb, r.quantized_gb), 1),
        )
        for r in p.sizes.itertuples()
    ]
    rows = [tuple("not published" if c == md.MISSING else c for c in row) for row in rows]
    eight = p.sizes[p.sizes.model == "8b"].quantized_gb
    return md.table(
        [
            "Report",
            "Model",
            "Quantity",
            "Original (GB)",
            "Quantized (GB)",
            "Reduction as published (%)",
            "Recomputed (%)",
        ],
        rows,
        left=3,
    ) + (
        f"\n\nSizes as published. Two reports give the quantized 8B {eight.max():.1f} and {eight.min():.1f} GB: the reports do not say whether they mean files on disk or memory of a process."
    )


def _speed(p: Published) -> str:
    rows = [
        (
            r.metric,
            r.unit,
            f"{r.original:g}",
            f"{r.quantized:g}",
            md.number(pub.percent(r.quantized, r.original), 1, True, "%"),
        )
        for r in p.benchmark_8b[p.benchmark_8b.table == "Text Queries Benchmark"].itertuples()
    ]
    settings = p.settings[p.settings.source == "benchmark_8b_report.md"]
    return md.table(["Metric", "Unit", "Original", "Quantized", "Change (recomputed)"], rows, left=2) + (
        "\n\nAs published, on "
        + "; ".join(f"{r.name_} {r.value}" for r in settings.rename(columns={"name": "name_"}).itertuples())
        + ". The quantized model ran on a fallback kernel that the report does not name, so its times say nothing about 4 bits."
    )


def _serving(p: Published) -> str:
    rows = [
        (
            r.metric,
            r.unit,
            f"{r.original:g}",
            f"{r.quantized:g}",
            "-" if pd.isna(r.change_pct) else f"{r.change_pct:+.0f}%",
            md.number(pub.percent(r.quantized, r.original), 1, True, "%"),
        )
        for r in p.fp8_serving[p.fp8_serving.table == "Results"].itertuples()
    ]
    audit = pub.audit(p)
    audit = audit[(audit.source == "fp8_serving_report.md")]
    steady = audit[audit.what.str.contains("after the first")]
    return md.table(["Metric", "Unit", "bf16", "FP8", "Change as published", "Recomputed"], rows, left=2) + (
        f"\n\nAs published: five requests a configuration, another model (`{p.models[p.models.source == 'fp8_serving_report.md'].iloc[0]['name']}`), on an RTX 6000 Ada, which the report says has no FP8 units. It has them "
        "(compute capability 8.9, for which vLLM multiplies in FP8: https://docs.vllm.ai/en/stable/features/quantization/fp8/), so a Marlin fallback, if one ran, was not for want of hardware. "
        f"Without the first request the means give {md.listing([md.number(v, 0) for v in steady.recomputed])} ms, which agrees with the steady state printed."
        + _differs(audit)
    )


def _differs(audit: pd.DataFrame) -> str:
    wrong = audit[audit.status == DIFFERS].drop_duplicates(["what", "printed"])
    return "".join(
        f" {r.what}: printed {r.printed:g}, its own figures give {md.number(r.recomputed, 1)}."
        for r in wrong.itertuples()
    )


def _recommendations(p: Published) -> str:
    rows = [
        (
            r.table,
            r.scenario,
            r.recommendation.replace("-", "="),
            "-" if pd.isna(r.change_pct) else f"{r.change_pct:+.2f}%",
        )
        for r in p.recommendations.itertuples()
    ]
    return md.table(["Table", "For", "Recommended", "Change expected"], rows, left=3) + (
        "\n\nThe order of lengths behind them comes from one seed of one design each."
    )


def _audit(p: Published) -> str:
    audit = pub.audit(p)
    table = audit.groupby(["source", "table", "status"], sort=False).size().unstack(fill_value=0)
    order = [s for s in (REPRODUCED, ROUNDING, DIFFERS, AS_PUBLISHED) if s in table]
    rows = [(f"`{source}`", name, *table.loc[(source, name), order]) for source, name in table.index]
    open_ = audit[audit.status.isin([ROUNDING, DIFFERS])]
    lines = [
        f"- `{r.source}`, {r.table}: {r.what}: printed {r.printed:g}, recomputed {r.recomputed:.4g} ({r.status})"
        for r in open_.itertuples()
    ]
    return md.table(["Report", "Table", *order], rows, left=2) + (
        "\n\n*Reproduced*: equal to the last printed digit. *Within rounding*: the printed inputs, being rounded, allow the printed value. "
        "*As published*: the inputs are not printed. Those not reproduced to the last digit:\n\n"
        + "\n".join(lines)
    )


if __name__ == "__main__":
    for path in write(ROOT):
        print(path)
