"""What progress is: the policy's own chance of success at moments of the reward benchmark's trajectories.

    srpo values --config C --policy DIR --trajectories DIR --scratch DIR --out FILE.parquet --workers N

From some moments of every labelled trajectory the policy goes on several times, each time with another seed.
The share of these branches that succeeds is the value of the moment, as VinePPO estimates it for language
(arXiv 2410.01679). Each branch is kept in the scratch folder as it ends: an interrupted run goes on from
there, and so does one with more branches or points.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo.config import ValuesStage, load_stage
from srpo.episode import CHUNK, Episode, EpisodeSpec, FailedRun, Start
from srpo.errors import run_command
from srpo.results.coverage import read_mujoco
from srpo.results.rows import write_rows
from srpo.results.schemas import VALUES
from srpo.reward_benchmark import RolloutFn, load
from srpo.rollouts.journal import Journal
from srpo.rollouts.trajectories import FILE, TrajectoryError, open_trajectories
from srpo.runtime.arguments import positive
from srpo.runtime.locks import lock_held
from srpo.runtime.manifest import fingerprint, sha256, write_manifest
from srpo.runtime.peers import ALONE, Peers, joined_peers
from srpo.runtime.progress import progress_bar
from srpo.world_models import select_frames


@dataclass(frozen=True)
class Moment:
    """A query of the policy in a labelled trajectory, from which branches start."""

    trajectory: int
    task_id: int
    init_state: int
    success: bool
    start: Start

    def spec(self, config: ValuesStage, branch: int) -> EpisodeSpec:
        """The moment's `branch`-th rollout, sampled as the trajectories were."""
        key = [config.values.seed, self.trajectory, self.start.query, branch]
        return EpisodeSpec(
            config.suite,
            self.task_id,
            self.init_state,
            seed=int(np.random.SeedSequence(key).generate_state(1)[0]),
            temperature=config.reward_benchmark.temperature,
            start=self.start,
        )


def chosen_queries(queries: int, points: int) -> NDArray[np.int64]:
    """The numbers of `points` of a trajectory's queries, from first to last; fewer where it has fewer."""
    return np.unique(select_frames(queries, points))


def read_moments(config: ValuesStage, folder: Path) -> list[Moment]:
    """The moments of all trajectories in a folder that `srpo reward-benchmark collect` made.

    Raises:
        TrajectoryError: the file is missing or broken, has no states, or was made with other settings or
            another MuJoCo, under which a state would go on otherwise.
    """
    import mujoco  # here, so that --help comes at once

    path = folder / FILE
    with open_trajectories(path) as file:
        for name in ("suite", "protocol", "reward_benchmark"):
            section = getattr(config, name)
            if file.attrs.get(name) != (section if name == "suite" else section.model_dump_json()):
                raise TrajectoryError(
                    f"{path}: was collected with another {name} than the configuration's: give the folder "
                    "that `srpo reward-benchmark collect` made with it"
                )
        if "states" not in file:
            raise TrajectoryError(
                f"{path}: has no states to start from (of an older version?): run `srpo reward-benchmark "
                "collect` again"
            )
        made = read_mujoco([folder / "manifest.json"])
        if made not in (mujoco.__version__, "of unknown version"):
            raise TrajectoryError(
                f"{path}: its states are MuJoCo {made}'s, and this is {mujoco.__version__}: run `srpo "
                "reward-benchmark collect` again"
            )
        moments = []
        for number, success in enumerate(file["success"][()]):
            states = file[f"states/{number}"][()]
            for query in map(int, chosen_queries(len(states), config.values.points)):
                task, init_state = (int(file[name][number]) for name in ("task_id", "init_state"))
                start = Start(query, states[query].tobytes())
                moments.append(Moment(number, task, init_state, bool(success), start))
        return moments


def run_branches(
    config: ValuesStage, moments: Sequence[Moment], run: RolloutFn, journal: Journal, peers: Peers = ALONE
) -> None:
    """Run the branches that the journal lacks: one from every moment, then a second one, and so on.

    So an interrupted set is as good everywhere. `peers` share the branches: all must call.
    """
    known = {(row["trajectory"], row["query"], row["branch"]) for row in journal.rows}
    # How many branches a process will run is not known if others run some.
    total = len(moments) * config.values.branches if peers.size == 1 else None
    with progress_bar(peers.is_first, total=total, desc=f"branches, {config.suite}", unit="branch") as bar:
        for branch in range(config.values.branches):
            missing = {
                moment.spec(config, branch): moment
                for moment in moments
                if (moment.trajectory, moment.start.query, branch) not in known
            }
            bar.update(len(moments) - len(missing))
            for result in run(list(missing)):
                moment = missing[result.spec]
                key = {"trajectory": moment.trajectory, "query": moment.start.query, "branch": branch}
                journal.add({**key, **outcome(result)})
                bar.update()


def outcome(result: Episode | FailedRun) -> dict[str, Any]:
    """How a branch ended, for the journal."""
    if isinstance(result, FailedRun):
        print(f"infrastructure error: {result.spec}: {result.error}", flush=True)
        return {"status": "infra_error", "steps": 0}
    return {"status": "success" if result.success else "failure", "steps": result.steps}


def value_rows(
    config: ValuesStage, moments: Sequence[Moment], branches: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of `values.parquet`, from the journal's rows of branches."""
    ended: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in branches:
        if row["status"] != "infra_error" and row["branch"] < config.values.branches:
            ended.setdefault((row["trajectory"], row["query"]), []).append(row)
    rows = []
    for moment in moments:
        here = ended.get((moment.trajectory, moment.start.query), [])
        rows.append(
            {
                "suite": config.suite,
                "task_id": moment.task_id,
                "trajectory": moment.trajectory,
                "success": moment.success,
                "step": moment.start.query * CHUNK,
                "branches": len(here),
                "successes": sum(row["status"] == "success" for row in here),
                "environment_steps": sum(row["steps"] for row in here),
            }
        )
    return rows


def values(
    config: ValuesStage,
    policy: Path,
    trajectories: Path,
    out: Path,
    scratch: Path,
    workers: int,
    peers: Peers = ALONE,
) -> None:
    """Estimate the value of every moment, and write the rows and a manifest beside them.

    Args:
        workers: simulation processes of each process.
        peers: processes that share the branches. All must call; the first writes the rows.

    Raises:
        LiberoError: the suite that is installed is not LIBERO's.
        TrajectoryError: the trajectories or the policy cannot be used.
        MissingGLError: OpenGL is missing.
        SystemExit: too few branches could be run.
    """
    import mujoco

    from srpo.envs.libero import libero_record
    from srpo.rollouts.policy_runner import PolicyRunner, require_most_ran

    libero = libero_record(config.suite)
    moments = read_moments(config, trajectories)
    loaded, digest = load(policy, config.suite), sha256(policy)
    # Not of how many points and branches there are: more of them go on from what is there.
    settings = (config.protocol.model_dump_json(), config.reward_benchmark.model_dump_json())
    run = fingerprint(
        *settings, str(config.values.seed), digest, sha256(trajectories / FILE), mujoco.__version__
    )
    journal = Journal(scratch, run, peers)
    with PolicyRunner(config.suite, config.protocol, loaded, workers, peers=peers) as runner:
        run_branches(config, moments, runner.run, journal, peers)
    journal.share()
    if not peers.is_first:
        return
    rows = value_rows(config, moments, journal.rows)
    ran = sum(row["branches"] for row in rows)
    errors = len(moments) * config.values.branches - ran
    require_most_ran(ran, errors, f"{config.suite}, branches")
    write_rows(out, rows, VALUES)
    manifest = out.with_suffix(".manifest.json")
    write_manifest(manifest, config, policy=digest, libero=libero, workers=workers, processes=peers.size)
    successes, steps = (sum(row[name] for row in rows) for name in ("successes", "environment_steps"))
    print(f"{successes} of {ran} branches succeeded, {errors} could not be run; {steps} control steps")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="srpo values", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration (YAML)")
    parser.add_argument("--policy", type=Path, required=True, help="folder of the policy that made them")
    parser.add_argument("--trajectories", type=Path, required=True, help="folder that `collect` made")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for finished branches")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write, one row a moment")
    parser.add_argument(
        "--workers", type=positive, default=1, help="simulation processes of each process (default: 1)"
    )
    arguments = parser.parse_args()
    config = load_stage(arguments.config, ValuesStage)
    with lock_held(arguments.scratch), joined_peers() as peers:
        values(
            config,
            arguments.policy,
            arguments.trajectories,
            arguments.out,
            arguments.scratch,
            arguments.workers,
            peers,
        )


if __name__ == "__main__":
    run_command(main)
