"""Importing LIBERO's own demonstration files.

Their observations are one step late (rendered after the action); they are shifted back here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from srpo.config import DemosStage
from srpo.demos.hdf5 import (
    IMAGES,
    LAYOUT,
    DemonstrationError,
    Recording,
    file_name,
    read_recordings,
    write_recordings,
)
from srpo.runtime.files import atomic_directory


def aligned(recording: Recording) -> Recording:
    """The recording with the observation before action t in row t, whether or not it was so already.

    LIBERO's own files have observations from after the action, but `states` from before it. So the joint
    angles tell: a state is time, then positions, of which the arm's seven joints come first.
    """
    joints, states = recording["obs/joint_states"], recording["states"][:, 1:8]
    if len(joints) < 2:
        return recording
    difference_same_row = np.abs(joints[1:] - states[1:]).mean()
    difference_one_late = np.abs(joints[:-1] - states[1:]).mean()
    if difference_same_row <= difference_one_late:
        return recording
    late = {name for name in LAYOUT if name.startswith("obs/")} | {"robot_states"}
    return {name: values[:-1] if name in late else values[1:] for name, values in recording.items()}


def import_all(config: DemosStage, out: Path) -> None:
    """Take the first `config.demos.per_task` demonstrations of every task from a folder of LIBERO's files.

    Raises:
        DemonstrationError: a file is missing or damaged, or its pictures have another size than the
            protocol's.
    """
    from srpo.envs.libero import load_task

    folder = Path(config.demos.source).expanduser()
    names = [file_name(load_task(config.suite, task_id).name) for task_id in config.tasks]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DemonstrationError(
            f"{folder} (demos.source) lacks {', '.join(missing)}. Set demos.source to the folder with "
            f"LIBERO's {config.suite} files, or to `expert` to record demonstrations."
        )
    size = (config.protocol.image_size, config.protocol.image_size)

    def imported(path: Path) -> Iterator[Recording]:
        for recording in read_recordings(path, config.demos.per_task):
            if recording[IMAGES].shape[1:3] != size:
                raise DemonstrationError(
                    f"{path}: its pictures are {recording[IMAGES].shape[1:3]}, but protocol.image_size is "
                    f"{size[0]}. Change protocol.image_size, or render the demonstrations again."
                )
            yield aligned(recording)

    with atomic_directory(out) as temporary:
        for name in tqdm(names, desc="demonstration files", unit="file", disable=None):
            recordings = imported(folder / name)
            first = next(recordings)  # checks the file before its attributes are read
            with h5py.File(folder / name, "r") as file:
                attributes = dict(file["data"].attrs)
            write_recordings(temporary / name, attributes, [first, *recordings])
