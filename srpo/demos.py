"""Demonstrations for supervised fine-tuning: recording, importing and reading them.

    srpo demos --config CONFIG --out DIR --scratch DIR --workers N

writes one HDF5 file a task, `<task name>_demo.hdf5`, in the layout of LIBERO's own files (robomimic's, with
LIBERO's names; LIBERO, scripts/create_dataset.py):

    data                     attributes problem_info, env_args, bddl_file_content, num_demos, total, ...
    data/demo_<i>            attributes num_samples, init_state
        actions              float64 (T, 7)    in [-1, 1]; without the noise that was added when executed
        states               float64 (T, n)    flattened simulator state: time, positions, velocities
        robot_states         float64 (T, 9)    finger positions, end-effector position, its quaternion (xyzw)
        rewards, dones       uint8   (T,)      1 at the last step
        obs/agentview_rgb    uint8   (T, H, W, 3)  as OpenGL gives it: upside down
        obs/ee_pos, ee_ori, ee_states, gripper_states, joint_states    float64 (T, 3 | 3 | 6 | 2 | 7)

Row t of everything is what was seen just before action t, as in robomimic and in OpenVLA's regenerated files.
In LIBERO's own files the observations are one step late (rendered after the action); they are shifted back
when such files are imported. The wrist camera (obs/eye_in_hand_rgb) is left out: the policy never sees it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from srpo.config import CONTROL_HZ, SUITES, ConfigError, DemosStage, load_stage
from srpo.envs.gl import MissingGLError, require_gl
from srpo.runtime.files import atomic_directory, atomic_file, write_text
from srpo.runtime.locks import lock_held
from srpo.runtime.processes import end_with_parent, one_core_each

if TYPE_CHECKING:
    from srpo.envs.libero import LiberoEnv, Task

Recording = dict[str, NDArray[Any]]
"""One demonstration as a file holds it: dataset name, such as `obs/ee_pos`, to array; T rows each."""

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

TRIES = 10
"""Episodes in which the expert may fail at one demonstration before recording stops."""


class DemonstrationError(Exception):
    """A demonstration file, or the recording of one, is no good; the message says what to do."""


@dataclass(frozen=True)
class Demonstration:
    """One demonstration of T steps as a policy is trained on it.

    language  the instruction
    images    uint8 (T, H, W, 3), official orientation (the file's turned by 180°)
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


# Reading


def read_demonstrations(path: Path, limit: int | None = None) -> list[Demonstration]:
    """Read the first `limit` demonstrations of a task's file (all of them by default).

    Raises:
        DemonstrationError: the file is missing, truncated, corrupt or incomplete, or has too few.
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
        for recording in read_recordings(path, limit)
    ]


def read_recordings(path: Path, limit: int | None = None) -> Iterator[Recording]:
    """Read and check the first `limit` demonstrations of a file, one by one, as they lie in it.

    Raises:
        DemonstrationError: as `read_demonstrations` does.
    """
    if not path.is_file():
        raise DemonstrationError(f"{path}: no such file. {_REMEDY}")
    try:
        with h5py.File(path, "r") as file:
            data = file.get("data")
            if not isinstance(data, h5py.Group):
                raise DemonstrationError(
                    f"{path}: has no group `data`, so it is no demonstration file. {_REMEDY}"
                )
            names = sorted(data, key=lambda name: (len(name), name))  # demo_2 before demo_10
            if not names or len(names) < (limit or 0):
                wanted = limit or "at least one"
                raise DemonstrationError(
                    f"{path}: holds {len(names)} demonstrations, not {wanted}. {_REMEDY}"
                )
            for name in names[:limit]:
                yield _read_recording(data[name], f"{path}: data/{name}")
    except (OSError, KeyError, RuntimeError) as error:  # what h5py raises on damage
        raise DemonstrationError(f"{path}: truncated or corrupt ({error}). {_REMEDY}") from error


_REMEDY = (
    "Delete it and record it again (srpo demos), or, if it is one of LIBERO's own files, download it again."
)


def _read_recording(group: h5py.Group, where: str) -> Recording:
    missing = [name for name in LAYOUT if not isinstance(group.get(name), h5py.Dataset)]
    if missing:
        raise DemonstrationError(f"{where} lacks {', '.join(missing)}. {_REMEDY}")
    recording = {name: group[name][()] for name in LAYOUT}
    steps = len(recording["actions"])
    for name, row in LAYOUT.items():
        shape = recording[name].shape
        fits = len(shape) == len(row) + 1 and all(b in (None, a) for a, b in zip(shape[1:], row, strict=True))
        if not fits or shape[0] != steps or steps == 0:
            expected = ", ".join("any" if size is None else str(size) for size in (steps or "T", *row))
            raise DemonstrationError(f"{where}/{name} has shape {shape}, not ({expected}). {_REMEDY}")
    if recording[IMAGES].dtype != np.uint8:
        raise DemonstrationError(f"{where}/{IMAGES} is {recording[IMAGES].dtype}, not uint8. {_REMEDY}")
    for name in ("actions", "obs/ee_states", "obs/gripper_states"):
        if not np.isfinite(recording[name]).all():
            raise DemonstrationError(f"{where}/{name} is not finite. {_REMEDY}")
    if np.abs(recording["actions"]).max() > 1:
        raise DemonstrationError(f"{where}/actions leaves [-1, 1]. {_REMEDY}")
    return recording


# Writing


def write_recordings(path: Path, attributes: Mapping[str, Any], recordings: Iterable[Recording]) -> None:
    """Write a demonstration file atomically; `attributes` are those of its group `data`."""
    # HDF5 1.10's format checksums its own structure; fletcher32 does the same for the arrays.
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
            group.attrs["init_state"] = recording["states"][0]
            count, total = count + 1, total + len(recording["actions"])
        data.attrs["num_demos"] = count
        data.attrs["total"] = total


# Recording


class _Recorder:
    """Collects a row before every step of the expert."""

    def __init__(self, env: LiberoEnv) -> None:
        self._env = env
        self._joints = np.array(env.env.robots[0]._ref_joint_pos_indexes)
        self._rows: dict[str, list[NDArray[Any]]] = {name: [] for name in LAYOUT}

    def before_step(self, action: NDArray[np.float64]) -> None:
        position, axis_angle, fingers = np.split(self._env.proprio().astype(np.float64), [3, 6])
        angle = float(np.linalg.norm(axis_angle))
        axis = axis_angle / angle if angle else np.zeros(3)
        quaternion = np.append(axis * math.sin(angle / 2), math.cos(angle / 2))
        row = {
            "actions": action,
            "states": self._env.state(),
            "robot_states": np.concatenate([fingers, position, quaternion]),
            "rewards": np.uint8(0),
            "dones": np.uint8(0),
            IMAGES: self._env.render()[::-1, ::-1],
            "obs/ee_pos": position,
            "obs/ee_ori": axis_angle,
            "obs/ee_states": np.concatenate([position, axis_angle]),
            "obs/gripper_states": fingers,
            "obs/joint_states": self._env.data.qpos[self._joints].copy(),
        }
        for name, values in row.items():
            self._rows[name].append(np.asarray(values))

    def recording(self) -> Recording:
        """What was collected, ending in success."""
        recording = {name: np.stack(rows) for name, rows in self._rows.items()}
        recording["rewards"][-1] = recording["dones"][-1] = 1
        return recording


def record(env: LiberoEnv, config: DemosStage, index: int) -> Recording:
    """Record demonstration number `index` of a task with the scripted expert.

    It depends on the configuration and `index` alone. Should the expert fail, it is tried again from the
    next initial state with fresh noise.

    Raises:
        DemonstrationError: the expert failed too often.
    """
    from srpo.envs.expert import run_expert

    states = config.protocol.train_states()
    for attempt in range(TRIES):
        recorder = _Recorder(env)
        entropy = [config.demos.seed, SUITES.index(config.suite), env.task.task_id, index, attempt]
        success = run_expert(
            env,
            states[(index + attempt) % len(states)],
            noise=config.demos.noise,
            rng=np.random.default_rng(entropy),
            max_steps=config.protocol.max_steps,
            before_step=recorder.before_step,
        )
        if success:
            return recorder.recording()
    raise DemonstrationError(
        f"{config.suite} task {env.task.task_id} ({env.task.name}): the expert failed {TRIES} times in a row "
        f"at demonstration {index}. Raise protocol.max_steps ({config.protocol.max_steps}) or lower "
        f"demos.noise ({config.demos.noise})."
    )


def _attributes(task: Task, config: DemosStage) -> dict[str, Any]:
    """The attributes of `data` in LIBERO's files, and the protocol."""
    import mujoco
    from libero.libero.envs import bddl_utils

    problem = bddl_utils.get_problem_info(str(task.bddl_file))
    bddl = f"bddl_files/{task.bddl_file.parent.name}/{task.bddl_file.name}"
    settings = {
        "robots": ["Panda"],
        "controller": "OSC_POSE",
        "control_freq": CONTROL_HZ,
        "bddl_file_name": bddl,
        "camera_names": ["agentview"],
        "camera_heights": config.protocol.image_size,
        "camera_widths": config.protocol.image_size,
    }
    environment = {
        "type": 1,  # robomimic's number for robosuite
        "env_name": problem["problem_name"],
        "problem_name": problem["problem_name"],
        "bddl_file": bddl,
        "env_kwargs": settings,
    }
    return {
        "env_name": problem["problem_name"],
        "problem_info": json.dumps(problem),
        "env_args": json.dumps(environment),
        "bddl_file_name": bddl,
        "bddl_file_content": task.bddl_file.read_text(),
        "macros_image_convention": "opengl",
        "tag": "libero-v1",
        "protocol": config.protocol.model_dump_json(),
        "mujoco": mujoco.__version__,
    }


def _part(scratch: Path, task_id: int, index: int) -> Path:
    """Where a finished demonstration waits for the others: a file of one demonstration."""
    return scratch / f"task{task_id}" / f"demo_{index}.hdf5"


def _record_block(config: DemosStage, task_id: int, indices: list[int], scratch: Path) -> None:
    """Record some demonstrations of a task, each into a file of its own."""
    from srpo.envs.libero import LiberoEnv

    env = LiberoEnv(config.suite, task_id, config.protocol)
    attributes = _attributes(env.task, config)
    for index in indices:
        write_recordings(_part(scratch, task_id, index), attributes, [record(env, config, index)])


def _prepare(scratch: Path, config: DemosStage) -> None:
    """Empty the scratch folder if what lies there was recorded under other settings."""
    # Which tasks and how many are recorded does not change a demonstration.
    settings = config.model_dump_json(exclude={"preset": True, "tasks": True, "demos": {"per_task"}})
    note = scratch / "settings.json"
    if not note.is_file() or note.read_text(encoding="utf-8") != settings:
        shutil.rmtree(scratch, ignore_errors=True)
        write_text(note, settings)


def record_all(config: DemosStage, out: Path, scratch: Path, workers: int) -> None:
    """Record `config.demos.per_task` demonstrations of every task with the expert.

    Finished demonstrations are kept in `scratch`, so that a killed run loses only those in progress; `out`
    appears when all are done. The result does not depend on the number of workers.
    """
    from srpo.envs.libero import load_task

    require_gl()
    _prepare(scratch, config)
    every = range(config.demos.per_task)
    parts = {task: [_part(scratch, task, index) for index in every] for task in config.tasks}
    blocks_per_task = math.ceil(workers / len(config.tasks))
    blocks = [
        (task, block.tolist())
        for task in config.tasks
        for block in np.array_split([i for i in every if not parts[task][i].is_file()], blocks_per_task)
        if len(block)
    ]

    def count() -> int:
        return sum(part.is_file() for task in config.tasks for part in parts[task])

    total = len(every) * len(config.tasks)
    context = multiprocessing.get_context("spawn")
    with (
        one_core_each(),
        tqdm(total=total, initial=count(), desc="demonstrations", unit="demo", disable=None) as bar,
        ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool,
    ):
        running: set[Future[None]] = {
            pool.submit(_record_block, config, task, indices, scratch) for task, indices in blocks
        }
        while running:
            finished, running = wait(running, timeout=1, return_when=FIRST_EXCEPTION)
            bar.update(count() - bar.n)
            try:
                for future in finished:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    with atomic_directory(out) as folder:
        for task_id in config.tasks:
            task = load_task(config.suite, task_id)
            recordings = (recording for part in parts[task_id] for recording in read_recordings(part))
            write_recordings(folder / file_name(task.name), _attributes(task, config), recordings)
    shutil.rmtree(scratch)


# Importing


def observed_before(recording: Recording) -> Recording:
    """The recording with row t seen before action t, whether or not it was so already.

    LIBERO's own files hold observations from after the action. Their `states` are from before it, so the
    joint angles tell: a state is time, then positions, of which the arm's seven joints come first.
    """
    joints, states = recording["obs/joint_states"], recording["states"][:, 1:8]
    if len(joints) < 2:
        return recording
    in_step = np.abs(joints[1:] - states[1:]).mean()
    one_late = np.abs(joints[:-1] - states[1:]).mean()
    if in_step <= one_late:
        return recording
    late = {name for name in LAYOUT if name.startswith("obs/")} | {"robot_states"}
    return {name: values[:-1] if name in late else values[1:] for name, values in recording.items()}


def import_all(config: DemosStage, out: Path) -> None:
    """Take the first `config.demos.per_task` demonstrations of every task from a folder of LIBERO's files.

    Raises:
        DemonstrationError: a file is missing or no good, or its pictures are not of the protocol's size.
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
            yield observed_before(recording)

    with atomic_directory(out) as temporary:
        for name in tqdm(names, desc="demonstration files", unit="file", disable=None):
            recordings = imported(folder / name)
            first = next(recordings)  # checks the file before its attributes are read
            with h5py.File(folder / name, "r") as file:
                attributes = dict(file["data"].attrs)
            write_recordings(temporary / name, attributes, [first, *recordings])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="srpo demos", description="Record or import demonstrations.")
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved configuration of the stage (YAML)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make, one HDF5 file a task")
    parser.add_argument(
        "--scratch", type=Path, required=True, help="folder for finished demonstrations meanwhile"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that record (default: 1)")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error(f"--workers {arguments.workers}: at least 1")
    try:
        config = load_stage(arguments.config, DemosStage)
        if config.demos.source == "expert":
            with lock_held(arguments.scratch):
                record_all(config, arguments.out, arguments.scratch, arguments.workers)
        else:
            import_all(config, arguments.out)
    except (ConfigError, DemonstrationError, MissingGLError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
