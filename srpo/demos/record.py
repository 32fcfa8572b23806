"""Recording demonstrations with the scripted expert, in several processes, resumable."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from srpo.config import CONTROL_HZ, SUITES, DemosStage
from srpo.demos.hdf5 import (
    IMAGES,
    LAYOUT,
    DemonstrationError,
    Recording,
    file_name,
    read_recordings,
    write_recordings,
)
from srpo.envs.gl import require_gl
from srpo.runtime.files import atomic_directory, claim_scratch
from srpo.runtime.processes import worker_pool

if TYPE_CHECKING:
    from srpo.envs.libero import LiberoEnv, Task

TRIES = 10
"""Failures of the expert at one demonstration after which recording ends."""


class _Recorder:
    """Collects a row before each step of the expert."""

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
        """The rows, with success at the last."""
        recording = {name: np.stack(rows) for name, rows in self._rows.items()}
        recording["rewards"][-1] = recording["dones"][-1] = 1
        return recording


def record(env: LiberoEnv, config: DemosStage, index: int) -> Recording:
    """Record demonstration number `index` of a task with the scripted expert.

    It depends on the configuration and `index` alone. If the expert fails, it tries again from the next
    initial state with new noise.

    Raises:
        DemonstrationError: the expert failed too often.
    """
    from srpo.envs.expert import run_expert

    states = config.protocol.train_states()
    max_steps = config.demos.max_steps or config.protocol.max_steps
    for attempt in range(TRIES):
        recorder = _Recorder(env)
        entropy = [config.demos.seed, SUITES.index(config.suite), env.task.task_id, index, attempt]
        success = run_expert(
            env,
            states[(index + attempt) % len(states)],
            noise=config.demos.noise,
            rng=np.random.default_rng(entropy),
            max_steps=max_steps,
            before_step=recorder.before_step,
        )
        if success:
            return recorder.recording()
    raise DemonstrationError(
        f"{config.suite} task {env.task.task_id} ({env.task.name}): the expert failed {TRIES} times in a row "
        f"at demonstration {index} within {max_steps} control steps. Raise demos.max_steps or lower "
        f"demos.noise ({config.demos.noise})."
    )


def record_all(config: DemosStage, out: Path, scratch: Path, workers: int) -> None:
    """Record `config.demos.per_task` demonstrations of every task with the expert.

    Finished demonstrations are kept in `scratch`, so that a killed run loses only those in progress; `out`
    is written when all are done. The result does not depend on the number of workers.

    Raises:
        DemonstrationError: the expert failed too often at one demonstration.
        MissingGLError: pictures cannot be rendered.
    """
    from srpo.envs.libero import load_task

    require_gl()
    _clear_other_settings(scratch, config)
    parts = {
        task: [_part(scratch, task, index) for index in range(config.demos.per_task)] for task in config.tasks
    }
    blocks_per_task = math.ceil(workers / len(config.tasks))
    blocks = [
        (task, block.tolist())
        for task, files in parts.items()
        for block in np.array_split(
            [i for i, part in enumerate(files) if not part.is_file()], blocks_per_task
        )
        if len(block)
    ]
    _record_blocks(config, blocks, [file for files in parts.values() for file in files], scratch, workers)
    with atomic_directory(out) as folder:
        for task_id, files in parts.items():
            task = load_task(config.suite, task_id)
            recordings = (recording for file in files for recording in read_recordings(file))
            write_recordings(folder / file_name(task.name), _attributes(task, config), recordings)
    shutil.rmtree(scratch)


def _part(scratch: Path, task_id: int, index: int) -> Path:
    """A file of one finished demonstration, until all are done."""
    return scratch / f"task{task_id}" / f"demo_{index}.hdf5"


def _clear_other_settings(scratch: Path, config: DemosStage) -> None:
    """Empty the scratch folder if its demonstrations were recorded with other settings."""
    # A demonstration depends neither on the tasks that are recorded nor on their number.
    settings = config.model_dump_json(exclude={"preset": True, "tasks": True, "demos": {"per_task"}})
    claim_scratch(scratch, settings)


def _record_blocks(
    config: DemosStage,
    blocks: Sequence[tuple[int, list[int]]],
    parts: Sequence[Path],
    scratch: Path,
    workers: int,
) -> None:
    """Record blocks (task id, demonstrations' indices) in worker processes; `parts` are all tasks' files."""

    def finished() -> int:
        return sum(part.is_file() for part in parts)

    with (
        tqdm(
            total=len(parts), initial=finished(), desc="demonstrations", unit="demo", disable=None
        ) as progress,
        worker_pool(workers) as pool,
    ):
        running: set[Future[None]] = {
            pool.submit(_record_block, config, task, indices, scratch) for task, indices in blocks
        }
        while running:
            done, running = wait(running, timeout=1, return_when=FIRST_EXCEPTION)
            progress.update(finished() - progress.n)
            for future in done:
                future.result()


def _record_block(config: DemosStage, task_id: int, indices: list[int], scratch: Path) -> None:
    """Record some demonstrations of a task, each into its own file."""
    from srpo.envs.libero import LiberoEnv

    env = LiberoEnv(config.suite, task_id, config.protocol)
    attributes = _attributes(env.task, config)
    for index in indices:
        write_recordings(_part(scratch, task_id, index), attributes, [record(env, config, index)])


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
