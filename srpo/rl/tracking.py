"""Experiment trackers, all through accelerate: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from srpo.config import TrainStage
from srpo.errors import FinalExit
from srpo.runtime import distributed

PROJECT = "srpo"


def make_accelerator(trackers: Iterable[str], out: Path) -> Accelerator:
    """The accelerator of a training run; TensorBoard's files go to `out/tensorboard`.

    Raises SystemExit when a tracker's package is missing: accelerate itself would silently skip it.
    """
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise FinalExit(
                f"train.trackers: the package {name} is not installed. `pip install {name}`, or take it out"
            )
    return distributed.make_accelerator(
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "tensorboard")),
    )


def start_trackers(accelerator: Accelerator, config: TrainStage, run: str, done: int) -> None:
    """Start logging, or resume after step `done`; `run` identifies the run across restarts."""
    name = f"{config.preset}/{config.suite}/{config.variant}/seed{config.seed}"
    settings = config.model_dump(mode="json")
    accelerator.init_trackers(
        PROJECT,
        init_kwargs={
            "tensorboard": {"purge_step": done + 1},  # steps after the last checkpoint are logged again
            "wandb": {"name": name, "id": run, "resume": "allow", "config": settings},
            "trackio": {"name": name, "resume": "allow", "config": settings},
        },
    )


def scalars(row: Mapping[str, Any], tasks: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """A row of metrics.csv and the step's rows of tasks.csv as named numbers, without nulls and text."""
    values = {f"train/{name}": value for name, value in row.items() if name != "step"}
    counts = json.loads(values.pop("train/reward_histogram"))
    for number, count in enumerate(counts):
        values[f"rewards/{number / len(counts):.1f}-{(number + 1) / len(counts):.1f}"] = count
    for task in tasks:
        columns = {name: value for name, value in task.items() if name not in ("step", "task_id")}
        values |= {f"task {task['task_id']}/{name}": value for name, value in columns.items()}
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
