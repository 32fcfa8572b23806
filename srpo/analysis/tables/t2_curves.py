"""LIBERO-Plus success against how much is perturbed: camera angle, noise severity, start displacement, level.

With LIBERO-Plus's own classification file, also against its difficulty levels 1–5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from srpo.analysis import comparisons, style, text
from srpo.analysis.drawn import Drawn
from srpo.analysis.stats import clustered_wilson
from srpo.analysis.tables.t2 import load_sweeps
from srpo.config import DIMENSIONS
from srpo.config.sheets import SheetRow, labels
from srpo.libero_plus import tasks as plus_tasks
from srpo.results import ResultError

ANGLES = (0, 15, 30, 45, 60, 75)
"""Bins of camera angles, degrees: (lower, upper]; a camera that does not turn about the scene is in bin 0."""
MAGNITUDES = {
    "camera": "camera angle, up to (°)",
    "robot": "start displacement (rad)",
    "noise": "noise severity",
    "layout": "layout level",
    "difficulty": "LIBERO-Plus difficulty",
}


def make(
    episodes: Sequence[Path],
    tasks: Path,
    sheet: Sequence[SheetRow],
    allow_incomplete: bool,
    classification: Sequence[Path] = (),
) -> Drawn:
    """The curves of the sweeps in these files of episodes, with LIBERO-Plus's list of tasks."""
    rows, missing, _ = load_sweeps(episodes, tasks, labels(sheet), allow_incomplete)
    difficulty = {name: level for path in classification for name, level in read_classification(path).items()}
    table = estimate(rows, labels(sheet), difficulty)
    lacking = text.lacking_episodes(rows, missing, labels(sheet))
    return Drawn(table, lambda: draw(table), missing=lacking)


def camera_angle(horizontal: int, vertical: int) -> float:
    """Degrees between a level direction and itself turned up by `vertical`, then aside by `horizontal`.

    By the spherical law of cosines, cos = cos h · cos v.
    """
    cosine = math.cos(math.radians(horizontal)) * math.cos(math.radians(vertical))
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))


def magnitude(task: plus_tasks.PlusTask) -> float | None:
    """How much a task perturbs, in the unit of `MAGNITUDES`; None where its dimension has no such scale."""
    numbers = {key: value for key, value in task.parameters.items() if isinstance(value, int)}
    if task.dimension == "camera":
        angle = camera_angle(numbers["horizontal"], numbers["vertical"])
        return float(next((edge for edge in ANGLES if angle <= edge + 1e-9), 180))
    if task.dimension == "robot":
        return round(plus_tasks.start_displacement(numbers["posture"]), 1)
    if task.dimension == "noise":
        return float(numbers["severity"])
    if task.dimension == "layout" and "level" in numbers:
        return float(numbers["level"])
    return None


def read_classification(path: Path) -> dict[str, int]:
    """LIBERO-Plus's `task_classification.json`: task name → difficulty level 1–5."""
    try:
        suites = json.loads(path.read_text(encoding="utf-8"))
        return {
            entry["name"]: int(entry["difficulty_level"])
            for entries in suites.values()
            for entry in entries
            if entry.get("difficulty_level") is not None
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path}: not LIBERO-Plus's task_classification.json: {error!r}") from None


def estimate(
    episodes: pd.DataFrame, variants: Mapping[str, str], difficulty: Mapping[str, int]
) -> pd.DataFrame:
    """The tidy table: a row for each variant, curve and magnitude. Rates are fractions.

    `curve` is a dimension, against its magnitude, or `difficulty: <dimension>`. Suites and seeds are pooled;
    episodes that did not run are in no count,
    and those of several seeds on one task are one cluster of a rate's interval.

    Args:
        variants: name → label.
        difficulty: name of a task → level; empty if not known.
    """
    ran = episodes[episodes["status"].isin(["success", "failure"])]
    points: list[tuple[str, str, str, float, bool]] = []
    for variant, name, status in zip(ran["variant"], ran["perturbation_task"], ran["status"], strict=True):
        task, success = plus_tasks.parse(name), status == "success"
        if task.dimension not in DIMENSIONS:
            continue
        if (amount := magnitude(task)) is not None:
            points.append((variant, name, task.dimension, amount, success))
        if name in difficulty:
            points.append((variant, name, f"difficulty: {task.dimension}", float(difficulty[name]), success))
    rows: list[dict[str, Any]] = []
    frame = pd.DataFrame(points, columns=["variant", "task", "curve", "value", "success"])
    for variant, label in variants.items():
        chosen = frame[frame["variant"] == variant]
        for (curve, value), group in chosen.groupby(["curve", "value"], sort=True):
            tasks = group.groupby("task")["success"]
            rate = clustered_wilson(tasks.sum().to_numpy(int), tasks.size().to_numpy(int))
            rows.append(
                {
                    **{"variant": variant, "label": label, "curve": curve, "value": value},
                    **comparisons.columns_of(rate),
                    **{"successes": int(group["success"].sum()), "episodes": len(group)},
                }
            )
    columns = [
        *("variant", "label", "curve", "value", "rate", "low", "high"),
        *("successes", "episodes"),
    ]
    return pd.DataFrame(rows, columns=columns)


def draw(table: pd.DataFrame) -> Figure:
    """One panel a curve, in it one line a variant with its intervals."""
    curves = list(dict.fromkeys(table["curve"])) or [""]
    wide = min(len(curves), 4)
    tall = -(-len(curves) // wide)
    figure = Figure(figsize=(style.FULL_WIDTH * wide / 4, 1.7 * tall + 0.5), layout="constrained")
    panels = figure.subplots(tall, wide, squeeze=False, sharey=True).ravel()
    labels = dict(zip(table["variant"], table["label"], strict=True))
    for axes, curve in zip(panels, curves, strict=False):
        values = table.loc[table["curve"] == curve, "value"]
        apart = 0.025 * (values.max() - values.min() or 1)  # so that equal ones do not hide one another
        for place, variant in enumerate(labels):
            rows = table[(table["variant"] == variant) & (table["curve"] == curve)].sort_values("value")
            colour, marker = style.look(variant)
            rate, low, high = (100 * rows[name].to_numpy(float) for name in ("rate", "low", "high"))
            axes.errorbar(
                rows["value"] + apart * (place - (len(labels) - 1) / 2),
                rate,
                yerr=np.clip([rate - low, high - rate], 0, None),
                color=colour,
                marker=marker,
                markersize=3,
                linewidth=1,
                elinewidth=0.6,
            )
        kind = curve.split(":")[0]
        axes.set_title(curve.capitalize(), fontsize=7)
        axes.set_xlabel(MAGNITUDES.get(kind, ""))
        axes.set_ylim(-3, 103)
        axes.set_xticks(sorted(set(table.loc[table["curve"] == curve, "value"])))
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    figure.supylabel("success (%)", fontsize=7)
    handles = [style.legend_marker(*style.look(variant), label) for variant, label in labels.items()]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=6.5)
    return figure
