"""What length and seed do: blocks of runs, a row per seed and a column per calibration set."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats as distributions

from colq_utils.report import stats
from studies.seqlen.analysis import SeqlenStudy, between_columns, contrast, negative, over_seeds


def blocks(study: SeqlenStudy, family: str, iters: int) -> pd.DataFrame:
    """Variant ids of a family, a row per seed and a column per set; seeds that lack a set are left out."""
    rows = study.arm(family, iters=iters)
    order = [s.id for s in study.spec.sets if s.id in set(rows["set"])]
    return rows.pivot(index="seed", columns="set", values="variant")[order].dropna()


def designs(study: SeqlenStudy, family: str) -> Iterator[tuple[int, pd.DataFrame]]:
    """Iterations and `blocks` of a family that has at least two seeds."""
    for iters in sorted(study.arm(family)["iters"].unique()):
        table = blocks(study, family, iters)
        if len(table) >= 2 and table.shape[1] >= 2:
            yield int(iters), table


def anova(study: SeqlenStudy, table: pd.DataFrame) -> dict:
    """Two-way analysis of variance of `blocks`, seeds as random blocks, lengths fixed, for these queries.

    Returns:
        seeds, lengths; seed_sd, the standard deviation between seeds within a length (pooled), with the
        interval of chi square; chance_sd, what of it chance in the queries explains, and every_query_sd, the
        rest: what a seed does to all queries alike; length_sd, that of the lengths' means; expected_sd, what
        length_sd would be if the length did nothing; f, df, p of the test of the length against the residual;
        share, the part of the variance that is the length's (omega squared, not below 0).

    Source: Montgomery, Design and Analysis of Experiments (2013), section 4.1.
    """
    y = study.score[table.to_numpy().ravel()].to_numpy().reshape(table.shape)  # (n_seeds, n_lengths)
    n, k = y.shape
    length_ms = n * np.var(y.mean(0), ddof=1)
    block_ss, total_ss = k * np.sum((y.mean(1) - y.mean()) ** 2), np.sum((y - y.mean()) ** 2)
    residual_ms = (total_ss - block_ss - (k - 1) * length_ms) / ((n - 1) * (k - 1))
    parts = [between_columns(study.of(table[c].tolist())) for c in table]
    seed_variance, by_chance = np.mean(parts, axis=0)
    low, high = _deviation_interval(seed_variance, k * (n - 1))
    f, df = length_ms / residual_ms, (k - 1, (n - 1) * (k - 1))
    return {
        "seeds": n,
        "lengths": k,
        "seed_sd": np.sqrt(seed_variance),
        "seed_sd_low": low,
        "seed_sd_high": high,
        "chance_sd": np.sqrt(by_chance),
        "every_query_sd": np.sqrt(max(0.0, seed_variance - by_chance)),
        "length_sd": np.std(y.mean(0), ddof=1),
        "expected_sd": np.sqrt(residual_ms / n),
        "f": f,
        "df": df,
        "p": float(distributions.f.sf(f, *df)),
        "share": max(0.0, (k - 1) * (length_ms - residual_ms) / (total_ss + residual_ms)),
        "best": {c: int((y.argmax(1) == i).sum()) for i, c in enumerate(table.columns)},
    }


def _deviation_interval(variance: float, df: int) -> tuple[float, float]:
    """The 95 % interval of the standard deviation whose square was estimated as `variance`."""
    return tuple(np.sqrt(df * variance / distributions.chi2.ppf(q, df)) for q in (0.975, 0.025))


def single_run_gap(spread: dict) -> float:
    """The difference of two single runs that the seed exceeds in one case of twenty (see `anova`)."""
    return 1.96 * 2**0.5 * spread["seed_sd"]


def pairs(study: SeqlenStudy, table: pd.DataFrame) -> pd.DataFrame:
    """Every two sets of `blocks`, the longer minus the shorter; the intervals hold together (Bonferroni).

    That every pair is equivalent needs no such adjustment: it is said only where each of them is.
    """
    wanted = list(combinations(table.columns, 2))
    level = 1 - (1 - stats.LEVEL) / max(1, len(wanted))
    rows = [
        {"first": b, "second": a, **contrast(study, table[b].tolist(), table[a].tolist(), level)}
        for a, b in wanted
    ]
    rows = pd.DataFrame(rows)
    detectable = stats.minimal_detectable(rows["se"], level, rows["df"])
    return rows.assign(mdd=detectable, resolved=stats.resolved(rows["low"], rows["high"]))


def interaction(study: SeqlenStudy, published: pd.DataFrame, controlled: pd.DataFrame) -> pd.DataFrame:
    """By pair of lengths: the difference in both designs, and what the published one adds."""
    rows = []
    for shorter, longer in ((0, 1), (1, 2), (0, 2)):
        both, arms = [], []
        for table in (published, controlled):
            first, second = (table.iloc[:, i].tolist() for i in (longer, shorter))
            both.append(contrast(study, first, second))
            arms.append(study.of(first) - study.of(second))
        added = over_seeds(arms[0], negative(arms[1]))
        rows.append(
            {
                "first": controlled.columns[longer],
                "second": controlled.columns[shorter],
                "confounded": both[0],
                "controlled": both[1],
                "added": {"diff": added["value"], "low": added["low"], "high": added["high"]},
            }
        )
    return pd.DataFrame(rows)


def seed_parts(study: SeqlenStudy) -> dict:
    """Standard deviation of the suite score over seeds: text and batches drawn anew, and batches alone."""
    alone = study.arm("order")
    if alone.empty:
        return {}
    which = {"set": alone["set"].iloc[0], "iters": int(alone["iters"].iloc[0])}
    result, variances = dict(which), []
    for name, runs in (("both", study.arm("length", **which)), ("order", alone)):
        values = study.score[runs["variant"]].to_numpy()
        variances.append((np.var(values, ddof=1), len(values) - 1))
        low, high = _deviation_interval(*variances[-1])
        sizes = {"sd": np.sqrt(variances[-1][0]), "low": low, "high": high, "n": len(values)}
        result |= {f"{name}_{key}": value for key, value in sizes.items()}
    (first, first_df), (second, second_df) = variances
    f, ratio = distributions.f(first_df, second_df), first / second
    return result | {"p": float(min(1.0, 2 * min(f.cdf(ratio), f.sf(ratio))))}


def repeated(study: SeqlenStudy) -> bool | None:
    """Whether the run that was made twice (family order, seed of its text) gave the same weights."""
    twice = study.arm("order")
    twice = twice[twice["seed"] == twice["text_seed"]]
    if twice.empty:
        return None
    row = twice.iloc[0]
    first = study.arm("length", set=row["set"], iters=row["iters"], seed=row["seed"])
    return None if first.empty else bool(first["digest"].iloc[0] == row["digest"])
