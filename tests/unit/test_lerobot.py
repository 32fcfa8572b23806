"""LIBERO in LeRobot's format: every layout is read; damage and other conventions are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from srpo.demos import conventions
from srpo.demos.hdf5 import DemonstrationError, read_demonstrations, read_recordings, write_recordings
from srpo.demos.lerobot import (
    Rows,
    _checked,
    _recording,
    are_late,
    choose,
    in_liberos_convention,
    is_dataset,
    read_dataset,
    read_pictures,
    read_rows,
)
from support.lerobot_format import LAYOUTS, Recorded, moving, write_dataset

LENGTHS = (24, 31, 27)


def episodes() -> list[Recorded]:
    return [moving(length, seed) for seed, length in enumerate(LENGTHS)]


def numbers(episode: Recorded) -> tuple[np.ndarray, np.ndarray]:
    return episode.actions.astype(np.float32), episode.poses.astype(np.float32)


@pytest.mark.parametrize("videos", [False, True], ids=["pictures", "videos"])
@pytest.mark.parametrize("version", LAYOUTS)
def test_every_layout_is_read(tmp_path: Path, version: str, videos: bool) -> None:
    written = episodes()
    write_dataset(tmp_path, written, version, videos)
    assert is_dataset(tmp_path) and not is_dataset(tmp_path / "data")
    dataset = read_dataset(tmp_path)
    assert [episode.length for episode in dataset.episodes] == list(LENGTHS)
    for episode, expected in zip(dataset.episodes, written, strict=True):
        rows = read_rows(dataset, episode)
        for values, wanted in zip((rows.actions, rows.poses), numbers(expected), strict=True):
            np.testing.assert_array_equal(values, wanted)
        pictures = read_pictures(dataset, episode)
        if not videos:
            np.testing.assert_array_equal(pictures, expected.pictures)
            continue
        # Brightness rises by 3 a step: each frame is that of its own step, not of its neighbour.
        error = pictures.mean((1, 2, 3)) - expected.pictures.mean((1, 2, 3))
        assert np.abs(error).max() < 1.5


def test_names_of_other_conversions_are_read(tmp_path: Path) -> None:
    write_dataset(tmp_path, episodes(), "v2.0", False, ("image", "state", "actions"))
    dataset = read_dataset(tmp_path)
    assert (dataset.camera, dataset.state, dataset.action) == ("image", "state", "actions")
    assert read_rows(dataset, dataset.episodes[0]).actions.shape == (24, 7)


def test_episodes_are_chosen_by_instruction(tmp_path: Path) -> None:
    names = ["Put the  bowl on the plate.", "open the drawer", "put the bowl on the plate"]
    written = [moving(20, seed, name) for seed, name in enumerate(names)]
    write_dataset(tmp_path, written, "v2.1", False)
    dataset = read_dataset(tmp_path)
    chosen = choose(dataset, {"plate": "put the bowl on the plate"}, 2)
    assert [episode.index for episode in chosen["plate"]] == [0, 2]
    with pytest.raises(
        DemonstrationError, match=r"demos\.per_task is 3, but it has 2 of 'put the bowl on the"
    ):
        choose(dataset, {"plate": "put the bowl on the plate"}, 3)
    with pytest.raises(
        DemonstrationError, match=r"0 of 'turn on the stove'.*\['open the drawer', 'put the bowl"
    ):
        choose(dataset, {"stove": "turn on the stove"}, 1)


# ---- conventions


def checked(tmp_path: Path, change: Callable[[Recorded], Recorded]) -> tuple[list[Rows], bool, bool]:
    """As an import does before it decodes pictures: rows, whether the gripper was RLDS's, whether late."""
    write_dataset(tmp_path, list(map(change, episodes())), "v3.0", False)
    dataset = read_dataset(tmp_path)
    rows, from_rlds = in_liberos_convention([read_rows(dataset, episode) for episode in dataset.episodes])
    return rows, from_rlds, _checked(dataset, rows)


def late(episode: Recorded) -> Recorded:
    return Recorded(episode.instruction, episode.pictures[1:], episode.poses[1:], episode.actions[:-1])


def with_gripper(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Recorded], Recorded]:
    def changed(episode: Recorded) -> Recorded:
        return replace(episode, actions=np.hstack([episode.actions[:, :6], change(episode.actions[:, 6:])]))

    return changed


def with_pose(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Recorded], Recorded]:
    return lambda episode: replace(episode, poses=change(episode.poses))


def euler(poses: np.ndarray) -> np.ndarray:
    angles = Rotation.from_rotvec(poses[:, 3:6]).as_euler("xyz")
    return np.hstack([poses[:, :3], angles, poses[:, 6:]])


def test_liberos_convention_passes_unchanged(tmp_path: Path) -> None:
    rows, from_rlds, is_late = checked(tmp_path, lambda episode: episode)
    assert not from_rlds and not is_late
    np.testing.assert_array_equal(rows[1].actions, numbers(episodes()[1])[0])


def test_a_gripper_of_rlds_is_converted(tmp_path: Path) -> None:
    rows, from_rlds, is_late = checked(tmp_path, with_gripper(lambda g: (1 - g) / 2))
    assert from_rlds and not is_late
    np.testing.assert_array_equal(rows[2].actions, numbers(episodes()[2])[0])


def test_late_observations_are_noticed(tmp_path: Path) -> None:
    assert checked(tmp_path, late)[2]


def test_contradicting_episodes_are_refused() -> None:
    first, second, third = episodes()
    mixed = [Rows(None, *numbers(e)) for e in (first, late(second), third)]  # type: ignore[arg-type]
    mixed = [replace(one, episode=_Numbered(k)) for k, one in enumerate(mixed)]  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"after the action in 1 episodes \(the first: 1\).*in 2 \(the first: 0"
    ):
        are_late(mixed)


class _Numbered:
    def __init__(self, index: int) -> None:
        self.index = index


def test_a_gripper_that_never_moves_tells_nothing() -> None:
    actions, poses = numbers(moving(20))
    actions[:, 6] = -1
    assert conventions.fingers_are_late(actions, poses[:, 6:]) is None


MISTAKES: dict[str, tuple[Callable[[Recorded], Recorded], str]] = {
    "joint angles": (
        with_pose(lambda p: np.hstack([np.linspace(-1, 1, len(p))[:, None] * np.ones(7), p[:, 6:7]])),
        r"episode 0: observation\.state does not end with the positions of two fingers.*not joint angles",
    ),
    "Euler angles": (
        with_pose(euler),
        "observation.state has orientations that do not turn about z.*not Euler",
    ),
    "millimetres": (
        with_pose(lambda p: p * np.array([1000] * 3 + [1] * 5)),
        "has positions that go 11 in a step for a full action",
    ),
    "actions of another frame": (
        lambda e: replace(e, actions=e.actions * np.array([-1, -1, -1, 1, 1, 1, 1])),
        "do not go where actions send the hand",
    ),
    "normalised actions": (
        lambda e: replace(e, actions=e.actions * np.array([0.01] * 6 + [1])),
        "not normalised by a data set's statistics",
    ),
    "one NaN": (
        with_pose(lambda p: np.where(np.arange(p.size).reshape(p.shape) == 8 * 4, np.nan, p)),
        "observation.state is not finite in row 4",
    ),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_another_convention_is_refused(
    tmp_path: Path, mistake: Callable[[Recorded], Recorded], message: str
) -> None:
    with pytest.raises(DemonstrationError, match=message):
        checked(tmp_path, mistake)


def scene(size: int = 32) -> np.ndarray:
    """A picture that looks different from every side, with noise like a video's."""
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    return (80 + np.stack([100 * x, 100 * y, 60 * x * y], axis=-1)).astype(np.uint8)


def test_pictures_are_turned_as_the_scene_is() -> None:
    noisy = (scene() + np.random.default_rng(0).integers(0, 12, scene().shape)).astype(np.uint8)
    assert not conventions.is_turned(noisy, scene())
    assert conventions.is_turned(noisy[::-1, ::-1], scene())
    with pytest.raises(ValueError, match="is upside down beside"):
        conventions.is_turned(noisy[::-1], scene())
    with pytest.raises(ValueError, match="is mirrored beside"):
        conventions.is_turned(noisy[:, ::-1], scene())
    with pytest.raises(ValueError, match="does not show the task's scene"):
        conventions.is_turned(np.where(noisy > 100, 0, 255).astype(np.uint8), scene())


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("is_late", [False, True])
def test_an_episode_becomes_a_demonstration(tmp_path: Path, turned: bool, is_late: bool) -> None:
    """What SFT reads from the file that an import writes: pictures, poses and actions of one moment."""
    truth = moving(25)
    truth = replace(truth, pictures=np.stack([scene() + k for k in range(25)]).astype(np.uint8))
    stored = replace(truth, pictures=truth.pictures[:, ::-1, ::-1]) if turned else truth
    write_dataset(tmp_path, [late(stored) if is_late else stored], "v2.1", False)
    dataset = read_dataset(tmp_path)
    recording, was_turned = _recording(dataset, read_rows(dataset, dataset.episodes[0]), scene(), is_late)
    assert was_turned == turned
    path = tmp_path / "put_the_bowl_on_the_plate_demo.hdf5"
    write_recordings(path, {"lerobot": "v2.1"}, [recording])
    (demonstration,) = read_demonstrations(path)
    rows = slice(1, -1) if is_late else slice(None)
    np.testing.assert_array_equal(demonstration.images, truth.pictures[rows])
    actions, poses = numbers(truth)
    np.testing.assert_array_equal(demonstration.actions, actions[rows])
    np.testing.assert_array_equal(demonstration.proprio, poses[rows])


def test_only_imported_files_may_lack_the_simulators_states(tmp_path: Path) -> None:
    write_dataset(tmp_path, [replace(moving(25), pictures=np.stack([scene()] * 25))], "v2.1", False)
    dataset = read_dataset(tmp_path)
    recording, _ = _recording(dataset, read_rows(dataset, dataset.episodes[0]), scene(), False)
    write_recordings(tmp_path / "a_demo.hdf5", {}, [recording])
    with pytest.raises(DemonstrationError, match="lacks states, robot_states"):
        list(read_recordings(tmp_path / "a_demo.hdf5"))
    flipped = recording | {"actions": recording["actions"] * np.float32([1, 1, 1, 1, 1, 1, -1])}
    write_recordings(tmp_path / "b_demo.hdf5", {"lerobot": "v2.1"}, [flipped])
    with pytest.raises(DemonstrationError, match=r"demo_0/actions has a gripper whose fingers close at -1"):
        list(read_recordings(tmp_path / "b_demo.hdf5"))


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, [moving(25)], "v2.1", False)
    dataset = read_dataset(tmp_path)
    with pytest.raises(DemonstrationError, match=r"\(32, 32\), but protocol\.image_size is 64"):
        _recording(dataset, read_rows(dataset, dataset.episodes[0]), scene(64), False)


def test_idle_steps_are_counted_as_openvla_does() -> None:
    actions = np.zeros((5, 7))
    actions[:, 6] = [-1, -1, 1, 1, 1]
    actions[4, 0] = 0.5
    assert conventions.idle_steps(actions) == 3  # the first, the second, the fourth; the third closes


# ---- damage


def _edit_info(folder: Path, **changes: object) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, r"info\.json: codebase_version is 'v1\.6'; v2\.0, v2\.1 and v3\.0"),
        ({"features": {"wrist": {}}}, r"features has no camera under a known name.*but \['wrist'\]"),
        ({"features": None}, r"info\.json: no metadata of LeRobot's format.*Download it again"),
        ({"data_path": "data/{nothing}.parquet"}, r"episodes\.jsonl: no episode.*nothing"),
    ],
)
def test_wrong_metadata_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_dataset(tmp_path, [moving(20)], "v2.1", False)
    _edit_info(tmp_path, **changes)
    with pytest.raises(DemonstrationError, match=message):
        read_dataset(tmp_path)


def test_a_state_of_another_size_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, [moving(20)], "v2.1", False)
    features = json.loads((tmp_path / "meta/info.json").read_text())["features"]
    _edit_info(tmp_path, features=features | {"observation.state": {"dtype": "float32", "shape": [9]}})
    with pytest.raises(DemonstrationError, match=r"features\.observation\.state has shape \[9\], not \[8\]"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_damaged_rows_and_videos_are_refused(tmp_path: Path, version: str) -> None:
    write_dataset(tmp_path, episodes(), version, True)
    dataset = read_dataset(tmp_path)
    episode = dataset.episodes[2]
    assert episode.video is not None
    whole = episode.video.read_bytes()
    episode.video.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DemonstrationError, match=r"\.mp4: not a whole video.*Git LFS"):
        read_pictures(dataset, episode)
    episode.video.write_bytes(whole)
    longer = replace(episode, length=episode.length + 3)
    with pytest.raises(DemonstrationError, match="27 pictures for 30 rows"):
        read_pictures(dataset, longer)
    with pytest.raises(DemonstrationError, match="27 rows whose frame_index is not 0 to 29"):
        read_rows(dataset, longer)
    episode.video.unlink()
    with pytest.raises(DemonstrationError, match=r"\.mp4: no such file"):
        read_pictures(dataset, episode)
    episode.rows.write_bytes(episode.rows.read_bytes()[:-20])
    with pytest.raises(DemonstrationError, match=r"\.parquet: not a whole Parquet file.*Download it again"):
        read_rows(dataset, episode)
    episode.rows.unlink()
    with pytest.raises(DemonstrationError, match=r"\.parquet: no such file"):
        read_rows(dataset, episode)
