"""Every logged column has the meaning that its schema states; computed here again, from the episodes."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional

from srpo import optim, sft
from srpo.policies import action_tokens
from srpo.results.rows import read_rows
from srpo.results.schemas import REWARDS, RL_METRICS, SFT_METRICS, TASK_METRICS
from srpo.rl import metrics, score, update
from support.fine_tuning import demonstration, stage
from support.policies import SUITE, observations, small_policy, small_settings
from support.rl_steps import batch
from support.stages import training_stage

ALPHA = 0.8
UPDATED = {name: 0.1 + k for k, name in enumerate(update.UPDATE_METRICS)}
SECONDS = dict(zip(metrics.PHASES, (4.0, 2.0, 1.0, 0.5), strict=True))
BROKEN = 2
"""The number of the episode, a failure of task 7, whose embedding is broken."""


@pytest.fixture(scope="module")
def step() -> metrics.StepRecord:
    """Task 8 never succeeds and one of its rollouts could not be run; a further round was needed."""
    config = training_stage(
        {"keep_success": (0.1, 0.9), "resample": 1},
        {"references": "dbscan", "shaping": "linear", "alpha": ALPHA},
    )
    first, further = "1100" + "0000" + "1111" + "00x0", "0000" * 3
    data = batch(config, first + further, small_policy())
    embeddings = np.array(
        [[1.0, 0.0 if o.success else distance(o.number)] for o in data.outcomes], np.float32
    )
    embeddings[BROKEN] = np.nan
    greedy = batch(training_stage(), "1000" * 4, small_policy())
    scores = score.score_batch(config, data, embeddings)
    data = replace(data, seconds=5.0)  # a second of them beside the update before
    return metrics.StepRecord(3, data, scores, UPDATED, 1e-4, greedy, SECONDS, policy_lag=1)


def distance(number: int) -> float:
    """Of a failure to the successes, which are all in one place."""
    return 0.1 + 0.01 * number


def expected_rewards(step: metrics.StepRecord) -> dict[int, float]:
    """Number of an episode → its reward: 1, or α·(1 − m) over the failures of a task that has a success."""
    usable = [o for o in step.batch.outcomes if o.number != BROKEN]
    distances = shaped_distances(step)
    low, high = min(distances.values()), max(distances.values())
    nearness = {number: 1 - (value - low) / (high - low) for number, value in distances.items()}
    return {o.number: 1.0 if o.success else ALPHA * nearness.get(o.number, 0.0) for o in usable}


def shaped_distances(step: metrics.StepRecord) -> dict[int, float]:
    """Number of a failure of the task that has a success, and a usable embedding → its distance."""
    own = [o.number for o in step.batch.outcomes if o.spec.task_id == 7 and not o.success]
    return {number: distance(number) for number in own if number != BROKEN}


def test_every_column_of_a_step(step: metrics.StepRecord) -> None:
    row, outcomes, rewards = metrics.metrics_row(step), step.batch.outcomes, expected_rewards(step)
    groups = defaultdict(list)
    for o in outcomes:
        groups[o.group].append(o)
    successes = sum(o.success for o in outcomes)
    failed = [rewards[o.number] for o in outcomes if not o.success and o.number in rewards]
    shaped = list(shaped_distances(step).values())
    equal = [len({rewards[o.number] for o in g if o.number in rewards}) == 1 for g in groups.values()]
    squares = {}
    for number, members in groups.items():
        earned = np.array([rewards[o.number] for o in members if o.number in rewards])
        squares[number] = float((((earned - earned.mean()) / (earned.std(ddof=1) + 1e-6)) ** 2).sum())
    expected = {
        "step": 3,
        "episodes": 27,
        "successes": 6,
        "success_rate": 6 / 27,
        "infra_errors": 1,
        "rounds": 2,
        "policy_lag": 1,
        "groups": 7,
        "groups_kept": 1,
        "filtered_advantage": 1 - squares[0] / sum(squares.values()),
        "groups_without_signal": sum(equal),
        "groups_without_signal_outcome": 6,
        "clusters": 1,
        "fallbacks": 0,
        "unshaped_tasks": 1,
        "compared_with_earlier": 0,
        "failure_reward_mean": float(np.mean(failed)),
        "reward_histogram": [
            sum(min(int(10 * r + 1e-9), 9) == k for r in rewards.values()) for k in range(10)
        ],
        "distance_mean": float(np.mean(shaped)),
        "distance_min": min(shaped),
        "distance_max": max(shaped),
        **UPDATED,
        "learning_rate": 1e-4,
        "evaluation_episodes": 16,
        "evaluation_success_rate": 4 / 16,
        "environment_steps": sum(o.steps for o in outcomes),
        "branches": 0,
        "branch_steps": 0,
        "seconds_rollout": 4.0,
        "seconds_encode": 2.0,
        "seconds_update": 1.0,
        "seconds_evaluate": 0.5,
        "seconds_total": 7.5,
        "episodes_per_second": 27 / 5,
    }
    assert (len(outcomes), successes, len(groups)) == (27, 6, 7)
    measured = {"memory_mb", "gpu_memory_mb"}  # of the machine
    assert set(row) == set(RL_METRICS.columns) == set(expected) | measured
    assert row["memory_mb"] > 50 and (row["gpu_memory_mb"] is None) != torch.cuda.is_available()
    assert json.loads(row.pop("reward_histogram")) == expected.pop("reward_histogram")
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_every_column_of_a_task(step: metrics.StepRecord) -> None:
    rewards, rows = expected_rewards(step), metrics.task_rows(step)
    assert [row["task_id"] for row in rows] == [7, 8]
    for row in rows:
        own = [o for o in step.batch.outcomes if o.spec.task_id == row["task_id"]]
        failures = [o.number for o in own if not o.success and o.number in rewards]
        seven = row["task_id"] == 7
        expected = {
            "step": 3,
            "task_id": row["task_id"],
            "episodes": len(own),
            "successes": 6 if seven else 0,
            "success_rate": 6 / len(own) if seven else 0.0,
            "invalid": int(seven),
            "clusters": int(seven),
            "fallback": False,
            "compared_with_earlier": 0,
            "unshaped": None if seven else "no success",
            "distance_mean": pytest.approx(np.mean([*shaped_distances(step).values()])) if seven else None,
            "failure_reward_mean": pytest.approx(np.mean([rewards[number] for number in failures])),
        }
        assert set(row) == set(TASK_METRICS.columns) == set(expected)
        assert row == expected


def test_every_column_of_a_reward(step: metrics.StepRecord) -> None:
    rewards, rows = expected_rewards(step), metrics.reward_rows(step)
    usable = [o for o in step.batch.outcomes if o.number in rewards]
    assert len(rows) == len(usable) == 26
    for row, o in zip(rows, usable, strict=True):
        group = [rewards[other.number] for other in usable if other.group == o.group]
        spread = float(np.std(group, ddof=1))
        shaped = o.number in shaped_distances(step)
        expected = {
            "step": 3,
            "group": o.group,
            "suite": "libero_goal",
            "task_id": o.spec.task_id,
            "init_state": o.spec.init_state,
            "episode_seed": o.spec.seed,
            "success": o.success,
            "steps": o.steps,
            "distance_to_goal": 0.0 if o.success else pytest.approx(0.3),
            "distance": pytest.approx(distance(o.number), rel=1e-5) if shaped else None,
            "reward": pytest.approx(rewards[o.number], abs=1e-5),
            "advantage": pytest.approx((rewards[o.number] - np.mean(group)) / (spread + 1e-6), abs=1e-4),
            "kept": o.group == 0,
        }
        assert set(row) == set(REWARDS.columns) == set(expected)
        assert row == expected


def test_every_column_of_fine_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over the updates since the row before, of what `update` says; that is checked below."""
    monkeypatch.setattr(sft, "_task_name", lambda config, task: f"task{task}")
    monkeypatch.setattr(sft, "read_demonstrations", lambda path: [demonstration(30, k) for k in range(3)])
    with h5py.File(tmp_path / "task0_demo.hdf5", "w"):
        pass
    seen: list[list[float]] = []
    made = sft.FineTuner.update

    def watched(run: sft.FineTuner, *rest: float) -> list[float]:
        seen.append(made(run, *rest))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(sft.FineTuner, "update", watched)
    config = stage(small_settings(), updates=50)
    sft.train(config, tmp_path, tmp_path / "out", tmp_path / "scratch")
    rows = read_rows(tmp_path / "out/metrics.csv", SFT_METRICS).to_dict("records")
    for row, first, last in zip(rows, (0, 20, 40), (20, 40, 50), strict=True):
        loss, cross_entropy, error = np.mean(seen[first:last], axis=0)
        rate = optim.learning_rate(last - 1, 50, config.sft.learning_rate, config.sft.warmup)
        expected = {
            "update": last,
            "loss": loss,
            "cross_entropy": cross_entropy,
            "position_error": error,
            "learning_rate": rate,
            "seconds": row["seconds"],
        }
        assert set(row) == set(SFT_METRICS.columns) and row == pytest.approx(expected, rel=1e-9)
    seconds = [row["seconds"] for row in rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < 600


def test_what_an_update_of_fine_tuning_says() -> None:
    """Nats a token, under smoothed targets; the auxiliary loss by its weight; errors in normalised units."""
    policy, settings = small_policy(), stage(small_settings(), auxiliary=0.5, label_smoothing=2.0).sft
    model = sft.PolicyWithHead(policy, settings)
    inputs = policy.prepare_inputs(SUITE, *observations(3))
    targets = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 56)))
    proprio = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss, cross_entropy, error = (float(value) for value in model(inputs, targets, proprio))
        p = torch.softmax(policy(inputs).double(), -1).numpy()
        head = model.proprio_head(policy.encode_images(inputs.pixels).flatten(1))  # type: ignore[misc]
        auxiliary = float(functional.smooth_l1_loss(head, proprio))
    bins, centres = np.arange(256), action_tokens.decode(np.arange(256))
    nats, errors = [], []
    for n, k in np.ndindex(3, 56):
        weights = np.exp(-0.5 * ((bins - int(targets[n, k])) / 2.0) ** 2)
        nats.append(-float(weights / weights.sum() @ np.log(p[n, k])))
        if k % 7 < 3:
            errors.append(abs(float(p[n, k] @ centres) - centres[int(targets[n, k])]))
    assert cross_entropy == pytest.approx(np.mean(nats), rel=1e-5)
    assert loss == pytest.approx(np.mean(nats) + 0.5 * auxiliary, rel=1e-5)
    assert error == pytest.approx(np.mean(errors), rel=1e-4)
