"""What the numbers support: which variant to use, which pairs differ, what sees four bits.

Each finding is chosen by an interval, never by the sign of a difference. The templates put it in words; where
the interval leaves a question open, they say so and name the difference that could have been detected.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations, product

import pandas as pd

from colq_utils.report import analysis, stats, wording
from colq_utils.report.analysis import Study
from colq_utils.report.markdown import number

#: True losses (NDCG units) for which the power of showing none beyond the margin is told.
LOSSES = (0.0, 0.002)
#: Checkpoints within 1 % are of one size.
SAME_SIZE = 1.01


@dataclass(frozen=True)
class Recommendation:
    """The variant that the rule picks (None if none clears the margin).

    Attributes:
        alike: the others of its size that we could not tell from the best of them.
        timed: whether the time to make them was measured, and so decided.
    """

    variant: str | None
    alike: tuple[str, ...] = ()
    timed: bool = False


def variant_frame(study: Study) -> pd.DataFrame:
    """A row per variant, base first: averages, sizes, top-page changes, time to make, and the tables' words.

    `usable` are those that may be recommended, whatever they score: of integer weights, accepted, and made as
    their name says. `eight` are those with parts in eight bits, as a GPU multiplies or looks them up.
    """
    frame = study.suite.merge(analysis.sizes(study.results), on="variant", how="left")
    frame = frame.merge(analysis.top_page_changes(study), on="variant")
    experiment = study.experiment
    shown = frame.variant.isin([experiment.base, *experiment.compared])
    frame = wording.averages(study, frame[shown].reset_index(drop=True))
    is_base = frame.variant == experiment.base
    eight = [name for name, spec in experiment.by_id.items() if spec.is_converted]
    refused = frame.variant.isin(_refused(study))
    return frame.assign(
        changed=frame.top_changed.map(lambda share: number(100 * share, 1)).mask(is_base, "-"),
        quantize_s=frame.variant.map(_seconds(study)).astype(float),
        eight=frame.variant.isin(eight),
        usable=frame.variant.isin(_packed(study)) & ~refused & frame.score.notna(),
    )


def _packed(study: Study) -> list[str]:
    """Variants with a checkpoint of integer weights."""
    return [name for name, spec in study.experiment.quantized.items() if spec.bits is not None]


def _refused(study: Study) -> set[str]:
    table = study.results.variants
    if table is None or "accepted" not in table:
        return study.fell_back
    return study.fell_back | set(table.variant[table.accepted.astype(str).str.lower() != "true"])


def _seconds(study: Study) -> dict[str, float]:
    table = study.results.variants
    if table is None or "quantize_s" not in table:
        return {}
    return table.groupby("variant").quantize_s.max().to_dict()


def _usable(study: Study) -> pd.DataFrame:
    frame = variant_frame(study)
    return frame[frame.usable].set_index("variant")


def recommend(study: Study) -> Recommendation:
    """Of the usable variants that clear the margin the smallest; of those as good and small, the quickest."""
    usable = _usable(study)
    clear = usable[usable.verdict == "non-inferior"]
    if clear.empty:
        return Recommendation(None)
    small = clear[~(clear["bytes"] > SAME_SIZE * clear["bytes"].min())]
    best = small.score.idxmax()
    alike = [best, *undetected(study, best, small.index.drop(best))]
    seconds = small.quantize_s[alike]
    chosen = seconds.idxmin() if seconds.notna().any() else best
    return Recommendation(chosen, tuple(n for n in alike if n != chosen), timed=bool(seconds.notna().any()))


def closest(study: Study) -> str | None:
    """The usable variant whose interval allows the smallest loss; None without an interval."""
    lowest = _usable(study).diff_low.dropna()
    return lowest.idxmax() if len(lowest) else None


def chances(study: Study, row: dict | None) -> list[float]:
    """Percent of such benchmarks that show a variant like `row` to be within the margin, by its true loss.

    `LOSSES` are the losses; empty where the variant has no error.
    """
    if row is None or not row["diff_se"] > 0:
        return []
    margin = study.experiment.evaluation.margin
    return [100 * float(stats.power(loss, row["diff_se"], margin)) for loss in LOSSES]


def undetected(study: Study, best: str, others) -> list[str]:
    """Of `others`, those whose NDCG@5 we could not tell from that of `best`."""
    table = analysis.pairs(study, [(best, name) for name in others])
    return table.second[(table.measure == "ndcg") & ~table.resolved.astype(bool)].to_list()


def falling_tasks(study: Study) -> list[str]:
    """Tasks and languages on which every 4-bit variant is shown to lose."""
    table = study.by_entry[study.by_entry.counted.astype(bool)]
    table = table[table.variant.isin(four_bits(study))]
    below = table.groupby(["task", "lang"]).clearly_degraded.all()
    return [f"{task} ({lang})" for task, lang in below.index[below]]


def lengths(study: Study) -> pd.DataFrame:
    """Pairs of AutoRound variants that differ in the length of their calibration text alone."""
    wanted = [pair for names in _designs(study).values() for pair in combinations(names, 2)]
    return analysis.pairs(study, wanted)


def confounded_lengths(study: Study) -> pd.DataFrame:
    """Pairs of AutoRound variants without a partner of equal tokens: more than length differs."""
    lone = defaultdict(list)
    for (recipe, _), names in _designs(study).items():
        if len(names) == 1:
            lone[recipe] += names
    return analysis.pairs(study, [pair for names in lone.values() for pair in combinations(names, 2)])


def _designs(study: Study) -> dict[tuple, list[str]]:
    """Evaluated AutoRound variants (made by AutoRound) by recipe and by tokens in all and in a step."""
    sets = {s.id: s for s in study.experiment.calibration.sets if s.kind == "text"}
    designs = defaultdict(list)
    for name in study.names:
        v = study.experiment.by_id[name]
        if v.method == "autoround" and v.calibration in sets and name not in study.fell_back:
            s = sets[v.calibration]
            tokens = s.blocks * s.seqlen, s.batch_rows * s.seqlen
            designs[(v.scheme, v.group_size, v.sym, v.iters), tokens].append(name)
    return designs


def rounding_pairs(study: Study) -> pd.DataFrame:
    """AutoRound variants against round-to-nearest of the same scheme, group size and symmetry."""
    packed = [n for n in study.names if n in _packed(study) and n not in study.fell_back]
    specs = {n: study.experiment.by_id[n] for n in packed}
    wanted = [
        (name, twin)
        for (name, v), (twin, u) in product(specs.items(), repeat=2)
        if (v.method, u.method) == ("autoround", "rtn")
        and (u.scheme, u.group_size, u.sym) == (v.scheme, v.group_size, v.sym)
    ]
    return analysis.pairs(study, wanted)


def rungs(study: Study) -> pd.DataFrame:
    """Symmetric round-to-nearest variants in groups of 128, each against the next with more bits."""
    plain = {
        name: v.bits
        for name, v in study.experiment.quantized.items()
        if (v.method, v.group_size, v.sym) == ("rtn", 128, True) and name in study.names
    }
    ladder = [study.experiment.base, *sorted(plain, key=plain.get, reverse=True)]
    return analysis.pairs(study, list(zip(ladder[1:], ladder)))


def close(study: Study) -> list[str]:
    """Variants whose intervals an axis has to hold: those of four bits and those with parts in eight."""
    return [*four_bits(study), *(n for n in study.names if study.experiment.by_id[n].is_converted)]


def four_bits(study: Study) -> list[str]:
    """The 4-bit variants that were evaluated; every one of integer weights if there is none."""
    packed = [n for n in study.names if n in _packed(study)]
    return [n for n in packed if study.experiment.quantized[n].bits == 4] or packed
