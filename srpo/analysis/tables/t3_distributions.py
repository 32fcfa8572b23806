"""Behind table T3: each trajectory's numbers, successes against failures, under each representation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from srpo.analysis import style, text
from srpo.analysis.drawn import Drawn
from srpo.analysis.tables.t3 import read_scores
from srpo.rewards.metrics import JS_BINS

PANELS = {
    "final_progress": ("final\nprogress", 0.0),
    "matched_progress": ("at equal\nlength", 0.0),
    "spearman": ("SC", -1.0),
    "monotonicity": ("Mono", 0.0),
}
"""Column of the scores → heading, and the lower end of its bins (the upper end is 1)."""


def make(scores: Sequence[Path], allow_incomplete: bool) -> Drawn:
    """The distributions of the reward benchmark's files of scores."""
    rows, missing = read_scores(scores, allow_incomplete)
    table = estimate(rows)
    return Drawn(table, lambda: draw(table), missing=text.lacking([], "sets of scores", missing))


def estimate(scores: pd.DataFrame) -> pd.DataFrame:
    """The tidy table: trajectories by representation, quantity, outcome and bin.

    Bins have equal width; those of progress are those that JS compares. What a trajectory lacks (SC and Mono
    of a failure, all of one whose embedding is broken) is in no bin.
    """
    rows: list[dict[str, Any]] = []
    for name, group in scores.groupby("representation", observed=True, sort=True):
        for quantity, (_, lowest) in PANELS.items():
            edges = np.linspace(lowest, 1, JS_BINS + 1)
            for success in (True, False):
                values = group.loc[group["success"] == success, quantity].dropna()
                counts, _ = np.histogram(values, edges)
                for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
                    rows.append(
                        {
                            "representation": str(name),
                            "quantity": quantity,
                            "outcome": "success" if success else "failure",
                            "low": low,
                            "high": high,
                            "trajectories": int(count),
                        }
                    )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """A row a representation, a column a quantity: successes filled, failures as an outline, in percent."""
    names = list(dict.fromkeys(table["representation"]))
    figure = Figure(figsize=(style.COLUMN_WIDTH, 0.75 + 0.72 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(PANELS), squeeze=False, sharex="col", sharey=True)
    for row, name in zip(grid, names, strict=True):
        colour, _ = style.look(name)
        for axes, (quantity, (heading, lowest)) in zip(row, PANELS.items(), strict=True):
            here = table[(table["representation"] == name) & (table["quantity"] == quantity)]
            looks = {
                "success": {"color": colour, "alpha": 0.55, "linewidth": 0},
                "failure": {"color": style.BLACK, "fill": False, "linewidth": 1.0},
            }
            for outcome in looks:
                rows = here[here["outcome"] == outcome]
                if rows["trajectories"].any():
                    seaborn.histplot(
                        x=(rows["low"] + rows["high"]) / 2,
                        weights=rows["trajectories"],
                        bins=[*rows["low"], rows["high"].iloc[-1]],
                        stat="percent",
                        element="step",
                        ax=axes,
                        **looks[outcome],
                    )
            axes.set(
                xlabel="",
                ylabel="",
                xlim=(lowest - 0.03, 1.03),
                xticks=[lowest, 1],
                ylim=(0, 105),
                yticks=[0, 100],
            )
            axes.tick_params(labelsize=6)
            if name == names[0]:
                axes.set_title(heading, fontsize=7)
        counts = table[(table["representation"] == name) & (table["quantity"] == "final_progress")]
        won, lost = (
            int(counts.loc[counts["outcome"] == outcome, "trajectories"].sum())
            for outcome in ("success", "failure")
        )
        row[0].set_ylabel(f"{name}\n({won} + {lost})", fontsize=6.5)
    handles = [
        Patch(label="successes (first number)", **style.filled(style.PUBLISHED)),
        Patch(label="failures (second)", **style.OUTLINE),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=7)
    figure.supylabel("share (%)", fontsize=7)
    return figure
