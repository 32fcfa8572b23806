"""Areas under training curves of several sets of runs, set by set and over all sets together.

    python benchmarks/areas.py docs/evidence/spatial_*.csv results/reference/mini/runs/libero_spatial \
        --variants grpo srpo

A set is a CSV with the columns variant, seed, step, episodes and successes, or the folder of a suite
(<variant>/seed<N>/metrics.csv). Prints a table: the area of each run in percent, and the second variant minus
the first with the interval of `srpo evidence` (runs drawn anew within a set; over all: the mean over sets).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srpo.analysis.report.claims import points_text
from srpo.analysis.stats import area_difference, area_under_curve
from srpo.analysis.text import p_text, percent
from srpo.analysis.typeset import to_markdown
from srpo.results.coverage import load_metrics


def read_set(path: Path, variants: Sequence[str]) -> pd.DataFrame:
    """The rows of a set: variant, seed, step, episodes, successes."""
    if path.is_file():
        return pd.read_csv(path)
    files = [file for variant in variants for file in path.glob(f"{variant}/seed*/metrics.csv")]
    return load_metrics(files, variants, allow_incomplete=False)[0]


def areas(rows: pd.DataFrame, variant: str) -> NDArray[np.float64]:
    """Area of each run, by seed."""
    rows = rows[rows["variant"] == variant].assign(rate=rows["successes"] / rows["episodes"])
    runs = rows.groupby("seed")
    return np.array([area_under_curve(run["step"].to_numpy(), run["rate"].to_numpy()) for _, run in runs])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", type=Path, help="CSVs, or folders of a suite")
    parser.add_argument("--variants", nargs=2, default=["grpo", "srpo"], metavar="VARIANT")
    arguments = parser.parse_args()
    low, high = arguments.variants
    sets = {path.stem: read_set(path, arguments.variants) for path in arguments.sets}
    first, second = ([areas(rows, variant) for rows in sets.values()] for variant in (low, high))
    table = []
    for name, one, other in zip(sets, first, second, strict=True):
        difference = area_difference([one], [other])
        runs = [", ".join(map(percent, each)) for each in (one, other)]
        table.append([name, *runs, points_text(difference.estimate), p_text(difference.p_value)])
    difference = area_difference(first, second)
    means = [percent(float(np.mean([one.mean() for one in each]))) for each in (first, second)]
    table.append(["mean", *means, points_text(difference.estimate), p_text(difference.p_value)])
    print(to_markdown(["set", f"{low} (%)", f"{high} (%)", f"{high} − {low}", ""], table))


if __name__ == "__main__":
    main()
