"""The progress-reward benchmark: labelled trajectories, and how well representations tell their progress.

    srpo reward-benchmark collect --config C --policy DIR --out DIR --scratch DIR --workers N
    srpo reward-benchmark score --config C --world-model NAME --trajectories DIR --scratch DIR \\
        --out FILE.parquet --curves FILE.parquet

`collect` samples rollouts of a policy on training states and keeps some successes and failures of each task.
`score` measures progress along them with one world model; the metrics of all trajectories together
(`srpo.rewards.metrics`) are the table's. Embeddings are kept in its scratch folder by what they are of, so
a killed or repeated scoring goes on from there; the folder may be deleted at any time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from srpo.config import ConfigError, RewardBenchmarkStage, did_you_mean, load_stage
from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.results import ResultError
from srpo.results.rows import write_rows
from srpo.results.schemas import BENCHMARK, CURVES
from srpo.rewards.metrics import monotonicity, progress_curve, spearman_correlation
from srpo.rewards.progress import nearest_distances
from srpo.rewards.references import usable
from srpo.runtime.files import atomic_directory, write_text, write_with
from srpo.runtime.locks import lock_held
from srpo.runtime.manifest import sha256, write_manifest
from srpo.world_models import WorldModel, load_world_model, select_frames
from srpo.world_models.cache import EmbeddingCache

FILE = "trajectories.h5"


class TrajectoryError(Exception):
    """Trajectories that cannot be collected, read or scored."""


# Collecting

RolloutFn = Callable[[Sequence[EpisodeSpec]], Iterable[Episode | FailedRun]]
"""Runs episodes; results come in any order."""


def quotas(total: int, tasks: Sequence[int]) -> dict[int, int]:
    """`total` shared out evenly over the tasks, the first ones taking one more where it does not divide."""
    share, rest = divmod(total, len(tasks))
    return {task: share + (index < rest) for index, task in enumerate(tasks)}


def stored_frames(config: RewardBenchmarkStage) -> int:
    """Frames kept of a trajectory: as many as the most demanding world model takes, so that the whole
    trajectory is embedded from just the frames training would embed it from."""
    return max(config.reward_benchmark.prefixes, *(model.frames for model in config.world_models))


def episode_spec(config: RewardBenchmarkStage, task: int, index: int) -> EpisodeSpec:
    """The index-th rollout of a task: training states in order, again and again, each time another seed."""
    states = config.protocol.train_states()
    seed = np.random.SeedSequence([config.reward_benchmark.seed, task, index]).generate_state(1)[0]
    return EpisodeSpec(
        suite=config.suite,
        task_id=task,
        init_state=states[index % len(states)],
        seed=int(seed),
        temperature=config.reward_benchmark.temperature,
        frames=stored_frames(config),
    )


@dataclass(frozen=True)
class Record:
    """A rollout that has been run: a small file in the scratch folder, with frames if they may be wanted.

    `success` is None, and `error` says why, if the rollout could not be run.
    """

    spec: EpisodeSpec
    path: Path
    success: bool | None
    steps: int
    error: str | None


@dataclass
class Collection:
    """One task's rollouts, in order of their index, and how many of them are wanted.

    quota   how many failures (False) and successes (True) to keep
    budget  how many rollouts may be run
    """

    task: int
    quota: dict[bool, int]
    budget: int
    records: list[Record] = field(default_factory=list)

    def kept(self, success: bool) -> list[Record]:
        """The first successes (failures), up to the quota."""
        return [record for record in self.records if record.success is success][: self.quota[success]]

    def is_full(self, success: bool) -> bool:
        return len(self.kept(success)) == self.quota[success]

    def missing(self) -> int:
        """PolicyRunner that are needed at the very least; 0 also when the budget is spent."""
        missing = sum(self.quota.values()) - len(self.kept(False)) - len(self.kept(True))
        return min(missing, self.budget - len(self.records))

    def counts(self) -> dict[str, int]:
        """What became of the rollouts."""
        outcomes = [record.success for record in self.records]
        return {
            "rollouts": len(outcomes),
            "successes": outcomes.count(True),
            "not run": outcomes.count(None),
            "kept successes": len(self.kept(True)),
            "kept failures": len(self.kept(False)),
        }


def _read(spec: EpisodeSpec, path: Path) -> Record:
    with h5py.File(path, "r") as file:
        if "error" in file.attrs:
            return Record(spec, path, success=None, steps=0, error=str(file.attrs["error"]))
        return Record(spec, path, bool(file.attrs["success"]), int(file.attrs["steps"]), error=None)


def _save(result: Episode | FailedRun, path: Path, with_frames: bool) -> None:
    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            if isinstance(result, FailedRun):
                file.attrs["error"] = result.error
                return
            file.attrs["success"], file.attrs["steps"] = result.success, result.steps
            if with_frames:
                shown = select_frames(result.steps + 1, len(result.frames))
                file["distance_to_goal"] = result.distance_to_goal[shown]
                file.create_dataset("frames", data=result.frames, compression="gzip", compression_opts=1)

    write_with(path, write)


def gather_collections(config: RewardBenchmarkStage, run: RolloutFn, scratch: Path) -> list[Collection]:
    """Roll out until every task has its successes and failures, or its share of `max_episodes` is spent.

    Rounds: in each, every unfinished task runs as many rollouts as it lacks trajectories; fewer cannot do.
    A task's trajectories are its first successes and failures by index, so they depend neither on the order
    in which rollouts finish nor on where an interrupted collection went on. A rollout that could not be run
    is left out.
    """
    settings = config.reward_benchmark
    failures, successes = quotas(settings.failures, config.tasks), quotas(settings.successes, config.tasks)
    budgets = quotas(settings.max_episodes, config.tasks)
    collections = [Collection(t, {False: failures[t], True: successes[t]}, budgets[t]) for t in config.tasks]
    wanted = settings.successes + settings.failures
    with tqdm(total=wanted, desc="trajectories", unit="trajectory", disable=None) as bar:
        while any(collection.missing() > 0 for collection in collections):
            specs: dict[EpisodeSpec, tuple[Collection, Path]] = {}
            for collection in collections:
                done = len(collection.records)
                for index in range(done, done + collection.missing()):
                    path = scratch / "episodes" / f"task{collection.task}-{index}.h5"
                    specs[episode_spec(config, collection.task, index)] = (collection, path)
            for result in run([spec for spec, (_, path) in specs.items() if not path.is_file()]):
                collection, path = specs[result.spec]
                # All rollouts of lower index than this round's are known, so a full quota stays as it is.
                spare = isinstance(result, Episode) and collection.is_full(result.success)
                _save(result, path, with_frames=not spare)
            for spec, (collection, path) in specs.items():
                collection.records.append(_read(spec, path))
            bar.update(sum(len(c.kept(outcome)) for c in collections for outcome in (False, True)) - bar.n)
    return collections


def write_trajectories(config: RewardBenchmarkStage, collections: Iterable[Collection], path: Path) -> None:
    """Write `trajectories.h5`: N trajectories, by task, successes first, each in order of index.

    Datasets: frames uint8 (N, F, H, W, 3); distance_to_goal float32 (N, F), metres to the goal at each frame;
    success bool (N,); task_id, init_state, episode_seed, steps int64 (N,). Attributes: suite; protocol and
    reward_benchmark, the configuration's sections as JSON; rollouts, JSON of task → what became of its
    rollouts.
    """
    collections = list(collections)
    kept = [r for collection in collections for success in (True, False) for r in collection.kept(success)]
    size = config.protocol.image_size
    shape = (stored_frames(config), size, size, 3)
    with h5py.File(path, "w") as file:
        file.attrs["suite"] = config.suite
        file.attrs["protocol"] = config.protocol.model_dump_json()
        file.attrs["reward_benchmark"] = config.reward_benchmark.model_dump_json()
        file.attrs["rollouts"] = json.dumps({c.task: c.counts() for c in collections})
        file["success"] = np.array([record.success for record in kept], dtype=bool)
        file["steps"] = np.array([record.steps for record in kept], dtype=np.int64)
        file["task_id"] = np.array([record.spec.task_id for record in kept], dtype=np.int64)
        file["init_state"] = np.array([record.spec.init_state for record in kept], dtype=np.int64)
        file["episode_seed"] = np.array([record.spec.seed for record in kept], dtype=np.int64)
        distance_to_goal = file.create_dataset(
            "distance_to_goal", shape=(len(kept), shape[0]), dtype=np.float32
        )
        frames = file.create_dataset(
            "frames",
            shape=(len(kept), *shape),
            dtype=np.uint8,
            chunks=(1, *shape),  # read a trajectory at a time
            compression="gzip",
            compression_opts=1,
        )
        for index, record in enumerate(kept):
            with h5py.File(record.path, "r") as part:
                frames[index], distance_to_goal[index] = part["frames"][()], part["distance_to_goal"][()]


def _prepare(scratch: Path, config: RewardBenchmarkStage, policy: Path) -> None:
    """Empty the scratch folder if what lies there was rolled out under other settings or another policy."""
    settings = json.dumps(
        {
            "suite": config.suite,
            "protocol": config.protocol.model_dump(mode="json"),
            "seed": config.reward_benchmark.seed,
            "temperature": config.reward_benchmark.temperature,
            "frames": stored_frames(config),
            "policy": sha256(policy),
        },
        sort_keys=True,
    )
    note = scratch / "settings.json"
    if not note.is_file() or note.read_text(encoding="utf-8") != settings:
        if scratch.exists():
            print(f"{scratch}: holds rollouts under other settings or of another policy; starting anew")
            shutil.rmtree(scratch)
        write_text(note, settings)


def collect(config: RewardBenchmarkStage, policy: Path, out: Path, scratch: Path, workers: int) -> None:
    """Collect trajectories of the policy in `policy` and write them to `out`/trajectories.h5.

    Finished rollouts are kept in `scratch`, so that a killed run loses only those in progress.

    Raises:
        TrajectoryError: the policy or OpenGL cannot be loaded, or no rollout could be run.
    """
    import torch  # here, so that --help and errors in the configuration come at once

    from srpo.envs.gl import MissingGLError, require_gl
    from srpo.policies.openvla_oft import CheckpointError, load_policy
    from srpo.rollouts.policy_runner import PolicyRunner

    try:
        require_gl()
        loaded = load_policy(policy, "cuda" if torch.cuda.is_available() else "cpu")
    except (MissingGLError, CheckpointError) as error:
        raise TrajectoryError(str(error)) from error
    _prepare(scratch, config, policy)
    with PolicyRunner(config.suite, config.protocol, loaded, workers=workers) as rollouts:
        collections = gather_collections(config, rollouts.run, scratch)
    for collection in collections:
        summary = ", ".join(f"{number} {name}" for name, number in collection.counts().items())
        print(f"{config.suite} task {collection.task}: {summary}")
    errors = [record.error for collection in collections for record in collection.records if record.error]
    if errors and not any(c.kept(success) for c in collections for success in (False, True)):
        raise TrajectoryError(f"no rollout could be run; the first of {len(errors)} errors: {errors[0]}")
    with atomic_directory(out) as folder:
        write_trajectories(config, collections, folder / FILE)
        write_manifest(folder / "manifest.json", config, policy=sha256(policy), workers=workers)
    shutil.rmtree(scratch)


# Scoring


def score(
    config: RewardBenchmarkStage, name: str, checkpoint: Path | None, trajectories: Path, scratch: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the reward benchmark (`srpo.results.rows.BENCHMARK`) and of its progress curves (`CURVES`)
    under the world model called `name`.

    Progress is measured at `prefixes` frames, evenly spaced from the first to the last; see `score_rows`.
    A trajectory whose task has no (other) success has nothing to be compared with and is left out. One with a
    broken embedding has a row without progress.

    Raises:
        ConfigError: the configuration has no such world model, or its weights cannot be used.
        TrajectoryError: the file is missing or broken, from another suite, or has nothing to score.
    """
    world_model = EmbeddingCache(_load(config, name, checkpoint), scratch / "embeddings")
    with _open(trajectories / FILE) as file:
        if file.attrs["suite"] != config.suite:
            raise TrajectoryError(
                f"{trajectories / FILE} holds trajectories of {file.attrs['suite']}, but the configuration "
                f"is for {config.suite}: give the folder that `collect` made with it"
            )
        success, task, steps = file["success"][()], file["task_id"][()], file["steps"][()]
        distance_to_goal = file["distance_to_goal"][()]
        numbers = np.flatnonzero(has_reference(success, task))
        if not len(numbers):
            raise TrajectoryError(
                f"{trajectories / FILE}: no task has two successes to compare with: raise "
                "reward_benchmark.max_episodes or collect with a better policy"
            )
        if len(numbers) < len(success):
            print(f"{len(success) - len(numbers)} of {len(success)} trajectories have no reference: left out")
        stored = file["frames"].shape[1]
        ends = select_frames(stored, config.reward_benchmark.prefixes)
        embeddings = np.stack(
            [
                world_model.embed_prefixes(file["frames"][number], ends)
                for number in tqdm(numbers, desc=f"embedding ({name})", unit="trajectory", disable=None)
            ]
        )
    success, task, steps = success[numbers], task[numbers], steps[numbers]
    seen = np.stack([select_frames(count + 1, stored)[ends] for count in steps])
    distance_to_goal = distance_to_goal[numbers][:, ends]
    whole = np.array([usable(prefixes).all() for prefixes in embeddings])
    scorable = whole.copy()
    scorable[whole] = has_reference(success[whole], task[whole])
    for number, intact, scored in zip(numbers, whole, scorable, strict=True):
        if not scored:
            why = "no other success is left to compare with" if intact else "its embedding is broken"
            print(f"trajectory {number}: not scored: {why}")
    if not scorable.any():
        raise TrajectoryError(f"world model {name}: no trajectory could be scored; see above")
    rows, curves = score_rows(embeddings[scorable], success[scorable], task[scorable], seen[scorable])
    own, points = iter(rows), iter(curves)
    scores, tidy = [], []
    for index, number in enumerate(numbers):
        row = {
            "suite": config.suite,
            "task_id": int(task[index]),
            "trajectory": int(number),
            "success": bool(success[index]),
            "representation": name,
        }
        if scorable[index]:
            scores.append({**row, "steps": int(steps[index]), **next(own)})
            ways = zip(next(points), distance_to_goal[index], strict=True)
            tidy += [{**row, **point, "distance_to_goal": float(way)} for point, way in ways]
        else:
            nothing = dict.fromkeys(("spearman", "monotonicity", "final_progress", "matched_progress"))
            scores.append({**row, "steps": int(steps[index]), **nothing})
    return scores, tidy


def has_reference(success: NDArray[np.bool_], task: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which trajectories are of a task with two successes, so that each has one to compare to: bool (N,)."""
    successes_of_task = ((task[:, None] == task[None, :]) & success[None, :]).sum(axis=1)
    return successes_of_task >= 2


def score_rows(
    embeddings: NDArray[np.floating],
    success: NDArray[np.bool_],
    task: NDArray[np.integer],
    seen: NDArray[np.integer],
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Progress along N trajectories, by the distance of their prefixes to their task's reference.

    The reference is the mean of the embeddings of the task's successes, as whole trajectories; for a success,
    of the others. It is what SRPO's own clustering falls back to, and has no parameter that could suit one
    representation better than another.

    A world model sees frames spread over all of an episode, and a failure lasts until it is cut off, so its
    final progress also tells its length. `matched_progress` takes that away: a failure is judged by its last
    prefix of no more control steps than the median success of its task, as if it had ended there.

    Args:
        embeddings: float (N, P, D), of P prefixes of rising length, the last of them the whole trajectory.
        success: bool (N,).
        task: int (N,). Every trajectory has a reference (`has_reference`).
        seen: int (N, P), control steps that each prefix shows, rising from 0 to the trajectory's own.

    Returns, a trajectory each: its scores, and the P points of its curve.
    """
    whole = embeddings[:, -1].astype(np.float64)
    rows, curves = [], []
    for index, prefixes in enumerate(embeddings):
        others = success & (task == task[index])
        others[index] = False
        distances = nearest_distances(prefixes, whole[others].mean(axis=0, keepdims=True))
        progress = progress_curve(distances)
        matched = progress
        if not success[index]:
            matched = progress_curve(distances[seen[index] <= np.median(seen[others, -1])])
        rows.append(
            {
                "spearman": spearman_correlation(progress) if success[index] else None,
                "monotonicity": monotonicity(progress) if success[index] else None,
                "final_progress": float(progress[-1]),
                "matched_progress": float(matched[-1]),
            }
        )
        curves.append(
            [
                {"step": int(step), "distance": float(distance), "progress": float(value)}
                for step, distance, value in zip(seen[index], distances, progress, strict=True)
            ]
        )
    return rows, curves


def _load(config: RewardBenchmarkStage, name: str, checkpoint: Path | None) -> WorldModel:
    models = {model.name: model for model in config.world_models}
    if name not in models:
        raise ConfigError(f"--world-model: there is no {name!r}{did_you_mean(name, models)}")
    try:
        return load_world_model(models[name], checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"--world-model {name}: {error}") from error


def _open(path: Path) -> h5py.File:
    fix = "run `srpo reward-benchmark collect` again"
    if not path.is_file():
        raise TrajectoryError(f"{path}: no such file: {fix}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise TrajectoryError(f"{path}: not a whole HDF5 file ({error}): {fix}") from None
    missing = {"success", "task_id", "steps", "distance_to_goal", "frames"} - set(file) | {"suite"} - set(
        file.attrs
    )
    if missing:
        file.close()
        raise TrajectoryError(f"{path}: lacks {', '.join(sorted(missing))}: {fix}")
    return file


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="srpo reward-benchmark",
        description="Collect labelled trajectories and score progress along them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="sample rollouts and keep successes and failures")
    scoring = commands.add_parser("score", help="measure progress with one world model")
    for command in (collecting, scoring):
        command.add_argument("--config", type=Path, required=True, help="resolved configuration (YAML)")
    collecting.add_argument("--policy", type=Path, required=True, help="folder of the policy to roll out")
    collecting.add_argument("--out", type=Path, required=True, help=f"folder to make, with {FILE}")
    collecting.add_argument("--scratch", type=Path, required=True, help="folder for finished rollouts")
    collecting.add_argument("--workers", type=int, default=1, help="processes that simulate (default: 1)")
    scoring.add_argument("--world-model", required=True, metavar="NAME", help="one of the configuration's")
    scoring.add_argument("--checkpoint", type=Path, help="its folder, if the workflow pretrained it")
    scoring.add_argument("--trajectories", type=Path, required=True, help="folder that `collect` made")
    scoring.add_argument("--scratch", type=Path, required=True, help="folder for finished embeddings")
    scoring.add_argument("--out", type=Path, required=True, help="parquet file to make: a row a trajectory")
    scoring.add_argument("--curves", type=Path, required=True, help="parquet file to make: a row a point")
    arguments = parser.parse_args()
    try:
        config = load_stage(arguments.config, RewardBenchmarkStage)
        if arguments.command == "collect":
            if arguments.workers < 1:
                parser.error(f"--workers {arguments.workers}: at least 1")
            with lock_held(arguments.scratch):
                collect(config, arguments.policy, arguments.out, arguments.scratch, arguments.workers)
        else:
            scored, curves = score(
                config,
                arguments.world_model,
                arguments.checkpoint,
                arguments.trajectories,
                arguments.scratch,
            )
            write_rows(arguments.curves, curves, CURVES)
            write_rows(arguments.out, scored, BENCHMARK)
    except (ConfigError, TrajectoryError, ResultError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
