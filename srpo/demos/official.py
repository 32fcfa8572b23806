"""Importing LIBERO's own demonstration files.

Their observations are one step late (rendered after the action); they are shifted back. Those of OpenVLA's
regenerated files are not. Which of the two was found is printed for every file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
from tqdm import tqdm

from srpo.config import DemosStage
from srpo.demos.conventions import Recording, aligned, observations_are_late
from srpo.demos.hdf5 import IMAGES, DemonstrationError, file_name, read_recordings, write_recordings
from srpo.runtime.files import atomic_directory


def import_all(config: DemosStage, out: Path) -> None:
    """Take the first `config.demos.per_task` demonstrations of every task from a folder of LIBERO's files.

    Raises:
        DemonstrationError: a file is missing, damaged or in another convention, or its pictures have another
            size than the protocol's.
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
        late = total = 0
        for recording in read_recordings(path, config.demos.per_task):
            if recording[IMAGES].shape[1:3] != size:
                raise DemonstrationError(
                    f"{path}: its pictures are {recording[IMAGES].shape[1:3]}, but protocol.image_size is "
                    f"{size[0]}. Change protocol.image_size, or render the demonstrations again."
                )
            late, total = late + observations_are_late(recording), total + 1
            yield aligned(recording)
        found = f"{late} with observations from after the action, shifted back"
        tqdm.write(f"{path.name}: {total} demonstrations, {found}")

    with atomic_directory(out) as temporary:
        for name in tqdm(names, desc="demonstration files", unit="file", disable=None):
            recordings = imported(folder / name)
            first = next(recordings)  # checks the file before its attributes are read
            with h5py.File(folder / name, "r") as file:
                attributes = dict(file["data"].attrs)
            write_recordings(temporary / name, attributes, [first, *recordings])
