"""Wall time of one step's rewards: references, distances and shaping, from embeddings to rewards.

    python benchmarks/reward.py [--out FILE.csv]

Random embeddings of the paper's number and dimension (512 rollouts, V-JEPA 2 ViT-g's 1408), divided among
tasks, half of them successes. Encoding the videos is not included. Prints a row for each (references, tasks)
and, with --out, writes them as CSV: median and longest of the repetitions, in milliseconds. Exits with 1 if a
median is above --limit.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from srpo.config import Reward
from srpo.rewards.progress import shape_rewards
from srpo.runtime.files import write_with

SETTINGS: dict[str, dict[str, Any]] = {
    "mean": {"references": "mean"},
    "medoid": {"references": "medoid"},
    "nearest": {"references": "nearest"},
    "dbscan": {"references": "dbscan"},
    "dbscan, relative": {"references": "dbscan", "eps": 0.8, "eps_relative": True},
    "dbscan, relative, by group": {
        "references": "dbscan",
        "eps": 0.8,
        "eps_relative": True,
        "scope": "group",
    },
    "fixed expert": {"references": "fixed_expert"},
}
BASE = {
    "shaping": "paper",
    "alpha": 0.8,
    "scope": "batch",
    "references": "dbscan",
    "eps": 0.5,
    "eps_relative": False,
    "min_samples": 2,
}
GROUP = 8
EXPERTS = 50
"""Demonstrations per task, as in LIBERO."""


def measure(settings: dict[str, Any], batch: int, dimension: int, tasks: int, repeats: int) -> list[float]:
    """Seconds of each repetition, after one that is not counted."""
    rng = np.random.default_rng(0)
    reward = Reward.model_validate(BASE | settings)
    group = np.arange(batch) // GROUP
    task = group % tasks
    # Every task's episodes are near a centre, close enough for relative clusters to form.
    centres = rng.normal(size=(tasks, dimension))
    embeddings = (centres[task] + 0.3 * rng.normal(size=(batch, dimension))).astype(np.float32)
    success = rng.random(batch) < 0.5
    experts = None
    if reward.references == "fixed_expert":
        experts = {t: rng.normal(size=(EXPERTS, dimension)).astype(np.float32) for t in range(tasks)}
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        shape_rewards(embeddings, success, task, reward, group=group, experts=experts)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/reward.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=512, help="episodes (default: 512)")
    parser.add_argument("--dimension", type=int, default=1408, help="length of an embedding (default: 1408)")
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 1], help="tasks (default: 10 and 1)")
    parser.add_argument("--repeats", type=int, default=20, help="repetitions (default: 20)")
    parser.add_argument("--limit", type=float, default=50, help="longest median in ms (default: 50)")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    arguments = parser.parse_args()
    if min(arguments.batch, arguments.dimension, arguments.repeats, *arguments.tasks) < 1:
        parser.error("--batch, --dimension, --repeats and --tasks must be at least 1")
    rows = []
    for tasks in arguments.tasks:
        for name, settings in SETTINGS.items():
            seconds = measure(settings, arguments.batch, arguments.dimension, tasks, arguments.repeats)
            rows.append(
                {
                    "references": name,
                    "tasks": tasks,
                    "batch": arguments.batch,
                    "dimension": arguments.dimension,
                    "median_ms": round(1e3 * float(np.median(seconds)), 2),
                    "longest_ms": round(1e3 * max(seconds), 2),
                }
            )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if arguments.out is not None:
        write_with(arguments.out, lambda path: table.to_csv(path, index=False))
    slow = table[table["median_ms"] > arguments.limit]
    if len(slow):
        sys.exit(f"{len(slow)} of {len(table)} medians are above {arguments.limit:g} ms")


if __name__ == "__main__":
    main()
