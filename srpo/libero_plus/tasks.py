"""The LIBERO-Plus task list: what its task names mean, and how many there are. No heavy imports.

LIBERO-Plus (Fei et al. 2025, arXiv:2510.13626) perturbs LIBERO's 40 tasks along seven dimensions: 10,030
tasks in all. A task's name is the base task's name and a suffix that tells what is perturbed, and how.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from srpo.config import DIMENSIONS, STYLES
from srpo.errors import InputError
from srpo.runtime.files import atomic_file

INIT_STATE = 0
"""The initial state of the base task from which camera, robot, language and noise episodes start."""
COLUMNS = ("suite", "name", "base_task", "task_id", "dimension", "parameters")
"""Columns of a task list's CSV file."""

# Number of tasks of each base task (a line, in the order of task ids) and dimension (a column, in the order
# of DIMENSIONS). `srpo libero-plus fetch` checks every number against the official list.
_TABLE = """\
libero_spatial
 6 32 46 42 29 32 44 pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate
37 38 32 10 10 34 37 pick_up_the_black_bowl_next_to_the_ramekin_and_place_it_on_the_plate
35 35 28 50 46 35 38 pick_up_the_black_bowl_from_table_center_and_place_it_on_the_plate
49 24 42 24 31 31 45 pick_up_the_black_bowl_on_the_cookie_box_and_place_it_on_the_plate
48 40 37 44 26 40 45 pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_plate
46 32 32 34 35 37 40 pick_up_the_black_bowl_on_the_ramekin_and_place_it_on_the_plate
42 27 46 31 20 34 32 pick_up_the_black_bowl_next_to_the_cookie_box_and_place_it_on_the_plate
43 43 35 32 41 41 34 pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate
33 37 45  4  6 28 27 pick_up_the_black_bowl_next_to_the_plate_and_place_it_on_the_plate
37 42 47 21 14 39 43 pick_up_the_black_bowl_on_the_wooden_cabinet_and_place_it_on_the_plate
libero_object
21 42 23 41 32 42 41 pick_up_the_alphabet_soup_and_place_it_in_the_basket
20 39 34  4  5 44 27 pick_up_the_cream_cheese_and_place_it_in_the_basket
47 40 36 32 25 42 42 pick_up_the_salad_dressing_and_place_it_in_the_basket
47 38 26 49 47 41 44 pick_up_the_bbq_sauce_and_place_it_in_the_basket
47 38 37 13 11 43 25 pick_up_the_ketchup_and_place_it_in_the_basket
50 38 36 22 13 44 48 pick_up_the_tomato_sauce_and_place_it_in_the_basket
49 42 28 45 21 44 44 pick_up_the_butter_and_place_it_in_the_basket
48 40 42 26 32 39 45 pick_up_the_milk_and_place_it_in_the_basket
41 34 49 31 22 42 38 pick_up_the_chocolate_pudding_and_place_it_in_the_basket
26 47 43 34 40 41 49 pick_up_the_orange_juice_and_place_it_in_the_basket
libero_goal
21 43 46 42 30 42 44 open_the_middle_drawer_of_the_cabinet
32 38 19  4  6 29 28 put_the_bowl_on_the_stove
40 40 39 28 41 38 44 put_the_wine_bottle_on_top_of_the_cabinet
48 45 50 50 45 41 45 open_the_top_drawer_and_put_the_bowl_inside
50 43 44 13 13 46 34 put_the_bowl_on_top_of_the_cabinet
49 40 39 36 27 33 46 push_the_plate_to_the_front_of_the_stove
49 47 48 25 32 47 43 put_the_cream_cheese_in_the_bowl
46 37 40 21 11 29 48 turn_on_the_stove
31 37 35 26 30 32 44 put_the_bowl_on_the_plate
42 39 50 34 46 42 49 put_the_wine_bottle_on_the_rack
libero_10
20 41 45 13 13 46 34 LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket
32 35 21 18 35 35 34 LIVING_ROOM_SCENE2_put_both_the_cream_cheese_box_and_the_butter_in_the_basket
47 44 41 42 33 48 26 KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it
48 44 47 49 45 48 23 KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it
47 38 42 33 44 48 35 LIVING_ROOM_SCENE5_put_the_white_mug_on_the_left_plate_and_put_the_yellow_and_white_mug_on_the_right_plate
46 34 28 22 13 46 48 STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_back_compartment_of_the_caddy
46 42 46 31 39 44 35 LIVING_ROOM_SCENE6_put_the_white_mug_on_the_plate_and_put_the_chocolate_pudding_to_the_right_of_the_plate
50 39 41  4  8 39 13 LIVING_ROOM_SCENE1_put_both_the_alphabet_soup_and_the_cream_cheese_box_in_the_basket
43 34 30 24 31 46 25 KITCHEN_SCENE8_put_both_moka_pots_on_the_stove
40 42 42 38 28 49 39 KITCHEN_SCENE6_put_the_yellow_and_white_mug_in_the_microwave_and_close_it
"""  # noqa: E501


def _read_table() -> dict[str, dict[str, dict[str, int]]]:
    table: dict[str, dict[str, dict[str, int]]] = {}
    suite = ""
    for line in _TABLE.splitlines():
        *numbers, name = line.split()
        if numbers:
            table[suite][name] = dict(zip(DIMENSIONS, map(int, numbers), strict=True))
        else:
            suite = name
            table[suite] = {}
    return table


COUNTS = _read_table()
"""Suite → base task → dimension → number of LIBERO-Plus tasks."""

NOISES = ("motion", "gaussian", "zoom", "fog", "glass")
"""Kinds of image noise; noise number N of a task's name is 10 · kind + severity, severity 1…10."""

_SUFFIXES = {
    "camera": r"_view_(?P<horizontal>\d+)_(?P<vertical>\d+)_(?P<scale>\d+)_(?P<turn>\d+)_(?P<tilt>\d+)"
    r"_initstate_0",
    "robot": r"_view_0_0_100_0_0_initstate_(?P<posture>[1-9]\d*)",
    "language": r"_language_(?P<rewrite>\d+)_view_0_0_100_0_0_initstate_0",
    "noise": r"_view_0_0_100_0_0_initstate_0_noise_(?P<noise>\d+)",
    "layout": r"_add_(?P<add>\d+)|(?:_moved)?_level(?P<level>\d+)_sample(?P<sample>\d+)",
    "background": r"_table_(?P<table>\d+)|_tb_(?P<tb>\d+)",
    "light": r"_light_(?P<light>\d+)",
    **{style: rf"_{style}_(?P<style>\d+)" for style in STYLES},
}
_STOCK_VIEW = {"horizontal": 0, "vertical": 0, "scale": 100, "turn": 0, "tilt": 0}


@dataclass(frozen=True)
class PlusTask:
    """One LIBERO-Plus task: its official name, the base task that it perturbs, and how.

    parameters  camera: horizontal, vertical, turn, tilt (degrees, 0…359), scale (percent of the distance);
                noise: kind (one of NOISES), severity (1…10); the others: numbers of the official assets
                (robot: posture; language: rewrite; layout: add, or level and sample; background: table or
                tb; light: light); our styles: style, the seed of the drawn values
    """

    suite: str
    name: str
    base_task: str
    task_id: int
    dimension: str
    parameters: dict[str, int | str]


def _parameters(dimension: str, suffix: str) -> dict[str, int | str] | None:
    match = re.fullmatch(_SUFFIXES[dimension], suffix)
    if not match:
        return None
    numbers = {key: int(value) for key, value in match.groupdict().items() if value is not None}
    if dimension == "camera" and numbers == _STOCK_VIEW:
        return None
    if dimension == "noise":
        kind, severity = divmod(numbers["noise"] - 1, 10)
        if not 0 <= kind < len(NOISES):
            return None
        return {"kind": NOISES[kind], "severity": severity + 1}
    return {**numbers}


def parse(name: str) -> PlusTask:
    """Read an official task name, or one of our styles' (`style_tasks`).

    Raises:
        ValueError: it is neither.
    """
    # Base tasks have different names in all suites.
    for suite, base_tasks in COUNTS.items():
        for task_id, base_task in enumerate(base_tasks):
            if name.startswith(f"{base_task}_"):
                for dimension in DIMENSIONS + STYLES:
                    parameters = _parameters(dimension, name.removeprefix(base_task))
                    if parameters is not None:
                        return PlusTask(suite, name, base_task, task_id, dimension, parameters)
    raise ValueError(f"{name!r} is not the name of a LIBERO-Plus task")


def _suite(suite: str) -> dict[str, dict[str, int]]:
    if suite not in COUNTS:
        raise ValueError(f"LIBERO-Plus has no suite {suite!r}; it has {', '.join(COUNTS)}")
    return COUNTS[suite]


def start_displacement(posture: int) -> float:
    """Distance of start posture 1…500 from LIBERO's own, radians (Euclidean, over the joints)."""
    return 0.1 * ((posture - 1) // 100 + 1)


def count(
    suite: str, task_ids: Collection[int], dimensions: Collection[str], per_dimension: int | None
) -> int:
    """Number of tasks that `sample` takes, known without a task list. `per_dimension` None: all."""
    counts = list(_suite(suite).values())
    totals = [sum(counts[task_id][dimension] for task_id in task_ids) for dimension in dimensions]
    return sum(total if per_dimension is None else min(total, per_dimension) for total in totals)


def sample(
    tasks: Iterable[PlusTask],
    suite: str,
    task_ids: Collection[int],
    dimensions: Sequence[str],
    per_dimension: int | None,
    seed: int,
) -> list[PlusTask]:
    """Take `per_dimension` random tasks (None: all) of each dimension, spread evenly over some base tasks.

    A larger sample includes the smaller one of the same seed. A dimension's sample depends neither on the
    other dimensions nor on the order of `tasks`.
    """
    base_tasks = list(_suite(suite))
    tasks = [task for task in tasks if task.suite == suite]
    chosen: list[PlusTask] = []
    for dimension in dimensions:
        rng = random.Random(f"{seed} {suite} {dimension}")
        # Ranks are drawn for all base tasks in a fixed order, whichever of them are wanted.
        base_rank = {base_task: rng.random() for base_task in base_tasks}
        members = sorted((task for task in tasks if task.dimension == dimension), key=lambda task: task.name)
        rank = {task.name: rng.random() for task in members}
        by_base_task: list[list[PlusTask]] = [
            sorted((task for task in members if task.task_id == task_id), key=lambda task: rank[task.name])
            for task_id in sorted(set(task_ids), key=lambda task_id: base_rank[base_tasks[task_id]])
        ]
        round_robin = itertools.chain.from_iterable(itertools.zip_longest(*by_base_task))
        chosen += [task for task in round_robin if task is not None][:per_dimension]
    return chosen


def style_tasks(suite: str, task_ids: Collection[int], per_style: int) -> list[PlusTask]:
    """`per_style` tasks of each of our styles, spread evenly over some base tasks."""
    base_tasks = list(_suite(suite))
    ids = sorted(set(task_ids))
    return [
        parse(f"{base_tasks[ids[k % len(ids)]]}_{style}_{k // len(ids)}")
        for style in STYLES
        for k in range(per_style)
    ]


def shards(n: int, size: int) -> int:
    """Number of jobs of at most `size` tasks for `n` tasks."""
    return -(-n // size)


def shard(tasks: Sequence[PlusTask], index: int, size: int) -> Sequence[PlusTask]:
    """The tasks of job `index` (from 0) of `size` tasks each."""
    return tasks[index * size : (index + 1) * size]


def _row(task: PlusTask) -> list[str]:
    parameters = json.dumps(task.parameters)
    return [task.suite, task.name, task.base_task, str(task.task_id), task.dimension, parameters]


def write_tasks(path: Path, tasks: Iterable[PlusTask]) -> None:
    """Write a task list as CSV, atomically; `parameters` is JSON."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_row(task) for task in tasks)


class TaskListError(InputError, ValueError):
    """A file is no task list."""


def read_tasks(path: Path) -> list[PlusTask]:
    """Read a task list. The names hold everything; the other columns are for people, and are checked.

    Raises:
        TaskListError: a line is not as `write_tasks` writes it; the message has its number.
    """
    tasks = []
    with path.open(newline="", encoding="utf-8") as handle:
        rows = csv.reader(handle)
        if tuple(next(rows, ())) != COLUMNS:
            raise TaskListError(f"{path}: the first line is not {','.join(COLUMNS)}")
        for number, row in enumerate(rows, start=2):
            try:
                task = parse(row[1] if len(row) > 1 else "")
                if row != _row(task):
                    raise ValueError(f"the columns beside {task.name!r} do not say what the name says")
            except ValueError as error:
                raise TaskListError(f"{path}, line {number}: {error}") from error
            tasks.append(task)
    return tasks
