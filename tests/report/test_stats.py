"""Known answers for the statistics: scipy where it has the method, arithmetic by hand where it has not."""

import numpy as np
import pytest
import scipy.stats

from colq_utils.base.errors import ColqError
from colq_utils.report import stats


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_bootstrap_of_one_stratum_is_scipys(rng):
    x = rng.normal(size=60)
    ours = stats.interval(stats.bootstrap(x, np.zeros(60), resamples=500, seed=7).suite()[1][:, 0])
    theirs = scipy.stats.bootstrap(
        (x,), np.mean, n_resamples=500, method="percentile", rng=np.random.default_rng(7)
    )
    assert ours == pytest.approx([*theirs.confidence_interval], abs=1e-12)


def test_suite_mean_weighs_strata_alike():
    means = stats.bootstrap([[1.0], [0.0], [0.0], [0.0], [1.0]], list("aaaab"), resamples=10)
    assert means.strata == ("a", "b")
    assert means.suite()[0] == pytest.approx([(0.25 + 1) / 2])
    assert means.suite([True, False])[0] == pytest.approx([0.25])
    with pytest.raises(ColqError, match="no task"):
        means.suite([False, False])


def test_standard_error_agrees_with_the_stratified_formula(rng):
    x, strata = rng.normal(size=400), np.repeat([0, 1], [100, 300])
    formula = np.sqrt(x[:100].var(ddof=1) / 100 + x[100:].var(ddof=1) / 300) / 2
    replicates = stats.bootstrap(x, strata, resamples=8000).suite()[1]
    assert stats.standard_error(replicates)[0] == pytest.approx(formula, rel=0.03)
    assert stats.minimal_detectable(formula) == pytest.approx(2.80 * formula, rel=1e-3)


def test_pairs_are_drawn_together(rng):
    x = rng.normal(size=50)
    replicates = stats.bootstrap(np.stack([x, x + 0.25], 1), np.zeros(50), resamples=50).suite()[1]
    assert replicates[:, 1] - replicates[:, 0] == pytest.approx(np.full(50, 0.25))


def test_clusters_are_drawn_together(rng):
    x = rng.normal(size=40)
    twice, strata, source = np.concatenate([x, x]), np.repeat(["de", "en"], 40), np.tile(np.arange(40), 2)
    alone = stats.standard_error(stats.bootstrap(x, np.zeros(40)).suite()[1])[0]
    blind = stats.standard_error(stats.bootstrap(twice, strata).suite()[1])[0]
    aware = stats.standard_error(stats.bootstrap(twice, strata, source).suite()[1])[0]
    assert aware == pytest.approx(alone, rel=1e-9)
    assert blind == pytest.approx(alone / np.sqrt(2), rel=0.1)


def test_standard_error_under_partial_clustering_is_that_of_repeated_sampling(rng):
    """Two strata, half of whose queries share a source: one bootstrap against 2,000 samples drawn anew."""
    strata = np.repeat([0, 1], 60)
    source = np.concatenate([np.arange(60), np.arange(30), 60 + np.arange(30)])  # 30 shared, 30 + 30 alone
    draw = lambda size: rng.normal(size=(size, 90))[:, source] + 0.3 * rng.normal(size=(size, 120))  # noqa: E731
    truth = draw(2000).mean(1).std()
    aware = [stats.standard_error(stats.bootstrap(x, strata, source, 400).suite()[1])[0] for x in draw(12)]
    blind = [stats.standard_error(stats.bootstrap(x, strata, None, 400).suite()[1])[0] for x in draw(12)]
    assert np.mean(aware) == pytest.approx(truth, rel=0.06)
    assert np.mean(blind) < 0.9 * truth


def test_clusters_never_leave_a_stratum_empty():
    means = stats.bootstrap([1.0, 2.0, 3.0, 4.0], ["a", "b", "b", "b"], ["x", "x", "y", "z"], resamples=200)
    assert np.isfinite(means.replicates).all() and (means.replicates[:, 0] == 1.0).all()


def test_a_missing_task_leaves_no_suite_mean():
    means = stats.bootstrap([[1.0, np.nan], [0.0, 1.0]], ["a", "b"], resamples=5)
    value, replicates = means.suite()
    assert value[0] == 0.5 and np.isnan(value[1]) and np.isnan(stats.interval(replicates)[:, 1]).all()


@pytest.mark.parametrize("n", [5, 10])
def test_randomization_is_scipys_exact_permutation_test(rng, n):
    d = rng.normal(0.3, 1, n)
    theirs = scipy.stats.permutation_test(
        (d, np.zeros(n)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert stats.randomization_test(d, np.zeros(n))[0] == pytest.approx(theirs.pvalue, abs=1e-12)


def test_randomization_by_sampling_is_close_to_the_t_test(rng):
    d = rng.normal(0.15, 1, 200)
    assert stats.randomization_test(d, np.zeros(200))[0] == pytest.approx(
        scipy.stats.ttest_1samp(d, 0).pvalue, abs=0.01
    )
    assert stats.randomization_test(np.zeros(9), np.zeros(9))[0] == 1.0
    assert np.isnan(stats.randomization_test([np.nan, 1.0], [0, 0])[0])


def test_randomization_flips_clusters_whole():
    d = [0.2, 0.2, 0.1, 0.1]
    assert stats.randomization_test(d, np.zeros(4))[0] == 2 / 16
    assert stats.randomization_test(d, np.zeros(4), clusters=[1, 1, 2, 2])[0] == 2 / 4


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, np.nan, 0.5])[[0, 2]] == pytest.approx([1.0, 1.0])
    assert np.isnan(stats.holm([0.6, np.nan])[1])


def test_win_tie_loss():
    assert stats.win_tie_loss([0.1, 0.0, 1e-12, -0.2, np.nan]) == (1, 2, 1)


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (-0.004, 0.001, "non-inferior"),
        (-0.004, -0.001, "non-inferior"),
        (-0.02, -0.006, "inferior"),
        (-0.02, -0.001, "lower"),
        (-0.02, 0.01, "not resolved"),
        (-0.005, 0.01, "not resolved"),
        (np.nan, np.nan, "not measured"),
    ],
)
def test_verdict(low, high, expected):
    assert stats.verdict(low, high, 0.005) == expected


def test_a_suite_of_full_size(rng):
    """As many queries, tasks and variants as published: the interval of every variant holds its mean."""
    x, strata = rng.random((3000, 9)), rng.integers(0, 50, 3000)
    mean, drawn = stats.bootstrap(x, strata).suite()
    low, high = stats.interval(drawn)
    each = [x[strata == s] for s in range(50)]
    error = np.sqrt(sum(part.var(0, ddof=1) / len(part) for part in each)) / 50
    assert np.allclose(high - low, 2 * 1.96 * error, rtol=0.1) and ((low < mean) & (mean < high)).all()
    p = stats.randomization_test(np.column_stack([x[:, 1:] - x[:, :1], x[:, 1] - x[:, 0] + 0.1]), strata)
    assert p[-1] == 1 / (1 + stats.FLIPS) and (p[:-1] > 0.001).all(), "a shift of 0.1 is found, noise is not"


def test_ratio_of_medians():
    assert stats.median_ratio([np.full(20, 3.0)], [np.full(10, 2.0)]) == (1.5, 1.5, 1.5)
    rng = np.random.default_rng(1)
    slow, fast = rng.normal(2, 0.1, 400), rng.normal(1, 0.05, 400)
    ratio, low, high = stats.median_ratio([slow], [fast])
    assert low < 2 < high and high - low < 0.05 and ratio == np.median(slow) / np.median(fast)


def test_ratio_of_medians_covers_processes_that_differ():
    """Calls that agree within a process say little where processes do not: the interval spans them."""
    rng = np.random.default_rng(1)
    base = [rng.normal(3, 0.01, 100), rng.normal(3, 0.01, 100)]
    ours = [rng.normal(2, 0.01, 100), rng.normal(2.5, 0.01, 100)]
    _, low, high = stats.median_ratio(base, ours)
    assert low < 1.21 and high > 1.49


@pytest.mark.parametrize("processes, held", [(2, 0.8), (3, 0.9)])
def test_ratio_of_medians_holds_the_truth(processes, held):
    """Processes that differ as much as calls do; the share of intervals with the true ratio, 1."""
    rng = np.random.default_rng(5)

    def sample():
        return [np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.1, 20)) for _ in range(processes)]

    intervals = [stats.median_ratio(sample(), sample(), draws=400) for _ in range(200)]
    assert np.mean([low <= 1 <= high for _, low, high in intervals]) >= held
