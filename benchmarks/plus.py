"""LIBERO-Plus: which tasks run here, and what a task costs.

python benchmarks/plus.py counts --tasks TASKS.csv --data DATA.zip [--assets FOLDER]
    tasks that run and tasks that are unavailable, by dimension and suite
python benchmarks/plus.py start --tasks TASKS.csv --data DATA.zip [--assets FOLDER] [--per-dimension N]
    start and 12 steps of a stratified sample of the tasks that run (N per dimension and suite), with pictures
    at start and end: how many fail, and the seconds per task
python benchmarks/plus.py speed --tasks TASKS.csv --data DATA.zip [--per-dimension N] [--steps S]
    episodes per minute and core, compared with a stock LIBERO environment with two cameras that is built anew
    for each task, as upstream does; S steps after the 10 that settle
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from srpo.config import DIMENSIONS, Protocol
from srpo.envs.libero import SETTLE_ACTION, LiberoEnv, asset_folder, init_states
from srpo.libero_plus.data import PlusSources, unavailable_reason
from srpo.libero_plus.perturbation import Perturbation
from srpo.libero_plus.tasks import COUNTS, INIT_STATE, PlusTask, read_tasks, sample

STEPS = 12
PROTOCOL = Protocol(
    profile="official", max_steps=520, settle_steps=10, env_seed=0, image_size=256, render="exact"
)


def runs_here(task: PlusTask, sources: PlusSources) -> bool:
    return unavailable_reason(task, sources, asset_folder()) is None


def counts(tasks: list[PlusTask], sources: PlusSources) -> None:
    """Print how many tasks run, by dimension and suite."""
    total = Counter((task.dimension, task.suite) for task in tasks)
    runs = Counter((task.dimension, task.suite) for task in tasks if runs_here(task, sources))
    print("dimension   " + "".join(f"{suite:>22}" for suite in COUNTS) + f"{'all':>22}")
    for dimension in DIMENSIONS:
        pairs = [(runs[dimension, suite], total[dimension, suite]) for suite in COUNTS]
        pairs.append((sum(run for run, _ in pairs), sum(number for _, number in pairs)))
        print(f"{dimension:12}" + "".join(f"{f'{run} of {number}':>22}" for run, number in pairs))
    print(f"{sum(runs.values()):,} of {len(tasks):,} tasks run here")


def runnable_sample(
    tasks: list[PlusTask], sources: PlusSources, suite: str, per_dimension: int
) -> list[PlusTask]:
    runnable = [task for task in tasks if runs_here(task, sources)]
    return sample(runnable, suite, range(10), DIMENSIONS, per_dimension, seed=0)


def episode(base: LiberoEnv, task: PlusTask, sources: PlusSources, steps: int) -> list[np.ndarray]:
    """Pictures of a task's chunks and end under fixed random actions; uses the base task's environment."""
    rng = np.random.default_rng(0)
    perturbation = Perturbation.from_task(task.name, sources)
    env = perturbation.environment(base)
    with perturbation.apply(env):
        perturbation.reset(env)
        pictures = []
        for step in range(steps):
            if step % 8 == 0:
                pictures.append(perturbation.corrupt(env.render(), rng))
            env.step(rng.uniform(-1, 1, 7))
        pictures.append(perturbation.corrupt(env.render(), rng))
    if not np.isfinite(env.state()).all():
        raise ValueError("the state is not finite")
    return pictures


def by_base_task(tasks: list[PlusTask]) -> list[PlusTask]:
    return sorted(tasks, key=lambda task: (task.suite, task.task_id))


def start(tasks: list[PlusTask], sources: PlusSources, protocol: Protocol) -> None:
    """Start each task, and print how many fail and how long they take."""
    failed: Counter[str] = Counter()
    seconds: dict[str, list[float]] = defaultdict(list)
    base: LiberoEnv | None = None
    for task in by_base_task(tasks):
        if base is None or (base.task.suite, base.task.task_id) != (task.suite, task.task_id):
            base = LiberoEnv(task.suite, task.task_id, protocol)
            base.reset(INIT_STATE)
            base.render()
        started = time.perf_counter()
        try:
            first, *_, last = episode(base, task, sources, STEPS)
            if first.std() < 3 or last.std() < 3:
                raise ValueError("a picture is blank")
        except Exception:
            failed[task.dimension] += 1
            print(f"{task.name}:\n{traceback.format_exc()}", flush=True)
        seconds[task.dimension].append(time.perf_counter() - started)
    for dimension, times in seconds.items():
        number, mean = len(times), np.mean(times)
        print(f"{dimension:12} {number:4} tasks, {failed[dimension]} failed, {mean:.2f} s per task")
    print(f"{sum(map(len, seconds.values()))} tasks, {failed.total()} failed")


def stock_episode(task: PlusTask, steps: int) -> None:
    """Upstream's episode, in stock LIBERO: build, reset, set the state, settle, step, render."""
    import contextlib
    import io

    from libero.libero.envs import OffScreenRenderEnv

    from srpo.envs.libero import load_task

    with contextlib.redirect_stdout(io.StringIO()):
        env = OffScreenRenderEnv(
            bddl_file_name=str(load_task(task.suite, task.task_id).bddl_file),
            camera_heights=256,
            camera_widths=256,
        )
    env.seed(0)
    env.reset()
    env.set_init_state(init_states(task.suite, task.task_id)[INIT_STATE])
    rng = np.random.default_rng(0)
    for _ in range(PROTOCOL.settle_steps):
        env.step(SETTLE_ACTION)
    for _ in range(steps):
        env.step(rng.uniform(-1, 1, 7))
    env.close()


def speed(tasks: list[PlusTask], sources: PlusSources, protocol: Protocol, steps: int) -> None:
    """Print episodes per minute of our environment and of a stock one that is built anew for each task."""
    chosen = by_base_task(tasks)
    base: LiberoEnv | None = None
    started = time.perf_counter()
    for task in chosen:
        if base is None or (base.task.suite, base.task.task_id) != (task.suite, task.task_id):
            base = LiberoEnv(task.suite, task.task_id, protocol)
        episode(base, task, sources, steps)
    ours = 60 * len(chosen) / (time.perf_counter() - started)
    rebuilt = chosen[:: max(1, len(chosen) // 8)]
    started = time.perf_counter()
    for task in rebuilt:
        stock_episode(task, steps)
    stock = 60 * len(rebuilt) / (time.perf_counter() - started)
    print(
        f"{tasks[0].suite}: {len(chosen)} episodes of {steps} steps: {ours:.1f} per minute; "
        f"{len(rebuilt)} built anew: {stock:.1f} per minute; {ours / stock:.1f} ×"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("counts", "start", "speed"))
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--suites", nargs="+", default=list(COUNTS), choices=list(COUNTS))
    parser.add_argument("--render", choices=("exact", "near", "fast"), default="exact")
    parser.add_argument("--per-dimension", type=int, default=9, help="tasks per dimension and suite")
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    tasks, sources = read_tasks(arguments.tasks), PlusSources(arguments.data, arguments.assets)
    protocol = PROTOCOL.model_copy(update={"render": arguments.render})
    if arguments.what == "counts":
        counts(tasks, sources)
        return
    for suite in arguments.suites:
        chosen = runnable_sample(tasks, sources, suite, arguments.per_dimension)
        if arguments.what == "start":
            start(chosen, sources, protocol)
        else:
            speed(chosen, sources, protocol, arguments.steps)


if __name__ == "__main__":
    main()
