"""Sentences that the numbers carry: which variant to use, whether the calibration length matters, what resolves 4 bits.

Each sentence is chosen by an interval, never by the sign of a difference. Where the interval leaves the
question open, the sentence says so and names the difference that could have been found.
"""
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from colq_utils.report import analysis, stats
from colq_utils.report.analysis import Study
from colq_utils.report.markdown import MISSING, listing, megabytes, number, points_ci

MEASURES = {"ndcg": "NDCG@5", "margin": "score margin", "overlap": "top-5 overlap"}
SAME_SIZE = 1.01


@dataclass(frozen=True)
class Recommendation:
    """The variant that the rule picks (None if none clears the margin) and why, in sentences."""

    variant: str | None
    text: str


def accepted(study: Study, name: str) -> bool | None:
    """Whether all exports of a variant passed the acceptance list; None if not measured."""
    table = study.results.variants
    if table is None or "accepted" not in table or name not in set(table.variant):
        return None
    return bool((table.accepted[table.variant == name].astype(str).str.lower() == "true").all())


def _refused(study: Study, names) -> list[str]:
    """Variants that are not recommended, whatever they score: not accepted, or not made as their name says."""
    return [n for n in names if accepted(study, n) is False or n in study.fell_back]


def rule(study: Study) -> str:
    """How `recommend` decides, in words."""
    return (f"Rule: of the accepted variants whose whole 95 % interval lies above -{points(study)} points, the smallest checkpoint; "
            "among checkpoints of one size (within 1 %) that NDCG@5 does not tell apart from the best of them, the one that takes "
            "least time to make.")


def points(study: Study) -> str:
    """The non-inferiority margin of the experiment, in points."""
    return f"{100 * study.experiment.evaluation.margin:g}"


def recommend(study: Study) -> Recommendation:
    """Apply `rule` to the counted tasks."""
    table = study.suite.merge(analysis.sizes(study.results)[["variant", "bytes"]], on="variant", how="left").set_index("variant")
    table = table[table.index.isin(study.experiment.quantized)]
    refused = _refused(study, table.index)
    clear = table[(table.verdict == "non-inferior") & ~table.index.isin(refused)]
    if clear.empty:
        return Recommendation(None, _none_clears(study, table.drop(index=refused)))
    small = clear[~(clear["bytes"] > SAME_SIZE * clear["bytes"].min())]
    best = small.score.idxmax()
    alike = [best, *_not_told_apart(study, best, [n for n in small.index if n != best])]
    seconds = _seconds(study).reindex(alike)
    chosen = seconds.idxmin() if seconds.notna().any() else best
    row = table.loc[chosen]
    size = f" at {megabytes(row['bytes'])} MB" if np.isfinite(row["bytes"]) else f" (size {MISSING})"
    text = (f"Use **{study.labels[chosen]}**{size}: it changes NDCG@5 by {points_ci(row['diff'], row.diff_low, row.diff_high)} points, "
            f"an interval that clears the margin of {points(study)} points.")
    others = [study.labels[n] for n in alike if n != chosen]
    if others:
        text += f" NDCG@5 does not tell it or {listing(others)} apart from the best of this size; " + (
            "it takes the least time to make." if seconds.notna().any() else "their times to make are not measured.")
    return Recommendation(chosen, text)


def near_lossless(study: Study) -> str:
    """Which quantized variants may be called near-lossless: those whose whole interval clears the margin, in words."""
    table = study.suite[study.suite.variant.isin(study.experiment.quantized)]
    clear = [study.labels[n] for n in table.variant[table.verdict == "non-inferior"]]
    said = f"Near-lossless by this suite: {listing(clear)}" if clear else "No quantized variant may be called near-lossless by this suite"
    return f"{said} (the whole 95 % interval above -{points(study)} points)."


def use_cases(study: Study) -> list[tuple[str, str, str]]:
    """What to take for which purpose, and why: rows (purpose, choice, reason)."""
    table = study.suite.merge(analysis.sizes(study.results)[["variant", "bytes"]], on="variant", how="left").set_index("variant")
    usable = table[table.index.isin(study.experiment.quantized) & table.score.notna()]
    usable = usable.drop(index=_refused(study, usable.index))
    change = lambda n: f"{points_ci(table['diff'][n], table.diff_low[n], table.diff_high[n])} points"  # noqa: E731
    best, rows = recommend(study).variant, [("No loss that this suite could show", study.labels[study.experiment.base], "the base itself")]
    rows.append((f"Less memory, at most {points(study)} points lost", study.labels[best] if best else "none shown", change(best) if best else "no interval clears the margin"))
    if len(usable):
        top = usable.score.idxmax()
        alike = [study.labels[n] for n in _not_told_apart(study, top, [n for n in usable.index if n != top])]
        rows.append(("Best average among the quantized", study.labels[top], f"{change(top)}; " + (f"not told apart from {listing(alike)}" if alike else "above all others")))
    if usable["bytes"].notna().any():
        small = usable["bytes"].idxmin()
        rows.append(("Smallest checkpoint, whatever it costs", study.labels[small], f"{megabytes(usable['bytes'][small])} MB, {change(small)}"))
    seconds = _seconds(study).reindex(usable.index[usable.verdict != "inferior"])
    if seconds.notna().any():
        rows.append(("Quick experiment, not shown to be inferior", study.labels[seconds.idxmin()], f"made in {number(seconds.min(), 0)} s, {change(seconds.idxmin())}"))
    worst = [study.labels[n] for n in usable.index if table.verdict[n] == "inferior"]
    return [*rows, ("Avoid", listing(worst), "the whole interval lies below the margin" if worst else "no variant is shown to be inferior")]


def falling_tasks(study: Study) -> str:
    """Tasks and languages on which every 4-bit variant is resolved below the base, in words."""
    table = study.by_entry[study.by_entry.counted.astype(bool) & study.by_entry.variant.isin(four_bits(study))]
    below = table.assign(below=table.diff_high < -stats.ROUNDING).groupby(["task", "lang"]).below.all()
    named = [f"{task} ({lang})" for task, lang in below.index[below]]
    kind = "4-bit variants" if all(study.experiment.by_id[n].bits == 4 for n in four_bits(study)) else "variants"
    return f"Entries on which each of the {len(four_bits(study))} {kind} lies below the base by its own interval: {listing(named)}."


def _none_clears(study: Study, table: pd.DataFrame) -> str:
    text = f"No accepted quantized variant is shown to stay within {points(study)} points of the base on this suite."
    if table.diff_low.notna().any():
        row = table.loc[table.diff_low.idxmax()]
        text += (f" The smallest loss that cannot be ruled out is that of {study.labels[row.name]}, {number(-100 * row.diff_low)} points (estimate "
                 f"{points_ci(row['diff'], row.diff_low, row.diff_high)}, {row.verdict}); where that is too much, keep the base. A suite like this finds a "
                 f"true difference of {number(100 * row.mdd)} points in four of five runs.")
    return text


def _not_told_apart(study: Study, best: str, others: list[str]) -> list[str]:
    table = analysis.pairs(study, [(best, n) for n in others])
    table = table[table.measure == "ndcg"].set_index("second")
    return [n for n in others if not table.resolved[n]]


def _seconds(study: Study) -> pd.Series:
    table = study.results.variants
    if table is None or "quantize_s" not in table:
        return pd.Series(dtype=float)
    return table.groupby("variant").quantize_s.max()


def lengths(study: Study) -> pd.DataFrame:
    """Pairs of AutoRound variants that differ in the length of their text calibration alone (`analysis.pairs`)."""
    return analysis.pairs(study, [pair for names in _designs(study).values() for pair in combinations(names, 2)])


def confounded_lengths(study: Study) -> pd.DataFrame:
    """Pairs of AutoRound variants whose calibration differs in length, and in tokens or tokens a step as well.

    Only variants without a partner of equal tokens are paired here: the published designs, if the experiment has them.
    """
    lone = {}
    for (recipe, _), names in _designs(study).items():
        if len(names) == 1:
            lone.setdefault(recipe, []).append(names[0])
    return analysis.pairs(study, [pair for names in lone.values() for pair in combinations(names, 2)])


def _designs(study: Study) -> dict[tuple, list[str]]:
    """Evaluated AutoRound variants (made by AutoRound) by recipe and by tokens in all and in a step."""
    sets, found = {s.id: s for s in study.experiment.calibration.sets if s.kind == "text"}, {}
    for name in study.names:
        v = study.experiment.by_id[name]
        if v.method == "autoround" and v.calibration in sets and name not in study.fell_back:
            s = sets[v.calibration]
            found.setdefault(((v.scheme, v.group_size, v.sym, v.iters), (s.blocks * s.seqlen, s.batch_rows * s.seqlen)), []).append(name)
    return found


def length_answer(study: Study) -> str:
    """Does the calibration length matter? As far as the intervals of the pairs answer it."""
    table = lengths(study)
    if table.empty:
        return f"Fewer than two calibration lengths of equal tokens were evaluated: {MISSING}."
    parts = [_pairs_sentence(study, table[table.measure == measure], name) for measure, name in (("ndcg", "NDCG@5"), ("margin", "the score margin"))]
    return " ".join(parts) + (
        f" Each length was quantized with one seed ({study.experiment.seed}). What another seed alone would move is {MISSING} here, so a "
        "resolved pair is a difference between two checkpoints, not yet between two lengths.")


def _pairs_sentence(study: Study, table: pd.DataFrame, measure: str) -> str:
    clear = table[table.resolved]
    if clear.empty:
        finest = f"{number(100 * table.mdd.max())} points" if measure == "NDCG@5" else f"{number(table.mdd.max(), 5)} a query token"
        return (f"By {measure} the length is **not resolved**: the interval of every pair contains 0. A suite like this finds a "
                f"true difference of {finest} in four of five runs.")
    named = [f"{study.labels[r['first']]} {'above' if r['diff'] > 0 else 'below'} {study.labels[r['second']]}" for _, r in clear.iterrows()]
    return f"By {measure}, {len(clear)} of {len(table)} pairs are resolved: {listing(named)}."


def rounding_pairs(study: Study) -> pd.DataFrame:
    """AutoRound variants against round-to-nearest of the same scheme, group size and symmetry."""
    specs = [(n, study.experiment.by_id[n]) for n in study.names if n not in study.fell_back]
    return analysis.pairs(study, [(name, twin) for name, v in specs for twin, u in specs if (v.method, u.method) == ("autoround", "rtn")
                                  and (u.scheme, u.group_size, u.sym) == (v.scheme, v.group_size, v.sym)])


def rounding_answer(study: Study) -> str:
    """Does AutoRound keep more than round-to-nearest?"""
    table = rounding_pairs(study)
    if table.empty:
        return f"AutoRound against round-to-nearest: {MISSING}."
    parts = []
    for measure, name in (("ndcg", "NDCG@5"), ("margin", "the score margin")):
        t = table[table.measure == measure]
        better, worse = int((t.low > stats.ROUNDING).sum()), int((t.high < -stats.ROUNDING).sum())
        parts.append(f"by {name}, {better} of {len(t)} AutoRound variants lie above round-to-nearest, {worse} below and "
                     f"{len(t) - better - worse} are not told apart from it")
    return "B" + "; ".join(parts)[1:] + "."


def ladder(study: Study) -> list[str]:
    """Variants by round-to-nearest (group 128, symmetric), most bits first, from the base on."""
    plain = {n: v for n, v in study.experiment.quantized.items() if v.method == "rtn" and v.group_size == 128 and v.sym and n in study.names}
    return [study.experiment.base, *sorted(plain, key=lambda n: -plain[n].bits)]


def rungs(study: Study) -> pd.DataFrame:
    """Each step of `ladder` as a pair, fewer bits minus more."""
    names = ladder(study)
    return analysis.pairs(study, list(zip(names[1:], names)))


def ladder_answer(study: Study) -> str:
    """Do fewer bits lose more?"""
    names = ladder(study)
    if len(names) < 3:
        return f"Fewer bits by the same rounding: {MISSING}."
    table = rungs(study)
    parts = []
    for measure in ("ndcg", "margin"):
        t = table[table.measure == measure]
        lower = [f"{study.labels[r['first']]} below {study.labels[r['second']]}" for _, r in t.iterrows() if r.high < -stats.ROUNDING]
        parts.append(f"by {MEASURES[measure]}, {len(lower)} of {len(t)} steps to fewer bits are resolved losses ({listing(lower)})")
    return "B" + "; ".join(parts)[1:] + "."


def four_bits(study: Study) -> list[str]:
    """The 4-bit variants that were evaluated; every quantized one if there is none."""
    quantized = [n for n in study.names if n in study.experiment.quantized]
    return [n for n in quantized if study.experiment.quantized[n].bits == 4] or quantized


def resolution_answer(study: Study) -> str:
    """Which measure tells a 4-bit variant from the base."""
    table, lines = analysis.drift(study), []
    for measure, title in MEASURES.items():
        t = table[(table.measure == measure) & table.variant.isin(four_bits(study))]
        lines.append(f"{title} tells {int(t.resolved.sum())}")
    named = listing([study.labels[n] for n in four_bits(study)])
    return f"Of {len(four_bits(study))} variants ({named}), {listing(lines)} from the base at 95 %."
