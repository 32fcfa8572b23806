"""Step-level advantages: what each action chunk of a trajectory gained in progress.

The real-robot part of SRPO (arXiv 2511.15605, eq. 15, as published descriptions have it): A_t = (D_t − μ)/σ
with D_t = R_t − R_(t−1), the gain in progress from one chunk to the next. They do not say how the progress
R_t of an unfinished trajectory is measured. Here it is that of the progress-reward benchmark: how near the
trajectory's beginning, as a video of its own, has come to whole successes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from srpo.config import Reward
from srpo.rewards.metrics import EQUAL_SPREAD, progress_curve
from srpo.rewards.progress import nearest_distances
from srpo.rewards.references import References


def progress_gains(
    prefixes: NDArray[np.floating], references: References, reward: Reward
) -> NDArray[np.float64]:
    """D_t = R_t − R_(t−1) of each of a trajectory's C chunks: float64 (C,), in [−1, 1].

    R = 1 − d/max d (`srpo.rewards.metrics.progress_curve`), d the distance to the nearest reference or, with
    `reward.distance: squared`, its square.

    Args:
        prefixes: float (C + 1, D), finite: of what was seen before the first chunk, and up to each one's end.
    """
    distances = nearest_distances(prefixes, references.centres)
    if reward.distance == "squared":
        distances = distances**2
    return np.diff(progress_curve(distances))


def standardise(gains: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """A_t = (D_t − μ)/σ of trajectories' gains (C_n,), μ and σ over all chunks of all of them.

    σ is the population's. Where it is 0, up to rounding, no chunk is better than another: all get 0.
    """
    if not gains:
        return []
    pooled = np.concatenate(gains)
    mean, deviation = pooled.mean(), pooled.std()
    if deviation <= EQUAL_SPREAD:
        return [np.zeros_like(each) for each in gains]
    return [(each - mean) / deviation for each in gains]
