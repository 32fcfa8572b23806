"""Reference centres in embedding space, with which a task's failures are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import DBSCAN
from sklearn.preprocessing import StandardScaler

from srpo.config import Reward

EarlierSuccesses = Mapping[int, NDArray[np.floating]]
"""Task id → embeddings (K, D) of successes of earlier steps, the newest first."""
EQUAL_SUMS = 1e-9
"""Sums of distances within this relative difference are equal up to float64 rounding."""


@dataclass(frozen=True)
class References:
    """Reference centres of one task.

    centres   float64 (K, D)  K ≥ 1, in the embeddings' own space
    clusters  number of DBSCAN clusters; 0 where it found none or was not used
    fallback  True where DBSCAN found no cluster, so that the one centre is the mean of all successes
    """

    centres: NDArray[np.float64]
    clusters: int
    fallback: bool


def find_references(successes: NDArray[np.floating], reward: Reward) -> References:
    """Centres of a task's successful episodes.

    `mean`, `matched_prefix`, `simulator`: their mean. `nearest`: each of them. `medoid`: the one with the
    smallest sum of distances to the others; all of those that tie (two successes always do), so that the
    order of episodes is irrelevant.

    `dbscan` (siiRL, `siirl/utils/reward_score/embodied.py`): every feature standardised over the successes,
    DBSCAN, and the mean of each cluster; noise points belong to no centre; no cluster at all: the mean of the
    successes. `reward.eps` is siiRL's absolute radius (0.5), or, with `reward.eps_relative`, a multiple of
    the median pairwise distance of the standardised successes. (In D dimensions that median is about √(2D),
    so an absolute 0.5 finds a cluster only among near duplicates.)

    Standardisation makes clusters independent of the unit of each feature, but not of rotations.

    Args:
        successes: float (S, D), finite, S ≥ 1.
        reward: `references`, `eps`, `eps_relative` and `min_samples` are read.

    Raises:
        ValueError: there is no success, the array is not two-dimensional, or `reward.references` is
            `fixed_expert`, whose references are not successes of the batch.
    """
    if reward.references == "fixed_expert":
        raise ValueError("reward.references 'fixed_expert' takes the expert's embeddings, not successes")
    if successes.ndim != 2 or len(successes) == 0:
        raise ValueError(f"references need successes of shape (S, D) with S ≥ 1, not {successes.shape}")
    points = successes.astype(np.float64)
    mean = points.mean(axis=0, keepdims=True)
    if reward.references in ("mean", "matched_prefix", "simulator"):
        return References(mean, clusters=0, fallback=False)
    if reward.references == "nearest":
        return References(points, clusters=0, fallback=False)
    if reward.references == "medoid":
        return References(points[_medoids(points)], clusters=0, fallback=False)
    labels = _dbscan(points, reward)
    # The mean of standardised points, mapped back, is the mean of the points themselves.
    centres = [points[labels == label].mean(axis=0) for label in range(labels.max() + 1)]
    if not centres:
        return References(mean, clusters=0, fallback=True)
    return References(np.stack(centres), clusters=len(centres), fallback=False)


def expert_references(experts: NDArray[np.floating]) -> References:
    """A task's expert demonstrations, each of them a centre: the set is small and curated, without noise.

    Args:
        experts: float (E, D), E ≥ 1, embeddings of the demonstrations' videos.

    Raises:
        ValueError: there is none, or one is not finite or all zero. Unlike an episode's, an expert's
            embedding cannot be left out, since the reference would not be the configured one.
    """
    if experts.ndim != 2 or len(experts) == 0:
        raise ValueError(f"expert references must have shape (E, D) with E ≥ 1, not {experts.shape}")
    broken = np.flatnonzero(~usable(experts))
    if len(broken):
        raise ValueError(f"expert embedding {broken[0]} is not finite or all zero")
    return References(experts.astype(np.float64), clusters=0, fallback=False)


def remember(
    earlier: EarlierSuccesses,
    embeddings: NDArray[np.floating],
    success: NDArray[np.bool_],
    task: NDArray[np.integer],
    limit: int,
) -> EarlierSuccesses:
    """The newest `limit` successes of each task: those of a step, the later the newer, before earlier ones.

    Args:
        earlier: those known before the step.
        embeddings: float (N, D), of the step's episodes.
        success: bool (N,), which of them may be references.
        task: int (N,).
    """
    found = dict(earlier)
    for task_id in map(int, np.unique(task[success])):
        new = embeddings[success & (task == task_id)][::-1]
        old = earlier.get(task_id, new[:0])
        found[task_id] = np.concatenate([new, old])[:limit]
    return found


def usable(embeddings: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which embeddings (N, D) are finite and not all zero, as a failed encoder's are: bool (N,)."""
    return np.isfinite(embeddings).all(axis=1) & (embeddings != 0).any(axis=1)


def _medoids(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the points (S, D) have the smallest sum of distances to all, up to rounding: bool (S,)."""
    sums = squareform(pdist(points)).sum(axis=1)
    return sums <= sums.min() * (1 + EQUAL_SUMS)


def _dbscan(points: NDArray[np.float64], reward: Reward) -> NDArray[np.int64]:
    """Cluster label of each point (S,), from 0; -1 for noise."""
    # pdist computes distances from differences. scikit-learn's expansion of the square gives duplicates a
    # distance of a rounding error, and a relative radius may be 0.
    pairwise = pdist(StandardScaler().fit_transform(points))
    radius = reward.eps
    if reward.eps_relative:
        radius *= float(np.median(pairwise)) if pairwise.size else 0.0
    # DBSCAN refuses a radius of 0 (half of the pairs are duplicates); the smallest number is equivalent.
    radius = max(radius, np.finfo(np.float64).tiny)
    clustering = DBSCAN(eps=radius, min_samples=reward.min_samples, metric="precomputed")
    return clustering.fit(squareform(pairwise)).labels_
