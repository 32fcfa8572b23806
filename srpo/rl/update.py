"""What the policy learns from a step's episodes: the inputs of the loss, gradients, learning rates."""

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

from srpo import sft
from srpo.config import Train, TrainStage
from srpo.envs.libero import load_task
from srpo.episode import PROPRIO_DIM, TOKENS, Episode, EpisodeSpec
from srpo.policies.openvla_oft import Inputs, OpenVLAOFT
from srpo.rl.collect import Batch
from srpo.rl.losses import PolicyLoss, policy_loss, regression_loss
from srpo.rl.score import Scores
from srpo.runtime.distributed import full_tensor, is_sharded

Query = tuple[Episode, int, float]
"""A policy query of an episode, its number there, and the episode's advantage."""


@dataclass(frozen=True)
class ActionBatch:
    """N policy queries as tensors, made on the CPU.

    tokens     int64 (N, 56) action tokens
    log_probs  float32 (N, 56) of the tokens when they were sampled
    valid      bool (N, 56) False for tokens of control steps after the episode's end
    advantages float32 (N,) of the query's episode
    """

    inputs: Inputs
    tokens: torch.Tensor
    log_probs: torch.Tensor
    valid: torch.Tensor
    advantages: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> ActionBatch:
        tokens, log_probs, valid, advantages = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.tokens, self.log_probs, self.valid, self.advantages)
        )
        return ActionBatch(self.inputs.to(device), tokens, log_probs, valid, advantages)


def queries_of(episodes: Sequence[Episode], advantages: NDArray[np.float64]) -> list[Query]:
    """All queries of some episodes, with the episodes' advantages float (E,)."""
    pairs = zip(episodes, advantages.tolist(), strict=True)
    return [(episode, k, worth) for episode, worth in pairs for k in range(len(episode.images))]


def make_action_batch(config: TrainStage, policy: OpenVLAOFT, queries: Sequence[Query]) -> ActionBatch:
    """Some queries (at least one), their pictures prepared."""

    def of(name: str) -> NDArray[Any]:
        return np.stack([getattr(episode, name)[k] for episode, k, _ in queries])

    words = [load_task(config.suite, episode.spec.task_id).language for episode, _, _ in queries]
    return ActionBatch(
        policy.prepare(config.suite, of("images"), words, of("proprio")),
        torch.from_numpy(of("tokens")),
        torch.from_numpy(of("log_probs")),
        torch.from_numpy(of("valid")),
        torch.tensor([worth for _, _, worth in queries]),
    )


def _ahead(
    make: Callable[[Sequence[Query]], ActionBatch], parts: Iterable[Sequence[Query]]
) -> Iterator[ActionBatch]:
    """`map` whose next result is made by a thread while this one is used: pictures, while a GPU computes."""
    with ThreadPoolExecutor(1) as thread:
        coming: deque[Future[ActionBatch]] = deque()
        for part in parts:
            coming.append(thread.submit(make, part))
            if len(coming) == 2:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def blank_episode(config: TrainStage) -> Episode:
    """One query without content or tokens that count, for a process that has no episode of a mini-batch."""
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


Objective = Callable[..., PolicyLoss]
"""A loss of `srpo.rl.losses` with its settings filled in, weights of KL and entropy excepted."""
UPDATE_METRICS = ("loss", "kl", "update_kl", "clip_fraction", "entropy", "grad_norm")
"""What an update tells about itself."""


def make_objective(train: Train) -> Objective:
    """The clipped objective; offline, advantage-weighted regression."""
    if train.offline is not None:
        return partial(regression_loss, beta=train.offline.beta, max_weight=train.offline.max_weight)
    return partial(policy_loss, clip_low=train.clip_low, clip_high=train.clip_high)


def update(
    config: TrainStage,
    policy: OpenVLAOFT,
    reference: OpenVLAOFT | None,
    optimiser: torch.optim.Optimizer,
    accelerator: Accelerator,
    batch: Batch,
    scores: Scores,
    step: int,
) -> dict[str, float | None]:
    """One RL step's update: mini-batches of whole groups, each gathered from micro-batches and processes.

    Returns means over mini-batches of `UPDATE_METRICS`; None without an update.
    """
    train = config.train
    # A group whose rewards are all equal has nothing to teach: it would only thin out a mini-batch.
    groups = np.unique(batch.groups[scores.kept & scores.signal])
    logs: list[list[float]] = []
    for epoch in range(train.epochs):
        order = np.random.default_rng([config.seed, step, epoch]).permutation(groups)
        for start in range(0, len(order), train.minibatch):
            members = np.isin(batch.groups, order[start : start + train.minibatch]) & scores.kept
            # A process's share of the whole mini-batch's tokens, whichever processes its episodes are with:
            # losses and gradients are means over processes.
            normaliser = float(batch.tokens[members].sum()) / accelerator.num_processes
            own = batch.own(members)
            episodes = list(own.values()) or [blank_episode(config)]
            advantages = scores.advantages[list(own)] if own else np.zeros(1)
            queries = queries_of(episodes, advantages)
            optimiser.zero_grad()
            log = accumulate(config, policy, reference, accelerator, queries, normaliser)
            average_gradients(policy, accelerator)
            norm = full_tensor(accelerator.clip_grad_norm_(policy.parameters(), train.grad_clip))
            optimiser.step()
            everyone = accelerator.reduce(log.float(), reduction="mean")
            logs.append([*everyone.tolist(), float(norm)])
    if not logs:
        return dict.fromkeys(UPDATE_METRICS)
    means: dict[str, float | None] = dict(zip(UPDATE_METRICS, np.mean(logs, axis=0).tolist(), strict=True))
    if reference is None:
        means["kl"] = None
    return means


def accumulate(
    config: TrainStage,
    policy: OpenVLAOFT,
    reference: OpenVLAOFT | None,
    accelerator: Accelerator,
    queries: Sequence[Query],
    normaliser: float,
) -> torch.Tensor:
    """Add a mini-batch's gradients to the policy's, a micro-batch at a time.

    Returns what this process's queries (at least one) add to `UPDATE_METRICS` but `grad_norm`: float64 (5,).
    """
    train = config.train
    objective = make_objective(train)
    # Summed where it comes from: fetching a number from a GPU waits until it has nothing left to do.
    log = torch.zeros(len(UPDATE_METRICS) - 1, dtype=torch.float64, device=policy.device)
    # As often in every process, for FSDP: one that has run out takes a query without weight.
    starts = range(0, max(gather_object([len(queries)])), train.microbatch)
    parts = (queries[at : at + train.microbatch] or queries[:1] for at in starts)
    for at, made in zip(starts, _ahead(partial(make_action_batch, config, policy), parts), strict=True):
        choices = made.to(policy.device)
        log_probs, entropy = policy.log_probs(choices.inputs, choices.tokens, train.temperature)
        reference_log_probs = None
        if reference is not None:
            with torch.no_grad():
                reference_log_probs, _ = reference.log_probs(
                    choices.inputs, choices.tokens, train.temperature
                )
        loss = objective(
            log_probs,
            choices.log_probs,
            choices.advantages,
            choices.valid & (at < len(queries)),
            normaliser,
            reference_log_probs=reference_log_probs,
            kl_weight=train.kl,
            entropy=entropy,
            entropy_weight=train.entropy,
        )
        accelerator.backward(loss.total)
        terms = (loss.total, loss.kl, loss.approx_kl, loss.clip_fraction, loss.entropy)
        log += torch.stack([term.detach() for term in terms]).double()
    return log


def average_gradients(policy: torch.nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the mean of their gradients, as FSDP did in every backward pass."""
    if accelerator.num_processes == 1 or is_sharded(accelerator):
        return
    for parameter in policy.parameters():
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")


def learning_rate(train: Train, step: int) -> float:
    """The learning rate of a step (from 1): linear warm-up over a share of the steps, then the schedule."""
    if train.schedule == "cosine":
        return sft.learning_rate(step - 1, train.steps, train.learning_rate, train.warmup)
    return train.learning_rate * min(1.0, step / max(1, round(train.warmup * train.steps)))


def make_optimiser(policy: OpenVLAOFT, train: Train) -> torch.optim.Optimizer:
    """AdamW, with the settings' moments."""
    return sft.adamw(policy, train.learning_rate, train.weight_decay, train.betas)
