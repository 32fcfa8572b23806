"""Reinforcement learning: SRPO, and GRPO, which is SRPO with a 0/1 reward. One loop, read top to bottom.

python -m srpo.trainer --config CONFIG --policy FOLDER [--world-model FOLDER] --out FOLDER --scratch FOLDER
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from tqdm import tqdm

from srpo.algo.advantages import group_advantages, has_signal, keep_groups
from srpo.algo.losses import policy_loss
from srpo.analysis.io import REWARDS, RL_METRICS, write_rows
from srpo.checkpoint import Checkpoints, fingerprint
from srpo.config import TrainStage, load_stage
from srpo.envs.libero import load_task
from srpo.manifest import sha256, write_manifest
from srpo.policies.openvla_oft import Inputs, OpenVLAOFT, load_policy, save_policy
from srpo.rewards.progress import ShapedRewards, shape_rewards
from srpo.rollout import Rollouts
from srpo.types import Episode, EpisodeSpec, FailedRun
from srpo.world_models import WorldModel, load_world_model


def sample_prompts(config: TrainStage, step: int) -> list[tuple[int, int]]:
    """The (task, initial state) of each group of a step, decided by (seed, step).

    Tasks take turns, so that a step has as many groups of each as can be; states are drawn.
    """
    rng = np.random.default_rng([config.seed, step])
    states = list(config.protocol.train_states())
    first = (step - 1) * config.train.prompts
    tasks = [config.tasks[(first + k) % len(config.tasks)] for k in range(config.train.prompts)]
    return [(task, int(rng.choice(states))) for task in tasks]


def episode_specs(config: TrainStage, step: int) -> list[EpisodeSpec]:
    """A step's rollouts, group after group, each with a seed of its own."""
    frames = 0 if config.world_model is None else config.world_model.frames
    specs = []
    for group, (task, state) in enumerate(sample_prompts(config, step)):
        for member in range(config.train.group_size):
            seed = np.random.SeedSequence([config.seed, step, group, member]).generate_state(1)[0]
            specs.append(EpisodeSpec(config.suite, task, state, int(seed), config.train.temperature, frames))
    return specs


@dataclass(frozen=True)
class Batch:
    """The episodes of a step that ran: N of them, in the order of their specs."""

    episodes: list[Episode]
    groups: NDArray[np.int64]
    failed: list[FailedRun]

    @property
    def success(self) -> NDArray[np.bool_]:
        return np.array([episode.success for episode in self.episodes], bool)

    @property
    def tasks(self) -> NDArray[np.int64]:
        return np.array([episode.spec.task_id for episode in self.episodes], np.int64)


def roll_out(rollouts: Rollouts, specs: Sequence[EpisodeSpec], group_size: int, name: str) -> Batch:
    """Run a step's episodes; those that could not be run are set apart, never counted as failures."""
    results = {}
    with tqdm(total=len(specs), desc=name, unit="episode", leave=False, disable=None) as bar:
        for result in rollouts.run(specs):
            results[result.spec] = result
            bar.update()
    episodes, groups, failed = [], [], []
    for number, spec in enumerate(specs):
        result = results[spec]
        if isinstance(result, FailedRun):
            print(f"infrastructure error: {spec}: {result.error}", flush=True)
            failed.append(result)
        else:
            episodes.append(result)
            groups.append(number // group_size)
    return Batch(episodes, np.array(groups, np.int64), failed)


@dataclass(frozen=True)
class Scores:
    """What a step's N episodes are worth. `kept`: their group takes part in the update."""

    shaped: ShapedRewards
    advantages: NDArray[np.float64]
    kept: NDArray[np.bool_]
    signal: NDArray[np.bool_]
    outcome_signal: NDArray[np.bool_]


def score(config: TrainStage, batch: Batch, world_model: WorldModel | None) -> Scores:
    """Rewards (self-referential where configured), group advantages, and which groups are kept."""
    embeddings = None
    if world_model is not None:
        embeddings = world_model.embed_many(episode.frames for episode in batch.episodes)
    shaped = shape_rewards(embeddings, batch.success, batch.tasks, config.reward)
    groups = torch.from_numpy(batch.groups)
    success = torch.from_numpy(batch.success)
    usable = torch.from_numpy(shaped.valid)
    rewards = torch.from_numpy(shaped.rewards)
    kept = usable & keep_groups(success, groups, *config.train.keep_success)
    advantages = torch.zeros_like(rewards)
    advantages[usable] = group_advantages(rewards[usable], groups[usable])
    signal = torch.zeros_like(usable)
    signal[usable] = has_signal(rewards[usable], groups[usable])
    outcome = has_signal(success.double(), groups)
    return Scores(shaped, advantages.numpy(), kept.numpy(), signal.numpy(), outcome.numpy())


@dataclass(frozen=True)
class Queries:
    """The policy queries of a mini-batch's episodes: Q of them, as tensors on the policy's device."""

    inputs: Inputs
    tokens: torch.Tensor
    log_probs: torch.Tensor
    valid: torch.Tensor
    advantages: torch.Tensor


def gather_queries(
    policy: OpenVLAOFT, suite: str, episodes: Sequence[Episode], advantages: NDArray[np.float64]
) -> Queries:
    """All queries of some episodes, one after the other."""
    words = [load_task(suite, e.spec.task_id).language for e in episodes for _ in e.images]
    inputs = policy.prepare(
        suite,
        np.concatenate([e.images for e in episodes]),
        words,
        np.concatenate([e.proprio for e in episodes]),
    )
    device = policy.device

    def joined(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(e, name) for e in episodes])).to(device)

    repeated = np.repeat(advantages, [len(e.images) for e in episodes])
    return Queries(
        inputs.to(device),
        joined("tokens"),
        joined("log_probs"),
        joined("valid"),
        torch.from_numpy(repeated).float().to(device),
    )


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
    """One RL step's update: mini-batches of whole groups, each gathered from micro-batches.

    Returns means over mini-batches: loss, kl, clip_fraction, entropy, grad_norm; None without an update.
    """
    train = config.train
    # A group whose rewards are all equal has nothing to teach: it would only thin out a mini-batch.
    groups = np.unique(batch.groups[scores.kept & scores.signal])
    logs: list[dict[str, float]] = []
    for epoch in range(train.epochs):
        order = np.random.default_rng([config.seed, step, epoch]).permutation(groups)
        for start in range(0, len(order), train.minibatch):
            members = np.isin(batch.groups, order[start : start + train.minibatch]) & scores.kept
            episodes = [e for e, chosen in zip(batch.episodes, members, strict=True) if chosen]
            queries = gather_queries(policy, config.suite, episodes, scores.advantages[members])
            normaliser = float(queries.valid.sum())
            optimiser.zero_grad()
            log = dict.fromkeys(("loss", "kl", "clip_fraction", "entropy"), 0.0)
            for at in range(0, len(queries.tokens), train.microbatch):
                part = slice(at, at + train.microbatch)
                log_probs, entropy = policy.log_probs(
                    queries.inputs[part], queries.tokens[part], train.temperature
                )
                reference_log_probs = None
                if reference is not None:
                    with torch.no_grad():
                        reference_log_probs, _ = reference.log_probs(
                            queries.inputs[part], queries.tokens[part], train.temperature
                        )
                loss = policy_loss(
                    log_probs,
                    queries.log_probs[part],
                    queries.advantages[part],
                    queries.valid[part],
                    normaliser,
                    clip_low=train.clip_low,
                    clip_high=train.clip_high,
                    reference_log_probs=reference_log_probs,
                    kl_weight=train.kl,
                    entropy=entropy,
                    entropy_weight=train.entropy,
                )
                accelerator.backward(loss.total)
                log["loss"] += loss.total.item()
                log["kl"] += loss.kl.item()
                log["clip_fraction"] += loss.clip_fraction.item()
                log["entropy"] += loss.entropy.item()
            norm = accelerator.clip_grad_norm_(policy.parameters(), train.grad_clip)
            optimiser.step()
            logs.append(log | {"grad_norm": float(norm)})
    if not logs:
        return dict.fromkeys(("loss", "kl", "clip_fraction", "entropy", "grad_norm"))
    means: dict[str, float | None] = {name: float(np.mean([log[name] for log in logs])) for name in logs[0]}
    if reference is None:
        means["kl"] = None
    return means


def _mean(values: NDArray[np.float64]) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def metrics_row(
    step: int,
    batch: Batch,
    scores: Scores,
    learnt: dict[str, float | None],
    rate: float,
    clock: Sequence[float],
) -> dict[str, Any]:
    """One row of metrics.csv. `clock`: the times at which rollout, encoding and update began and ended."""
    tasks = scores.shaped.tasks
    success = batch.success

    def groups_with(members: NDArray[np.bool_]) -> int:
        return len(np.unique(batch.groups[members]))

    total = groups_with(np.ones(len(success), bool))
    return {
        "step": step,
        "episodes": len(success),
        "successes": int(success.sum()),
        "success_rate": float(success.mean()) if len(success) else None,
        "infra_errors": len(batch.failed),
        "groups": total,
        "groups_kept": groups_with(scores.kept),
        "groups_without_signal": total - groups_with(scores.signal),
        "groups_without_signal_outcome": total - groups_with(scores.outcome_signal),
        "clusters": sum(task.clusters for task in tasks),
        "fallbacks": sum(task.fallback for task in tasks),
        "unshaped_tasks": sum(task.unshaped is not None for task in tasks),
        "failure_reward_mean": _mean(scores.shaped.rewards[~success]),
        "distance_mean": _mean(scores.shaped.distances),
        **learnt,
        "learning_rate": rate,
        "environment_steps": sum(episode.steps for episode in batch.episodes),
        "seconds_rollout": clock[1] - clock[0],
        "seconds_encode": clock[2] - clock[1],
        "seconds_update": clock[3] - clock[2],
        "seconds_total": clock[3] - clock[0],
    }


def reward_rows(step: int, batch: Batch, scores: Scores) -> list[dict[str, Any]]:
    """The step's rows of rewards.parquet, one an episode with a usable reward."""
    return [
        {
            "step": step,
            "group": int(batch.groups[k]),
            "suite": episode.spec.suite,
            "task_id": episode.spec.task_id,
            "init_state": episode.spec.init_state,
            "episode_seed": episode.spec.seed,
            "success": episode.success,
            "steps": episode.steps,
            "distance": None if np.isnan(scores.shaped.distances[k]) else float(scores.shaped.distances[k]),
            "reward": float(scores.shaped.rewards[k]),
            "advantage": float(scores.advantages[k]),
            "kept": bool(scores.kept[k]),
        }
        for k, episode in enumerate(batch.episodes)
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


def train(
    config: TrainStage, initial: Path, world_model_folder: Path | None, out: Path, scratch: Path, workers: int
) -> None:
    """Train from the last checkpoint, or from the initial policy, to the finished one in `out`."""
    accelerator = Accelerator()
    policy = load_policy(initial, accelerator.device)
    world_model = None
    if config.world_model is not None:
        world_model = load_world_model(config.world_model, world_model_folder)
    reference = copy.deepcopy(policy).requires_grad_(False).eval() if config.train.kl > 0 else None
    optimiser = torch.optim.AdamW(
        policy.parameters(), lr=config.train.learning_rate, weight_decay=config.train.weight_decay
    )
    inputs = {"policy": sha256(initial)}
    if world_model_folder is not None:
        inputs["world_model"] = sha256(world_model_folder)
    checkpoints = Checkpoints(scratch, fingerprint(config.model_dump_json(), *inputs.values()))
    metrics: list[dict[str, Any]] = []
    rewards: list[dict[str, Any]] = []
    done = 0
    if (resumed := checkpoints.resume(policy, optimiser)) is not None:
        done, progress = resumed
        metrics, rewards = progress["metrics"], progress["rewards"]
        print(f"resuming after step {done}", flush=True)
    # Dropout-free in both modes; one mode, so that sampling and learning see the same network.
    policy.eval()
    with Rollouts(config.suite, config.protocol, policy, workers) as rollouts:
        for step in tqdm(
            range(done + 1, config.train.steps + 1),
            initial=done,
            total=config.train.steps,
            desc="rl",
            disable=None,
        ):
            clock = [time.perf_counter()]
            specs = episode_specs(config, step)
            batch = roll_out(rollouts, specs, config.train.group_size, f"step {step}")
            if not batch.episodes:
                raise SystemExit(f"step {step}: no episode could be run; see the errors above")
            clock.append(time.perf_counter())
            scores = score(config, batch, world_model)
            clock.append(time.perf_counter())
            learnt = update(config, policy, reference, optimiser, accelerator, batch, scores, step)
            clock.append(time.perf_counter())
            row = metrics_row(step, batch, scores, learnt, config.train.learning_rate, clock)
            metrics.append(row)
            rewards.extend(reward_rows(step, batch, scores))
            report(row, scores)
            if step % config.train.checkpoint_every == 0 and step < config.train.steps:
                checkpoints.save(step, policy, optimiser, {"metrics": metrics, "rewards": rewards})
                write_rows(scratch / "metrics.csv", metrics, RL_METRICS)
    save_policy(policy, out / "policy")
    write_rows(out / "metrics.csv", metrics, RL_METRICS)
    write_rows(out / "rewards.parquet", rewards, REWARDS)
    write_manifest(
        out / "manifest.json", config, inputs=inputs, policy=sha256(out / "policy"), workers=workers
    )
    checkpoints.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description="Reinforcement learning with SRPO (or GRPO).")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of the run")
    parser.add_argument("--policy", type=Path, required=True, help="policy checkpoint to start from")
    parser.add_argument("--world-model", type=Path, help="checkpoint folder of a pretrained world model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for resumable state")
    parser.add_argument("--workers", type=int, default=2, help="simulation processes (default: 2)")
    arguments = parser.parse_args()
    train(
        load_stage(arguments.config, TrainStage),
        arguments.policy,
        arguments.world_model,
        arguments.out,
        arguments.scratch,
        arguments.workers,
    )


if __name__ == "__main__":
    main()
