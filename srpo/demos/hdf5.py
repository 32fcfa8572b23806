"""The format of demonstration files: reading, checking, writing.

One HDF5 file per task, `<task name>_demo.hdf5`, in the layout of LIBERO's own files (robomimic's, with
LIBERO's names; LIBERO, scripts/create_dataset.py):

    data                     attributes problem_info, env_args, bddl_file_content, num_demos, total,
                             macros_image_convention (opengl), ...
    data/demo_<i>            attributes num_samples, init_state
        actions              float64 (T, 7)    in [-1, 1]; without the noise that was added when executed;
                                               the gripper is -1 (opens) or 1 (closes)
        states               float64 (T, n)    flattened simulator state: time, positions, velocities
        robot_states         float64 (T, 9)    finger positions, end-effector position, its quaternion (xyzw)
        rewards, dones       uint8   (T,)      1 at the last step
        obs/agentview_rgb    uint8   (T, H, W, 3)  in OpenGL's row order: upside down
        obs/ee_pos, ee_ori, ee_states, gripper_states, joint_states    float64 (T, 3 | 3 | 6 | 2 | 7)

Row t has the observation just before action t, as in robomimic and in OpenVLA's regenerated files. LIBERO's
own have the one just after it, and are shifted back where they are read. `srpo.demos.conventions` has what
else the values must hold to. The wrist camera (obs/eye_in_hand_rgb) is left out: the policy does not use it.

A file that was imported from LeRobot's format says so in the attribute `lerobot` of `data` (the format's
version) and has only what that format has: `LEARNED`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from srpo.demos.conventions import Recording, aligned, require_conventions, require_image_convention
from srpo.errors import InputError
from srpo.runtime.files import atomic_file
from srpo.runtime.hdf5 import why_unreadable

IMAGES = "obs/agentview_rgb"
LAYOUT: dict[str, tuple[int | None, ...]] = {
    "actions": (7,),
    "states": (None,),
    "robot_states": (9,),
    "rewards": (),
    "dones": (),
    IMAGES: (None, None, 3),
    "obs/ee_pos": (3,),
    "obs/ee_ori": (3,),
    "obs/ee_states": (6,),
    "obs/gripper_states": (2,),
    "obs/joint_states": (7,),
}
"""The datasets of a demonstration and the shape of one row; None is any size."""
LEARNED = ("actions", IMAGES, "obs/ee_states", "obs/gripper_states")
"""Those that a policy learns from."""
_REMEDY = (
    "Delete it and record it again (srpo demos), or, if it is one of LIBERO's own files, download it again."
)


class DemonstrationError(InputError):
    """A demonstration file cannot be used, or not be recorded; the message tells what to do."""


@dataclass(frozen=True)
class Demonstration:
    """One demonstration of T steps as a policy is trained on it.

    language  the instruction
    images    uint8 (T, H, W, 3), official orientation (the file's rotated by 180°)
    proprio   float32 (T, 8): end-effector position (m), axis-angle (rad), finger positions (m)
    actions   float32 (T, 7) in [-1, 1]
    """

    language: str
    images: NDArray[np.uint8]
    proprio: NDArray[np.float32]
    actions: NDArray[np.float32]


def file_name(task: str) -> str:
    """The name of a task's demonstration file, as LIBERO has it."""
    return f"{task}_demo.hdf5"


def instruction(task: str) -> str:
    """A task's instruction, as LIBERO takes it from the name: without the scene, spaces for underscores."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", task).replace("_", " ")


def read_demonstrations(path: Path, limit: int | None = None) -> list[Demonstration]:
    """Read the first `limit` demonstrations of a task's file (all of them by default).

    Raises:
        DemonstrationError: the file is missing, cannot be read, is truncated, corrupt or incomplete, has too
            few, or follows another convention (`srpo.demos.conventions`).
    """
    language = instruction(path.name.removesuffix(".hdf5").removesuffix("_demo"))
    return [
        Demonstration(
            language=language,
            images=np.ascontiguousarray(recording[IMAGES][:, ::-1, ::-1]),
            proprio=np.concatenate(
                [recording["obs/ee_states"], recording["obs/gripper_states"]], axis=1
            ).astype(np.float32),
            actions=recording["actions"].astype(np.float32),
        )
        for recording in map(aligned, read_recordings(path, limit))
    ]


def read_recordings(path: Path, limit: int | None = None) -> Iterator[Recording]:
    """Read and check the first `limit` demonstrations of a file, one by one, as they are in it.

    Raises:
        DemonstrationError: as `read_demonstrations`.
    """
    try:
        with h5py.File(path, "r") as file:
            data = file.get("data")
            if not isinstance(data, h5py.Group):
                raise DemonstrationError(
                    f"{path}: has no group `data`, so it is no demonstration file. {_REMEDY}"
                )
            try:
                require_image_convention(data.attrs)
            except ValueError as error:
                raise DemonstrationError(f"{path}: {error}") from None
            names = sorted(data, key=lambda name: (len(name), name))  # demo_2 before demo_10
            if not names or len(names) < (limit or 0):
                wanted = limit or "at least one"
                raise DemonstrationError(
                    f"{path}: holds {len(names)} demonstrations, not {wanted}. {_REMEDY}"
                )
            layout = {name: LAYOUT[name] for name in (LEARNED if "lerobot" in data.attrs else LAYOUT)}
            for name in names[:limit]:
                yield _read_recording(data[name], layout, f"{path}: data/{name}")
    except (OSError, KeyError, RuntimeError) as error:  # what h5py raises
        raise DemonstrationError(f"{path}: {why_unreadable(error, _REMEDY)}") from error


def _read_recording(group: h5py.Group, layout: Mapping[str, tuple[int | None, ...]], where: str) -> Recording:
    if not isinstance(group, h5py.Group):
        raise DemonstrationError(f"{where} is no group of datasets. {_REMEDY}")
    missing = [name for name in layout if not isinstance(group.get(name), h5py.Dataset)]
    if missing:
        raise DemonstrationError(f"{where} lacks {', '.join(missing)}. {_REMEDY}")
    recording = {name: np.atleast_1d(group[name][()]) for name in layout}  # a scalar is no array
    steps = len(recording["actions"])
    for name, row in layout.items():
        shape = recording[name].shape
        fits = len(shape) == len(row) + 1 and all(b in (None, a) for a, b in zip(shape[1:], row, strict=True))
        if not fits or shape[0] != steps or steps == 0:
            expected = ", ".join("any" if size is None else str(size) for size in (steps or "T", *row))
            raise DemonstrationError(f"{where}/{name} has shape {shape}, not ({expected}). {_REMEDY}")
    if recording[IMAGES].dtype != np.uint8:
        raise DemonstrationError(f"{where}/{IMAGES} is {recording[IMAGES].dtype}, not uint8. {_REMEDY}")
    try:
        require_conventions(recording)
    except ValueError as error:
        raise DemonstrationError(f"{where}/{error}") from None
    return recording


def write_recordings(path: Path, attributes: Mapping[str, Any], recordings: Iterable[Recording]) -> None:
    """Write a demonstration file atomically; `attributes` are those of its group `data`."""
    # HDF5 1.10's format has checksums of its own structure; fletcher32 adds those of the arrays.
    with atomic_file(path) as temporary, h5py.File(temporary, "w", libver="v110") as file:
        data = file.create_group("data")
        data.attrs.update(attributes)
        count = total = 0
        for recording in recordings:
            group = data.create_group(f"demo_{count}")
            for name, values in recording.items():
                chunks = (1, *values.shape[1:]) if name == IMAGES else None  # one picture each
                group.create_dataset(
                    name, data=values, chunks=chunks, compression="gzip", compression_opts=1, fletcher32=True
                )
            group.attrs["num_samples"] = len(recording["actions"])
            if "states" in recording:
                group.attrs["init_state"] = recording["states"][0]
            count, total = count + 1, total + len(recording["actions"])
        data.attrs["num_demos"] = count
        data.attrs["total"] = total
