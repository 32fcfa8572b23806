"""SRPO's progress reward: a failed episode earns more, the nearer it came to the batch's own successes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import expit

from srpo.config import Reward
from srpo.rewards.outcome import outcome_rewards
from srpo.rewards.references import find_references

# siiRL's literals: siirl/utils/reward_score/embodied.py, compute_embodied_reward, step "c. Vectorized reward
# mapping".
SIIRL_MAXIMUM = 0.6
SIIRL_STEEPNESS = 10.0
SIIRL_OFFSET = 0.5
SIIRL_EQUAL_RANGE = 1e-6

EQUAL_SPREAD = 1e-6
"""Distances whose standard deviation is below this share of their mean are equal but for rounding: the
embeddings are float32, of about 1e-7 relative precision."""


@dataclass(frozen=True)
class TaskShaping:
    """What happened to one task of the batch.

    successes, failures  episodes with a valid embedding (all episodes, if the reward needs no embedding)
    invalid              episodes whose embedding cannot be used
    clusters, fallback   as in `srpo.rewards.references.References`
    unshaped             None if failures were shaped, else why not: `outcome` (the reward is 0/1 by
                         configuration), `no success` or `no failure`
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
    valid      bool (N,)     False where the embedding is not finite or all zero. Such an episode is no
                             reference, is not shaped and must be left out of its group: its NaN reward makes
                             `srpo.algo.advantages` raise, so it cannot be scored by accident
    tasks                    one entry a task, by rising task id
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
) -> ShapedRewards:
    """Rewards of a whole batch. References and normalisation are per task, over all its groups.

    A task without success has nothing to be compared with: its failures earn 0. A task without failure has
    nothing to shape. With `reward.shaping: none` every failure earns 0 and embeddings are not looked at.

    Args:
        embeddings: float32 (N, D), one vector an episode; None only with shaping `none`.
        success: bool (N,).
        task: int (N,), task id of each episode.
        reward: how failures are rewarded.

    Raises:
        ValueError: lengths differ, or embeddings are missing.
    """
    episodes = len(success)
    if success.shape != (episodes,) or task.shape != (episodes,):
        raise ValueError(f"success {success.shape} and task {task.shape} must both have shape (N,)")
    if reward.shaping == "none":
        valid = np.ones(episodes, dtype=bool)
    elif embeddings is None or embeddings.ndim != 2 or len(embeddings) != episodes:
        shape = None if embeddings is None else embeddings.shape
        raise ValueError(f"reward.shaping {reward.shaping!r} needs embeddings ({episodes}, D), not {shape}")
    else:
        valid = np.isfinite(embeddings).all(axis=1) & (embeddings != 0).any(axis=1)

    rewards = np.where(valid, outcome_rewards(success), np.nan)
    distances = np.full(episodes, np.nan)
    tasks = []
    for task_id in np.unique(task):
        of_task = task == task_id
        succeeded = of_task & valid & success
        failed = of_task & valid & ~success
        clusters, fallback, unshaped = 0, False, None
        if reward.shaping == "none" or embeddings is None:
            unshaped = "outcome"
        elif not succeeded.any():
            unshaped = "no success"
        elif not failed.any():
            unshaped = "no failure"
        else:
            references = find_references(embeddings[succeeded], reward)
            clusters, fallback = references.clusters, references.fallback
            distances[failed] = nearest_distances(embeddings[failed], references.centres)
            if reward.shaping == "paper":
                rewards[failed] = paper_progress(distances[failed], reward.alpha)
            else:
                rewards[failed] = siirl_progress(distances[failed])
        tasks.append(
            TaskShaping(
                task=int(task_id),
                successes=int(succeeded.sum()),
                failures=int(failed.sum()),
                invalid=int((of_task & ~valid).sum()),
                clusters=clusters,
                fallback=fallback,
                unshaped=unshaped,
            )
        )
    return ShapedRewards(rewards, distances, valid, tuple(tasks))


def nearest_distances(embeddings: NDArray[np.floating], centres: NDArray[np.floating]) -> NDArray[np.float64]:
    """L2 distance of each embedding (N, D) to the nearest of the centres (K, D): float64 (N,)."""
    return cdist(embeddings.astype(np.float64), centres.astype(np.float64)).min(axis=1)


def paper_progress(distances: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """α·sigmoid(−z) with z = (d − mean)/std over a task's failures (SRPO, arXiv 2511.15605): float64 (N,).

    The standard deviation is the population's, so that one failure has one (0). Where it is 0, but for
    rounding, z = 0 and every failure earns α/2.
    """
    mean, std = distances.mean(), distances.std()
    if std <= EQUAL_SPREAD * mean:
        return np.full_like(distances, alpha / 2)
    return alpha * expit(-(distances - mean) / std)


def siirl_progress(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """0.6·sigmoid(10·(0.5 − m)), m the min-max normalised distance of a task's failures: float64 (N,).

    Where all distances lie within 1e-6, m = 0.5 and every failure earns 0.3. Source: siiRL,
    `siirl/utils/reward_score/embodied.py`. That bound is absolute, as there, so it depends on the
    embeddings' unit.
    """
    nearest, spread = distances.min(), np.ptp(distances)
    if spread < SIIRL_EQUAL_RANGE:
        return np.full_like(distances, SIIRL_MAXIMUM / 2)
    return SIIRL_MAXIMUM * expit(SIIRL_STEEPNESS * (SIIRL_OFFSET - (distances - nearest) / spread))
