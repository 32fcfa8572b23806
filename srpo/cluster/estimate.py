"""How long a preset's jobs take: counted work divided by measured or assumed speeds. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from srpo.cluster.jobs import Durations, Job, jobs_of, policy_of
from srpo.cluster.resources import cores, gpus_of
from srpo.cluster.speeds import Speeds, nearest, read_rows
from srpo.config import (
    ConfigError,
    DemosStage,
    Policy,
    Protocol,
    SftStage,
    Stage,
    TrainStage,
    WorldModelStage,
)
from srpo.config.plan import Plan


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
        self, job: Job, stage: Stage | WorldModelStage, policy: Policy | None, gpus: int
    ) -> Durations:
        """Seconds of a job's parts; all of them are under `simulate` where a training was measured."""
        simulated = 0.0
        if job.episodes and isinstance(stage, Stage):
            steps = job.episodes * stage.protocol.max_steps
            simulated = self.simulated(steps, stage.suite, stage.protocol, cores(job.rule, gpus))
            if self.training is not None and not isinstance(stage, DemosStage):
                return Durations(max(simulated, steps / self.training))
        if self.gpu is None or policy is None:
            return Durations(simulated)
        used = max(1, gpus_of(job.rule, gpus))
        per_gpu = speeds_of(self.gpu, stage, policy)
        return Durations(
            simulated, *(flop / (speed * used) for flop, speed in zip(job.flop, per_gpu, strict=True))
        )


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


def estimate(planned: Plan, throughput: Throughput, policy_bytes: int) -> list[Job]:
    """All submitted jobs of a preset, with their durations. `policy_bytes`: what a run keeps of a policy."""
    jobs = []
    for folder, stage in planned.stages.items():
        policy = policy_of(planned, stage) if isinstance(stage, Stage) else None
        for job in jobs_of(planned, folder, stage, policy_bytes):
            durations = throughput.durations(job, stage, policy, planned.preset.gpus)
            jobs.append(job._replace(durations=durations))
    return jobs


class Held(NamedTuple):
    """Hours for which GPUs and cores are held."""

    gpu: float = 0.0
    core: float = 0.0


def held(jobs: Iterable[Job], gpus: int) -> Held:
    """What jobs hold from their start to their end, in a preset with so many GPUs a job."""
    jobs = list(jobs)
    return Held(
        sum(job.seconds * gpus_of(job.rule, gpus) for job in jobs) / 3600,
        sum(job.seconds * cores(job.rule, gpus) for job in jobs) / 3600,
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
