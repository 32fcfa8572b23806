"""Rewards and advantages of a step's episodes, from their embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from srpo.config import TrainStage
from srpo.demos import read_demonstrations
from srpo.rewards.progress import ShapedRewards, shape_rewards
from srpo.rewards.references import (
    EarlierSuccesses,
    References,
    expert_references,
    find_references,
    remember,
    usable,
)
from srpo.rewards.steps import progress_gains, standardise
from srpo.rl.advantages import group_advantages, has_signal, success_of_others, value_changes
from srpo.rl.collect import Batch, Moment, Outcome, kept_groups
from srpo.world_models import WorldModel
from srpo.world_models.cache import EmbeddingCache

ExpertEmbeddings = dict[int, NDArray[np.float32]]
"""Task id → embeddings (E, D) of its demonstrations."""
Prefixes = Mapping[int, NDArray[np.float32]]
"""Number of each episode of this process → embeddings (C + 1, D) of what was seen before its first chunk and
up to the end of each of its C chunks, the last of them the whole episode."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class BatchScores:
    """Rewards and advantages of a step's N episodes.

    shaped          rewards, and how each task's failures were shaped
    advantages      float64 (N,)  0 where the reward cannot be used, or was left out before rewards
    kept            bool (N,)     dynamic sampling keeps its group, and its reward can be used
    signal          bool (N,)     the rewards of its group differ; False where its own cannot be used, or was
                                  left out before rewards. With `chunks`: some of its own are not 0
    outcome_signal  bool (N,)     the 0/1 outcomes of its group differ
    filtered        share of the squared advantages, with rewards before any filter, in groups that dynamic
                    sampling leaves out; None: all advantages are 0
    chunks          advantages of each episode's C_n chunks of their own, float64 (C_n,), of which
                    `advantages` has the means; empty where it is not kept. None: those of their episode
    """

    shaped: ShapedRewards
    advantages: NDArray[np.float64]
    kept: NDArray[np.bool_]
    signal: NDArray[np.bool_]
    outcome_signal: NDArray[np.bool_]
    filtered: float | None
    chunks: tuple[NDArray[np.float64], ...] | None = None


def matched_prefixes(batch: Batch) -> Iterator[NDArray[np.uint8]]:
    """The images that the references `matched_prefix` embed: uint8 (Q, H, W, 3) for each local episode.

    They are the policy's images from the time that the task's median success takes: Q is the number of
    queries of that success in the whole batch, and an episode that ended sooner repeats its last image. In a
    task without success there is nothing to compare with, and the images of the whole episode are embedded.
    """
    queries = np.array([outcome.queries for outcome in batch.outcomes])
    succeeded = {task: batch.success & (batch.tasks == task) for task in np.unique(batch.tasks)}
    lengths = {
        int(task): int(np.median(queries[chosen])) for task, chosen in succeeded.items() if chosen.any()
    }
    for episode in batch.episodes.values():
        last = len(episode.images) - 1
        yield episode.images[np.arange(lengths.get(episode.spec.task_id, last + 1)).clip(max=last)]


def embed_batch(
    config: TrainStage, batch: Batch, world_model: WorldModel, accelerator: Accelerator
) -> NDArray[np.float32]:
    """Embeddings (N, D) of all processes' episodes; each process encodes its own."""
    if config.reward.references == "matched_prefix":
        local = world_model.embed_many(matched_prefixes(batch))
    else:
        local = world_model.embed_clips(episode.frames for episode in batch.episodes.values())
    return np.stack(gathered(batch, local))


def gathered(batch: Batch, local: Iterable[Value]) -> list[Value]:
    """What all processes found about their episodes, one value each, in the order of the batch's outcomes."""
    found = dict(gather_object(list(zip(batch.episodes, local, strict=True))))
    return [found[outcome.number] for outcome in batch.outcomes]


def embed_prefixes(batch: Batch, world_model: EmbeddingCache) -> Prefixes:
    """For step-level advantages: of the images that the policy saw, and the one at the episode's end."""
    found = {}
    for number, episode in batch.episodes.items():
        seen = np.concatenate([episode.images, episode.frames[-1:]])
        found[number] = world_model.embed_prefixes(seen, range(len(seen)))
    return found


def whole_episodes(batch: Batch, prefixes: Prefixes) -> NDArray[np.float32]:
    """Embeddings (N, D) of all processes' whole episodes."""
    return np.stack(gathered(batch, (embeddings[-1] for embeddings in prefixes.values())))


def distances_to_goal(batch: Batch) -> NDArray[np.float32]:
    """Embeddings (N, 2) for the references `simulator`, whose distances are metres to the goal.

    The constant first number keeps a success, which has distance 0, from looking like a failed encoder's
    zeros.
    """
    return np.array([[1.0, outcome.distance_to_goal] for outcome in batch.outcomes], np.float32)


def embed_experts(config: TrainStage, world_model: WorldModel, files: Sequence[Path]) -> ExpertEmbeddings:
    """Embeddings of the demonstrations, the references `fixed_expert`; one file for each task."""
    return {
        task: world_model.embed_many(demonstration.images for demonstration in read_demonstrations(file))
        for task, file in zip(config.tasks, files, strict=True)
    }


def score_batch(
    config: TrainStage,
    batch: Batch,
    embeddings: NDArray[np.float32] | None,
    experts: ExpertEmbeddings | None = None,
    earlier: EarlierSuccesses | None = None,
) -> BatchScores:
    """Rewards (self-referential where configured), group advantages, and which groups are kept.

    Arguments and errors as in `srpo.rewards.progress.shape_rewards`.
    """
    groups = batch.groups

    def rewarded(considered: NDArray[np.bool_] | None) -> ShapedRewards:
        return shape_rewards(
            embeddings,
            batch.success,
            batch.tasks,
            config.reward,
            group=groups,
            considered=considered,
            experts=experts,
            earlier=earlier,
        )

    def normalised(rewards: NDArray[np.float64], usable: NDArray[np.bool_]) -> NDArray[np.float64]:
        advantages = np.zeros(len(rewards))
        values, members = torch.from_numpy(rewards[usable]), torch.from_numpy(groups[usable])
        advantages[usable] = group_advantages(values, members, deviation=config.train.deviation).numpy()
        return advantages

    in_range = kept_groups(config, batch)
    shaped = rewarded(None)
    usable, advantages = shaped.valid, normalised(shaped.rewards, shaped.valid)
    squares = advantages**2
    filtered = float(squares[~in_range].sum() / squares.sum()) if squares.any() else None
    if config.reward.filter == "before":
        shaped, usable = rewarded(in_range), shaped.valid & in_range
        advantages = normalised(shaped.rewards, usable)
    signal = np.zeros(len(usable), bool)
    signal[usable] = has_signal(
        torch.from_numpy(shaped.rewards[usable]), torch.from_numpy(groups[usable])
    ).numpy()
    outcome_signal = has_signal(torch.from_numpy(batch.success).double(), torch.from_numpy(groups)).numpy()
    return BatchScores(shaped, advantages, shaped.valid & in_range, signal, outcome_signal, filtered)


def score_steps(
    config: TrainStage,
    batch: Batch,
    scores: BatchScores,
    prefixes: Prefixes,
    whole: NDArray[np.float32],
    experts: ExpertEmbeddings | None = None,
) -> BatchScores:
    """`scores` with an advantage for each chunk: its gain in progress, standardised over all that are kept.

    Progress is towards the task's references, whole episodes. Successes are compared with them as failures
    are, their own among them. Episodes of a task without a reference are not kept, nor those with a prefix
    that cannot be embedded.

    Args:
        scores: of the whole episodes, by `score_batch`.
        whole: their embeddings, by `whole_episodes`.
    """
    members = batch.success & _comparable(config, scores)
    references: dict[int, References] = {}
    for task in map(int, np.unique(batch.tasks)):
        if experts is not None:
            references[task] = expert_references(experts[task])
        elif (own := members & (batch.tasks == task)).any():
            references[task] = find_references(whole[own], config.reward)

    def gains(number: int) -> NDArray[np.float64] | None:
        task = batch.episodes[number].spec.task_id
        if task not in references or not usable(prefixes[number]).all():
            return None
        return progress_gains(prefixes[number], references[task], config.reward)

    found = gathered(batch, map(gains, batch.episodes))
    kept = scores.kept & np.array([each is not None for each in found])
    standardised = iter(
        standardise([each for each, used in zip(found, kept, strict=True) if used and each is not None])
    )
    return _by_chunks(scores, kept, [next(standardised) if used else np.zeros(0) for used in kept])


def score_moments(batch: Batch, scores: BatchScores) -> BatchScores:
    """`scores` with an advantage for each chunk: what it changed of the chance of success.

    That is measured at the batch's moments by their branches, and at an episode's start by the others of its
    group. An episode is not kept if there are none. A moment of which no branch ran is passed over.

    Args:
        scores: of the outcomes, by `score_batch`.
    """
    start = success_of_others(batch.success, batch.groups)
    kept = scores.kept & np.isfinite(start)
    measured: dict[int, list[Moment]] = {outcome.number: [] for outcome in batch.outcomes}
    for moment in batch.moments:
        if moment.branches:
            measured[moment.number].append(moment)

    def changes(outcome: Outcome, at_start: float) -> NDArray[np.float64]:
        moments = measured[outcome.number]
        return value_changes(
            [0, *(moment.query for moment in moments)],
            [at_start, *(moment.successes / moment.branches for moment in moments)],
            outcome.queries,
            outcome.success,
        )

    chunks = [
        changes(outcome, at_start) if used else np.zeros(0)
        for outcome, at_start, used in zip(batch.outcomes, start, kept, strict=True)
    ]
    return _by_chunks(scores, kept, chunks)


def _by_chunks(
    scores: BatchScores, kept: NDArray[np.bool_], chunks: Sequence[NDArray[np.float64]]
) -> BatchScores:
    """`scores` with the chunks' own advantages, and what follows from them."""
    return replace(
        scores,
        advantages=np.array([each.mean() if len(each) else 0.0 for each in chunks]),
        kept=kept,
        signal=np.array([each.any() for each in chunks]),
        chunks=tuple(chunks),
    )


def _comparable(config: TrainStage, scores: BatchScores) -> NDArray[np.bool_]:
    """Which episodes may be references, if they succeeded: bool (N,)."""
    return scores.kept if config.reward.filter == "before" else scores.shaped.valid


def remember_successes(
    config: TrainStage,
    batch: Batch,
    scores: BatchScores,
    embeddings: NDArray[np.float32] | None,
    earlier: EarlierSuccesses,
) -> EarlierSuccesses:
    """`earlier`, renewed by the step's successes that may be references (`reward.earlier_successes`)."""
    limit = config.reward.earlier_successes
    if embeddings is None or limit == 0:
        return earlier
    members = batch.success & _comparable(config, scores)
    return remember(earlier, embeddings, members, batch.tasks, limit)
