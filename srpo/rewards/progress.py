"""SRPO's progress reward: a failure's reward rises with its nearness to successes of the same batch.

docs/method.md says where the paper, its code and this project differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import expit

from srpo.config import Reward
from srpo.rewards.outcome import outcome_rewards
from srpo.rewards.references import (
    EarlierSuccesses,
    References,
    expert_references,
    find_references,
    usable,
)

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
                         that are considered
    invalid              episodes whose embedding cannot be used
    clusters, fallback   as in `srpo.rewards.references.References`: of all ranks, and of any
    earlier              failures that were compared with successes of earlier steps
    unshaped             None if failures were shaped, in one rank at least, else why not: `outcome` (the
                         reward is 0/1 by configuration), `no failure`, or `no success` (as a reference)
    """

    task: int
    successes: int
    failures: int
    invalid: int
    clusters: int
    fallback: bool
    earlier: int
    unshaped: str | None


@dataclass(frozen=True)
class ShapedRewards:
    """Rewards of a batch of N episodes.

    rewards    float64 (N,)  1 for a success, [0, 1) for a failure, NaN for an invalid episode
    distances  float64 (N,)  L2, of shaped failures to their nearest reference; NaN elsewhere
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
    considered: NDArray[np.bool_] | None = None,
    experts: Mapping[int, NDArray[np.floating]] | None = None,
    earlier: EarlierSuccesses | None = None,
) -> ShapedRewards:
    """Rewards of a whole batch. References are per task; `reward.scope` says from which of the batch's
    episodes they come, and among which failures distances are normalised.

    In a task (or rank) without success there is no reference, and failures get 0, except with `fixed_expert`,
    whose references always exist, and with successes of earlier steps. With `reward.shaping: none` every
    failure gets 0 and embeddings are not used.

    Args:
        embeddings: float32 (N, D), one vector per episode; None only with shaping `none`.
        success: bool (N,).
        task: int (N,), task id of each episode.
        reward: how failures are rewarded; `filter` is not read.
        group: int (N,), group of each episode, counted from 0 in the step; for the scopes `rank` and `group`.
        considered: bool (N,), episodes that are references and compared; others get their outcome. None: all.
        experts: task id → float32 (E, D), embeddings of the expert's demonstrations by the same world model;
            for the references `fixed_expert` and no others.
        earlier: the references where there is no success.

    Raises:
        ValueError: lengths differ, or embeddings, groups or a task's experts are missing or broken.
    """
    episodes = len(success)
    if success.shape != (episodes,) or task.shape != (episodes,):
        raise ValueError(f"success {success.shape} and task {task.shape} must both have shape (N,)")
    expert: dict[int, References] = {}
    points: NDArray[np.floating] = np.empty((episodes, 0))
    if reward.shaping == "none":
        valid = np.ones(episodes, dtype=bool)
    elif embeddings is None or embeddings.ndim != 2 or len(embeddings) != episodes:
        shape = None if embeddings is None else embeddings.shape
        raise ValueError(f"reward.shaping {reward.shaping!r} needs embeddings ({episodes}, D), not {shape}")
    else:
        points, valid = embeddings, usable(embeddings)
        expert = _fixed_references(experts, task, embeddings.shape[1], reward)
    # References are a rank's (the batch is one but for the scope `rank`), and failures are normalised within
    # a part of it.
    rank: NDArray[np.integer] = np.zeros(episodes, dtype=np.int64)
    part = rank
    if reward.shaping != "none" and reward.scope != "batch":
        if group is None or group.shape != (episodes,):
            shape = None if group is None else group.shape
            raise ValueError(
                f"reward.scope {reward.scope!r} needs the group of each episode ({episodes},), not {shape}"
            )
        if reward.scope == "group":
            part = group
        else:
            rank = part = group // reward.rank_prompts

    rewards = np.where(valid, outcome_rewards(success), np.nan)
    distances = np.full(episodes, np.nan)
    compared = valid if considered is None else valid & considered
    tasks = []
    for task_id in map(int, np.unique(task)):
        own = compared & (task == task_id)
        used: list[References] = []
        from_earlier = 0
        for number in np.unique(rank[own & ~success]) if reward.shaping != "none" else ():
            succeeded, failed = (own & (rank == number) & chosen for chosen in (success, ~success))
            references = expert.get(task_id)
            if references is None:
                sources = points[succeeded]
                if not len(sources) and earlier and task_id in earlier:
                    sources = earlier[task_id]
                    from_earlier += int(failed.sum())
                if not len(sources):
                    continue
                references = find_references(sources, reward)
            used.append(references)
            distances[failed] = nearest_distances(points[failed], references.centres)
            for here in np.unique(part[failed]):
                together = failed & (part == here)
                rewards[together] = _progress(distances[together], reward)
        tasks.append(
            TaskShaping(
                task=task_id,
                successes=int((own & success).sum()),
                failures=int((own & ~success).sum()),
                invalid=int(((task == task_id) & ~valid).sum()),
                clusters=sum(references.clusters for references in used),
                fallback=any(references.fallback for references in used),
                earlier=from_earlier,
                unshaped=None if used else _why_unshaped(own, success, reward),
            )
        )
    return ShapedRewards(rewards, distances, valid, tuple(tasks))


def _why_unshaped(own: NDArray[np.bool_], success: NDArray[np.bool_], reward: Reward) -> str:
    """Why no failure of a task, whose episodes are `own`, was shaped."""
    if reward.shaping == "none":
        return "outcome"
    if (own & ~success).any() or (reward.references != "fixed_expert" and not (own & success).any()):
        return "no success"
    return "no failure"


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
    """Rewards of failures that are normalised together, by their L2 distances (F,), F ≥ 1."""
    if reward.distance == "squared":
        distances = distances**2
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

    Equation 5 of the paper is printed without the minus sign, as α·sigmoid(z), by which the farther failure
    would earn more. Its text means the opposite: nearer to a success is further on.

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
