"""Intervals that hold at every look: known values, what must be true of them, how often they are wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad

from srpo.analysis import comparisons, sequential
from srpo.analysis.stats import ALPHA, Estimate, direction

VALUES = arrays(float, st.integers(1, 30), elements=st.floats(0, 1))


def test_the_money_is_that_of_the_bets() -> None:
    """By hand: half the money on values above the mean, half below, each share alike."""
    values, mean = np.array([1.0, 0.25]), 0.4
    above = (1 + sequential.SHARES * (1 / 0.4 - 1)) * (1 + sequential.SHARES * (0.25 / 0.4 - 1))
    below = (1 - sequential.SHARES) * (1 + sequential.SHARES * (0.75 / 0.6 - 1))
    expected = (above.mean() + below.mean()) / 2
    money = np.exp(sequential.log_capital(values, mean))
    assert money[1] == pytest.approx(expected)
    # The mean share is a third: after one value of 1 the bets above have 1 + 1.5 / 3, those below 1 − 1 / 3.
    assert money[0] == pytest.approx((1 + 1.5 / 3 + 1 - 1 / 3) / 2, abs=1e-4)


def test_known_limits() -> None:
    """Fifty successes: the money is ∫(1 + f²·(1/m − 1))⁵⁰ df / 2."""
    low, high = sequential.confidence_limits(np.ones(50))
    assert high == pytest.approx(1)
    money, _ = quad(lambda share: (1 + share**2 * (1 / low - 1)) ** 50 / 2, 0, 1)
    assert money == pytest.approx(20, rel=0.02)
    assert low == pytest.approx(0.88660, abs=1e-4)
    assert sequential.confidence_limits(np.zeros(50)) == pytest.approx((0, 1 - low), abs=1e-6)
    assert sequential.confidence_limits(np.array([])) == (0, 1)


@given(VALUES)
@settings(max_examples=40, deadline=None)
def test_limits_are_where_the_money_is_twenty(values: np.ndarray) -> None:
    low, high = sequential.confidence_limits(values)
    assert 0 <= low <= values.mean() + 1e-9 and values.mean() - 1e-9 <= high <= 1
    for limit, outwards in ((low, -1e-6), (high, 1e-6)):
        if 1e-3 < limit < 1 - 1e-3:
            assert sequential.log_capital(values, limit + outwards)[-1] >= np.log(20) - 1e-2
            assert sequential.log_capital(values, limit - outwards)[-1] <= np.log(20) + 1e-2


@given(VALUES)
@settings(max_examples=40, deadline=None)
def test_mirrored_values_have_mirrored_limits_and_order_does_not_matter(values: np.ndarray) -> None:
    low, high = sequential.confidence_limits(values)
    assert sequential.confidence_limits(1 - values) == pytest.approx((1 - high, 1 - low), abs=1e-6)
    assert sequential.confidence_limits(values[::-1]) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.8])
def test_bets_are_fair(mean: float) -> None:
    """Over all sequences of outcomes of a coin with that mean, the money's expectation stays 1."""
    expectation = 0.0
    for outcomes in itertools.product((0.0, 1.0), repeat=6):
        values = np.array(outcomes)
        chance = mean ** values.sum() * (1 - mean) ** (6 - values.sum())
        expectation += chance * np.exp(sequential.log_capital(values, mean)[-1])
    assert expectation == pytest.approx(1)


def test_looking_always_is_wrong_in_at_most_a_twentieth() -> None:
    """Also where tasks differ from each other, and only their mean is what is supposed."""
    rng = np.random.default_rng(0)
    chances_of = np.array([0.8, 0.5, 0.2, 0.1])  # of the tasks; 0.4 on average
    for chances in (np.full(4, 0.4), chances_of):
        drawn = np.where(rng.random((1000, 50, 4)) < chances, 1.0, 0.0).reshape(1000, 200)
        money = np.stack([sequential.log_capital(values, 0.4)[3::4] for values in drawn])
        assert (money >= np.log(20)).any(axis=1).mean() < ALPHA


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, 0.6, -0.3])
def test_interval_p_and_money_agree(shift: float) -> None:
    values = np.clip(np.random.default_rng(1).normal(shift, 0.2, 30), -1, 1)
    result = sequential.difference([values], 30, (1, 1))
    money = np.exp(sequential.log_capital((values + 1) / 2, 0.5)[-1])
    assert result.p_value == pytest.approx(min(1, 1 / money), rel=1e-3, abs=1e-12)
    assert (direction(result.estimate) is not None) == (result.p_value <= ALPHA)
    assert result.estimate.value == pytest.approx(values.mean())


def test_several_sequences_hold_together() -> None:
    """Each at its part of the error, and the mean of their ends."""
    one, other = np.array([0.2, 0.6, 0.4]), np.array([0.9, 0.8])
    each = [sequential.confidence_limits(values, ALPHA / 2) for values in (one, other)]
    estimate = sequential.rate([one, other])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.mean(each, axis=0)))
    assert estimate.value == pytest.approx((0.4 + 0.85) / 2)
    # Of one that is empty nothing is known; weighed, the other has three of four parts.
    assert sequential.rate([one, np.array([])], [3, 1]) == Estimate(
        pytest.approx(0.4), pytest.approx(0.75 * each[0][0]), pytest.approx(0.75 * each[0][1] + 0.25)
    )
    assert np.isnan(sequential.rate([np.array([])]).value) and np.isnan(sequential.rate([]).value)


def episodes(variant: str, seed: int, outcomes: dict[tuple[int, int], bool]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                **dict.fromkeys(comparisons.PLACE),
                **{"suite": "libero_goal", "task_id": task, "init_state": state},
                **{"variant": variant, "seed": seed, "status": "success" if outcome else "failure"},
            }
            for (task, state), outcome in outcomes.items()
        ]
    )


def test_states_are_compared_in_order_on_the_tasks_that_both_ran() -> None:
    before = episodes("sft", 0, {(task, state): task == 0 for state in (3, 1, 2) for task in (0, 1)})
    after = episodes("grpo", 0, {(0, 1): True, (1, 1): True, (0, 2): False, (1, 2): True})
    result = comparisons.compare_at_any_time(before, after)
    # sft solves task 0 and not task 1, in either state
    expected = sequential.difference([np.array([0.0, 1.0, -1.0, 1.0])], 4, (1, 1))
    assert result == expected and result.estimate.value == 0.25
    assert comparisons.rate_at_any_time(after) == sequential.rate([np.array([1.0, 1.0, 0.0, 1.0])])
    two = pd.concat([after, episodes("grpo", 1, {(0, 1): False, (1, 1): False})])
    both = comparisons.compare_at_any_time(before, two)
    each = [np.array([0.0, 1.0, -1.0, 1.0]), np.array([-1.0, 0.0])]
    assert both.estimate == sequential.difference(each, 0, (0, 0)).estimate
    assert both.runs == (1, 2)


def test_a_baseline_of_several_runs_is_their_mean_where_all_of_them_ran() -> None:
    """Here one stopped after a state; beyond it the mean would be the other's alone, another comparison."""
    places = [(task, state) for state in (0, 1) for task in (0, 1)]
    whole = episodes("grpo", 0, dict.fromkeys(places, True))
    stopped = episodes("grpo", 1, {(0, 0): True, (1, 0): False})
    after = episodes("srpo", 0, dict.fromkeys(places, True))
    result = comparisons.compare_at_any_time(pd.concat([whole, stopped]), after)
    assert result == sequential.difference([np.array([0.0, 0.5])], 2, (2, 1))


def test_a_sweeps_shards_are_sequences_that_count_by_the_tasks_that_were_to_run() -> None:
    def sweep(variant: str, outcomes: dict[str, bool]) -> pd.DataFrame:
        rows = episodes(variant, 0, {(k, 0): outcome for k, outcome in enumerate(outcomes.values())})
        return rows.assign(
            task_id=0, perturbation=[name.split()[0] for name in outcomes], perturbation_task=list(outcomes)
        )

    names = ["noise 0", "noise 1", "noise 2", "noise 3", "light 0", "light 1"]
    shards = pd.DataFrame(
        {
            "suite": "libero_goal",
            "perturbation": [name.split()[0] for name in names],
            "perturbation_task": names,
            "shard": [0, 0, 0, 1, 1, 1],
        }
    )
    before = sweep("sft", dict.fromkeys(names, False))
    after = sweep("srpo", {"noise 0": True, "noise 2": False, "noise 3": True, "light 1": True})
    weights = {"noise": 1.0, "light": 3.0}
    result = comparisons.compare_at_any_time(before, after, shards=shards, weights=weights)
    expected = sequential.difference(
        [np.ones(1), np.array([1.0, 0.0]), np.ones(1)], 4, (1, 1), weights=[3.0, 0.75, 0.25]
    )
    assert result == expected
    assert result.estimate.value == (3 + 0.75 * 0.5 + 0.25) / 4
