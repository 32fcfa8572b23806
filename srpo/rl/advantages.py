"""Group-relative advantages (GRPO) and the filter of groups by success rate (DAPO)."""

from __future__ import annotations

from typing import Literal

import torch
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
