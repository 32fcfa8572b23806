"""The policy update of an RL step: mini-batches of queries, their loss, and its gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from srpo import optim
from srpo.config import Aggregate, Train, TrainStage
from srpo.envs.libero import load_task
from srpo.episode import PROPRIO_DIM, TOKENS, Episode, EpisodeSpec
from srpo.policies.openvla_oft import Inputs, OpenVLAOFT
from srpo.rl.collect import Batch
from srpo.rl.losses import LossInputs, PolicyLoss, policy_loss, regression_loss
from srpo.rl.score import BatchScores
from srpo.runtime.distributed import full_tensor, is_sharded

UPDATE_METRICS = ("loss", "kl", "update_kl", "clip_fraction", "entropy", "grad_norm")
"""What an update logs."""


@dataclass(frozen=True)
class Learner:
    """What an update changes, and what it needs for that.

    reference  the policy that the KL penalty refers to; None without one
    """

    policy: OpenVLAOFT
    reference: OpenVLAOFT | None
    optimiser: torch.optim.Optimizer
    accelerator: Accelerator


@dataclass(frozen=True)
class PolicyQuery:
    """One query of the policy in an episode: its index there, and its advantage.

    weight  of each of its tokens in the loss
    """

    episode: Episode
    index: int
    advantage: float
    weight: float


def episode_queries(
    episodes: Iterable[Episode],
    advantages: Iterable[float | NDArray[np.float64]],
    aggregate: Aggregate = "token",
) -> list[PolicyQuery]:
    """All queries of some episodes, with an advantage for each episode, or for each of its queries (C,).

    Tokens weigh 1, or, with the aggregate `trajectory`, 1/(the episode's valid tokens).
    """
    queries = []
    for episode, advantage in zip(episodes, advantages, strict=True):
        tokens = max(1, int(episode.valid.sum()))  # a blank episode has none
        weight = 1.0 if aggregate == "token" else 1 / tokens
        each = np.broadcast_to(advantage, len(episode.images)).tolist()
        queries += [PolicyQuery(episode, k, value, weight) for k, value in enumerate(each)]
    return queries


@dataclass(frozen=True)
class ActionBatch:
    """N policy queries as tensors, made on the CPU.

    tokens     int64 (N, 56) action tokens
    log_probs  float32 (N, 56) of the tokens when they were sampled
    valid      bool (N, 56) False for tokens of control steps after the episode's end
    advantages float32 (N,) of the query
    weights    float32 (N,) of each of the query's tokens in the loss
    """

    inputs: Inputs
    tokens: torch.Tensor
    log_probs: torch.Tensor
    valid: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> ActionBatch:
        tensors = (self.tokens, self.log_probs, self.valid, self.advantages, self.weights)
        return ActionBatch(
            self.inputs.to(device), *(tensor.to(device, non_blocking=True) for tensor in tensors)
        )


def make_action_batch(config: TrainStage, policy: OpenVLAOFT, queries: Sequence[PolicyQuery]) -> ActionBatch:
    """At least one query, with images and prompts as the policy's inputs."""

    def stacked(name: str) -> NDArray[Any]:
        return np.stack([getattr(query.episode, name)[query.index] for query in queries])

    instructions = [load_task(config.suite, query.episode.spec.task_id).language for query in queries]
    return ActionBatch(
        policy.prepare_inputs(config.suite, stacked("images"), instructions, stacked("proprio")),
        torch.from_numpy(stacked("tokens")),
        torch.from_numpy(stacked("log_probs")),
        torch.from_numpy(stacked("valid")),
        torch.tensor([query.advantage for query in queries]),
        torch.tensor([query.weight for query in queries]),
    )


def blank_episode(config: TrainStage) -> Episode:
    """One query without content or valid tokens, for a process that has no episode of a mini-batch."""
    size = config.protocol.image_size
    return Episode(
        spec=EpisodeSpec(config.suite, config.tasks[0], 0, 0, config.train.temperature),
        success=False,
        steps=0,
        images=np.zeros((1, size, size, 3), np.uint8),
        proprio=np.zeros((1, PROPRIO_DIM), np.float32),
        tokens=np.zeros((1, TOKENS), np.int64),
        log_probs=np.zeros((1, TOKENS), np.float32),
        valid=np.zeros((1, TOKENS), bool),
        frames=np.zeros((0, size, size, 3), np.uint8),
        path=np.zeros((1, 3), np.float32),
        distance_to_goal=np.zeros(1, np.float32),
        wall_seconds=0.0,
    )


def prefetch(
    make: Callable[[Sequence[PolicyQuery]], ActionBatch], parts: Iterable[Sequence[PolicyQuery]]
) -> Iterator[ActionBatch]:
    """`map(make, parts)`, with the next result made by a thread: images are prepared while a GPU computes."""
    with ThreadPoolExecutor(1) as thread:
        pending: deque[Future[ActionBatch]] = deque()
        for part in parts:
            pending.append(thread.submit(make, part))
            if len(pending) == 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def make_objective(train: Train) -> Callable[[LossInputs], PolicyLoss]:
    """The configured loss: the clipped objective; offline, advantage-weighted regression."""
    if train.offline is not None:
        loss = partial(regression_loss, beta=train.offline.beta, max_weight=train.offline.max_weight)
    else:
        loss = partial(policy_loss, clip_low=train.clip_low, clip_high=train.clip_high)
    return partial(loss, kl_weight=train.kl, entropy_weight=train.entropy)


def update_policy(
    config: TrainStage,
    learner: Learner,
    batch: Batch,
    scores: BatchScores,
    step: int,
    watch: Callable[[], object] = lambda: None,
) -> dict[str, float | None]:
    """One RL step's update: mini-batches of whole groups, each summed over micro-batches and processes.

    Args:
        watch: called before each micro-batch; what it raises ends the update.

    Returns means over mini-batches of `UPDATE_METRICS`; None if there was no group to learn from.

    Raises SystemExit, in all processes, if a loss or gradient is not finite.
    """
    train, policy, accelerator = config.train, learner.policy, learner.accelerator
    advantages = scores.advantages if scores.chunks is None else scores.chunks
    # A group whose rewards are all equal has advantage 0 and would only dilute a mini-batch of the clipped
    # surrogate. Offline, advantage 0 weighs 1: a group that succeeded throughout is there to be imitated.
    teaches = scores.signal if train.offline is None else scores.signal | batch.success
    groups = np.unique(batch.groups[scores.kept & teaches])
    rows: list[list[float]] = []
    for epoch in range(train.epochs):
        order = np.random.default_rng([config.seed, step, epoch]).permutation(groups)
        for start in range(0, len(order), train.minibatch):
            members = np.isin(batch.groups, order[start : start + train.minibatch]) & scores.kept
            # Gradients are averaged over P processes: with sums over (all weights / P) in each, that average
            # is the sum over all tokens by their weights, whichever processes have the episodes.
            whole = batch.tokens[members].sum() if train.aggregate == "token" else members.sum()
            normaliser = float(whole) / accelerator.num_processes
            local = batch.local_episodes(members)
            episodes = list(local.values()) or [blank_episode(config)]
            own = [advantages[k] for k in local] or [0.0]
            learner.optimiser.zero_grad()
            queries = episode_queries(episodes, own, train.aggregate)
            terms = accumulate_gradients(config, learner, queries, normaliser, watch)
            average_gradients(policy, accelerator)
            norm = full_tensor(accelerator.clip_grad_norm_(policy.parameters(), train.grad_clip))
            rows.append([*accelerator.reduce(terms.float(), reduction="mean").tolist(), float(norm)])
            number = f"step {step}, epoch {epoch + 1}, mini-batch {start // train.minibatch + 1}"
            optim.require_finite(number, loss=rows[-1][0], grad_norm=rows[-1][-1])
            learner.optimiser.step()
    if not rows:
        return dict.fromkeys(UPDATE_METRICS)
    means: dict[str, float | None] = dict(zip(UPDATE_METRICS, np.mean(rows, axis=0).tolist(), strict=True))
    if learner.reference is None:
        means["kl"] = None
    return means


def accumulate_gradients(
    config: TrainStage,
    learner: Learner,
    queries: Sequence[PolicyQuery],
    normaliser: float,
    watch: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """Add a mini-batch's gradients to the policy's, one micro-batch at a time.

    Returns the contribution of this process's queries (at least one) to `UPDATE_METRICS` except `grad_norm`:
    float64 (5,).
    """
    train, policy, reference = config.train, learner.policy, learner.reference
    objective = make_objective(train)
    # Summed on the device: reading a number from a GPU waits until the GPU is idle.
    terms = torch.zeros(len(UPDATE_METRICS) - 1, dtype=torch.float64, device=policy.device)
    # FSDP needs equally many passes in all processes: one without queries left repeats one, tokens masked.
    starts = range(0, max(gather_object([len(queries)])), train.microbatch)
    parts = (queries[start : start + train.microbatch] or queries[:1] for start in starts)
    for start, made in zip(starts, prefetch(partial(make_action_batch, config, policy), parts), strict=True):
        watch()
        actions = made.to(policy.device)
        log_probs, entropy = policy.log_probs(actions.inputs, actions.tokens, train.temperature)
        reference_log_probs = None
        if reference is not None:
            with torch.no_grad():
                reference_log_probs, _ = reference.log_probs(
                    actions.inputs, actions.tokens, train.temperature
                )
        loss = objective(
            LossInputs(
                log_probs,
                actions.log_probs,
                actions.advantages,
                actions.valid & (start < len(queries)),
                normaliser,
                actions.weights,
                reference_log_probs,
                entropy,
            )
        )
        learner.accelerator.backward(loss.total)
        logged = (loss.total, loss.kl, loss.approx_kl, loss.clip_fraction, loss.entropy)
        terms += torch.stack([term.detach() for term in logged]).double()
    return terms


def average_gradients(policy: torch.nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the mean of their gradients, which FSDP has done in every backward pass."""
    if accelerator.num_processes == 1 or is_sharded(accelerator):
        return
    for parameter in policy.parameters():
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
