"""Figure F1: progress along a success and a failure under each representation, over frames of the trajectory.

The frames come from the reward benchmark's file of trajectories, the curves from its scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from srpo.analysis import style, text
from srpo.analysis.drawn import Drawn
from srpo.config import SUITES
from srpo.results import ResultError
from srpo.results.coverage import load_benchmark
from srpo.results.schemas import CURVES
from srpo.runtime.hdf5 import why_unreadable

STRIP = 6
"""Frames of a film strip."""

Strips = Mapping[tuple[str, int], NDArray[np.uint8]]
"""(suite, number of the trajectory) → frames uint8 (STRIP, H, W, 3), evenly spaced from start to end."""


def make(curves: Sequence[Path], trajectories: Sequence[Path], allow_incomplete: bool) -> Drawn:
    """The figure from the reward benchmark's curves and its folders of trajectories."""
    rows, missing = load_benchmark(curves, CURVES, "curves", allow_incomplete)
    if rows.empty:
        return Drawn(rows, draw_nothing, missing=text.lacking([], "sets of curves", missing))
    table = choose(rows)
    strips = read_strips(trajectories, table)
    return Drawn(table, lambda: draw(table, strips), missing=text.lacking([], "sets of curves", missing))


def draw_nothing() -> Figure:
    """The figure of a reward benchmark in which no trajectory could be scored: that this is so."""
    figure = Figure(figsize=(style.FULL_WIDTH, 0.6))
    figure.text(0.5, 0.5, "no curves: no task has two successes to compare", ha="center", va="center")
    return figure


def choose(curves: pd.DataFrame) -> pd.DataFrame:
    """The curves of a success and a failure a suite, chosen without looking at their progress.

    Of the first task that has both, scored under every representation: the success of median length and the
    first failure. A suite without such a task shows what it has; one without any curve is left out.

    Raises:
        ResultError: there is nothing to show.
    """
    scored = curves.groupby(["suite", "trajectory"])["representation"].nunique()
    everywhere = scored[scored == curves["representation"].nunique()].index
    whole = curves[curves.set_index(["suite", "trajectory"]).index.isin(everywhere)]
    chosen = []
    for suite in [suite for suite in SUITES if suite in set(whole["suite"])]:
        rows = whole[whole["suite"] == suite]
        lengths = rows.groupby(["task_id", "success", "trajectory"])["step"].max().reset_index()
        kinds = lengths.groupby("task_id")["success"].nunique()
        task = kinds.idxmax()  # the first of those with the most kinds
        here = lengths[lengths["task_id"] == task]
        won, lost = here[here["success"]].sort_values(["step", "trajectory"]), here[~here["success"]]
        numbers = [*won["trajectory"].iloc[(len(won) - 1) // 2 :][:1], *lost["trajectory"][:1]]
        chosen += [rows[rows["trajectory"] == number] for number in numbers]
    if not chosen:
        raise ResultError("no trajectory was scored under every representation")
    return pd.concat(chosen, ignore_index=True).sort_values(
        ["suite", "success", "representation", "step"],
        ascending=[True, False, True, True],
        ignore_index=True,
        key=lambda column: column.map(SUITES.index) if column.name == "suite" else column,
    )


def read_strips(folders: Sequence[Path], chosen: pd.DataFrame) -> dict[tuple[str, int], NDArray[np.uint8]]:
    """Frames of the chosen trajectories from every suite's folder with the benchmark's `trajectories.h5`."""
    strips: dict[tuple[str, int], NDArray[np.uint8]] = {}
    for folder in folders:
        path = folder / "trajectories.h5"
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            remedy = "Run `srpo reward-benchmark collect` again."
            raise ResultError(f"{path}: {why_unreadable(error, remedy)}") from None
        with file:
            suite = str(file.attrs["suite"])
            frames = file["frames"]
            places = np.linspace(0, frames.shape[1] - 1, STRIP).round().astype(int)
            for number in sorted(set(chosen.loc[chosen["suite"] == suite, "trajectory"])):
                if number >= len(frames) or number not in file.attrs.get("kept", [number]):
                    raise ResultError(f"{path}: has no trajectory {number}: it is not what was scored")
                strips[suite, int(number)] = np.stack([frames[number, place] for place in places])
    lacking = set(zip(chosen["suite"], chosen["trajectory"], strict=True)) - set(strips)
    if lacking:
        raise ResultError(f"no frames of {sorted(lacking)}: give the trajectories.h5 of every suite")
    return strips


def draw(table: pd.DataFrame, strips: Strips) -> Figure:
    """A row a suite: a success and a failure, each with its frames over its progress, on one time axis."""
    suites = list(dict.fromkeys(table["suite"]))
    figure = Figure(figsize=(style.FULL_WIDTH, 0.35 + 2.0 * len(suites)), layout="constrained")
    rows = figure.subfigures(len(suites), 1, squeeze=False)
    for row, suite in zip(rows[:, 0], suites, strict=True):
        here = table[table["suite"] == suite]
        numbers = list(dict.fromkeys(here["trajectory"]))
        parts = row.subfigures(1, len(numbers), squeeze=False)[0]
        for part, number in zip(parts, numbers, strict=True):
            _trajectory(part, here[here["trajectory"] == number], strips[suite, number])
    draw_legend(figure, list(dict.fromkeys(table["representation"])))
    return figure


def _trajectory(part: SubFigure, rows: pd.DataFrame, frames: NDArray[np.uint8]) -> None:
    first = rows.iloc[0]
    last = int(rows["step"].max())
    strip, axes = part.subplots(2, 1, height_ratios=(1, 1.35))
    draw_strip(strip, frames, first["suite"], first["task_id"], first["success"], last)
    for name, curve in rows.groupby("representation", observed=True):
        plot_progress(axes, str(name), curve["step"], curve["progress"])
    axes.set(xlim=(0, last), ylim=(-0.03, 1.03), yticks=[0, 0.5, 1], xlabel="control step", ylabel="progress")


# Also of figure F6.


def draw_strip(
    axes: Axes, frames: NDArray[np.uint8], suite: str, task_id: int, success: bool, last: int
) -> None:
    """Frames uint8 (n, H, W, 3) over `last` control steps: frame k is between its neighbours' middles."""
    axes.imshow(
        np.concatenate(list(frames), axis=1),
        extent=(0, last, 0, last / len(frames)),
        aspect="equal",
        interpolation="antialiased",
    )
    for edge in range(1, len(frames)):
        axes.axvline(edge * last / len(frames), color="white", linewidth=1)
    axes.axis("off")
    axes.set_title(
        f"{text.SUITE_LABELS[suite]}, task {task_id}: {'success' if success else 'failure'}, {last} steps",
        color=style.GREEN if success else style.VERMILLION,
    )


def plot_progress(axes: Axes, name: str, steps: pd.Series, progress: pd.Series) -> None:
    """One representation's curve of a trajectory."""
    colour, marker = style.look(name)
    every = max(1, len(steps) // 8)
    axes.plot(steps, progress, color=colour, marker=marker, markersize=3.2, markevery=every, clip_on=False)


def draw_legend(figure: Figure, names: Sequence[str]) -> None:
    """Of the representations, below all panels."""
    handles = [style.legend_marker(*style.look(name), name) for name in names]
    for handle in handles:
        handle.set_linestyle("-")
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names))
