"""Intervals, tests and verdicts for scores of queries: what may be said about a difference, and what not.

A retriever is judged by the mean over strata (a task in one language) of the mean over its queries.
Everything here resamples queries within their stratum, all variants with the same draws, so that a
difference between two variants is a paired one. Pure numpy; one matrix product serves all variants.

Not here: which queries count, which variants are compared (`analysis`), how it is written (`report`).
It measures the noise of the queries alone: another seed of the quantizer is another experiment.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm

from colq_utils.base.errors import ColqError

RESAMPLES = 10000
FLIPS = 9999
LEVEL = 0.95
POWER = 0.80
#: Sums of equal numbers in another order differ by about this much; such a difference is none.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Means:
    """Means of strata, measured and under resampling.

    Attributes:
        strata: their labels, sorted; length S.
        value: (S, n_variants) means over the queries.
        replicates: (resamples, S, n_variants) the same under resampling.
    """

    strata: tuple
    value: np.ndarray
    replicates: np.ndarray

    def suite(self, keep=None) -> tuple[np.ndarray, np.ndarray]:
        """Mean over the strata (those where `keep` is true): (n_variants,) and (resamples, n_variants)."""
        keep = np.full(len(self.strata), True) if keep is None else np.asarray(keep, bool)
        if not keep.any():
            raise ColqError(
                "no task is left to average over: check which tasks are counted in evaluate/scores.csv"
            )
        return self.value[keep].mean(0), self.replicates[:, keep].mean(1)


def bootstrap(values, strata, clusters=None, resamples: int = RESAMPLES, seed: int = 42) -> Means:
    """Resample queries with replacement within their stratum, the same draws for every variant.

    Queries that share a source (translations of one question, one heading asked of two corpora) are drawn
    together: the unit is the cluster, drawn among all clusters of the strata that clusters link. A stratum's
    mean is then a ratio, its size being drawn too. Strata without links are resampled each for itself.

    Args:
        values: (n_queries, n_variants); a variant without a value (NaN) has none in that stratum either.
        strata: (n_queries,) labels.
        clusters: (n_queries,) labels, or None where every query stands for itself.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 6, 8 and 13;
    Davison & Hinkley, Bootstrap Methods (1997), section 3.8, for resampling whole clusters.
    """
    values, rng = _matrix(values), np.random.default_rng(seed)
    labels, stratum = np.unique(np.asarray(strata), return_inverse=True)
    cluster = np.arange(len(stratum)) if clusters is None else _numbered(clusters)
    value = np.array([values[stratum == s].mean(0) for s in range(len(labels))])
    replicates = np.empty((resamples, *value.shape))
    family = _families(stratum, cluster)[stratum]  # (n_queries,)
    for number in range(family.max() + 1):
        position = _numbered(cluster[family == number])
        members = {s: position[stratum[family == number] == s] for s in np.unique(stratum[family == number])}
        drawn = _resample(position.max() + 1, list(members.values()), resamples, rng)
        for s, clusters_of in members.items():
            weight = drawn[:, clusters_of]  # (resamples, n_queries of the stratum)
            replicates[:, s] = weight @ values[stratum == s] / weight.sum(1, keepdims=True)
    return Means(tuple(labels.tolist()), value, replicates)


def _numbered(labels) -> np.ndarray:
    return np.unique(np.asarray(labels), return_inverse=True)[1]


def _families(stratum: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Number the strata by which of them clusters link, directly or not: (n_strata,)."""
    touched = coo_matrix((np.ones(len(stratum)), (cluster, stratum))).tocsr()
    return connected_components(touched.T @ touched, directed=False)[1]


def _resample(n: int, strata: list[np.ndarray], resamples: int, rng) -> np.ndarray:
    """How often each of n clusters is drawn, (resamples, n); never so that a stratum is left empty."""
    drawn, todo = np.empty((resamples, n)), np.arange(resamples)
    while len(todo):
        picked = rng.integers(0, n, (len(todo), n)) + n * np.arange(len(todo))[:, None]
        drawn[todo] = np.bincount(picked.ravel(), minlength=len(todo) * n).reshape(len(todo), n)
        todo = todo[np.any([drawn[todo][:, s].sum(1) == 0 for s in strata], axis=0)]
    return drawn


def interval(replicates, level: float = LEVEL) -> np.ndarray:
    """Percentile interval along the first axis: (2, …). NaN in, NaN out.

    Source: Efron & Tibshirani (1993), section 13.3; the same as scipy.stats.bootstrap(method="percentile").
    """
    tail = (1 - level) / 2
    return np.quantile(np.asarray(replicates, float), [tail, 1 - tail], axis=0)


def standard_error(replicates) -> np.ndarray:
    """Standard deviation of the replicates along the first axis (Efron & Tibshirani, section 6.2)."""
    return np.std(np.asarray(replicates, float), axis=0, ddof=1)


def minimal_detectable(se_difference, level: float = LEVEL) -> np.ndarray:
    """The true difference that a two-sided test finds in 80 % of such suites: (1.96 + 0.84) × SE at 0.95.

    Source: Card et al., With Little Power Comes Great Responsibility (EMNLP 2020), section 2.
    """
    return (norm.ppf((1 + level) / 2) + norm.ppf(POWER)) * np.asarray(se_difference, float)


def randomization_test(differences, strata, clusters=None, flips: int = FLIPS, seed: int = 42) -> np.ndarray:
    """Two-sided p-values of the suite mean under random signs of the paired differences.

    Exact where all sign patterns are fewer than `flips`, else (1 + as extreme) / (1 + flips).

    Args:
        differences: (n_queries, n_variants) variant minus base.

    Source: Smucker, Allan & Carterette, A Comparison of Statistical Significance Tests for IR (CIKM 2007);
    the same as scipy.stats.permutation_test(permutation_type="samples").
    """
    differences = _matrix(differences)
    stratum = _numbered(strata)
    weight = 1 / np.bincount(stratum)[stratum] / (stratum.max() + 1)
    share = weight[:, None] * differences  # (n_queries, n_variants), sums to the suite difference
    if clusters is not None:
        share = np.stack([np.bincount(_numbered(clusters), column) for column in share.T], axis=1)
    rng = np.random.default_rng(seed)
    return np.array([_sign_flip(column[column != 0], flips, rng) for column in share.T])


def _sign_flip(share: np.ndarray, flips: int, rng) -> float:
    n, observed = len(share), abs(share.sum())
    if n == 0 or np.isnan(observed):
        return np.nan if n else 1.0
    slack = observed * (1 - 1e-9)
    if 2**n <= flips:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ share) >= slack))
    extreme = 0
    for start in range(0, flips, 1000):
        signs = 1.0 - 2.0 * rng.integers(0, 2, (min(1000, flips - start), n), dtype=np.int8)
        extreme += int((np.abs(signs @ share) >= slack).sum())
    return (1 + extreme) / (1 + flips)


def holm(p_values) -> np.ndarray:
    """P-values adjusted for testing several variants at once; NaN stays and is not counted.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).
    """
    p = np.asarray(p_values, float)
    adjusted, order = p.copy(), np.argsort(p)  # NaN sorts last
    m, running = int(np.isfinite(p).sum()), 0.0
    for rank, index in enumerate(order[:m]):
        running = max(running, min(1.0, (m - rank) * p[index]))
        adjusted[index] = running
    return adjusted


def win_tie_loss(differences, tolerance: float = 1e-9) -> tuple[int, int, int]:
    """Count differences above, within and below ± tolerance; NaN is in none."""
    d = np.asarray(differences, float)
    return int((d > tolerance).sum()), int((np.abs(d) <= tolerance).sum()), int((d < -tolerance).sum())


def verdict(low: float, high: float, margin: float) -> str:
    """What the interval of (variant - base) says, given a margin that was fixed before the run.

    'non-inferior': the whole interval lies above -margin; 'inferior': below -margin;
    'lower': below 0, with the margin inside; else 'not resolved'; 'not measured' without an interval.

    Source: Piaggio et al., Reporting of Noninferiority and Equivalence Randomized Trials (JAMA 2012).
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        return "not measured"
    if low > -margin:
        return "non-inferior"
    if high < -margin:
        return "inferior"
    return "lower" if high < -ROUNDING else "not resolved"


def resolved(low, high) -> np.ndarray:
    """True where an interval leaves 0 out (never for NaN)."""
    return (np.asarray(low, float) > ROUNDING) | (np.asarray(high, float) < -ROUNDING)


def _matrix(values) -> np.ndarray:
    values = np.asarray(values, float)
    return values[:, None] if values.ndim == 1 else values


def median_ratio(above, below, draws: int = 2000) -> tuple[float, float, float]:
    """Ratio of two medians and its 95 % interval, by a bootstrap of processes and of the calls in each.

    Calls of one process share its luck, so processes are drawn as wholes. Means of n drawn from n vary by
    (n - 1) / n of what they should, so deviations are widened. Where processes differ as calls do, simulated
    intervals still held the truth in 86 of 100 cases with two processes, in 94 with three.

    Args:
        above, below: a list of arrays of calls, one a process, all of one length.
    """
    rng, deviations = np.random.default_rng(0), []
    for calls in map(np.stack, (above, below)):  # (n_processes, n_calls)
        n = len(calls)
        processes = rng.integers(n, size=(draws, n, 1))
        drawn = calls[processes, rng.integers(calls.shape[1], size=(draws, *calls.shape))]
        medians = np.median(drawn.reshape(draws, -1), axis=1)
        deviations.append(np.log(medians / np.median(calls)) * np.sqrt(n / max(1, n - 1)))
    ratio = float(np.median(above) / np.median(below))
    low, high = ratio * np.exp(np.percentile(deviations[0] - deviations[1], [2.5, 97.5]))
    return ratio, float(low), float(high)
