"""How long a preset's jobs take: counted work divided by measured or assumed speeds. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from srpo.cluster.jobs import Durations, Job, Kept, jobs_of, policy_of
from srpo.cluster.resources import cores_of, gpus_of, minutes
from srpo.cluster.speeds import Speeds, choose_speeds, nearest, read_rows
from srpo.config import (
    ConfigError,
    DemosStage,
    Parallel,
    Policy,
    Protocol,
    SftStage,
    Stage,
    TrainStage,
    WorldModelStage,
)
from srpo.config.plan import Plan

DAY = 86400


@dataclass(frozen=True)
class Throughput:
    """How fast jobs go.

    source      the file from which `simulation` was read
    simulation  control steps a second on one core, by (suite, render mode)
    training    control steps a second of a training job, all parts of a step included; None: not measured
    gpu         speeds of one GPU; None where policies run on CPUs, whose speed is not assumed
    """

    source: Path
    simulation: Mapping[tuple[str, str], float]
    training: float | None = None
    gpu: Speeds | None = None

    def simulated(self, steps: int, suite: str, protocol: Protocol, cores: int) -> float:
        """Seconds of some control steps on some cores, without a policy."""
        if (suite, protocol.render) not in self.simulation:
            raise ConfigError(f"{self.source}: has no steps_per_second of {suite}, loop {protocol.render}")
        return steps / (self.simulation[suite, protocol.render] * cores)

    def durations(
        self, job: Job, stage: Stage | WorldModelStage, policy: Policy | None, parallel: Parallel
    ) -> Durations:
        """Seconds of a job's parts; all of them are under `simulate` where a training was measured."""
        simulated = 0.0
        if job.episodes and isinstance(stage, Stage):
            steps = job.episodes * stage.protocol.max_steps
            simulated = self.simulated(steps, stage.suite, stage.protocol, cores_of(job.rule, parallel))
            if self.training is not None and not isinstance(stage, DemosStage):
                return Durations(max(simulated, steps / self.training))
        if self.gpu is None or policy is None or not gpus_of(job.rule, parallel):
            return Durations(simulated)
        return Durations(simulated, *operating(job, stage, policy, parallel, self.gpu))


def operating(
    job: Job, stage: Stage | WorldModelStage, policy: Policy, parallel: Parallel, gpu: Speeds
) -> tuple[float, ...]:
    """Seconds of acting, encoding and learning on a job's GPUs, at so many times the speed of one."""
    used = gpus_of(job.rule, parallel)
    speeds = speeds_of(gpu, stage, policy)
    return tuple(flop / (speed * used) for flop, speed in zip(job.flop, speeds, strict=True))


def speeds_of(gpu: Speeds, stage: Stage | WorldModelStage, policy: Policy) -> tuple[float, float, float]:
    """Operations a second of acting, encoding and learning in a stage's jobs."""
    if policy.lora is None:
        return gpu.act, gpu.encode, gpu.learn_all
    if isinstance(stage, TrainStage):
        return gpu.rollout, gpu.encode, nearest(gpu.learn_adapters, stage.train.microbatch)
    batch = stage.sft.batch_size if isinstance(stage, SftStage) else 1  # others do not learn
    return gpu.act, gpu.encode, nearest(gpu.learn_adapters, batch)


def read_throughput(rollout: Path, metrics: Path | None = None, gpu: Speeds | None = None) -> Throughput:
    """Throughput from what `benchmarks/rollout.py` and a training run wrote. Raises ConfigError."""
    rows = read_rows(rollout, ("suite", "loop", "measure", "value"))
    simulation = {
        (row["suite"], row["loop"]): float(row["value"])
        for row in rows
        if row["measure"] == "steps_per_second" and row["loop"] in ("exact", "near", "fast")
    }
    if not simulation:
        raise ConfigError(f"{rollout}: no measure `steps_per_second`: make it with benchmarks/rollout.py")
    training = None
    if metrics is not None:
        steps = read_rows(metrics, ("environment_steps", "seconds_total"))
        seconds = sum(float(row["seconds_total"]) for row in steps)
        training = sum(int(row["environment_steps"]) for row in steps) / seconds
    return Throughput(rollout, simulation, training, gpu)


def estimate(planned: Plan, throughput: Throughput, kept: Kept | None = None) -> list[Job]:
    """All submitted jobs of a preset, with their durations. `kept`: of each policy (None: not counted)."""
    jobs = []
    for folder, stage in planned.stages.items():
        policy = policy_of(planned, stage) if isinstance(stage, Stage) else None
        for job in jobs_of(planned, folder, stage, kept):
            durations = throughput.durations(job, stage, policy, planned.preset.parallel)
            jobs.append(job._replace(durations=durations))
    return jobs


class Held(NamedTuple):
    """Hours for which GPUs and cores are held."""

    gpu: float = 0.0
    core: float = 0.0


def held(jobs: Iterable[Job], parallel: Parallel) -> Held:
    """What jobs hold from their start to their end."""
    jobs = list(jobs)
    return Held(
        sum(job.seconds * gpus_of(job.rule, parallel) for job in jobs) / 3600,
        sum(job.seconds * cores_of(job.rule, parallel) for job in jobs) / 3600,
    )


def allowed(tries: int, most: int | None = None) -> float:
    """Seconds that a training has in all its tries. `most`: minutes that the site allows a job."""
    return 60.0 * sum(minutes("train", attempt, most) for attempt in range(1, tries + 1))


def require_tries(planned: Plan, tries: int, most: int | None = None) -> None:
    """Raise ConfigError if the longest training needs more time than all its tries have.

    It is taken to be as fast as on the card that was measured; of CPUs no speed is known.
    """
    parallel = planned.preset.parallel
    if not parallel.train.gpus:
        return
    gpu = choose_speeds()
    seconds, folder = 0.0, ""
    for name, stage in planned.stages.items():
        if isinstance(stage, TrainStage):
            policy = policy_of(planned, stage)
            (job,) = jobs_of(planned, name, stage)
            seconds, folder = max(
                (seconds, folder), (sum(operating(job, stage, policy, parallel, gpu)), name)
            )
    if seconds > allowed(tries, most):
        raise ConfigError(
            f"{folder} takes {seconds / DAY:.1f} days or more on {gpus_of('train', parallel)} {gpu.card} "
            f"(srpo plan), and {tries} tries of at most {minutes('train', tries, most)} minutes are "
            f"{allowed(tries, most) / DAY:.1f}: set more gpus or nodes (parallel.train), more `retries` in "
            "the profile or, where the site allows longer jobs, `runtime` under its `resources`"
        )


def critical_path(jobs: Iterable[Job]) -> tuple[float, list[Job]]:
    """The longest chain of jobs that wait for one another, were all others run at once: seconds, jobs."""
    by_folder = {job.folder: job for job in jobs}
    longest: dict[str, tuple[float, list[Job]]] = {}

    def until(folder: str) -> tuple[float, list[Job]]:
        if folder not in longest:
            job = by_folder[folder]
            before = [until(other) for other in job.after if other in by_folder]
            seconds, chain = max(before, key=lambda end: end[0], default=(0.0, []))
            longest[folder] = seconds + job.seconds, [*chain, job]
        return longest[folder]

    return max((until(folder) for folder in by_folder), key=lambda end: end[0])
