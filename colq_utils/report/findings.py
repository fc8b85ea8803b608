"""Sentences that the numbers carry: which variant to use, whether the calibration length matters, what resolves 4 bits.

Each sentence is chosen by an interval, never by the sign of a difference. Where the interval leaves the
question open, the sentence says so and names the difference that could have been found.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from colq_utils.report import analysis, stats, wording
from colq_utils.report.analysis import Study
from colq_utils.report.markdown import MISSING, change_ci, label_list, listing, number, significant

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
    return (
        f"Rule: of the accepted variants whose whole 95 % interval lies above -{points(study)} points, take the smallest checkpoint; of checkpoints "
        "of one size (within 1 %) that we could not tell from the best of them by NDCG@5, take the one that is made fastest."
    )


def points(study: Study) -> str:
    """The non-inferiority margin of the experiment, in points."""
    return f"{100 * study.experiment.evaluation.margin:g}"


def recommend(study: Study) -> Recommendation:
    """Apply `rule` to the counted tasks."""
    table = _usable(study)
    clear = table[table.verdict == "non-inferior"]
    if clear.empty:
        return Recommendation(None, _none_clears(study))
    small = clear[~(clear["bytes"] > SAME_SIZE * clear["bytes"].min())]
    best = small.score.idxmax()
    alike = [best, *_undetected(study, best, [n for n in small.index if n != best])]
    seconds = _seconds(study).reindex(alike)
    chosen = seconds.idxmin() if seconds.notna().any() else best
    row = table.loc[chosen]
    size = f" at {significant(row['bytes'] / 1e6)} MB" if np.isfinite(row["bytes"]) else f" (size {MISSING})"
    text = (
        f"Use **{study.labels[chosen]}**{size}: it changes NDCG@5 by {change_ci(row['diff'], row.diff_low, row.diff_high)} points, "
        f"within the margin of {points(study)} points."
    )
    others = [study.labels[n] for n in alike if n != chosen]
    if others:
        text += (
            f" We could not detect a difference between it, {label_list(others)} and the best of this size; "
            + (
                "it takes the least time to make."
                if seconds.notna().any()
                else "their times to make are not measured."
            )
        )
    return Recommendation(chosen, text)


def closest(study: Study) -> str | None:
    """The usable variant whose largest loss that the interval allows is smallest; None without an interval."""
    table = _usable(study)
    return table.diff_low.idxmax() if table.diff_low.notna().any() else None


def _usable(study: Study) -> pd.DataFrame:
    """Averages and bytes of the quantized variants that were accepted and made as their name says, by variant."""
    table = study.suite.merge(
        analysis.sizes(study.results)[["variant", "bytes"]], on="variant", how="left"
    ).set_index("variant")
    table = table[table.index.isin(study.experiment.quantized)]
    return table.drop(index=_refused(study, table.index))


def near_lossless(study: Study) -> str:
    """Which quantized variants are shown to stay within the margin: those whose whole interval clears it, in words."""
    table = study.suite[study.suite.variant.isin(study.experiment.quantized)]
    clear = [study.labels[n] for n in table.variant[table.verdict == "non-inferior"]]
    return (
        f"Shown to stay within {points(study)} points of the base: {label_list(clear)}."
        if clear
        else f"No quantized variant is shown to stay within {points(study)} points of the base."
    )


def use_cases(study: Study) -> list[tuple[str, str, str]]:
    """What to take for which purpose, and why: rows (purpose, choice, reason)."""
    usable = _usable(study)
    usable = usable[usable.score.notna()]
    change = lambda n: f"{change_ci(usable['diff'][n], usable.diff_low[n], usable.diff_high[n])} points"  # noqa: E731
    best, rows = (
        recommend(study).variant,
        [("No loss at all", study.labels[study.experiment.base], "the base itself")],
    )
    rows.append(
        (
            f"Less memory, at most {points(study)} points lost",
            study.labels[best] if best else "none shown",
            change(best) if best else "no interval clears the margin",
        )
    )
    if len(usable):
        top = usable.score.idxmax()
        alike = [study.labels[n] for n in _undetected(study, top, [n for n in usable.index if n != top])]
        rows.append(
            (
                "Best average among the quantized",
                study.labels[top],
                f"{change(top)}; "
                + (f"no difference detected from {label_list(alike)}" if alike else "above all others"),
            )
        )
    if usable["bytes"].notna().any():
        small = usable["bytes"].idxmin()
        rows.append(
            (
                "Smallest checkpoint, whatever it costs",
                study.labels[small],
                f"{significant(usable['bytes'][small] / 1e6)} MB, {change(small)}",
            )
        )
    seconds = _seconds(study).reindex(usable.index[usable.verdict != "inferior"])
    if seconds.notna().any():
        quick = seconds.idxmin()
        rows.append(
            (
                f"Quick experiment; its loss may be below {points(study)} points",
                study.labels[quick],
                f"made in {significant(seconds[quick])} s, {change(quick)}",
            )
        )
    worst = [n for n in usable.index if usable.verdict[n] == "inferior"]
    reasons = [
        wording.change(usable.diff_low[n], usable.diff_high[n], study.experiment.evaluation.margin)
        for n in worst
    ]
    return [
        *rows,
        (
            "Avoid",
            label_list([study.labels[n] for n in worst]),
            "; ".join(reasons) if worst else f"no variant is shown to lose more than {points(study)} points",
        ),
    ]


def falling_tasks(study: Study) -> str:
    """Tasks and languages on which every 4-bit variant is shown to lose, in words."""
    table = study.by_entry[
        study.by_entry.counted.astype(bool) & study.by_entry.variant.isin(four_bits(study))
    ]
    below = table.assign(below=table.diff_high < -stats.ROUNDING).groupby(["task", "lang"]).below.all()
    named = [f"{task} ({lang})" for task, lang in below.index[below]]
    kind = (
        "4-bit variant" if all(study.experiment.by_id[n].bits == 4 for n in four_bits(study)) else "variant"
    )
    return f"Tasks and languages on which every {kind} loses by its own interval: {listing(named)}."


def _none_clears(study: Study) -> str:
    text, name = f"None here is shown to stay within {points(study)} points of the base.", closest(study)
    if name is not None:
        row = _usable(study).loc[name]
        text += (
            f" The closest, **{study.labels[name]}**, loses at most {number(-100 * row.diff_low)} points by its interval: "
            "use it where that is acceptable, else keep the base."
        )
    return text


def _undetected(study: Study, best: str, others: list[str]) -> list[str]:
    """Of `others`, those whose NDCG@5 we could not tell from that of `best`."""
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
    return analysis.pairs(
        study, [pair for names in _designs(study).values() for pair in combinations(names, 2)]
    )


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
            found.setdefault(
                ((v.scheme, v.group_size, v.sym, v.iters), (s.blocks * s.seqlen, s.batch_rows * s.seqlen)), []
            ).append(name)
    return found


def length_answer(study: Study) -> str:
    """Does the calibration length matter? As far as the intervals of the pairs answer it."""
    table = lengths(study)
    if table.empty:
        return f"Fewer than two calibration lengths of equal tokens were evaluated: {MISSING}."
    parts = [
        _pairs_sentence(study, table[table.measure == measure], name)
        for measure, name in (("ndcg", "NDCG@5"), ("margin", "the score margin"))
    ]
    return " ".join(parts) + (
        f" Each length was quantized with one seed ({study.experiment.seed}). What another seed alone would move is {MISSING} here, so a "
        "difference is one between two checkpoints, not yet between two lengths."
    )


def _pairs_sentence(study: Study, table: pd.DataFrame, measure: str) -> str:
    clear = table[table.resolved]
    if clear.empty:
        finest = (
            (100 * table.mdd.max(), "points", 2)
            if measure == "NDCG@5"
            else (table.mdd.max(), "per query token", 5)
        )
        return f"By {measure} we could not detect an effect of the length: the interval of every pair contains 0. {wording.detectable(*finest)}"
    named = [
        f"{study.labels[r['first']]} scores {wording.pair(r.low, r.high)} than {study.labels[r['second']]}"
        for _, r in clear.iterrows()
    ]
    return f"By {measure}, {len(clear)} of {len(table)} pairs differ: {label_list(named)}."


def rounding_pairs(study: Study) -> pd.DataFrame:
    """AutoRound variants against round-to-nearest of the same scheme, group size and symmetry."""
    specs = [(n, study.experiment.by_id[n]) for n in study.names if n not in study.fell_back]
    return analysis.pairs(
        study,
        [
            (name, twin)
            for name, v in specs
            for twin, u in specs
            if (v.method, u.method) == ("autoround", "rtn")
            and (u.scheme, u.group_size, u.sym) == (v.scheme, v.group_size, v.sym)
        ],
    )


def rounding_answer(study: Study) -> str:
    """Does AutoRound keep more than round-to-nearest?"""
    table = rounding_pairs(study)
    if table.empty:
        return f"AutoRound against round-to-nearest: {MISSING}."
    parts = []
    for measure, name in (("ndcg", "NDCG@5"), ("margin", "the score margin")):
        t = table[table.measure == measure]
        words = [wording.pair(r.low, r.high) for r in t.itertuples()]
        parts.append(
            f"By {name}, {words.count('higher')} of {len(t)} AutoRound variants score higher than round-to-nearest, {words.count('lower')} lower, "
            f"and for {words.count(wording.UNDECIDED)} we could not detect a difference."
        )
    return " ".join(parts)


def ladder(study: Study) -> list[str]:
    """Variants by round-to-nearest (group 128, symmetric), most bits first, from the base on."""
    plain = {
        n: v
        for n, v in study.experiment.quantized.items()
        if v.method == "rtn" and v.group_size == 128 and v.sym and n in study.names
    }
    return [study.experiment.base, *sorted(plain, key=lambda n: -plain[n].bits)]


def rungs(study: Study) -> pd.DataFrame:
    """Each step of `ladder` as a pair, fewer bits minus more."""
    names = ladder(study)
    return analysis.pairs(study, list(zip(names[1:], names)))


def ladder_answer(study: Study) -> str:
    """Do fewer bits lose more?"""
    if len(ladder(study)) < 3:
        return f"Fewer bits by the same rounding: {MISSING}."
    table, parts = rungs(study), []
    for measure in ("ndcg", "margin"):
        t = table[table.measure == measure]
        lower = [
            f"{study.labels[r['first']]} below {study.labels[r['second']]}"
            for _, r in t.iterrows()
            if r.high < -stats.ROUNDING
        ]
        parts.append(
            f"By {MEASURES[measure]}, {len(lower)} of {len(t)} steps to fewer bits lose ({listing(lower)})."
        )
    return " ".join(parts)


def four_bits(study: Study) -> list[str]:
    """The 4-bit variants that were evaluated; every quantized one if there is none."""
    quantized = [n for n in study.names if n in study.experiment.quantized]
    return [n for n in quantized if study.experiment.quantized[n].bits == 4] or quantized


def resolution_answer(study: Study) -> str:
    """Which measure shows that a 4-bit variant differs from the base."""
    table, parts = analysis.drift(study), []
    for measure, title in MEASURES.items():
        t = table[(table.measure == measure) & table.variant.isin(four_bits(study))]
        parts.append(f"{int(t.resolved.sum())} by {title}")
    return (
        f"Of {len(four_bits(study))} variants ({label_list([study.labels[n] for n in four_bits(study)])}), we could detect a change against the base for "
        f"{listing(parts)} (95 %)."
    )
