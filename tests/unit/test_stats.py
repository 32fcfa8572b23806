"""Statistics against published golden values and their own definitions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike

from srpo.analysis.stats import (
    NO_PAIRS,
    Difference,
    Outcomes,
    Reached,
    area_difference,
    area_under_curve,
    clustered_wilson,
    combine,
    difference_over_runs,
    direction,
    first_reached,
    interquartile_mean,
    median_reached,
    percentile_interval,
    probability_of_improvement,
    rate_difference,
    rate_over_runs,
    ratio_over_runs,
    wilson,
)


def test_wilson_golden() -> None:
    # Newcombe, Statistics in Medicine 1998, 17:857-872, Table I, method 3.
    for successes, episodes, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
    ):
        estimate = wilson(successes, episodes)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)
        assert estimate.value == successes / episodes
    assert wilson(29, 29).low == pytest.approx(0.8830, abs=5e-5)
    assert wilson(29, 29).high == 1


def test_wilson_of_nothing_and_of_nonsense() -> None:
    assert np.isnan([wilson(0, 0).value, wilson(0, 0).low, wilson(0, 0).high]).all()
    with pytest.raises(ValueError, match="5 successes in 4"):
        wilson(5, 4)


def test_the_difference_of_two_rates_by_newcombe() -> None:
    """56 of 70 and 48 of 80 is the first example of his paper, table II, method 10."""
    gain = rate_difference(wilson(48, 80), wilson(56, 70))
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert direction(gain) is True
    assert direction(rate_difference(wilson(56, 70), wilson(48, 80))) is False
    assert direction(rate_difference(wilson(49, 70), wilson(48, 80))) is None
    assert direction(rate_difference(wilson(0, 0), wilson(56, 70))) is None


def test_wilson_of_clusters() -> None:
    # One episode each: Wilson's own.
    outcomes = np.repeat([1, 0], [7, 13])
    own, alone = clustered_wilson(outcomes, np.ones(20, int)), wilson(7, 20)
    assert (own.value, own.low, own.high) == pytest.approx((alone.value, alone.low, alone.high))
    # Seven seeds that end alike on each of 30 tasks are worth 30 episodes, whatever the rate.
    for solved in (12, 30, 0):
        same = np.repeat([7, 0], [solved, 30 - solved])
        found, once = clustered_wilson(same, np.full(30, 7)), wilson(solved, 30)
        assert (found.value, found.low, found.high) == pytest.approx((once.value, once.low, once.high))
    # By hand: p = 1/2; Σ (s − p·n)² = 1 + 1 + 0 + 0 over N·p·(1 − p) = 2: worth 8 episodes, and no more.
    found, independent = clustered_wilson(np.array([2, 0, 1, 1]), np.full(4, 2)), wilson(4, 8)
    assert (found.low, found.high) == pytest.approx((independent.low, independent.high))
    # Σ = 9 + 9 + 1 + 1 over 6·4·… : p = 1/2, N = 24, effect 20/6.
    found = clustered_wilson(np.array([6, 0, 4, 2]), np.full(4, 6))
    worth = 24 * 6 / 20
    half = 1.959964 * np.sqrt(0.25 / worth + 1.959964**2 / (4 * worth**2)) / (1 + 1.959964**2 / worth)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert np.isnan(clustered_wilson(np.zeros(0, int), np.zeros(0, int)).value)


def test_finite_draws_make_the_interval() -> None:
    assert np.isnan(percentile_interval(np.array([np.nan, np.nan, 1.0]))).all()
    assert percentile_interval(np.array([np.inf, 1.0, 1.0])) == (1, 1)


def test_combine() -> None:
    one = wilson(7, 20)
    assert combine([one]) == one
    two = combine([wilson(0, 40), wilson(20, 40)])
    assert two.value == pytest.approx(0.25)
    # By hand: Wilson's limits of 0/40 are 0 and 0.0876, of 20/40 are 0.3520 and 0.6480.
    assert two.low == pytest.approx(0.25 - (0.5 - 0.3520) / 2, abs=1e-4)
    assert two.high == pytest.approx(0.25 + np.hypot(0.0876, 0.6480 - 0.5) / 2, abs=1e-4)
    weighted = combine([wilson(0, 40), wilson(20, 40)], [3, 1])
    assert weighted.value == pytest.approx(0.125)
    assert np.isnan(combine([one, wilson(0, 0)]).value)
    assert np.isnan(combine([]).value)


# ------------------------------------------------------------------------------- runs: seeds, tasks, curves


def compared(
    baseline: ArrayLike, method: ArrayLike, strata: ArrayLike | None = None, shares: ArrayLike | None = None
) -> Difference:
    """Runs of one suite, (R, C) each."""
    runs, before = np.array(method, float), np.array(baseline, float)
    places = runs.shape[1]
    groups = np.zeros(places, int) if strata is None else np.array(strata)
    share = np.full(places, 1 / places) if shares is None else np.array(shares, float)
    return difference_over_runs([Outcomes(runs, share, groups, before)])


def test_one_run_each_is_bonett_and_prices_interval() -> None:
    # Airway hyper-responsiveness before and after transplantation (n = 21): one child gained, seven lost.
    # Their interval: (1 − 7)/23 ± 1.96 · √((2 + 8)/23 − (6/23)²)/√23.
    both, gained, lost, neither = 1, 1, 7, 12
    baseline = np.repeat([1.0, 0.0, 1.0, 0.0], [both, gained, lost, neither])
    method = np.repeat([1.0, 1.0, 0.0, 0.0], [both, gained, lost, neither])
    found = compared([baseline], [method])
    half = 1.959964 * np.sqrt((10 / 23 - (6 / 23) ** 2) / 23)
    assert found.estimate.value == pytest.approx(-6 / 21)
    assert (found.pairs, found.runs) == (21, (1, 1))
    # A draw is a multiple of 1/23.
    assert (found.estimate.low, found.estimate.high) == pytest.approx(
        (-6 / 23 - half, -6 / 23 + half), abs=0.03
    )
    assert found == compared([baseline], [method])  # seeded


def test_few_places_that_end_alike_make_no_certainty() -> None:
    two, twelve = (compared(np.zeros((3, n)), np.ones((3, n))) for n in (2, 12))
    assert (two.estimate.value, two.estimate.high) == (1, 1)
    assert two.estimate.low < 0 and two.p_value > 0.05
    assert twelve.estimate.low > 0.5 and twelve.p_value < 0.001


def test_interval_and_p_say_the_same() -> None:
    rng = np.random.default_rng(0)
    decided = []
    for _ in range(12):
        found = compared(rng.random((3, 20)) < 0.4, rng.random((3, 20)) < 0.7)
        outside = found.estimate.low > 0 or found.estimate.high < 0
        if abs(found.p_value - 0.05) > 0.002:
            assert outside == (found.p_value < 0.05)
        decided.append(outside)
    assert 0 < sum(decided) < 12


def test_runs_are_the_outer_unit() -> None:
    """Seeds that differ leave a difference open that their pooled episodes would call certain."""
    seeds = np.array([[0.0] * 40, [0.5] * 40, [1.0] * 40])  # each run the same on all states
    spread, alike = (
        compared(np.full((3, 40), 0.2), seeds),
        compared(np.full((3, 40), 0.2), np.full((3, 40), 0.5)),
    )
    assert spread.estimate.value == alike.estimate.value == pytest.approx(0.3)
    assert spread.estimate.low < 0 < alike.estimate.low
    assert spread.p_value > 0.05 > alike.p_value
    # Student's interval of the three runs, t = 4.302653, a little shrunk by the two places that are added.
    near = np.array([[0.45] * 400, [0.5] * 400, [0.55] * 400])
    found = rate_over_runs([Outcomes(near, np.full(400, 1 / 400), np.zeros(400, int))])
    assert (found.low, found.high) == pytest.approx(
        (0.5 - 4.302653 * 0.05 / np.sqrt(3), 0.5 + 4.302653 * 0.05 / np.sqrt(3)), abs=0.01
    )


def test_two_runs_that_agree_are_not_certain() -> None:
    apart = area_difference([np.array([0.30, 0.34])], [np.array([0.40, 0.42])])
    # Two degrees of freedom: t = 0.09 / √(0.0008/2 + 0.0002/2) = 4.02, p = 0.057.
    assert apart.p_value == pytest.approx(0.057, abs=0.01)
    assert apart.estimate.low < 0


def test_strata_count_by_their_shares() -> None:
    baseline = [[0.0] * 30 + [1.0] * 10]
    method = [[1.0] * 30 + [0.0] * 10]
    strata = [0] * 30 + [1] * 10
    pooled = compared(baseline, method, strata, [1 / 40] * 40)
    macro = compared(baseline, method, strata, [1 / 60] * 30 + [1 / 20] * 10)
    assert pooled.estimate.value == pytest.approx(0.5)
    assert macro.estimate.value == pytest.approx(0) and macro.p_value > 0.5


def test_a_rate_over_runs_has_the_variance_of_its_levels() -> None:
    rng = np.random.default_rng(1)
    runs = (rng.random((4, 200)) < [[0.3], [0.4], [0.6], [0.7]]).astype(float)
    suite = Outcomes(runs, np.full(200, 1 / 200), np.zeros(200, int))
    found = rate_over_runs([suite])
    assert found.value == pytest.approx(runs.mean())
    of_runs, of_places = runs.mean(axis=1).var(ddof=1) / 4, runs.mean(axis=0).var() / 200

    def width(degrees: int, share: float) -> float:
        draws = np.sqrt(of_runs) * rng.standard_t(degrees, 100_000)
        draws += np.sqrt(of_places) * rng.standard_normal(100_000)
        return float(np.sqrt(share) * np.ptp(np.percentile(draws, [2.5, 97.5])))

    assert found.high - found.low == pytest.approx(width(3, 1), rel=0.1)
    # Two suites: independent runs, each by its share.
    half = Outcomes(runs, np.full(200, 1 / 400), np.zeros(200, int))
    both = rate_over_runs([half, half])
    assert both.value == pytest.approx(found.value)
    assert both.high - both.low == pytest.approx(width(6, 1 / 2), rel=0.1)


def test_nothing_to_compare() -> None:
    assert difference_over_runs([]) == NO_PAIRS
    with pytest.raises(ValueError, match="needs a baseline's runs"):
        difference_over_runs([Outcomes(np.ones((1, 2)), np.full(2, 0.5), np.zeros(2, int))])


def test_areas_are_compared_by_runs_drawn_anew() -> None:
    grpo = [np.array([0.30, 0.34, 0.38]), np.array([0.50, 0.52, 0.54])]
    srpo = [np.array([0.40, 0.42, 0.44]), np.array([0.60, 0.64, 0.68])]
    found = area_difference(grpo, srpo)
    assert found.estimate.value == pytest.approx((0.08 + 0.12) / 2) and found.runs == (3, 3)
    # Variances of the means: 0.04²/3 and 0.02²/3 in either suite; the mean over two suites has a quarter.
    deviation = np.sqrt(2 * (0.04**2 + 0.02**2) / 3 / 4)
    # Eight degrees of freedom: t = 2.306.
    assert found.estimate.high - found.estimate.low == pytest.approx(2 * 2.306 * deviation, rel=0.05)
    assert found.estimate.low > 0 and found.p_value < 0.01
    one = area_difference([np.array([0.3])], [np.array([0.4, 0.5])])
    assert one.estimate.value == pytest.approx(0.15) and np.isnan([one.estimate.low, one.p_value]).all()
    with pytest.raises(ValueError, match="areas of 1 suites and of 2"):
        area_difference(grpo[:1], srpo)


def test_no_difference_is_above_one_or_below_minus_one() -> None:
    """Two runs that differ much have draws that no rate can have."""
    runs, none = np.array([[1.0, 1.0], [0.0, 0.2]]), np.zeros((1, 2))
    suite = Outcomes(runs, np.full(2, 0.5), np.zeros(2, int), none)
    found = difference_over_runs([suite]).estimate
    assert (found.low, found.high) == (-1, 1)
    twice = difference_over_runs([suite], lowest=-2.0).estimate
    assert (twice.low, twice.high) == (-2, 1)


def test_a_ratio_is_of_sums_over_runs_drawn_anew() -> None:
    rights, pairs = np.array([6.0, 8.0, 7.0]), np.array([10.0, 10.0, 10.0])
    found = ratio_over_runs([(rights, pairs)])
    assert found.value == pytest.approx(0.7)
    # Runs of like size: the mean of 0.6, 0.8 and 0.7, two degrees of freedom: t = 4.303.
    assert found.high - found.low == pytest.approx(2 * 4.303 * 0.1 / np.sqrt(3), rel=0.1)
    # A run with ten times the pairs counts ten times as much.
    assert ratio_over_runs([(np.array([50.0, 10.0]), np.array([100.0, 10.0]))]).value == 60 / 110
    # What suites differ in is no spread of runs.
    apart = ratio_over_runs(
        [(np.array([1.0, 1.0]), np.full(2, 10.0)), (np.array([9.0, 9.0]), np.full(2, 10.0))]
    )
    assert (apart.low, apart.value, apart.high) == pytest.approx((0.5, 0.5, 0.5))
    assert np.isnan(ratio_over_runs([(np.array([6.0]), np.array([10.0]))]).low)
    assert np.isnan(ratio_over_runs([(np.zeros(2), np.zeros(2))]).value)


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([[0, 1, 2, 3], [4, 5, 60, -70]])) == 2.5  # of 1, 2, 3, 4
    assert interquartile_mean(np.array([1.0, 2.0, 9.0])) == 4  # a quarter of three, rounded down, is none


def test_probability_of_improvement_counts_pairs() -> None:
    method, baseline = np.array([[1, 0.5], [0.5, 0], [1, 0.2]]), np.array([[0.5, 0.5], [0, 0.1]])
    wins = [[(m > b) + (m == b) / 2 for m in method[:, t] for b in baseline[:, t]] for t in (0, 1)]
    assert probability_of_improvement(method, baseline) == pytest.approx(np.mean(wins))
    assert probability_of_improvement(method, method) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="must be"):
        probability_of_improvement(method, baseline[:, :1])


def test_area_under_curve_by_hand() -> None:
    # 1 × (0 + 0.4)/2 + 3 × (0.4 + 1)/2 over a width of 4.
    assert area_under_curve(np.array([1, 2, 5]), np.array([0, 0.4, 1])) == pytest.approx(2.3 / 4)
    assert area_under_curve(np.array([7]), np.array([0.3])) == 0.3
    with pytest.raises(ValueError, match="x must rise"):
        area_under_curve(np.array([1, 1]), np.array([0, 1]))


def test_first_reached() -> None:
    x, y = np.array([10, 20, 30, 40, 50]), np.array([0.1, 0.9, 0.2, 0.8, 0.9])
    assert first_reached(x, y, 0.8) == Reached(20, False)
    assert first_reached(x, y, 0.5, window=2) == Reached(20, False)
    assert first_reached(x, y, 0.8, window=2) == Reached(50, False)  # the lucky second step does not count
    assert first_reached(x, y, 0.95) == Reached(50, True)
    assert first_reached(x[:2], y[:2], 0.1, window=3) == Reached(20, True)
    assert first_reached(x, np.full(5, 0.7), 0.7, window=3) == Reached(30, False)  # whatever the rounding


def test_median_reached_by_hand() -> None:
    def of(*times: float, censored: tuple[float, ...] = ()) -> list[Reached]:
        return [Reached(t, False) for t in times] + [Reached(t, True) for t in censored]

    assert median_reached(of(10, 20, 40)) == Reached(20, False)
    # Survival: 4/5 after 10, 4/5 × 2/3 after 30 (one left the study at 20), 4/15 after 40: the median is 40.
    assert median_reached(of(10, 30, 40, censored=(20, 50))) == Reached(40, False)
    assert median_reached(of(10, censored=(40, 50))) == Reached(50, True)  # most are not seen to arrive
    assert median_reached(of(censored=(40, 50))) == Reached(50, True)
    # Exactly half of the runs arrive, whatever their number and the rounding of 1 − k/n.
    for half in range(1, 16):
        arrived, late = range(1, half + 1), tuple(float(100) for _ in range(half))
        assert median_reached(of(*arrived, censored=late)) == Reached(half, False)
