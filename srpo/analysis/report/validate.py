"""Check result files against their schemas, and their rows against one another.

srpo validate results/smoke
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from srpo.errors import run_command
from srpo.results import ResultError
from srpo.results.rows import check_episodes, read_rows
from srpo.results.schemas import (
    BENCHMARK,
    CURVES,
    EPISODES,
    PATHS,
    REWARDS,
    RL_METRICS,
    SFT_METRICS,
    TASK_METRICS,
    VALUES,
    Schema,
)

SAMPLED = "sampled.parquet"
NAMES = {
    **{"episodes.parquet": EPISODES, SAMPLED: EPISODES, "paths.parquet": PATHS},
    **{"rewards.parquet": REWARDS, "values.parquet": VALUES},
}


def schema_of(path: Path) -> Schema | None:
    """The schema that a file of results has, by where it stands; None: it is no file of rows."""
    path = path.absolute()  # of a file in the current folder too
    if path.name in NAMES:
        return NAMES[path.name]
    if path.suffix == ".parquet" and path.parent.name == "plus":
        return EPISODES
    if path.suffix == ".parquet" and path.parents[1].name == "reward_benchmark":
        return CURVES if path.stem.endswith("-curves") else BENCHMARK
    if path.name == "tasks.csv" and path.with_name("metrics.csv").is_file():
        return TASK_METRICS
    if path.name == "metrics.csv" and path.with_name("config.yaml").is_file():
        return RL_METRICS if path.with_name("rewards.parquet").is_file() else SFT_METRICS
    return None


def result_files(folder: Path) -> Iterator[tuple[Path, Schema]]:
    """The files of rows below a folder, in order."""
    for path in sorted([*folder.rglob("*.parquet"), *folder.rglob("*.csv")]):
        if schema := schema_of(path):
            yield path, schema


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="srpo validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a preset's results, e.g. results/smoke")
    arguments = parser.parse_args(argv)
    number, wrong = 0, 0
    for path, schema in result_files(arguments.folder):
        number += 1
        try:
            rows = read_rows(path, schema)
            if schema is EPISODES and (len(rows) or path.name != SAMPLED):  # an evaluation may sample none
                check_episodes(rows)
        except ResultError as error:
            wrong += 1
            print(error if str(path) in str(error) else f"{path}: {error}")
        else:
            print(f"{path}: {len(rows)} rows of {schema.name}")
    if not number:
        sys.exit(f"error: {arguments.folder}: there are no result files in it")
    print(f"{number} files, {wrong} of them wrong")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
