"""Table T3: how well the progress reward of each representation tells successes from failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from srpo.analysis import comparisons, style, text, typeset
from srpo.analysis.drawn import Drawn
from srpo.analysis.published import read_published
from srpo.analysis.stats import Estimate, percentile_interval
from srpo.results import ResultError
from srpo.results.coverage import load_benchmark
from srpo.results.schemas import BENCHMARK
from srpo.rewards.metrics import (
    bandwidth,
    jensen_shannon_divergence,
    maximum_mean_discrepancy,
    standardised_mean_difference,
)

RESAMPLES = 1_000
"""Bootstrap resamples."""

MEANS = {"SC": "spearman", "Mono": "monotonicity"}
"""Metrics that are means over the successes of a score per trajectory."""

CONTRASTS: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], float]] = {
    "MMD": maximum_mean_discrepancy,
    "JS": jensen_shannon_divergence,
    "SMD": standardised_mean_difference,
}
"""Metrics of the final progress of successes against failures."""

METRICS = (*MEANS, *CONTRASTS)

MATCHED = {f"{name}, equal length": name for name in CONTRASTS}
"""The contrasts again, with failures judged after as many steps as a success takes (`matched_progress`)."""

LENGTH = "episode length"
"""The control: one minus an episode's steps over those of its suite's longest. It looks at no picture."""


def make(scores: Sequence[Path], published: Path, allow_incomplete: bool) -> Drawn:
    """The table of the reward benchmark's files of scores."""
    rows, missing = read_scores(scores, allow_incomplete)
    table = estimate(rows, read_published(published, "T3"))
    return Drawn(
        table,
        lambda: draw(table),
        layout(table, text.benchmark_protocol(scores)),
        missing=text.lacking([], "sets of scores", missing),
    )


def read_scores(paths: Sequence[Path], allow_incomplete: bool) -> tuple[pd.DataFrame, int]:
    """Scores of all suites and representations, refused unless all scored the same trajectories.

    Also gives the number of (suite, representation) that are missing.
    """
    scores, missing = load_benchmark(paths, BENCHMARK, "scores", allow_incomplete)
    keys = ["suite", "task_id", "trajectory"]
    if scores.duplicated([*keys, "representation"]).any():
        raise ResultError("a trajectory stands twice under the same representation")
    if (scores.groupby(keys)["success"].nunique() > 1).any():
        raise ResultError("column success: representations disagree on a trajectory's outcome")
    for suite, group in scores.groupby("suite"):
        by_name = group.groupby("representation", observed=True)
        sets = {frozenset(zip(rows["task_id"], rows["trajectory"], strict=True)) for _, rows in by_name}
        if len(sets) > 1:
            raise ResultError(f"{suite}: representations scored different trajectories")
    return scores.sort_values(["representation", *keys], ignore_index=True), missing


def estimate(scores: pd.DataFrame, published: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The tidy table, one row a (representation, metric).

    Intervals: percentile bootstrap over trajectories, successes and failures apart, seeded. A metric without
    trajectories to compute it from is NaN; so is an SMD without spread, infinite as it would be.

    Failures last until the step limit, so a representation may tell them by their length. How far that alone
    goes shows the source `control`, the contrasts of `LENGTH`; what is left without it shows `MATCHED`.
    `best` marks our highest value of a metric where its difference to the second, from the same trajectories
    drawn for both, leaves no doubt.
    """
    rows: list[dict[str, Any]] = []
    of = {
        str(name): group[group["final_progress"].notna()]
        for name, group in scores.groupby("representation", observed=True, sort=True)
    }
    for name, group in of.items():
        for metric in (*METRICS, *MATCHED):
            rows.append(_row("ours", name, metric, group, seed))
    trajectories = scores.drop_duplicates(["suite", "task_id", "trajectory"])
    limits = trajectories.groupby("suite")["steps"].transform("max")
    length = trajectories.assign(final_progress=1 - trajectories["steps"] / limits)
    rows += [_row("control", LENGTH, metric, length, seed) for metric in CONTRASTS]
    for (model, _), values in published.groupby(["model", "inputs"], sort=False):
        printed = dict(zip(values["column"], values["value"], strict=True))
        for metric in METRICS:
            rows.append(
                {
                    "source": "published",
                    "representation": model,
                    "metric": metric,
                    "value": printed.get(metric, np.nan),
                    "note": "; ".join(sorted({*values["source"], *values["note"]} - {""})),
                }
            )
    table = pd.DataFrame(rows).astype({"successes": "Int64", "failures": "Int64"})

    def difference(metric: str, second: str, first: str) -> Estimate:
        return _difference(metric, of[second], of[first], seed)

    ours = table[table["source"] == "ours"]
    best = comparisons.clearly_best(ours, ["metric"], "representation", "value", difference)
    return table.assign(best=table.index.isin(best))


def _row(source: str, name: str, metric: str, rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    value = _metric(metric, rows, seed)
    return {
        "source": source,
        "representation": name,
        "metric": metric,
        **comparisons.columns_of(value, "value"),
        "successes": int(rows["success"].sum()),
        "failures": int((~rows["success"]).sum()),
        "suites": ", ".join(sorted(set(rows["suite"]))),
        "note": "",
    }


def _samples(metric: str, rows: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a metric is computed from: a number of each success, and of each failure (SC, Mono: none)."""
    successes, failures = rows[rows["success"]], rows[~rows["success"]]
    if metric in MEANS:
        return successes[MEANS[metric]].dropna().to_numpy(float), np.empty(0)
    column = "matched_progress" if metric in MATCHED else "final_progress"
    return successes[column].to_numpy(float), failures[column].to_numpy(float)


def _metric(metric: str, rows: pd.DataFrame, seed: int) -> Estimate:
    first, second = _samples(metric, rows)
    value = _value(metric, first, second)
    if not np.isfinite(value):
        return Estimate(np.nan, np.nan, np.nan)
    return Estimate(value, *percentile_interval(resampled(metric, first, second, seed)))


def _value(metric: str, first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if metric in MEANS:
        return float(first.mean()) if len(first) else np.nan
    value = CONTRASTS[MATCHED.get(metric, metric)](first, second) if len(first) and len(second) else np.nan
    return value if np.isfinite(value) else np.nan


def _difference(metric: str, baseline: pd.DataFrame, method: pd.DataFrame, seed: int) -> Estimate:
    """How much higher a metric is under one representation, on the trajectories that both scored.

    Both are resampled under one seed, so the same trajectories are drawn for either.
    """
    keys = ["suite", "task_id", "trajectory"]
    both = baseline.merge(method, on=[*keys, "success"], suffixes=("_baseline", ""))[keys]
    pair = [_samples(metric, rows.merge(both, on=keys)) for rows in (baseline, method)]
    before, after = (_value(metric, *samples) for samples in pair)
    if np.isnan(after - before):
        return Estimate(np.nan, np.nan, np.nan)
    draws = [resampled(metric, *samples, seed) for samples in pair]
    return Estimate(after - before, *percentile_interval(draws[1] - draws[0]))


def resampled(
    metric: str, first: NDArray[np.float64], second: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """A metric of `RESAMPLES` bootstrap samples: successes and failures drawn anew, each with replacement."""
    rng = np.random.default_rng(seed)
    if MATCHED.get(metric, metric) == "MMD":
        return mmd_draws(first, second, rng)
    draws = np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        one = first[rng.integers(0, len(first), len(first))]
        other = second[rng.integers(0, len(second), len(second))] if len(second) else second
        draws[k] = _value(metric, one, other)
    return draws


def mmd_draws(
    first: NDArray[np.float64], second: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """The MMD of bootstrap samples, with the kernel's width held at that of all trajectories.

    With w how often each trajectory was drawn, over their number, the square is w₁ᵀK₁₁w₁ + w₂ᵀK₂₂w₂ −
    2·w₁ᵀK₁₂w₂: all resamples at once, where computing each from its trajectories takes minutes.
    """
    pooled = np.concatenate([first, second])
    width = bandwidth(pooled)
    if width == 0:
        return np.zeros(RESAMPLES)
    kernel = np.exp(-(((pooled[:, None] - pooled[None, :]) / width) ** 2) / 2)
    signed = np.hstack(
        [
            rng.multinomial(len(first), np.full(len(first), 1 / len(first)), RESAMPLES) / len(first),
            -rng.multinomial(len(second), np.full(len(second), 1 / len(second)), RESAMPLES) / len(second),
        ]
    )
    squared = np.einsum("ij,ij->i", signed @ kernel, signed)
    return np.sqrt(np.maximum(squared, 0))


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}".replace("-", "−")


def _text(row: Mapping[str, Any]) -> list[str]:
    lines = [_number(row["value"])]
    if row["source"] != "published" and not np.isnan(row["low"]):
        lines.append(f"[{_number(row['low'])}, {_number(row['high'])}]")
    return lines


def layout(table: pd.DataFrame, protocol: str) -> typeset.Table:
    """Ours first, with intervals and counts, then what length has to do with it, then published rows."""
    cells = comparisons.cells(table, "source", "representation", "metric")
    rows: dict[str, list[typeset.Row]] = {"ours": [], "matched": [], "control": [], "published": []}
    for source, name in dict.fromkeys((source, name) for source, name, _ in cells):
        row = [cells.get((source, name, metric)) for metric in METRICS]
        label = [name]
        if source == "ours":
            counts = cells[source, name, "SC"]
            label.append(f"{counts['successes']} successes, {counts['failures']} failures")
            matched = [None] * len(MEANS) + [cells[source, name, metric] for metric in MATCHED]
            rows["matched"].append(_typeset([name], matched))
        rows[source].append(_typeset(label, row))
    suites = table.loc[table["source"] == "ours", "suites"].iloc[0]
    notes = [
        "Beneath the value, its 95% interval (percentile bootstrap over trajectories). SC and Mono: means "
        "over successes. MMD, JS, SMD: final progress of successes against failures. Failures last until the "
        "step limit; at equal length, they are judged after as many steps as the median success of their "
        "task takes; the control is one minus an episode's steps over the longest's. Bold: our highest, "
        "where the 95% interval of its difference to our second highest, from the same trajectories, lies "
        f"above 0. Trajectories: our policy's on {suites}. Published rows: other trajectories of other "
        "policies (700 successes, 300 failures), so not a like-for-like comparison.",
    ]
    groups = [
        typeset.Group("", rows["ours"]),
        typeset.Group("The same at equal length", rows["matched"]),
        typeset.Group("Control", rows["control"]),
        typeset.Group("Published, as printed elsewhere", rows["published"]),
    ]
    caption = (
        "How well the progress reward of each representation tells successes from failures: pure numbers, of "
        f"which higher is better. {protocol}"
    )
    return typeset.Table(caption, "Representation", [f"{metric} ↑" for metric in METRICS], groups, notes)


def _typeset(label: Sequence[str], cells: Sequence[Mapping[str, Any] | None]) -> typeset.Row:
    best = frozenset(place for place, cell in enumerate(cells) if cell and cell["best"])
    return typeset.Row(label, [_text(cell) if cell else [""] for cell in cells], best)


def draw(table: pd.DataFrame) -> Figure:
    """One panel a metric, one row a representation; published ones hollow below the line."""
    table = table[table["metric"].isin(METRICS) & (table["source"] != "control")]
    cells = comparisons.cells(table, "source", "representation", "metric")
    names = list(dict.fromkeys((source, name) for source, name, _ in cells))
    ours = sum(source == "ours" for source, _ in names)
    heights = [-float(i) - (0.3 if i >= ours else 0) for i in range(len(names))]
    size = (1.1 + 1.18 * len(METRICS), 0.85 - 0.24 * min(heights))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for axes, metric in zip(panels, METRICS, strict=True):
        values = table.loc[table["metric"] == metric, ["value", "low", "high"]]
        lowest, highest = float(np.nanmin(values)), float(np.nanmax(values))
        if metric == "SMD":  # the published values span two orders of magnitude, ours may be negative
            axes.set_xscale("symlog", linthresh=1, linscale=0.7)
            ticks = [tick for tick in (-100, -10, -1, 0, 1, 10, 100) if min(lowest, 1) - 1 <= tick <= highest]
            axes.set_xticks(ticks, [f"{tick}".replace("-", "−") for tick in ticks])
            axes.set_xlim(min(-0.3, 1.5 * lowest), max(2.0, 1.5 * highest))
            axes.minorticks_off()
        else:  # at most 1 but for MMD's √2
            axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−.5", "0", ".5", "1"])
            axes.set_xlim(min(-0.06, lowest - 0.06), max(1.06, highest + 0.06))
        for y, (source, name) in zip(heights, names, strict=True):
            row = cells[source, name, metric]
            if np.isnan(row["value"]):
                axes.text(0.5, y, "–", transform=axes.get_yaxis_transform(), ha="center", va="center")
            elif source == "published":
                style.published_dot(axes, y, row["value"])
            else:
                style.dot(axes, y, (row["value"], row["low"], row["high"]), style.look(name))
        if ours < len(names):
            axes.axhline((heights[ours - 1] + heights[ours]) / 2, color="#999999", linewidth=0.6)
        axes.set(ylim=(min(heights) - 0.6, 0.6), title=f"{metric} ↑")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    labels = []
    for source, name in names:
        row = cells[source, name, METRICS[0]]
        labels.append(f"{name} ({row['successes']} + {row['failures']})" if source == "ours" else name)
    panels[0].set_yticks(heights, labels)
    for label, (source, _) in zip(panels[0].get_yticklabels(), names, strict=True):
        label.set_color(style.PUBLISHED if source == "published" else "black")
    figure.supxlabel("ours: (successes + failures); hollow: published", fontsize=7)
    return figure
