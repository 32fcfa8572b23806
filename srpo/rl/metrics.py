"""What training logs: rows of metrics.csv, tasks.csv and rewards.parquet; console lines; warnings."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from srpo.config import TrainStage
from srpo.rl.collect import Batch
from srpo.rl.score import BatchScores

PHASES = ("rollout", "encode", "update", "evaluate")
"""Of a step, in their order."""


class PhaseTimer:
    """Seconds of a step's phases, each of all its parts: 0 for one that did not take place."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - started


@dataclass(frozen=True)
class StepRecord:
    """What happened in a step: everything that its rows are made of.

    update_metrics  by the names of `srpo.rl.update.UPDATE_METRICS`
    evaluation      greedy episodes on test states; empty in a step without evaluation
    seconds         of each of `PHASES`
    policy_lag      updates that the policy which rolled out lacked
    own_batch       offline, later steps learn from the first one's
    """

    step: int
    batch: Batch
    scores: BatchScores
    update_metrics: Mapping[str, float | None]
    learning_rate: float
    evaluation: Batch
    seconds: Mapping[str, float]
    policy_lag: int = 0
    own_batch: bool = True


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def metrics_row(record: StepRecord) -> dict[str, Any]:
    """The step's row of metrics.csv."""
    batch, scores, evaluation = record.batch, record.scores, record.evaluation
    shaped, success = scores.shaped, batch.success
    distances = shaped.distances[np.isfinite(shaped.distances)]
    rewards = shaped.rewards[shaped.valid]
    groups = batch.count_groups(np.ones(len(success), bool))
    ran = batch if record.own_batch else Batch()  # for this step
    branch_steps = sum(moment.steps for moment in ran.moments)
    gpu_memory = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
    return {
        "step": record.step,
        "episodes": len(success),
        "successes": int(success.sum()),
        "success_rate": float(success.mean()) if len(success) else None,
        "infra_errors": batch.errors,
        "rounds": batch.rounds,
        "policy_lag": record.policy_lag,
        "groups": groups,
        "groups_kept": batch.count_groups(scores.kept),
        "filtered_advantage": scores.filtered,
        "groups_without_signal": groups - batch.count_groups(scores.signal),
        "groups_without_signal_outcome": groups - batch.count_groups(scores.outcome_signal),
        "clusters": sum(task.clusters for task in shaped.tasks),
        "fallbacks": sum(task.fallback for task in shaped.tasks),
        "unshaped_tasks": sum(task.unshaped is not None for task in shaped.tasks),
        "compared_with_earlier": sum(task.earlier for task in shaped.tasks),
        "failure_reward_mean": _mean(shaped.rewards[shaped.valid & ~success]),
        "reward_histogram": json.dumps(np.histogram(rewards, bins=10, range=(0, 1))[0].tolist()),
        "distance_mean": _mean(distances),
        "distance_min": float(distances.min()) if len(distances) else None,
        "distance_max": float(distances.max()) if len(distances) else None,
        **record.update_metrics,
        "learning_rate": record.learning_rate,
        "evaluation_episodes": len(evaluation.outcomes),
        "evaluation_success_rate": _mean(evaluation.success.astype(np.float64)),
        "environment_steps": sum(outcome.steps for outcome in ran.outcomes) + branch_steps,
        "branches": sum(moment.branches for moment in ran.moments),
        "branch_steps": branch_steps,
        **{f"seconds_{phase}": record.seconds[phase] for phase in PHASES},
        "seconds_total": sum(record.seconds.values()),
        "episodes_per_second": ran.simulated / ran.seconds if ran.simulated else None,
        "memory_mb": _resident_memory(),
        "gpu_memory_mb": gpu_memory,
    }


def _resident_memory() -> float:
    """Resident memory of this process and those that it started, in MB."""
    process = psutil.Process()
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def task_rows(record: StepRecord) -> list[dict[str, Any]]:
    """The step's rows of tasks.csv."""
    batch, shaped = record.batch, record.scores.shaped
    rows = []
    for task in shaped.tasks:
        members = batch.tasks == task.task
        failures = members & ~batch.success & shaped.valid
        distances = shaped.distances[members]
        rows.append(
            {
                "step": record.step,
                "task_id": task.task,
                "episodes": int(members.sum()),
                "successes": int(batch.success[members].sum()),
                "success_rate": float(batch.success[members].mean()),
                "invalid": task.invalid,
                "clusters": task.clusters,
                "fallback": task.fallback,
                "compared_with_earlier": task.earlier,
                "unshaped": task.unshaped,
                "distance_mean": _mean(distances[np.isfinite(distances)]),
                "failure_reward_mean": _mean(shaped.rewards[failures]),
            }
        )
    return rows


def reward_rows(record: StepRecord) -> list[dict[str, Any]]:
    """The step's rows of rewards.parquet, one for each episode with a usable reward."""
    scores = record.scores
    return [
        {
            "step": record.step,
            "group": outcome.group,
            "suite": outcome.spec.suite,
            "task_id": outcome.spec.task_id,
            "init_state": outcome.spec.init_state,
            "episode_seed": outcome.spec.seed,
            "success": outcome.success,
            "steps": outcome.steps,
            "distance_to_goal": outcome.distance_to_goal,
            "distance": None if np.isnan(scores.shaped.distances[k]) else float(scores.shaped.distances[k]),
            "reward": float(scores.shaped.rewards[k]),
            "advantage": float(scores.advantages[k]),
            "kept": bool(scores.kept[k]),
        }
        for k, outcome in enumerate(record.batch.outcomes)
        if scores.shaped.valid[k]
    ]


def print_step(row: Mapping[str, Any], scores: BatchScores) -> None:
    """Print a line about a step from its row of metrics.csv, and a warning for whatever limits its update."""
    print(
        f"step {row['step']}: success {row['successes']}/{row['episodes']}, groups kept {row['groups_kept']} "
        f"of {row['groups']} (without signal {row['groups_without_signal']}, "
        f"by outcome alone {row['groups_without_signal_outcome']}), "
        f"rollout {row['seconds_rollout']:.0f} s, encode {row['seconds_encode']:.0f} s, "
        f"update {row['seconds_update']:.0f} s",
        flush=True,
    )
    if row["branches"]:
        print(
            f"  {row['branches']} branches: {row['branch_steps']:,} of {row['environment_steps']:,} control "
            "steps",
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
        if task.earlier:
            print(
                f"  task {task.task}: {task.earlier} failures compared with successes of earlier steps",
                flush=True,
            )
        if task.unshaped not in (None, "outcome"):
            print(f"  task {task.task}: failures not shaped: {task.unshaped}", flush=True)
    if row["loss"] is None:
        print("  nothing to learn from: no group was kept whose rewards differ", flush=True)


def settings_warnings(config: TrainStage) -> list[str]:
    """Messages about settings that are valid but of little use."""
    train, reward = config.train, config.reward
    warnings = []
    if reward.shaping == "paper" and reward.alpha == 0:
        warnings.append("reward.alpha 0 gives every failure 0: this is GRPO at the cost of a world model")
    if train.keep_success[0] == 0 and reward.shaping == "none" and train.branching is None:
        warnings.append(
            "train.keep_success keeps groups without success, which have no signal without reward shaping"
        )
    return warnings


def run_warnings(
    metrics: Sequence[Mapping[str, Any]], tasks: Iterable[Mapping[str, Any]], asked: Iterable[int]
) -> list[str]:
    """Messages about what went wrong in a whole run, from its rows of metrics.csv and tasks.csv.

    Args:
        asked: the tasks that the run was to train on.
    """
    warnings = []
    if errors := sum(row["infra_errors"] for row in metrics):
        rollouts = errors + sum(row["episodes"] for row in metrics)
        warnings.append(f"{errors} of {rollouts} rollouts could not be run (infra_errors in metrics.csv)")
    idle = sum(row["loss"] is None for row in metrics)
    if idle == len(metrics):
        warnings.append("no step had anything to learn from: the policy is still the initial one")
    elif 2 * idle > len(metrics):
        warnings.append(f"{idle} of {len(metrics)} steps had nothing to learn from")
    if any(row["fallbacks"] for row in metrics) and not any(row["clusters"] for row in metrics):
        warnings.append(
            "DBSCAN found no cluster in any step, the mean of the successes was the only reference: "
            "too few successes, or reward.eps is too small for these embeddings (see reward.eps_relative)"
        )
    successes = dict.fromkeys(asked, 0)
    for row in tasks:
        successes[row["task_id"]] += row["successes"]
    if never := sorted(task for task, number in successes.items() if number == 0):
        warnings.append(f"tasks {never} never succeeded: nothing could be learned about them")
    return warnings
