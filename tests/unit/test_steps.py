"""Step-level advantages. Numbers are worked out by hand, on embeddings that are numbers on a line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from srpo.rewards.metrics import progress_curve
from srpo.rewards.progress import nearest_distances
from srpo.rewards.references import References
from srpo.rewards.steps import progress_gains, standardise
from support.stages import training_stage

seeds = st.integers(0, 2**32 - 1)


def line(*places: float) -> NDArray[np.float64]:
    return np.array([[1.0, place] for place in places])


def references(*places: float) -> References:
    return References(line(*places), clusters=0, fallback=False)


@pytest.mark.parametrize(
    ("distance", "gains"),
    [
        ("l2", [0.2, 0.4, -0.1]),  # distances 10, 8, 4, 5: progress 0, 0.2, 0.6, 0.5
        ("squared", [0.36, 0.48, -0.09]),  # 100, 64, 16, 25: progress 0, 0.36, 0.84, 0.75
    ],
)
def test_a_chunk_gains_what_it_nears(distance: str, gains: list[float]) -> None:
    reward = training_stage(reward={"distance": distance}).reward
    assert progress_gains(line(10, 8, 4, 5), references(0), reward) == pytest.approx(gains)
    assert progress_gains(line(-10, -8, -4, -5), references(0, 30), reward) == pytest.approx(gains)


def test_all_chunks_are_standardised_together() -> None:
    # Mean 0.25, deviations −0.05, 0.15, −0.35, 0.25: variance 0.21/4.
    expected = np.array([-0.05, 0.15, -0.35, 0.25]) / 0.0525**0.5
    first, second = standardise([np.array([0.2, 0.4, -0.1]), np.array([0.5])])
    assert first == pytest.approx(expected[:3]) and second == pytest.approx(expected[3:])


def test_without_a_difference_no_chunk_is_better() -> None:
    assert [each.tolist() for each in standardise([np.full(3, 0.1), np.full(1, 0.1)])] == [[0, 0, 0], [0]]
    assert standardise([]) == []
    reward = training_stage().reward
    assert progress_gains(line(5, 5), references(5), reward).tolist() == [0]


@given(seeds, st.integers(1, 6), st.integers(1, 4))
def test_gains_add_up_and_depend_on_no_unit(seed: int, chunks: int, centres: int) -> None:
    rng = np.random.default_rng(seed)
    prefixes, places = rng.normal(size=(chunks + 1, 3)), rng.normal(size=(centres, 3))
    reward = training_stage().reward
    gains = progress_gains(prefixes, References(places, 0, False), reward)
    progress = progress_curve(nearest_distances(prefixes, places))
    assert gains.shape == (chunks,) and gains.sum() == pytest.approx(progress[-1] - progress[0])
    moved = progress_gains(7 * prefixes + 3, References(7 * places + 3, 0, False), reward)
    assert moved == pytest.approx(gains)


@given(seeds, st.lists(st.integers(1, 5), min_size=2, max_size=5))
def test_advantages_have_mean_0_and_deviation_1(seed: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    gains = [rng.normal(0.01, 0.1, length) for length in lengths]
    advantages = standardise(gains)
    pooled = np.concatenate(advantages)
    assert [len(each) for each in advantages] == lengths
    assert pooled.mean() == pytest.approx(0, abs=1e-9) and pooled.std() == pytest.approx(1)
    assert (np.argsort(pooled) == np.argsort(np.concatenate(gains))).all()
    doubled = np.concatenate(standardise([2 * each + 0.3 for each in gains]))
    assert doubled == pytest.approx(pooled)
