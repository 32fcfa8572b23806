"""Statistics against published golden values and their own definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import bootstrap as scipy_bootstrap

from srpo.analysis.stats import (
    Estimate,
    Reached,
    area_under_curve,
    bootstrap,
    cautious_difference,
    combine,
    direction,
    first_reached,
    hierarchical,
    hierarchical_draws,
    interquartile_mean,
    mean_difference,
    mean_paired_difference,
    median_reached,
    newcombe,
    paired_difference,
    probability_of_improvement,
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


def test_two_rates_differ_where_their_intervals_do_not_overlap() -> None:
    low, high = Estimate(0.3, 0.2, 0.4), Estimate(0.6, 0.5, 0.7)
    gain = cautious_difference(low, high)
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.3, 0.1, 0.5))
    assert direction(gain) is True and direction(cautious_difference(high, low)) is False
    assert direction(cautious_difference(low, Estimate(0.4, 0.4, 0.7))) is None
    assert direction(cautious_difference(wilson(0, 0), high)) is None


def test_paired_golden() -> None:
    # Airway hyper-responsiveness before and after transplantation (n = 21): Fagerland, Lydersen & Laake,
    # Statistics in Medicine 2014, 33:2850-2875: exact McNemar p 0.0703, Newcombe's interval -0.507, -0.026.
    both, gained, lost, neither = 1, 1, 7, 12
    baseline = np.repeat([1.0, 0.0, 1.0, 0.0], [both, gained, lost, neither])
    method = np.repeat([1.0, 1.0, 0.0, 0.0], [both, gained, lost, neither])
    result = paired_difference(baseline, method)
    assert result.test == "mcnemar"
    assert result.pairs == 21
    assert result.p_value == pytest.approx(0.0703, abs=5e-5)
    assert result.estimate.value == pytest.approx(-6 / 21)
    assert (result.estimate.low, result.estimate.high) == pytest.approx((-0.507, -0.026), abs=5e-4)


counts = st.integers(0, 30)


@given(counts, counts, counts, counts)
def test_newcombe_holds_the_difference_and_turns_with_the_sides(a: int, b: int, c: int, d: int) -> None:
    if a + b + c + d == 0:
        return
    there, back = newcombe(a, b, c, d), newcombe(a, c, b, d)
    assert -1 - 1e-9 <= there.low <= there.value <= there.high <= 1 + 1e-9
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


@given(st.integers(0, 15), st.integers(0, 15))
def test_mcnemar_is_a_binomial_test_of_the_discordant_pairs(gained: int, lost: int) -> None:
    baseline = np.repeat([1.0, 0.0, 1.0], [3, gained, lost])
    method = np.repeat([1.0, 1.0, 0.0], [3, gained, lost])
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert paired_difference(baseline, method).p_value == pytest.approx(expected)


def test_several_seeds_generalise_mcnemar() -> None:
    # 6 gains of one half and no loss: both signs equal in 2 of 2**6 flips.
    baseline, method = np.array([0.0] * 6 + [0.5] * 10), np.array([0.5] * 6 + [0.5] * 10)
    result = paired_difference(baseline, method)
    assert result.test == "sign flip"
    assert result.p_value == pytest.approx(2 / 2**6, abs=0.006)
    assert result.estimate.value == pytest.approx(6 * 0.5 / 16)
    assert result.estimate.low < result.estimate.value < result.estimate.high
    assert result == paired_difference(baseline, method)  # seeded


def test_no_pairs() -> None:
    result = paired_difference(np.array([]), np.array([]))
    assert result.pairs == 0
    assert np.isnan(result.p_value)


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


def test_bootstrap_of_a_mean_agrees_with_theory() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    interval = bootstrap(lambda i: float(values[i].mean()), [400], np.random.default_rng(0), 2000)
    half = 1.96 * values.std() / 20
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_bootstrap_leaves_out_what_is_not_finite() -> None:
    rng = np.random.default_rng(0)
    assert np.isnan(bootstrap(lambda i: float("nan"), [5], rng, 50)).all()
    low, high = bootstrap(lambda i: float("inf") if len(set(i)) < 4 else 1.0, [12], rng, 50)
    assert (low, high) == (1, 1)


# ------------------------------------------------------------------------------- runs: seeds, tasks, curves

SUCCESSES = np.array([[2, 9, 5, 0], [4, 10, 1, 3], [1, 6, 5, 2]])
EPISODES = np.array([[10, 10, 8, 10], [10, 10, 8, 10], [10, 10, 10, 10]])


@pytest.mark.parametrize("tasks", ["fixed", "random"])
def test_hierarchical_draws_have_the_variance_of_their_levels(tasks: str) -> None:
    # Law of total variance: between seeds, between tasks (if drawn), and p(1 − p)/n of the episodes.
    p = SUCCESSES / EPISODES
    episodes = (p * (1 - p) / EPISODES).mean(axis=1) / 4
    between_tasks = p.var(axis=1) / 4 if tasks == "random" else 0
    variance = (p.mean(axis=1).var() + (episodes + between_tasks).mean()) / 3
    draws = hierarchical_draws(SUCCESSES, EPISODES, np.random.default_rng(0), tasks, 60_000)  # type: ignore[arg-type]
    assert draws.mean() == pytest.approx(p.mean(), abs=4 * np.sqrt(variance / 60_000))
    assert draws.var() == pytest.approx(variance, rel=0.03)


def test_hierarchical_of_one_cell_is_the_bootstrap_of_its_episodes() -> None:
    outcomes = np.repeat([1.0, 0.0], [14, 26])
    theirs = scipy_bootstrap(
        (outcomes,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = hierarchical(np.array([[14]]), np.array([[40]]), np.random.default_rng(0))
    assert ours.value == 14 / 40
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.0251)  # a step of 1/40


def test_hierarchical_refuses() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="episodes of every task"):
        hierarchical(np.array([[0, 1]]), np.array([[0, 1]]), rng)
    with pytest.raises(ValueError, match=r"must both be \(S, T\)"):
        hierarchical(np.array([1]), np.array([1]), rng)


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


def test_mean_difference_by_hand() -> None:
    """Welch: 10 between the means, standard error √(2/2 + 2/2), 2 degrees of freedom (t = 4.302653)."""
    found = mean_difference([0, 2], [10, 12])
    assert (found.value, found.low, found.high) == pytest.approx((10, 3.915130, 16.084870), abs=1e-6)
    one = mean_difference([0], [10, 12])
    assert one.value == 11 and np.isnan([one.low, one.high]).all()
    assert np.isnan(mean_difference([1, 1], [2, 2]).low)  # no spread: nothing to measure by


def test_mean_paired_difference_by_hand() -> None:
    """Differences 1, 2 and 3: mean 2, standard error 1/√3, 2 degrees of freedom (t = 4.302653)."""
    found = mean_paired_difference([0, 5, 10], [1, 7, 13])
    half = 4.302653 / np.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-6)
    assert np.isnan(mean_paired_difference([0], [1]).low)
    assert np.isnan(mean_paired_difference([0, 1], [1, 2]).low)  # no spread: nothing to measure by
    with pytest.raises(ValueError, match="1 runs and 2 are not pairs"):
        mean_paired_difference([0], [1, 2])
