"""The expert's demonstrations of one task, written in LeRobot's format and imported: SFT sees the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srpo import sft
from srpo.config import Demos, DemosStage, Protocol
from srpo.demos.hdf5 import DemonstrationError, file_name, read_demonstrations, write_recordings
from srpo.demos.lerobot import import_dataset
from srpo.demos.record import record
from srpo.envs.libero import LiberoEnv
from support.lerobot_format import Recorded, write_dataset

pytestmark = pytest.mark.integration

CONFIG = DemosStage(
    preset="test",
    suite="libero_goal",
    tasks=(8,),
    protocol=Protocol(
        profile="held_out", max_steps=200, settle_steps=10, env_seed=0, image_size=64, render="fast"
    ),
    demos=Demos(source="expert", per_task=2, noise=0.1, seed=3),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Recorded]]:
    """A demonstration file of the expert, and the same as episodes."""
    env = LiberoEnv(CONFIG.suite, 8, CONFIG.protocol)
    path = tmp_path_factory.mktemp("expert") / file_name(env.task.name)
    write_recordings(path, {}, (record(env, CONFIG, index) for index in range(2)))
    demonstrations = read_demonstrations(path)
    return path, [Recorded(d.language, d.images, d.proprio, d.actions) for d in demonstrations]


def rlds(episode: Recorded) -> Recorded:
    gripper = (1 - episode.actions[:, 6:]) / 2
    return replace(episode, actions=np.hstack([episode.actions[:, :6], gripper]))


def imported(folder: Path, episodes: list[Recorded], version: str, videos: bool) -> Path:
    write_dataset(folder / "lerobot", episodes, version, videos)
    demos = CONFIG.demos.model_copy(update={"source": str(folder / "lerobot")})
    import_dataset(CONFIG.model_copy(update={"demos": demos}), folder / "demos")
    (file,) = (folder / "demos").iterdir()
    return file


@pytest.mark.parametrize(
    ("version", "videos", "gripper"),
    [("v2.1", False, "libero"), ("v2.1", True, "rlds"), ("v3.0", True, "rlds")],
)
def test_sft_sees_the_same_as_from_hdf5(
    tmp_path: Path, recorded: tuple[Path, list[Recorded]], version: str, videos: bool, gripper: str
) -> None:
    path, episodes = recorded
    stored = list(map(rlds, episodes)) if gripper == "rlds" else episodes
    file = imported(tmp_path, stored, version, videos)
    assert file.name == path.name
    expected, found = read_demonstrations(path), read_demonstrations(file)
    assert len(found) == len(expected)
    for demonstration, original in zip(found, expected, strict=True):
        assert demonstration.language == original.language
        np.testing.assert_array_equal(demonstration.actions, original.actions)
        np.testing.assert_array_equal(demonstration.proprio, original.proprio)
        difference = np.abs(demonstration.images.astype(int) - original.images)
        assert difference.max() == 0 if not videos else difference.mean() < 3
    whole = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}
    one, other = (sft.build_samples(demonstrations, 4, whole) for demonstrations in (expected, found))
    np.testing.assert_array_equal(one.targets, other.targets)
    assert one.instructions == other.instructions


def test_pictures_as_in_liberos_files_are_turned(
    tmp_path: Path, recorded: tuple[Path, list[Recorded]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, episodes = recorded
    turned = [replace(episode, pictures=episode.pictures[:, ::-1, ::-1]) for episode in episodes]
    file = imported(tmp_path, turned, "v3.0", False)
    for found, original in zip(read_demonstrations(file), read_demonstrations(path), strict=True):
        np.testing.assert_array_equal(found.images, original.images)
    assert "2 demonstrations, 2 with pictures as in LIBERO's files" in capsys.readouterr().out


def test_mirrored_pictures_are_refused(tmp_path: Path, recorded: tuple[Path, list[Recorded]]) -> None:
    mirrored = [replace(episode, pictures=episode.pictures[:, ::-1]) for episode in recorded[1]]
    with pytest.raises(DemonstrationError, match=r"observation\.images\.image of episode 0: is upside down"):
        imported(tmp_path, mirrored, "v2.1", False)
    assert not (tmp_path / "demos").exists()
