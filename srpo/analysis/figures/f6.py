"""Figure F6: a failure of each suite: its frames, the policy's chance of success, every progress reward.

Where the chance goes to zero is where the failure was lost; a reward that saw it falls, or stops rising.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from srpo.analysis import style, text
from srpo.analysis.drawn import Drawn
from srpo.analysis.figures.f1 import Strips, draw_legend, draw_strip, plot_progress, read_strips
from srpo.analysis.tables.t3_truth import shared
from srpo.analysis.values import KEYS, lost_from, read_values, require_same_trajectories, with_distance
from srpo.config import SUITES
from srpo.results import ResultError
from srpo.results.coverage import load_benchmark
from srpo.results.schemas import CURVES

VALUE = "chance of success"


def make(
    curves: Sequence[Path], trajectories: Sequence[Path], values: Sequence[Path], allow_incomplete: bool
) -> Drawn:
    """The figure from the reward benchmark's curves and folders of trajectories, and from their values."""
    require_same_trajectories(curves, values)
    rows, missing = load_benchmark(curves, CURVES, "curves", allow_incomplete)
    truth = read_values(values)
    chosen = choose(shared(rows), truth)
    table = tidy(with_distance(chosen), truth)
    strips = read_strips(trajectories, chosen)
    return Drawn(table, lambda: draw(table, strips), missing=text.lacking([], "sets of curves", missing))


def choose(curves: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """The curves of a failure of each suite, chosen by its values alone: the one that threw most away.

    That is the failure with the highest value, and of these the first.

    Raises:
        ResultError: no failure has both values and curves.
    """
    failures = values[~values["success"]].merge(curves[KEYS].drop_duplicates(), on=KEYS)
    if failures.empty:
        raise ResultError("no failure has both values and curves: give those of the same trajectories")
    best = failures.sort_values(["value", *KEYS], ascending=[False, True, True, True], kind="stable")
    chosen = best.drop_duplicates("suite")[KEYS]
    return curves.merge(chosen, on=KEYS)


def tidy(curves: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """What is drawn: points of `VALUE`, with intervals, and of each representation's progress."""
    names = list(curves["representation"].cat.categories)
    progress = curves.astype({"representation": str}).rename(columns={"representation": "quantity"})
    progress = progress.rename(columns={"progress": "y"})[[*KEYS, "quantity", "step", "y"]]
    moments = values.merge(curves[KEYS].drop_duplicates(), on=KEYS)
    lost = moments.groupby(KEYS)[["step", "successes"]].apply(lost_from).rename("lost").reset_index()
    chance = moments.assign(quantity=VALUE).rename(columns={"value": "y"})
    chance = chance[[*KEYS, "quantity", "step", "y", "low", "high", "branches"]].merge(lost, on=KEYS)
    both = pd.concat([chance, progress], ignore_index=True)
    both["quantity"] = pd.Categorical(both["quantity"], [VALUE, *names])
    both["suite"] = pd.Categorical(both["suite"], [suite for suite in SUITES if suite in set(both["suite"])])
    return both.sort_values(["suite", "quantity", "step"], ignore_index=True)


def draw(table: pd.DataFrame, strips: Strips) -> Figure:
    """For each suite: the frames, below them the chance of success, below that every progress."""
    suites = list(dict.fromkeys(table["suite"]))
    figure = Figure(figsize=(style.FULL_WIDTH, 0.35 + 3.9 * len(suites)), layout="constrained")
    rows = figure.subfigures(len(suites), 1, squeeze=False)[:, 0]
    for row, suite in zip(rows, suites, strict=True):
        here = table[table["suite"] == suite]
        _failure(row, here, strips[suite, int(here["trajectory"].iloc[0])])
    draw_legend(figure, [name for name in dict.fromkeys(table["quantity"]) if name != VALUE])
    return figure


def _failure(part: SubFigure, rows: pd.DataFrame, frames: NDArray[np.uint8]) -> None:
    first, last = rows.iloc[0], int(rows["step"].max())
    strip, chance, progress = part.subplots(3, 1, height_ratios=(1.3, 1, 1.2))
    draw_strip(strip, frames, first["suite"], first["task_id"], success=False, last=last)
    value = rows[rows["quantity"] == VALUE]
    chance.fill_between(
        value["step"], value["low"], value["high"], color=style.BLACK, alpha=0.15, linewidth=0
    )
    chance.plot(value["step"], value["y"], color=style.BLACK, marker="o", markersize=3.2, clip_on=False)
    branches = int(value["branches"].median())
    chance.set(ylabel="chance\nof success", title=f"{branches} branches from each moment")
    for name, curve in rows[rows["quantity"] != VALUE].groupby("quantity", observed=True):
        plot_progress(progress, str(name), curve["step"], curve["y"])
    progress.set(xlabel="control step", ylabel="progress")
    for axes in (chance, progress):
        axes.set(xlim=(0, last), ylim=(-0.03, 1.03), yticks=[0, 0.5, 1])
        _mark_lost(axes, float(value["lost"].iloc[0]), last)


def _mark_lost(axes: Axes, lost: float, last: int) -> None:
    """Shade what came after the failure was lost."""
    if not np.isnan(lost):
        axes.axvspan(lost, last, color=style.VERMILLION, alpha=0.1, linewidth=0)
