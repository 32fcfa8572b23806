"""From episodes to the columns of tidy tables: counts, rates, and variants compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srpo.analysis import sequential
from srpo.analysis.stats import (
    ALPHA,
    NAN,
    NO_PAIRS,
    Difference,
    Estimate,
    Outcomes,
    clustered_wilson,
    difference_over_runs,
    interquartile_mean,
    probability_of_improvement,
    rate_over_runs,
)

PLACE = ["suite", "task_id", "init_state", "perturbation", "perturbation_task"]
"""What was tried: episodes of several seeds on the same are no independent ones."""


def counts(episodes: pd.DataFrame) -> dict[str, int]:
    """Successes, episodes that ran, infrastructure errors (in neither of the two), and seeds."""
    infra = episodes["status"] == "infra_error"
    return {
        "successes": int((episodes["status"] == "success").sum()),
        "episodes": int((~infra).sum()),
        "infra_errors": int(infra.sum()),
        "seeds": int(episodes["seed"].nunique()),
    }


def rate(episodes: pd.DataFrame) -> Estimate:
    """Success rate of the episodes that ran, with Wilson's interval; those of one place are one cluster."""
    ran = episodes[episodes["status"] != "infra_error"]
    clusters = (ran["status"] == "success").astype(int).groupby([ran[key] for key in PLACE], dropna=False)
    return clustered_wilson(clusters.sum().to_numpy(np.int64), clusters.size().to_numpy(np.int64))


def rate_columns(episodes: pd.DataFrame) -> dict[str, float]:
    """`rate` as columns of a tidy row, and the counts."""
    return {**columns_of(rate(episodes)), **counts(episodes)}


def columns_of(estimate: Estimate, name: str = "rate", prefix: str = "") -> dict[str, float]:
    """Flatten an estimate into a tidy row: the value under `name`, its interval under `low` and `high`."""
    return {name: estimate.value, f"{prefix}low": estimate.low, f"{prefix}high": estimate.high}


def compare(
    baseline: pd.DataFrame,
    method: pd.DataFrame,
    *,
    by: str | None = None,
    weights: Mapping[str, float] | None = None,
    times: float = 1.0,
) -> Difference:
    """Success of `method` minus that of `baseline` on the places that both tried.

    Args:
        by: a column of `PLACE`: the mean over its values is compared, each the mean of its places. None: all
            places count alike.
        weights: of the values of `by`; None: all alike.
        times: the baseline's success is multiplied by this.
    """
    before, after = by_place(baseline) * times, by_place(method)
    both = before.index.intersection(after.index).sort_values()
    if both.empty:
        return NO_PAIRS
    values = np.zeros(len(both)) if by is None else both.get_level_values(by).to_numpy()
    names, strata = np.unique(values, return_inverse=True)
    weight = np.array([1.0 if weights is None else weights[name] for name in names])
    suites = list(_suites(strata, weight, after.loc[both], before.loc[both]))
    return difference_over_runs(suites, lowest=-times)


def by_place(episodes: pd.DataFrame) -> pd.DataFrame:
    """Success of the episodes that ran: a row a place, a column a seed, NaN where it has none there."""
    ran = episodes[episodes["status"] != "infra_error"]
    keys = [ran[key].fillna("") if key.startswith("perturbation") else ran[key] for key in PLACE]
    return (ran["status"] == "success").groupby([*keys, ran["seed"]]).mean().unstack()


def _suites(
    strata: NDArray[np.integer],
    weights: NDArray[np.float64],
    method: pd.DataFrame,
    baseline: pd.DataFrame | None = None,
) -> Iterator[Outcomes]:
    """What `by_place` gave, suite by suite: a suite's runs are not another's.

    Args:
        strata: the stratum (S of them) of each place, int (places,).
        weights: float (S,), what a stratum counts; its places share it evenly.
    """
    shares = (weights / weights.sum() / np.bincount(strata))[strata]
    of = method.index.get_level_values("suite")
    for suite in of.unique():
        here = of == suite
        before = None if baseline is None else _runs(baseline[here])
        yield Outcomes(_runs(method[here]), shares[here], strata[here], before)


def _runs(places: pd.DataFrame) -> NDArray[np.float64]:
    """Success, float (runs, places). Where a run lacks a place, it counts as the mean of the others there."""
    runs = places.dropna(axis="columns", how="all").to_numpy(float).T
    return np.where(np.isnan(runs), np.nanmean(runs, axis=0), runs)


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


def mean_over_tasks(episodes: pd.DataFrame) -> Estimate:
    """Success as the mean over the tasks of all suites; for its interval, runs and places are drawn anew."""
    places = by_place(episodes)
    tasks = places.groupby(["suite", "task_id"]).ngroup().to_numpy()
    return rate_over_runs(list(_suites(tasks, np.ones(tasks.max() + 1), places)))


def over_runs(baseline: pd.DataFrame, method: pd.DataFrame) -> dict[str, float]:
    """What a method's training runs in a suite say together, on tasks that all of them ran: columns of a row.

    `runs_low` and `runs_high` bound the success rate with runs and, within each task, states drawn anew
    (`rate` holds the runs fixed). `iqm` is the interquartile mean over runs and tasks, `improvement` the
    chance that a run beats one of the baseline on a task. NaN for one seed, or where a run lacks a task.
    """
    columns = dict.fromkeys(("runs_low", "runs_high", "iqm", "improvement"), NAN)
    rates = by_run(method)
    if len(rates) < 2 or np.isnan(rates).any():
        return columns
    over = mean_over_tasks(method)
    columns |= {"runs_low": over.low, "runs_high": over.high, "iqm": interquartile_mean(rates)}
    before = by_run(baseline)
    if before.shape[1:] == rates.shape[1:] and not np.isnan(before).any():
        columns["improvement"] = probability_of_improvement(rates, before)
    return columns


def by_run(episodes: pd.DataFrame) -> NDArray[np.float64]:
    """Success rates of the episodes that ran, (seeds, tasks); NaN where a seed has none of a task."""
    ran = episodes[episodes["status"] != "infra_error"]
    rates = (ran["status"] == "success").groupby([ran["seed"], ran["task_id"]]).mean()
    return rates.unstack().to_numpy(float)


def comparison_columns(result: Difference) -> dict[str, Any]:
    """Flatten a difference into a tidy row."""
    return {
        **columns_of(result.estimate, "difference", "difference_"),
        "pairs": result.pairs,
        "p_value": result.p_value,
    }


def cells(table: pd.DataFrame, *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of a tidy table by the values of some columns."""
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    return {tuple(row[key] for key in keys): row for row in rows}


# ---------------------------------------------------------------------------- evaluations that may stop early


def rate_at_any_time(
    episodes: pd.DataFrame,
    shards: pd.DataFrame | None = None,
    weights: Mapping[str, float] | None = None,
) -> Estimate:
    """`rate` with an interval that holds whenever the evaluation stops (`srpo.analysis.sequential`).

    Args:
        shards, weights: of sweeps of LIBERO-Plus (`_sequences`).
    """
    return sequential.rate(*_sequences(by_place(episodes), shards, weights))


def compare_at_any_time(
    baseline: pd.DataFrame,
    method: pd.DataFrame,
    *,
    alpha: float = ALPHA,
    shards: pd.DataFrame | None = None,
    weights: Mapping[str, float] | None = None,
) -> Difference:
    """`compare` by suite with interval (at alpha) and p that hold whenever either evaluation stops.

    The runs (seeds) are those that there are: nothing is said of others. A baseline of several runs counts as
    their mean where all of them ran: what is compared with must not change when one of them stops.

    Args:
        shards, weights: of sweeps of LIBERO-Plus (`_sequences`).
    """
    before, after = by_place(baseline).dropna(), by_place(method)
    both = before.index.intersection(after.index)
    if both.empty:
        return NO_PAIRS
    first = before.loc[both].mean(axis="columns")
    sequences, counts = _sequences(after.loc[both].sub(first, axis="index"), shards, weights)
    return sequential.difference(sequences, len(both), (before.shape[1], after.shape[1]), alpha, counts)


def _sequences(
    places: pd.DataFrame, shards: pd.DataFrame | None, weights: Mapping[str, float] | None
) -> tuple[list[NDArray[np.float64]], list[float]]:
    """The values of each suite and run, float (places,), state by state; and what each counts.

    Args:
        places: a row a place, a column a run, as `by_place` gives.
        shards: a row a task that sweeps were to run: suite, perturbation, perturbation_task, shard. What a
            run has of a perturbation in a shard is then a sequence, which counts by its tasks.
        weights: of perturbations, whose mean is then meant; None: all alike.
    """
    if shards is None:
        ordered = places.sort_index(level="init_state", kind="stable")
        sequences = [
            runs[run].dropna().to_numpy(float)
            for _, runs in ordered.groupby(level="suite")
            for run in runs
            if runs[run].notna().any()
        ]
        return sequences, [1.0] * len(sequences)
    suites, names = (places.index.get_level_values(key) for key in ("suite", "perturbation_task"))
    sequences, counts = [], []
    for (suite, perturbation, _), tasks in shards.groupby(["suite", "perturbation", "shard"]):
        part = places[(suites == suite) & names.isin(tasks["perturbation_task"])]
        share = len(tasks) / (shards["perturbation"] == perturbation).sum()
        sequences += [part[run].dropna().to_numpy(float) for run in part]
        counts += part.shape[1] * [share if weights is None else share * weights[str(perturbation)]]
    return sequences, counts
