"""Figure F2: success rate of the training rollouts, against RL steps and against simulated control steps.

Control steps are what simulation costs: those of rollouts, and of the branches of variants that have them.

How fast each variant learns is also in numbers: the area under its curve, and the RL steps, episodes and
simulated seconds that it took to reach some levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from srpo.analysis import comparisons, style, text, typeset
from srpo.analysis.drawn import Drawn
from srpo.analysis.stats import (
    Estimate,
    area_difference,
    area_under_curve,
    first_reached,
    median_reached,
    wilson,
)
from srpo.config import SUITES, TrainStage
from srpo.config.sheets import SheetRow, labels
from srpo.results.coverage import load_metrics, read_config, require_runs

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Success rates whose reaching is timed."""
WINDOW = 3
"""RL steps whose mean must reach a level: one lucky step does not count."""
UNITS = {"step": "RL steps", "episodes_so_far": "episodes", "seconds_so_far": "simulated seconds"}
"""What a run's progress is measured in: column → name."""


Curve = tuple[NDArray[np.floating], NDArray[np.floating]]
"""A run's progress and its success rates there, float (N,) each."""


def make(metrics: Sequence[Path], sheet: Sequence[SheetRow], allow_incomplete: bool) -> Drawn:
    """The curves of the runs with these metrics."""
    runs = {path: read_config(path, TrainStage) for path in metrics}
    ran = [(config.variant, config.suite) for config in runs.values()]
    absent = require_runs(ran, labels(sheet), allow_incomplete)
    return make_curves(runs, labels(sheet), absent, allow_incomplete)


def make_curves(
    runs: Mapping[Path, TrainStage],
    variants: Mapping[str, str],
    absent: Sequence[str],
    allow_incomplete: bool,
) -> Drawn:
    """The curves of some runs (metrics.csv → configuration) of some variants (name → label).

    Args:
        absent: runs that are not there, as the figure shall say.
    """
    metrics, missing = load_metrics(list(runs), variants, allow_incomplete)
    speed = efficiency(metrics, variants)
    table = estimate(metrics, variants)
    manifests = [path.with_name("manifest.json") for path in runs]
    protocol = text.configured_protocol(list(runs.values()), manifests) + text.overlap_note(runs, variants)
    return Drawn(
        table,
        lambda: draw(table),
        layout(speed, protocol),
        efficiency=speed,
        missing=text.lacking(absent, "RL steps", missing),
    )


def estimate(metrics: pd.DataFrame, variants: Mapping[str, str]) -> pd.DataFrame:
    """The tidy table, one row a (suite, variant, step): pooled success rate, and a band.

    The band is Wilson's 95% interval for one seed, and the lowest and highest seed for several. Episodes and
    control steps so far are the mean over seeds.
    """
    rows: list[dict[str, Any]] = []
    for suite in [suite for suite in SUITES if suite in set(metrics["suite"])]:
        for variant, label in variants.items():
            group = metrics[(metrics["suite"] == suite) & (metrics["variant"] == variant)]
            for step, here in group.groupby("step"):
                rate = wilson(int(here["successes"].sum()), int(here["episodes"].sum()))
                seeds = here["seed"].nunique()
                low, high = rate.low, rate.high
                if seeds > 1:
                    low, high = here["success_rate"].min(), here["success_rate"].max()
                rows.append(
                    {
                        "suite": suite,
                        "variant": variant,
                        "label": label,
                        "step": step,
                        "rate": rate.value,
                        "low": low,
                        "high": high,
                        "band": "wilson" if seeds == 1 else "seed range",
                        "successes": int(here["successes"].sum()),
                        "episodes": int(here["episodes"].sum()),
                        "infra_errors": int(here["infra_errors"].sum()),
                        "seeds": seeds,
                        "episodes_so_far": here["episodes_so_far"].mean(),
                        "control_steps_so_far": here["control_steps_so_far"].mean(),
                    }
                )
    return pd.DataFrame(rows)


def efficiency(metrics: pd.DataFrame, variants: Mapping[str, str]) -> pd.DataFrame:
    """How fast each variant learns: a row a (suite, variant, quantity, unit).

    `area` is the area under the success rate by the trapezoid rule, over its width; a `reach` at some level
    is the first time the mean of the last `WINDOW` steps is at least that. `value` is the mean (area) or the
    Kaplan–Meier median (reach) over seeds, `low` and `high` the lowest and highest seed (none for one).
    Censored: training ended at `value`, and fewer than half of the runs had got there. `best` marks the
    largest area of a suite where its difference to the second, over seeds, leaves no doubt.
    """
    rows: list[dict[str, Any]] = []
    areas: dict[tuple[str, str, str], list[float]] = {}
    for suite in [suite for suite in SUITES if suite in set(metrics["suite"])]:
        for variant, label in variants.items():
            group = metrics[(metrics["suite"] == suite) & (metrics["variant"] == variant)]
            runs = [run.dropna(subset=["success_rate"]) for _, run in group.groupby("seed")]
            runs = [run for run in runs if len(run)]
            if not runs:
                continue
            shared = {"suite": suite, "variant": variant, "label": label, "seeds": len(runs)}
            shared["episodes"] = int(group.groupby("seed")["episodes_so_far"].max().sum())
            for column, unit in UNITS.items():
                curves = [(run[column].to_numpy(), run["success_rate"].to_numpy()) for run in runs]
                areas[suite, unit, variant] = [area_under_curve(*curve) for curve in curves]
                rows.append({**shared, **_area(areas[suite, unit, variant], unit)})
                rows += [{**shared, **_reach(curves, level, unit)} for level in LEVELS]
    table = pd.DataFrame(rows).astype({"arrived": "Int64"})

    def difference(suite: str, unit: str, second: str, first: str) -> Estimate:
        pair = [[np.array(areas[suite, unit, name])] for name in (second, first)]
        return area_difference(*pair).estimate

    compared = table[table["quantity"] == "area"]
    best = comparisons.clearly_best(compared, ["suite", "unit"], "variant", "value", difference)
    return table.assign(best=table.index.isin(best))


def _area(areas: Sequence[float], unit: str) -> dict[str, Any]:
    return {
        **{"quantity": "area", "level": np.nan, "unit": unit, "value": float(np.mean(areas))},
        **_range(areas),
        **{"censored": False, "arrived": pd.NA},
    }


def _reach(curves: Sequence[Curve], level: float, unit: str) -> dict[str, Any]:
    times = [first_reached(*curve, level, WINDOW) for curve in curves]
    middle = median_reached(times)
    return {
        **{"quantity": "reach", "level": level, "unit": unit, "value": middle.at},
        **_range([time.at for time in times]),
        **{"censored": middle.censored, "arrived": sum(not time.censored for time in times)},
    }


def _range(values: Sequence[float]) -> dict[str, float]:
    one = len(values) < 2
    return {"low": np.nan if one else min(values), "high": np.nan if one else max(values)}


def layout(table: pd.DataFrame, protocol: str) -> typeset.Table:
    """A row a variant under its suite: the area, then steps and episodes to each level."""
    groups = []
    for suite, here in table.groupby("suite", sort=False):
        rows = []
        for _, group in here.groupby("variant", sort=False):
            seeds = int(group["seeds"].iloc[0])
            area = group[(group["quantity"] == "area") & (group["unit"] == UNITS["step"])].iloc[0]
            cells = [[text.percent(area["value"])]]
            if seeds > 1:
                cells[0].append(f"{text.percent(area['low'])} to {text.percent(area['high'])}")
            for level in LEVELS:
                reach = comparisons.cells(
                    group[(group["quantity"] == "reach") & (group["level"] == level)], "unit"
                )
                cells.append([_reached(reach[unit,]) + suffix for unit, suffix in _SHORT.items()])
            runs = f"{seeds} seeds" if seeds > 1 else "1 seed"
            label = [group["label"].iloc[0], f"{runs}, {group['episodes'].iloc[0]:,} rollouts"]
            rows.append(typeset.Row(label, cells, frozenset({0} if area["best"] else ())))
        groups.append(typeset.Group(text.SUITE_LABELS[str(suite)], rows))
    notes = [
        "Area: under the success over all RL steps (trapezoid rule, over its width: the first and the last "
        "step count half); beneath it the lowest and highest seed. Then the RL step, "
        f"rollouts (ep) and simulated hours (h, with branches) at which the mean of the last {WINDOW} steps "
        "first reached the level, the median of the seeds (Kaplan–Meier). >: not reached when training ended "
        "there. Bold: "
        "the largest area, where the 95% interval of its difference to the second largest, with training "
        "runs drawn anew, lies above 0: one seed has none, few make it rough, and times are not compared.",
    ]
    caption = f"How fast success of the training rollouts grows: percent, and time to reach it. {protocol}"
    columns = ["Area", *(f"{100 * level:.0f}%" for level in LEVELS)]
    return typeset.Table(caption, "Variant", columns, groups, notes)


_SHORT = {"RL steps": "", "episodes": " ep", "simulated seconds": " h"}


def _reached(row: Mapping[str, Any]) -> str:
    hours = row["unit"] == UNITS["seconds_so_far"]
    number = f"{row['value'] / 3600:.1f}" if hours else f"{row['value']:,.0f}"
    return (">" if row["censored"] else "") + number


def draw(table: pd.DataFrame) -> Figure:
    """Lines with bands: a column a suite, against RL steps above and against control steps below."""
    suites = list(dict.fromkeys(table["suite"]))
    size = (min(style.FULL_WIDTH, max(3.4, 0.6 + 1.75 * len(suites))), 3.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(2, len(suites), sharey=True, squeeze=False)
    for panels, (column, name) in zip(
        grid, (("step", "RL step"), ("control_steps_so_far", "control steps")), strict=True
    ):
        for axes, suite in zip(panels, suites, strict=True):
            panel(axes, table, suite, column, name)
        panels[0].set_ylabel("success of rollouts (%)")
    for axes, suite in zip(grid[0], suites, strict=True):
        axes.set_title(text.SUITE_LABELS[suite])
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


def panel(axes: Axes, table: pd.DataFrame, suite: str, column: str, name: str) -> None:
    """All variants' lines in one suite, against a column of the tidy table, over the range of all suites."""
    widest = float(table[column].max())
    variants = dict(zip(table["variant"], table["label"], strict=True))
    for place, (variant, label) in enumerate(variants.items()):
        rows = table[(table["suite"] == suite) & (table["variant"] == variant)]
        _curve(axes, rows, column, label, style.look(variant), style.DASHES[place % 4])
    left, margin = (1.0, 0.3) if column == "step" else (0.0, 0.03 * widest)
    axes.set(xlim=(left - margin, widest + margin), ylim=(-3, 103), xlabel=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4, min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if widest >= 1e5 else FuncFormatter(_whole))


def _whole(value: float, _: int | None) -> str:
    return f"{value:,.0f}"


def _curve(
    axes: Axes, rows: pd.DataFrame, x: str, label: str, look: tuple[str, str], dashes: style.Dashes
) -> None:
    colour, marker = look
    points = rows[x].to_numpy(float)
    # On a line of many steps only some points are marked, to tell it from others without its colour.
    axes.plot(
        points,
        100 * rows["rate"],
        color=colour,
        linestyle=dashes,
        marker=marker,
        markersize=3.5,
        markevery=max(1, len(points) // 8),
        label=label,
        zorder=3,
    )
    low, high = 100 * rows["low"], 100 * rows["high"]
    axes.fill_between(points, low, high, color=colour, alpha=0.18, linewidth=0)
    if len(points) == 1:  # a band of no width shows nothing
        axes.vlines(points, low, high, color=colour)
