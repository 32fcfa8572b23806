"""Figure F5: what the largest reward of a failure (α) and the references do to success on LIBERO.

Of the runs of a sheet it shows those that differ from the sheet's baseline in `reward.alpha` alone, and those
that differ in what failures are compared with alone. Runs without a progress reward (GRPO) stand at α = 0: a
failure earns nothing there, whatever it is compared with. Every file of episodes has its evaluation's
resolved `config.yaml` beside it, and that of the training in the folder above.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srpo.analysis import comparisons, style, text
from srpo.analysis.drawn import Drawn
from srpo.analysis.figures.f3 import alike
from srpo.config import SUITES, EvaluateStage, Reward, TrainStage
from srpo.config.sheets import SheetRow, baseline, labels
from srpo.results import ResultError
from srpo.results.coverage import load_evaluations, read_config

REFERENCES = {"reward.references", "reward.eps", "reward.eps_relative", "reward.min_samples"}


def make(episodes: Sequence[Path], sheet: Sequence[SheetRow], allow_incomplete: bool) -> Drawn:
    """The figure from the evaluations' episodes."""
    runs = []
    for path in episodes:
        # The training's config.yaml stands a folder above the evaluation's.
        trained, evaluated = read_config(path.parent, TrainStage), read_config(path, EvaluateStage)
        if (trained.suite, trained.variant, trained.seed) != (
            evaluated.suite,
            evaluated.variant,
            evaluated.seed,
        ):
            raise ResultError(
                f"the evaluation of {evaluated.variant} stands in the folder of {trained.variant}"
            )
        runs.append(trained)
    rows, missing = load_evaluations(episodes, labels(sheet), allow_incomplete)
    table = estimate(rows, runs, sheet)
    lacking = text.lacking_episodes(rows, missing, labels(sheet))
    return Drawn(table, lambda: draw(table), missing=lacking)


def describe(reward: Reward) -> str:
    """What failures are compared with, in a few words."""
    if reward.shaping == "none":
        return "nothing"
    if reward.references != "dbscan":
        return {
            "mean": "mean of the successes",
            "medoid": "medoid of the successes",
            "nearest": "nearest of the successes",
            "matched_prefix": "mean, matched prefixes",
            "simulator": "the simulator's distance to the goal",
            "fixed_expert": "fixed demonstrations",
        }[reward.references]
    return f"DBSCAN, eps {reward.eps:g}" + (" × distance" if reward.eps_relative else "")


def estimate(episodes: pd.DataFrame, runs: Sequence[TrainStage], sheet: Sequence[SheetRow]) -> pd.DataFrame:
    """The tidy table, a row a (panel, suite, variant): pooled success rate with Wilson's interval.

    With several seeds `lowest_seed` and `highest_seed` say how far they lie apart.
    """
    of = {config.variant: config for config in runs}
    first = baseline(sheet).name
    unshaped = {config.variant for config in runs if config.reward.shaping == "none"}
    panels = {
        "alpha": alike(runs, first, {"reward.alpha"})
        | unshaped & alike(runs, first, {"reward", "world_model"}),
        "references": alike(runs, first, REFERENCES),
    }
    rows: list[dict[str, Any]] = []
    for panel, shown in panels.items():
        for suite in [suite for suite in SUITES if suite in set(episodes["suite"])]:
            for variant, label in labels(sheet).items():
                if variant not in shown:
                    continue
                group = episodes[(episodes["suite"] == suite) & (episodes["variant"] == variant)]
                ran = group[group["status"] != "infra_error"]
                seeds = (ran["status"] == "success").groupby(ran["seed"]).mean()
                several = len(seeds) > 1
                rows.append(
                    {
                        "panel": panel,
                        "suite": suite,
                        "variant": variant,
                        "label": label,
                        "alpha": 0.0 if variant in unshaped else of[variant].reward.alpha,
                        "references": describe(of[variant].reward),
                        **comparisons.rate_columns(group),
                        "lowest_seed": seeds.min() if several else np.nan,
                        "highest_seed": seeds.max() if several else np.nan,
                    }
                )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """Left: success against α. Right: success by references. One row of panels a suite."""
    suites = list(dict.fromkeys(table["suite"]))
    figure = Figure(figsize=(style.FULL_WIDTH, 0.5 + 1.35 * len(suites)), layout="constrained")
    grid = figure.subplots(len(suites), 2, squeeze=False, sharex="col", width_ratios=(1, 1))
    for (left, right), suite in zip(grid, suites, strict=True):
        here = table[table["suite"] == suite]
        _against_alpha(left, here[here["panel"] == "alpha"].sort_values("alpha", kind="stable"))
        _by_references(right, here[here["panel"] == "references"])
        left.set_ylabel(f"{text.SUITE_LABELS[suite]}\nsuccess (%)")
    grid[-1][0].set_xlabel("α, the largest reward of a failure")
    grid[-1][1].set_xlabel("success (%)")
    return figure


def _against_alpha(axes: Axes, rows: pd.DataFrame) -> None:
    axes.plot(rows["alpha"], 100 * rows["rate"], color=style.BLUE, linewidth=0.8, zorder=1)
    for row in rows.to_dict("records"):
        colour, marker = style.look(row["variant"])
        alpha, rate, low, high = row["alpha"], 100 * row["rate"], 100 * row["low"], 100 * row["high"]
        axes.plot([alpha, alpha], [low, high], color=colour, linewidth=1.3)
        axes.plot(alpha, rate, marker, color=colour, markersize=4.5, clip_on=False, zorder=3)
        count = f"{row['successes']}/{row['episodes']}"
        if row["references"] == "nothing":
            count = f"{row['label']} {count}"
        above = row["rate"] < 0.5  # where there is room
        place = (high + 5, "bottom") if above else (low - 5, "top")
        axes.text(alpha, place[0], count, ha="center", va=place[1], fontsize=5.5, rotation=90)
    axes.set(xlim=(-0.08, 1.08), ylim=(-12, 104), xticks=[0, 0.3, 0.5, 0.8, 1], yticks=[0, 50, 100])


def _by_references(axes: Axes, rows: pd.DataFrame) -> None:
    for y, row in enumerate(rows.to_dict("records")):
        estimate = (100 * row["rate"], 100 * row["low"], 100 * row["high"])
        style.dot(axes, -y, estimate, style.look(row["variant"]))
        axes.text(106, -y, f"{row['successes']}/{row['episodes']}", va="center", fontsize=5.5)
    axes.set(xlim=(-4, 104), xticks=[0, 50, 100], ylim=(-len(rows) + 0.4, 0.6))
    axes.set_yticks([-y for y in range(len(rows))], list(rows["references"]))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
