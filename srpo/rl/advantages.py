"""Advantages within groups (GRPO) and by values (VinePPO); the filter of groups by success rate (DAPO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EPSILON = 1e-6
"""Added to the standard deviation, as in verl's and siiRL's `compute_grpo_outcome_advantage`."""


def group_advantages(
    rewards: Tensor,
    groups: Tensor,
    epsilon: float = EPSILON,
    deviation: Literal["group", "batch"] = "group",
) -> Tensor:
    """(g − mean)/(std + ε) within each group (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    `std` is the *sample* standard deviation (n − 1 in the denominator), because that is what verl and siiRL
    compute (`torch.std`): with 8 rollouts its advantages are 0.935 times those of the population's. A group
    whose rewards are all equal, or with one member only, has advantage 0.

    Args:
        rewards: float (N,), finite.
        groups: int (N,), the group of each episode.
        deviation: what advantages are divided by. `group`: each group's standard deviation. `batch`: one for
            all groups, the root mean square of rewards minus their group's mean (REINFORCE++, arXiv
            2501.03262, with a group's mean as baseline), so that groups with little spread weigh little.

    Returns:
        Of `rewards`' shape and dtype.

    Raises:
        ValueError: a reward is not finite (an invalid episode was not left out), or shapes differ.
    """
    if rewards.ndim != 1 or rewards.shape != groups.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must be (N,)")
    if not torch.isfinite(rewards).all():
        bad = (~torch.isfinite(rewards)).nonzero().flatten().tolist()
        raise ValueError(f"rewards of episodes {bad} are not finite: leave invalid episodes out first")
    advantages = torch.zeros_like(rewards)
    for group in groups.unique():
        members = groups == group
        values = rewards[members]
        if values.max() > values.min():
            advantages[members] = values - values.mean()
            if deviation == "group":
                advantages[members] /= values.std(correction=1) + epsilon
    if deviation == "batch":
        advantages /= advantages.square().mean().sqrt() + epsilon
    return advantages


def success_of_others(success: NDArray[np.bool_], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each episode, the success rate of the others of its group: float64 (N,), NaN without others.

    They start where it does, so this estimates its chance of success there, by no part of itself.

    Args:
        success: bool (N,).
        groups: int (N,), the group of each episode.
    """
    rates = np.full(len(success), np.nan)
    for group in np.unique(groups):
        members = groups == group
        if (others := members.sum() - 1) > 0:
            rates[members] = (success[members].sum() - success[members]) / others
    return rates


def value_changes(
    queries: Sequence[int], values: Sequence[float], chunks: int, success: bool
) -> NDArray[np.float64]:
    """What each of an episode's C chunks changed of the chance of success: float64 (C,), in [−1, 1].

    A = V(s') − V(s), with s the last moment before the chunk and s' the first one after it (VinePPO, arXiv
    2410.01679, with a reward at the end alone). The end's value is the outcome. All chunks between two
    moments have the same advantage.

    Args:
        queries: the M moments, as numbers of the policy's queries: they rise from 0 and are below `chunks`.
        values: M chances of success there.
        chunks: C, of the whole episode.
    """
    changes = np.diff([*values, float(success)])
    return np.repeat(changes, np.diff([*queries, chunks]))


def has_signal(rewards: Tensor, groups: Tensor) -> Tensor:
    """For each episode, whether the rewards of its group differ: bool (N,)."""
    signal = torch.zeros_like(groups, dtype=torch.bool)
    for group in groups.unique():
        members = groups == group
        signal[members] = rewards[members].max() > rewards[members].min()
    return signal


def keep_groups(success: Tensor, groups: Tensor, low: float, high: float) -> Tensor:
    """For each episode, whether its group's success rate lies in [low, high], bounds included: bool (N,).

    Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2); siiRL uses [0.1, 0.9].

    Args:
        success: bool (N,).
        groups: int (N,), the group of each episode.
    """
    keep = torch.zeros_like(success, dtype=torch.bool)
    for group in groups.unique():
        members = groups == group
        # float64, so that 1 of 10 is not below 0.1.
        rate = success[members].double().mean().item()
        keep[members] = low <= rate <= high
    return keep
