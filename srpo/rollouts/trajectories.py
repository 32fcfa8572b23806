"""The files of the progress-reward benchmark: one for each rollout, and `trajectories.h5` with those kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.errors import InputError
from srpo.runtime.files import write_with
from srpo.runtime.hdf5 import why_unreadable
from srpo.world_models.base import select_frames

FILE = "trajectories.h5"


class TrajectoryError(InputError):
    """Trajectories that cannot be collected, read or scored."""


@dataclass(frozen=True)
class Record:
    """A rollout in a file of the scratch folder, with frames if they may be needed.

    `success` is None, and `error` says why, if the rollout could not be run.
    """

    spec: EpisodeSpec
    path: Path
    success: bool | None
    steps: int
    error: str | None


def read_record(spec: EpisodeSpec, path: Path) -> Record:
    """A rollout's record, without its frames."""
    with h5py.File(path, "r") as file:
        if "error" in file.attrs:
            return Record(spec, path, success=None, steps=0, error=str(file.attrs["error"]))
        return Record(spec, path, bool(file.attrs["success"]), int(file.attrs["steps"]), error=None)


def write_record(result: Episode | FailedRun, path: Path, with_frames: bool) -> None:
    """Write a rollout's file atomically."""

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            if isinstance(result, FailedRun):
                file.attrs["error"] = result.error
                return
            file.attrs["success"], file.attrs["steps"] = result.success, result.steps
            if with_frames:
                shown = select_frames(result.steps + 1, len(result.frames))
                file["distance_to_goal"] = result.distance_to_goal[shown]
                write_states(file, "states", result.states)
                file.create_dataset("frames", data=result.frames, compression="gzip", compression_opts=1)

    write_with(path, write)


def write_trajectories(
    path: Path,
    records: Sequence[Record],
    frames_shape: tuple[int, int, int, int],
    attributes: Mapping[str, str],
) -> None:
    """Write `trajectories.h5`: N trajectories with frames of `frames_shape` (F, H, W, 3) each.

    Datasets: frames uint8 (N, F, H, W, 3); distance_to_goal float32 (N, F), metres to the goal at each frame;
    success bool (N,); task_id, init_state, episode_seed, steps int64 (N,). For trajectory k, `states/k`
    float64 (C, S): `Episode.states`.
    """
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        file["success"] = np.array([record.success for record in records], dtype=bool)
        file["steps"] = np.array([record.steps for record in records], dtype=np.int64)
        file["task_id"] = np.array([record.spec.task_id for record in records], dtype=np.int64)
        file["init_state"] = np.array([record.spec.init_state for record in records], dtype=np.int64)
        file["episode_seed"] = np.array([record.spec.seed for record in records], dtype=np.int64)
        distance_to_goal = file.create_dataset(
            "distance_to_goal", shape=(len(records), frames_shape[0]), dtype=np.float32
        )
        frames = file.create_dataset(
            "frames",
            shape=(len(records), *frames_shape),
            dtype=np.uint8,
            chunks=(1, *frames_shape),  # read one trajectory at a time
            compression="gzip",
            compression_opts=1,
        )
        for index, record in enumerate(records):
            with h5py.File(record.path, "r") as part:
                frames[index], distance_to_goal[index] = part["frames"][()], part["distance_to_goal"][()]
                write_states(file, f"states/{index}", part["states"][()])


def write_states(file: h5py.File, name: str, states: NDArray[np.float64]) -> None:
    """Write an episode's states (C, S) as a dataset."""
    # Most of a state is the same at every query: where fixtures are, colours.
    compress = {"compression": "gzip", "shuffle": True} if states.size else {}
    file.create_dataset(name, data=states, **compress)


def open_trajectories(path: Path) -> h5py.File:
    """Open `trajectories.h5` for reading. Raises TrajectoryError if it is missing, unreadable or broken."""
    fix = "Run `srpo reward-benchmark collect` again."
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise TrajectoryError(f"{path}: {why_unreadable(error, fix)}") from None
    missing = {"success", "task_id", "steps", "distance_to_goal", "frames"} - set(file)
    missing |= {"suite"} - set(file.attrs)
    if missing:
        file.close()
        raise TrajectoryError(f"{path}: lacks {', '.join(sorted(missing))}. {fix}")
    return file
