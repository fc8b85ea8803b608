"""Intervals, tests and verdicts for scores of queries: what may be said about a difference, and what not.

A retriever is judged by the mean over strata (a task in one language) of the mean over its queries. A query's
deviation from the mean of its stratum is its share of the error; shares of queries that have a source in
common are added before they are squared, and those of two variants are subtracted query by query, so that
every difference is a paired one. All in closed form: the same results give the same interval, whatever the
seed, and `tests/report/test_summary_numbers.py` finds them by resampling.

Not here: which queries count, which variants are compared (`analysis`), how it is written (`report`).
It measures the noise of the queries alone: another seed of the quantizer is another experiment.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import t as student

from colq_utils.base.errors import ColqError

LEVEL = 0.95
POWER = 0.80
#: Sums of equal numbers in another order differ by about this much; such a difference is none.
ROUNDING = 1e-12
#: An interval that ends this close to the margin or to 0 counts as ending on it, in NDCG units: the method of
#: the interval (normal or resampled, and by which seed) moves its ends by up to half as much.
NEAR = 0.0005


@dataclass(frozen=True)
class Estimate:
    """Means with their errors.

    Attributes:
        value: (n,).
        shares: (n_clusters, n), what each cluster of queries adds to the error; their squares add up to the
            variance, their products to the covariance.
        df: degrees of freedom.
    """

    value: np.ndarray
    shares: np.ndarray
    df: int

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.shares - other.shares, self.df)

    def of(self, columns) -> "Estimate":
        return Estimate(self.value[columns], self.shares[:, columns], self.df)

    @property
    def se(self) -> np.ndarray:
        """Standard errors; NaN where one cluster alone says nothing of the spread."""
        return np.sqrt((self.shares**2).sum(0)) if self.df > 0 else np.full(self.value.shape, np.nan)

    def interval(self, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        return interval(self.value, self.se, self.df, level)

    @property
    def p(self) -> np.ndarray:
        """Two-sided p of a true value of 0, by the t that the interval is made with."""
        return p_value(self.value, self.se, self.df)


def interval(value, se, df, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the t interval; NaN in, NaN out."""
    reach = student.ppf((1 + level) / 2, np.maximum(df, 1)) * np.asarray(se, float)
    return value - reach, value + reach


def p_value(value, se, df) -> np.ndarray:
    """Two-sided p of a true value of 0; 1 where nothing differs at all."""
    value, se = np.abs(value), np.asarray(se, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(value <= ROUNDING, se * 0, value / se)
    return 2 * student.sf(ratio, np.maximum(df, 1))


@dataclass(frozen=True)
class Means:
    """Means of strata, and what each query adds to their errors: see `means`.

    Attributes:
        strata: their labels, sorted; length S.
        value: (S, n_variants) means over the queries.
        deviations: (n_queries, n_variants) from the stratum's mean, divided by its number of queries.
        stratum, cluster: (n_queries,) numbers.
    """

    strata: tuple
    value: np.ndarray
    deviations: np.ndarray
    stratum: np.ndarray
    cluster: np.ndarray

    def suite(self, keep=None) -> Estimate:
        """Mean over the strata (those where `keep` is true), a value per variant."""
        keep = np.full(len(self.strata), True) if keep is None else np.asarray(keep, bool)
        if not keep.any():
            raise ColqError(
                "no task is left to average over: check which tasks are counted in evaluate/scores.csv"
            )
        rows = keep[self.stratum]
        stratum, cluster = _numbered(self.stratum[rows]), _numbered(self.cluster[rows])
        family = np.empty(cluster.max() + 1, int)
        family[cluster] = _families(stratum, cluster)[stratum]
        size = np.bincount(family)[family]  # (n_clusters,) clusters that vary together
        gather = csr_matrix((np.ones(len(cluster)), (cluster, np.arange(len(cluster)))))
        shares = (
            gather @ self.deviations[rows] / keep.sum() * np.sqrt(size / np.maximum(size - 1, 1))[:, None]
        )
        return Estimate(self.value[keep].mean(0), shares, len(family) - family.max() - 1)


def means(values, strata, clusters=None) -> Means:
    """Means by stratum, with the error of every average of them.

    Queries that share a source (translations of one question, one heading asked of two corpora) are one
    observation: the unit is the cluster, drawn among all clusters of the strata that clusters link. A mean of
    a stratum is then a ratio, its size being drawn too, and its error the linear part. A stratum all of whose
    queries share one source adds none.

    Args:
        values: (n_queries, n_variants); a variant without a value (NaN) has none in that stratum either.
        strata: (n_queries,) labels.
        clusters: (n_queries,) labels, or None where every query stands for itself.

    Source: Cochran, Sampling Techniques (1977), sections 5.6, 6.3 and 9A.2.
    """
    values = _matrix(values)
    labels, stratum = np.unique(np.asarray(strata), return_inverse=True)
    cluster = np.arange(len(stratum)) if clusters is None else _numbered(clusters)
    value = np.array([values[stratum == s].mean(0) for s in range(len(labels))])
    deviations = (values - value[stratum]) / np.bincount(stratum)[stratum][:, None]
    return Means(tuple(labels.tolist()), value, deviations, stratum, cluster)


def _numbered(labels) -> np.ndarray:
    return np.unique(np.asarray(labels), return_inverse=True)[1]


def _families(stratum: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Number the strata by which of them clusters link, directly or not: (n_strata,)."""
    touched = coo_matrix((np.ones(len(stratum)), (cluster, stratum))).tocsr()
    return connected_components(touched.T @ touched, directed=False)[1]


def minimal_detectable(se_difference, level: float = LEVEL, df=np.inf) -> np.ndarray:
    """The true difference that a two-sided test finds in 80 % of such suites: (1.96 + 0.84) × SE at 0.95.

    With few degrees of freedom the quantiles are those of t.

    Source: Card et al., With Little Power Comes Great Responsibility (EMNLP 2020), section 2.
    """
    quantiles = student.ppf((1 + level) / 2, df) + student.ppf(POWER, df)
    return quantiles * np.asarray(se_difference, float)


def power(loss, se, margin: float, df=np.inf) -> np.ndarray:
    """How likely a variant that truly loses `loss` gets the verdict 'non-inferior', all in NDCG units.

    Source: Chow, Shao and Wang, Sample Size Calculations in Clinical Research (2008), section 3.2.
    """
    room = (margin - NEAR - np.asarray(loss, float)) / se
    return student.cdf(room - student.ppf((1 + LEVEL) / 2, df), df)


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

    'non-inferior': the whole interval lies above -margin; 'inferior': below -margin; 'at the margin': it ends
    within `NEAR` of -margin, so that another method or another base could say otherwise; 'lower': below 0,
    with the margin inside; else 'not resolved'; 'not measured' without an interval.

    Source: Piaggio et al., Reporting of Noninferiority and Equivalence Randomized Trials (JAMA 2012).
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        return "not measured"
    if min(abs(low + margin), abs(high + margin)) <= NEAR:
        return "at the margin"
    if low > -margin:
        return "non-inferior"
    if high < -margin:
        return "inferior"
    return "lower" if high < -NEAR else "not resolved"


def equivalent(low: float, high: float, margin: float) -> bool:
    """Whether the whole interval lies within ± margin and not within `NEAR` of either end.

    Source: Schuirmann, A Comparison of the Two One-Sided Tests Procedure (1987).
    """
    return bool(low > -margin + NEAR and high < margin - NEAR)


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
