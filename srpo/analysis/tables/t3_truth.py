"""Whether progress rewards are right: their rank correlation with the progress that the simulator knows.

True progress is minus the distance to the goal (`srpo.envs.goal`). It is compared with progress of the
labelled trajectories behind T3, under each representation, and with rewards of the rollouts of RL training,
under the representation that the run was rewarded by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, FigureBase
from numpy.typing import NDArray
from scipy.stats import rankdata

from srpo.analysis import comparisons, style, text, typeset
from srpo.analysis.drawn import Drawn
from srpo.analysis.stats import NAN, Estimate, percentile_interval, ratio_over_runs
from srpo.config import RewardBenchmarkStage, TrainStage
from srpo.results import ResultError
from srpo.results.coverage import load_benchmark, read_config, require_alike, require_together
from srpo.results.rows import read_rows
from srpo.results.schemas import CURVES, REWARDS

RESAMPLES = 1_000
"""Bootstrap resamples."""
FEWEST = 4
"""Failures of a task that can be ranked; with fewer, a correlation is mostly noise."""

MEASURES = {
    "along successes": "along\nsuccesses",
    "along failures": "along\nfailures",
    "between failures": "between\nfailures",
    "in training": "between failures\nin training",
    "in groups": "failures of a\ngroup in order",
}
"""Measure → heading. All but the last are rank correlations."""
CHANCE = {"in groups": 0.5}
"""What a measure is without any knowledge; 0 for the others."""


def make(curves: Sequence[Path], allow_incomplete: bool, rewards: Sequence[Path] = ()) -> Drawn:
    """The table of the reward benchmark's curves and of training runs' rewards."""
    require_together((curves, RewardBenchmarkStage), (rewards, TrainStage))
    rows, missing = load_benchmark(curves, CURVES, "curves", allow_incomplete)
    table = estimate(rows, shaped_runs(read_rewards(rewards)) if rewards else {})
    return Drawn(
        table,
        lambda: draw(table),
        layout(table, text.benchmark_protocol(curves)),
        missing=text.lacking([], "sets of curves", missing),
    )


def rank_correlation(
    progress: NDArray[np.floating], distance_to_goal: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Spearman's correlation of progress (..., N) with minus the distance (..., N), N ≥ 2: float64 (...).

    Ties share ranks. NaN where all distances are equal, and there is nothing to rank. Progress that is all
    the same where distances differ says nothing of them: 0.
    """
    first, second = (
        rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2 for values in (progress, -distance_to_goal)
    )
    product = (first * second).sum(-1)
    squares = (first**2).sum(-1), (second**2).sum(-1)
    scale = np.sqrt(squares[0] * squares[1])
    known = np.divide(product, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.where(squares[1] > 0, known, NAN)


def concordance(reward: NDArray[np.floating], distance_to_goal: NDArray[np.floating]) -> tuple[float, int]:
    """How many pairs of N episodes a reward puts in the order of their distances, and how many have one.

    Equal rewards count half. 0.5 of the pairs is chance.
    """
    first, second = np.triu_indices(len(reward), 1)
    truth = np.sign(distance_to_goal[second] - distance_to_goal[first])
    reward_order = np.sign(reward[first] - reward[second])
    ordered = truth != 0
    return float(((1 + reward_order * truth) / 2)[ordered].sum()), int(ordered.sum())


# Trajectories of the benchmark.


def shared(curves: pd.DataFrame) -> pd.DataFrame:
    """The curves of the trajectories scored under every representation, so that all are judged by the same.

    Raises:
        ResultError: one of them has other points under one representation than under another.
    """
    keys = ["suite", "trajectory"]
    scored = curves.groupby(keys)["representation"].transform("nunique")
    both = curves[scored == curves["representation"].nunique()]
    if (both.groupby([*keys, "step"])["representation"].nunique() < both["representation"].nunique()).any():
        raise ResultError("representations scored different trajectories: a curve lacks points")
    return both


def along(curves: pd.DataFrame, distance: str = "distance_to_goal") -> list[NDArray[np.float64]]:
    """The correlations of progress with minus a `distance` along each trajectory that it changes along, an
    array a task."""
    tasks = []
    for _, task in curves.groupby(["suite", "task_id"]):
        each = [
            rank_correlation(rows["progress"].to_numpy(), rows[distance].to_numpy())
            for _, rows in task.groupby("trajectory")
        ]
        tasks.append(np.array([value for value in each if np.isfinite(value)]))
    return [values for values in tasks if len(values)]


def mean_along(tasks: Sequence[NDArray[np.float64]], rng: np.random.Generator) -> Estimate:
    """Their mean, with the percentile interval of trajectories drawn anew within each task."""
    if not tasks:
        return Estimate(NAN, NAN, NAN)
    draws = [values[_resamples(len(values), rng)].sum(1) for values in tasks]
    number = sum(map(len, tasks))
    return Estimate(float(np.concatenate(tasks).mean()), *percentile_interval(np.sum(draws, axis=0) / number))


def mean_between(failures: pd.DataFrame, rng: np.random.Generator) -> tuple[Estimate, int]:
    """The correlation between the failures of each task, by their whole trajectories: the mean over failures,
    and of how many: tasks with fewer than `FEWEST`, or whose distances are all equal, are left out.

    Args:
        failures: a row each, with suite, task_id, distance (to the successes' mean) and distance_to_goal.
    """
    values, draws, weights = [], [], []
    for _, rows in failures.groupby(["suite", "task_id"]):
        progress, distance_to_goal = -rows["distance"].to_numpy(), rows["distance_to_goal"].to_numpy()
        if len(rows) >= FEWEST and np.ptp(distance_to_goal) > 0:
            drawn = _resamples(len(rows), rng)
            values.append(rank_correlation(progress, distance_to_goal))
            draws.append(rank_correlation(progress[drawn], distance_to_goal[drawn]))
            weights.append(len(rows))
    if not values:
        return Estimate(NAN, NAN, NAN), 0
    interval = percentile_interval(np.average(draws, axis=0, weights=weights))
    return Estimate(float(np.average(values, weights=weights)), *interval), sum(weights)


def _resamples(number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(0, number, (RESAMPLES, number))


def of_trajectories(curves: pd.DataFrame, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the tidy table about the benchmark's trajectories."""
    rows = []
    curves = shared(curves).sort_values("step", kind="stable")  # the same on every machine
    for name in curves["representation"].cat.categories:
        group = curves[curves["representation"] == name]
        won, lost = group[group["success"]], group[~group["success"]]
        final = lost.groupby(["suite", "task_id", "trajectory"]).tail(1)
        measured = [
            (f"along {what}", mean_along(tasks, np.random.default_rng(seed)), sum(map(len, tasks)))
            for what, tasks in (("successes", along(won)), ("failures", along(lost)))
        ]
        measured.append(("between failures", *mean_between(final, np.random.default_rng(seed))))
        for measure, value, trajectories in measured:
            rows.append(
                {
                    "representation": name,
                    "measure": measure,
                    **comparisons.columns_of(value, "value"),
                    "trajectories": trajectories,
                    "runs": pd.NA,
                }
            )
    return rows


# Rollouts of training.


def of_run(rewards: pd.DataFrame) -> dict[str, tuple[float, float, int]]:
    """Measure → (sum, weight, failures) of one run's shaped failures.

    The sum over the weight is the measure: the correlation between a task's failures of a step, weighted by
    their number, and the share of pairs of failures of a group that are in order.
    """
    shaped = rewards[~rewards["success"] & rewards["distance"].notna()]
    total, weight = 0.0, 0
    for _, rows in shaped.groupby(["step", "task_id"]):
        if len(rows) >= FEWEST:
            value = float(rank_correlation(rows["reward"].to_numpy(), rows["distance_to_goal"].to_numpy()))
            if np.isfinite(value):
                total, weight = total + len(rows) * value, weight + len(rows)
    right, pairs = 0.0, 0
    for _, rows in shaped.groupby(["step", "group"]):
        in_order, number = concordance(rows["reward"].to_numpy(), rows["distance_to_goal"].to_numpy())
        right, pairs = right + in_order, pairs + number
    return {"in training": (total, weight, len(shaped)), "in groups": (right, pairs, len(shaped))}


def of_training(runs: Mapping[str, Sequence[pd.DataFrame]]) -> list[dict[str, Any]]:
    """Rows of the tidy table about training: representation → rewards of its runs. Runs are drawn anew;
    `runs` is the fewest of a suite."""
    rows = []
    for name, each in runs.items():
        suites = [rewards["suite"].iloc[0] for rewards in each]
        measured = [of_run(rewards) for rewards in each]
        for measure in ("in training", "in groups"):
            sums, weights, failures = np.array([run[measure] for run in measured]).T
            places = [np.array(suites) == suite for suite in dict.fromkeys(suites)]
            value = ratio_over_runs([(sums[here], weights[here]) for here in places])
            limits = -1.0 if measure == "in training" else 0.0, 1.0
            low, high = np.clip((value.low, value.high), *limits)
            rows.append(
                {
                    "representation": name,
                    "measure": measure,
                    **comparisons.columns_of(Estimate(value.value, float(low), float(high)), "value"),
                    "trajectories": int(failures.sum()),
                    "runs": min(int(here.sum()) for here in places),
                }
            )
    return rows


def read_rewards(paths: Sequence[Path]) -> pd.DataFrame:
    """Every training rollout, with its run's variant and seed, and the `representation` that it was rewarded
    by: the world model's name, and after a comma the variant's where rewards are made in another way than the
    first run's. None without a progress reward."""
    configs = {path: read_config(path, TrainStage) for path in paths}
    require_alike(list(configs.values()))
    usual = next((_way(config) for config in configs.values() if _is_shaped(config)), {})
    return pd.concat(
        [
            read_rows(path, REWARDS).assign(
                variant=config.variant,
                seed=config.seed,
                representation=_representation(config, usual),
            )
            for path, config in configs.items()
        ],
        ignore_index=True,
    )


def _is_shaped(config: TrainStage) -> bool:
    return config.world_model is not None and config.reward.alpha > 0


def _way(config: TrainStage) -> dict[str, Any]:
    """How rewards of failures are made, but for their height, which changes no order."""
    return config.reward.model_dump(exclude={"alpha"})


def _representation(config: TrainStage, usual: Mapping[str, Any]) -> str | None:
    if config.world_model is None or not _is_shaped(config):
        return None
    apart = "" if _way(config) == usual else f", {config.variant.removeprefix('srpo-')}"
    return config.world_model.name + apart


def shaped_runs(rewards: pd.DataFrame) -> dict[str, list[pd.DataFrame]]:
    """Representation → the rewards of each run that it shaped, from what `read_rewards` gave."""
    runs: dict[str, list[pd.DataFrame]] = {}
    for (name, *_), rows in rewards.groupby(["representation", "suite", "variant", "seed"], sort=False):
        runs.setdefault(str(name), []).append(rows)
    return runs


def estimate(curves: pd.DataFrame | None, training: Mapping[str, Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """The tidy table, a row a (representation, measure).

    Args:
        curves: the reward benchmark's, as `load_benchmark` gives them; None: there are none.
        training: of `shaped_runs`.
    """
    trajectories = [] if curves is None else of_trajectories(curves)
    return pd.DataFrame(trajectories + of_training(training)).astype({"runs": "Int64"})


# What is shown.


def value_and_interval(row: Mapping[str, Any] | None) -> list[str]:
    """A measure's value and, where there is one, its interval; a dash without a value."""
    if row is None or np.isnan(row["value"]):
        return ["–"]

    def number(value: float) -> str:
        return f"{value:.2f}".replace("-", "−")

    interval = [] if np.isnan(row["low"]) else [f"[{number(row['low'])}, {number(row['high'])}]"]
    return [number(row["value"]), *interval]


def table_rows(cells: Mapping[Any, Mapping[str, Any]], measures: Iterable[str]) -> list[typeset.Row]:
    """A row a representation: each measure's value, interval and number of trajectories."""

    def cell(row: Mapping[str, Any] | None) -> list[str]:
        number = [] if row is None or np.isnan(row["value"]) else [f"{row['trajectories']:,}"]
        return [*value_and_interval(row), *number]

    return [
        typeset.Row([name], [cell(cells.get((name, measure))) for measure in measures])
        for name in dict.fromkeys(name for name, _ in cells)
    ]


def layout(table: pd.DataFrame, protocol: str) -> typeset.Table:
    """A row a representation, a column a measure."""
    cells = comparisons.cells(table, "representation", "measure")
    rows = table_rows(cells, MEASURES)
    notes = [
        "Rank correlation (Spearman) of progress with the progress that the simulator knows: minus the "
        "metres that the hand still has to go. Along: over the prefixes of a trajectory, mean over "
        "trajectories. Between failures: whole trajectories of one task. In training: the failures of a task "
        "and RL step, as they were rewarded. Last column: the share of pairs of failures of one group that "
        "the reward puts in the right order, which is what advantages are made of; 0.5 is chance. Beneath "
        "the value, its 95% interval (trajectories of each task drawn anew, or runs) and "
        "the number of trajectories.",
    ]
    caption = f"Whether progress rewards are right, by what the simulator knows. {protocol}"
    columns = [heading.replace("\n", " ") for heading in MEASURES.values()]
    return typeset.Table(caption, "Representation", columns, [typeset.Group("", rows)], notes)


def draw(table: pd.DataFrame) -> Figure:
    """One panel a measure, one row a representation."""
    names = list(dict.fromkeys(table["representation"]))
    figure = Figure(figsize=(style.FULL_WIDTH, 0.95 + 0.26 * len(names)), layout="constrained")
    draw_measures(figure, comparisons.cells(table, "representation", "measure"), names, MEASURES, CHANCE)
    figure.supxlabel("rank correlation with true progress; last panel: share of pairs", fontsize=7)
    return figure


def draw_measures(
    part: FigureBase,
    cells: Mapping[Any, Mapping[str, Any]],
    names: Sequence[str],
    measures: Mapping[str, str],
    chance: Mapping[str, float],
) -> None:
    """One panel a measure, one row a representation.

    Args:
        cells: (representation, measure) → its row of the table.
        measures: measure → heading.
        chance: what a measure that is a share is without any knowledge; the others are correlations.
    """
    panels = part.subplots(1, len(measures), sharey=True)
    for axes, (measure, heading) in zip(panels, measures.items(), strict=True):
        for place, name in enumerate(names):
            row = cells.get((name, measure))
            if row is None or np.isnan(row["value"]):
                axes.text(0.5, -place, "–", transform=axes.get_yaxis_transform(), ha="center", va="center")
            else:
                style.dot(axes, -place, (row["value"], row["low"], row["high"]), style.look(name))
        ticks = [0, 0.5, 1] if measure in chance else [-1, 0, 1]
        axes.axvline(chance.get(measure, 0), color="#999999", linewidth=0.6, zorder=0)
        axes.set(ylim=(-len(names) + 0.4, 0.6), xlim=(ticks[0] - 0.05, 1.05), xticks=ticks, title=heading)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks([-place for place in range(len(names))], names)
