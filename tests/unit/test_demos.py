"""Demonstration files: written ones are read back, damaged ones are refused, official ones are imported."""

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from srpo import sft
from srpo.config import Demos, DemosStage, Protocol
from srpo.demos.conventions import aligned
from srpo.demos.hdf5 import (
    IMAGES,
    LAYOUT,
    DemonstrationError,
    file_name,
    instruction,
    read_demonstrations,
    read_recordings,
    write_recordings,
)
from srpo.demos.official import import_all
from srpo.envs.expert.arm import NOISE_CORRELATION, NOISE_SCALE, CorrelatedNoise
from srpo.envs.libero import load_task
from srpo.policies.checkpoints import load_policy
from support.demonstrations import late, recording
from support.fine_tuning import stage as sft_stage
from support.policies import small_settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of twelve demonstrations of 3, 4, ... steps."""
    path = tmp_path / "put_the_bowl_on_the_stove_demo.hdf5"
    write_recordings(path, {"problem_info": "{}"}, (recording(3 + i, seed=i) for i in range(12)))
    return path


def test_round_trip_keeps_every_array_and_the_order(path: Path) -> None:
    read = list(read_recordings(path))
    assert len(read) == 12
    for i, values in enumerate(read):
        expected = recording(3 + i, seed=i)
        assert values.keys() == expected.keys()
        for name in LAYOUT:
            np.testing.assert_array_equal(values[name], expected[name])
            assert values[name].dtype == expected[name].dtype
    with h5py.File(path) as file:
        assert file["data"].attrs["num_demos"] == 12
        assert file["data"].attrs["total"] == sum(range(3, 15))
        np.testing.assert_array_equal(
            file["data/demo_3"].attrs["init_state"], recording(6, seed=3)["states"][0]
        )


def test_read_demonstrations_turns_images_and_joins_proprioception(path: Path) -> None:
    demonstrations = read_demonstrations(path, limit=2)
    assert len(demonstrations) == 2
    demonstration, expected = demonstrations[1], recording(4, seed=1)
    assert demonstration.language == "put the bowl on the stove"
    # The file's first pixel (OpenGL's bottom left) is the official picture's last.
    np.testing.assert_array_equal(demonstration.images[:, -1, -1], expected[IMAGES][:, 0, 0])
    np.testing.assert_array_equal(demonstration.images, np.rot90(expected[IMAGES], 2, axes=(1, 2)))
    np.testing.assert_array_equal(demonstration.actions, expected["actions"].astype(np.float32))
    assert demonstration.proprio.shape == (4, 8) and demonstration.proprio.dtype == np.float32
    np.testing.assert_allclose(demonstration.proprio[:, :6], expected["obs/ee_states"], rtol=1e-6)
    np.testing.assert_allclose(demonstration.proprio[:, 6:], expected["obs/gripper_states"], rtol=1e-6)


@pytest.mark.parametrize("name", ["actions", "rewards", "obs/ee_pos"])
def test_text_in_place_of_an_array_is_refused(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[f"data/demo_1/{name}"]
        file[f"data/demo_1/{name}"] = "text"
    with pytest.raises(DemonstrationError, match=r"demo_1/.* has shape"):
        read_demonstrations(path)


def test_an_array_in_place_of_a_demonstration_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"]
        file["data/demo_1"] = [1, 2]
    with pytest.raises(DemonstrationError, match="demo_1 is no group"):
        read_demonstrations(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_truncated_file_is_refused_by_name(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DemonstrationError, match=rf"{path.name}.*(truncated|corrupt).*record it again"):
        read_demonstrations(path)


def test_damaged_data_is_refused(path: Path) -> None:
    """A run of flipped bytes inside a picture: the checksum notices."""
    with h5py.File(path) as file:
        chunk = file[f"data/demo_5/{IMAGES}"].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    middle = chunk.byte_offset + chunk.size // 2
    content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    path.write_bytes(content)
    assert len(read_demonstrations(path, limit=5)) == 5
    with pytest.raises(DemonstrationError, match=rf"{path.name}.*corrupt"):
        read_demonstrations(path)


def test_damage_anywhere_never_gives_wrong_arrays(path: Path) -> None:
    """Wherever 32 bytes are lost, reading either fails cleanly or returns exactly what was written."""
    content = path.read_bytes()
    expected = read_demonstrations(path)
    rng = np.random.default_rng(0)
    refused = 0
    for start in rng.integers(0, len(content) - 32, 40):
        damaged = bytearray(content)
        damaged[start : start + 32] = rng.bytes(32)
        path.write_bytes(damaged)
        try:
            read = read_demonstrations(path)
        except DemonstrationError:
            refused += 1
            continue
        for demonstration, original in zip(read, expected, strict=True):
            np.testing.assert_array_equal(demonstration.images, original.images)
            np.testing.assert_array_equal(demonstration.actions, original.actions)
            np.testing.assert_array_equal(demonstration.proprio, original.proprio)
    assert refused > 30


def test_missing_file_and_missing_group_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "task_demo.hdf5"
    with pytest.raises(DemonstrationError, match=r"task_demo\.hdf5: no such file"):
        read_demonstrations(path)
    with h5py.File(path, "w") as file:
        file.create_group("other")
    with pytest.raises(DemonstrationError, match=r"task_demo\.hdf5: has no group `data`"):
        read_demonstrations(path)


def test_missing_dataset_is_refused(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["data/demo_2/obs/ee_states"]
    with pytest.raises(DemonstrationError, match="data/demo_2 lacks obs/ee_states"):
        read_demonstrations(path)


def test_too_few_demonstrations_are_refused(path: Path) -> None:
    with pytest.raises(DemonstrationError, match="holds 12 demonstrations, not 13"):
        read_demonstrations(path, limit=13)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("actions", np.zeros((3, 6)), r"shape \(3, 6\), not \(3, 7\)"),
        ("obs/ee_states", np.zeros((2, 6)), r"shape \(2, 6\), not \(3, 6\)"),
        (IMAGES, np.zeros((3, 16, 16, 3)), "float64, not uint8"),
        ("actions", np.full((3, 7), np.nan), "not finite"),
        ("actions", np.full((3, 7), 1.5), r"leaves \[-1, 1\]"),
    ],
)
def test_wrong_dataset_is_refused(path: Path, name: str, values: np.ndarray, message: str) -> None:
    with h5py.File(path, "a") as file:
        del file[f"data/demo_0/{name}"]
        file[f"data/demo_0/{name}"] = values
    with pytest.raises(DemonstrationError, match=message):
        read_demonstrations(path)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted():
        yield recording(3)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_recordings(tmp_path / "demo.hdf5", {}, interrupted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_instruction_is_liberos(suite: str) -> None:
    for task_id in range(10):
        task = load_task(suite, task_id)
        assert instruction(task.name) == task.language


def stage(source: Path, per_task: int, image_size: int = 16) -> DemosStage:
    return DemosStage(
        preset="test",
        suite="libero_goal",
        tasks=(1, 8),
        protocol=Protocol(
            profile="official",
            max_steps=300,
            settle_steps=10,
            env_seed=0,
            image_size=image_size,
            render="fast",
        ),
        demos=Demos(source=str(source), per_task=per_task, noise=0.0, seed=0),
    )


def test_official_observations_are_shifted_back() -> None:
    values = recording(9)
    shifted = aligned(late(values))
    for name in LAYOUT:
        np.testing.assert_array_equal(shifted[name], values[name][1:-1])
    unchanged = aligned(values)
    for name in LAYOUT:
        np.testing.assert_array_equal(unchanged[name], values[name])


def test_official_files_are_imported(tmp_path: Path) -> None:
    config = stage(tmp_path / "official", per_task=2)
    names = [file_name(load_task("libero_goal", task).name) for task in config.tasks]
    info = json.dumps({"language_instruction": "whatever"})
    for i, name in enumerate(names):
        made = (late(recording(9, seed=10 * i + j)) for j in range(3))
        write_recordings(tmp_path / "official" / name, {"problem_info": info}, made)
    import_all(config, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(names)
    for i, name in enumerate(names):
        demonstrations = read_demonstrations(tmp_path / "out" / name)
        assert len(demonstrations) == 2
        for j, demonstration in enumerate(demonstrations):
            expected = recording(9, seed=10 * i + j)["actions"][1:-1]
            np.testing.assert_array_equal(demonstration.actions, expected.astype(np.float32))
        with h5py.File(tmp_path / "out" / name) as file:
            assert file["data"].attrs["problem_info"] == info


def official(path: Path, steps: int, late: bool, size: int) -> list[dict[str, np.ndarray]]:
    """Two demonstrations written as by LIBERO's script (create_dataset.py): rendered after the action.

    Not `late`: as by OpenVLA's (regenerate_libero_dataset.py), which renders before and writes no attributes
    of `data`. Returns the true value at each time step: upright picture, joints, pose, fingers, action.
    """
    truth = []
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number in range(2):
            rng = np.random.default_rng(number)
            command = np.where(np.arange(steps) < steps // 2, -1.0, 1.0)
            opening = 0.04 - 0.03 * (np.append(-1.0, command[:-1]) > 0)
            true = {
                "picture": rng.integers(0, 256, (steps, size, size, 3), dtype=np.uint8),
                "joints": np.cumsum(rng.normal(size=(steps, 7)), axis=0),
                "pose": rng.normal(size=(steps, 6)),
                "fingers": np.stack([opening, -opening], axis=1),
                "action": np.column_stack([np.round(rng.uniform(-1, 1, (steps, 6)), 3), command]),
            }
            truth.append(true)
            acted, observed = (slice(0, -1), slice(1, None)) if late else (slice(None), slice(None))
            rows = len(true["action"][acted])
            group = data.create_group(f"demo_{number}")
            obs = group.create_group("obs")
            obs["agentview_rgb"] = true["picture"][observed, ::-1, ::-1]
            obs["eye_in_hand_rgb"] = np.zeros((rows, size, size, 3), np.uint8)
            obs["ee_pos"], obs["ee_ori"] = true["pose"][observed, :3], true["pose"][observed, 3:]
            obs["ee_states"] = true["pose"][observed]
            obs["gripper_states"], obs["joint_states"] = true["fingers"][observed], true["joints"][observed]
            group["actions"] = true["action"][acted]
            moments = np.arange(rows)[:, None] / 20
            quaternions = Rotation.from_rotvec(true["pose"][:, 3:]).as_quat()
            poses = np.hstack([true["fingers"], true["pose"][:, :3], quaternions])
            group["states"] = np.hstack([moments, true["joints"][acted], rng.normal(size=(rows, 60))])
            group["robot_states"] = poses[observed]
            group["rewards"] = group["dones"] = (np.arange(rows) == rows - 1).astype(np.uint8)
            group.attrs["num_samples"], group.attrs["init_state"] = rows, group["states"][0]
            group.attrs["model_file"] = "<mujoco/>"
        if late:
            data.attrs["macros_image_convention"], data.attrs["tag"] = "opengl", "libero-v1"
            data.attrs["num_demos"], data.attrs["env_name"] = 2, "Libero_Tabletop_Manipulation"
    return truth


@pytest.mark.parametrize("late", [True, False])
def test_a_policy_is_trained_on_official_files(tmp_path: Path, late: bool) -> None:
    """From a file of another project to samples of the observation just before each action."""
    steps, size = 21, 32
    config = stage(tmp_path / "official", per_task=2, image_size=size).model_copy(update={"tasks": (8,)})
    task = load_task("libero_goal", 8)
    (tmp_path / "official").mkdir()
    truth = official(tmp_path / "official" / file_name(task.name), steps, late, size)
    import_all(config, tmp_path / "demos")
    demonstrations = read_demonstrations(tmp_path / "demos" / file_name(task.name))
    # With late observations, the first action's and the last action have no pair in the file.
    rows = slice(1, -1) if late else slice(None)
    for demonstration, true in zip(demonstrations, truth, strict=True):
        assert demonstration.language == task.language
        np.testing.assert_array_equal(demonstration.images, true["picture"][rows])
        np.testing.assert_array_equal(demonstration.actions, true["action"][rows].astype(np.float32))
        proprio = np.hstack([true["pose"], true["fingers"]])[rows]
        np.testing.assert_array_equal(demonstration.proprio, proprio.astype(np.float32))
    settings = sft_stage(small_settings(), updates=1).model_copy(update={"tasks": (8,)})
    sft.train(settings, tmp_path / "demos", tmp_path / "out", tmp_path / "scratch")
    policy = load_policy(tmp_path / "out/policy")
    actions = np.concatenate([demonstration.actions for demonstration in demonstrations])
    low, high = (np.quantile(actions[:, :6], q, axis=0) for q in (0.01, 0.99))
    statistics = policy.statistics("libero_goal")["action"]
    np.testing.assert_allclose(statistics["q01"][:6], low, atol=1e-6)
    np.testing.assert_allclose(statistics["q99"][:6], high, atol=1e-6)
    (row,) = csv.DictReader((tmp_path / "out/metrics.csv").open())
    assert row["update"] == "1" and 0 < float(row["cross_entropy"]) < 10


def test_import_names_what_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    first, second = (file_name(load_task("libero_goal", task).name) for task in (1, 8))
    write_recordings(tmp_path / first, {}, [recording(9)])
    with pytest.raises(DemonstrationError, match=rf"demos\.source\) lacks {second}\."):
        import_all(stage(tmp_path, per_task=1), tmp_path / "out")
    write_recordings(tmp_path / second, {}, [recording(9)])
    with pytest.raises(DemonstrationError, match=f"{first}: holds 1 demonstrations, not 2"):
        import_all(stage(tmp_path, per_task=2), tmp_path / "out")
    with pytest.raises(DemonstrationError, match=r"\(16, 16\), but protocol\.image_size is 96"):
        import_all(stage(tmp_path, per_task=1, image_size=96), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_noise_has_its_statistics_and_repeats_with_its_seed() -> None:
    def series(seed: int) -> np.ndarray:
        noise = CorrelatedNoise(0.2, np.random.default_rng(seed))
        return np.array([noise() for _ in range(20_000)])

    values = series(1)
    np.testing.assert_array_equal(values, series(1))
    assert not np.array_equal(values, series(2))
    np.testing.assert_allclose(values.std(axis=0), 0.2 * NOISE_SCALE, rtol=0.05)
    assert abs(values.mean(axis=0)).max() < 0.02
    lagged = [np.corrcoef(column[:-1], column[1:])[0, 1] for column in values.T]
    np.testing.assert_allclose(lagged, NOISE_CORRELATION, atol=0.02)


def test_no_noise_is_no_noise() -> None:
    noise = CorrelatedNoise(0.0, np.random.default_rng(0))
    assert all((noise() == 0).all() for _ in range(5))
