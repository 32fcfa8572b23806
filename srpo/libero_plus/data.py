"""What LIBERO-Plus's tasks need beyond their names: rewritten instructions, scenes, layouts, new objects.

`srpo libero-plus fetch` extracts it from the official package into one file without code or pickles. This
module reads that file, and tells which tasks can run here and why others cannot. It imports no simulator.
"""

from __future__ import annotations

import functools
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from srpo.config import STYLES
from srpo.libero_plus.tasks import PlusTask
from srpo.runtime.files import atomic_file

INDEX = "index.json"
PACK_FOLDERS = ("scenes", "textures", "new_objects")
"""Folders of the official asset pack that background, light and distractors read."""
RobotStart = Literal["official", "true_start"]


@dataclass(frozen=True)
class Scene:
    """A background or light task's scene: the arena's XML in the asset folder, floor and wall textures.

    `xml` None: the base task's arena. `floor` and `wall` are file names under `textures/`.
    """

    xml: str | None
    floor: str
    wall: str


@dataclass(frozen=True)
class PlusSources:
    """Where LIBERO-Plus's data is, and how its protocol is read where upstream's code is peculiar.

    data          file written by `srpo libero-plus fetch`; None: camera, robot and noise only
    assets        folder of the official asset pack; None: LIBERO's own assets only
    robot_start   `official`: only the controller keeps the start posture; `true_start`: the arm does, too
    leaked_prompt whether the prompt is the task's name in words, as upstream's is outside Language
    """

    data: Path | None = None
    assets: Path | None = None
    robot_start: RobotStart = "official"
    leaked_prompt: bool = False


class PlusData:
    """The file of LIBERO-Plus's data, opened for reading. Raises ValueError if it is not such a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
            index = json.loads(self._archive.read(INDEX))
        except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: not LIBERO-Plus's data ({error}); srpo libero-plus fetch makes it"
            ) from None
        self._language: dict[str, str] = index["language"]
        self._scenes: dict[str, list[str | None]] = index["scenes"]
        self.object_files: dict[str, str] = index["objects"]
        """Category of a distractor → its XML in the asset folder."""
        self.new_categories: dict[str, list[str]] = index["new"]
        """Layout task → the categories in it that base LIBERO does not have."""

    def language(self, name: str) -> str:
        """The rewritten instruction of a language task."""
        return self._language[name]

    def scene(self, name: str) -> Scene:
        """The scene of a background or light task."""
        xml, floor, wall = self._scenes[name]
        assert floor is not None and wall is not None
        return Scene(xml, floor, wall)

    def bddl(self, name: str) -> str:
        """The BDDL file of a layout task."""
        return self._archive.read(f"layout/{name}.bddl").decode()

    def init_state(self, name: str) -> NDArray[np.float64]:
        """The one initial state of a layout task, float64 (1 + nq + nv,)."""
        return np.load(io.BytesIO(self._archive.read(f"layout/{name}.npy")), allow_pickle=False)


@functools.cache
def plus_data(path: Path) -> PlusData:
    """The data, opened once per process."""
    return PlusData(path)


def write_data(
    path: Path,
    language: Mapping[str, str],
    scenes: Mapping[str, Scene],
    layouts: Mapping[str, tuple[str, NDArray[np.float64]]],
    object_files: Mapping[str, str],
    new_categories: Mapping[str, list[str]],
) -> None:
    """Write the file that `PlusData` reads, atomically; equal data makes equal bytes.

    Args:
        language: language task → instruction.
        scenes: background or light task → scene.
        layouts: layout task → BDDL and initial state, float64 (1 + nq + nv,).
        object_files: as `PlusData.object_files`.
        new_categories: as `PlusData.new_categories`.
    """
    index = {
        "language": language,
        "scenes": {name: [scene.xml, scene.floor, scene.wall] for name, scene in scenes.items()},
        "objects": object_files,
        "new": new_categories,
    }
    members: list[tuple[str, bytes]] = [(INDEX, json.dumps(index, sort_keys=True).encode())]
    for name, (bddl, state) in sorted(layouts.items()):
        buffer = io.BytesIO()
        np.save(buffer, state, allow_pickle=False)
        members += [(f"layout/{name}.bddl", bddl.encode()), (f"layout/{name}.npy", buffer.getvalue())]
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members:
            info = zipfile.ZipInfo(member)  # without the time of writing, which would change the bytes
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)


def bddl_language(text: str) -> str:
    """The instruction in a BDDL file as LIBERO reads it: lower case, words separated by one space."""
    language = re.search(r"\(:language\s+([^()]*)\)", text)
    if language is None:
        raise ValueError("a BDDL file without (:language …)")
    return " ".join(language.group(1).lower().split())


def prompt_from_task_name(name: str) -> str:
    """Upstream's `task.language` outside its Language tasks: the task's name in words, suffix included."""
    if name[0].isupper():
        name = name[name.index("SCENE") + (8 if "SCENE10" in name else 7) :]
    return " ".join(name.split("_"))


def needed_assets(task: PlusTask, data: PlusData) -> list[str]:
    """The asset files that a task needs beyond its base task's, as paths in the asset folder.

    Raises:
        ValueError: the data file does not have the task.
    """
    try:
        if task.dimension == "layout":
            return [data.object_files[category] for category in data.new_categories[task.name]]
        if task.dimension in ("background", "light"):
            scene = data.scene(task.name)
            arena = [scene.xml] if scene.xml else []
            return [*arena, f"textures/{scene.floor}", f"textures/{scene.wall}"]
        if task.dimension == "language":
            data.language(task.name)
    except KeyError as error:
        raise ValueError(
            f"{data.path} does not have {error}: none of LIBERO-Plus's 10,030 tasks, or of other data"
        ) from None
    return []


def find_asset(name: str, sources: PlusSources, libero_assets: Path) -> Path | None:
    """A file of the official asset pack if it is there, else of LIBERO's own asset folder, else None."""
    folders = [libero_assets] if sources.assets is None else [sources.assets, libero_assets]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def unavailable_reason(task: PlusTask, sources: PlusSources, libero_assets: Path) -> str | None:
    """Why a task cannot run here; None if it can.

    Raises:
        ValueError: the data file is broken, or does not have the task.
    """
    if task.dimension in ("camera", "robot", "noise", *STYLES):
        return None
    if sources.data is None:
        return f"{task.dimension} tasks need LIBERO-Plus's data: srpo libero-plus fetch"
    needed = needed_assets(task, plus_data(sources.data))
    missing = [name for name in needed if find_asset(name, sources, libero_assets) is None]
    if not missing:
        return None
    if sources.assets is None:
        return f"needs LIBERO-Plus's asset pack (plus.assets): {', '.join(missing)}"
    return f"not in the asset pack {sources.assets}: {', '.join(missing)}"
