"""How often evaluations that may stop early err, and how early they stop, by simulation on a preset's rows.

    python benchmarks/sequential.py --results results/reference/smoke [--repeats 2000] [--out FILE.csv]

Every pair of evaluations of a suite gives outcomes on the same places (task, state). An evaluation of `tasks`
tasks and `states` states is simulated by drawing places with replacement; for `no difference`, the two of
each place change sides by a coin. There is a look every `LOOK_EVERY` states, as in `srpo evaluate`. Rows:

    pair, tasks, states, case   `as they are` or `no difference`
    difference                  the mean of which is drawn
    decided                     share of simulated evaluations decided at some look, or at the end: the error
                                rate where there is no difference, else the power
    wrong                       share decided for the worse one, where there is a difference
    run                         mean share of the episodes that were run
    fixed                       share that a t test decides on all states, at 5%: what is given up
    t_at_each_look              the same with a t test at each look: what is wrong with looking at p
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import ttest_1samp

from srpo.analysis import comparisons
from srpo.analysis.sequential import LOOK_EVERY, log_capital
from srpo.analysis.stats import ALPHA
from srpo.results.rows import read_episodes
from srpo.runtime.files import write_with

STATES = 50
"""Of a task of LIBERO."""


def pairs(results: Path) -> dict[str, NDArray[np.float64]]:
    """The differences of success on the places that two evaluations share, by their names."""
    files = sorted(results.glob("runs/*/*/seed*/evaluation/episodes.parquet"))
    places = comparisons.by_place(read_episodes(files).assign(seed=lambda rows: rows["variant"]))
    return {
        f"{other} − {one}": (places[other] - places[one]).dropna().to_numpy(float)
        for one, other in combinations(places.columns, 2)
    }


def simulate(
    differences: NDArray[np.float64], tasks: int, null: bool, repeats: int, rng: np.random.Generator
) -> dict[str, float]:
    """Simulated evaluations of `STATES` states: the measures of a row."""
    values = rng.choice(differences, (repeats, STATES * tasks))
    if null:
        values *= rng.choice([-1.0, 1.0], values.shape)
    looks = tasks * np.arange(LOOK_EVERY, STATES + 1, LOOK_EVERY)
    capital = np.stack([log_capital((row + 1) / 2, 0.5)[looks - 1] for row in values])
    won = capital >= -np.log(ALPHA)
    decided = won.any(axis=1)
    last = np.where(decided, won.argmax(axis=1), len(looks) - 1)
    sides = np.sign([row[: looks[look]].mean() for row, look in zip(values, last, strict=True)])
    with np.errstate(all="ignore"):
        p = np.stack([ttest_1samp(values[:, :look], 0, axis=1).pvalue for look in looks], axis=1)
    return {
        "difference": 0.0 if null else float(differences.mean()),
        "decided": float(decided.mean()),
        "wrong": np.nan if null else float((decided & (sides != np.sign(differences.mean()))).mean()),
        "run": float((looks[last] / looks[-1]).mean()),
        "fixed": float((p[:, -1] < ALPHA).mean()),
        "t_at_each_look": float((p < ALPHA).any(axis=1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="folder of a preset's results")
    parser.add_argument(
        "--repeats", type=int, default=2000, help="simulated evaluations a row (default: 2000)"
    )
    parser.add_argument("--out", type=Path, help="CSV file to write")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = [
        {"pair": pair, "tasks": tasks, "states": STATES, "case": "no difference" if null else "as they are"}
        | simulate(differences, tasks, null, arguments.repeats, rng)
        for pair, differences in pairs(arguments.results).items()
        for tasks in (1, 10)
        for null in (True, False)
    ]
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    if arguments.out is not None:
        write_with(arguments.out, lambda path: table.to_csv(path, index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
