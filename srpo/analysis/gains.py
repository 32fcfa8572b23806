"""What reinforcement learning changed, in a few sentences with counts: what a report says first.

python -m srpo.analysis.gains --sheet F2.tsv --metrics METRICS.csv ... --pair T1.tsv
    --episodes EPISODES.parquet ... --csv FILE --text FILE

Of the training rollouts of each variant, the first third of its RL steps beside the last; of the greedy
episodes on held-out states, the SFT policy's beside the trained one's. "Rose" is said where the two 95%
intervals (Wilson's) do not overlap, all seeds of a suite together.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from srpo.analysis import f2, t1, tables
from srpo.analysis.stats import wilson
from srpo.analysis.tables import SUITE_LABELS, percent
from srpo.config import EvaluateStage
from srpo.results.rows import read_config, run
from srpo.runtime.files import write_text, write_with

TRAINING, HELD_OUT = "training rollouts", "greedy, held-out states"


def estimate(
    metrics: pd.DataFrame, curves: Mapping[str, str], episodes: pd.DataFrame, results: Mapping[str, str]
) -> pd.DataFrame:
    """The tidy table, one row a (suite, variant, what): counts and rates before and after.

    Args:
        metrics: of `f2.read_metrics`, its variants and labels in `curves`.
        episodes: greedy ones, their variants and labels in `results`, whose first is the start of all.
    """
    rows: list[dict[str, Any]] = []

    def add(suite: str, variant: str, label: str, what: str, before: list[int], after: list[int]) -> None:
        first, last = wilson(*before), wilson(*after)
        verdict = "rose" if last.low > first.high else "fell" if last.high < first.low else "undecided"
        rows.append(
            {"suite": suite, "variant": variant, "label": label, "what": what}
            | {"successes_before": before[0], "episodes_before": before[1]}
            | tables.columns_of(first, "before", "before_")
            | {"successes_after": after[0], "episodes_after": after[1]}
            | tables.columns_of(last, "after", "after_")
            | {"verdict": verdict}
        )

    for suite, variant in metrics[["suite", "variant"]].drop_duplicates().to_numpy():
        own = metrics[(metrics["suite"] == suite) & (metrics["variant"] == variant)]
        steps = own["step"].max()
        third = max(1, steps // 3)
        parts = own[own["step"] <= third], own[own["step"] > steps - third]
        before, after = ([int(p["successes"].sum()), int(p["episodes"].sum())] for p in parts)
        add(suite, variant, curves[variant], TRAINING, before, after)
    start = next(iter(results))
    for suite in episodes["suite"].unique():
        here = episodes[episodes["suite"] == suite]
        counted = {variant: tables.counts(here[here["variant"] == variant]) for variant in results}
        pairs = {v: [found["successes"], found["episodes"]] for v, found in counted.items()}
        for variant, label in list(results.items())[1:]:
            add(suite, variant, label, HELD_OUT, pairs[start], pairs[variant])
    return pd.DataFrame(rows)


def sentences(table: pd.DataFrame) -> Iterator[str]:
    """A line a row."""
    for row in table.to_dict("records"):
        before, after = (
            f"{percent(row[when])}% ({row[f'successes_{when}']} of {row[f'episodes_{when}']})"
            for when in ("before", "after")
        )
        where = f"{row['label']}, {SUITE_LABELS[row['suite']]}: success of {row['what']}"
        said = {"rose": "rose from", "fell": "fell from", "undecided": "went, within its noise, from"}
        ends = ("in the first third of the RL steps", "in the last third")
        if row["what"] == HELD_OUT:
            ends = ("after SFT", "after RL")
        yield f"{where} {said[row['verdict']]} {before} {ends[0]} to {after} {ends[1]}."


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m srpo.analysis.gains", description=__doc__)
    parser.add_argument("--sheet", type=Path, required=True, help="sheet of the training curves (TSV)")
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="metrics.csv of those runs")
    parser.add_argument("--pair", type=Path, required=True, help="sheet of the evaluations (TSV)")
    parser.add_argument("--episodes", type=Path, nargs="+", required=True, help="their episodes.parquet")
    parser.add_argument("--csv", type=Path, required=True, help="tidy table to write")
    parser.add_argument("--text", type=Path, required=True, help="the same in sentences")
    arguments = parser.parse_args(argv)
    curves, results = tables.read_sheet(arguments.sheet), tables.read_sheet(arguments.pair)
    metrics, _ = f2.read_metrics(arguments.metrics, curves, allow_incomplete=False)
    expected = t1.expected_episodes([read_config(path, EvaluateStage) for path in arguments.episodes])
    episodes, _ = tables.load_episodes(arguments.episodes, "libero", results, expected, incomplete=False)
    table = estimate(metrics, curves, episodes, results)
    write_with(arguments.csv, lambda temporary: table.to_csv(temporary, index=False))
    write_text(arguments.text, "".join(f"{line}\n" for line in sentences(table)))


if __name__ == "__main__":
    run(main)
