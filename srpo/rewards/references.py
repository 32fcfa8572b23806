"""What failed episodes are compared with: centres of the successes of one task in embedding space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import DBSCAN
from sklearn.preprocessing import StandardScaler

from srpo.config import Reward


@dataclass(frozen=True)
class References:
    """Reference centres of one task.

    centres   float64 (K, D)  K ≥ 1, in the embeddings' own space
    clusters  what DBSCAN found; 0 where it found none or was not asked
    fallback  True where DBSCAN found no cluster, so that the one centre is the mean of all successes
    """

    centres: NDArray[np.float64]
    clusters: int
    fallback: bool


def find_references(successes: NDArray[np.floating], reward: Reward) -> References:
    """Centres of a task's successful episodes.

    `mean`: their mean. `dbscan` (siiRL, `siirl/utils/reward_score/embodied.py`): every feature standardised
    over the successes, DBSCAN, and the mean of each cluster; noise points belong to no centre; no cluster at
    all: the mean of the successes. `reward.eps` is siiRL's absolute radius (0.5), or, with
    `reward.eps_relative`, a multiple of the median pairwise distance of the standardised successes. (In D
    dimensions that median is about √(2D), so an absolute 0.5 finds a cluster only among near duplicates.)

    Standardisation makes clusters independent of the unit of each feature, but not of rotations.

    Args:
        successes: float (S, D), finite, S ≥ 1.
        reward: `references`, `eps`, `eps_relative` and `min_samples` are read.

    Raises:
        ValueError: there is no success, or the array is not two-dimensional.
    """
    if successes.ndim != 2 or len(successes) == 0:
        raise ValueError(f"references need successes of shape (S, D) with S ≥ 1, not {successes.shape}")
    points = successes.astype(np.float64)
    mean = points.mean(axis=0, keepdims=True)
    if reward.references == "mean":
        return References(mean, clusters=0, fallback=False)
    labels = _dbscan(points, reward)
    # The mean of standardised points, mapped back, is the mean of the points themselves.
    centres = [points[labels == label].mean(axis=0) for label in range(labels.max() + 1)]
    if not centres:
        return References(mean, clusters=0, fallback=True)
    return References(np.stack(centres), clusters=len(centres), fallback=False)


def _dbscan(points: NDArray[np.float64], reward: Reward) -> NDArray[np.int64]:
    """Cluster label of each point (S,), from 0; -1 for noise."""
    # Distances are taken from differences (pdist), not from scikit-learn's expansion of the square: that one
    # puts duplicates a rounding error apart, and a relative radius may be 0.
    pairwise = pdist(StandardScaler().fit_transform(points))
    radius = reward.eps
    if reward.eps_relative:
        radius *= float(np.median(pairwise)) if pairwise.size else 0.0
    # DBSCAN refuses a radius of 0 (half of the pairs are duplicates): the smallest one means the same.
    radius = max(radius, np.finfo(np.float64).tiny)
    clustering = DBSCAN(eps=radius, min_samples=reward.min_samples, metric="precomputed")
    return clustering.fit(squareform(pairwise)).labels_
