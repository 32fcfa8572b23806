"""Table T3: how well the progress reward of each representation tells successes from failures.

Twice: as the SRPO paper defines the metrics (a success is compared with its own whole embedding, Mono counts
strict rises, MMD is squared, JS in natural logarithms, each metric per task and then averaged), and as we do
(a success is compared with the other successes of its task, all trajectories pooled). By the paper's a
success arrives at 1 whatever the representation, which alone makes an SMD of hundreds; by ours it has to come
near the others. Published rows stand beside the paper's definitions only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
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

Contrast = Callable[[NDArray[np.float64], NDArray[np.float64]], float]
CONTRASTS: dict[str, Contrast] = {
    "MMD": maximum_mean_discrepancy,
    "JS": jensen_shannon_divergence,
    "SMD": standardised_mean_difference,
}
"""Metrics of the final progress of successes against failures."""

METRICS = (*MEANS, *CONTRASTS)

MATCHED = {f"{name}, equal length": name for name in CONTRASTS}
"""The contrasts again, with failures judged after as many steps as a success takes (`matched_progress`)."""

PAPER, OURS = "paper", "ours"
"""Whose definitions: the table's column `definitions`."""
PAPER_CONTRASTS: dict[str, Contrast] = {
    **CONTRASTS,
    "MMD": partial(maximum_mean_discrepancy, squared=True),
    "JS": partial(jensen_shannon_divergence, base=np.e),
}
HEADINGS = {PAPER: "the paper's definitions", OURS: "our definitions"}

LENGTH = "episode length"
"""The control: one minus an episode's steps over those of its suite's longest. It looks at no picture."""


def make(scores: Sequence[Path], published: Path, allow_incomplete: bool) -> Drawn:
    """The table of the reward benchmark's files of scores."""
    rows, missing = read_scores(scores, allow_incomplete)
    table = estimate(rows, read_published(published, "T3"))
    scored = rows.groupby("suite")["final_progress"].count()
    return Drawn(
        table,
        lambda: draw(table),
        layout(table, text.benchmark_protocol(scores), list(scored.index[scored == 0])),
        missing=text.lacking([], "sets of scores", missing),
    )


def read_scores(paths: Sequence[Path], allow_incomplete: bool) -> tuple[pd.DataFrame, int]:
    """Scores of all suites and representations, refused unless all scored the same trajectories.

    Also gives the number of (suite, representation) that are missing.
    """
    scores, missing = load_benchmark(paths, BENCHMARK, "scores", allow_incomplete)
    if scores.empty:
        raise ResultError("the reward benchmark has no trajectories: none of its rollouts was kept")
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
    """The tidy table, one row a (representation, definitions, metric).

    Intervals: percentile bootstrap over trajectories, successes and failures apart (by the paper's
    definitions also each task apart), seeded. A metric without trajectories to compute it from is NaN; so is
    an SMD without spread, infinite as it would be. By the paper's definitions such a task is left out of the
    mean; files that were scored before there were any have none of them.

    Failures last until the step limit, so a representation may tell them by their length. How far that alone
    goes shows the source `control`, the contrasts of `LENGTH`; what is left without it shows `MATCHED`.
    `best` marks our highest value of a metric where its difference to the second, from the same trajectories
    drawn for both, leaves no doubt.
    """
    rows: list[dict[str, Any]] = []
    scored = scores[scores["final_progress"].notna()]
    of = {
        str(name): group[group["final_progress"].notna()]
        for name, group in scores.groupby("representation", observed=True, sort=True)
    }
    for name, group in of.items():
        rows += [_row("ours", name, PAPER, metric, group, seed) for metric in METRICS]
        rows += [_row("ours", name, OURS, metric, group, seed) for metric in (*METRICS, *MATCHED)]
    trajectories = (scores if scored.empty else scored).drop_duplicates(["suite", "task_id", "trajectory"])
    limits = trajectories.groupby("suite")["steps"].transform("max")
    length = trajectories.assign(final_progress=1 - trajectories["steps"] / limits)
    rows += [_row("control", LENGTH, OURS, metric, length, seed) for metric in CONTRASTS]
    for (model, inputs), values in published.groupby(["model", "inputs"], sort=False):
        printed = dict(zip(values["column"], values["value"], strict=True))
        for metric in METRICS:
            rows.append(
                {
                    "source": "published",
                    "representation": f"{model} ({inputs})" if inputs else model,
                    "definitions": PAPER,
                    "metric": metric,
                    "value": printed.get(metric, np.nan),
                    "note": "; ".join(sorted({*values["source"], *values["note"]} - {""})),
                }
            )
    table = pd.DataFrame(rows).astype({"successes": "Int64", "failures": "Int64"})

    def difference(definitions: str, metric: str, second: str, first: str) -> Estimate:
        return _difference(definitions, metric, of[second], of[first], seed)

    ours = table[table["source"] == "ours"]
    best = comparisons.clearly_best(ours, ["definitions", "metric"], "representation", "value", difference)
    return table.assign(best=table.index.isin(best))


def _row(
    source: str, name: str, definitions: str, metric: str, rows: pd.DataFrame, seed: int
) -> dict[str, Any]:
    value = _metric(definitions, metric, rows, seed)
    return {
        "source": source,
        "representation": name,
        "definitions": definitions,
        "metric": metric,
        **comparisons.columns_of(value, "value"),
        "successes": int(rows["success"].sum()),
        "failures": int((~rows["success"]).sum()),
        "suites": ", ".join(sorted(set(rows["suite"]))),
        "note": "",
    }


Samples = tuple[NDArray[np.float64], NDArray[np.float64]]
"""What a metric is computed from: a number of each success, and of each failure (SC, Mono: none)."""


def _samples(definitions: str, metric: str, rows: pd.DataFrame) -> list[Samples]:
    """The samples that a metric is the mean over: of each task by the paper's definitions, of all by ours."""
    prefix = "paper_" if definitions == PAPER else ""
    column = MEANS.get(metric, "matched_progress" if metric in MATCHED else "final_progress")
    parts = [part for _, part in rows.groupby(["suite", "task_id"])] if definitions == PAPER else [rows]
    samples = []
    for part in parts:
        won, lost = (part.loc[part["success"] == outcome, prefix + column] for outcome in (True, False))
        failures = np.empty(0) if metric in MEANS else lost.dropna().to_numpy(float)
        samples.append((won.dropna().to_numpy(float), failures))
    return [one for one in samples if np.isfinite(_value(definitions, metric, *one))]


def _metric(definitions: str, metric: str, rows: pd.DataFrame, seed: int) -> Estimate:
    samples = _samples(definitions, metric, rows)
    if not samples:
        return Estimate(np.nan, np.nan, np.nan)
    value = float(np.mean([_value(definitions, metric, *one) for one in samples]))
    return Estimate(value, *percentile_interval(_draws(definitions, metric, samples, seed)))


def _value(definitions: str, metric: str, first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if metric in MEANS:
        return float(first.mean()) if len(first) else np.nan
    contrast = (PAPER_CONTRASTS if definitions == PAPER else CONTRASTS)[MATCHED.get(metric, metric)]
    value = contrast(first, second) if len(first) and len(second) else np.nan
    return value if np.isfinite(value) else np.nan


def _difference(
    definitions: str, metric: str, baseline: pd.DataFrame, method: pd.DataFrame, seed: int
) -> Estimate:
    """How much higher a metric is under one representation, on the trajectories that both scored.

    Both are resampled under one seed, so the same trajectories are drawn for either.
    """
    keys = ["suite", "task_id", "trajectory"]
    both = baseline.merge(method, on=[*keys, "success"], suffixes=("_baseline", ""))[keys]
    pair = [_samples(definitions, metric, rows.merge(both, on=keys)) for rows in (baseline, method)]
    if not all(pair) or len(pair[0]) != len(pair[1]):  # a task can be told under one of them alone
        return Estimate(np.nan, np.nan, np.nan)
    before, after = (np.mean([_value(definitions, metric, *one) for one in samples]) for samples in pair)
    draws = [_draws(definitions, metric, samples, seed) for samples in pair]
    return Estimate(float(after - before), *percentile_interval(draws[1] - draws[0]))


def _draws(definitions: str, metric: str, samples: Sequence[Samples], seed: int) -> NDArray[np.float64]:
    """A metric of `RESAMPLES` bootstrap samples, successes and failures of each part drawn anew."""
    rngs = np.random.default_rng(seed).spawn(len(samples))
    draws = [_resampled(definitions, metric, *one, rng) for one, rng in zip(samples, rngs, strict=True)]
    return np.mean(draws, axis=0)


def _resampled(
    definitions: str,
    metric: str,
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    if MATCHED.get(metric, metric) == "MMD":
        draws = mmd_draws(first, second, rng)
        return draws**2 if definitions == PAPER else draws
    draws = np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        one = first[rng.integers(0, len(first), len(first))]
        other = second[rng.integers(0, len(second), len(second))] if len(second) else second
        draws[k] = _value(definitions, metric, one, other)
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


def layout(table: pd.DataFrame, protocol: str, unscored: Sequence[str] = ()) -> typeset.Table:
    """The paper's definitions in the left columns, ours in the right ones; published rows fill the left.

    Args:
        unscored: suites in which no trajectory has a score.
    """
    cells = comparisons.cells(table, "source", "representation", "definitions", "metric")
    columns = [(definitions, metric) for definitions in (PAPER, OURS) for metric in METRICS]
    rows: dict[str, list[typeset.Row]] = {"ours": [], "matched": [], "control": [], "published": []}
    for source, name in dict.fromkeys((source, name) for source, name, *_ in cells):
        label = [name]
        if source == "ours":
            counts = cells[source, name, OURS, "SC"]
            label.append(f"{counts['successes']} successes, {counts['failures']} failures")
            matched = [None] * (len(columns) - len(MATCHED))
            rows["matched"].append(
                _typeset([name], [*matched, *(cells[source, name, OURS, metric] for metric in MATCHED)])
            )
        rows[source].append(_typeset(label, [cells.get((source, name, *column)) for column in columns]))
    suites = table.loc[table["source"] == "ours", "suites"].iloc[0] or "none"
    notes = [
        "Beneath the value, its 95% interval (percentile bootstrap over trajectories). SC and Mono: means "
        "over successes. MMD, JS, SMD: final progress of successes against failures. Left, as the SRPO paper "
        "defines them: a success is compared with its own whole embedding, so that its final progress is 1 "
        "whatever the representation, Mono counts strict rises, MMD is squared, JS in natural logarithms; "
        "per task, then averaged. Right, other definitions, ours: a success is compared with the mean of the "
        "others of its task, Mono counts steps without a fall, MMD is not squared, JS to base 2; all "
        "trajectories together. Failures are compared with the mean of the successes in both. They last "
        "until the step limit; at equal length, they are judged after as many steps as the median success of "
        "their task takes; the control is one minus an episode's steps over the longest's. Bold: our "
        "highest, where the 95% interval of its difference to our second highest, from the same "
        f"trajectories, lies above 0. Trajectories: our policy's on {suites}. Published rows: other "
        "trajectories of other policies, so not a like-for-like comparison even by the same definitions.",
    ]
    if unscored:
        notes.append(
            f"No scores on {', '.join(unscored)}: a success is compared with others of its task, and no task "
            "has two. More episodes (reward_benchmark.max_episodes) or a better policy give them."
        )
    groups = [
        typeset.Group("", rows["ours"]),
        typeset.Group("The same at equal length", rows["matched"]),
        typeset.Group("Control", rows["control"]),
        typeset.Group("Published, as printed elsewhere: the paper's definitions", rows["published"]),
    ]
    caption = (
        "How well the progress reward of each representation tells successes from failures: pure numbers, of "
        "which higher is better. Left by the SRPO paper's definitions, beside its published values; right by "
        f"other definitions, ours. {protocol}"
    )
    headings = [f"{metric}{', ours' if definitions == OURS else ''} ↑" for definitions, metric in columns]
    return typeset.Table(caption, "Representation", headings, groups, notes)


def _typeset(label: Sequence[str], cells: Sequence[Mapping[str, Any] | None]) -> typeset.Row:
    best = frozenset(place for place, cell in enumerate(cells) if cell and cell["best"])
    return typeset.Row(label, [_text(cell) if cell else [""] for cell in cells], best)


def draw(table: pd.DataFrame) -> Figure:
    """One panel a metric, one row a representation: above by the paper's definitions, published ones hollow
    below the line; beneath by ours, with nothing published."""
    table = table[table["metric"].isin(METRICS) & (table["source"] != "control")]
    parts = [table[table["definitions"] == definitions] for definitions in (PAPER, OURS)]
    names = [list(dict.fromkeys(zip(p["source"], p["representation"], strict=True))) for p in parts]
    size = (1.1 + 1.18 * len(METRICS), 1.3 + 0.24 * sum(map(len, names)))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        2, len(METRICS), sharey="row", squeeze=False, height_ratios=[len(part) + 0.5 for part in names]
    )
    for panels, part, shown, heading in zip(grid, parts, names, HEADINGS.values(), strict=True):
        ours = sum(source == "ours" for source, _ in shown)
        heights = [-float(i) - (0.3 if i >= ours else 0) for i in range(len(shown))]
        cells = comparisons.cells(part, "source", "representation", "metric")
        for axes, metric in zip(panels, METRICS, strict=True):
            _panel(axes, metric, part.loc[part["metric"] == metric, ["value", "low", "high"]])
            for y, (source, name) in zip(heights, shown, strict=True):
                row = cells[source, name, metric]
                if np.isnan(row["value"]):
                    axes.text(0.5, y, "–", transform=axes.get_yaxis_transform(), ha="center", va="center")
                elif source == "published":
                    style.published_dot(axes, y, row["value"])
                else:
                    style.dot(axes, y, (row["value"], row["low"], row["high"]), style.look(name))
            if 0 < ours < len(shown):
                axes.axhline((heights[ours - 1] + heights[ours]) / 2, color="#999999", linewidth=0.6)
            axes.set(ylim=(min(heights) - 0.6, 0.6), title=f"{metric} ↑")
        labels = []
        for source, name in shown:
            row = cells[source, name, METRICS[0]]
            labels.append(f"{name} ({row['successes']} + {row['failures']})" if source == "ours" else name)
        panels[0].set_yticks(heights, labels)
        panels[0].set_ylabel(heading, fontsize=7)
        for label, (source, _) in zip(panels[0].get_yticklabels(), shown, strict=True):
            label.set_color(style.PUBLISHED if source == "published" else "black")
    figure.supxlabel("ours: (successes + failures); hollow: published", fontsize=7)
    return figure


def _panel(axes: Axes, metric: str, values: pd.DataFrame) -> None:
    """The scale of a metric's panel, wide enough for its values and the ends of their intervals."""
    known = values.to_numpy(float)
    known = known[np.isfinite(known)]
    lowest, highest = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if metric == "SMD":  # the published values span two orders of magnitude, ours may be negative
        axes.set_xscale("symlog", linthresh=1, linscale=0.7)
        ticks = [tick for tick in (-100, -10, -1, 0, 1, 10, 100) if min(lowest, 1) - 1 <= tick <= highest]
        axes.set_xticks(ticks, [f"{tick}".replace("-", "−") for tick in ticks])
        axes.set_xlim(min(-0.3, 1.5 * lowest), max(2.0, 1.5 * highest))
        axes.minorticks_off()
    else:  # at most 1 but for MMD's √2, or 2 squared
        axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−.5", "0", ".5", "1"])
        axes.set_xlim(min(-0.06, lowest - 0.06), max(1.06, highest + 0.06))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
