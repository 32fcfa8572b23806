"""Whether progress rewards are right, by what progress is: the policy's own chance of success, by branches.

`srpo.values` measured it at moments of the trajectories behind T3. Beside the representations stand two
controls: the simulator's distance to the goal, and the value itself, measured a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from srpo.analysis import comparisons, style, text, typeset
from srpo.analysis.drawn import Drawn
from srpo.analysis.stats import NAN, Estimate, clustered_wilson, percentile_interval
from srpo.analysis.tables.t3_truth import (
    RESAMPLES,
    along,
    concordance,
    draw_measures,
    mean_along,
    shared,
    table_rows,
    value_and_interval,
)
from srpo.analysis.values import (
    DISTANCE,
    KEYS,
    beside,
    lost_from,
    read_values,
    require_same_trajectories,
    with_distance,
)
from srpo.results import ResultError
from srpo.results.coverage import load_benchmark
from srpo.results.schemas import CURVES

AGAIN = "value, drawn again"
"""The control that knows the value as as many other branches might tell it, by one random draw: about how far
the measurement would agree with itself."""
LOST = "steps after a failure was lost"
"""A measure of the failures alone: the share of their control steps after `lost_from`."""
CALIBRATION = "calibration"
EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the bins of progress in which values are compared with it."""

MEASURES = {
    "along successes": "along\nsuccesses",
    "along failures": "along\nfailures",
    "in order": "failures\nin order",
    "in order, equal length": "failures in order,\nat equal length",
}
"""Measure → heading. The first two are rank correlations, the others shares of pairs."""
CHANCE = {"in order": 0.5, "in order, equal length": 0.5}


def make(curves: Sequence[Path], values: Sequence[Path], allow_incomplete: bool) -> Drawn:
    """The table of the reward benchmark's curves and of the values of the same trajectories."""
    require_same_trajectories(curves, values)
    rows, missing = load_benchmark(curves, CURVES, "curves", allow_incomplete)
    rows, truth = shared(rows), read_values(values)
    unvalued = len(rows.merge(truth[KEYS], how="left_anti", on=KEYS)[KEYS].drop_duplicates())
    if unvalued and not allow_incomplete:
        raise ResultError(f"incomplete: {unvalued} trajectories that were scored have no values")
    table = estimate(rows, truth)
    absent = [f"{missing} sets of curves"] if missing else []
    return Drawn(
        table,
        lambda: draw(table),
        layout(table, text.benchmark_protocol(curves)),
        missing=text.lacking(absent, "trajectories' values", unvalued),
    )


def estimate(curves: pd.DataFrame, values: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The tidy table: a row a (representation, measure), and for the calibration also a bin of progress.

    Args:
        curves: of trajectories that all representations scored (`t3_truth.shared`).
        values: of `read_values`; trajectories that are not in both are left out.
    """
    curves = with_distance(curves)
    moments = beside(curves, values)
    again = drawn_again(moments[moments["representation"] == DISTANCE], np.random.default_rng(seed))
    ends = final_progress(curves)
    ends_again = again.groupby(KEYS)["progress"].mean().rename("end").reset_index()
    ends_again = ends_again.assign(representation=AGAIN, matched=NAN)
    truth = values[~values["success"]].groupby(KEYS)["value"].mean().rename("value").reset_index()
    both = pd.concat([moments.astype({"representation": str}), again])
    ends = pd.concat([ends.astype({"representation": str}), ends_again])
    rows = []
    for name, own in both.groupby("representation", sort=False):
        failures = truth.merge(ends[ends["representation"] == name], on=KEYS)
        rows += _rows_of(str(name), own, failures, seed)
        rows += calibration(str(name), own)
    lost = lost_shares(moments[(moments["representation"] == DISTANCE) & ~moments["success"]], curves)
    value = mean_along(lost, np.random.default_rng(seed))
    rows.append(_row(AGAIN, LOST, value, sum(map(len, lost))))
    return pd.DataFrame(rows)


def _row(
    name: str, measure: str, value: Estimate, trajectories: int, progress: float = NAN
) -> dict[str, Any]:
    return {
        "representation": name,
        "measure": measure,
        "progress": progress,
        **comparisons.columns_of(value, "value"),
        "trajectories": trajectories,
    }


def _rows_of(name: str, moments: pd.DataFrame, failures: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    rows = []
    for measure, success in (("along successes", True), ("along failures", False)):
        chosen = moments[moments["success"] == success]
        tasks = along(chosen.assign(failing=-chosen["value"]), "failing")
        value = mean_along(tasks, np.random.default_rng(seed))
        rows.append(_row(name, measure, value, sum(map(len, tasks))))
    for measure, column in (("in order", "end"), ("in order, equal length", "matched")):
        value = in_order(failures.dropna(subset=column), column, np.random.default_rng(seed))
        rows.append(_row(name, measure, value, len(failures)))
    return rows


def drawn_again(moments: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The moments with the value as other branches might have told it, as `progress`.

    Drawn from what the branches say of the value (Jeffreys' posterior) and then anew for as many branches.
    """
    wins, number = moments["successes"].to_numpy(), moments["branches"].to_numpy()
    drawn = rng.binomial(number, rng.beta(wins + 0.5, number - wins + 0.5)) / number
    return moments.assign(representation=AGAIN, progress=drawn)


def final_progress(curves: pd.DataFrame) -> pd.DataFrame:
    """For each trajectory and representation, minus the distance that it is rewarded by: `end` of the whole
    trajectory, `matched` of its last prefix of no more steps than the median success of its task takes."""
    curves = curves.sort_values("step", kind="stable")
    last = curves.groupby(["representation", *KEYS], observed=True).tail(1)
    won = last[last["success"]].drop_duplicates(KEYS)
    median = won.groupby(["suite", "task_id"])["step"].median().rename("median").reset_index()
    within = curves.merge(median, on=["suite", "task_id"])
    within = within[within["step"] <= within["median"]]
    matched = within.groupby(["representation", *KEYS], observed=True).tail(1)
    keys = ["representation", *KEYS]
    ends = last[[*keys, "distance"]].assign(end=-last["distance"])
    matched = matched[[*keys, "distance"]].assign(matched=-matched["distance"])
    return ends.drop(columns="distance").merge(matched.drop(columns="distance"), how="left", on=keys)


def in_order(failures: pd.DataFrame, column: str, rng: np.random.Generator) -> Estimate:
    """Share of pairs of failures of a task that a reward puts in the order of their mean values.

    Pairs of equal value have no order. The interval draws failures anew within each task.

    Args:
        failures: a row each, with suite, task_id, value and the reward `column`.
    """
    tasks = [rows for _, rows in failures.groupby(["suite", "task_id"])]
    counts = np.array([concordance(rows[column].to_numpy(), -rows["value"].to_numpy()) for rows in tasks])
    if not len(counts) or not counts[:, 1].sum():
        return Estimate(NAN, NAN, NAN)
    draws = np.zeros((RESAMPLES, 2))
    for rows in tasks:
        reward, value = rows[column].to_numpy(), rows["value"].to_numpy()
        for draw, chosen in enumerate(rng.integers(0, len(rows), (RESAMPLES, len(rows)))):
            draws[draw] += concordance(reward[chosen], -value[chosen])
    right, pairs = counts.sum(axis=0)
    shares = np.divide(draws[:, 0], draws[:, 1], out=np.full(RESAMPLES, NAN), where=draws[:, 1] > 0)
    return Estimate(float(right / pairs), *percentile_interval(shares))


def calibration(name: str, moments: pd.DataFrame) -> list[dict[str, Any]]:
    """The chance of success at moments of like progress: a row a bin of `EDGES` that has any.

    Wilson's interval, with the branches of one trajectory as a cluster.
    """
    bins = np.clip(np.digitize(moments["progress"], EDGES) - 1, 0, len(EDGES) - 2)
    rows = []
    for number in np.unique(bins):
        here = moments[bins == number].groupby(KEYS)[["successes", "branches"]].sum()
        value = clustered_wilson(here["successes"].to_numpy(), here["branches"].to_numpy())
        middle = (EDGES[number] + EDGES[number + 1]) / 2
        rows.append(_row(name, CALIBRATION, value, len(here), middle))
    return rows


def lost_shares(failures: pd.DataFrame, curves: pd.DataFrame) -> list[NDArray[np.float64]]:
    """The share of each failure's control steps after it was lost, an array a task."""
    steps = curves.groupby(KEYS)["step"].max().to_dict()
    tasks: dict[tuple[Any, ...], list[float]] = {}
    for (suite, task, trajectory), moments in failures.groupby(KEYS):
        whole, lost = steps[suite, task, trajectory], lost_from(moments)
        tasks.setdefault((suite, task), []).append(0.0 if np.isnan(lost) else 1 - lost / whole)
    return [np.array(shares) for shares in tasks.values()]


# What is shown.


def layout(table: pd.DataFrame, protocol: str) -> typeset.Table:
    """A row a representation, a column a measure."""
    cells = comparisons.cells(table[table["measure"] != CALIBRATION], "representation", "measure")
    rows = table_rows(cells, MEASURES)
    share = " ".join(value_and_interval(cells[AGAIN, LOST]))
    notes = [
        "The value of a moment is the share of the policy's own branches from there that succeed. Along: "
        "rank correlation (Spearman) of progress with value over the moments of a trajectory whose value "
        "changes, mean over trajectories. Failures in order: the share of pairs of failures of a task that "
        "the reward, the distance that the whole trajectory ends at, puts in the order of their mean values; "
        "at equal length, as if they had ended after as many steps as the median success; 0.5 is chance. "
        "Beneath the value, its 95% interval (percentile bootstrap over trajectories of each task) and the "
        "number of trajectories. Last row: the value itself as a second set of branches might tell it, one "
        "random draw from what the first says: about how far such a measurement agrees with itself. "
        "Of a failure's steps, those after the moment from which on no branch succeeded any more are a share "
        f"of {share}.",
    ]
    caption = f"Whether progress rewards are right, by the policy's own chance of success. {protocol}"
    columns = [heading.replace("\n", " ") for heading in MEASURES.values()]
    return typeset.Table(caption, "Representation", columns, [typeset.Group("", rows)], notes)


def draw(table: pd.DataFrame) -> Figure:
    """Above a panel a measure, one row a representation; below a panel a representation, its calibration."""
    cells = comparisons.cells(table[table["measure"] != CALIBRATION], "representation", "measure")
    names = list(dict.fromkeys(table["representation"]))
    height = 0.95 + 0.26 * len(names)
    figure = Figure(figsize=(style.FULL_WIDTH, height + 1.9), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(height, 1.9))[:, 0]
    draw_measures(above, cells, names, MEASURES, CHANCE)
    above.supxlabel("rank correlation with value; right: share of pairs", fontsize=7)
    curves = below.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(curves, names, strict=True):
        own = table[(table["measure"] == CALIBRATION) & (table["representation"] == name)]
        _calibration(axes, name, own)
    curves[0].set_ylabel("chance of success")
    below.supxlabel("progress", fontsize=7)
    return figure


def _calibration(axes: Axes, name: str, rows: pd.DataFrame) -> None:
    colour, marker = style.look(name)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.6, zorder=0)
    axes.vlines(rows["progress"], rows["low"], rows["high"], color=colour, linewidth=1.3)
    axes.plot(rows["progress"], rows["value"], color=colour, marker=marker, markersize=3.5, linewidth=0.8)
    axes.set(xlim=(0, 1), ylim=(-0.03, 1.03), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axes.set_title(name.replace(", ", ",\n").replace("distance to", "distance\nto"), fontsize=7)
