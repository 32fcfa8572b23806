"""Reinforcement learning: SRPO, and GRPO, which is SRPO with a 0/1 reward. One loop, read top to bottom.

python -m srpo.trainer --config CONFIG --policy FOLDER [--world-model FOLDER] [--demos FOLDER]
    --out FOLDER --scratch FOLDER

With several processes (`accelerate launch`, docs/hpc.md) each runs every n-th episode of a step and holds its
pictures; what is needed of an episode to score it is gathered, so that each process sees the whole batch, and
gradients are averaged. Under FSDP each holds a part of the policy that learns and a copy of it that acts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm import tqdm

from srpo import sft
from srpo.algo.advantages import group_advantages, has_signal, keep_groups
from srpo.algo.losses import PolicyLoss, policy_loss
from srpo.analysis.io import REWARDS, RL_METRICS, TASK_METRICS, write_rows
from srpo.checkpoint import Checkpoints, EpisodeStore, fingerprint, preemptible
from srpo.config import Train, TrainStage, load_stage
from srpo.demos import file_name, read_demonstrations
from srpo.distributed import follow, is_sharded, require_whole_weights, whole
from srpo.envs.libero import load_task
from srpo.locks import held
from srpo.manifest import sha256, write_manifest
from srpo.policies.openvla_oft import Inputs, OpenVLAOFT, load_policy, save_policy
from srpo.rewards.progress import ShapedRewards, shape_rewards
from srpo.rollout import Rollouts, draw_noise
from srpo.tracking import make_accelerator, scalars, start_trackers
from srpo.types import ACTION_DIM, CHUNK, PROPRIO_DIM, TOKENS, Episode, EpisodeSpec, FailedRun
from srpo.world_models import WorldModel, load_world_model

# Which episodes.


def sample_prompts(config: TrainStage, step: int) -> list[tuple[int, int]]:
    """The (task, initial state) of each group of a step, decided by (seed, step).

    Tasks take turns, so that a step has as many groups of each as can be; states are drawn.
    """
    first = (step - 1) * config.train.prompts
    tasks = [config.tasks[(first + k) % len(config.tasks)] for k in range(config.train.prompts)]
    return _with_states(config, tasks, np.random.default_rng([config.seed, step]))


def further_prompts(config: TrainStage, step: int, extra: int, count: int) -> list[tuple[int, int]]:
    """Prompts of the `extra`-th further round (from 1) of a step, decided by (seed, step, round).

    Tasks take turns here, too, in an order that is drawn: a round may be shorter than there are tasks.
    """
    rng = np.random.default_rng([config.seed, step, extra])
    order = rng.permutation(config.tasks)
    return _with_states(config, [int(order[k % len(order)]) for k in range(count)], rng)


def _with_states(config: TrainStage, tasks: Iterable[int], rng: np.random.Generator) -> list[tuple[int, int]]:
    states = list(config.protocol.train_states())
    return [(task, int(rng.choice(states))) for task in tasks]


def episode_specs(
    config: TrainStage, step: int, prompts: Iterable[tuple[int, int]], first_group: int = 0
) -> list[EpisodeSpec]:
    """The rollouts of some prompts, group after group, each with a seed of its own.

    With noise on a residual two have a seed in common, and each other's noise with its sign turned round: so
    what any noise does, whichever its direction, teaches nothing (symmetric sampling: Sehnke et al. 2010,
    doi:10.1016/j.neunet.2009.12.004).
    """
    own = config.world_model is None or config.reward.references == "prefix"
    frames = 0 if config.world_model is None or own else config.world_model.frames
    noise = config.train.residual_noise
    specs = []
    for group, (task, state) in enumerate(prompts, first_group):
        for member in range(config.train.group_size):
            draw, sign = (member // 2, (1, -1)[member % 2]) if noise else (member, 1)
            seed = int(np.random.SeedSequence([config.seed, step, group, draw]).generate_state(1)[0])
            temperature = config.train.temperature
            specs.append(
                EpisodeSpec(config.suite, task, state, seed, temperature, frames, noise=sign * noise)
            )
    return specs


# Rolling out.


@dataclass(frozen=True)
class Outcome:
    """What every process knows of an episode that ran; the episode itself stays where it was run.

    number    of the episode in its step, over all processes
    tokens    action tokens within the episode: those that the loss counts
    way_left  metres to the goal at its end
    """

    number: int
    group: int
    spec: EpisodeSpec
    success: bool
    steps: int
    tokens: int
    way_left: float


@dataclass(frozen=True)
class Batch:
    """The episodes of a step that ran: N of them, in the order of their specs.

    outcomes   of all processes
    episodes   this process's own, by rising number
    errors     episodes that could not be run, of all processes
    simulated  episodes that were run now, not before a restart, of all processes
    """

    outcomes: tuple[Outcome, ...] = ()
    episodes: Mapping[int, Episode] = field(default_factory=dict)
    errors: int = 0
    simulated: int = 0
    rounds: int = 0

    @property
    def success(self) -> NDArray[np.bool_]:
        return np.array([outcome.success for outcome in self.outcomes], bool)

    @property
    def tasks(self) -> NDArray[np.int64]:
        return np.array([outcome.spec.task_id for outcome in self.outcomes], np.int64)

    @property
    def groups(self) -> NDArray[np.int64]:
        return np.array([outcome.group for outcome in self.outcomes], np.int64)

    @property
    def tokens(self) -> NDArray[np.int64]:
        return np.array([outcome.tokens for outcome in self.outcomes], np.int64)

    def __add__(self, other: Batch) -> Batch:
        return Batch(
            self.outcomes + other.outcomes,
            {**self.episodes, **other.episodes},
            self.errors + other.errors,
            self.simulated + other.simulated,
            self.rounds + other.rounds,
        )


@dataclass(frozen=True)
class Runner:
    """What it takes to run episodes: this process's rollouts, the episodes it has kept, its fellows."""

    rollouts: Rollouts
    store: EpisodeStore
    accelerator: Accelerator

    def roll_out(
        self, specs: Sequence[EpisodeSpec], step: int, first: int, group_size: int, name: str
    ) -> Batch:
        """Run a round's episodes, numbered from `first`; each process takes every n-th of them.

        So every process has about as many of each group, and of each mini-batch, as any other. Episodes that
        could not be run are set apart, never counted as failures.
        """
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        own = {number: spec for number, spec in enumerate(specs, first) if number % world == rank}
        found = {number: self.store.get(step, spec) for number, spec in own.items()}
        episodes = {number: episode for number, episode in found.items() if episode is not None}
        numbers = {spec: number for number, spec in own.items() if number not in episodes}
        errors = 0
        show = None if self.accelerator.is_main_process else True
        with tqdm(total=len(numbers), desc=name, unit="episode", leave=False, disable=show) as bar:
            for result in self.rollouts.run(list(numbers)):
                if isinstance(result, FailedRun):
                    print(f"infrastructure error: {result.spec}: {result.error}", flush=True)
                    errors += 1
                else:
                    self.store.add(step, result)
                    episodes[numbers[result.spec]] = result
                bar.update()
        # In their order, not that in which they ended: nothing computed in batches shall depend on it.
        episodes = dict(sorted(episodes.items()))
        outcomes = [
            Outcome(k, k // group_size, e.spec, e.success, e.steps, int(e.valid.sum()), float(e.way_left[-1]))
            for k, e in episodes.items()
        ]
        everyone = sorted(gather_object(outcomes), key=lambda outcome: outcome.number)
        simulated = sum(gather_object([len(numbers) - errors]))
        return Batch(tuple(everyone), episodes, sum(gather_object([errors])), simulated, 1)


def collect(config: TrainStage, step: int, runner: Runner) -> Batch:
    """A step's episodes: its groups, and further rounds for as many as dynamic sampling leaves out.

    DAPO (arXiv 2503.14476, section 3.2) samples until the batch is full; here `resample` bounds the rounds.
    """
    train = config.train
    prompts, name, groups, batch = sample_prompts(config, step), f"step {step}", 0, Batch()
    for extra in range(1, train.resample + 2):
        specs = episode_specs(config, step, prompts, groups)
        batch += runner.roll_out(specs, step, groups * train.group_size, train.group_size, name)
        groups += len(prompts)
        missing = train.prompts - _number(batch, kept_groups(train, batch))
        if missing == 0:
            break
        prompts, name = further_prompts(config, step, extra, missing), f"step {step}, further round {extra}"
    if not batch.outcomes:
        raise SystemExit(f"step {step}: no episode could be run; see the errors above")
    return batch


def kept_groups(train: Train, batch: Batch) -> NDArray[np.bool_]:
    """For each episode, whether dynamic sampling keeps its group: bool (N,)."""
    success, groups = torch.from_numpy(batch.success), torch.from_numpy(batch.groups)
    return keep_groups(success, groups, *train.keep_success).numpy()


def _number(batch: Batch, members: NDArray[np.bool_]) -> int:
    """Groups that have one of these episodes."""
    return len(np.unique(batch.groups[members]))


# What they are worth.

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
    """What the references `prefix` compare: of each own episode, uint8 (Q, H, W, 3), what the policy saw in
    the time that the task's median success takes.

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
    matched = config.reward.references == "prefix"
    videos = matched_prefixes(batch) if matched else (episode.frames for episode in batch.episodes.values())
    own = world_model.embed_many(videos)
    everyone = dict(gather_object(list(zip(batch.episodes, own, strict=True))))
    return np.stack([everyone[outcome.number] for outcome in batch.outcomes])


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
    advantages[usable] = group_advantages(rewards[usable], groups[usable])
    signal = torch.zeros_like(usable)
    signal[usable] = has_signal(rewards[usable], groups[usable])
    outcome = has_signal(torch.from_numpy(batch.success).double(), groups)
    kept = shaped.valid & kept_groups(config.train, batch)
    return Scores(shaped, advantages.numpy(), kept, signal.numpy(), outcome.numpy())


# The update.


@dataclass(frozen=True)
class Choices:
    """What was drawn in some episodes and why, N draws as tensors on the policy's device.

    chosen     int64 (N, 56) the tokens of a policy query each; of a policy with a residual: float (N, 7) the
               lean of an episode each
    log_probs  float, as `chosen`: when it was drawn
    valid      bool, as `chosen`: whether it counts
    advantages float (N,) of its episode
    """

    inputs: Inputs
    chosen: torch.Tensor
    log_probs: torch.Tensor
    valid: torch.Tensor
    advantages: torch.Tensor


def gather_choices(
    config: TrainStage, policy: OpenVLAOFT, episodes: Sequence[Episode], advantages: NDArray[np.float64]
) -> Choices:
    """What was drawn in some episodes (at least one): with a residual their leans, else their tokens."""
    return (_leans if config.train.residual_noise else _queries)(config, policy, episodes, advantages)


def _leans(
    config: TrainStage, policy: OpenVLAOFT, episodes: Sequence[Episode], advantages: NDArray[np.float64]
) -> Choices:
    inputs = policy.prepare(
        config.suite,
        np.stack([e.images[0] for e in episodes]),
        [load_task(config.suite, e.spec.task_id).language for e in episodes],
        np.stack([e.proprio[0] for e in episodes]),
    ).to(policy.device)
    leans = torch.from_numpy(np.stack([e.lean for e in episodes])).to(policy.device)
    noise = torch.stack([draw_noise(e.spec)[1] for e in episodes]).to(policy.device)
    return Choices(
        inputs,
        leans,
        torch.distributions.Normal(0.0, config.train.residual_noise).log_prob(noise),
        torch.tensor([[e.steps > 0] for e in episodes], device=policy.device).expand(leans.shape),
        torch.from_numpy(advantages).float().to(policy.device),
    )


def _queries(
    config: TrainStage, policy: OpenVLAOFT, episodes: Sequence[Episode], advantages: NDArray[np.float64]
) -> Choices:
    words = [load_task(config.suite, e.spec.task_id).language for e in episodes for _ in e.images]
    inputs = policy.prepare(
        config.suite,
        np.concatenate([e.images for e in episodes]),
        words,
        np.concatenate([e.proprio for e in episodes]),
    )
    device = policy.device

    def joined(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(e, name) for e in episodes])).to(device)

    repeated = np.repeat(advantages, [len(e.images) for e in episodes])
    return Choices(
        inputs.to(device),
        joined("tokens"),
        joined("log_probs"),
        joined("valid"),
        torch.from_numpy(repeated).float().to(device),
    )


def likelihood(
    train: Train, policy: OpenVLAOFT, inputs: Inputs, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of what was chosen, and the entropy of what it was drawn from, both as `chosen`."""
    if train.residual_noise:
        return policy.lean_log_probs(inputs, chosen, train.residual_noise)
    return policy.log_probs(inputs, chosen, train.temperature)


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
        way_left=np.zeros(1, np.float32),
        lean=np.zeros(ACTION_DIM, np.float32),
        wall_seconds=0.0,
    )


Objective = Callable[..., PolicyLoss]
"""A loss of `srpo.algo.losses` with its settings filled in, weights of KL and entropy excepted."""
LEARNT = ("loss", "kl", "update_kl", "clip_fraction", "entropy", "grad_norm")
"""What an update tells about itself."""


def clipped_objective(train: Train) -> Objective:
    """The online objective."""
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
    objective: Objective,
) -> dict[str, float | None]:
    """One RL step's update: mini-batches of whole groups, each gathered from micro-batches and processes.

    Returns means over mini-batches of `LEARNT`; None without an update.
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
            weight = float(batch.tokens[members].sum())
            if train.residual_noise:
                # A task's rollouts, those of groups that were left out included: the fewer groups teach, the
                # smaller the step. Over σ², for the natural gradient: the weighted mean of the noise.
                weight = train.minibatch * train.group_size / len(config.tasks) / train.residual_noise**2
            normaliser = weight / accelerator.num_processes
            own = [k for k in np.flatnonzero(members) if batch.outcomes[k].number in batch.episodes]
            episodes = [batch.episodes[batch.outcomes[k].number] for k in own] or [blank_episode(config)]
            advantages = scores.advantages[own] if own else np.zeros(1)
            choices = gather_choices(config, policy, episodes, advantages)
            optimiser.zero_grad()
            log = torch.zeros(5, dtype=torch.float64)
            for at in range(0, max(gather_object([len(choices.chosen)])), train.microbatch):
                # As often in every process, for FSDP: one that has run out takes a query without weight.
                left = at < len(choices.chosen)
                part = slice(at, at + train.microbatch) if left else slice(1)
                inputs, chosen = choices.inputs[part], choices.chosen[part]
                log_probs, entropy = likelihood(train, policy, inputs, chosen)
                reference_log_probs = None
                if reference is not None:
                    with torch.no_grad():
                        reference_log_probs, _ = likelihood(train, reference, inputs, chosen)
                loss = objective(
                    log_probs,
                    choices.log_probs[part],
                    choices.advantages[part],
                    choices.valid[part] & left,
                    normaliser,
                    reference_log_probs=reference_log_probs,
                    kl_weight=train.kl,
                    entropy=entropy,
                    entropy_weight=train.entropy,
                )
                accelerator.backward(loss.total)
                terms = (loss.total, loss.kl, loss.approx_kl, loss.clip_fraction, loss.entropy)
                log += torch.stack([term.detach() for term in terms]).double().cpu()
            average_gradients(policy, accelerator)
            norm = whole(accelerator.clip_grad_norm_(policy.parameters(), train.grad_clip))
            optimiser.step()
            everyone = accelerator.reduce(log.float().to(accelerator.device), reduction="mean")
            logs.append([*everyone.tolist(), float(norm)])
    if not logs:
        return dict.fromkeys(LEARNT)
    means: dict[str, float | None] = dict(zip(LEARNT, np.mean(logs, axis=0).tolist(), strict=True))
    if reference is None:
        means["kl"] = None
    return means


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


# What is told of a step.


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def metrics_row(
    step: int,
    batch: Batch,
    scores: Scores,
    learnt: dict[str, float | None],
    rate: float,
    evaluation: Batch,
    clock: Sequence[float],
) -> dict[str, Any]:
    """One row of metrics.csv. `clock`: when rolling out began, then when each of the four phases ended."""
    tasks = scores.shaped.tasks
    success = batch.success
    distances = scores.shaped.distances[np.isfinite(scores.shaped.distances)]
    rewards = scores.shaped.rewards[scores.shaped.valid]
    total = _number(batch, np.ones(len(success), bool))
    rollout, encode, learn, evaluate = np.diff(clock).tolist()
    gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
    return {
        "step": step,
        "episodes": len(success),
        "successes": int(success.sum()),
        "success_rate": float(success.mean()) if len(success) else None,
        "infra_errors": batch.errors,
        "rounds": batch.rounds,
        "groups": total,
        "groups_kept": _number(batch, scores.kept),
        "groups_without_signal": total - _number(batch, scores.signal),
        "groups_without_signal_outcome": total - _number(batch, scores.outcome_signal),
        "clusters": sum(task.clusters for task in tasks),
        "fallbacks": sum(task.fallback for task in tasks),
        "unshaped_tasks": sum(task.unshaped is not None for task in tasks),
        "failure_reward_mean": _mean(scores.shaped.rewards[scores.shaped.valid & ~success]),
        "reward_histogram": json.dumps(np.histogram(rewards, bins=10, range=(0, 1))[0].tolist()),
        "distance_mean": _mean(distances),
        "distance_min": float(distances.min()) if len(distances) else None,
        "distance_max": float(distances.max()) if len(distances) else None,
        **learnt,
        "learning_rate": rate,
        "evaluation_episodes": len(evaluation.outcomes),
        "evaluation_success_rate": _mean(evaluation.success.astype(np.float64)),
        "environment_steps": sum(outcome.steps for outcome in batch.outcomes),
        "seconds_rollout": rollout,
        "seconds_encode": encode,
        "seconds_update": learn,
        "seconds_evaluate": evaluate,
        "seconds_total": clock[-1] - clock[0],
        "episodes_per_second": batch.simulated / rollout if batch.simulated and rollout else None,
        "memory_mb": _resident_memory(),
        "gpu_memory_mb": gpu,
    }


def _resident_memory() -> float:
    """Of this process and those that it started, in MB."""
    process = psutil.Process()
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def task_rows(step: int, batch: Batch, scores: Scores) -> list[dict[str, Any]]:
    """The step's rows of tasks.csv."""
    rows = []
    for task in scores.shaped.tasks:
        members = batch.tasks == task.task
        failures = members & ~batch.success & scores.shaped.valid
        distances = scores.shaped.distances[members]
        rows.append(
            {
                "step": step,
                "task_id": task.task,
                "episodes": int(members.sum()),
                "successes": int(batch.success[members].sum()),
                "success_rate": float(batch.success[members].mean()),
                "invalid": task.invalid,
                "clusters": task.clusters,
                "fallback": task.fallback,
                "unshaped": task.unshaped,
                "distance_mean": _mean(distances[np.isfinite(distances)]),
                "failure_reward_mean": _mean(scores.shaped.rewards[failures]),
            }
        )
    return rows


def reward_rows(step: int, batch: Batch, scores: Scores) -> list[dict[str, Any]]:
    """The step's rows of rewards.parquet, one an episode with a usable reward."""
    return [
        {
            "step": step,
            "group": outcome.group,
            "suite": outcome.spec.suite,
            "task_id": outcome.spec.task_id,
            "init_state": outcome.spec.init_state,
            "episode_seed": outcome.spec.seed,
            "success": outcome.success,
            "steps": outcome.steps,
            "way_left": outcome.way_left,
            "distance": None if np.isnan(scores.shaped.distances[k]) else float(scores.shaped.distances[k]),
            "reward": float(scores.shaped.rewards[k]),
            "advantage": float(scores.advantages[k]),
            "kept": bool(scores.kept[k]),
        }
        for k, outcome in enumerate(batch.outcomes)
        if scores.shaped.valid[k]
    ]


def report(row: dict[str, Any], scores: Scores) -> None:
    """One line a step for people, and a warning wherever the step teaches less than its settings promise."""
    print(
        f"step {row['step']}: success {row['successes']}/{row['episodes']}, groups kept {row['groups_kept']} "
        f"of {row['groups']} (without signal {row['groups_without_signal']}, "
        f"by outcome alone {row['groups_without_signal_outcome']}), "
        f"rollout {row['seconds_rollout']:.0f} s, encode {row['seconds_encode']:.0f} s, "
        f"update {row['seconds_update']:.0f} s",
        flush=True,
    )
    if row["evaluation_episodes"]:
        rate, count = row["evaluation_success_rate"], row["evaluation_episodes"]
        print(f"  greedy evaluation: {rate:.1%} of {count} episodes succeeded", flush=True)
    for task in scores.shaped.tasks:
        if task.invalid:
            print(
                f"  task {task.task}: {task.invalid} episodes with a broken embedding are left out",
                flush=True,
            )
        if task.fallback:
            print(f"  task {task.task}: no cluster of successes; their mean is the reference", flush=True)
        if task.unshaped not in (None, "outcome"):
            print(f"  task {task.task}: failures not shaped: {task.unshaped}", flush=True)
    if row["loss"] is None:
        print("  nothing to learn from: no group was kept that has differing rewards", flush=True)


def doubtful_settings(config: TrainStage) -> list[str]:
    """Settings that are valid and make little sense, in words."""
    train, reward = config.train, config.reward
    found = []
    if reward.shaping == "paper" and reward.alpha == 0:
        found.append("reward.alpha 0 gives every failure 0: this is GRPO at the price of a world model")
    if train.keep_success[0] == 0 and reward.shaping == "none":
        found.append(
            "train.keep_success keeps groups that fail throughout, which teach nothing without reward shaping"
        )
    return found


def doubtful_run(metrics: Sequence[Mapping[str, Any]], tasks: Iterable[Mapping[str, Any]]) -> list[str]:
    """What was wrong with a whole run, in words, from its rows of metrics.csv and tasks.csv."""
    found = []
    idle = sum(row["loss"] is None for row in metrics)
    if idle == len(metrics):
        found.append("no step had anything to learn from: the policy is what it was at the start")
    elif 2 * idle > len(metrics):
        found.append(f"{idle} of {len(metrics)} steps had nothing to learn from")
    if any(row["fallbacks"] for row in metrics) and not any(row["clusters"] for row in metrics):
        found.append(
            "DBSCAN found no cluster in any step, the mean of the successes was the only reference: "
            "too few successes, or reward.eps is too small for these embeddings (see reward.eps_relative)"
        )
    successes: dict[int, int] = {}
    for row in tasks:
        successes[row["task_id"]] = successes.get(row["task_id"], 0) + row["successes"]
    if never := sorted(task for task, number in successes.items() if number == 0):
        found.append(f"tasks {never} never succeeded: nothing could be learnt about them")
    return found


# The run.


@dataclass
class Run:
    """A training run between two checkpoints: what it learns with, and what it has logged."""

    config: TrainStage
    accelerator: Accelerator
    policy: OpenVLAOFT
    reference: OpenVLAOFT | None
    world_model: WorldModel | None
    experts: Experts | None
    optimiser: torch.optim.Optimizer
    checkpoints: Checkpoints
    scratch: Path
    inputs: dict[str, str]
    done: int = 0
    logs: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"metrics": [], "tasks": [], "rewards": []}
    )

    @property
    def at_target(self) -> bool:
        """Whether the last step's evaluation was as good as wanted."""
        target, metrics = self.config.train.target, self.logs["metrics"]
        rate = metrics[-1]["evaluation_success_rate"] if metrics else None
        return target is not None and rate is not None and rate >= target

    @property
    def complete(self) -> bool:
        """Whether it was resumed from a checkpoint of its end: only the results are to be written."""
        return self.at_target or self.done == self.config.train.steps

    @property
    def steps(self) -> Iterable[int]:
        """Steps that are left, with a progress bar."""
        total = self.config.train.steps
        show = None if self.accelerator.is_main_process else True
        return tqdm(range(self.done + 1, total + 1), initial=self.done, total=total, desc="rl", disable=show)

    def score(self, batch: Batch) -> Scores:
        """Rewards and advantages of the whole batch, the same in every process."""
        embeddings = None
        if self.world_model is not None:
            embeddings = embed(self.config, batch, self.world_model, self.accelerator)
        return score(self.config, batch, embeddings, self.experts)

    def update(
        self, batch: Batch, scores: Scores, step: int, objective: Objective
    ) -> dict[str, float | None]:
        """Learn from a batch at the step's learning rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.config.train, step)
        return update(
            self.config,
            self.policy,
            self.reference,
            self.optimiser,
            self.accelerator,
            batch,
            scores,
            step,
            objective,
        )

    def log(
        self,
        step: int,
        batch: Batch,
        scores: Scores,
        learnt: dict[str, float | None],
        evaluation: Batch,
        clock: Sequence[float],
    ) -> None:
        """Keep and show the step's figures."""
        rate = learning_rate(self.config.train, step)
        row = metrics_row(step, batch, scores, learnt, rate, evaluation, clock)
        tasks = task_rows(step, batch, scores)
        self.logs["metrics"].append(row)
        self.logs["tasks"].extend(tasks)
        self.accelerator.log(scalars(row, tasks), step=step)
        if self.accelerator.is_main_process:
            report(row, scores)

    def save(self, step: int) -> bool:
        """Write a checkpoint, where one is due and by one process; tell whether it did."""
        train, writer = self.config.train, self.accelerator.is_main_process
        due = step % train.checkpoint_every == 0 and step < train.steps
        if due:
            self.checkpoints.save(step, self.policy, self.optimiser, self.logs)
            if writer:
                write_rows(self.scratch / "metrics.csv", self.logs["metrics"], RL_METRICS)
        return due and writer

    def finish(self, out: Path, workers: int) -> None:
        """Write a last checkpoint, then the results."""
        last = self.logs["metrics"][-1]["step"]
        if last > self.done:
            self.checkpoints.save(last, self.policy, self.optimiser, self.logs)
        save_policy(self.policy, out / "policy", self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            for line in doubtful_run(self.logs["metrics"], self.logs["tasks"]):
                print(f"warning: {line}", flush=True)
            write_rows(out / "metrics.csv", self.logs["metrics"], RL_METRICS)
            write_rows(out / "tasks.csv", self.logs["tasks"], TASK_METRICS)
            write_rows(out / "rewards.parquet", self.logs["rewards"], REWARDS)
            write_manifest(
                out / "manifest.json",
                self.config,
                inputs=self.inputs,
                policy=sha256(out / "policy"),
                workers=workers,
                processes=self.accelerator.num_processes,
            )
            self.checkpoints.finish()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def begin(
    config: TrainStage,
    initial: Path,
    world_model_folder: Path | None,
    demos: Path | None,
    out: Path,
    scratch: Path,
) -> Run:
    """Load everything: from the last checkpoint if there is one, else from the initial policy."""
    accelerator = make_accelerator(config.train.trackers, out)
    policy = load_policy(initial, accelerator.device)
    # Dropout-free in both modes; one mode, so that sampling and learning see the same network.
    policy.eval()
    torch.manual_seed(config.seed)  # adapters start at random
    noise = config.train.residual_noise
    if (policy.residual is None) != (noise == 0):
        has = "has no" if policy.residual is None else "has a"
        raise SystemExit(
            f"{initial}: the policy {has} residual, and train.residual_noise is {noise}: a residual learns "
            "from noise on it; set policy.residual and train.residual_noise both or neither; run SFT again"
        )
    policy.make_trainable(reinforcement=True)
    optimiser = make_optimiser(policy, config.train)
    if is_sharded(accelerator):
        require_whole_weights(policy.settings)
        accelerator.prepare(policy, optimiser)  # changes both in place
    reference = load_frozen(initial, policy, accelerator) if config.train.kl > 0 else None
    world_model = None
    if config.world_model is not None:
        world_model = load_world_model(config.world_model, world_model_folder)
    inputs = {"policy": sha256(initial)}
    if world_model_folder is not None:
        inputs["world_model"] = sha256(world_model_folder)
    experts = None
    if world_model is not None and config.reward.references == "fixed_expert":
        if demos is None:
            raise SystemExit("reward.references `fixed_expert` needs the demonstrations: --demos FOLDER")
        files = [demos / file_name(load_task(config.suite, task).name) for task in config.tasks]
        experts = embed_experts(config, world_model, files)
        inputs |= {file.name: sha256(file) for file in files}
    # Trackers look on: another choice of them does not make it another run.
    settings = config.model_dump_json(exclude={"train": {"trackers"}})
    identity = fingerprint(settings, *inputs.values())
    with accelerator.main_process_first():
        checkpoints = Checkpoints(
            scratch, identity, config.train.keep_checkpoints, writer=accelerator.is_main_process
        )
    run = Run(
        config, accelerator, policy, reference, world_model, experts, optimiser, checkpoints, scratch, inputs
    )
    if (resumed := checkpoints.resume(policy, optimiser)) is not None:
        run.done, run.logs = resumed
    if len(found := set(gather_object([run.done]))) > 1:
        raise SystemExit(
            f"{scratch}: processes see checkpoints of different steps {sorted(found)}; start again"
        )
    if accelerator.is_main_process:
        if run.done:
            print(f"resuming after step {run.done}", flush=True)
        for line in doubtful_settings(config):
            print(f"warning: {line}", flush=True)
    start_trackers(accelerator, config, identity[:16], run.done)
    return run


def make_optimiser(policy: OpenVLAOFT, train: Train) -> torch.optim.Optimizer:
    """AdamW; for a residual plain gradient descent, because its gradient's size says how much there was to
    learn from. AdamW would make a full step of what noise a single group leaves."""
    if policy.residual is None:
        return sft.adamw(policy, train.learning_rate, train.weight_decay)
    return torch.optim.SGD([policy.residual], train.learning_rate, weight_decay=train.weight_decay)


def load_frozen(initial: Path, policy: OpenVLAOFT, accelerator: Accelerator) -> OpenVLAOFT:
    """The initial policy, not to be trained: whole in each process, in the precision of `policy`'s passes."""
    mixed = is_sharded(accelerator) and accelerator.mixed_precision == "bf16"
    held = policy.settings.model_copy(update={"dtype": "bfloat16"} if mixed else {})
    return load_policy(initial, accelerator.device, held).requires_grad_(False)


def evaluation_specs(config: TrainStage) -> list[EpisodeSpec]:
    """Greedy episodes of every task from its first test states, as `srpo.evaluate` runs them."""
    states = list(config.protocol.test_states())[: config.train.evaluate_states]
    return [EpisodeSpec(config.suite, task, state, state, 0.0) for task in config.tasks for state in states]


def train(
    config: TrainStage,
    initial: Path,
    world_model_folder: Path | None,
    out: Path,
    scratch: Path,
    workers: int,
    demos: Path | None = None,
) -> None:
    """Train from the last checkpoint, or from the initial policy, to the finished one in `out`."""
    run = begin(config, initial, world_model_folder, demos, out, scratch)
    if run.complete:
        run.finish(out, workers)
        return
    store = EpisodeStore(scratch)
    objective = clipped_objective(config.train)
    sharded = is_sharded(run.accelerator)
    actor = load_frozen(initial, run.policy, run.accelerator) if sharded else run.policy
    follow(actor, run.policy)
    with Rollouts(config.suite, config.protocol, actor, workers) as rollouts:
        runner = Runner(rollouts, store, run.accelerator)
        for step in run.steps:
            clock = [time.perf_counter()]
            batch = collect(config, step, runner)
            clock.append(time.perf_counter())
            scores = run.score(batch)
            clock.append(time.perf_counter())
            learnt = run.update(batch, scores, step, objective)
            follow(actor, run.policy)
            clock.append(time.perf_counter())
            evaluation = Batch()
            if config.train.evaluate_every and step % config.train.evaluate_every == 0:
                evaluation = runner.roll_out(evaluation_specs(config), step, 0, 1, f"evaluation {step}")
            clock.append(time.perf_counter())
            run.log(step, batch, scores, learnt, evaluation, clock)
            run.logs["rewards"].extend(reward_rows(step, batch, scores))
            if run.at_target:
                if run.accelerator.is_main_process:
                    print(f"target {config.train.target:.1%} reached: stopping", flush=True)
                break
            if run.save(step):
                store.clear(step)
    run.finish(out, workers)


def parse_arguments(description: str) -> argparse.Namespace:
    """The command line of training, online and offline."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of the run")
    parser.add_argument("--policy", type=Path, required=True, help="policy checkpoint to start from")
    parser.add_argument("--world-model", type=Path, help="checkpoint folder of a pretrained world model")
    parser.add_argument("--demos", type=Path, help="demonstrations, for the references `fixed_expert`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for resumable state")
    parser.add_argument("--workers", type=int, default=2, help="simulation processes (default: 2)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments("Reinforcement learning with SRPO (or GRPO).")
    config = load_stage(arguments.config, TrainStage)
    if config.train.offline is not None:
        raise SystemExit(f"{arguments.config}: train.offline is set: use python -m srpo.offline")
    with preemptible(), held(arguments.scratch):
        train(
            config,
            arguments.policy,
            arguments.world_model,
            arguments.out,
            arguments.scratch,
            arguments.workers,
            arguments.demos,
        )


if __name__ == "__main__":
    main()
