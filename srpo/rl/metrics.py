"""What is told of a training: rows of metrics.csv, tasks.csv and rewards.parquet; lines and warnings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from srpo.config import TrainStage
from srpo.rl.collect import Batch, count_groups
from srpo.rl.score import Scores


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
    total = count_groups(batch, np.ones(len(success), bool))
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
        "groups_kept": count_groups(batch, scores.kept),
        "groups_without_signal": total - count_groups(batch, scores.signal),
        "groups_without_signal_outcome": total - count_groups(batch, scores.outcome_signal),
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
            "distance_to_goal": outcome.distance_to_goal,
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


def settings_warnings(config: TrainStage) -> list[str]:
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


def run_warnings(metrics: Sequence[Mapping[str, Any]], tasks: Iterable[Mapping[str, Any]]) -> list[str]:
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
