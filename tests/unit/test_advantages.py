from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srpo.rl.advantages import group_advantages, has_signal, keep_groups


def test_by_hand() -> None:
    # Group 4: mean 1/4, sample variance (9/16 + 3·1/16)/3 = 1/4, std 1/2: 3/4/(1/2) = 3/2, the rest −1/2.
    # Group 2: mean 0.5, sample variance (0.16 + 0.16)/1 = 0.32: ±0.4/0.565685 = ±0.707107.
    rewards = torch.tensor([1.0, 0.9, 0.0, 0.0, 0.1, 0.0])
    groups = torch.tensor([4, 2, 4, 4, 2, 4])
    expected = torch.tensor([1.5, 0.707107, -0.5, -0.5, -0.707107, -0.5])
    torch.testing.assert_close(group_advantages(rewards, groups, epsilon=0.0), expected, atol=1e-6, rtol=0)


def test_one_deviation_for_all_groups_by_hand() -> None:
    # Around the groups' means: 0.75 and three of −0.25; ±0.4. Mean square (0.75 + 0.32)/6, root 0.422295.
    rewards = torch.tensor([1.0, 0.9, 0.0, 0.0, 0.1, 0.0])
    groups = torch.tensor([4, 2, 4, 4, 2, 4])
    found = group_advantages(rewards, groups, epsilon=0.0, deviation="batch")
    expected = torch.tensor([1.776009, 0.947205, -0.592003, -0.592003, -0.947205, -0.592003])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (group_advantages(torch.ones(6), groups, deviation="batch") == 0).all()


def test_epsilon_is_added_to_the_standard_deviation() -> None:
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)  # mean 1/2, std √(1/2) = 0.7071068
    advantages = group_advantages(rewards, torch.zeros(2, dtype=torch.int64), epsilon=0.2928932)
    assert advantages.tolist() == pytest.approx([0.5, -0.5], abs=1e-7)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_equal_rewards_teach_exactly_nothing(value: float, size: int) -> None:
    advantages = group_advantages(torch.full((size,), value), torch.zeros(size, dtype=torch.int64))
    assert (advantages == 0).all()


def test_an_invalid_reward_is_refused_by_index() -> None:
    rewards = torch.tensor([1.0, float("nan"), 0.0, float("inf")])
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        group_advantages(rewards, torch.zeros(4, dtype=torch.int64))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(N,\)"):
        group_advantages(torch.zeros(3), torch.zeros(2, dtype=torch.int64))


@given(st.integers(0, 2**31 - 1), st.integers(2, 9), st.integers(1, 4), st.floats(0.1, 50), st.floats(-5, 5))
def test_properties(seed: int, size: int, count: int, scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(size * count, generator=generator, dtype=torch.float64)
    groups = torch.arange(size * count) % count
    advantages = group_advantages(rewards, groups, epsilon=0.0)
    for group in range(count):
        own = advantages[groups == group]
        assert own.sum().item() == pytest.approx(0, abs=1e-9)
        assert own.square().sum().item() == pytest.approx(size - 1)  # sample variance 1
    moved = group_advantages(rewards * scale + shift, groups, epsilon=0.0)
    torch.testing.assert_close(moved, advantages)
    order = torch.randperm(size * count, generator=generator)
    permuted = group_advantages(rewards[order], groups[order], epsilon=0.0)
    torch.testing.assert_close(permuted, advantages[order])


def test_has_signal() -> None:
    rewards = torch.tensor([0.0, 0.0, 0.0, 0.3, 1.0])
    groups = torch.tensor([0, 0, 1, 1, 2])
    assert has_signal(rewards, groups).tolist() == [False, False, True, True, False]


def test_filter_includes_its_bounds() -> None:
    # Success rates 1/10, 9/10, 0/10 and 10/10.
    success = torch.cat([torch.arange(10) < n for n in (1, 9, 0, 10)])
    groups = torch.arange(4).repeat_interleave(10)
    keep = keep_groups(success, groups, 0.1, 0.9)
    assert keep.reshape(4, 10).all(dim=1).tolist() == [True, True, False, False]
    assert keep.reshape(4, 10).any(dim=1).tolist() == [True, True, False, False]
    assert keep_groups(success, groups, 0.0, 1.0).all()
    assert not keep_groups(success, groups, 0.11, 0.89).any()


@pytest.mark.parametrize("successes", range(11))
def test_a_rate_equals_the_literal_bound(successes: int) -> None:
    # In float32, 3/10 is above 0.3 and 7/10 below 0.7.
    rate = successes / 10
    assert keep_groups(torch.arange(10) < successes, torch.zeros(10, dtype=torch.int64), rate, rate).all()
