"""Known values of the protocol: what stock LIBERO makes of some tasks on the MuJoCo that is installed.

    pip install --target FOLDER --no-deps mujoco==3.3.2
    PYTHONPATH=FOLDER python benchmarks/certificate.py --out configs/reference/certificate.json

MuJoCo 3.3.2 is the newest version that draws what released checkpoints saw. `srpo doctor --protocol` compares
with these values.
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path

import numpy as np
from tqdm import tqdm

from srpo.envs.certificate import MOVE, MOVES, SETTLE_STEPS, SIDE, TASKS, Measured
from srpo.envs.gl import choose_backend
from srpo.envs.installation import PACKAGE
from srpo.envs.libero import SETTLE_ACTION, init_states, load_task
from srpo.runtime.files import write_text

# After the OpenGL back end is chosen.
from libero.libero.envs.env_wrapper import ControlEnv  # isort: skip
from robosuite.utils.transform_utils import quat2axisangle  # isort: skip


def stock(suite: str, task: int) -> Measured:
    """Stock LIBERO's own states, observations and picture."""
    env = ControlEnv(
        bddl_file_name=str(load_task(suite, task).bddl_file),
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=False,
    )
    env.seed(0)
    env.reset()
    observation = env.set_init_state(init_states(suite, task)[0])
    for _ in range(SETTLE_STEPS):
        observation, *_ = env.step(SETTLE_ACTION.tolist())
    settled = env.sim.data.qpos.copy()
    for _ in range(MOVES):
        observation, *_ = env.step(MOVE.tolist())
    moved = np.concatenate(
        [
            observation["robot0_eef_pos"],
            quat2axisangle(observation["robot0_eef_quat"]),
            observation["robot0_gripper_qpos"],
        ]
    )
    env.set_init_state(np.concatenate([[0.0], settled, np.zeros(env.sim.model.nv)]))
    picture = env.sim.render(camera_name="agentview", width=SIDE, height=SIDE)[::-1, ::-1]
    env.close()
    return Measured.of(settled, moved, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the known values of the protocol's certificate.")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    tasks = {}
    for suite, task in tqdm(TASKS, desc="certificate", unit="task"):
        tasks[f"{suite}/{task}"] = stock(suite, task).as_json()
    made_with = {name: metadata.version(name) for name in ("mujoco", "robosuite", PACKAGE)}
    made_with["opengl"] = choose_backend()
    write_text(arguments.out, json.dumps({"made_with": made_with, "tasks": tasks}) + "\n")


if __name__ == "__main__":
    main()
