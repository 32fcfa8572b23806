"""Speed of rollouts in LIBERO, compared with stock LIBERO and the official stacks' loop on the same machine.

    python benchmarks/rollout.py --out FILE.csv [--quick] [--previous REVISION]

Loops, all in chunks of 8 control steps:
  stock       LIBERO's OffScreenRenderEnv: two cameras rendered at every step
  exact, near, fast
              srpo.envs.libero: one picture per chunk, in each of its render modes
  physics     the same without pictures: the upper bound
  raw         25 times `mj_step` on the stock model without any controller, from the same states
  previous …  the same loops with another revision's package, in another process
  official    episodes as in the loops of OpenVLA-OFT, SimpleVLA-RL and siiRL: a new environment for each,
              two cameras of 256 pixels at every step, every chunk waits for the slowest one
  ours        episodes as in srpo.rollouts.policy_runner

Steps per second are medians over chunks, on one core, of loops that take turns. Writes rows of suite, loop,
measure, value, ratio_to_stock (of the same suite and process; of `official` for episodes), and a figure
beside them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

# A previous revision has to have these, and what `steps_per_second` imports. The other functions import what
# they need themselves.
from srpo.config import Protocol
from srpo.envs.gl import choose_backend

if TYPE_CHECKING:
    from srpo.episode import EpisodeSpec

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
MODES = ("exact", "near", "fast")
CHUNK = 8
"""Control steps from one picture to the next."""
PIXELS, OFFICIAL_PIXELS = 128, 256
EPISODE_STEPS = 136
"""Step limit of the whole episodes that are compared."""
SUBSTEPS = 25
"""Physics steps per control step."""
PREVIOUS = "previous "


def protocol(render: str, image_size: int = PIXELS, max_steps: int = EPISODE_STEPS) -> Protocol:
    values = dict(profile="official", max_steps=max_steps, settle_steps=10, env_seed=0)
    return Protocol.model_validate(values | {"image_size": image_size, "render": render})


def pushing_actions(seed: int) -> Iterator[NDArray[np.float64]]:
    """Endless smooth random actions that push down into the objects: physics with contacts."""
    rng = np.random.default_rng(seed)
    velocity = np.zeros(6)
    step = 0
    while True:
        velocity = 0.85 * velocity + 0.5 * rng.normal(size=6) * [1, 1, 1, 0.4, 0.4, 0.4]
        push = -0.35 if (step // 40) % 2 == 0 else 0.25
        grip = 1.0 if (step // 25) % 2 else -1.0
        yield np.append(np.clip(velocity + np.array([0, 0, push, 0, 0, 0]), -1, 1), grip)
        step += 1


def stock_environment(suite: str, task_id: int, pixels: int) -> tuple[Any, NDArray[np.float64]]:
    """The stock environment as the official stacks make it, and the task's initial states."""
    from srpo.envs.libero import init_states, load_task

    from libero.libero.envs import OffScreenRenderEnv  # isort: skip  (after the OpenGL back end is chosen)

    bddl = str(load_task(suite, task_id).bddl_file)
    environment = OffScreenRenderEnv(bddl_file_name=bddl, camera_heights=pixels, camera_widths=pixels)
    environment.seed(0)
    return environment, init_states(suite, task_id)


def resident() -> float:
    """This process's memory in MB, after returning free memory to the system."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


Actions = list[NDArray[np.float64]]
Loop = Callable[[Actions], float]
"""Runs a chunk of actions; returns the seconds it took."""


def clock() -> float:
    """Seconds: of this process's CPU time if pictures are rendered in software, which never waits."""
    return time.process_time() if choose_backend() == "osmesa" else time.perf_counter()


def stock_loop(stock: Any) -> Loop:
    """Stock LIBERO: all cameras are rendered at every step."""
    context = stock.env.sim._render_context_offscreen.gl_ctx

    def run(actions: Actions) -> float:
        context.make_current()
        started = clock()
        for action in actions:
            stock.step(action)
        return clock() - started

    return run


def our_loop(env: Any, pictures: bool) -> Loop:
    """A `LiberoEnv` with one picture per chunk, or none."""
    env.reset(0)

    def run(actions: Actions) -> float:
        started = clock()
        if pictures:
            env.render()
        for action in actions:
            env.step(action)
        return clock() - started

    return run


def raw_loop(env: Any, stock: Any) -> Loop:
    """`mj_step` alone on the stock model, from the states of a `LiberoEnv`."""
    import mujoco

    model = stock.env.sim.model._model
    data = mujoco.MjData(model)
    env.reset(0)

    def run(actions: Actions) -> float:
        seconds = 0.0
        for action in actions:
            mujoco.mj_setState(model, data, env.integration_state(), mujoco.mjtState.mjSTATE_INTEGRATION)
            env.step(action)
            started = clock()
            mujoco.mj_step(model, data, SUBSTEPS)
            seconds += clock() - started
        return seconds

    return run


def steps_per_second(suite: str, chunks: int) -> dict[str, dict[str, float]]:
    """Control steps per second of every loop, on the suite's first task.

    Loops take turns, so that other load on the machine affects all of them.
    """
    from srpo.envs import renderer
    from srpo.envs.libero import LiberoEnv

    renderer.CONTEXTS = len(MODES)  # otherwise each mode would load the scene anew at its turn
    stock, states = stock_environment(suite, 0, PIXELS)
    stock.reset()
    stock.set_init_state(states[0])
    loops = {"stock": stock_loop(stock)}
    for mode in MODES:
        loops[mode] = our_loop(LiberoEnv(suite, 0, protocol(mode)), True)
    loops["physics"] = our_loop(LiberoEnv(suite, 0, protocol("exact")), False)
    loops["raw"] = raw_loop(LiberoEnv(suite, 0, protocol("exact")), stock)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    source = pushing_actions(0)
    for _ in range(chunks + 1):
        actions = [next(source) for _ in range(CHUNK)]
        for name, run in loops.items():
            seconds[name].append(run(actions))
    # The first chunk includes loading and compiling, and is left out.
    return {
        name: {"steps_per_second": CHUNK / float(np.median(times[1:]))} for name, times in seconds.items()
    }


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Within the block, a folder with the files of a revision of this repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", folder, revision], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", folder], check=True)


def previous_steps_per_second(package: Path, suite: str, chunks: int) -> dict[str, dict[str, float]]:
    """`steps_per_second` of the `srpo` in another folder."""
    from srpo.runtime.processes import SINGLE_THREADED

    code = "import json, sys, rollout; rollout.pin_to_one_core(); "
    code += "print(json.dumps(rollout.steps_per_second(sys.argv[1], int(sys.argv[2]))))"
    path = os.pathsep.join([str(package), str(Path(__file__).parent)])
    run = subprocess.run(
        [sys.executable, "-c", code, suite, str(chunks)],
        env=os.environ | SINGLE_THREADED | {"PYTHONPATH": path},
        cwd=package,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    measured = json.loads(run.stdout.splitlines()[-1])
    return {f"{PREVIOUS}{loop}": measures for loop, measures in measured.items() if loop != "raw"}


def stock_costs(suite: str) -> dict[str, float]:
    """Time and memory to build and reset the stock environment."""
    started = time.perf_counter()
    environment, states = stock_environment(suite, 0, PIXELS)
    built = time.perf_counter() - started
    started = time.perf_counter()
    environment.reset()
    environment.set_init_state(states[0])
    reset = time.perf_counter() - started
    environment.step([0.0] * 6 + [-1.0])
    return {"construction_s": built, "reset_ms": 1e3 * reset, "memory_mb": resident()}


def compile_scenes(suite: str, render: str) -> None:
    """Compile the scenes of the tasks that `our_costs` measures, unless they are in the cache."""
    from srpo.envs.libero import LiberoEnv

    for task in range(6):
        environment = LiberoEnv(suite, task, protocol(render))
        environment.reset(0)
        environment.render()


def our_costs(suite: str, render: str) -> dict[str, float]:
    """Time and memory to build and reset a `LiberoEnv`, and memory of further ones in the same process."""
    from srpo.envs.libero import LiberoEnv

    first = LiberoEnv(suite, 0, protocol(render))
    first.reset(0)
    first.render()
    one = resident()
    built = []
    others = []
    for task in range(1, 6):
        started = time.perf_counter()
        others.append(LiberoEnv(suite, task, protocol(render)))
        built.append(time.perf_counter() - started)
        others[-1].reset(0)
        others[-1].render()
    six = resident()
    resets = []
    for _ in range(50):
        started = time.perf_counter()
        first.reset(0)
        resets.append(time.perf_counter() - started)
    return {
        "construction_s": float(np.median(built)),
        "reset_ms": 1e3 * float(np.median(resets)),
        "memory_mb": one,
        "memory_mb_each_further": (six - one) / len(others),
    }


def tiny_policy(suite: str) -> Any:
    """The `tiny` policy with random weights: its episodes mostly run to the step limit."""
    import torch

    from srpo.config import Policy, read_yaml
    from srpo.config.resolve import CONFIGS
    from srpo.envs.libero import load_task
    from srpo.policies.checkpoints import create_policy
    from srpo.policies.prompts import make_tokenizer

    settings = Policy.model_validate(
        {"name": "tiny"} | read_yaml(CONFIGS / "policies" / "tiny.yaml")["policy"]
    )
    limits = {"q01": [-0.9] * 6 + [-1.0], "q99": [0.9] * 6 + [1.0], "mask": [True] * 7}
    statistics = {suite: {"action": limits, "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8}}}
    instructions = [load_task(suite, task).language for task in range(10)]
    tokenizer = make_tokenizer(instructions, settings.llm.vocab_size - 256)
    torch.manual_seed(0)
    return create_policy(settings, tokenizer, statistics).eval()


def our_episodes(suite: str, render: str, workers: int, episodes: int) -> dict[str, float]:
    """Whole episodes of the tiny policy per minute, after one per worker that loads the task."""
    from srpo.episode import EpisodeSpec
    from srpo.rollouts.policy_runner import PolicyRunner

    def specs(start: int, count: int) -> list[EpisodeSpec]:
        return [EpisodeSpec(suite, 0, state % 50, state, 1.0) for state in range(start, start + count)]

    with PolicyRunner(suite, protocol(render), tiny_policy(suite), workers) as rollouts:
        list(rollouts.run(specs(0, workers)))
        started = time.perf_counter()
        finished = list(rollouts.run(specs(workers, episodes)))
        seconds = time.perf_counter() - started
    assert all(hasattr(result, "success") for result in finished)
    return {"episodes_per_minute": 60 * episodes / seconds}


def official_worker(connection: Connection, suite: str) -> None:
    """One process of the official loop: builds an environment for each episode, runs whole chunks."""
    while (state := connection.recv()) is not None:
        environment, states = stock_environment(suite, 0, OFFICIAL_PIXELS)
        environment.reset()
        observation = environment.set_init_state(states[state % len(states)])
        for _ in range(10):
            observation, _, done, _ = environment.step([0.0] * 6 + [-1.0])
        connection.send(policy_inputs(observation, False))
        while (actions := connection.recv()) is not None:
            for action in actions:
                observation, _, done, _ = environment.step(action.tolist())
                if done:
                    break
            connection.send(policy_inputs(observation, done))
        environment.close()


def policy_inputs(
    observation: dict[str, Any], done: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], bool]:
    """Picture, proprioception and whether the episode is over."""
    proprio = np.concatenate(
        [observation[f"robot0_{name}"] for name in ("eef_pos", "joint_pos", "gripper_qpos")]
    )[:8]
    return observation["agentview_image"][::-1, ::-1], proprio.astype(np.float32), done


def official_episodes(suite: str, workers: int, episodes: int) -> dict[str, float]:
    """Whole episodes of the tiny policy per minute, `workers` at a time, in lockstep."""
    import torch

    from srpo.envs.libero import load_task
    from srpo.runtime.processes import one_core_each

    policy, instruction = tiny_policy(suite), load_task(suite, 0).language
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(workers):
        ours, theirs = spawn.Pipe()
        with one_core_each():
            processes.append(spawn.Process(target=official_worker, args=(theirs, suite), daemon=True))
            processes[-1].start()
        pipes.append(ours)
    started = time.perf_counter()
    generators = [torch.Generator().manual_seed(k) for k in range(workers)]
    for batch in range(0, episodes, workers):
        for k, pipe in enumerate(pipes):
            pipe.send(batch + k)
        views = [pipe.recv() for pipe in pipes]
        for _ in range(0, EPISODE_STEPS, CHUNK):
            if all(done for *_, done in views):
                break
            # The batch includes finished episodes, and waits for its slowest member.
            images, proprio = np.stack([view[0] for view in views]), np.stack([view[1] for view in views])
            inputs = policy.prepare_inputs(suite, images, [instruction] * workers, proprio)
            tokens, _ = policy.act(inputs, 1.0, generators)
            for pipe, actions, view in zip(pipes, policy.actions(suite, tokens), views, strict=True):
                pipe.send([] if view[2] else actions)
            views = [pipe.recv() for pipe in pipes]
        for pipe in pipes:
            pipe.send(None)
    seconds = time.perf_counter() - started
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return {"episodes_per_minute": 60 * episodes / seconds}


def memory_growth(suite: str, episodes: int) -> dict[str, float]:
    """A process's memory after a tenth of the episodes and after all of them, over two tasks."""
    from srpo.envs.libero import LiberoEnv
    from srpo.episode import EpisodeSpec
    from srpo.rollouts.worker import Answer, images_shape, run_episode

    settings = protocol("fast", max_steps=24)
    envs = [LiberoEnv(suite, task, settings) for task in (0, 1)]
    pictures = np.zeros(images_shape(settings, 8), np.uint8)
    actions = pushing_actions(0)

    def ask(query: int, proprio: NDArray[np.float32]) -> Answer:
        chunk = np.stack([next(actions) for _ in range(CHUNK)])
        return Answer(chunk, np.zeros(7 * CHUNK, np.int64), np.zeros(7 * CHUNK, np.float32))

    measured = {}
    for episode in range(1, episodes + 1):
        spec = EpisodeSpec(suite, episode % 2, episode % 50, episode, 1.0, 8)
        run_episode(envs[episode % 2], spec, None, pictures, ask)
        if episode in (episodes // 10, episodes):
            measured[f"memory_mb_after_{episode}"] = resident()
    return measured


def in_subprocess(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, on one core."""
    from srpo.runtime.processes import one_core_each

    spawn = multiprocessing.get_context("spawn")
    with one_core_each(), ProcessPoolExecutor(1, spawn, initializer=pin_to_one_core) as pool:
        return pool.submit(function, *arguments).result()


def pin_to_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def measure(suites: tuple[str, ...], quick: bool, out: Path, previous: Path | None) -> pd.DataFrame:
    """Run everything sequentially; `out` holds the rows so far.

    Args:
        previous: folder of another revision's package to compare with.
    """
    from srpo.runtime.files import write_with

    rows: list[dict[str, Any]] = []

    def keep(suite: str, loop: str, result: dict[str, float]) -> None:
        rows.extend({"suite": suite, "loop": loop, "measure": name, "value": v} for name, v in result.items())
        write_with(out, lambda temporary: with_ratios(pd.DataFrame(rows)).to_csv(temporary, index=False))

    for suite in tqdm(suites, desc="environments", unit="suite"):
        chunks = 4 if quick else 16
        for loop, result in in_subprocess(steps_per_second, suite, chunks).items():
            keep(suite, loop, result)
        if previous is not None:
            for loop, result in previous_steps_per_second(previous, suite, chunks).items():
                keep(suite, loop, result)
        keep(suite, "stock", in_subprocess(stock_costs, suite))
        for mode in MODES:
            in_subprocess(compile_scenes, suite, mode)
            keep(suite, mode, in_subprocess(our_costs, suite, mode))
    goal, cores = "libero_goal", len(os.sched_getaffinity(0))
    keep(goal, "official", official_episodes(goal, cores, cores if quick else 2 * cores))
    for workers, mode in tqdm([(w, m) for w in sorted({1, cores}) for m in MODES], desc="episodes"):
        count = workers * (4 if quick else 16)
        keep(goal, f"ours, {mode}, {workers} workers", our_episodes(goal, mode, workers, count))
    keep(goal, "ours, fast", in_subprocess(memory_growth, goal, 50 if quick else 500))
    return with_ratios(pd.DataFrame(rows))


def with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Each value divided by that of `stock` (episodes: `official`) in the same suite, where there is one."""

    def run(row: dict[str, Any]) -> tuple[str, str, bool]:
        return row["suite"], row["measure"], row["loop"].startswith(PREVIOUS)

    records = table.to_dict("records")
    bases = {run(r): r["value"] for r in records if r["loop"].removeprefix(PREVIOUS) in ("stock", "official")}
    return table.assign(ratio_to_stock=[r["value"] / bases.get(run(r), np.nan) for r in records])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw steps per second of each loop and suite."""
    from matplotlib.figure import Figure

    from srpo.analysis.text import SUITE_LABELS

    measured = table[table["measure"] == "steps_per_second"]
    suites = [suite for suite in SUITES if suite in set(measured["suite"])]
    steps, ratios = (
        measured.pivot(index="suite", columns="loop", values=values).reindex(suites)
        for values in ("value", "ratio_to_stock")
    )
    loops = ("stock", *MODES, "physics", "raw")
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    colours = ["0.6", "#0072b2", "#56b4e9", "#009e73", "0.85", "0.95"]
    for k, (loop, colour) in enumerate(zip(loops, colours, strict=True)):
        places = np.arange(len(steps)) + 0.15 * (k - 2.5)
        bars = axes.bar(places, steps[loop], 0.14, color=colour, label=loop)
        axes.bar_label(bars, [f"{r:.0f}×" for r in ratios[loop]], fontsize=6, padding=1)
        if loop != "stock" and PREVIOUS + loop in steps:
            # By its ratio, as the two processes ran at different times.
            before = ratios[PREVIOUS + loop] * steps["stock"]
            label = "previous release" if loop == MODES[0] else None
            axes.hlines(before, places - 0.07, places + 0.07, color="black", linewidth=0.8, label=label)
    axes.set_yscale("log")
    axes.set_xticks(np.arange(len(steps)), [SUITE_LABELS[suite] for suite in steps.index])
    axes.set_ylabel("control steps per second, one core")
    axes.legend(
        frameon=False, fontsize=7, ncols=7, columnspacing=1, loc="upper center", bbox_to_anchor=(0.5, 1.15)
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of LIBERO rollouts, as ratios to stock LIBERO.")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write; the figure stands beside it")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, one suite")
    parser.add_argument("--previous", metavar="REVISION", help="a tag, branch or commit to compare with")
    arguments = parser.parse_args()
    suites = SUITES[2:3] if arguments.quick else SUITES
    with checkout(arguments.previous) if arguments.previous else nullcontext() as previous:
        table = measure(suites, arguments.quick, arguments.out, previous)
    draw(table, arguments.out.with_suffix(".png"))
    shown = table.assign(ratio_to_stock=table["ratio_to_stock"].map("{:.2f}".format))
    print(shown.to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
