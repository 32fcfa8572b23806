"""Rollouts in worker processes: the same episodes however they are spread, and whatever dies on the way."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from srpo import ROOT
from srpo.envs.libero import LiberoEnv
from srpo.episode import CHUNK, Episode, EpisodeSpec, FailedRun, Start
from srpo.policies.checkpoints import load_policy, save_policy
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.rollouts.policy_runner import PolicyRunner
from srpo.world_models import select_frames
from support.sweeping import BOWL, PROTOCOL, STOVE, SUITE

pytestmark = pytest.mark.integration

SPECS = [
    EpisodeSpec(SUITE, task, state, seed=10 * state + task, temperature=1.0, frames=12)
    for state in range(3, 6)
    for task in (STOVE, BOWL)
]
IMPOSSIBLE = EpisodeSpec(SUITE, BOWL, init_state=99, seed=0, temperature=1.0, frames=12)


@pytest.fixture(scope="module")
def policy(policy: Path) -> OpenVLAOFT:
    return load_policy(policy)


@pytest.fixture(scope="module")
def two_workers(policy: OpenVLAOFT) -> Iterator[PolicyRunner]:
    with PolicyRunner(SUITE, PROTOCOL, policy, workers=2) as rollouts:
        yield rollouts


@pytest.fixture(scope="module")
def episodes(two_workers: PolicyRunner) -> dict[EpisodeSpec, Episode]:
    """What two undisturbed workers make of the specs."""
    return by_spec(list(two_workers.run(SPECS)))


def by_spec(results: list[Episode | FailedRun]) -> dict[EpisodeSpec, Episode]:
    """Every episode of SPECS, each of which must be there once."""
    found = {result.spec: result for result in results if isinstance(result, Episode)}
    assert len(results) == len(found) and set(found) == set(SPECS)
    return found


def assert_same(one: Episode, other: Episode) -> None:
    assert (one.spec, one.success, one.steps) == (other.spec, other.success, other.steps)
    for name in ("images", "proprio", "tokens", "log_probs", "valid", "frames", "path"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_episodes_do_not_depend_on_the_workers(
    policy: OpenVLAOFT, episodes: dict[EpisodeSpec, Episode]
) -> None:
    with PolicyRunner(SUITE, PROTOCOL, policy, workers=1) as rollouts:
        alone = by_spec(list(rollouts.run(SPECS)))
    for spec in SPECS:
        assert_same(alone[spec], episodes[spec])
    # What was compared are different episodes, of both outcomes.
    assert len({episode.tokens.tobytes() for episode in alone.values()}) == len(SPECS)
    assert {episode.success for episode in alone.values()} == {True, False}


def test_an_episode_is_what_a_plain_loop_gives(
    policy: OpenVLAOFT, episodes: dict[EpisodeSpec, Episode]
) -> None:
    """One episode step by step in this process, with a picture of every step."""
    spec = SPECS[1]
    episode = episodes[spec]
    env = LiberoEnv(SUITE, spec.task_id, PROTOCOL)
    env.reset(spec.init_state)
    generator = torch.Generator().manual_seed(spec.seed)
    pictures, path, success = [env.render()], [env.proprio()[:3]], False
    distance_to_goal = [env.distance_to_goal()]
    for query, image in enumerate(episode.images):
        assert not success
        np.testing.assert_array_equal(image, pictures[-1])
        np.testing.assert_array_equal(episode.proprio[query], env.proprio())
        inputs = policy.prepare_inputs(SUITE, image[None], [env.task.language], env.proprio()[None])
        tokens, log_probs = policy.act(inputs, spec.temperature, [generator])
        np.testing.assert_array_equal(episode.tokens[query], tokens[0])
        np.testing.assert_array_equal(episode.log_probs[query], log_probs[0])
        for action in policy.actions(SUITE, tokens)[0]:
            if success or env.steps == PROTOCOL.max_steps:
                break
            success = env.step(action)
            pictures.append(env.render())
            path.append(env.proprio()[:3])
            distance_to_goal.append(env.distance_to_goal())
    assert (episode.steps, episode.success) == (env.steps, success)
    np.testing.assert_array_equal(episode.path, path)
    np.testing.assert_array_equal(episode.distance_to_goal, np.array(distance_to_goal, np.float32))
    np.testing.assert_array_equal(episode.valid.sum(1), 7 * np.diff([*range(0, env.steps, CHUNK), env.steps]))
    chosen = select_frames(len(pictures), spec.frames)
    assert (chosen % CHUNK != 0).any(), "some frames are none of those that the policy saw"
    np.testing.assert_array_equal(episode.frames, np.stack(pictures)[chosen])


def test_dead_workers_and_impossible_episodes(
    two_workers: PolicyRunner, episodes: dict[EpisodeSpec, Episode], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both workers are killed while they wait for an answer; nothing of what they asked may linger."""
    results: list[Episode | FailedRun] = []
    killed: list[int] = []
    for result in two_workers.run([*SPECS, IMPOSSIBLE]):
        results.append(result)
        if len(results) == 2:  # both have begun their next episode
            time.sleep(3)  # until both have asked what to do
            for process in multiprocessing.active_children():
                assert process.pid is not None
                process.kill()
                process.join()
                killed.append(process.pid)
    log = capsys.readouterr().out
    assert len(killed) == 2
    for pid in killed:
        assert f"worker process {pid} ended with code -9" in log
    (failed,) = [result for result in results if isinstance(result, FailedRun)]
    assert failed.spec == IMPOSSIBLE
    assert "initial states 0–49, not 99" in failed.error
    assert log.count(f"trying again: {IMPOSSIBLE}") == 2, "three tries"
    results.remove(failed)
    finished = by_spec(results)
    for spec in SPECS:
        assert_same(finished[spec], episodes[spec])


def test_an_unstable_simulation_is_no_failed_episode(two_workers: PolicyRunner) -> None:
    env = LiberoEnv(SUITE, BOWL, PROTOCOL)
    env.reset(3)
    env.data.qvel[0] = 1e11
    spec = replace(SPECS[1], start=Start(0, env.snapshot().tobytes()))
    (failed,) = two_workers.run([spec])
    assert isinstance(failed, FailedRun) and failed.spec == spec
    assert "UnstableSimulationError: the simulation became unstable" in failed.error


def test_a_worker_that_hangs_is_replaced(
    policy: OpenVLAOFT, episodes: dict[EpisodeSpec, Episode], capsys: pytest.CaptureFixture[str]
) -> None:
    """One worker is stopped and one killed in the midst of an episode; every episode is still what it was."""
    with PolicyRunner(SUITE, PROTOCOL, policy, workers=2) as rollouts:
        pool = rollouts._pool
        pool._hang_seconds = 20  # time enough to load a task
        results: list[Episode | FailedRun] = []
        for result in rollouts.run(SPECS):
            results.append(result)
            if len(results) == 2:
                stopped, killed = (worker.process.pid for worker in pool._workers)
                assert stopped is not None and killed is not None
                os.kill(stopped, signal.SIGSTOP)
                os.kill(killed, signal.SIGKILL)
    finished = by_spec(results)
    for spec in SPECS:
        assert_same(finished[spec], episodes[spec])
    log = capsys.readouterr().out
    assert f"worker process {stopped} has said nothing for 2" in log
    assert f"worker process {killed} ended with code -9" in log
    assert log.count("trying again") == 2


def test_batches_lose_and_double_nothing(policy: OpenVLAOFT) -> None:
    with PolicyRunner(SUITE, PROTOCOL.model_copy(update={"batch": 8}), policy, workers=3) as rollouts:
        by_spec(list(rollouts.run(SPECS)))


def test_a_run_that_is_left_early_leaves_nothing_behind(
    two_workers: PolicyRunner, episodes: dict[EpisodeSpec, Episode]
) -> None:
    for _ in two_workers.run(SPECS):
        break
    finished = by_spec(list(two_workers.run(SPECS)))
    for spec in SPECS:
        assert_same(finished[spec], episodes[spec])


def test_interrupting_leaves_no_process_and_no_shared_memory(tmp_path: Path, policy: OpenVLAOFT) -> None:
    """Ctrl-C while workers are busy: their processes end, and what they shared with it."""
    save_policy(policy, tmp_path / "policy")
    script = tmp_path / "run.py"
    script.write_text(
        """
import sys
from pathlib import Path
from support.sweeping import PROTOCOL, SUITE
from srpo.policies.checkpoints import load_policy
from srpo.rollouts.policy_runner import PolicyRunner
from srpo.episode import EpisodeSpec

if __name__ == "__main__":
    specs = [EpisodeSpec(SUITE, 8, state, state, 1.0) for state in range(40)]
    with PolicyRunner(SUITE, PROTOCOL, load_policy(Path(sys.argv[1])), workers=2) as rollouts:
        for result in rollouts.run(specs):
            print("finished", flush=True)
"""
    )
    run = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "policy")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"finished\n"
    shared = shared_memory(run.pid)
    assert shared
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all of them
    run.wait(timeout=30)
    assert run.returncode != 0
    for _ in range(100):
        if not members(run.pid):
            break
        time.sleep(0.1)
    assert not members(run.pid)
    assert not [path for path in shared if path.exists()]


def members(group: int) -> list[str]:
    """The processes of a group."""
    return subprocess.run(["pgrep", "-g", str(group)], capture_output=True, text=True).stdout.split()


def shared_memory(group: int) -> set[Path]:
    """The files of shared memory that processes of a group have mapped."""
    maps = "".join(Path("/proc", member, "maps").read_text() for member in members(group))
    return {Path(name) for name in re.findall(r" (/dev/shm/\S+)", maps)}
