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
from pathlib import Path
from typing import NamedTuple

from srpo import ROOT
from srpo.cluster import operations, speeds
from srpo.cluster.estimate import Throughput, critical_path, estimate, read_throughput
from srpo.cluster.jobs import Durations, Flop, Job, submissions, uncounted
from srpo.cluster.resources import REQUESTS, cores, gpus_of, simulators
from srpo.cluster.speeds import MEASUREMENTS, Speeds
from srpo.config import ConfigError, Policy, SftStage, read_yaml
from srpo.config.plan import Plan, plan
from srpo.config.resolve import load_preset
from srpo.episode import CHUNK, PROMPT_TOKENS
from srpo.errors import run_command
from srpo.policies.__main__ import POLICIES, read_policy

THROUGHPUT = MEASUREMENTS / "rollout.csv"
PROFILE = ROOT / "slurm/config.yaml"
GPU, MFU = "h200", 0.4
"""The defaults: a card, and the share of its peak that a card without measurements reaches. Llama 3 405B's
pre-training reaches 0.38 to 0.43 of an H100's peak (arXiv 2407.21783, table 4: 380 to 430 TFLOP/s)."""
PUBLISHED_GPU, PUBLISHED_STEPS = "a800", {8: 45, 16: 23}
"""Minutes of SimpleVLA-RL's step by number of GPUs (github.com/PRIME-RL/SimpleVLA-RL/issues/8), there called
approximate, for a batch of 64. Its scripts make 64 × 8 rollouts of that, of up to 512 control steps,
with all weights of OpenVLA-OFT 7B and no world model."""
WIDTH = 138
"""Of the table, to which the lines below it are wrapped."""


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


def group_sizes(profile: Path = PROFILE) -> dict[str, int]:
    """How many jobs of a group share a submission to Slurm, by the profile's `group-components`."""
    entries = read_yaml(profile).get("group-components") or []
    return {group: int(number) for group, _, number in (entry.rpartition("=") for entry in entries)}


def report(planned: Plan, jobs: list[Job], throughput: Throughput, sizes: Sizes) -> str:
    """The plan as a table with its assumptions."""
    seconds, chain = critical_path(jobs)
    path = " → ".join(f"{job.folder} ({job.seconds / 3600:.2f} h)" for job in chain)
    lines = [
        "h: of a line's jobs one after another; GPU-hours, core-hours: what is held meanwhile",
        f"submissions to Slurm: {submissions(jobs, group_sizes())}",
        f"critical path: {seconds / 3600:.2f} h, with room for all jobs at once: {path}",
    ]
    if throughput.gpu is not None:
        lines += [memory_line(sizes.learning, throughput.gpu.card), ""]
        lines += published(sum(sum(job.flop) for job in jobs if job.rule == "train"), throughput.gpu)
    lines += ["", "assumed:", *(f"- {line}" for line in assumptions(planned, throughput))]
    wrapped = [textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return "\n".join([*table(jobs, planned.preset.gpus), "", *wrapped])


def table(jobs: list[Job], gpus: int) -> list[str]:
    """A line a rule and one for all: jobs, operations, hours by part, what is held, disk."""
    columns = ("simulate, h", "act, h", "encode, h", "learn, h", "GPU-hours", "core-hours", "longest, h")
    heads = "".join(f"{name:>12}" for name in columns)
    lines = [f"{'stage':14}{'jobs':>6}{'episodes':>11}{'PFLOP':>13}{heads}{'disk, GB':>10}"]
    for rule in (*REQUESTS, None):
        selected = [job for job in jobs if rule in (job.rule, None)]
        if not selected:
            continue
        parts = [sum(job.durations[k] for job in selected) / 3600 for k in range(len(Durations._fields))]
        gpu_hours = sum(job.seconds * gpus_of(job.rule, gpus) for job in selected) / 3600
        core_hours = sum(job.seconds * cores(job.rule, gpus) for job in selected) / 3600
        lines.append(
            f"{rule or 'in all':14}{len(selected):>6}{sum(job.episodes for job in selected):>11,}"
            f"{sum(sum(job.flop) for job in selected) / 1e15:>13,.1f}"
            + "".join(f"{hours:>12,.1f}" for hours in (*parts, gpu_hours, core_hours))
            + f"{max(job.seconds for job in selected) / 3600:>12,.2f}"
            + f"{sum(job.disk for job in selected) / 1e9:>10,.1f}"
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
    queries = 64 * 8 * 512 // CHUNK
    forward = operations.policy_forward(policy).total
    return Flop(act=queries * forward, learn=queries * operations.learning(policy))


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
    act, learn = step.act / gpu.act / 60, step.learn / gpu.learn_all / 60
    lines.append(
        f"- {number} × {gpu.card} at the speeds below: act {act / number:.1f} + learn {learn / number:.1f} = "
        f"{(act + learn) / number:.1f} min, {sum(step) / (here * 60 * (act + learn)):.0%} of the peak"
    )
    gpu_hours = training / sum(step) * number * minutes / 60
    lines.append(
        f"- the training here at the share of the peak that those {number} × {PUBLISHED_GPU} reach: "
        f"{gpu_hours:,.0f} {PUBLISHED_GPU}-hours, {gpu_hours * peak / here:,.0f} {gpu.card}-hours"
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
    if throughput.training is not None:
        lines.append("of --metrics all that a training step takes, for every episode, under `simulate`")
    if throughput.gpu is None:
        lines.append(
            "LOWER BOUND: the preset has no GPUs, and how fast CPUs run policy and world models is not "
            "assumed; --metrics adds what a training step takes, but not SFT, world models and scores"
        )
    else:
        lines += [*throughput.gpu.notes, *counting(planned.preset.gpus)]
    if names := uncounted(planned):
        lines.append(f"not counted: {', '.join(names)}")
    return lines


def counting(gpus: int) -> list[str]:
    """How operations are counted, and how their time is put together."""
    shared = (
        f"training uses all {gpus} GPUs of a job and is {gpus} times as fast as on one: not measured, and "
        f"{simulators(cores('train', gpus), gpus)} simulators shared by {gpus} make smaller batches; every "
        "other job uses one"
    )
    return [
        f"counted are matrix products, with prompts of {PROMPT_TOKENS} tokens. Learning takes 3 "
        "forward passes for adapters on frozen weights and 4 for all weights, with gradient checkpointing "
        "(less each block's last layer, which PyTorch does not recompute); without it one less",
        *([shared] if gpus > 1 else []),
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


def choose_speeds(card: str | None, share: float | None, file: Path | None) -> Speeds:
    """The speeds that the options ask for. Raises ConfigError."""
    if share is None and (measurements := file or speeds.shipped(card or GPU)):
        gpu = speeds.measured(measurements)
        if card not in (None, gpu.card):
            raise ConfigError(f"{measurements}: column card has {gpu.card}, not {card} (--gpu)")
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
    on_gpus = planned.preset.gpus > 0
    if not on_gpus and (arguments.gpu or arguments.mfu or arguments.measured):
        raise ConfigError(
            f"--gpu, --mfu, --measured: preset {planned.preset.name} has gpus: 0, its policy runs on "
            "CPUs: leave them out, or set gpus in the preset"
        )
    gpu = choose_speeds(arguments.gpu, arguments.mfu, arguments.measured) if on_gpus else None
    throughput = read_throughput(arguments.throughput, arguments.metrics, gpu)
    policy = next(stage.policy for stage in planned.stages.values() if isinstance(stage, SftStage))
    sizes = policy_sizes(policy)
    jobs = estimate(planned, throughput, sizes.kept)
    print(report(planned, jobs, throughput, sizes))


if __name__ == "__main__":
    run_command(main)
