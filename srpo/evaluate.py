"""Evaluation on LIBERO or LIBERO-Plus: one row per episode, resumable; a crash is not a failure.

If less than half of the greedy, or of the sampled, episodes could be run, it ends with an error.

srpo evaluate --config CONFIG --policy FOLDER --out EPISODES.parquet --scratch FOLDER \\
    [--baseline EPISODES.parquet] [--sampled SAMPLED.parquet] [--paths PATHS.parquet] [--videos FOLDER]
srpo evaluate ... [--baseline SHARD.parquet] --plus TASKS.csv --plus-data DATA.zip --shard 0/4

Several processes (`accelerate launch`, docs/hpc.md) run the episodes together: each takes the next that none
has begun, so that all are busy to the end.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pandas as pd

from srpo.analysis import comparisons
from srpo.analysis.sequential import LOOK_EVERY, LOOK_EVERY_TASKS
from srpo.analysis.stats import ALPHA, direction
from srpo.config import CONTROL_HZ, EvaluateStage, PlusStage, load_stage
from srpo.envs.libero import asset_folder, libero_record, load_task
from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.errors import FinalExit, run_command
from srpo.libero_plus.data import PlusData, PlusSources, unavailable_reason
from srpo.libero_plus.sweep import sweep_tasks
from srpo.libero_plus.tasks import INIT_STATE, PlusTask, parse, read_tasks, shard, shards
from srpo.policies.checkpoints import load_policy
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.results import ResultError
from srpo.results.rows import protocol_json, protocol_record, read_episodes, write_rows
from srpo.results.schemas import EPISODES, PATHS
from srpo.rollouts.journal import Journal
from srpo.rollouts.policy_runner import PolicyRunner, require_most_ran
from srpo.runtime.arguments import positive
from srpo.runtime.files import atomic_directory, write_with
from srpo.runtime.locks import lock_held
from srpo.runtime.manifest import fingerprint, sha256, write_manifest
from srpo.runtime.peers import ALONE, Peers, joined_peers, own_device
from srpo.runtime.progress import progress_bar
from srpo.runtime.videos import write_video

VIDEO_FRAMES = 64
"""Of the video of a task's first test state, the same state for every policy, so that videos compare."""
Config = EvaluateStage | PlusStage


def libero_specs(config: EvaluateStage) -> list[EpisodeSpec]:
    """Every task from its first test states, greedy (seed: the state's number) and sampled."""
    states = list(config.protocol.test_states())[: config.evaluate.states]
    starts = [(task, state) for task in config.tasks for state in states]
    greedy = [
        EpisodeSpec(config.suite, task, state, state, 0.0, frames=VIDEO_FRAMES if state == states[0] else 0)
        for task, state in starts
    ]
    sampled = [
        EpisodeSpec(config.suite, task, state, seed, config.evaluate.temperature)
        for task, state in starts
        for seed in config.evaluate.sampled_seeds(state)
    ]
    return greedy + sampled


def in_full(config: Config) -> Config:
    """The same episodes, none left out. What has run of them serves wherever the evaluation ends."""
    whole = {"stop_early": False}
    if isinstance(config, PlusStage):
        return config.model_copy(update={"plus": config.plus.model_copy(update=whole)})
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=whole)})


class Comparison:
    """An evaluation's comparison with a baseline on the same tasks and states, looked at while it runs.

    It is decided at 5%. The shards of a sweep decide each for itself, at 5% for all of them together.
    """

    def __init__(self, config: Config, specs: Sequence[EpisodeSpec], baseline: Path, shards: int) -> None:
        """Read the baseline's rows.

        Raises ResultError unless they are of the same suite and protocol, of LIBERO-Plus also the same tasks.
        """
        self._shards = shards
        rows = read_episodes([baseline])
        plus = isinstance(config, PlusStage)
        wanted = protocol_record(protocol_json(config.protocol, mujoco.__version__))
        asked = {"suite": config.suite, "temperature": 0.0, "benchmark": "libero_plus" if plus else "libero"}
        # `read_episodes` lets no two protocols or temperatures into a file, but several suites.
        given = {key: rows[key].iloc[0] for key in asked} | protocol_record(rows["protocol"].iloc[0])
        asked |= wanted
        differs = [f"{key} {given[key]}, not {value}" for key, value in asked.items() if given[key] != value]
        if rows["suite"].nunique() > 1:
            differs.append("several suites")
        if plus and not differs and set(rows["perturbation_task"]) != {spec.variant for spec in specs}:
            differs.append("other tasks")
        if differs:
            raise ResultError(
                f"{baseline}: holds other episodes than these are to be compared with "
                f"({'; '.join(differs)}): evaluate the baseline with the same settings"
            )
        self._baseline = rows[rows["status"].isin(["success", "failure"])]

    def decided(self, rows: Sequence[dict[str, Any]]) -> str:
        """What the episodes in `rows` decide, in words; empty if nothing."""
        result = comparisons.compare_at_any_time(
            self._baseline, pd.DataFrame(rows, columns=list(EPISODES.columns)), alpha=ALPHA / self._shards
        )
        if direction(result.estimate) is None:
            return ""
        value, low, high = result.estimate.value, result.estimate.low, result.estimate.high
        among = f" and in all {self._shards} shards" if self._shards > 1 else ""
        return (
            f"decided after {result.pairs} paired episodes: {value:+.3f} beside the baseline, at any time of "
            f"looking{among} [{low:+.3f}, {high:+.3f}]"
        )


def looks(specs: Sequence[EpisodeSpec]) -> list[list[EpisodeSpec]]:
    """Greedy episodes in parts: `LOOK_EVERY` states on all tasks; of LIBERO-Plus, `LOOK_EVERY_TASKS` tasks.

    Tasks of LIBERO-Plus come in a random order: a shard has them by dimension, so that its first would not
    stand for the others. The order depends on nothing but their names and `plus.seed`.
    """
    if specs[0].variant is not None:
        drawn = sorted(specs, key=lambda spec: random.Random(f"{spec.seed} {spec.variant}").random())
        return [drawn[start : start + LOOK_EVERY_TASKS] for start in range(0, len(drawn), LOOK_EVERY_TASKS)]
    states = sorted({spec.init_state for spec in specs})
    parts = [set(states[start : start + LOOK_EVERY]) for start in range(0, len(states), LOOK_EVERY)]
    return [[spec for spec in specs if spec.init_state in part] for part in parts]


def plus_specs(config: PlusStage, tasks: Sequence[PlusTask], index: int, number: int) -> list[EpisodeSpec]:
    """One shard of the (sampled) LIBERO-Plus tasks; the seed determines a perturbation's randomness."""
    plus = config.plus
    chosen = sweep_tasks(config, tasks)
    if number != (there := shards(len(chosen), plus.shard_size)):
        raise FinalExit(f"--shard {index}/{number}: the sweep's {len(chosen)} tasks are {there} shards")
    part = shard(chosen, index, plus.shard_size)
    return [
        EpisodeSpec(config.suite, task.task_id, INIT_STATE, plus.seed, 0.0, variant=task.name)
        for task in part
    ]


def plus_sources(config: PlusStage, data: Path | None) -> PlusSources:
    """Where LIBERO-Plus's data and assets are. Raises SystemExit if they are missing."""
    plus = config.plus
    assets = None if plus.assets is None else Path(plus.assets)
    if assets is not None and not assets.is_dir():
        raise FinalExit(
            f"error: plus.assets: {assets} is not a folder: make it with srpo libero-plus fetch-assets, or "
            "set null"
        )
    try:
        if data is not None:
            PlusData(data)
    except ValueError as error:
        raise FinalExit(f"error: {error}") from None
    return PlusSources(data, assets, plus.robot_start, plus.leaked_prompt)


def episode_row(
    config: Config, policy: str, result: Episode | FailedRun, unrun: str = "infra_error"
) -> dict[str, Any]:
    """One row of episodes.parquet. `unrun`: the status of an episode that was not run."""
    spec = result.spec
    perturbed = parse(spec.variant) if spec.variant else None
    row = {
        "preset": config.preset,
        "suite": spec.suite,
        "task_id": spec.task_id,
        "task": load_task(spec.suite, spec.task_id).name,
        "init_state": spec.init_state,
        "seed": config.seed,
        "episode_seed": spec.seed,
        "temperature": spec.temperature,
        "policy": policy,
        "variant": config.variant,
        "benchmark": "libero_plus" if perturbed else "libero",
        "perturbation": perturbed.dimension if perturbed else None,
        "perturbation_task": spec.variant,
        "perturbation_parameters": json.dumps(perturbed.parameters, sort_keys=True) if perturbed else None,
        "max_steps": config.protocol.max_steps,
        "profile": config.protocol.profile,
        "protocol": protocol_json(config.protocol, mujoco.__version__),
        "video": None,
    }
    if isinstance(result, FailedRun):
        return row | {"status": unrun, "error": result.error, "steps": 0, "wall_seconds": 0.0}
    status = "success" if result.success else "failure"
    return row | {"status": status, "error": None, "steps": result.steps, "wall_seconds": result.wall_seconds}


class Recordings:
    """What greedy LIBERO episodes leave besides their row: the hand's path, some videos. In scratch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "recordings"

    def path(self, row: dict[str, Any]) -> Path:
        return self.folder / f"task{row['task_id']}-state{row['init_state']}.npy"

    def video(self, row: dict[str, Any]) -> Path:
        return self.path(row).with_suffix(".mp4")

    def add(self, row: dict[str, Any], episode: Episode) -> None:
        """Must be called before the row enters the journal, so that every row there has its recordings."""
        if len(episode.frames):
            seconds = episode.steps / CONTROL_HZ
            write_video(self.video(row), episode.frames, (len(episode.frames) - 1) / seconds)
        else:
            self.video(row).unlink(missing_ok=True)  # of an episode under other settings

        def write(temporary: Path) -> None:
            with temporary.open("wb") as handle:
                np.save(handle, episode.path)

        write_with(self.path(row), write)


def path_rows(row: dict[str, Any], path: np.ndarray) -> list[dict[str, Any]]:
    """Rows of paths.parquet of an episode: its row of episodes.parquet, and float (steps + 1, 3) metres."""
    shared = {key: row[key] for key in ("suite", "variant", "seed", "task_id", "init_state")}
    shared["success"] = row["status"] == "success"
    return [
        {**shared, "step": step, **dict(zip("xyz", map(float, point), strict=True))}
        for step, point in enumerate(path)
    ]


@dataclass(frozen=True)
class Outputs:
    """Files that an evaluation writes.

    episodes  parquet file for greedy episodes, with a manifest beside it
    sampled   parquet file for sampled episodes (LIBERO only), if wanted
    paths     parquet file for the hand's path in every greedy episode (LIBERO only), if wanted
    videos    folder for a video of each task's first test state (LIBERO only), if wanted
    """

    episodes: Path
    sampled: Path | None = None
    paths: Path | None = None
    videos: Path | None = None


def evaluate(
    config: Config,
    specs: Sequence[EpisodeSpec],
    policy_folder: Path,
    outputs: Outputs,
    scratch: Path,
    workers: int,
    plus: PlusSources | None = None,
    baseline: Path | None = None,
    peers: Peers = ALONE,
    of_shards: int = 1,
) -> None:
    """Run the episodes that are not in the journal yet, then write all rows and a manifest beside them.

    Args:
        workers: simulation processes of each process.
        plus: LIBERO-Plus tasks that cannot run with these sources get their rows without being tried.
        baseline: rows of the evaluation with which the comparison may be decided before all greedy episodes
            have run; the others then get rows that say so.
        peers: processes that share the episodes. All must call; the first writes the results.
        of_shards: shards of the sweep, of which the episodes are one (`Comparison`).

    Raises:
        ResultError: the baseline's rows are not of such episodes.
        LiberoError: the suite that is installed is not LIBERO's.
        CheckpointError: the policy cannot be used.
        SystemExit: too few episodes could be run; nothing is written, and what ran stays in the journal.
    """
    libero = libero_record(config.suite)
    comparison: Comparison | None = None
    compared: dict[str, str] = {}
    if baseline is not None:
        comparison = Comparison(config, specs, baseline, of_shards)
        compared = {"baseline": sha256(baseline)}
    policy = load_policy(policy_folder, own_device())
    digest = sha256(policy_folder)
    recordings = Recordings(scratch)

    def usable(row: dict[str, Any]) -> bool:  # a journal of an older version may have rows without a path
        return isinstance(config, PlusStage) or row["temperature"] > 0 or recordings.path(row).is_file()

    run = fingerprint(in_full(config).model_dump_json(), digest, mujoco.__version__)
    journal = Journal(scratch, run, peers, usable)
    reasons = {} if plus is None else unavailable_specs(specs, plus)
    runnable = [spec for spec in specs if spec not in reasons]
    stopped = run_missing(config, runnable, policy, journal, recordings, workers, plus, comparison, peers)
    journal.share()
    if not peers.is_first:
        return
    refused = [
        episode_row(config, policy.settings.name, FailedRun(spec, reason), unrun)
        for unrun, unrun_specs in (("unavailable", reasons), ("stopped", stopped))
        for spec, reason in unrun_specs.items()
    ]
    known = {_row_key(row): row for row in journal.rows}
    wanted = [known[_spec_key(spec)] for spec in runnable if spec not in stopped]
    rows = sorted([*refused, *wanted], key=_row_key)
    statuses = {
        kind: Counter(row["status"] for row in rows if (row["temperature"] > 0) == is_sampled)
        for kind, is_sampled in (("greedy", False), ("sampled", True))
    }
    for kind, counts in statuses.items():
        ran = counts["success"] + counts["failure"]
        require_most_ran(ran, counts["infra_error"], f"{config.suite}, {config.variant}, {kind}")
    write_outputs(outputs, rows, recordings)
    manifest = outputs.episodes.with_suffix(".manifest.json")
    facts = {"policy": digest, "libero": libero, **compared}
    write_manifest(manifest, config, **facts, workers=workers, processes=peers.size)
    for kind, counts in statuses.items():
        if counts:
            print(
                f"{counts['success']} of {counts['success'] + counts['failure']} {kind} episodes succeeded, "
                f"{counts['infra_error']} could not be run, {counts['unavailable']} are unavailable here, "
                f"{counts['stopped']} were not needed",
                flush=True,
            )


def run_missing(
    config: Config,
    specs: Sequence[EpisodeSpec],
    policy: OpenVLAOFT,
    journal: Journal,
    recordings: Recordings,
    workers: int,
    plus: PlusSources | None,
    comparison: Comparison | None = None,
    peers: Peers = ALONE,
) -> dict[EpisodeSpec, str]:
    """Run the episodes whose rows the journal lacks, together with `peers`, and add them to it.

    Returns those that a comparison made needless, and why. Which they are depends on nothing but outcomes, so
    that a resumed evaluation stops where it would have stopped.
    """
    finished = {_row_key(row) for row in journal.rows}
    missing = [spec for spec in specs if _spec_key(spec) not in finished]
    done = len(specs) - len(missing)
    if done and peers.is_first:
        print(f"resuming: {done} of {len(specs)} episodes are done", flush=True)
    # A run of the runner has one temperature.
    temperatures = sorted({spec.temperature for spec in specs})
    parts = [[spec for spec in specs if spec.temperature == wanted] for wanted in temperatures]
    if comparison is not None and parts:
        parts = [*looks(parts[0]), *parts[1:]]
    stopped: dict[EpisodeSpec, str] = {}
    reason, compared = "", set()
    successes = sum(row["status"] == "success" for row in journal.rows)
    workers = max(1, min(workers, -(-len(missing) // peers.size)))
    # How many episodes a process will run is not known if others run some.
    total = len(specs) if peers.size == 1 else None
    with (
        progress_bar(peers.is_first, total=total, initial=done, desc=config.variant) as bar,
        PolicyRunner(config.suite, config.protocol, policy, workers, plus, peers) as runner,
    ):
        for part in parts:
            greedy = part[0].temperature == 0
            if reason and greedy:
                stopped |= dict.fromkeys(part, reason)
                continue
            left = [spec for spec in part if _spec_key(spec) not in finished]
            for result in runner.run(left) if left else ():
                row = episode_row(config, policy.settings.name, result)
                if isinstance(result, FailedRun):
                    print(f"infrastructure error: {result.spec}: {result.error}", flush=True)
                elif isinstance(config, EvaluateStage) and greedy:
                    recordings.add(row, result)
                journal.add(row)
                successes += row["status"] == "success"
                bar.update()
                bar.set_postfix_str(f"{successes} successes")
            if comparison is not None and greedy:
                journal.share()
                compared |= {_spec_key(spec) for spec in part}
                reason = comparison.decided([row for row in journal.rows if _row_key(row) in compared])
    return stopped


def write_outputs(outputs: Outputs, rows: list[dict[str, Any]], recordings: Recordings) -> None:
    """Write the rows, greedy and sampled ones apart, and paths and videos where wanted."""
    if outputs.sampled is not None:
        write_rows(outputs.sampled, [row for row in rows if row["temperature"] > 0], EPISODES)
    rows = [row for row in rows if row["temperature"] == 0]
    ran = [row for row in rows if row["status"] in ("success", "failure")]
    if outputs.paths is not None:
        points = [
            point
            for row in ran
            for point in path_rows(row, np.load(recordings.path(row), allow_pickle=False))
        ]
        write_rows(outputs.paths, points, PATHS)
    if outputs.videos is not None:
        with atomic_directory(outputs.videos) as temporary:
            for row in ran:
                video = recordings.video(row)
                if video.is_file():
                    shutil.copyfile(video, temporary / video.name)
                    row["video"] = f"{outputs.videos.name}/{video.name}"
    write_rows(outputs.episodes, rows, EPISODES)


Key = tuple[int, int, str, float, int]


def _row_key(row: dict[str, Any]) -> Key:
    perturbation = row["perturbation_task"] or ""
    return row["task_id"], row["init_state"], perturbation, row["temperature"], row["episode_seed"]


def _spec_key(spec: EpisodeSpec) -> Key:
    return spec.task_id, spec.init_state, spec.variant or "", spec.temperature, spec.seed


def unavailable_specs(specs: Sequence[EpisodeSpec], plus: PlusSources) -> dict[EpisodeSpec, str]:
    """The LIBERO-Plus episodes that cannot run with these sources, and why."""
    reasons = {
        spec: unavailable_reason(parse(spec.variant), plus, asset_folder()) for spec in specs if spec.variant
    }
    return {spec: reason for spec, reason in reasons.items() if reason}


def _shard(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit() and int(index) < int(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is not INDEX/NUMBER with INDEX from 0 to NUMBER - 1")
    return int(index), int(number)


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluation, one row per episode.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of the evaluation")
    parser.add_argument("--policy", type=Path, required=True, help="policy checkpoint folder")
    parser.add_argument("--plus", type=Path, help="LIBERO-Plus task list: evaluate on it instead of LIBERO")
    parser.add_argument(
        "--plus-data",
        type=Path,
        help="LIBERO-Plus's data, as srpo libero-plus fetch wrote it",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(0, 1),
        help="which shard of `plus.shard_size` LIBERO-Plus tasks, as 0/4",
    )
    parser.add_argument("--out", type=Path, required=True, help="parquet file for the greedy episodes")
    parser.add_argument(
        "--baseline",
        type=Path,
        help="greedy episodes (of LIBERO-Plus, the same shard) to compare with, where stop_early is set",
    )
    parser.add_argument("--sampled", type=Path, help="parquet file for the sampled episodes (LIBERO only)")
    parser.add_argument("--paths", type=Path, help="parquet file for the hand's paths (LIBERO only)")
    parser.add_argument("--videos", type=Path, help="folder for a video of each task (LIBERO only)")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for resumable state")
    parser.add_argument(
        "--workers", type=positive, default=2, help="simulation processes of each process (default: 2)"
    )
    arguments = parser.parse_args()
    if arguments.plus is not None and (arguments.sampled or arguments.paths or arguments.videos):
        parser.error("--sampled, --paths and --videos are for evaluations on LIBERO, not on LIBERO-Plus")
    present = arguments.videos.glob("[!.]*") if arguments.videos is not None else ()
    if others := [path.name for path in present if path.suffix != ".mp4"]:
        parser.error(f"--videos {arguments.videos}: is made anew, and has other files, as {others[0]}")
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    config: Config
    sources = None
    if arguments.plus is None:
        config = load_stage(arguments.config, EvaluateStage)
        specs = libero_specs(config)
    else:
        config = load_stage(arguments.config, PlusStage)
        specs = plus_specs(config, read_tasks(arguments.plus), *arguments.shard)
        sources = plus_sources(config, arguments.plus_data)
    if config.stops_early != (arguments.baseline is not None):
        section = "evaluate" if arguments.plus is None else "plus"
        parser.error(f"--baseline and {section}.stop_early go together, for every variant but sft")
    with lock_held(arguments.scratch), joined_peers() as peers:
        outputs = Outputs(arguments.out, arguments.sampled, arguments.paths, arguments.videos)
        evaluate(
            config,
            specs,
            arguments.policy,
            outputs,
            arguments.scratch,
            arguments.workers,
            sources,
            arguments.baseline,
            peers,
            arguments.shard[1],
        )


if __name__ == "__main__":
    run_command(main)
