"""Known answers for the statistics: scipy where it has the method, arithmetic by hand where it has not."""

import numpy as np
import pytest
import scipy.stats

from colq_utils.base.errors import ColqError
from colq_utils.report import stats


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def resampled(values, strata, clusters, resamples: int, seed: int) -> np.ndarray:
    """Suite means under resampling of clusters, all strata together: (resamples, n_variants)."""
    rng, values = np.random.default_rng(seed), np.asarray(values, float).reshape(len(strata), -1)
    labels, cluster = np.unique(strata), np.unique(clusters, return_inverse=True)[1]
    drawn = rng.multinomial(cluster.max() + 1, np.full(cluster.max() + 1, 1 / (cluster.max() + 1)), resamples)
    means = []
    for label in labels:
        weight = drawn[:, cluster[strata == label]]
        means.append(weight @ values[strata == label] / weight.sum(1, keepdims=True))
    return np.mean(means, axis=0)


def test_the_mean_of_one_stratum_has_scipys_interval_and_p(rng):
    x = rng.normal(0.2, 1, 60)
    ours, theirs = stats.means(x, np.zeros(60)).suite(), scipy.stats.ttest_1samp(x, 0)
    assert np.ravel(ours.interval()) == pytest.approx([*theirs.confidence_interval(0.95)])
    assert ours.p[0] == pytest.approx(theirs.pvalue)


def test_suite_mean_weighs_strata_alike():
    means = stats.means([[1.0], [0.0], [0.0], [0.0], [1.0]], list("aaaab"))
    assert means.strata == ("a", "b")
    assert means.suite().value == pytest.approx([(0.25 + 1) / 2])
    assert means.suite([True, False]).value == pytest.approx([0.25])
    with pytest.raises(ColqError, match="no task"):
        means.suite([False, False])


def test_standard_error_is_the_stratified_formula(rng):
    x, strata = rng.normal(size=400), np.repeat([0, 1], [100, 300])
    formula = np.sqrt(x[:100].var(ddof=1) / 100 + x[100:].var(ddof=1) / 300) / 2
    measured = stats.means(x, strata).suite()
    assert measured.se[0] == pytest.approx(formula) and measured.df == 398
    assert stats.minimal_detectable(formula) == pytest.approx(2.80 * formula, rel=1e-3)


def test_differences_are_paired(rng):
    x = rng.normal(size=50)
    both = stats.means(np.stack([x, x + 0.25], 1), np.zeros(50)).suite()
    apart = both.of([1]) - both.of([0])
    assert apart.value == pytest.approx([0.25]) and apart.se == pytest.approx([0.0], abs=1e-12)


def test_queries_of_one_source_are_one_observation(rng):
    x = rng.normal(size=40)
    twice, strata, source = np.concatenate([x, x]), np.repeat(["de", "en"], 40), np.tile(np.arange(40), 2)
    alone = stats.means(x, np.zeros(40)).suite().se[0]
    assert stats.means(twice, strata, source).suite().se[0] == pytest.approx(alone)
    assert stats.means(twice, strata).suite().se[0] == pytest.approx(alone / np.sqrt(2))


def test_the_closed_form_is_what_resampling_gives(rng):
    """Two strata of unequal size, half of whose queries share a source, and two variants."""
    strata = np.repeat([0, 1], [90, 60])
    source = np.concatenate([np.arange(90), np.arange(30), 90 + np.arange(30)])
    x = rng.normal(size=(120, 2))[source] + 0.3 * rng.normal(size=(150, 2))
    measured = stats.means(x, strata, source).suite()
    change = measured.of([1]) - measured.of([0])
    drawn = resampled(x, strata, source, 8000, seed=1)
    assert measured.se == pytest.approx(drawn.std(0, ddof=1), rel=0.04)
    assert change.se[0] == pytest.approx((drawn[:, 1] - drawn[:, 0]).std(ddof=1), rel=0.04)


def test_standard_error_under_partial_clustering_is_that_of_repeated_sampling(rng):
    """Two strata, half of whose queries share a source, against 2,000 samples drawn anew."""
    strata = np.repeat([0, 1], 60)
    source = np.concatenate([np.arange(60), np.arange(30), 60 + np.arange(30)])  # 30 shared, 30 + 30 alone
    draw = lambda size: rng.normal(size=(size, 90))[:, source] + 0.3 * rng.normal(size=(size, 120))  # noqa: E731
    truth = draw(2000).mean(1).std()
    aware = [stats.means(x, strata, source).suite().se[0] for x in draw(40)]
    blind = [stats.means(x, strata).suite().se[0] for x in draw(40)]
    assert np.mean(aware) == pytest.approx(truth, rel=0.05)
    assert np.mean(blind) < 0.9 * truth


def test_of_two_equal_variants_as_many_are_called_different_as_alpha_says(rng):
    """A/A: scores as lumpy as NDCG@5, a variant that changes one query in eight for no reason."""
    strata, source = np.repeat(np.arange(6), 50), np.repeat(np.arange(150), 2)
    called, beyond, trials = 0, 0, 2000
    for _ in range(trials):
        change = rng.choice([-0.37, 0.37], 300) * (rng.random(300) < 1 / 8)
        low, high = np.ravel(stats.means(change, strata, source).suite().interval())
        called += bool(stats.resolved(low, high))
        beyond += stats.verdict(low - 0.005, high - 0.005, 0.005) == "non-inferior"  # truly at the margin
    limits = scipy.stats.binom.ppf([0.001, 0.999], trials, 0.05)
    assert limits[0] <= called <= limits[1]
    assert 0 < beyond <= scipy.stats.binom.ppf(0.999, trials, 0.025)


def test_power_is_how_often_no_loss_is_shown(rng):
    se, margin = 0.002, 0.005
    for loss in (0.0, 0.002, 0.005):
        value = rng.normal(-loss, se, 40000)
        shown = (value - 1.959964 * se > -margin + stats.NEAR).mean()
        assert stats.power(loss, se, margin) == pytest.approx(shown, abs=0.01)


def test_equivalent_needs_room_on_both_sides():
    assert stats.equivalent(-0.004, 0.004, 0.005) and not stats.equivalent(-0.004, 0.0046, 0.005)
    assert not stats.equivalent(-0.0046, 0.004, 0.005) and not stats.equivalent(np.nan, 0.004, 0.005)


def test_a_missing_task_leaves_no_suite_mean():
    measured = stats.means([[1.0, np.nan], [0.0, 1.0], [1.0, 1.0]], ["a", "b", "b"]).suite()
    assert measured.value[0] == 0.75 and np.isnan(measured.value[1])
    assert np.isnan(np.array(measured.interval())[:, 1]).all()


def test_one_observation_has_no_interval():
    measured = stats.means([0.2, 0.4], ["a", "a"], ["x", "x"]).suite()
    assert np.isnan(measured.interval()).all() and measured.value == pytest.approx([0.3])


def test_where_nothing_differs_p_is_one():
    assert stats.means(np.zeros(9), np.zeros(9)).suite().p == pytest.approx([1.0])
    assert np.isnan(stats.means([np.nan, 1.0], [0, 0]).suite().p[0])


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
        (-0.02, -0.0004, "not resolved"),
        (-0.005, 0.01, "at the margin"),
        (-0.0121, -0.005008, "at the margin"),
        (-0.0054, 0.003, "at the margin"),
        (np.nan, np.nan, "not measured"),
    ],
)
def test_verdict(low, high, expected):
    assert stats.verdict(low, high, 0.005) == expected


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
