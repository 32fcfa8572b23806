"""Reinforcement learning and evaluation by the command line, killed on the way and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

from srpo.config import Branching, Evaluate, EvaluateStage, Offline
from srpo.episode import EpisodeSpec
from srpo.evaluate import Outputs, evaluate, libero_specs
from srpo.policies.checkpoints import load_policy
from srpo.results.rows import read_rows
from srpo.results.schemas import EPISODES, REWARDS, RL_METRICS, TASK_METRICS
from srpo.rl.branching import run_branches
from srpo.rl.collect import Collector, collect_batch
from srpo.rollouts.episode_store import EpisodeStore
from srpo.rollouts.policy_runner import PolicyRunner
from srpo.runtime.preemption import PREEMPTED
from support.sweeping import (
    BOWL,
    PROTOCOL,
    STOVE,
    SUITE,
    TRAINING,
    without_times,
    write_config,
)

pytestmark = pytest.mark.integration

EVALUATION = EvaluateStage(
    preset="test",
    suite=SUITE,
    tasks=(STOVE,),
    protocol=PROTOCOL.model_copy(update={"max_steps": 29}),  # a greedy sweep takes 28 to 30
    variant="sft",
    seed=0,
    evaluate=Evaluate(states=6),
)
PATIENCE = 300
"""Seconds; a run takes some ten on an idle machine."""


def command(module: str, **options: object) -> list[str]:
    parts = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", module, *parts]


def run(arguments: list[str]) -> str:
    """What a run to its end prints."""
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_and_kill(
    arguments: list[str], when: Callable[[], bool], number: signal.Signals = signal.SIGKILL, code: int = -9
) -> None:
    """Start a run, signal its main process as soon as `when` holds, and see its workers go, too."""
    process = subprocess.Popen(arguments, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while not when():
            assert process.poll() is None, "it ended too early"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(session(process.pid)) > 2, "no workers"
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
        deadline = time.monotonic() + PATIENCE
        while left := session(process.pid):
            assert time.monotonic() < deadline, f"processes {left} outlive the one that started them"
            time.sleep(0.1)
    finally:
        if session(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def session(leader: int) -> list[int]:
    """The running processes of the session that `leader` began."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def test_training_survives_preemption_and_a_kill(policy: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", TRAINING)
    before = load_file(policy / "model.safetensors")

    def training(name: str, workers: int) -> list[str]:
        out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
        return command(
            "srpo.rl.trainer", config=config, policy=policy, out=out, scratch=scratch, workers=workers
        )

    assert "resuming" not in run(training("whole", workers=1))
    scratch = tmp_path / "killed-scratch"

    def episodes(step: int) -> list[Path]:
        return sorted((scratch / "episodes" / f"step-{step:08d}").glob("*.npz"))

    # Preempted once some episodes of the first step have ended, but not all four of them.
    run_and_kill(training("killed", workers=2), lambda: bool(episodes(1)), signal.SIGTERM, PREEMPTED)
    kept = {path: path.stat().st_mtime_ns for path in episodes(1)}
    assert 0 < len(kept) < 4 and not list(scratch.glob("checkpoint-*"))
    # Killed in the second step, with a whole checkpoint; the first went on with what was kept.
    again: dict[Path, int] = {}

    def in_second_step() -> bool:
        with suppress(FileNotFoundError):  # they are removed once there is a checkpoint
            again.update({path: path.stat().st_mtime_ns for path in episodes(1)})
        return bool(episodes(2)) and any(scratch.glob("checkpoint-*/part-*.json"))

    run_and_kill(training("killed", workers=2), in_second_step)
    assert [path.name for path in scratch.glob("checkpoint-*")] == ["checkpoint-00000001"], "not in step 2"
    assert kept.items() <= again.items()
    assert not (tmp_path / "killed/policy").exists()
    log = run(training("killed", workers=1))
    assert "resuming after step 1\n" in log
    assert "step 1:" not in log and "step 2:" in log and "step 3:" in log
    assert {path.name for path in scratch.iterdir()} == {"run.json", "checkpoint-00000003"}
    assert "this run is finished" in (log := run(training("killed", workers=1))) and "step 3:" not in log

    whole, killed = (load_file(tmp_path / name / "policy/model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all((whole[name] == killed[name]).all() for name in whole)
    metrics, others = (read_rows(tmp_path / name / "metrics.csv", RL_METRICS) for name in ("whole", "killed"))
    assert list(others["step"]) == [1, 2, 3]
    pd.testing.assert_frame_equal(without_times(metrics), without_times(others), check_exact=True)
    rewards, others = (
        read_rows(tmp_path / name / "rewards.parquet", REWARDS) for name in ("whole", "killed")
    )
    pd.testing.assert_frame_equal(rewards, others, check_exact=True)
    tasks, others = (read_rows(tmp_path / name / "tasks.csv", TASK_METRICS) for name in ("whole", "killed"))
    pd.testing.assert_frame_equal(tasks, others, check_exact=True)
    assert metrics["evaluation_episodes"].tolist() == [0, 1, 0]

    # And what was compared is training: weights moved before the kill and after it.
    assert any((whole[name] != before[name]).any() for name in whole)
    learnt = metrics["grad_norm"] > 0
    assert learnt[0] and learnt[1:].any()
    assert len(rewards) == 12 and set(rewards["success"]) == {True, False}
    shaped = rewards[rewards["distance"].notna()]
    assert len(shaped) and not shaped["success"].any() and shaped["reward"].between(0, 0.6).all()


def test_rollouts_beside_updates_survive_preemption_and_a_kill(policy: Path, tmp_path: Path) -> None:
    """Both times while the next step's rollouts are on their way: they go on where they were."""
    train = TRAINING.train.model_copy(update={"overlap": 1})
    config = write_config(tmp_path / "config.yaml", TRAINING.model_copy(update={"train": train}))

    def training(name: str, workers: int) -> list[str]:
        out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
        return command(
            "srpo.rl.trainer", config=config, policy=policy, out=out, scratch=scratch, workers=workers
        )

    def episodes(step: int) -> list[Path]:
        return list((tmp_path / f"killed-scratch/episodes/step-{step:08d}").glob("*.npz"))

    def checkpoints() -> set[str]:
        return {path.name for path in (tmp_path / "killed-scratch").glob("checkpoint-*")}

    run(training("whole", workers=1))
    run_and_kill(training("killed", workers=2), lambda: bool(episodes(2)), signal.SIGTERM, PREEMPTED)
    assert not checkpoints() and len(episodes(1)) == 4 and 0 < len(episodes(2)) < 4
    run_and_kill(training("killed", workers=2), lambda: bool(episodes(3)))
    assert checkpoints() == {"checkpoint-00000001"} and len(episodes(2)) >= 4
    assert "resuming after step 1\n" in run(training("killed", workers=1))
    whole, killed = (load_file(tmp_path / name / "policy/model.safetensors") for name in ("whole", "killed"))
    assert all((whole[name] == killed[name]).all() for name in whole)
    metrics, others = (read_rows(tmp_path / name / "metrics.csv", RL_METRICS) for name in ("whole", "killed"))
    pd.testing.assert_frame_equal(without_times(metrics), without_times(others), check_exact=True)
    assert metrics["policy_lag"].tolist() == [0, 1, 1] and (metrics["grad_norm"] > 0).sum() > 1


def test_branches_survive_a_kill(policy: Path, tmp_path: Path) -> None:
    """One step of two rollouts, with two branches from two moments of each, killed among its branches."""
    branching = {"prompts": 1, "steps": 1, "evaluate_every": 0, "branching": Branching(points=2, branches=2)}
    stage = TRAINING.model_copy(
        update={
            "train": TRAINING.train.model_copy(update=branching),
            "reward": TRAINING.reward.model_copy(update={"shaping": "none"}),
            "world_model": None,
        }
    )
    config = write_config(tmp_path / "config.yaml", stage)

    def training(name: str, workers: int) -> list[str]:
        out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
        return command(
            "srpo.rl.trainer", config=config, policy=policy, out=out, scratch=scratch, workers=workers
        )

    def episodes() -> dict[Path, int]:
        """Rollouts and branches that are kept, and when they were."""
        found = (tmp_path / "killed-scratch/episodes/step-00000001").glob("*.npz")
        return {path: path.stat().st_mtime_ns for path in found}

    run(training("whole", workers=1))
    run_and_kill(training("killed", workers=2), lambda: len(episodes()) > 2)
    kept = episodes()
    assert 2 < len(kept) < 10
    # The rest is run here, so that what a step simulates can be seen before its update.
    with PolicyRunner(SUITE, PROTOCOL, load_policy(policy), workers=1) as runner:
        rollouts = Collector(runner, EpisodeStore(tmp_path / "killed-scratch"), Accelerator())
        batch = run_branches(stage, 1, collect_batch(stage, 1, rollouts), rollouts)
    assert batch.simulated == 10 - len(kept) and kept.items() <= episodes().items()
    steps, branched = {}, {}
    for path in episodes():
        with np.load(path) as stored:
            steps[path] = int(stored["steps"])
            branched[path] = json.loads(str(stored["spec"]))["start"] is not None
    run(training("killed", workers=1))

    whole, killed = (load_file(tmp_path / name / "policy/model.safetensors") for name in ("whole", "killed"))
    before = load_file(policy / "model.safetensors")
    assert all((whole[name] == killed[name]).all() for name in whole)
    assert any((whole[name] != before[name]).any() for name in whole)
    metrics, others = (read_rows(tmp_path / name / "metrics.csv", RL_METRICS) for name in ("whole", "killed"))
    pd.testing.assert_frame_equal(without_times(metrics), without_times(others), check_exact=True)
    assert metrics["episodes_per_second"].notna().all() and others["episodes_per_second"].isna().all()
    # Every control step that was simulated is counted, once.
    (row,) = metrics.to_dict("records")
    assert (row["episodes"], row["branches"]) == (2, 8) and len(steps) == 10
    assert row["environment_steps"] == sum(steps.values())
    assert row["branch_steps"] == sum(steps[path] for path in steps if branched[path])


@pytest.mark.parametrize("advantage", ["trajectory", "step"])
def test_offline_training_survives_preemption(policy: Path, tmp_path: Path, advantage: str) -> None:
    settings = Offline.model_validate({"advantage": advantage, "beta": 1.0, "max_weight": 20.0})
    offline = {"offline": settings, "evaluate_every": 0, "steps": 2}
    stage = TRAINING.model_copy(update={"train": TRAINING.train.model_copy(update=offline)})
    config = write_config(tmp_path / "config.yaml", stage)

    def training(name: str) -> list[str]:
        out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
        return command("srpo.rl.trainer", config=config, policy=policy, out=out, scratch=scratch, workers=2)

    run(training("whole"))
    episodes = tmp_path / "stopped-scratch/episodes"
    run_and_kill(training("stopped"), lambda: any(episodes.rglob("*.npz")), signal.SIGUSR1, PREEMPTED)
    log = run(training("stopped"))
    assert "step 1: success" in log and "step 2: success" in log
    whole, stopped = (
        load_file(tmp_path / name / "policy/model.safetensors") for name in ("whole", "stopped")
    )
    assert all((whole[name] == stopped[name]).all() for name in whole)
    rewards = [read_rows(tmp_path / name / "rewards.parquet", REWARDS) for name in ("whole", "stopped")]
    pd.testing.assert_frame_equal(*rewards, check_exact=True)
    metrics = read_rows(tmp_path / "stopped/metrics.csv", RL_METRICS)
    assert metrics["environment_steps"][0] > 0 == metrics["environment_steps"][1]
    assert metrics["seconds_rollout"][1] == 0


def test_evaluation_survives_a_kill(policy: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", EVALUATION)
    whole, out, scratch = tmp_path / "whole.parquet", tmp_path / "killed.parquet", tmp_path / "scratch"
    # Uninterrupted, and with an episode that cannot be run, which must not disturb the others.
    impossible = EpisodeSpec(SUITE, BOWL, init_state=99, seed=99, temperature=0.0)
    specs = libero_specs(EVALUATION)
    evaluate(EVALUATION, [*specs, impossible], policy, Outputs(whole), tmp_path / "whole", workers=1)
    expected = read_rows(whole, EPISODES)
    errors = expected[expected["status"] == "infra_error"]
    assert list(errors["init_state"]) == [99]
    assert "initial states 0–49, not 99" in errors["error"].iloc[0]
    expected = expected.drop(index=errors.index).reset_index(drop=True)
    assert set(expected["status"]) == {"success", "failure"}

    def evaluation(workers: int) -> list[str]:
        return command(
            "srpo.evaluate", config=config, policy=policy, out=out, scratch=scratch, workers=workers
        )

    journal = scratch / "rows.jsonl"
    run_and_kill(
        evaluation(workers=2), when=lambda: journal.exists() and journal.read_text().count("\n") >= 2
    )
    kept = journal.read_text().splitlines()
    assert 2 <= len(kept) < len(specs) and not out.exists()
    log = run(evaluation(workers=1))
    assert f"resuming: {len(kept)} of {len(specs)} episodes are done\n" in log
    assert journal.exists()  # its output may be asked for again
    rows = read_rows(out, EPISODES)
    assert list(rows["init_state"]) == list(range(40, 46))
    pd.testing.assert_frame_equal(without_times(rows), without_times(expected), check_exact=True)
    # Those from before the kill were kept, not run again.
    for line in kept:
        row = json.loads(line)
        same = rows[rows["init_state"] == row["init_state"]]
        assert same["wall_seconds"].item() == row["wall_seconds"]
