"""From episodes to the columns of tidy tables: counts, rates, and variants compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srpo.analysis.stats import (
    Estimate,
    PairedDifference,
    hierarchical,
    interquartile_mean,
    paired_difference,
    probability_of_improvement,
    wilson,
)


def counts(episodes: pd.DataFrame) -> dict[str, int]:
    """Successes, episodes that ran, infrastructure errors (in neither of the two), and seeds."""
    infra = episodes["status"] == "infra_error"
    return {
        "successes": int((episodes["status"] == "success").sum()),
        "episodes": int((~infra).sum()),
        "infra_errors": int(infra.sum()),
        "seeds": int(episodes["seed"].nunique()),
    }


def rate_columns(count: Mapping[str, int]) -> dict[str, float]:
    """The success rate of `counts` with Wilson's interval, as columns of a tidy row, and the counts."""
    return {**columns_of(wilson(count["successes"], count["episodes"])), **count}


def columns_of(estimate: Estimate, name: str = "rate", prefix: str = "") -> dict[str, float]:
    """Flatten an estimate into a tidy row: the value under `name`, its interval under `low` and `high`."""
    return {name: estimate.value, f"{prefix}low": estimate.low, f"{prefix}high": estimate.high}


def compare(baseline: pd.DataFrame, method: pd.DataFrame) -> PairedDifference:
    """Paired difference of two variants' episodes on the tasks and states that both ran."""
    keys = ["suite", "task_id", "init_state", "perturbation_task"]

    def rates(episodes: pd.DataFrame) -> pd.Series:
        ran = episodes[episodes["status"] != "infra_error"]
        return (ran["status"] == "success").groupby([ran[key] for key in keys], dropna=False).mean()

    pairs = pd.concat([rates(baseline), rates(method)], axis=1, join="inner", keys=["baseline", "method"])
    return paired_difference(pairs["baseline"].to_numpy(float), pairs["method"].to_numpy(float))


def clearly_best(
    rows: pd.DataFrame, by: Sequence[str], name: str, value: str, difference: Callable[..., Estimate]
) -> pd.Index:
    """The rows of a tidy table that hold the highest value of their group beyond doubt: their index.

    Args:
        rows: those without a value take no part.
        by: columns; rows that agree in them are compared.
        name, value: the column that says whose row it is, and the column compared.
        difference: called with the values of `by`, then the second's name and the first's: the first's value
            minus the second's. Beyond doubt is a 95% interval above 0; one that is NaN is not.
    """
    best = []
    for key, group in rows.dropna(subset=[value]).groupby(list(by)):
        group = group.sort_values(value, ascending=False, kind="stable")
        if len(group) > 1 and difference(*key, group[name].iloc[1], group[name].iloc[0]).low > 0:
            best.append(group.index[0])
    return pd.Index(best)


def over_runs(baseline: pd.DataFrame, method: pd.DataFrame) -> dict[str, float]:
    """What a method's training runs say together, on tasks that all of them ran: columns of a tidy row.

    `runs_low` and `runs_high` bound the success rate by a bootstrap of seeds and of episodes within each task
    (Wilson's interval of the pooled episodes takes those of one policy for independent of its seed). `iqm` is
    the interquartile mean over runs and tasks, `improvement` the chance that a run beats one of the baseline
    on a task. NaN for one seed, or where a run lacks a task.
    """
    columns = dict.fromkeys(("runs_low", "runs_high", "iqm", "improvement"), np.nan)
    successes, episodes = by_run(method)
    if len(successes) < 2 or (episodes == 0).any():
        return columns
    rate = hierarchical(successes, episodes, np.random.default_rng(0))
    columns |= {"runs_low": rate.low, "runs_high": rate.high, "iqm": interquartile_mean(successes / episodes)}
    baseline_successes, baseline_episodes = by_run(baseline)
    if baseline_episodes.shape[1:] == episodes.shape[1:] and (baseline_episodes > 0).all():
        rates = successes / episodes, baseline_successes / baseline_episodes
        columns["improvement"] = probability_of_improvement(*rates)
    return columns


def by_run(episodes: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Successes and episodes that ran, int64 (seeds, tasks) each."""
    ran = episodes[episodes["status"] != "infra_error"]
    success = (ran["status"] == "success").groupby([ran["seed"], ran["task_id"]])
    sums, sizes = (getattr(success, name)().unstack(fill_value=0) for name in ("sum", "size"))
    return sums.to_numpy(np.int64), sizes.to_numpy(np.int64)


def comparison_columns(result: PairedDifference) -> dict[str, Any]:
    """Flatten a paired difference into a tidy row."""
    return {
        **columns_of(result.estimate, "difference", "difference_"),
        "pairs": result.pairs,
        "p_value": result.p_value,
        "test": result.test,
    }


def cells(table: pd.DataFrame, *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of a tidy table by the values of some columns."""
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    return {tuple(row[key] for key in keys): row for row in rows}
