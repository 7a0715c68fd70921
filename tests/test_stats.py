"""Intervals, rank statistics and conformal ranks: by hand, by counting, by simulation, and where nothing was scored."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from d2unlearn.errors import GateError
from d2unlearn.stats import (
    auroc,
    binomial_interval,
    bootstrap_bounds,
    bootstrap_interval,
    conformal_rank,
    crossed_test,
    finite,
    fpr_at_tpr,
    harmonic_mean,
    holm,
    ks_distance,
    smallest_n,
    smallest_rate,
    t_reach,
    t_tail,
    unseen_share,
)

NAN = math.nan


def rounded_samples(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two samples with many ties within and between them."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, 30).round(1), rng.normal(0.7, 1, 17).round(1)


# -- bootstrap ----------------------------------------------------------------------------------------------------------


def test_the_interval_lies_about_the_mean_and_counts_what_was_scored() -> None:
    found = bootstrap_interval([1.0, NAN, 2.0, 3.0, NAN])
    assert (found.value, found.n) == (2.0, 3)
    assert 1.0 <= found.low < 2.0 < found.high <= 3.0


@pytest.mark.parametrize("values", [[], [NAN, NAN]])
def test_nothing_scored_is_not_zero(values: list[float]) -> None:
    found = bootstrap_interval(values)
    assert np.isnan(found[:3]).all()
    assert found.n == 0


@pytest.mark.parametrize("values", [[0.3], [0.3, NAN], [0.3, 0.3, 0.3]])
def test_one_value_is_its_own_interval(values: list[float]) -> None:
    found = bootstrap_interval(values)
    assert found[:3] == pytest.approx((0.3, 0.3, 0.3), abs=1e-12)


def test_the_interval_is_as_wide_as_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap_interval(values, n_boot=4000)
    error = values.std(ddof=1) / 20
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    found = [bootstrap_interval(rng.exponential(1.0, 80), n_boot=300) for _ in range(300)]
    covered = np.mean([each.low <= 1.0 <= each.high for each in found])
    assert 0.90 <= covered <= 0.98


def test_whole_groups_are_drawn() -> None:
    """Twenty authors of twenty equal answers: the interval is that of twenty values, not of four hundred."""
    authors = np.random.default_rng(2).normal(size=20)
    answers = np.repeat(authors, 20)
    grouped = bootstrap_interval(answers, groups=np.repeat(np.arange(20), 20).tolist())
    of_authors = bootstrap_interval(authors)
    assert grouped.value == pytest.approx(of_authors.value)
    assert (grouped.low, grouped.high) == pytest.approx((of_authors.low, of_authors.high), abs=0.05)
    alone = bootstrap_interval(answers)
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)


def test_groups_of_any_size_and_name_keep_the_mean_over_answers() -> None:
    found = bootstrap_interval([1.0, 1.0, 1.0, 5.0, NAN], groups=["a", "a", "a", None, "gone"])
    assert (found.value, found.low, found.high, found.n) == (2.0, 1.0, 5.0, 4)


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_more_confidence_is_a_wider_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    sure, unsure = bootstrap_interval(values, confidence=0.99), bootstrap_interval(values, confidence=0.5)
    assert sure.low < unsure.low < unsure.high < sure.high


def test_bounds_of_a_statistic_take_the_same_examples_in_every_column_of_a_set() -> None:
    """The difference of a column and itself plus one is one in every draw."""
    values = np.random.default_rng(0).normal(size=40)
    low, high = bootstrap_bounds(
        lambda columns: float((columns[1] - columns[0]).mean()),
        [("forget", values), ("forget", values + 1)],
        {"forget": list(range(40))},
        n_boot=50,
    )
    assert (low, high) == pytest.approx((1.0, 1.0))


def test_bounds_of_a_mean_are_those_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(5, 2, 200)
    low, high = bootstrap_bounds(lambda c: float(c[0].mean()), [("one", values)], {"one": list(range(200))}, n_boot=2000)
    plain = bootstrap_interval(values, n_boot=2000)
    assert (low, high) == pytest.approx((plain.low, plain.high), abs=0.05)
    assert np.isnan(bootstrap_bounds(lambda c: NAN, [("one", values)], {"one": list(range(200))}, n_boot=5)).all()


@pytest.mark.parametrize("labels", [list("aabbccdd"), list("aaabccdd"), list(range(8))], ids=["even", "uneven", "alone"])
def test_whole_groups_are_drawn_whatever_their_sizes(labels: list[object]) -> None:
    """The same draws as groups put together one by one."""
    values = np.random.default_rng(1).normal(0, 1, 8)
    members = [[i for i, label in enumerate(labels) if label == each] for each in dict.fromkeys(labels)]
    rng, drawn = np.random.default_rng(7), []
    for _ in range(40):
        places = [i for g in rng.integers(0, len(members), len(members)) for i in members[g]]
        drawn.append(values[places].mean())
    found = bootstrap_bounds(lambda c: float(c[0].mean()), [("one", values)], {"one": labels}, n_boot=40, seed=7)
    assert found == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=1e-12)


# -- shares -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (3, 400), (400, 400)])
def test_a_share_has_its_exact_interval(successes: int, n: int) -> None:
    found = binomial_interval(successes, n)
    exact = scipy_stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
    assert found == pytest.approx((successes / n, exact.low, exact.high, n))


def test_none_of_a_hundred_is_below_four_hundredths() -> None:
    """1 - 0.025^(1/100)."""
    assert binomial_interval(0, 100) == pytest.approx((0.0, 0.0, 1 - 0.025**0.01, 100))


def test_with_one_repeat_or_one_group_the_crossed_test_is_student_s() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, 12)
    expected = scipy_stats.ttest_1samp(values, 0).pvalue
    assert crossed_test(values, range(12)) == (pytest.approx(values.mean()), pytest.approx(expected))
    assert crossed_test(values[:, None], ["one"]).p == pytest.approx(expected)
    by_group = values.reshape(4, 3).mean(axis=1)
    in_groups = crossed_test(values, np.repeat(list("abcd"), 3))
    assert in_groups.p == pytest.approx(scipy_stats.ttest_1samp(by_group, 0).pvalue)


def test_the_crossed_test_by_hand() -> None:
    """Two repeats of three: mean 4; repeats 3 and 5, so MS_r = 6; groups 2, 4 and 6, so MS_g = 8; the rest 1, 0, -1: MS_e = 2.

    The variance is (6 + 8 - 2) / 6 = 2; of p, 6 parts are with one and 8 with two degrees of freedom.
    """
    tails = [2 * scipy_stats.t.sf(4 / math.sqrt(2), freedom) for freedom in (1, 2)]
    found = crossed_test([[2.0, 3.0, 4.0], [2.0, 5.0, 8.0]], "abc")
    assert found == (4.0, pytest.approx((6 * tails[0] + 8 * tails[1]) / 14))


def test_what_groups_share_of_a_repeat_is_not_taken_for_chance_within_it() -> None:
    """Groups of three and of one: a shift of a whole repeat leaves nothing else to vary."""
    shifted = np.array([[0.1], [0.4], [0.7]]) + np.zeros((3, 4))
    expected = scipy_stats.ttest_1samp([0.1, 0.4, 0.7], 0).pvalue
    assert crossed_test(shifted, "aaab").p == pytest.approx(expected)


def test_groups_of_the_crossed_test_enter_by_their_share() -> None:
    values, groups = [[1.0, 1.0, 1.0, 5.0], [2.0, 2.0, 2.0, 6.0]], ["a", "a", "a", "b"]
    assert crossed_test(values, groups).mean == pytest.approx(2.5)
    assert crossed_test(values, groups).p > crossed_test(values, range(4)).p


def test_what_does_not_vary_is_certain_and_one_value_is_not() -> None:
    assert crossed_test(np.full((3, 6), 0.3), "aabbcc").p == 0.0
    assert crossed_test(np.zeros((3, 6)), "aabbcc").p == 1.0
    assert math.isnan(crossed_test([[0.3]], ["a"]).p)


@pytest.mark.parametrize("between_seeds", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("groups", [8, 15, 150])
def test_the_crossed_test_errs_no_more_often_than_it_says(between_seeds: float, groups: int) -> None:
    """2,000 studies without a difference, of three seeds: 5% err at 5%, and at a twentieth of 17 no more than three times that.

    A test that takes the seeds as given errs at least three times as often where they vary as much as authors.
    """
    rng = np.random.default_rng(0)
    found, fixed = [], []
    for _ in range(2000):
        seeds, authors = rng.normal(0, between_seeds**0.5, (3, 1)), rng.normal(0, 1, (1, groups))
        values = seeds + authors + rng.normal(0, 1, (3, groups))
        found.append(crossed_test(values, range(groups)).p)
        fixed.append(crossed_test(values.mean(axis=0), range(groups)).p)
    assert np.mean(np.array(found) < 0.05) <= 0.05 + 0.015
    assert np.mean(np.array(found) < 0.05 / 17) <= 0.009
    assert between_seeds < 1 or np.mean(np.array(fixed) < 0.05) > 0.15


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_share_of_nothing_is_not_zero() -> None:
    assert np.isnan(binomial_interval(0, 0)[:3]).all()


# -- ranks --------------------------------------------------------------------------------------------------------------


def test_auroc_by_hand() -> None:
    """Of nine pairs 1 < 2, 1 < 3, 1 < 3, 2 < 3, 2 < 3 are right and 2 = 2 is half so."""
    assert auroc([1, 2, 4], [2, 3, 3]) == pytest.approx(5.5 / 9)
    assert auroc([0, 1], [2, 3]) == 1.0
    assert auroc([2, 3], [0, 1]) == 0.0
    assert auroc([1, 1], [1]) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_the_share_of_pairs_in_order(seed: int) -> None:
    low, high = rounded_samples(seed)
    pairs = (high[:, None] > low[None]).mean() + 0.5 * (high[:, None] == low[None]).mean()
    assert auroc(low, high) == pytest.approx(pairs)
    assert auroc(low, high) == pytest.approx(roc_auc_score([0] * len(low) + [1] * len(high), [*low, *high]))
    assert auroc(high, low) == pytest.approx(1 - pairs)
    assert auroc(np.exp(low), np.exp(high)) == pytest.approx(pairs)


@pytest.mark.parametrize("statistic", [auroc, fpr_at_tpr, ks_distance])
def test_a_rank_statistic_without_a_side_is_none(statistic: object) -> None:
    assert callable(statistic)
    for low, high in (([], [1.0]), ([1.0], []), ([NAN], [1.0]), ([1.0], [NAN, NAN])):
        assert math.isnan(statistic(low, high))
    assert statistic([0.0, NAN, 1.0], [NAN, 0.5]) == statistic([0.0, 1.0], [0.5])


def test_infinite_scores_have_a_rank() -> None:
    assert finite([1.0, NAN, math.inf, -math.inf]).tolist() == [1.0, math.inf, -math.inf]
    assert auroc([-math.inf, 0.0], [math.inf, 1.0]) == 1.0
    assert ks_distance([-math.inf, 0.0], [math.inf, 1.0]) == 1.0


def test_false_positives_by_hand() -> None:
    """19 of 20 positives lie at 2 or more: so do 3, 2 and 9 of the five negatives; at 1 or more all but one."""
    positives = [1.0, *([2.0] * 19)]
    assert fpr_at_tpr([0.0, 1.5, 3.0, 2.0, 9.0], positives) == pytest.approx(3 / 5)
    assert fpr_at_tpr([0.0, 1.5, 3.0, 2.0, 9.0], positives, tpr=1.0) == pytest.approx(4 / 5)
    assert fpr_at_tpr([0.0, 1.5], positives, tpr=0.5) == 0.0


@pytest.mark.parametrize("percent", [1, 7, 14, 50, 55, 90, 95, 99, 100])
def test_the_threshold_keeps_the_share_asked_for_and_not_one_more(percent: int) -> None:
    """Of n positives 1 to n, ceil(n * share) are kept: the negative just below the least of them is no mistake."""
    for n in (1, 2, 19, 20, 50, 100, 400):
        least_kept = n - math.ceil(Fraction(percent, 100) * n) + 1
        positives = np.arange(1, n + 1)
        assert fpr_at_tpr([least_kept - 0.5], positives, tpr=percent / 100) == 0.0
        assert fpr_at_tpr([least_kept], positives, tpr=percent / 100) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_between_two_samples_is_scipys(seed: int) -> None:
    low, high = rounded_samples(seed)
    assert ks_distance(low, high) == pytest.approx(scipy_stats.ks_2samp(low, high).statistic)
    assert ks_distance(high, low) == pytest.approx(ks_distance(low, high))


def test_the_distance_by_hand() -> None:
    assert ks_distance([1, 2], [3, 4]) == 1.0
    assert ks_distance([1, 2, 3, 4], [1, 2, 3, 4]) == 0.0
    assert ks_distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5


def test_harmonic_mean_by_hand() -> None:
    assert harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.3, 0.4, 0.5]) == pytest.approx(scipy_stats.hmean([0.3, 0.4, 0.5]))
    assert harmonic_mean([0.9, 0.0, 1.0]) == 0.0
    assert math.isnan(harmonic_mean([0.9, NAN, 0.0]))
    assert math.isnan(harmonic_mean([]))


# -- conformal ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [1, 2, 5, 7, 10, 29, 50, 99])
def test_the_marginal_rank_is_exact(percent: int) -> None:
    """ceil((n + 1)(1 - alpha)) in fractions, where floating point is a last digit off."""
    for n in (*range(1, 300), 999, 1999):
        rank = math.ceil((n + 1) * (1 - Fraction(percent, 100)))
        if rank <= n:
            assert conformal_rank(n, percent / 100) == rank
        else:
            with pytest.raises(GateError, match=f"^{n} calibration prompts are too few"):
                conformal_rank(n, percent / 100)


@pytest.mark.parametrize(("n", "alpha", "confidence"), [(230, 0.01, 0.9), (400, 0.01, 0.9), (500, 0.05, 0.95), (60, 0.1, 0.5)])
def test_the_rank_with_confidence_is_the_smallest_that_is_sure_enough(n: int, alpha: float, confidence: float) -> None:
    """At least `confidence` of calibrations have fewer than k of n uniform scores above 1 - alpha: binomial, not beta."""

    def sure(rank: int) -> float:
        """P(the rank-th smallest of n lies above 1 - alpha) = P(fewer than `rank` of n lie below)."""
        return float(scipy_stats.binom.cdf(rank - 1, n, 1 - alpha))

    rank = conformal_rank(n, alpha, confidence)
    assert sure(rank) >= confidence > sure(rank - 1)
    assert rank >= conformal_rank(n, alpha)


def test_the_numbers_of_the_handbook() -> None:
    assert (smallest_n(0.01), smallest_n(0.01, 0.9)) == (99, 230)
    assert (conformal_rank(99, 0.01), conformal_rank(230, 0.01, 0.9)) == (99, 230)
    assert (smallest_rate(99), smallest_rate(0), smallest_rate(0, 0.9)) == (0.01, 1.0, 1.0)


def test_too_few_say_how_many_and_what_they_allow() -> None:
    with pytest.raises(GateError) as error:
        conformal_rank(50, 0.01)
    assert str(error.value) == (
        "50 calibration prompts are too few for at most 1.000% false refusals: 99 are needed; "
        "with 50 the smallest rate is 1.97% (--max-false-refusal 0.0197)"
    )
    with pytest.raises(GateError, match=r"^0 calibration prompts .* with 90% confidence: 230 are needed"):
        conformal_rank(0, 0.01, 0.9)


@pytest.mark.parametrize("confidence", [None, 0.19, 0.5, 0.8, 0.9, 0.95, 0.99])
def test_the_smallest_number_and_rate_are_enough_and_one_less_is_not(confidence: float | None) -> None:
    for alpha in (0.002, 0.01, 0.05, 0.1, 0.19, 0.271, 0.5):
        n = smallest_n(alpha, confidence)
        assert conformal_rank(n, alpha, confidence) == n
        if n > 1:
            with pytest.raises(GateError):
                conformal_rank(n - 1, alpha, confidence)
    for n in (1, 2, 9, 50, 98, 99, 229, 230, 1000):
        rate = smallest_rate(n, confidence)
        assert conformal_rank(n, rate, confidence) == n
        with pytest.raises(GateError):
            conformal_rank(n, rate - 1.01e-4, confidence)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, NAN])
def test_a_rate_that_is_none_is_an_error(alpha: float) -> None:
    with pytest.raises(GateError, match="must lie between 0 and 1"):
        conformal_rank(100, alpha)


@pytest.mark.parametrize("confidence", [0.0, 1.0, NAN])
def test_a_confidence_that_is_none_is_an_error(confidence: float) -> None:
    with pytest.raises(GateError, match="confidence must lie between 0 and 1"):
        conformal_rank(100, 0.5, confidence)


# -- few groups -----------------------------------------------------------------------------------------------------------


def test_t_of_a_mean_is_scipy_s_test_of_one_sample() -> None:
    values = np.random.default_rng(3).normal(0.4, 1, 6)
    error = float(values.std(ddof=1) / math.sqrt(6))
    expected = scipy_stats.ttest_1samp(values, 0.0, alternative="greater").pvalue
    assert t_tail(float(values.mean()), error, 5) == pytest.approx(expected)
    assert t_reach(error, 5) == pytest.approx(2.0150 * error, abs=1e-4)
    assert (t_tail(0.1, 0.0, 5), t_tail(0.0, 0.0, 5), t_reach(0.0, 5)) == (0.0, 1.0, 0.0)


def test_what_the_asked_do_not_show_may_be_so_of_as_many_as_a_draw_misses() -> None:
    """Of 5 with 1 asked: K of them are missed with (5 - K) / 5, which is above 5 % up to K = 4."""
    assert unseen_share(1, 5) == 0.8
    assert (unseen_share(5, 5), unseen_share(0, 5)) == (0.0, 1.0)
    chances = [math.comb(40 - k, 30) / math.comb(40, 30) for k in range(11)]
    assert unseen_share(30, 40) == max(k for k, chance in enumerate(chances) if chance > 0.05) / 40
