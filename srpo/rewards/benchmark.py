"""Scores of labelled trajectories in the progress-reward benchmark, from the embeddings of their prefixes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo.rewards.metrics import monotonicity, progress_curve, spearman_correlation
from srpo.rewards.progress import nearest_distances

PAPER_SCORES = ("paper_spearman", "paper_monotonicity", "paper_final_progress")
"""Of a trajectory, as the paper defines them."""
SCORES = ("spearman", "monotonicity", "final_progress", "matched_progress", *PAPER_SCORES)
"""Of a trajectory."""


def has_reference(success: NDArray[np.bool_], task: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which trajectories are of a task with two successes, so that each has one to compare to: bool (N,)."""
    successes_of_task = ((task[:, None] == task[None, :]) & success[None, :]).sum(axis=1)
    return successes_of_task >= 2


def score_trajectories(
    embeddings: NDArray[np.floating],
    success: NDArray[np.bool_],
    task: NDArray[np.integer],
    prefix_steps: NDArray[np.integer],
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Progress along N trajectories, by the distance of their prefixes to their task's reference.

    The reference is the mean of the embeddings of the task's successes, as whole trajectories; for a success,
    of the others. It is what SRPO's own clustering falls back to, and has no parameter that could favour one
    representation over another.

    A world model sees frames spread over all of an episode, and a failure lasts until it is cut off, so its
    final progress also depends on its length. `matched_progress` removes that: a failure is judged by its
    last prefix of no more control steps than the median success of its task, as if it had ended there.

    The paper compares a success with its own whole embedding and counts strict rises (`PAPER_SCORES`). Its
    final progress is then 1, whatever the representation: that tells its arrival from a failure's by
    construction, which is why ours compares it with others. What the paper compares a failure with, the
    descriptions that we have do not say: here it is the same as in ours.

    Args:
        embeddings: float (N, P, D), of P prefixes of rising length, the last of them the whole trajectory.
        success: bool (N,).
        task: int (N,). Every trajectory has a reference (`has_reference`).
        prefix_steps: int (N, P), control steps of each prefix, rising from 0 to the trajectory's own.

    Returns:
        For each trajectory, its `SCORES` by name, and the P points of its curve: step, distance, progress.
    """
    whole = embeddings[:, -1].astype(np.float64)
    scores, curves = [], []
    for index, prefixes in enumerate(embeddings):
        others = success & (task == task[index])
        others[index] = False
        distances = nearest_distances(prefixes, whole[others].mean(axis=0, keepdims=True))
        progress = progress_curve(distances)
        matched = progress
        if not success[index]:
            matched = progress_curve(distances[prefix_steps[index] <= np.median(prefix_steps[others, -1])])
        own = progress
        if success[index]:
            own = progress_curve(nearest_distances(prefixes, whole[index : index + 1]))
        scores.append(
            {
                "spearman": spearman_correlation(progress) if success[index] else None,
                "monotonicity": monotonicity(progress) if success[index] else None,
                "final_progress": float(progress[-1]),
                "matched_progress": float(matched[-1]),
                "paper_spearman": spearman_correlation(own) if success[index] else None,
                "paper_monotonicity": monotonicity(own, strict=True) if success[index] else None,
                "paper_final_progress": float(own[-1]),
            }
        )
        curves.append(
            [
                {"step": int(step), "distance": float(distance), "progress": float(value)}
                for step, distance, value in zip(prefix_steps[index], distances, progress, strict=True)
            ]
        )
    return scores, curves
