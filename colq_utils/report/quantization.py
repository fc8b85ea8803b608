"""quantization_analysis.md: what each way of quantizing costs and saves, and the evidence folded below.

This module makes frames, the template words them. Published figures are not quoted: other checkpoints.
"""

import pandas as pd

from colq_utils.report import analysis, findings, mixed_precision, summary, wording
from colq_utils.report import markdown as md
from colq_utils.report.analysis import Study
from colq_utils.report.parts import page

GROUPS = {"graded": "counted suite", "reading": "reading check", "crosslingual": "cross-lingual"}
#: Template's name of a family of pairs -> how it is found.
FAMILIES = {
    "lengths": findings.lengths,
    "confounded": findings.confounded_lengths,
    "rounding": findings.rounding_pairs,
    "rungs": findings.rungs,
}


def write(study: Study) -> str:
    """The whole report as markdown."""
    families = {name: wording.pairs(study, family(study)) for name, family in FAMILIES.items()}
    return page(
        "quantization_analysis.md.j2",
        study,
        **summary.answer(study),
        four_bits=[study.labels[name] for name in findings.four_bits(study)],
        uses=use_cases(study),
        falling=findings.falling_tasks(study),
        **families,
        pair_tables={name: pair_table(pairs) for name, pairs in families.items() if len(pairs)},
        seen=_seen(study),
        mixed=mixed_precision.changes(study),
        sets=calibration_sets(study),
        suite=wording.averages(study, study.suite),
        english=wording.averages(study, study.english_suite) if study.english.any() else None,
        references=references(study),
        below=_below(study),
        apart=apart(study),
        drift=drift(study),
        checkpoints=checkpoints(study),
        configuration=configuration(study),
        tasks=tasks(study),
        recipe_line=_recipe_line(study),
    )


def use_cases(study: Study) -> dict:
    """Purpose -> row of the variant to take or None, labels of those as good as the best, rows that lose."""
    rows = findings.variant_frame(study)
    usable = rows[rows.usable].set_index("variant", drop=False)
    harmless = usable[usable.verdict != "inferior"]
    choices = {
        "best": usable.sort_values("score", kind="stable", ascending=False),
        "small": usable.dropna(subset="bytes").sort_values("bytes", kind="stable"),
        "quick": harmless.dropna(subset="quantize_s").sort_values("quantize_s", kind="stable"),
    }
    uses = {purpose: next(iter(row.to_dict("records")), None) for purpose, row in choices.items()}
    best = choices["best"].index[:1]
    others = findings.undetected(study, best[0], usable.index.drop(best)) if len(best) else []
    as_good = [study.labels[name] for name in others]
    return uses | {"as_good": as_good, "avoid": usable.drop(harmless.index).to_dict("records")}


def _seen(study: Study) -> dict[str, int]:
    """Measure -> how many 4-bit variants it shows to differ from the base."""
    table = analysis.drift(study)
    return table[table.variant.isin(findings.four_bits(study))].groupby("measure").resolved.sum().to_dict()


def configuration(study: Study) -> pd.DataFrame:
    """What was quantized as stage quantize recorded it, or as the experiment asks for it."""
    frame = study.results.variants
    if frame is None:
        asked = study.experiment.quantized.items()
        frame = pd.DataFrame([{"variant": name, **variant.model_dump()} for name, variant in asked])
    floats = frame.scheme == "fp8"
    frame = frame.assign(
        label=frame.variant.map(study.labels),
        method=frame.method.mask(floats, "to nearest e4m3"),
        group_size=frame.group_size.astype(object).mask(floats, "an output channel"),
    )
    texts = frame.columns.intersection(["calibration", "fallback"])
    frame[texts] = frame[texts].fillna("").replace("", "none")
    return frame


def calibration_sets(study: Study) -> dict | None:
    """The sets as packed, and which of them are `alike` in tokens, in all and per step, or `alone`."""
    sets = study.results.sets
    if sets is None:
        return None
    step_tokens = sets.tokens / sets.blocks * sets.batch_rows
    text = sets[sets.kind == "text"]
    designs = [list(t["set"]) for _, t in text.groupby([text.tokens, step_tokens[text.index]], sort=False)]
    padding = [md.number(share, 1) for share in sets.padding_pct]
    frame = sets.assign(step_tokens=step_tokens.round(), padding=padding)
    alike, alone = [d for d in designs if len(d) > 1], [d[0] for d in designs if len(d) == 1]
    return {"frame": frame, "alike": alike, "alone": alone}


def tasks(study: Study) -> pd.DataFrame:
    """A row per task: its group, languages, queries and pages."""
    frame = study.entries.groupby("task", as_index=False).agg(
        group=("group", "first"),
        counted=("counted", "first"),
        languages=("lang", " ".join),
        n_queries=("n_queries", "sum"),
        n_pages=("n_pages", "max"),
    )
    return frame.assign(group=frame.group.replace(GROUPS))


def references(study: Study) -> pd.DataFrame:
    """BM25, the base and random weights: score, and how many of the counted entries it covers."""
    entries = int(study.counted.sum())
    base = study.suite[study.suite.variant == study.experiment.base].assign(entries=entries, of=entries)
    frame = pd.concat([analysis.references(study), base])
    order = ["bm25", study.experiment.base, "random-init"]
    frame = frame.set_index("variant").reindex([name for name in order if name in set(frame.variant)])
    covered = [f"{entries} of {of}" for entries, of in zip(frame.entries.astype(int), frame.of.astype(int))]
    scores = study.results.scores
    rest = scores[scores.counted & ~scores.task.isin(_below(study)[:1])].groupby("variant").ndcg_at_5.mean()
    return frame.assign(label=frame.index.map(study.labels), covered=covered, rest=frame.index.map(rest))


def _below(study: Study) -> list[str]:
    """The tasks on which BM25 lies below the base, the widest gap first."""
    scores = study.results.scores
    means = scores[scores.counted].pivot_table(index="task", columns="variant", values="ndcg_at_5")
    if "bm25" not in means:
        return []
    gaps = (means[study.experiment.base] - means["bm25"]).sort_values(ascending=False)
    return list(gaps.index[gaps > 0])


def apart(study: Study) -> list[tuple[str, int, pd.DataFrame]]:
    """Name, number of entries and averages of every group of tasks outside the average."""
    groups = []
    for group in study.entries.group[~study.counted].unique():
        keep = (study.entries.group == group).to_numpy() & ~study.counted
        averages = wording.averages(study, analysis.averages(study, keep))
        groups.append((GROUPS.get(group, group), int(keep.sum()), averages))
    return groups


def drift(study: Study) -> pd.DataFrame:
    """Score lead, top 5 and cosine of every variant but the base: what moves before a rank does."""
    table = analysis.drift(study)
    margin, overlap = (table[table.measure == m].to_dict("records") for m in ("margin", "overlap"))
    frame = analysis.top_page_changes(study)
    top = zip(frame.top_changed, frame.top_changed_low, frame.top_changed_high)
    frame = frame.assign(
        label=frame.variant.map(study.labels),
        margin=[md.change_ci(r["diff"], r["low"], r["high"], 1000) for r in margin],
        top=[md.value_ci(*share, 1, scale=100) for share in top],
        overlap=[md.value_ci(r["value"], 1 + r["low"], 1 + r["high"], 1, scale=100) for r in overlap],
        query=frame.variant.map(_cosines(study, "query")),
        page=frame.variant.map(_cosines(study, "page")),
    )
    return frame[frame.variant != study.experiment.base]


def _cosines(study: Study, kind: str) -> dict[str, str]:
    """Mean and least cosine by variant, as far as measured."""
    table, columns = study.results.variants, [f"cosine_{kind}_mean", f"cosine_{kind}_min"]
    if table is None or columns[0] not in table:
        return {}
    first = table.drop_duplicates("variant").set_index("variant")[columns]
    return {r.Index: f"{md.number(r[1], 4)} ({md.number(r[2], 4)})" for r in first.itertuples()}


def checkpoints(study: Study) -> pd.DataFrame | None:
    """The published acceptance list and the sizes, one row per variant and export."""
    table = study.results.variants
    if table is None:
        return None
    return table.assign(
        label=table.variant.map(study.labels),
        saved_pct=100 * (1 - table.tensor_bytes / table.base_bytes),
        verdict=table.variant.map(study.suite.set_index("variant").verdict),
    )


def pair_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """A row per pair: change and word by NDCG@5 and by score lead."""
    ndcg, margin = (pairs[pairs.measure == m].set_index("label") for m in ("ndcg", "margin"))
    return ndcg[["change", "word"]].join(margin[["change", "word"]], rsuffix="_margin").reset_index()


def _recipe_line(study: Study) -> str | None:
    """The recommended variant, or the closest one, as a line of an experiment file."""
    name = findings.recommend(study).variant or findings.closest(study)
    if name is None:
        return None
    spec = study.experiment.by_id[name]
    implied = {"exports", *(() if spec.group else ("group_size",))}
    fields = spec.model_dump(exclude_defaults=True, exclude=implied)
    values = {key: str(value).lower() if isinstance(value, bool) else value for key, value in fields.items()}
    return ", ".join(f"{key}: {value}" for key, value in values.items())
