"""The expert on real LIBERO, and demonstrations recorded by the command line, killed half-way and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from srpo.config import Demos, DemosStage, Protocol
from srpo.demos.hdf5 import IMAGES, file_name, read_demonstrations, read_recordings
from srpo.demos.record import record
from srpo.envs.expert import run_expert
from srpo.envs.libero import LiberoEnv, init_states, load_task

pytestmark = pytest.mark.integration

CONFIG = DemosStage(
    preset="test",
    suite="libero_goal",
    tasks=(6, 8),
    protocol=Protocol(
        profile="held_out", max_steps=20, settle_steps=10, env_seed=0, image_size=64, render="fast"
    ),
    demos=Demos(source="expert", per_task=1, noise=0.0, seed=3, max_steps=200),  # longer than episodes may be
)
MARK = 123


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations recorded by a run that was killed after the first ones and then started again."""
    folder = tmp_path_factory.mktemp("demos")
    config, out, scratch = folder / "config.yaml", folder / "data", folder / "scratch"
    config.write_text(yaml.safe_dump(json.loads(CONFIG.model_dump_json())))
    command = [sys.executable, "-m", "srpo", "demos", "--config", config, "--out", out, "--scratch", scratch]
    command = [str(part) for part in command]
    killed = subprocess.Popen([*command, "--workers", "1"], start_new_session=True)
    deadline = time.monotonic() + 120
    while not (finished := list(scratch.glob("task*/demo_*.hdf5"))):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not out.exists()
    while _alive(killed.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(killed.pid), "workers outlive the process that started them"
    assert len(finished) == 1
    # A mark in the finished one shows later that it was kept, not recorded again.
    with h5py.File(finished[0], "a") as file:
        file[f"data/demo_0/{IMAGES}"][-1, 0, 0] = MARK
    subprocess.run([*command, "--workers", "2"], check=True)
    assert not scratch.exists()
    return out


def _alive(session: int) -> bool:
    """Whether any process of a session that is led by `session` is running."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            return True
    return False


def test_actions_replay_to_success_through_the_recorded_states(recorded: Path) -> None:
    for task_id in CONFIG.tasks:
        env = LiberoEnv(CONFIG.suite, task_id, CONFIG.protocol)
        path = recorded / file_name(env.task.name)
        for index, recording in enumerate(read_recordings(path)):
            env.reset(index)
            success = False
            for state, action in zip(recording["states"], recording["actions"], strict=True):
                assert not success, "a demonstration ends at its first success"
                np.testing.assert_array_equal(env.state(), state)
                success = env.step(action)
            assert success
        demonstrations = read_demonstrations(path)
        assert [len(d.actions) for d in demonstrations] == [len(d.images) for d in demonstrations]
        env.reset(0)
        np.testing.assert_array_equal(demonstrations[0].images[0], env.render())
        np.testing.assert_array_equal(demonstrations[0].proprio[0], env.proprio())
        assert demonstrations[0].language == env.task.language


def test_killed_run_keeps_what_was_finished(recorded: Path) -> None:
    (kept,) = read_recordings(recorded / file_name(load_task("libero_goal", 6).name))
    assert (kept[IMAGES][-1, 0, 0] == MARK).all()


def test_recording_depends_on_the_configuration_alone(recorded: Path) -> None:
    """The other demonstration again, in this process after another episode."""
    env = LiberoEnv(CONFIG.suite, 8, CONFIG.protocol)
    env.reset(7)
    env.step(np.ones(7))
    again = record(env, CONFIG, index=0)
    (kept,) = read_recordings(recorded / file_name(env.task.name))
    for name, values in kept.items():
        np.testing.assert_array_equal(again[name], values)


def test_file_has_liberos_layout(recorded: Path) -> None:
    task = load_task("libero_goal", 6)
    with h5py.File(recorded / file_name(task.name)) as file:
        data = file["data"]
        assert list(data) == ["demo_0"]
        info = json.loads(data.attrs["problem_info"])
        assert (
            info["language_instruction"] == "put the cream cheese on the bowl"
        )  # of the BDDL file, not of the name
        assert json.loads(data.attrs["env_args"])["env_kwargs"]["camera_heights"] == 64
        assert data.attrs["bddl_file_content"] == task.bddl_file.read_text()
        demo = data["demo_0"]
        steps = demo.attrs["num_samples"]
        assert demo[IMAGES].shape == (steps, 64, 64, 3) and demo[IMAGES].dtype == np.uint8
        assert demo["states"].shape == (steps, init_states("libero_goal", 6).shape[1])
        assert list(demo["dones"]) == list(demo["rewards"]) == [0] * (steps - 1) + [1]
        # Redundant datasets agree: joints are part of the state, the hand's pose is in robot_states.
        np.testing.assert_array_equal(demo["obs/joint_states"], demo["states"][:, 1:8])
        np.testing.assert_array_equal(demo["robot_states"][:, 2:5], demo["obs/ee_pos"])
        np.testing.assert_allclose(np.linalg.norm(demo["robot_states"][:, 5:], axis=1), 1, atol=1e-6)


def test_noise_is_executed_but_not_labelled() -> None:
    """With noise, the labels are not what was executed: replaying them leads elsewhere."""
    env = LiberoEnv("libero_goal", 8, CONFIG.protocol)
    labels: list[np.ndarray] = []
    positions: list[np.ndarray] = []

    def keep(action: np.ndarray) -> None:
        labels.append(action)
        positions.append(env.proprio()[:3])

    rng = np.random.default_rng(0)
    assert run_expert(env, 41, noise=0.15, rng=rng, max_steps=250, before_step=keep)
    assert len(labels) == env.steps
    assert np.abs(labels).max() <= 1
    env.reset(41)
    for action in labels[:20]:
        env.step(action)
    assert np.linalg.norm(env.proprio()[:3] - positions[20]) > 0.005
    assert not run_expert(env, 41, noise=0.0, rng=rng, max_steps=20, before_step=keep), "out of steps"
    assert env.steps == 20
