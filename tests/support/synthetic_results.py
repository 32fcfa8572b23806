"""Result folders shaped like real runs, for tests of tables and figures. The numbers are drawn at random."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from srpo.config import (
    EvaluateStage,
    PlusStage,
    Protocol,
    RewardBenchmarkStage,
    Stage,
    Suite,
    TrainStage,
    ValuesStage,
    WorldModel,
)
from srpo.libero_plus import tasks as plus_tasks
from srpo.results.rows import protocol_json, read_rows, write_rows
from srpo.results.schemas import BENCHMARK, CURVES, EPISODES, PATHS, REWARDS, RL_METRICS, VALUES

MAX_STEPS: dict[str, int] = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
}
MUJOCO = "3.3.7"


def protocol(suite: str, **changes: Any) -> Protocol:
    values = {
        "profile": "official",
        "max_steps": MAX_STEPS[suite],
        "settle_steps": 10,
        "env_seed": 0,
        "image_size": 128,
        "render": "exact",
    }
    return Protocol.model_validate({**values, **changes})


def write_config(folder: Path, stage: Stage) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(stage.model_dump(mode="json")), encoding="utf-8")


@cache
def recorded_protocol(suite: str) -> str:
    return protocol_json(protocol(suite), MUJOCO)


def episode_row(suite: str = "libero_spatial", **changes: Any) -> dict[str, Any]:
    """One valid episode row; `changes` replace columns."""
    return {
        "preset": "smoke",
        "suite": suite,
        "task_id": 0,
        "task": "pick_up_the_bowl",
        "init_state": 0,
        "seed": 0,
        "episode_seed": 11,
        "temperature": 0.0,
        "policy": "tiny",
        "variant": "sft",
        "benchmark": "libero",
        "perturbation": None,
        "perturbation_task": None,
        "perturbation_parameters": None,
        "status": "success",
        "error": None,
        "steps": 80,
        "max_steps": MAX_STEPS[suite],
        "profile": "official",
        "protocol": recorded_protocol(suite),
        "wall_seconds": 1.5,
        "video": None,
        **changes,
    }


def libero_run(
    root: Path,
    suite: Suite,
    variant: str,
    rate: float,
    *,
    seed: int = 0,
    tasks: int = 2,
    states: int = 10,
    infra_errors: int = 0,
    sampled: int = 0,
    stopped_at: int | None = None,
) -> Path:
    """An evaluation folder of `tasks` × `states` episodes, about `rate` of them solved; gives the parquet.

    Args:
        stopped_at: where given, the comparison may stop early, and did so before this state.
    """
    folder = root / suite / variant / f"seed{seed}" / "evaluation"
    rng = np.random.default_rng([seed, len(variant), MAX_STEPS[suite]])
    config = {
        "preset": "smoke",
        "suite": suite,
        "tasks": list(range(tasks)),
        "protocol": protocol(suite).model_dump(),
        "variant": variant,
        "seed": seed,
        "evaluate": {"states": states, "sampled": sampled, "stop_early": stopped_at is not None},
    }
    stage = EvaluateStage.model_validate(config)
    write_config(folder, stage)
    rows = []
    for task in range(tasks):
        for state in range(states):
            infra = len(rows) < infra_errors
            status = "infra_error" if infra else "success" if rng.random() < rate else "failure"
            error = "RuntimeError: out of memory" if infra else None
            if stopped_at is not None and state >= stopped_at:
                status, error = "stopped", "decided"
            changes = {"task_id": task, "init_state": state, "seed": seed, "variant": variant}
            rows.append(episode_row(suite, **changes, status=status, error=error))
    write_rows(folder / "episodes.parquet", rows, EPISODES)
    draws = [
        row
        | {
            "temperature": 1.0,
            "episode_seed": draw,
            "status": "success" if rng.random() < rate else "failure",
        }
        for row in rows
        for draw in stage.evaluate.sampled_seeds(row["init_state"])
    ]
    write_rows(folder / "sampled.parquet", draws, EPISODES)
    return folder / "episodes.parquet"


def paths_of(episodes: Path, reach: float) -> Path:
    """Paths of an evaluation's episodes: from one start to places `reach` metres about; gives the file."""
    rows = []
    frame = read_rows(episodes, EPISODES)
    for row in frame[frame["status"].isin(["success", "failure"])].to_dict("records"):
        rng = np.random.default_rng([row["task_id"], row["init_state"], int(1000 * reach)])
        goal = np.array([-0.02, 0.0, 1.0]) + reach * rng.uniform((-1, -1.5, -0.6), (1, 1.5, 0.6))
        share = np.linspace(0, 1, row["steps"] + 1)[:, None] ** 0.7
        path = np.array([-0.21, 0.0, 1.17]) * (1 - share) + goal * share
        path += 0.01 * np.cumsum(rng.standard_normal(path.shape), axis=0) / np.sqrt(len(path))
        shared = {key: row[key] for key in ("suite", "variant", "seed", "task_id", "init_state")}
        shared["success"] = row["status"] == "success"
        rows += [
            {**shared, "step": step, "x": x, "y": y, "z": z} for step, (x, y, z) in enumerate(path.tolist())
        ]
    write_rows(episodes.with_name("paths.parquet"), rows, PATHS)
    return episodes.with_name("paths.parquet")


def plus_tasks_file(path: Path, dimensions: tuple[str, ...], per_base_task: int = 6) -> Path:
    """A task list with made-up numbers in officially shaped names, in every suite."""
    suffixes = {
        "camera": "_view_{n}_0_100_0_0_initstate_0",
        "noise": "_view_0_0_100_0_0_initstate_0_noise_{n}",
        "light": "_light_{n}",
        "layout": "_add_{n}",
        "background": "_table_{n}",
        "robot": "_view_0_0_100_0_0_initstate_{n}",
        "language": "_language_{n}_view_0_0_100_0_0_initstate_0",
    }
    tasks = [
        plus_tasks.parse(base + suffixes[dimension].format(n=n))
        for bases in plus_tasks.COUNTS.values()
        for base in bases
        for dimension in dimensions
        for n in range(1, per_base_task + 1)
    ]
    plus_tasks.write_tasks(path, tasks)
    return path


def plus_run(
    root: Path,
    suite: Suite,
    variant: str,
    rates: dict[str, float],
    tasks_file: Path,
    *,
    seed: int = 0,
    per_dimension: int = 12,
    tasks: Sequence[int] = (0, 1, 2),
    stopped_at: int | None = None,
) -> Path:
    """A LIBERO-Plus folder with `per_dimension` episodes for each dimension of `rates`; gives the parquet.

    Args:
        stopped_at: where given, shards (of ten tasks) may stop early, and did so before this task.
    """
    folder = root / suite / variant / f"seed{seed}" / "plus"
    styles = [style for style in rates if style in plus_tasks.STYLES]
    dimensions = [dimension for dimension in rates if dimension not in styles]
    plus = {
        **{"dimensions": dimensions, "per_dimension": per_dimension, "shard_size": 10, "seed": 0},
        **{"robot_start": "official", "leaked_prompt": False, "assets": None},
        "styles": per_dimension if styles else 0,
        "stop_early": stopped_at is not None,
    }
    config = {
        "preset": "smoke",
        "suite": suite,
        "tasks": list(tasks),
        "protocol": protocol(suite).model_dump(),
        "variant": variant,
        "seed": seed,
        "plus": plus,
    }
    stage = PlusStage.model_validate(config)
    write_config(folder, stage)
    rng = np.random.default_rng([seed, len(variant)])
    chosen = plus_tasks.sample(
        plus_tasks.read_tasks(tasks_file), suite, stage.tasks, dimensions, per_dimension, stage.plus.seed
    )
    chosen += plus_tasks.style_tasks(suite, stage.tasks, stage.plus.styles)
    rows = [
        episode_row(
            suite,
            benchmark="libero_plus",
            variant=variant,
            seed=seed,
            task_id=task.task_id,
            task=task.base_task,
            perturbation=task.dimension,
            perturbation_task=task.name,
            perturbation_parameters=json.dumps(task.parameters),
            **(
                {"status": "unavailable", "error": "needs the asset pack"}
                if rates[task.dimension] is None
                else {"status": "stopped", "error": "decided"}
                if stopped_at is not None and place % 10 >= stopped_at
                else {"status": "success" if rng.random() < rates[task.dimension] else "failure"}
            ),
        )
        for place, task in enumerate(chosen)
    ]
    write_rows(folder / "episodes.parquet", rows, EPISODES)
    return folder / "episodes.parquet"


def rl_run(
    root: Path,
    suite: Suite,
    variant: str,
    rates: list[float],
    *,
    seed: int = 0,
    episodes: int = 32,
    model: str = "pixel",
    **reward: Any,
) -> Path:
    """An RL folder with one metrics row a rate; `reward` replaces settings; gives the metrics.csv."""
    folder = root / suite / variant / f"seed{seed}"
    grpo = variant == "grpo"
    config = {
        "preset": "smoke",
        "suite": suite,
        "tasks": [0, 1],
        "protocol": protocol(suite).model_dump(),
        "variant": variant,
        "seed": seed,
        "world_model": None if grpo else world_model(model).model_dump(),
        "reward": {
            "shaping": "none" if grpo else "paper",
            "alpha": 0.8,
            "references": "dbscan",
            "eps": 0.5,
            "eps_relative": True,
            "scope": "batch",
            "min_samples": 2,
            **reward,
        },
        "train": {
            "steps": len(rates),
            "prompts": 4,
            "group_size": 8,
            "temperature": 1.6,
            "keep_success": [0.1, 0.9],
            "resample": 0,
            "learning_rate": 5e-6,
            "warmup": 0.0,
            "schedule": "constant",
            "weight_decay": 0.0,
            "deviation": "group",
            "betas": [0.9, 0.999],
            "freeze_vision": False,
            "minibatch": 4,
            "microbatch": 8,
            "epochs": 1,
            "clip_low": 0.2,
            "clip_high": 0.28,
            "kl": 0.0,
            "entropy": 0.0,
            "grad_clip": 1.0,
            "offline": None,
            "evaluate_every": 0,
            "evaluate_states": 5,
            "target": None,
            "checkpoint_every": 1,
            "keep_checkpoints": 2,
            "trackers": ["tensorboard"],
        },
    }
    write_config(folder, TrainStage.model_validate(config))
    rng = np.random.default_rng([seed, len(variant), MAX_STEPS[suite]])
    rows, rewards = [], []
    for step, rate in enumerate(rates, start=1):
        successes = int(rng.binomial(episodes, rate))
        counts = {"episodes": episodes, "successes": successes, "success_rate": successes / episodes}
        row: dict[str, Any] = {
            name: 0 if column.kind == "int" else 0.5 for name, column in RL_METRICS.columns.items()
        }
        row["reward_histogram"] = "[]"
        rows.append({**row, "step": step, **counts, "groups": 4, "environment_steps": 100 * episodes})
        rewards += [
            {
                **{"step": step, "group": k % 4, "suite": suite, "task_id": k % 2, "init_state": k % 4},
                **{"episode_seed": k, "success": k < successes, "steps": 100, "distance_to_goal": 0.1},
                **{"distance": None, "reward": float(k < successes), "advantage": 0.0, "kept": True},
            }
            for k in range(episodes)
        ]
    write_rows(folder / "metrics.csv", rows, RL_METRICS)
    write_rows(folder / "rewards.parquet", rewards, REWARDS)
    (folder / "manifest.json").write_text(json.dumps({"packages": {"mujoco": MUJOCO}}))
    return folder / "metrics.csv"


def world_model(name: str) -> WorldModel:
    return WorldModel.model_validate(
        {
            "name": name,
            "kind": "pixel",
            "checkpoint": None,
            "revision": None,
            "frames": 16,
            "image_size": 64,
            "pooling": None,
            "dtype": "float32",
            "pretraining": None,
        }
    )


def reward_benchmark(
    root: Path, suite: Suite, quality: dict[str, float], *, successes: int = 14, failures: int = 6
) -> list[Path]:
    """Scores of the same trajectories under each representation of a `quality` in [0, 1]; gives the files."""
    folder = root / "reward_benchmark" / suite
    config = {
        "preset": "smoke",
        "suite": suite,
        "tasks": [0, 1],
        "protocol": protocol(suite).model_dump(),
        "reward_benchmark": {
            "successes": max(successes, 1),
            "failures": max(failures, 1),
            "max_episodes": 1000,
            "temperature": 1.0,
            "prefixes": 8,
            "seed": 0,
        },
        "world_models": [world_model(name).model_dump() for name in quality],
    }
    write_config(folder, RewardBenchmarkStage.model_validate(config))
    paths = []
    for name, good in quality.items():
        rng = np.random.default_rng([len(name), MAX_STEPS[suite]])
        rows = []
        for trajectory in range(successes + failures):
            success = trajectory < successes
            final = np.clip((good if success else 0.3) + 0.15 * rng.standard_normal(), 0, 1)
            rows.append(
                {
                    "suite": suite,
                    "task_id": trajectory % 2,
                    "trajectory": trajectory,
                    "success": success,
                    "steps": 60 + 7 * trajectory % 30 if success else MAX_STEPS[suite],
                    "representation": name,
                    "spearman": float(good + 0.1 * rng.random()) - 0.1 if success else None,
                    "monotonicity": float(good * rng.random()) if success else None,
                    "final_progress": float(final),
                    "matched_progress": float(final if success else 0.7 * final + 0.2),
                    "paper_spearman": good - 0.01 * (trajectory % 5) if success else None,
                    "paper_monotonicity": good - 0.02 * (trajectory % 3) if success else None,
                    "paper_final_progress": 1.0 if success else float(final),
                }
            )
        paths.append(folder / f"{name}.parquet")
        write_rows(paths[-1], rows, BENCHMARK)
    return paths


def curves_of(scores: list[Path], points: int = 16, size: int = 48) -> tuple[list[Path], Path]:
    """The curves behind scores of `reward_benchmark`, and the trajectories; gives their files and folder.

    The pictures are grey, lighter as time goes on, with the trajectory's number in the lower left pixel.
    """
    files = []
    for path in scores:
        frame = read_rows(path, BENCHMARK)
        rows = []
        for row in frame.to_dict("records"):
            rng = np.random.default_rng([row["trajectory"], len(row["representation"])])
            share = np.linspace(0, 1, points)
            progress = np.clip(
                row["final_progress"] * share + 0.05 * rng.standard_normal(points) * share, 0, 1
            )
            shared = {k: row[k] for k in ("suite", "task_id", "trajectory", "success", "representation")}
            for place, value in zip(share, progress, strict=True):
                step = round(place * row["steps"])
                left = 1 - place * (1 if row["success"] else 0.6)
                point = {"step": step, "distance_to_goal": left, "distance": 1 - value, "progress": value}
                rows.append({**shared, **point})
        files.append(path.with_name(f"{path.stem}-curves.parquet"))
        write_rows(files[-1], rows, CURVES)
    frame = read_rows(scores[0], BENCHMARK)
    grey = np.linspace(60, 220, points).astype(np.uint8)
    frames = np.broadcast_to(grey[None, :, None, None, None], (len(frame), points, size, size, 3)).copy()
    frames[:, :, -1, 0, :] = np.arange(len(frame))[:, None, None]
    path = scores[0].parent / "trajectories" / "trajectories.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file.attrs["suite"] = frame["suite"][0]
        file["frames"] = frames
    return files, path.parent


def values_of(scores: Path, branches: int = 8) -> Path:
    """Values of the trajectories of a file of scores: a success's rise, a failure's fall to 0; the file.

    Moments are at 0, 1/4, 1/2 and 3/4 of its steps. A failure has no successful branch after the first k
    moments, k its trajectory's number modulo 4.
    """
    frame = read_rows(scores, BENCHMARK)
    rows = []
    for row in frame.to_dict("records"):
        for place in range(4):
            hope = branches * (4 + place) // 8 if row["success"] or place < row["trajectory"] % 4 else 0
            moment = {key: row[key] for key in ("suite", "task_id", "trajectory", "success")}
            moment |= {"step": row["steps"] * place // 4, "branches": branches, "successes": hope}
            rows.append({**moment, "environment_steps": 40 * branches})
    suite = frame["suite"][0]
    folder = scores.parents[2] / "values" / suite
    benchmark = yaml.safe_load((scores.parent / "config.yaml").read_text())
    stage = {key: benchmark[key] for key in ("preset", "suite", "tasks", "protocol", "reward_benchmark")}
    stage["values"] = {"points": 4, "branches": branches, "seed": 0}
    write_config(folder, ValuesStage.model_validate(stage))
    write_rows(folder / "values.parquet", rows, VALUES)
    return folder / "values.parquet"
