"""Whether a branch is the rest of its episode, bit for bit, and how many branches a minute there are.

    python benchmarks/branching.py --out FILE.csv [--quick]

Three tasks of each suite. The tiny policy with random weights plays an episode that keeps its states; then,
in a process that has not played it, a branch starts at every third query with the episode's own seed. States,
actions, pictures and outcome are compared with the episode's. Rows:

    suite, task          which
    steps, queries       of the episode
    branches             that were compared
    differing            numbers and pixels of them that differ from the episode's
    branches_per_minute  of one simulator, its policy and their exchange, with loading the task left out
    state_bytes          of one state
    stored_bytes         of all the episode's states as a file of trajectories keeps them, compressed

Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from rollout import SUITES, protocol, tiny_policy
from tqdm import tqdm

from srpo.episode import CHUNK, Episode, EpisodeSpec, Start
from srpo.rollouts.policy_runner import PolicyRunner
from srpo.rollouts.trajectories import write_states
from srpo.runtime.files import write_with

TASKS = (0, 5, 7)
EVERY = 3
"""Queries between the branches' starts."""
COMPARED = ("images", "proprio", "tokens", "log_probs", "valid", "states")
"""What an episode has a row of for each query."""


def episodes(runner: PolicyRunner, specs: list[EpisodeSpec]) -> list[Episode]:
    """The episodes, in the order of their specs."""
    results = {result.spec: result for result in runner.run(specs)}
    failed = [result for result in results.values() if not isinstance(result, Episode)]
    if failed:
        raise SystemExit(f"{failed[0].spec}: {failed[0].error}")
    return [result for spec in specs if isinstance(result := results[spec], Episode)]


def differing(whole: Episode, rest: Episode) -> int:
    """How many numbers and pixels of a branch are not those of the episode from there on."""
    assert rest.spec.start is not None
    query = rest.spec.start.query
    pairs = [(getattr(whole, name)[query:], getattr(rest, name)) for name in COMPARED]
    pairs.append((whole.path[query * CHUNK :], rest.path))
    ends = (whole.success, whole.steps - query * CHUNK) != (rest.success, rest.steps)
    return int(ends) + sum(
        int((one != other).sum()) if one.shape == other.shape else max(one.size, other.size)
        for one, other in pairs
    )


def stored_bytes(states: np.ndarray) -> int:
    """Bytes that a file takes for the states of an episode."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "states.h5")
        with h5py.File(path, "w") as file:
            write_states(file, "states", states)
        return path.stat().st_size


def compare(suite: str, task: int, steps: int) -> dict[str, Any]:
    """One task's row."""
    settings, policy = protocol("fast", max_steps=steps), tiny_policy(suite)
    spec = EpisodeSpec(suite, task, 12, seed=task, temperature=1.0, states=True)
    with PolicyRunner(suite, settings, policy, workers=1) as runner:
        (whole,) = episodes(runner, [spec])
    starts = [Start(k, whole.states[k].tobytes()) for k in range(0, len(whole.states), EVERY)]
    with PolicyRunner(suite, settings, policy, workers=1) as other:
        rests = episodes(other, [replace(spec, start=start) for start in starts])
        started = time.perf_counter()  # the task is loaded now
        episodes(other, [replace(spec, start=start, seed=100 + task, states=False) for start in starts])
        seconds = time.perf_counter() - started
    return {
        "suite": suite,
        "task": task,
        "steps": whole.steps,
        "queries": len(whole.states),
        "branches": len(rests),
        "differing": sum(differing(whole, rest) for rest in rests),
        "branches_per_minute": 60 * len(starts) / seconds,
        "state_bytes": whole.states[0].nbytes,
        "stored_bytes": stored_bytes(whole.states),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    parser.add_argument("--quick", action="store_true", help="one task, fewer steps")
    arguments = parser.parse_args()
    tasks = [("libero_goal", 7)] if arguments.quick else list(itertools.product(SUITES, TASKS))
    steps = 32 if arguments.quick else 144
    rows = [compare(suite, task, steps) for suite, task in tqdm(tasks, desc="branching", unit="task")]
    table = pd.DataFrame(rows)
    write_with(arguments.out, lambda temporary: table.to_csv(temporary, index=False))
    print(table.to_string(index=False, float_format="{:.1f}".format))
    if table["differing"].any():
        raise SystemExit("branches differ from their episodes")


if __name__ == "__main__":
    main()
