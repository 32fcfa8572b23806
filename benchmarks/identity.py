"""Whether our environment equals stock LIBERO, bit for bit.

    python benchmarks/identity.py --out FILE.csv [--quick]

Three tasks per suite, each from one initial state, under random actions that push into the objects (some
without a rotation, a separate branch of the controller) and under an expert's. After every step MuJoCo's full
integration state and the success flag are compared with the stock environment's, after every chunk the
`exact` picture, pixel by pixel, with textures as the installed MuJoCo draws them. Exits with 1 if anything
differs. Another MuJoCo is compared with itself: PYTHONPATH=FOLDER with one that pip installed there.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rollout import SUITES, protocol, pushing_actions
from tqdm import tqdm

from srpo.envs.expert import run_expert
from srpo.envs.libero import SETTLE_ACTION, LiberoEnv, init_states
from srpo.episode import CHUNK
from srpo.runtime.files import write_with

# After the OpenGL back end is chosen.
import mujoco  # isort: skip
from libero.libero.envs import OffScreenRenderEnv  # isort: skip

STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
INIT_STATE = 12
PIXELS = 128


def random_actions(seed: int, steps: int) -> list[NDArray[np.float64]]:
    """Actions that push and grip, every fifth of them without a rotation."""
    actions = list(itertools.islice(pushing_actions(seed), steps))
    for action in actions[::5]:
        action[3:6] = 0
    return actions


def expert_actions(env: LiberoEnv, steps: int) -> list[NDArray[np.float64]]:
    """An expert's first actions."""
    actions: list[NDArray[np.float64]] = []
    rng = np.random.default_rng(0)
    run_expert(env, INIT_STATE, noise=0.0, rng=rng, max_steps=steps, before_step=actions.append)
    return actions[:steps]


def compare(env: LiberoEnv, actions: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Run the same actions in both environments, and count the differences."""
    stock = OffScreenRenderEnv(
        bddl_file_name=str(env.task.bddl_file),
        camera_names=["agentview"],
        camera_heights=PIXELS,
        camera_widths=PIXELS,
    )
    stock.seed(0)
    stock.reset()
    stock.set_init_state(init_states(env.task.suite, env.task.task_id)[INIT_STATE])
    env.reset(INIT_STATE)
    sim = stock.env.sim

    def stock_step(action: NDArray[np.float64]) -> tuple[NDArray[np.uint8], bool]:
        # Both render in this process: the stock environment expects its own context to be current.
        sim._render_context_offscreen.gl_ctx.make_current()
        observation, _, done, _ = stock.step(action.tolist())
        return observation["agentview_image"][::-1, ::-1], bool(done)

    def stock_state() -> NDArray[np.float64]:
        state = np.empty(mujoco.mj_stateSize(env.model, STATE))
        mujoco.mj_getState(sim.model._model, sim.data._data, state, STATE)
        return state

    for _ in range(10):
        stock_step(SETTLE_ACTION)
    counts = {"steps": len(actions), "contacts": 0, "states_differing": 0, "flags_differing": 0}
    counts |= {"pictures": 0, "pixels_differing": 0}
    for step, action in enumerate(actions, 1):
        picture, done = stock_step(action)
        counts["flags_differing"] += env.step(action) != done
        counts["states_differing"] += not np.array_equal(env.integration_state(), stock_state())
        counts["contacts"] = max(counts["contacts"], int(env.data.ncon))
        if step % CHUNK == 0:
            counts["pictures"] += 1
            counts["pixels_differing"] += int((env.render() != picture).any(axis=-1).sum())
    # It frees its OpenGL objects in the current context, which must not be ours.
    sim._render_context_offscreen.gl_ctx.make_current()
    stock.close()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare our environment with stock LIBERO.")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    parser.add_argument("--quick", action="store_true", help="one task, fewer steps")
    arguments = parser.parse_args()
    tasks = [("libero_goal", 7)] if arguments.quick else list(itertools.product(SUITES, (0, 5, 7)))
    random_steps, expert_steps = (16, 8) if arguments.quick else (200, 80)
    rows = []
    for suite, task in tqdm(tasks, desc="identity", unit="task"):
        env = LiberoEnv(suite, task, protocol("exact", PIXELS, max_steps=520))
        kinds = {
            "random": random_actions(task, random_steps),
            "expert": expert_actions(env, expert_steps),
        }
        for kind, actions in kinds.items():
            named = {"mujoco": mujoco.__version__, "suite": suite, "task": task, "actions": kind}
            rows.append({**named, **compare(env, actions)})
    table = pd.DataFrame(rows)
    write_with(arguments.out, lambda temporary: table.to_csv(temporary, index=False))
    print(table.to_string(index=False))
    if table.filter(like="differing").to_numpy().any():
        raise SystemExit("the environments differ")


if __name__ == "__main__":
    main()
