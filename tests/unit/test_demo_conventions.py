"""Demonstrations in another convention are refused wherever they are read; and why a file cannot be read."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from srpo.config import Demos, DemosStage
from srpo.demos.conventions import Recording
from srpo.demos.hdf5 import (
    IMAGES,
    DemonstrationError,
    file_name,
    read_demonstrations,
    read_recordings,
    write_recordings,
)
from srpo.demos.official import import_all
from srpo.envs.libero import load_task
from support.demonstrations import late, recording
from support.fine_tuning import stage
from support.permissions import as_nobody, readable_by_all
from support.policies import small_settings

NAME = file_name(load_task("libero_goal", 8).name)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Recording], Recording]:
    return lambda values: values | {name: change(values[name].copy())}


def with_value(row: int, column: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[row, column] = value
        return values

    return change


def gripper(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Recording], Recording]:
    return changed("actions", lambda values: np.hstack([values[:, :6], change(values[:, 6:])]))


def resting(values: Recording) -> Recording:
    joints = np.tile(values["obs/joint_states"][:1], (len(values["actions"]), 1))
    states = np.hstack([values["states"][:, :1], joints, values["states"][:, 8:]])
    return values | {"obs/joint_states": joints, "states": states}


def euler(values: Recording) -> Recording:
    angles = Rotation.from_rotvec(values["obs/ee_ori"]).as_euler("xyz")
    return values | {"obs/ee_ori": angles, "obs/ee_states": np.hstack([values["obs/ee_pos"], angles])}


def in_millimetres(values: Recording) -> Recording:
    states = values["obs/ee_states"] * [1000, 1000, 1000, 1, 1, 1]
    return values | {"obs/ee_pos": 1000 * values["obs/ee_pos"], "obs/ee_states": states}


MISTAKES: dict[str, tuple[Callable[[Recording], Recording], str]] = {
    "gripper of RLDS": (gripper(lambda g: (1 - g) / 2), r"as in RLDS.*replace it by 1 - 2 \* gripper"),
    "gripper between": (gripper(lambda g: 0.5 * g), r"a gripper of -0\.5; LIBERO's is -1"),
    "gripper the other way round": (
        gripper(lambda g: -g),
        "close at -1 and open at 1.*replace it by -gripper",
    ),
    "one NaN joint": (
        changed("obs/joint_states", with_value(4, 3, np.nan)),
        "joint_states is not finite in row 4",
    ),
    "one NaN state": (changed("states", with_value(2, 20, np.nan)), "states is not finite in row 2"),
    "one infinite pose": (changed("robot_states", with_value(0, 8, np.inf)), "robot_states is not finite"),
    "words": (changed("actions", lambda v: v.astype("S8")), r"actions is \|S8, not a number"),
    "states without time": (changed("states", lambda s: s[:, 1:]), "states does not begin with the time"),
    "time at rest": (
        changed("states", with_value(5, 0, 0.25)),
        "falls or rests after row 4; rows are missing",
    ),
    "joints in degrees": (changed("obs/joint_states", np.degrees), "fits states neither"),
    "joints in another order": (
        changed("states", lambda s: np.hstack([s[:, :1], s[:, 8:], s[:, 1:8]])),
        "fits states neither",
    ),
    "an arm at rest": (resting, "or both alike"),
    "rows in another order": (changed("obs/joint_states", lambda j: j[::-1]), "fits states neither"),
    "Euler angles": (euler, "must be axis-angle"),
    "millimetres": (in_millimetres, "obs/ee_pos differs by up to .*metres"),
    "quaternions wxyz": (
        changed("robot_states", lambda r: np.hstack([r[:, :5], r[:, 8:], r[:, 5:8]])),
        "the quaternion xyzw",
    ),
    "no quaternions": (changed("robot_states", lambda r: r * ([1] * 5 + [0] * 4)), "quaternion of length 1"),
}


@pytest.mark.parametrize("official", [False, True], ids=["ours", "official"])
@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_another_convention_is_refused(
    tmp_path: Path, mistake: Callable[[Recording], Recording], message: str, official: bool
) -> None:
    """In the second demonstration of a file, by those who train on it and by those who import it."""
    values = recording(12, seed=1)
    wrong = mistake(late(values) if official else values)
    write_recordings(tmp_path / NAME, {}, [recording(12), wrong])
    assert len(read_demonstrations(tmp_path / NAME, limit=1)) == 1
    with pytest.raises(DemonstrationError, match=rf"{NAME}: data/demo_1/.*{message}"):
        read_demonstrations(tmp_path / NAME)
    with pytest.raises(DemonstrationError, match=rf"{NAME}: data/demo_1/.*{message}"):
        import_all(importing(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def importing(source: Path, per_task: int = 2) -> DemosStage:
    training = stage(small_settings())
    return DemosStage(
        preset="test",
        suite="libero_goal",
        tasks=(8,),
        protocol=training.protocol,
        demos=Demos(source=str(source), per_task=per_task, noise=0.0, seed=0),
    )


def test_a_single_step_cannot_be_aligned(tmp_path: Path) -> None:
    write_recordings(tmp_path / NAME, {}, [recording(1)])
    with pytest.raises(DemonstrationError, match="nobody can tell whether it is before its action"):
        read_demonstrations(tmp_path / NAME)


@pytest.mark.parametrize("convention", ["opencv", np.bytes_(b"opencv"), "upright"])
def test_pictures_in_another_row_order_are_refused(tmp_path: Path, convention: object) -> None:
    write_recordings(tmp_path / NAME, {"macros_image_convention": convention}, [recording(12)])
    for read in (read_demonstrations, lambda path: list(read_recordings(path))):
        with pytest.raises(
            DemonstrationError, match=r"macros_image_convention is '(opencv|upright)'.*upside"
        ):
            read(tmp_path / NAME)
    with pytest.raises(DemonstrationError, match="macros_image_convention"):
        import_all(importing(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("attributes", [{}, {"macros_image_convention": np.bytes_(b"opengl")}])
def test_opengl_is_read_however_it_is_written(tmp_path: Path, attributes: dict[str, object]) -> None:
    write_recordings(tmp_path / NAME, attributes, [recording(12)])
    assert len(read_demonstrations(tmp_path / NAME)) == 1


def test_late_observations_are_shifted_back_without_an_import(tmp_path: Path) -> None:
    """Whoever trains on LIBERO's own files gets the observation before each action, not after it."""
    values = recording(12)
    write_recordings(tmp_path / NAME, {}, [late(values)])
    (demonstration,) = read_demonstrations(tmp_path / NAME)
    np.testing.assert_array_equal(demonstration.images, values[IMAGES][1:-1, ::-1, ::-1])
    np.testing.assert_array_equal(demonstration.actions, values["actions"][1:-1].astype(np.float32))


def test_a_replay_that_differs_a_little_is_still_aligned(tmp_path: Path) -> None:
    values = recording(12)
    noise = np.random.default_rng(0).normal(0, 0.01, (12, 7))
    write_recordings(
        tmp_path / NAME, {}, [late(values | {"obs/joint_states": values["obs/joint_states"] + noise})]
    )
    (demonstration,) = read_demonstrations(tmp_path / NAME)
    np.testing.assert_array_equal(demonstration.actions, values["actions"][1:-1].astype(np.float32))


def test_the_import_says_which_alignment_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recordings(tmp_path / NAME, {}, [late(recording(12)), recording(12, seed=1)])
    import_all(importing(tmp_path), tmp_path / "out")
    said = capsys.readouterr().out
    assert f"{NAME}: 2 demonstrations, 1 with observations from after the action, shifted back" in said


# ---- files that cannot be read -----------------------------------------------------------------------


@pytest.fixture
def file() -> Iterator[Path]:
    """A whole file, in a folder that everyone may enter."""
    with readable_by_all() as folder:
        write_recordings(folder / NAME, {}, [recording(12)])
        yield folder / NAME


def test_a_locked_file_is_not_called_corrupt(file: Path) -> None:
    with file.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(DemonstrationError, match=r"is locked.*HDF5_USE_FILE_LOCKING=FALSE") as caught:
            read_demonstrations(file)
    assert "Delete" not in str(caught.value) and len(read_demonstrations(file)) == 1


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_forbidden_file_is_not_called_corrupt(file: Path, closed: str) -> None:
    target = file if closed == "file" else file.parent
    mode = target.stat().st_mode
    target.chmod(0)
    try:
        with as_nobody(), pytest.raises(DemonstrationError, match="this user may not read it") as caught:
            read_demonstrations(file)
    finally:
        target.chmod(mode)
    assert "Delete" not in str(caught.value)


def test_a_folder_in_place_of_a_file_is_not_called_corrupt(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationError, match="could not be read, though it may be whole") as caught:
        read_demonstrations(tmp_path)
    assert "Delete" not in str(caught.value)


def test_only_a_damaged_file_is_to_be_deleted(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DemonstrationError, match=r"truncated .*Delete it"):
        read_demonstrations(file)
    file.write_bytes(b"no HDF5 at all")
    with pytest.raises(DemonstrationError, match=r"corrupt .*Delete it"):
        read_demonstrations(file)
    file.unlink()
    with pytest.raises(DemonstrationError, match="no such file"):
        read_demonstrations(file)
