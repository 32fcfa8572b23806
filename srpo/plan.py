"""What a preset will take, before anything is submitted: jobs, episodes, hours, disk, the critical path.

python -m srpo.plan --preset paper [--throughput ROLLOUT.csv] [--metrics METRICS.csv]

The throughput of simulation is read from what `benchmarks/rollout.py` wrote (yours, or the shipped one).
What the policy, the world model and updates take is in the `metrics.csv` of a training of that policy on your
machine. Without one, the figures are of simulation alone, a lower bound, and say so.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from srpo.config import (
    ConfigError,
    DemosStage,
    EvaluateStage,
    PlusStage,
    Policy,
    Protocol,
    RewardBenchmarkStage,
    SftStage,
    TrainStage,
    WorldModelStage,
)
from srpo.plus_tasks import count, shards
from srpo.resolve import Plan, load_preset, plan

SHIPPED = Path(__file__).resolve().parents[1] / "docs/performance/rollout.csv"
CORES = {
    **{"demos": 8, "world_model": 8, "sft": 8, "train": 16, "evaluate": 8, "plus_shard": 8},
    **{"trajectories": 8, "score": 8},
}
"""Cores of a rule's jobs (`threads` in workflow/rules/)."""
PACKED = {"evaluate": (3, 3), "plus_shard": (5, 13)}
"""By rule, parts of a job's folder that name its group, and jobs of a submission (slurm/config.yaml)."""


@dataclass(frozen=True)
class Throughput:
    """Control steps a second.

    source      file of the simulation's
    simulation  on one core, by (suite, render mode)
    whole       of a training job, with everything that a step takes; None where that was not measured
    """

    source: Path
    simulation: Mapping[tuple[str, str], float]
    whole: float | None

    def seconds(self, steps: int, suite: str, protocol: Protocol, cores: int) -> float:
        """Wall clock of some control steps on some cores."""
        if (suite, protocol.render) not in self.simulation:
            raise ConfigError(f"{self.source}: has no steps_per_second of {suite}, loop {protocol.render}")
        simulated = steps / (self.simulation[suite, protocol.render] * cores)
        return simulated if self.whole is None else max(simulated, steps / self.whole)


def _rows(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as handle:
            rows = list(csv.DictReader(handle))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if missing := [name for name in columns if not rows or name not in rows[0]]:
        raise ConfigError(f"{path}: has no rows with {', '.join(missing)}")
    return rows


def read_throughput(rollout: Path, metrics: Path | None = None) -> Throughput:
    """Throughput from what `benchmarks/rollout.py` and a training run wrote. Raises ConfigError."""
    rows = _rows(rollout, ("suite", "loop", "measure", "value"))
    simulation = {
        (row["suite"], row["loop"]): float(row["value"])
        for row in rows
        if row["measure"] == "steps_per_second" and row["loop"] in ("exact", "near", "fast")
    }
    if not simulation:
        raise ConfigError(f"{rollout}: no measure `steps_per_second`: make it with benchmarks/rollout.py")
    whole = None
    if metrics is not None:
        steps = _rows(metrics, ("environment_steps", "seconds_total"))
        seconds = sum(float(row["seconds_total"]) for row in steps)
        whole = sum(int(row["environment_steps"]) for row in steps) / seconds
    return Throughput(rollout, simulation, whole)


class Work(NamedTuple):
    """One job of a rule. `after`: folders of stages that it waits for; `seconds`: its wall clock."""

    rule: str
    folder: str
    episodes: int
    seconds: float
    after: tuple[str, ...]
    disk: int = 0


def work(planned: Plan, throughput: Throughput, policy_bytes: int) -> list[Work]:
    """All submitted jobs of a preset. `disk`: bytes, of results and of a training's scratch folder."""
    found: list[Work] = []

    def add(
        rule: str,
        folder: str,
        stage: TrainStage | EvaluateStage | PlusStage | DemosStage | RewardBenchmarkStage,
        episodes: int,
        after: Iterable[str] = (),
        disk: int = 0,
    ) -> None:
        steps = episodes * stage.protocol.max_steps
        seconds = throughput.seconds(steps, stage.suite, stage.protocol, CORES[rule])
        found.append(Work(rule, folder, episodes, seconds, tuple(after), disk))

    for folder, stage in planned.stages.items():
        if isinstance(stage, DemosStage):
            add("demos", folder, stage, stage.demos.per_task * len(stage.tasks))
        elif isinstance(stage, SftStage):
            needs = [f"demos/{stage.suite}"] if stage.sft.updates else []
            found.append(Work("sft", folder, 0, 0.0, tuple(needs), policy_bytes))
        elif isinstance(stage, WorldModelStage):
            found.append(Work("world_model", folder, 0, 0.0, ()))
        elif isinstance(stage, TrainStage):
            needs = [planned.sft_of(stage.suite).folder]
            if stage.world_model is not None and f"world_models/{stage.world_model.name}" in planned.stages:
                needs.append(f"world_models/{stage.world_model.name}")
            add("train", folder, stage, training_episodes(stage), needs, policy_bytes + scratch_bytes(stage))
        elif isinstance(stage, EvaluateStage):
            run = folder.removesuffix("/evaluation")
            add("evaluate", folder, stage, len(stage.tasks) * stage.evaluate.states, [run])
        elif isinstance(stage, PlusStage):
            plus = stage.plus
            total = count(stage.suite, stage.tasks, plus.dimensions, plus.per_dimension)
            for index in range(shards(total, plus.shard_size)):
                part = min(plus.shard_size, total - index * plus.shard_size)
                add("plus_shard", f"{folder}/{index}", stage, part, [folder.removesuffix("/plus")])
        elif isinstance(stage, RewardBenchmarkStage):
            add(
                "trajectories",
                folder,
                stage,
                stage.reward_benchmark.max_episodes,
                [planned.sft_of(stage.suite).folder],
            )
            for model in stage.world_models:
                needs = [folder, *(n for n in [f"world_models/{model.name}"] if n in planned.stages)]
                found.append(Work("score", f"{folder}/{model.name}", 0, 0.0, tuple(needs)))
    return found


def training_episodes(stage: TrainStage) -> int:
    """Episodes of a training, further rounds of dynamic sampling excepted."""
    train = stage.train
    each = train.prompts * train.group_size
    if train.offline is not None:
        return each  # collected once; the steps are passes over them
    evaluations = train.steps // train.evaluate_every if train.evaluate_every else 0
    return train.steps * each + evaluations * len(stage.tasks) * train.evaluate_states


def scratch_bytes(stage: TrainStage) -> int:
    """Pictures that a training keeps until its next checkpoint: what the policy saw, what will be encoded."""
    frames = 0 if stage.world_model is None else stage.world_model.frames
    pictures = stage.protocol.max_steps // 8 + frames
    episodes = stage.train.prompts * stage.train.group_size * stage.train.checkpoint_every
    return episodes * pictures * 3 * stage.protocol.image_size**2


def critical_path(jobs: Iterable[Work]) -> tuple[float, list[Work]]:
    """The longest chain of jobs that wait for one another, were all others run at once: seconds, jobs."""
    by_folder = {job.folder: job for job in jobs}
    longest: dict[str, tuple[float, list[Work]]] = {}

    def until(folder: str) -> tuple[float, list[Work]]:
        if folder not in longest:
            job = by_folder[folder]
            before = [until(other) for other in job.after if other in by_folder]
            seconds, chain = max(before, key=lambda end: end[0], default=(0.0, []))
            longest[folder] = seconds + job.seconds, [*chain, job]
        return longest[folder]

    return max((until(folder) for folder in by_folder), key=lambda end: end[0])


def submissions(jobs: Iterable[Work]) -> int:
    """How often `sbatch` is called: evaluations share."""
    groups: dict[tuple[str, ...], int] = defaultdict(int)
    for job in jobs:
        depth, _ = PACKED.get(job.rule, (None, 1))
        groups[(job.rule, *job.folder.split("/")[:depth])] += 1
    return sum(math.ceil(number / PACKED.get(key[0], (0, 1))[1]) for key, number in groups.items())


def policy_size(policy: Policy) -> int:
    """Bytes that stay of a run: its policy, and in scratch its last checkpoint."""
    from srpo.policies.memory import checkpoint, weights

    return weights(policy) + checkpoint(policy)


def report(planned: Plan, jobs: list[Work], throughput: Throughput) -> str:
    """The plan as a table with its assumptions."""
    gpus = planned.preset.gpus
    by_rule: dict[str, list[Work]] = defaultdict(list)
    for job in jobs:
        by_rule[job.rule].append(job)
    lines = [
        f"{'stage':14}{'jobs':>6}{'episodes':>11}{'core-hours':>12}{'GPU-hours':>11}"
        f"{'hours a job':>13}{'disk, GB':>10}"
    ]

    def line(name: str, some: list[Work], longest: str) -> str:
        cores = sum(job.seconds * CORES[job.rule] for job in some) / 3600
        devices = sum(job.seconds * gpus for job in some if job.rule != "demos") / 3600
        disk = sum(job.disk for job in some) / 1e9
        episodes = sum(job.episodes for job in some)
        counts = f"{name:14}{len(some):>6}{episodes:>11,}"
        return f"{counts}{cores:>12,.1f}{devices:>11,.1f}{longest:>13}{disk:>10,.1f}"

    for rule in CORES:
        if some := by_rule[rule]:
            lines.append(line(rule, some, f"{max(job.seconds for job in some) / 3600:.2f}"))
    lines.append(line("in all", jobs, ""))
    seconds, chain = critical_path(jobs)
    path = " → ".join(f"{job.folder} ({job.seconds / 3600:.2f} h)" for job in chain)
    measured = (
        "all that a training step takes, as in --metrics, for every episode; no SFT, world models, scores"
        if throughput.whole is not None
        else "LOWER BOUND: simulation alone, without policy, world model, updates (--metrics adds them)"
    )
    lines += [
        "",
        f"submissions to Slurm: {submissions(jobs)}",
        f"critical path: {seconds / 3600:.2f} h, with room for all jobs at once: {path}",
        "",
        "assumed:",
        f"- {measured}",
        f"- control steps a second and core: {throughput.source}; every episode lasts as long as it may",
        "- jobs have the cores of workflow/rules/, and all of them simulate",
        "- no further rounds of dynamic sampling, no queue, no retries",
        "- disk: a run's policy and last checkpoint, and a training's pictures until its next checkpoint",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m srpo.plan", description="What a preset will take.")
    parser.add_argument("--preset", required=True, help="name or file of a preset")
    parser.add_argument(
        "--throughput", type=Path, default=SHIPPED, help="of benchmarks/rollout.py (default: the one shipped)"
    )
    parser.add_argument("--metrics", type=Path, help="metrics.csv of a training of this policy")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, as for Snakemake"
    )
    arguments = parser.parse_args()
    try:
        throughput = read_throughput(arguments.throughput, arguments.metrics)
        planned = plan(*load_preset(arguments.preset), overrides=arguments.set)
        policy = next(stage.policy for stage in planned.stages.values() if isinstance(stage, SftStage))
        jobs = work(planned, throughput, policy_size(policy))
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    print(report(planned, jobs, throughput))


if __name__ == "__main__":
    main()
