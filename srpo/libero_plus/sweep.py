"""A LIBERO-Plus sweep: its tasks, the episodes that it must have, and its shards put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from srpo.config import PlusStage, load_stage
from srpo.libero_plus.tasks import PlusTask, read_tasks, sample, style_tasks
from srpo.results.coverage import missing_rows
from srpo.results.rows import read_episodes, write_rows
from srpo.results.schemas import EPISODES

EPISODE = ["suite", "variant", "seed", "task_id", "perturbation", "perturbation_task"]
"""Columns by which an episode of a sweep is known."""


def sweep_tasks(config: PlusStage, tasks: Iterable[PlusTask]) -> list[PlusTask]:
    """The tasks of one run, in the order of its shards: a sample of LIBERO-Plus's, then our styles'."""
    plus = config.plus
    return [
        *sample(tasks, config.suite, config.tasks, plus.dimensions, plus.per_dimension, plus.seed),
        *style_tasks(config.suite, config.tasks, plus.styles),
    ]


def expected_episodes(configs: Sequence[PlusStage], tasks: Sequence[PlusTask]) -> pd.DataFrame:
    """The episodes of these sweeps: suite, variant, seed, task_id, perturbation, perturbation_task."""
    return expected_shards(configs, tasks)[EPISODE]


def expected_shards(configs: Sequence[PlusStage], tasks: Sequence[PlusTask]) -> pd.DataFrame:
    """The same with each episode's `shard`, and whether that may stop early (`stops_early`)."""
    return pd.DataFrame(
        [
            (config.suite, config.variant, config.seed, task.task_id, task.dimension, task.name, *shard)
            for config in configs
            for place, task in enumerate(sweep_tasks(config, tasks))
            for shard in [(place // config.plus.shard_size, config.stops_early)]
        ],
        columns=[*EPISODE, "shard", "stops_early"],
    )


def merge_shards(config: Path, tasks: Path, shards: Sequence[Path], out: Path) -> None:
    """Write a sweep's shards as one file, with exactly one row for every task, and print a summary.

    Raises:
        ResultError: rows are missing, repeated or of tasks that are not in the sweep.
    """
    episodes = read_episodes(shards)
    expected = expected_episodes([load_stage(config, PlusStage)], read_tasks(tasks))
    missing_rows(episodes, expected, allow_incomplete=False)
    records = [{str(name): value for name, value in row.items()} for row in episodes.to_dict("records")]
    write_rows(out, records, EPISODES)
    counts = Counter((row["perturbation"], row["status"]) for row in records)
    for (dimension, status), number in sorted(counts.items()):
        print(f"{dimension}: {number} {status}")
