"""What a step's episodes are worth: embeddings, rewards, advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from srpo.config import TrainStage
from srpo.demos import read_demonstrations
from srpo.episode import CHUNK
from srpo.rewards.progress import ShapedRewards, shape_rewards
from srpo.rl.advantages import group_advantages, has_signal
from srpo.rl.collect import Batch, kept_groups
from srpo.world_models import WorldModel

Experts = dict[int, NDArray[np.float32]]


@dataclass(frozen=True)
class Scores:
    """What a step's N episodes are worth. `kept`: their group takes part in the update."""

    shaped: ShapedRewards
    advantages: NDArray[np.float64]
    kept: NDArray[np.bool_]
    signal: NDArray[np.bool_]
    outcome_signal: NDArray[np.bool_]


def matched_prefixes(batch: Batch) -> Iterator[NDArray[np.uint8]]:
    """What the references `matched_prefix` compare: of each own episode, uint8 (Q, H, W, 3), what the policy
    saw in the time that the task's median success takes.

    Q is the number of queries of that success, in the whole batch; an episode that ended sooner shows its
    last picture until then. Of a task without success nothing is compared; all of its episodes are shown.
    """
    queries = -(-np.array([outcome.steps for outcome in batch.outcomes]) // CHUNK)
    succeeded = {task: batch.success & (batch.tasks == task) for task in np.unique(batch.tasks)}
    taken = {int(task): int(np.median(queries[won])) for task, won in succeeded.items() if won.any()}
    for episode in batch.episodes.values():
        last = len(episode.images) - 1
        yield episode.images[np.arange(taken.get(episode.spec.task_id, last + 1)).clip(max=last)]


def embed(
    config: TrainStage, batch: Batch, world_model: WorldModel, accelerator: Accelerator
) -> NDArray[np.float32]:
    """Embeddings (N, D) of all processes' episodes; each encodes its own."""
    matched = config.reward.references == "matched_prefix"
    videos = matched_prefixes(batch) if matched else (episode.frames for episode in batch.episodes.values())
    own = world_model.embed_many(videos)
    everyone = dict(gather_object(list(zip(batch.episodes, own, strict=True))))
    return np.stack([everyone[outcome.number] for outcome in batch.outcomes])


def distances_to_goal(batch: Batch) -> NDArray[np.float32]:
    """What the references `simulator` compare: embeddings (N, 2) whose distances are metres to the goal.

    The first number keeps a success, which has no distance left, from looking like a failed encoder's zeros.
    """
    return np.array([[1.0, outcome.distance_to_goal] for outcome in batch.outcomes], np.float32)


def embed_experts(config: TrainStage, world_model: WorldModel, files: Sequence[Path]) -> Experts:
    """Task id → embeddings (E, D) of its demonstrations, the references `fixed_expert`; a file a task."""
    return {
        task: world_model.embed_many(demonstration.images for demonstration in read_demonstrations(file))
        for task, file in zip(config.tasks, files, strict=True)
    }


def score(
    config: TrainStage,
    batch: Batch,
    embeddings: NDArray[np.float32] | None,
    experts: Experts | None = None,
) -> Scores:
    """Rewards (self-referential where configured), group advantages, and which groups are kept."""
    shaped = shape_rewards(
        embeddings, batch.success, batch.tasks, config.reward, group=batch.groups, experts=experts
    )
    groups = torch.from_numpy(batch.groups)
    usable = torch.from_numpy(shaped.valid)
    rewards = torch.from_numpy(shaped.rewards)
    advantages = torch.zeros_like(rewards)
    advantages[usable] = group_advantages(rewards[usable], groups[usable], deviation=config.train.deviation)
    signal = torch.zeros_like(usable)
    signal[usable] = has_signal(rewards[usable], groups[usable])
    outcome = has_signal(torch.from_numpy(batch.success).double(), groups)
    kept = shaped.valid & kept_groups(config.train, batch)
    return Scores(shaped, advantages.numpy(), kept, signal.numpy(), outcome.numpy())
