"""The progress-reward benchmark: labelled trajectories, and how well representations measure their progress.

    srpo reward-benchmark collect --config C --policy DIR --out DIR --scratch DIR --workers N
    srpo reward-benchmark score --config C --world-model NAME --trajectories DIR --scratch DIR \\
        --out FILE.parquet --curves FILE.parquet

`collect` runs rollouts of a policy from training states and keeps some successes and failures of each task;
several processes (`accelerate launch`, docs/hpc.md) do so together.
`score` measures progress along them with one world model; the table's metrics (`srpo.rewards.metrics`) are
over all trajectories together. Embeddings are cached in the scratch folder, so that an interrupted or
repeated scoring resumes from there; the folder may be deleted at any time.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from srpo.config import ConfigError, RewardBenchmarkStage, did_you_mean, load_stage
from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.errors import run_command
from srpo.results.rows import write_rows
from srpo.results.schemas import BENCHMARK, CURVES
from srpo.rewards.benchmark import SCORES, has_reference, score_trajectories
from srpo.rewards.references import usable
from srpo.rollouts.trajectories import (
    FILE,
    Record,
    TrajectoryError,
    open_trajectories,
    read_record,
    write_record,
    write_trajectories,
)
from srpo.runtime.arguments import new_folder, positive
from srpo.runtime.files import atomic_directory, claim_scratch
from srpo.runtime.locks import lock_held
from srpo.runtime.manifest import sha256, write_manifest
from srpo.runtime.peers import ALONE, Peers, joined_peers, own_device
from srpo.runtime.progress import progress_bar
from srpo.world_models import WorldModel, load_world_model, select_frames
from srpo.world_models.cache import EmbeddingCache

if TYPE_CHECKING:
    from srpo.policies.openvla_oft import OpenVLAOFT

Rows = list[dict[str, Any]]

# Collecting

RolloutFn = Callable[[Sequence[EpisodeSpec]], Iterable[Episode | FailedRun]]
"""Runs episodes; results come in any order. Of several processes each has those that it ran."""


def quotas(total: int, tasks: Sequence[int]) -> dict[int, int]:
    """`total` divided evenly among the tasks; the first ones get one more if it does not divide."""
    share, rest = divmod(total, len(tasks))
    return {task: share + (index < rest) for index, task in enumerate(tasks)}


def stored_frames(config: RewardBenchmarkStage) -> int:
    """Frames kept of a trajectory: as many as the largest input of a world model, so that a whole trajectory
    is embedded from the same frames as in training."""
    return max(config.reward_benchmark.prefixes, *(model.frames for model in config.world_models))


def episode_spec(config: RewardBenchmarkStage, task: int, index: int) -> EpisodeSpec:
    """The index-th rollout of a task: training states in order, repeatedly, each time with another seed."""
    states = config.protocol.train_states()
    seed = np.random.SeedSequence([config.reward_benchmark.seed, task, index]).generate_state(1)[0]
    return EpisodeSpec(
        suite=config.suite,
        task_id=task,
        init_state=states[index % len(states)],
        seed=int(seed),
        temperature=config.reward_benchmark.temperature,
        frames=stored_frames(config),
        states=True,
    )


@dataclass
class Collection:
    """One task's rollouts, in order of their index, and how many of them are needed.

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
        """Rollouts that are still needed at least; 0 if the budget is spent."""
        missing = sum(self.quota.values()) - len(self.kept(False)) - len(self.kept(True))
        return min(missing, self.budget - len(self.records))

    def counts(self) -> dict[str, int]:
        """Numbers of rollouts by their outcome."""
        outcomes = [record.success for record in self.records]
        return {
            "rollouts": len(outcomes),
            "successes": outcomes.count(True),
            "not run": outcomes.count(None),
            "kept successes": len(self.kept(True)),
            "kept failures": len(self.kept(False)),
        }


def gather_collections(
    config: RewardBenchmarkStage, run: RolloutFn, scratch: Path, peers: Peers = ALONE
) -> list[Collection]:
    """Run rollouts until every task has its successes and failures, or its share of `max_episodes` is spent.

    `peers` share the rollouts of a round: all must call, and know the same of each round when it ends.

    In each round every unfinished task runs as many rollouts as it lacks trajectories, the least that could
    suffice. A task's trajectories are its first successes and failures by index, so they do not depend on the
    order in which rollouts finish or on interruptions. A rollout that could not be run is left out, and tried
    again after an interruption.
    """
    settings = config.reward_benchmark
    failures, successes = quotas(settings.failures, config.tasks), quotas(settings.successes, config.tasks)
    budgets = quotas(settings.max_episodes, config.tasks)
    collections = [Collection(t, {False: failures[t], True: successes[t]}, budgets[t]) for t in config.tasks]
    total = settings.successes + settings.failures
    folder = scratch / "episodes"
    with progress_bar(peers.is_first, total=total, desc="trajectories", unit="trajectory") as bar:
        while any(collection.missing() > 0 for collection in collections):
            specs: dict[EpisodeSpec, tuple[Collection, Path]] = {}
            for collection in collections:
                done = len(collection.records)
                for index in range(done, done + collection.missing()):
                    path = folder / f"task{collection.task}-{index}.h5"
                    specs[episode_spec(config, collection.task, index)] = (collection, path)
            # The folder is listed, and by one process: what a node has once looked for in vain on a shared
            # file system may seem to be missing for a minute after another node has written it.
            stored = {path.name for path in folder.glob("*.h5")} if peers.is_first else set()
            old = [read_record(s, path) for s, (_, path) in specs.items() if path.name in stored]
            old = [record for record in old if record.error is None]  # what could not be run is tried again
            outcomes = share_outcomes(old, peers)
            new = []
            for result in run([spec for spec, (_, path) in specs.items() if path.name not in outcomes]):
                collection, path = specs[result.spec]
                # All rollouts of a lower index than this round's are known, so a full quota stays as it is.
                surplus = isinstance(result, Episode) and collection.is_full(result.success)
                write_record(result, path, with_frames=not surplus)
                new.append(read_record(result.spec, path))
            outcomes |= share_outcomes(new, peers)
            for spec, (collection, path) in specs.items():
                collection.records.append(Record(spec, path, *outcomes[path.name]))
            bar.update(sum(len(c.kept(outcome)) for c in collections for outcome in (False, True)) - bar.n)
    return collections


def share_outcomes(records: Sequence[Record], peers: Peers) -> dict[str, tuple[bool | None, int, str | None]]:
    """Success, steps and error of the records of all processes, by their file's name."""
    outcomes = peers.gather([(r.path.name, r.success, r.steps, r.error) for r in records])
    return {name: (success, steps, error) for name, success, steps, error in outcomes}


def write_collections(config: RewardBenchmarkStage, collections: Sequence[Collection], path: Path) -> None:
    """Write what is kept as `trajectories.h5`: by task, successes first, each in order of index.

    Attributes: suite; protocol and reward_benchmark, the configuration's sections as JSON; rollouts, JSON of
    task → numbers of its rollouts.
    """
    kept = [r for collection in collections for success in (True, False) for r in collection.kept(success)]
    size = config.protocol.image_size
    attributes = {
        "suite": config.suite,
        "protocol": config.protocol.model_dump_json(),
        "reward_benchmark": config.reward_benchmark.model_dump_json(),
        "rollouts": json.dumps({c.task: c.counts() for c in collections}),
    }
    write_trajectories(path, kept, (stored_frames(config), size, size, 3), attributes)


def clear_stale_scratch(scratch: Path, config: RewardBenchmarkStage, policy: Path) -> None:
    """Empty the scratch folder if its rollouts are of other settings or another policy.

    What each task is to have is a setting too: of rollouts that fewer did not need, no frames are stored.
    """
    benchmark = config.reward_benchmark
    settings = json.dumps(
        {
            "suite": config.suite,
            "protocol": config.protocol.model_dump(mode="json"),
            "seed": benchmark.seed,
            "temperature": benchmark.temperature,
            "tasks": config.tasks,
            "wanted": [benchmark.successes, benchmark.failures],
            "mujoco": version("mujoco"),
            "frames": stored_frames(config),
            "states": True,
            "policy": sha256(policy),
        },
        sort_keys=True,
    )
    if claim_scratch(scratch, settings):
        print(f"{scratch}: held rollouts under other settings or of another policy; starting anew")


def load(policy: Path, suite: str) -> OpenVLAOFT:
    """A folder's policy, ready to act in a suite.

    Raises:
        TrajectoryError: the policy cannot be loaded, or does not know the suite.
        MissingGLError: OpenGL is missing.
    """
    # Here, so that --help and errors in the configuration come at once.
    from srpo.envs.gl import require_gl
    from srpo.policies.checkpoints import load_policy
    from srpo.policies.weights import CheckpointError

    require_gl()
    try:
        loaded = load_policy(policy, own_device())
        loaded.statistics(suite)
    except CheckpointError as error:
        raise TrajectoryError(str(error)) from error
    return loaded


def collect(
    config: RewardBenchmarkStage, policy: Path, out: Path, scratch: Path, workers: int, peers: Peers = ALONE
) -> None:
    """Collect trajectories of the policy in `policy` and write them to `out`/trajectories.h5.

    Finished rollouts are kept in `scratch`, so that an interrupted run loses only those in progress.

    Args:
        workers: simulation processes of each process.
        peers: processes that share the rollouts. All must call; the first writes the trajectories.

    Raises:
        LiberoError: the suite that is installed is not LIBERO's.
        TrajectoryError: the policy cannot be loaded.
        MissingGLError: OpenGL is missing.
        SystemExit: too few rollouts could be run.
    """
    from srpo.envs.libero import libero_record
    from srpo.rollouts.policy_runner import PolicyRunner, require_most_ran

    libero = libero_record(config.suite)
    loaded = load(policy, config.suite)
    if peers.is_first:
        clear_stale_scratch(scratch, config, policy)
    with PolicyRunner(config.suite, config.protocol, loaded, workers, peers=peers) as runner:
        collections = gather_collections(config, runner.run, scratch, peers)
    if not peers.is_first:
        return
    for collection in collections:
        summary = ", ".join(f"{number} {name}" for name, number in collection.counts().items())
        print(f"{config.suite} task {collection.task}: {summary}")
    records = [record for collection in collections for record in collection.records]
    if failed := [record for record in records if record.error]:
        print(f"the first of {len(failed)} rollouts that could not be run: {failed[0].error}")
    require_most_ran(len(records) - len(failed), len(failed), f"{config.suite}, trajectories")
    with atomic_directory(out) as folder:
        write_collections(config, collections, folder / FILE)
        write_manifest(
            folder / "manifest.json",
            config,
            policy=sha256(policy),
            libero=libero,
            workers=workers,
            processes=peers.size,
        )
    shutil.rmtree(scratch)


# Scoring


@dataclass(frozen=True)
class EmbeddedTrajectories:
    """N trajectories that have a reference, with P prefixes each.

    numbers           int (N,)       in `trajectories.h5`
    success           bool (N,)
    task, steps       int (N,)
    prefix_steps      int (N, P)     control steps of each prefix
    distance_to_goal  float (N, P)   metres at each prefix's end
    embeddings        float (N, P, D)
    """

    numbers: NDArray[np.int64]
    success: NDArray[np.bool_]
    task: NDArray[np.int64]
    steps: NDArray[np.int64]
    prefix_steps: NDArray[np.int64]
    distance_to_goal: NDArray[np.float32]
    embeddings: NDArray[np.float32]


def embed_trajectories(
    config: RewardBenchmarkStage, world_model: EmbeddingCache, path: Path, name: str
) -> EmbeddedTrajectories:
    """Embed `prefixes` prefixes of each trajectory, which end at frames spread evenly from first to last."""
    with open_trajectories(path) as file:
        success, task = file["success"][()], file["task_id"][()]
        numbers = np.flatnonzero(has_reference(success, task))
        if len(numbers) < len(success):
            print(f"{len(success) - len(numbers)} of {len(success)} trajectories have no reference: left out")
        steps, stored = file["steps"][()][numbers], file["frames"].shape[1]
        ends = select_frames(stored, config.reward_benchmark.prefixes)
        bar = tqdm(numbers, desc=f"embedding ({name})", unit="trajectory", disable=None)
        embeddings = np.stack([world_model.embed_prefixes(file["frames"][number], ends) for number in bar])
        return EmbeddedTrajectories(
            numbers,
            success[numbers],
            task[numbers],
            steps,
            np.stack([select_frames(count + 1, stored)[ends] for count in steps]),
            file["distance_to_goal"][()][numbers][:, ends],
            embeddings,
        )


def unscored(config: RewardBenchmarkStage, path: Path, name: str) -> Rows:
    """Rows without scores of all trajectories where no task has two successes; none where one has."""
    with open_trajectories(path) as file:
        if file.attrs["suite"] != config.suite:
            raise TrajectoryError(
                f"{path} holds trajectories of {file.attrs['suite']}, but the configuration "
                f"is for {config.suite}: give the folder that `collect` made with it"
            )
        success, task, steps = (file[column][()] for column in ("success", "task_id", "steps"))
    if has_reference(success, task).any():
        return []
    print(
        f"{path}: no task has two successes to compare with, so nothing is scored; raise "
        "reward_benchmark.max_episodes or collect with a better policy"
    )
    return [
        {
            "suite": config.suite,
            "task_id": int(task[number]),
            "trajectory": number,
            "success": bool(success[number]),
            "representation": name,
            "steps": int(steps[number]),
            **dict.fromkeys(SCORES),
        }
        for number in range(len(success))
    ]


def scorable_trajectories(trajectories: EmbeddedTrajectories) -> NDArray[np.bool_]:
    """Which trajectories have usable embeddings and a reference: bool (N,). Prints why others do not."""
    success, task = trajectories.success, trajectories.task
    intact = np.array([usable(prefixes).all() for prefixes in trajectories.embeddings])
    scorable = intact.copy()
    scorable[intact] = has_reference(success[intact], task[intact])
    for index in np.flatnonzero(~scorable):
        lost = "no other success is left to compare with"
        reason = lost if intact[index] else "its embedding is broken"
        print(f"trajectory {trajectories.numbers[index]}: not scored: {reason}")
    return scorable


def score(
    config: RewardBenchmarkStage, name: str, checkpoint: Path | None, trajectories: Path, scratch: Path
) -> tuple[Rows, Rows]:
    """Rows of the reward benchmark (`srpo.results.schemas.BENCHMARK`) and of its progress curves (`CURVES`)
    under the world model called `name`.

    A trajectory whose task has no (other) success has no reference and is left out. One with a broken
    embedding has a row without progress; where no task has two successes, all have. See
    `srpo.rewards.benchmark.score_trajectories`.

    Raises:
        ConfigError: the configuration has no such world model, or its weights cannot be used.
        TrajectoryError: the file is missing or broken, from another suite, or has nothing to score.
    """
    world_model = EmbeddingCache(_load(config, name, checkpoint), scratch / "embeddings")
    if rows := unscored(config, trajectories / FILE, name):
        return rows, []
    data = embed_trajectories(config, world_model, trajectories / FILE, name)
    chosen = scorable_trajectories(data)
    if not chosen.any():
        raise TrajectoryError(f"world model {name}: no trajectory could be scored; see above")
    scored = zip(
        *score_trajectories(
            data.embeddings[chosen], data.success[chosen], data.task[chosen], data.prefix_steps[chosen]
        ),
        strict=True,
    )
    points: Rows = []
    for index, number in enumerate(data.numbers):
        identity = {
            "suite": config.suite,
            "task_id": int(data.task[index]),
            "trajectory": int(number),
            "success": bool(data.success[index]),
            "representation": name,
        }
        scores, curve = next(scored) if chosen[index] else (dict.fromkeys(SCORES), [])
        rows.append({**identity, "steps": int(data.steps[index]), **scores})
        for point, distance in zip(curve, data.distance_to_goal[index], strict=False):
            points.append({**identity, **point, "distance_to_goal": float(distance)})
    return rows, points


def _load(config: RewardBenchmarkStage, name: str, checkpoint: Path | None) -> WorldModel:
    models = {model.name: model for model in config.world_models}
    if name not in models:
        raise ConfigError(f"--world-model: there is no {name!r}{did_you_mean(name, models)}")
    try:
        return load_world_model(models[name], checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"--world-model {name}: {error}") from error


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="srpo reward-benchmark",
        description="Collect labelled trajectories and measure progress along them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="sample rollouts and keep successes and failures")
    scoring = commands.add_parser("score", help="measure progress with one world model")
    for command in (collecting, scoring):
        command.add_argument("--config", type=Path, required=True, help="resolved configuration (YAML)")
    collecting.add_argument("--policy", type=Path, required=True, help="folder of the policy to roll out")
    collecting.add_argument("--out", type=new_folder, required=True, help=f"folder to make, with {FILE}")
    collecting.add_argument("--scratch", type=Path, required=True, help="folder for finished rollouts")
    collecting.add_argument(
        "--workers", type=positive, default=1, help="simulation processes of each process (default: 1)"
    )
    scoring.add_argument("--world-model", required=True, metavar="NAME", help="one of the configuration's")
    scoring.add_argument("--checkpoint", type=Path, help="its folder, if the workflow pretrained it")
    scoring.add_argument("--trajectories", type=Path, required=True, help="folder that `collect` made")
    scoring.add_argument("--scratch", type=Path, required=True, help="folder for finished embeddings")
    scoring.add_argument(
        "--out", type=Path, required=True, help="parquet file to write, one row per trajectory"
    )
    scoring.add_argument(
        "--curves", type=Path, required=True, help="parquet file to write, one row per point"
    )
    arguments = parser.parse_args()
    config = load_stage(arguments.config, RewardBenchmarkStage)
    if arguments.command == "collect":
        with lock_held(arguments.scratch), joined_peers() as peers:
            collect(config, arguments.policy, arguments.out, arguments.scratch, arguments.workers, peers)
    else:
        rows, points = score(
            config,
            arguments.world_model,
            arguments.checkpoint,
            arguments.trajectories,
            arguments.scratch,
        )
        write_rows(arguments.curves, points, CURVES)
        write_rows(arguments.out, rows, BENCHMARK)


if __name__ == "__main__":
    run_command(main)
