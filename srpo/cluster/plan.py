"""What a preset will take, before anything is submitted: jobs, episodes, hours, disk, the critical path.

srpo plan --preset paper [--gpu h200] [--mfu 0.4 | --measured GPU.csv] [--throughput ROLLOUT.csv]
    [--metrics METRICS.csv]

The plan rests on three things: the operations of the preset's jobs, which are counted (`srpo.cluster.jobs`);
the throughput of simulation, which `benchmarks/rollout.py` measured (yours, or the shipped file); and a GPU's
speeds, measured or at a share of its peak (`srpo.cluster.speeds`). The `metrics.csv` of a training of that
policy on your machine replaces all three by the time that its steps took.
"""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from srpo import ROOT
from srpo.cluster import operations
from srpo.cluster.estimate import (
    DAY,
    Throughput,
    allowed,
    critical_path,
    estimate,
    held,
    read_throughput,
)
from srpo.cluster.jobs import Durations, Flop, Job, Kept, submissions, uncounted
from srpo.cluster.resources import REQUESTS, gpus_of
from srpo.cluster.speeds import GPU, MEASUREMENTS, MFU, Speeds, choose_speeds
from srpo.config import ConfigError, Layout, Parallel, Policy, SftStage, TrainStage, read_yaml
from srpo.config.parallel import acting_copy
from srpo.config.plan import Plan, plan
from srpo.config.resolve import load_preset
from srpo.episode import CHUNK, PROMPT_TOKENS
from srpo.errors import run_command
from srpo.policies.__main__ import POLICIES, read_policy

THROUGHPUT = MEASUREMENTS / "rollout.csv"
PROFILE = ROOT / "slurm/config.yaml"
PUBLISHED_GPU, PUBLISHED_STEPS = "a800", {8: 45, 16: 23}
"""Minutes of SimpleVLA-RL's step by number of GPUs (github.com/PRIME-RL/SimpleVLA-RL/issues/8), there called
approximate, for a batch of 64. Its scripts make 64 × 8 rollouts of that, of up to 512 control steps,
with all weights of OpenVLA-OFT 7B and no world model."""
WIDTH = 144
"""Of the table, to which the lines below it are wrapped."""


class Sizes(NamedTuple):
    """Bytes of a policy.

    kept      what a run leaves on disk
    learning  its weights, gradients and moments while it learns
    """

    kept: Kept
    learning: int


def policy_sizes(policy: Policy) -> Sizes:
    """Counted on a policy without contents."""
    from srpo.policies import memory  # torch: seconds

    update = memory.static(policy)
    return Sizes(Kept(memory.weights(policy), update.checkpoint), update.static)


class Chain(NamedTuple):
    """How often Snakemake starts a job that is longer than its time limit, and the site's limit, minutes."""

    tries: int
    most: int | None


def chain_of(profile: Path = PROFILE) -> Chain:
    """By the profile's `retries`, and `runtime` of its `resources`."""
    settings = read_yaml(profile)
    limits = dict(str(entry).split("=", 1) for entry in settings.get("resources") or [] if "=" in str(entry))
    retries = _whole(settings.get("retries", 0), profile, "retries")
    most = _whole(limits["runtime"], profile, "resources: runtime, minutes") if "runtime" in limits else None
    return Chain(1 + retries, most)


def _whole(value: object, profile: Path, key: str) -> int:
    """A whole number of the profile. Raises ConfigError for anything else."""
    text = str(value)
    if text.isascii() and text.isdigit():
        return int(text)
    raise ConfigError(f"{profile}: {key}: {value!r} is not a whole number")


def group_sizes(profile: Path = PROFILE) -> dict[str, int]:
    """How many jobs of a group share a submission to Slurm, by the profile's `group-components`."""
    entries = read_yaml(profile).get("group-components") or []
    parts = [str(entry).rpartition("=") for entry in entries]
    return {group: _whole(number, profile, f"group-components: {group}") for group, _, number in parts}


def report(planned: Plan, jobs: list[Job], throughput: Throughput, sizes: Sizes) -> str:
    """The plan as a table with its assumptions."""
    seconds, chain = critical_path(jobs)
    path = " → ".join(f"{job.folder} ({job.seconds / 3600:.2f} h)" for job in chain)
    parallel, trainings = planned.preset.parallel, [job for job in jobs if job.rule == "train"]
    lines = [
        "h: of a line's jobs one after another; GPU-hours, core-hours: what is held meanwhile",
        f"submissions to Slurm: {submissions(jobs, group_sizes())}",
        f"critical path: {seconds / 3600:.2f} h, with room for all jobs at once: {path}",
    ]
    if trainings:
        lines.append(time_line(max(job.seconds for job in trainings), chain_of()))
    if throughput.gpu is not None and parallel.train.gpus:
        policy, layout = policy_of_plan(planned), parallel.train
        card = throughput.gpu.card
        lines += [memory_line(sizes.learning, policy, layout, card, bool(overlapping(planned))), ""]
        flop = [sum(job.flop) for job in trainings]
        lines += published(flop, gpus_of("train", parallel), throughput.gpu)
    lines += ["", "assumed:", *(f"- {line}" for line in assumptions(planned, throughput))]
    wrapped = [textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return "\n".join([*table(jobs, parallel), "", *wrapped])


def table(jobs: list[Job], parallel: Parallel) -> list[str]:
    """A line a rule and one for all: jobs, GPUs of each, operations, hours by part, what is held, disk."""
    columns = ("simulate, h", "act, h", "encode, h", "learn, h", "GPU-hours", "core-hours", "longest, h")
    heads = "".join(f"{name:>12}" for name in columns)
    lines = [f"{'stage':14}{'jobs':>6}{'GPUs':>6}{'episodes':>11}{'PFLOP':>13}{heads}{'disk, GB':>10}"]
    for rule in (*REQUESTS, None):
        selected = [job for job in jobs if rule in (job.rule, None)]
        if not selected:
            continue
        parts = [sum(job.durations[k] for job in selected) / 3600 for k in range(len(Durations._fields))]
        gpus = "" if rule is None else gpus_of(rule, parallel)
        lines.append(
            f"{rule or 'in all':14}{len(selected):>6}{gpus:>6}{sum(job.episodes for job in selected):>11,}"
            f"{sum(sum(job.flop) for job in selected) / 1e15:>13,.1f}"
            + "".join(f"{hours:>12,.1f}" for hours in (*parts, *held(selected, parallel)))
            + f"{max(job.seconds for job in selected) / 3600:>12,.2f}"
            + f"{sum(job.disk for job in selected) / 1e9:>10,.1f}"
        )
    return lines


def policy_of_plan(planned: Plan) -> Policy:
    """The policy of the preset's first suite."""
    return next(stage.policy for stage in planned.stages.values() if isinstance(stage, SftStage))


def time_line(longest: float, chain: Chain) -> str:
    """Whether the longest training, in seconds, is done by its last try."""
    had = allowed(chain.tries, chain.most)
    line = (
        f"time limits: the longest training takes {longest / DAY:.1f} days, and the {chain.tries} tries of "
        f"{os.path.relpath(PROFILE)} have {had / DAY:.1f}"
    )
    if longest > had:
        line += ". TOO LONG: set more gpus or nodes (parallel.train), or more `retries` in the profile"
    return line


def overlapping(planned: Plan) -> list[str]:
    """The variants whose rollouts run beside updates."""
    stages = [stage for stage in planned.stages.values() if isinstance(stage, TrainStage)]
    return list(dict.fromkeys(stage.variant for stage in stages if stage.train.overlap))


def memory_line(held: int, policy: Policy, layout: Layout, gpu: str, overlap: bool = False) -> str:
    """What learning holds on a GPU, and whether that is too much. `overlap`: of any run (`train.overlap`)."""
    memory, parts = operations.GPUS[gpu].memory, "weights, gradients, moments"
    needed = float(held)
    if layout.strategy == "fsdp":
        needed, parts = held / layout.size, f"1/{layout.size} of {parts}"
    if copy := acting_copy(layout, policy, overlap):
        needed, parts = needed + copy * policy.weights, f"{parts}, and the copy that acts"
    line = (
        f"memory: by {layout.strategy}, learning holds {needed / 1e9:.1f} GB of each {gpu}'s {memory}: "
        f"{parts}; activations and the world model come on top (srpo policy inspect)"
    )
    if needed > memory * 1e9:
        line += ". TOO MUCH: set policy.lora and policy.dtype bfloat16, or strategy fsdp and more GPUs"
    return line


def published_step() -> Flop:
    """The published step's operations, were it done here: all weights, with gradient checkpointing."""
    policy = read_policy(POLICIES / "openvla-7b.yaml")
    policy = policy.model_copy(update={"lora": None, "gradient_checkpointing": True})
    queries = 64 * 8 * 512 // CHUNK
    forward = operations.policy_forward(policy).total
    return Flop(act=queries * forward, learn=queries * operations.learning(policy))


def published(trainings: Sequence[int], gpus: int, gpu: Speeds) -> list[str]:
    """Published step times, the same step at the speeds here, and what they make of the preset's trainings.

    Args:
        trainings: FLOP of each.
        gpus: of each.
    """
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
    act, learn = step.act / gpu.act / 60, step.learn / gpu.learn_all / 60
    lines.append(
        f"- {number} × {gpu.card} at the speeds below: act {act / number:.1f} + learn {learn / number:.1f} = "
        f"{(act + learn) / number:.1f} min, {sum(step) / (here * 60 * (act + learn)):.0%} of the peak"
    )
    published_speed = sum(step) / (number * 60 * minutes)  # of one GPU
    total, longest = sum(trainings) / published_speed, max(trainings, default=0) / published_speed
    lines.append(
        f"- the training here at the share of the peak that those {number} × {PUBLISHED_GPU} reach: "
        f"{total / 3600:,.0f} {PUBLISHED_GPU}-hours, {total / 3600 * peak / here:,.0f} {gpu.card}-hours; the "
        f"longest {longest / gpus / DAY:.1f} days on {gpus} × {PUBLISHED_GPU}"
    )
    return lines


def assumptions(planned: Plan, throughput: Throughput) -> list[str]:
    """What the figures rest on."""
    lines = [
        f"control steps a second and core: {os.path.relpath(throughput.source)}, at its pictures' size",
        "every episode lasts as long as it may",
        "jobs hold the cores of srpo/cluster/resources.py until their end, and all of them simulate",
        "no further rounds of dynamic sampling, no queue, no retries",
        "disk: a run's policy and last checkpoint, and a training's pictures until its next checkpoint",
    ]
    if variants := overlapping(planned):
        lines.append(
            f"train.overlap ({', '.join(variants)}) saves no time: rollouts and updates are counted one "
            "after the other"
        )
    if throughput.training is not None:
        lines.append("of --metrics all that a training step takes, for every episode, under `simulate`")
    if throughput.gpu is None:
        lines.append(
            "LOWER BOUND: the preset has no GPUs, and how fast CPUs run policy and world models is not "
            "assumed; --metrics adds what a training step takes, but not SFT, world models and scores"
        )
    else:
        policy = policy_of_plan(planned)
        lines += [*throughput.gpu.notes, *counting(planned.preset.parallel, policy)]
    if names := uncounted(planned):
        lines.append(f"not counted: {', '.join(names)}")
    return lines


def counting(parallel: Parallel, policy: Policy) -> list[str]:
    """How operations are counted, and how their time is put together."""
    several = [f"{rule} on {number}" for rule in REQUESTS if (number := gpus_of(rule, parallel)) > 1]
    shared = (
        f"LOWER BOUND: n GPUs are n times as fast as one ({', '.join(several)}): not measured; that they "
        "wait for one another, and for communication, takes no time"
    )
    whole = (
        "LOWER BOUND: while all weights are trained they act as fast as finished policies do, in full "
        "batches; and finished policies of float32, which act in that, as fast as measured in bfloat16"
    )
    return [
        f"counted are matrix products, with prompts of {PROMPT_TOKENS} tokens. Learning takes 3 "
        "forward passes for adapters on frozen weights and 4 for all weights, with gradient checkpointing "
        "(less each block's last layer, which PyTorch does not recompute); without it one less",
        *([shared] if several else []),
        *([whole] if policy.lora is None else []),
        "LOWER BOUND of the time for these operations: a job takes max(simulate, act) + encode + learn, as "
        "if simulation and acting overlapped fully (without overlap: their sum); loading, saving and "
        "communication take no time",
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
    speed.add_argument(
        "--measured", type=Path, help="at your own measured speeds, like docs/performance/gpu-h200.csv"
    )
    parser.add_argument(
        "--throughput",
        type=Path,
        default=THROUGHPUT,
        help="of benchmarks/rollout.py (default: the one shipped)",
    )
    parser.add_argument("--metrics", type=Path, help="metrics.csv of a training of this policy")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, as for Snakemake"
    )
    arguments = parser.parse_args()
    planned = plan(*load_preset(arguments.preset), overrides=arguments.set)
    on_gpus = planned.preset.parallel.on_gpus
    if not on_gpus and (arguments.gpu or arguments.mfu or arguments.measured):
        raise ConfigError(
            f"--gpu, --mfu, --measured: preset {planned.preset.name} has no GPUs, its policy runs on CPUs: "
            "leave them out, or set gpus under `parallel` in the preset"
        )
    gpu = choose_speeds(arguments.gpu, arguments.mfu, arguments.measured) if on_gpus else None
    throughput = read_throughput(arguments.throughput, arguments.metrics, gpu)
    sizes = policy_sizes(policy_of_plan(planned))
    jobs = estimate(planned, throughput, sizes.kept)
    print(report(planned, jobs, throughput, sizes))


if __name__ == "__main__":
    run_command(main)
