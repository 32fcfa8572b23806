"""What a preset will take, before anything is submitted: jobs, episodes, hours, disk, the critical path.

srpo plan --preset paper [--gpu h200] [--mfu 0.4 | --measured GPU.csv] [--throughput ROLLOUT.csv]
    [--metrics METRICS.csv]

The throughput of simulation is read from what `benchmarks/rollout.py` wrote (yours, or the shipped one). What
policy and world models take is counted (`srpo.cluster.operations`) and divided by a GPU's speeds
(`srpo.cluster.speeds`): those that were measured, or a share of its peak, an assumption. The `metrics.csv`
of a training of that policy on your machine replaces both by what it took.
"""

from __future__ import annotations

import argparse
import math
import os
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from srpo.cluster import operations, speeds
from srpo.cluster.speeds import Speeds, nearest, read_rows
from srpo.config import (
    ConfigError,
    DemosStage,
    EvaluateStage,
    PlusStage,
    Policy,
    Protocol,
    RewardBenchmarkStage,
    SftStage,
    Stage,
    TrainStage,
    WorldModel,
    WorldModelStage,
)
from srpo.config.plan import Plan, plan
from srpo.config.resolve import load_preset
from srpo.episode import CHUNK
from srpo.libero_plus.tasks import count, shards
from srpo.policies.__main__ import POLICIES, read_policy

SHIPPED = Path(__file__).resolve().parents[2] / "docs/performance/rollout.csv"
CORES = {
    **{"demos": 8, "world_model": 8, "sft": 8, "train": 16, "evaluate": 8, "plus_shard": 8},
    **{"trajectories": 8, "score": 8},
}
"""Cores of a rule's jobs (`threads` in workflow/rules/)."""
PACKED = {"evaluate": (3, 3), "plus_shard": (5, 13)}
"""By rule, parts of a job's folder that name its group, and jobs of a submission (slurm/config.yaml)."""
GPU, MFU = "h200", 0.4
"""Where nothing else is said; the share is for cards that were not measured. Llama 3 405B's pre-training
reaches 0.38 to 0.43 of an H100's peak (arXiv 2407.21783, table 4: 380 to 430 TFLOP/s)."""
PUBLISHED_GPU, PUBLISHED_STEPS = "a800", {8: 45, 16: 23}
"""Minutes of SimpleVLA-RL's step by number of GPUs (github.com/PRIME-RL/SimpleVLA-RL/issues/8). Said there is
"about", and a batch of 64; its scripts make 64 × 8 rollouts of that, of up to 512 control steps, with all
weights of OpenVLA-OFT 7B and no world model."""
WIDTH = 138
"""Of the table, to which the lines below it are wrapped."""


class Flop(NamedTuple):
    """Floating-point operations of a job: of acting, of encoding for rewards, of learning."""

    act: int = 0
    encode: int = 0
    learn: int = 0


class Parts(NamedTuple):
    """Seconds of a job's parts."""

    simulate: float = 0.0
    act: float = 0.0
    encode: float = 0.0
    learn: float = 0.0

    @property
    def total(self) -> float:
        """Wall clock at best.

        Simulators and policy work at the same time, on different episodes, without a barrier
        (`srpo/rollouts/pool.py`): the faster can hide behind the slower. Rewards wait for the last episode,
        and learning for them.
        """
        return max(self.simulate, self.act) + self.encode + self.learn


@dataclass(frozen=True)
class Throughput:
    """How fast things go.

    source      file of the simulation's
    simulation  control steps a second on one core, by (suite, render mode)
    whole       control steps a second of a training job, with everything that a step takes; None where that
                was not measured
    gpu         speeds of one GPU; None where policies run on CPUs, whose speed is not assumed
    """

    source: Path
    simulation: Mapping[tuple[str, str], float]
    whole: float | None = None
    gpu: Speeds | None = None

    def simulated(self, steps: int, suite: str, protocol: Protocol, cores: int) -> float:
        """Seconds of some control steps on some cores, without a policy."""
        if (suite, protocol.render) not in self.simulation:
            raise ConfigError(f"{self.source}: has no steps_per_second of {suite}, loop {protocol.render}")
        return steps / (self.simulation[suite, protocol.render] * cores)

    def parts(self, job: Work, stage: Stage | WorldModelStage, policy: Policy | None, gpus: int) -> Parts:
        """Seconds of a job's parts; all of them are under `simulate` where a whole training was measured."""
        simulated = 0.0
        if job.episodes and isinstance(stage, Stage):
            steps = job.episodes * stage.protocol.max_steps
            simulated = self.simulated(steps, stage.suite, stage.protocol, CORES[job.rule])
            if self.whole is not None and not isinstance(stage, DemosStage):
                return Parts(max(simulated, steps / self.whole))
        if self.gpu is None or policy is None:
            return Parts(simulated)
        used = gpus if job.rule == "train" else 1  # the workflow starts a process on each of a training's
        each = speeds_of(self.gpu, stage, policy)
        return Parts(simulated, *(flop / (speed * used) for flop, speed in zip(job.flop, each, strict=True)))


def speeds_of(gpu: Speeds, stage: Stage | WorldModelStage, policy: Policy) -> tuple[float, float, float]:
    """Operations a second of acting, encoding and learning in a job."""
    if policy.lora is None:
        return gpu.act, gpu.encode, gpu.whole
    if isinstance(stage, TrainStage):
        return gpu.rollout, gpu.encode, nearest(gpu.adapters, stage.train.microbatch)
    batch = stage.sft.batch_size if isinstance(stage, SftStage) else 1  # others do not learn
    return gpu.act, gpu.encode, nearest(gpu.adapters, batch)


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
    whole = None
    if metrics is not None:
        steps = read_rows(metrics, ("environment_steps", "seconds_total"))
        seconds = sum(float(row["seconds_total"]) for row in steps)
        whole = sum(int(row["environment_steps"]) for row in steps) / seconds
    return Throughput(rollout, simulation, whole, gpu)


class Work(NamedTuple):
    """One job of a rule.

    after  folders of stages that it waits for
    flop   operations of policy and world model
    disk   bytes, of results and of a training's scratch folder
    parts  its wall clock, s
    """

    rule: str
    folder: str
    after: tuple[str, ...] = ()
    episodes: int = 0
    flop: Flop = Flop()
    disk: int = 0
    parts: Parts = Parts()

    @property
    def seconds(self) -> float:
        """Wall clock, at best."""
        return self.parts.total


def work(planned: Plan, throughput: Throughput, policy_bytes: int) -> list[Work]:
    """All submitted jobs of a preset."""
    gpus, found = planned.preset.gpus, []
    for folder, stage in planned.stages.items():
        policy = policy_of(planned, stage) if isinstance(stage, Stage) else None
        for job in jobs_of(planned, folder, stage, policy, policy_bytes):
            found.append(job._replace(parts=throughput.parts(job, stage, policy, gpus)))
    return found


def jobs_of(
    planned: Plan, folder: str, stage: Stage | WorldModelStage, policy: Policy | None, policy_bytes: int
) -> Iterator[Work]:
    """A stage's jobs, without the time that they take. `policy`: the suite's; None for a world model."""
    needs: tuple[str, ...]
    if policy is None:
        yield Work("world_model", folder)
    elif isinstance(stage, DemosStage):
        yield Work("demos", folder, episodes=stage.demos.per_task * len(stage.tasks))
    elif isinstance(stage, SftStage):
        needs = (f"demos/{stage.suite}",) if stage.sft.updates else ()
        learnt = stage.sft.updates * stage.sft.batch_size * operations.learning(stage.policy)
        yield Work("sft", folder, needs, flop=Flop(learn=learnt), disk=policy_bytes)
    elif isinstance(stage, TrainStage):
        needs = (planned.sft_of(stage.suite).folder, *made(planned, stage.world_model))
        flop = training_flop(stage, policy)
        disk = policy_bytes + scratch_bytes(stage)
        yield Work("train", folder, needs, training_episodes(stage), flop, disk)
    elif isinstance(stage, EvaluateStage):
        episodes = len(stage.tasks) * stage.evaluate.states
        flop = acting_flop(stage, policy, episodes)
        yield Work("evaluate", folder, (folder.removesuffix("/evaluation"),), episodes, flop)
    elif isinstance(stage, PlusStage):
        plus = stage.plus
        total = count(stage.suite, stage.tasks, plus.dimensions, plus.per_dimension)
        for index in range(shards(total, plus.shard_size)):
            part = min(plus.shard_size, total - index * plus.shard_size)
            flop = acting_flop(stage, policy, part)
            yield Work("plus_shard", f"{folder}/{index}", (folder.removesuffix("/plus"),), part, flop)
    elif isinstance(stage, RewardBenchmarkStage):
        settings = stage.reward_benchmark
        flop = acting_flop(stage, policy, settings.max_episodes)
        needs = (planned.sft_of(stage.suite).folder,)
        yield Work("trajectories", folder, needs, settings.max_episodes, flop)
        videos = (settings.successes + settings.failures) * settings.prefixes
        for model in stage.world_models:
            encoded = Flop(encode=videos * (operations.encoding(model) or 0))
            yield Work("score", f"{folder}/{model.name}", (folder, *made(planned, model)), flop=encoded)


def made(planned: Plan, model: WorldModel | None) -> tuple[str, ...]:
    """The folder of the stage that pretrains a world model, if the preset does."""
    folder = f"world_models/{model.name}" if model else ""
    return (folder,) if folder in planned.stages else ()


def policy_of(planned: Plan, stage: Stage) -> Policy:
    """The policy of a suite's stages: that of its SFT."""
    sft = planned.stages[planned.sft_of(stage.suite).folder]
    assert isinstance(sft, SftStage)
    return sft.policy


def queries(protocol: Protocol) -> int:
    """Policy queries of an episode that lasts as long as it may."""
    return math.ceil(protocol.max_steps / CHUNK)


def acting_flop(stage: Stage, policy: Policy, episodes: int) -> Flop:
    """Of episodes of a finished policy, which keeps its adapters beside its weights."""
    return Flop(act=episodes * queries(stage.protocol) * operations.policy_forward(policy).total)


def training_flop(stage: TrainStage, policy: Policy) -> Flop:
    """Of a training in which every group teaches: none is left out, and all episodes are encoded."""
    train, asked = stage.train, queries(stage.protocol)
    each = train.prompts * train.group_size
    forward = operations.policy_forward(policy).total  # adapters stand beside the weights
    learning = operations.learning(policy) + forward * (train.kl > 0)
    encoding = 0 if stage.world_model is None else operations.encoding(stage.world_model) or 0
    return Flop(
        training_episodes(stage) * asked * forward,
        each * (train.steps if train.offline is None else 1) * encoding,
        each * train.steps * train.epochs * asked * learning,
    )


def uncounted(planned: Plan) -> list[str]:
    """World models whose operations are not counted: pretrained here, or of an unknown architecture."""
    used: dict[str, WorldModel] = {}
    for stage in planned.stages.values():
        one = getattr(stage, "world_model", None)
        used |= {
            model.name: model for model in (*getattr(stage, "world_models", ()), *([one] if one else []))
        }
    made = [f"pretraining of {name}" for name, model in used.items() if model.pretraining]
    return made + [
        f"encoding by {name}" for name, model in used.items() if operations.encoding(model) is None
    ]


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


class Sizes(NamedTuple):
    """Bytes of a policy.

    kept      what stays of a run: its weights, and in scratch its last checkpoint
    learning  what learning holds on each GPU beside activations
    """

    kept: int
    learning: int


def policy_sizes(policy: Policy) -> Sizes:
    """Counted on a policy without contents."""
    from srpo.policies import memory  # torch: seconds

    update = memory.static(policy)
    return Sizes(memory.weights(policy) + update.checkpoint, update.static)


def report(planned: Plan, jobs: list[Work], throughput: Throughput, sizes: Sizes) -> str:
    """The plan as a table with its assumptions."""
    seconds, chain = critical_path(jobs)
    path = " → ".join(f"{job.folder} ({job.seconds / 3600:.2f} h)" for job in chain)
    lines = [
        "h: of a line's jobs one after another; GPU-hours, core-hours: what is held meanwhile",
        f"submissions to Slurm: {submissions(jobs)}",
        f"critical path: {seconds / 3600:.2f} h, with room for all jobs at once: {path}",
    ]
    if throughput.gpu is not None:
        lines += [memory_line(sizes.learning, throughput.gpu.card), ""]
        lines += published(sum(sum(job.flop) for job in jobs if job.rule == "train"), throughput.gpu)
    lines += ["", "assumed:", *(f"- {line}" for line in assumptions(planned, throughput))]
    wrapped = [textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return "\n".join([*table(jobs, planned.preset.gpus), "", *wrapped])


def table(jobs: list[Work], gpus: int) -> list[str]:
    """A line a rule and one for all: jobs, operations, hours by part, what is held, disk."""
    columns = ("simulate, h", "act, h", "encode, h", "learn, h", "GPU-hours", "core-hours", "longest, h")
    heads = "".join(f"{name:>12}" for name in columns)
    lines = [f"{'stage':14}{'jobs':>6}{'episodes':>11}{'PFLOP':>13}{heads}{'disk, GB':>10}"]
    for rule in (*CORES, None):
        some = [job for job in jobs if rule in (job.rule, None)]
        if not some:
            continue
        parts = [sum(job.parts[k] for job in some) / 3600 for k in range(len(Parts._fields))]
        devices = sum(job.seconds * gpus for job in some if job.rule != "demos") / 3600
        cores = sum(job.seconds * CORES[job.rule] for job in some) / 3600
        lines.append(
            f"{rule or 'in all':14}{len(some):>6}{sum(job.episodes for job in some):>11,}"
            f"{sum(sum(job.flop) for job in some) / 1e15:>13,.1f}"
            + "".join(f"{hours:>12,.1f}" for hours in (*parts, devices, cores))
            + f"{max(job.seconds for job in some) / 3600:>12,.2f}"
            + f"{sum(job.disk for job in some) / 1e9:>10,.1f}"
        )
    return lines


def memory_line(held: int, gpu: str) -> str:
    """What learning holds on a GPU, and whether that is too much."""
    memory = operations.GPUS[gpu].memory
    line = (
        f"memory: without FSDP, learning holds {held / 1e9:.1f} GB of each {gpu}'s {memory}: weights, "
        "gradients, moments; activations and the world model come on top (srpo policy inspect)"
    )
    if held > memory * 1e9:
        line += ". TOO MUCH: set policy.lora and policy.dtype bfloat16, or use FSDP (docs/hpc.md)"
    return line


def published_step() -> Flop:
    """The published step's operations, were it done here: all weights, with gradient checkpointing."""
    policy = read_policy(POLICIES / "openvla-7b.yaml")
    policy = policy.model_copy(update={"lora": None, "gradient_checkpointing": True})
    asked = 64 * 8 * 512 // CHUNK
    forward = operations.policy_forward(policy).total
    return Flop(act=asked * forward, learn=asked * operations.learning(policy))


def published(training: int, gpu: Speeds) -> list[str]:
    """Published step times, the same step at the speeds here, and what they make of `training` FLOP."""
    peak, step = operations.GPUS[PUBLISHED_GPU].tflops * 1e12, published_step()
    lines = [
        "published, and the same step as it is counted here (64 × 8 rollouts of 64 queries, all weights of "
        f"7B, no world model: {step.act / 1e15:.0f} PFLOP to act, {step.learn / 1e15:.0f} to learn):"
    ]
    for number, minutes in PUBLISHED_STEPS.items():
        reached = sum(step) / (peak * number * 60 * minutes)
        lines.append(f"- {number} × {PUBLISHED_GPU}: {minutes} min, {reached:.0%} of the peak")
    number, minutes = next(iter(PUBLISHED_STEPS.items()))
    here = operations.GPUS[gpu.card].tflops * 1e12
    act, learn = step.act / gpu.act / 60, step.learn / gpu.whole / 60
    lines.append(
        f"- {number} × {gpu.card} at the speeds below: act {act / number:.1f} + learn {learn / number:.1f} = "
        f"{(act + learn) / number:.1f} min, {sum(step) / (here * 60 * (act + learn)):.0%} of the peak"
    )
    pace = training / sum(step) * number * minutes / 60
    lines.append(
        f"- the training here at the share of the peak that those {number} × {PUBLISHED_GPU} reach: "
        f"{pace:,.0f} {PUBLISHED_GPU}-hours, {pace * peak / here:,.0f} {gpu.card}-hours"
    )
    return lines


def assumptions(planned: Plan, throughput: Throughput) -> list[str]:
    """What the figures rest on."""
    lines = [
        f"control steps a second and core: {os.path.relpath(throughput.source)}, at its pictures' size",
        "every episode lasts as long as it may",
        "jobs have the cores of workflow/rules/, and all of them simulate; they are held while GPUs work",
        "no further rounds of dynamic sampling, no queue, no retries",
        "disk: a run's policy and last checkpoint, and a training's pictures until its next checkpoint",
    ]
    if throughput.whole is not None:
        lines.append("of --metrics all that a training step takes, for every episode, under `simulate`")
    if throughput.gpu is None:
        lines.append(
            "LOWER BOUND: the preset has no GPUs, and how fast CPUs run policy and world models is not "
            "assumed; --metrics adds what a training step takes, but not SFT, world models and scores"
        )
    else:
        lines += [*throughput.gpu.told, *counting(planned.preset.gpus)]
    if names := uncounted(planned):
        lines.append(f"not counted: {', '.join(names)}")
    return lines


def counting(gpus: int) -> list[str]:
    """How operations are counted, and how their time is put together."""
    simulators = CORES["train"]
    shared = (
        f"training uses all {gpus} GPUs of a job and is {gpus} times as fast as on one: not measured, and "
        f"{simulators} simulators shared by {gpus} make smaller batches; every other job uses one"
    )
    return [
        f"counted are matrix products, with prompts of {operations.PROMPT} tokens. Learning takes 3 "
        "forward passes for adapters on frozen weights and 4 for all weights, with gradient checkpointing "
        "(less each block's last layer, which PyTorch does not recompute); without it one less",
        *([shared] if gpus > 1 else []),
        "LOWER BOUND of the time for these operations: a job takes max(simulate, act) + encode + learn, as "
        "if the faster of simulators and policy hid behind the slower entirely (in turns: their sum); "
        "loading, saving and communication take no time",
        "more operations than there will be: no episode ends early, no group is left out of an update",
    ]


def _share(text: str) -> float:
    """The value of --mfu."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share of the peak: give 0.4, say (0 < share ≤ 1)")
    return value


def chosen(card: str | None, share: float | None, file: Path | None) -> Speeds:
    """The speeds that the options ask for. Raises ConfigError."""
    if share is None and (found := file or speeds.shipped(card or GPU)):
        gpu = speeds.measured(found)
        if card not in (None, gpu.card):
            raise ConfigError(f"{found}: column card has {gpu.card}, not {card} (--gpu)")
        return gpu
    return speeds.of_peak(card or GPU, share or MFU)


def main() -> None:
    parser = argparse.ArgumentParser(prog="srpo plan", description="What a preset will take.")
    parser.add_argument("--preset", required=True, help="name or file of a preset")
    parser.add_argument("--gpu", choices=operations.GPUS, help=f"at its measured speeds (default: {GPU})")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--mfu",
        type=_share,
        help="at this share of its peak instead, above 0 and up to 1 "
        f"(cards that were not measured: {MFU} by default)",
    )
    speed.add_argument("--measured", type=Path, help="speeds like docs/performance/gpu-h200.csv, of yours")
    parser.add_argument(
        "--throughput", type=Path, default=SHIPPED, help="of benchmarks/rollout.py (default: the one shipped)"
    )
    parser.add_argument("--metrics", type=Path, help="metrics.csv of a training of this policy")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, as for Snakemake"
    )
    arguments = parser.parse_args()
    try:
        planned = plan(*load_preset(arguments.preset), overrides=arguments.set)
        on_gpus = planned.preset.gpus > 0
        if not on_gpus and (arguments.gpu or arguments.mfu or arguments.measured):
            raise ConfigError(
                f"--gpu, --mfu, --measured: preset {planned.preset.name} has gpus: 0, its policy runs on "
                "CPUs: leave them out, or set gpus in the preset"
            )
        gpu = chosen(arguments.gpu, arguments.mfu, arguments.measured) if on_gpus else None
        throughput = read_throughput(arguments.throughput, arguments.metrics, gpu)
        policy = next(stage.policy for stage in planned.stages.values() if isinstance(stage, SftStage))
        sizes = policy_sizes(policy)
        jobs = work(planned, throughput, sizes.kept)
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    print(report(planned, jobs, throughput, sizes))


if __name__ == "__main__":
    main()
