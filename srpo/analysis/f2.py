"""Figure F2: success rate of the sampled training rollouts against the RL step, one panel a suite.

Every metrics.csv has its run's resolved `config.yaml` beside it, which says how many steps to expect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from srpo.analysis import style, tables
from srpo.analysis.io import RL_METRICS, ResultError, missing_rows, read_config, read_rows, run
from srpo.analysis.stats import wilson
from srpo.config import SUITES, TrainStage


def read_metrics(
    paths: Sequence[Path], sheet: Mapping[str, str], allow_incomplete: bool
) -> tuple[pd.DataFrame, int]:
    """Metrics of all runs with columns suite, variant, seed; and the number of RL steps that are missing."""
    frames, expected, protocols, presets = [], [], set(), set()
    for path in paths:
        config = read_config(path, TrainStage)
        run = (config.suite, config.variant, config.seed)
        frames.append(read_rows(path, RL_METRICS).assign(suite=run[0], variant=run[1], seed=run[2]))
        expected += [(*run, step) for step in range(1, config.train.steps + 1)]
        protocols.add(config.protocol.model_copy(update={"max_steps": 1}))
        presets.add(config.preset)
    if len(protocols) > 1 or len(presets) > 1:
        raise ResultError(
            f"the runs belong to {len(presets)} presets and {len(protocols)} protocols, not to one"
        )
    metrics = pd.concat(frames, ignore_index=True)
    tables.require_known(metrics["variant"], sheet)
    keys = ["suite", "variant", "seed", "step"]
    if metrics.duplicated(keys).any():
        raise ResultError(
            f"an RL step stands twice: {metrics[metrics.duplicated(keys)][keys].iloc[0].to_dict()}"
        )
    runs = {(suite, variant) for suite, variant, _, _ in expected}
    absent = [(s, v) for s in {suite for suite, _ in runs} for v in sheet if (s, v) not in runs]
    if absent and not allow_incomplete:
        raise ResultError(f"incomplete: no run of {sorted(absent)}")
    lacking = missing_rows(metrics, pd.DataFrame(expected, columns=keys), allow_incomplete)
    return metrics, len(lacking)


def estimate(metrics: pd.DataFrame, sheet: Mapping[str, str]) -> pd.DataFrame:
    """The tidy table, one row a (suite, variant, step): pooled success rate, and a band.

    The band is Wilson's 95% interval for one seed, and the lowest and highest seed for several.
    """
    rows: list[dict[str, Any]] = []
    for suite in [suite for suite in SUITES if suite in set(metrics["suite"])]:
        for variant, label in sheet.items():
            own = metrics[(metrics["suite"] == suite) & (metrics["variant"] == variant)]
            for step, here in own.groupby("step"):
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
                    }
                )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """Lines with bands; every panel has the same axes."""
    suites = list(dict.fromkeys(table["suite"]))
    variants = dict(zip(table["variant"], table["label"], strict=True))
    last = int(table["step"].max())
    figure = Figure(figsize=(max(3.4, 0.6 + 1.75 * len(suites)), 2.3), layout="constrained")
    panels = figure.subplots(1, len(suites), sharey=True, squeeze=False)[0]
    for axes, suite in zip(panels, suites, strict=True):
        for variant, label in variants.items():
            own = table[(table["suite"] == suite) & (table["variant"] == variant)]
            colour, marker = style.look(variant)
            # Markers on a line of many steps would hide it.
            shape = {"marker": marker, "markersize": 3.5} if last <= 25 else {}
            axes.plot(own["step"], 100 * own["rate"], color=colour, label=label, zorder=3, **shape)
            low, high = 100 * own["low"], 100 * own["high"]
            axes.fill_between(own["step"], low, high, color=colour, alpha=0.18, linewidth=0)
            if last == 1:  # a band of no width shows nothing
                axes.vlines(own["step"], low, high, color=colour)
        axes.set(xlim=(0.7, last + 0.3), ylim=(-3, 103), xlabel="RL step")
        axes.set_title(tables.SUITE_LABELS[suite])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    panels[0].set_ylabel("success of rollouts (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = tables.parser("f2", __doc__, tex=False)
    parser.add_argument("--sheet", type=Path, required=True, help="variants and labels (TSV)")
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="metrics.csv of every run")
    arguments = parser.parse_args(argv)
    sheet = tables.read_sheet(arguments.sheet)
    metrics, missing = read_metrics(arguments.metrics, sheet, arguments.allow_incomplete)
    table = estimate(metrics, sheet)
    tables.write(arguments, table, draw, tables.count_of("RL steps", missing))


if __name__ == "__main__":
    run(main)
