"""SRPO's progress reward: a failure's reward rises with its nearness to successes of the same batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import expit

from srpo.config import Reward
from srpo.rewards.outcome import outcome_rewards
from srpo.rewards.references import References, expert_references, find_references, usable

# siiRL's literals: siirl/utils/reward_score/embodied.py, compute_embodied_reward, step "c. Vectorized reward
# mapping".
SIIRL_MAXIMUM = 0.6
SIIRL_STEEPNESS = 10.0
SIIRL_OFFSET = 0.5
SIIRL_EQUAL_RANGE = 1e-6

EQUAL_SPREAD = 1e-6
"""Distances whose standard deviation (or range) is at most this share of their mean are equal up to
rounding: the embeddings are float32, of about 1e-7 relative precision."""


@dataclass(frozen=True)
class TaskShaping:
    """How one task of the batch was shaped.

    successes, failures  episodes with a valid embedding (all episodes, if the reward needs no embedding)
    invalid              episodes whose embedding cannot be used
    clusters, fallback   as in `srpo.rewards.references.References`
    unshaped             None if failures were shaped, else why not: `outcome` (the reward is 0/1 by
                         configuration), `no failure`, or `no success` (as a reference)
    """

    task: int
    successes: int
    failures: int
    invalid: int
    clusters: int
    fallback: bool
    unshaped: str | None


@dataclass(frozen=True)
class ShapedRewards:
    """Rewards of a batch of N episodes.

    rewards    float64 (N,)  1 for a success, [0, 1) for a failure, NaN for an invalid episode
    distances  float64 (N,)  of shaped failures to their nearest reference; NaN elsewhere
    valid      bool (N,)     False where the embedding is not finite or all zero. Such an episode is not a
                             reference, is not shaped and must be left out of its group: its NaN reward makes
                             `srpo.rl.advantages` raise, so it cannot be used by accident
    tasks                    one entry per task, by rising task id
    """

    rewards: NDArray[np.float64]
    distances: NDArray[np.float64]
    valid: NDArray[np.bool_]
    tasks: tuple[TaskShaping, ...]


def shape_rewards(
    embeddings: NDArray[np.floating] | None,
    success: NDArray[np.bool_],
    task: NDArray[np.integer],
    reward: Reward,
    *,
    group: NDArray[np.integer] | None = None,
    experts: Mapping[int, NDArray[np.floating]] | None = None,
) -> ShapedRewards:
    """Rewards of a whole batch. References are per task, over all its groups; `reward.scope` says whether
    distances are normalised over the task's failures or over each group's.

    In a task without success there is no reference, and failures get 0 (except with `fixed_expert`, whose
    references always exist). With `reward.shaping: none` every failure gets 0 and embeddings are not used.

    Args:
        embeddings: float32 (N, D), one vector per episode; None only with shaping `none`.
        success: bool (N,).
        task: int (N,), task id of each episode.
        reward: how failures are rewarded.
        group: int (N,), group of each episode; needed for the scope `group` only.
        experts: task id → float32 (E, D), embeddings of the expert's demonstrations by the same world model;
            for the references `fixed_expert` and no others.

    Raises:
        ValueError: lengths differ, or embeddings, groups or a task's experts are missing or broken.
    """
    episodes = len(success)
    if success.shape != (episodes,) or task.shape != (episodes,):
        raise ValueError(f"success {success.shape} and task {task.shape} must both have shape (N,)")
    expert: dict[int, References] = {}
    if reward.shaping == "none":
        valid = np.ones(episodes, dtype=bool)
    elif embeddings is None or embeddings.ndim != 2 or len(embeddings) != episodes:
        shape = None if embeddings is None else embeddings.shape
        raise ValueError(f"reward.shaping {reward.shaping!r} needs embeddings ({episodes}, D), not {shape}")
    else:
        valid = usable(embeddings)
        expert = _fixed_references(experts, task, embeddings.shape[1], reward)
    if reward.shaping == "none" or reward.scope == "task":
        group = np.zeros(episodes, dtype=np.int64)
    elif group is None or group.shape != (episodes,):
        shape = None if group is None else group.shape
        raise ValueError(f"reward.scope 'group' needs the group of each episode ({episodes},), not {shape}")

    rewards = np.where(valid, outcome_rewards(success), np.nan)
    distances = np.full(episodes, np.nan)
    tasks = []
    for task_id in map(int, np.unique(task)):
        members = task == task_id
        succeeded, failed = members & valid & success, members & valid & ~success
        references, unshaped = None, None
        if reward.shaping == "none" or embeddings is None:
            unshaped = "outcome"
        elif reward.references != "fixed_expert" and not succeeded.any():
            unshaped = "no success"
        elif not failed.any():
            unshaped = "no failure"
        else:
            references = expert.get(task_id) or find_references(embeddings[succeeded], reward)
            distances[failed] = nearest_distances(embeddings[failed], references.centres)
            for number in np.unique(group[failed]):
                compared = failed & (group == number)
                rewards[compared] = _progress(distances[compared], reward)
        tasks.append(
            TaskShaping(
                task=task_id,
                successes=int(succeeded.sum()),
                failures=int(failed.sum()),
                invalid=int((members & ~valid).sum()),
                clusters=references.clusters if references else 0,
                fallback=references.fallback if references else False,
                unshaped=unshaped,
            )
        )
    return ShapedRewards(rewards, distances, valid, tuple(tasks))


def _fixed_references(
    experts: Mapping[int, NDArray[np.floating]] | None,
    task: NDArray[np.integer],
    dimension: int,
    reward: Reward,
) -> dict[int, References]:
    """References of each task in the batch under `fixed_expert`, checked; none under any other."""
    if (reward.references == "fixed_expert") != (experts is not None):
        raise ValueError(
            f"reward.references {reward.references!r}: the expert's embeddings go with 'fixed_expert' alone"
        )
    if experts is None:
        return {}
    references = {}
    for task_id in map(int, np.unique(task)):
        if task_id not in experts:
            raise ValueError(f"reward.references 'fixed_expert': no expert embeddings of task {task_id}")
        try:
            references[task_id] = expert_references(experts[task_id])
        except ValueError as error:
            raise ValueError(f"reward.references 'fixed_expert': task {task_id}: {error}") from None
        if (width := references[task_id].centres.shape[1]) != dimension:
            raise ValueError(
                f"reward.references 'fixed_expert': task {task_id}: the expert's embeddings have {width} "
                f"dimensions, the episodes' {dimension}: embed both with one world model"
            )
    return references


def _progress(distances: NDArray[np.float64], reward: Reward) -> NDArray[np.float64]:
    """Rewards of failures that are normalised together, by their distances (F,), F ≥ 1."""
    if reward.shaping == "paper":
        return paper_progress(distances, reward.alpha)
    if reward.shaping == "linear":
        return linear_progress(distances, reward.alpha)
    return siirl_progress(distances)


def nearest_distances(embeddings: NDArray[np.floating], centres: NDArray[np.floating]) -> NDArray[np.float64]:
    """L2 distance of each embedding (N, D) to the nearest of the centres (K, D): float64 (N,)."""
    return cdist(embeddings.astype(np.float64), centres.astype(np.float64)).min(axis=1)


def paper_progress(distances: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """α·sigmoid(−z) with z = (d − mean)/std over failures (SRPO, arXiv 2511.15605: a task's): float64 (N,).

    The standard deviation is the population's, which is defined (0) for a single failure. Where it is 0, up
    to rounding, z = 0 and every failure gets α/2.
    """
    mean, std = distances.mean(), distances.std()
    if std <= EQUAL_SPREAD * mean:
        return np.full_like(distances, alpha / 2)
    return alpha * expit(-(distances - mean) / std)


def siirl_progress(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """0.6·sigmoid(10·(0.5 − m)), m the min-max normalised distance of failures: float64 (N,).

    Where all distances are within 1e-6, m = 0.5 and every failure gets 0.3. Source: siiRL,
    `siirl/utils/reward_score/embodied.py`. The bound is absolute, as there, so it depends on the embeddings'
    unit.
    """
    nearest, spread = distances.min(), np.ptp(distances)
    if spread < SIIRL_EQUAL_RANGE:
        return np.full_like(distances, SIIRL_MAXIMUM / 2)
    return SIIRL_MAXIMUM * expit(SIIRL_STEEPNESS * (SIIRL_OFFSET - (distances - nearest) / spread))


def linear_progress(distances: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """α·(1 − m), m the min-max normalised distance of failures: float64 (N,) in [0, α].

    The nearest failure gets α and the farthest 0. Where all distances are equal, up to rounding, m = 0.5 and
    every failure gets α/2, as in `paper_progress`.
    """
    nearest, spread = distances.min(), np.ptp(distances)
    if spread <= EQUAL_SPREAD * distances.mean():
        return np.full_like(distances, alpha / 2)
    return alpha * (1 - (distances - nearest) / spread)
