"""Statistics against published golden values and their own definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from srpo.analysis.stats import bootstrap, combine, newcombe, paired_difference, wilson


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
