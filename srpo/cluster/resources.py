"""What the workflow's jobs ask for, and where they keep the state from which they resume.

Read by the rules (workflow/rules/), `srpo plan`, `srpo status` and `srpo launch`. Every Slurm job parses the
rules again, so this module imports nothing heavy.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from srpo.config import STYLES, ConfigError, Layout, Parallel, PlusStage
from srpo.libero_plus.tasks import count


class Request(NamedTuple):
    """What a rule's jobs ask for.

    cores      of a process: `threads` is as many for each GPU of a node, or as many for a node without
    minutes    of the first attempt (`runtime`)
    layout     the entry of the preset's `parallel`; None: one process, on a GPU if the preset has any
    simulates  whether its processes simulate, each on its share of the cores
    """

    cores: int
    minutes: int
    layout: Literal["sft", "train", "evaluate"] | None = None
    simulates: bool = True


REQUESTS = {
    "demos": Request(8, 240),
    "world_model": Request(8, 480),
    "sft": Request(8, 1440, "sft", simulates=False),
    "train": Request(12, 1440, "train"),
    "evaluate": Request(8, 480, "evaluate"),
    "plus_shard": Request(8, 120, "evaluate"),
    "trajectories": Request(8, 480, "evaluate"),
    "score": Request(8, 480, simulates=False),
    "values": Request(8, 1440, "evaluate"),
}
"""By rule. `set-threads` and `set-resources` in slurm/config.yaml change them for a site."""
LEAST_CORES = 4
"""Cores of a process that acts on a GPU, at least, for eight simulators: batches of 8 queries kept a GPU busy
four fifths of the time (docs/performance.md)."""
CPU_CORES = {"demos": 1, "sft": 1, "world_model": 1}
"""Cores of each process without a GPU (demonstrations: in a preset without), so that on two cores the world
model's pretraining has room beside the others. Fixed for networks: the last bits of sums depend on the number
of threads, and the success of a policy whose fine-tuning stops early on those. `make demo`, where nothing
else could run, gives SFT two."""
GROUPS = {
    "evaluate": "evaluate_{suite}_{any_variant}",
    "plus_shard": "plus_{suite}_{any_variant}_{seed}",
}
"""By rule, Snakemake's `group`: its jobs may share a submission to Slurm. `group-components` in
slurm/config.yaml says how many do."""
MOST_MINUTES = 2 * 24 * 60
"""The longest time limit that is asked for where the profile names none: many clusters allow no more."""


def layout_of(rule: str, parallel: Parallel) -> Layout:
    """The processes of a rule's jobs."""
    entry = REQUESTS[rule].layout
    if entry is not None:
        layout: Layout = getattr(parallel, entry)
        return layout
    return Layout(gpus=int(parallel.on_gpus and rule != "demos"))


def cores(rule: str, parallel: Parallel) -> int:
    """Cores of a rule's jobs on each node."""
    layout, cores = layout_of(rule, parallel), REQUESTS[rule].cores
    if rule in CPU_CORES and not layout.gpus and not (rule == "demos" and parallel.on_gpus):
        return CPU_CORES[rule] * layout.per_node
    return cores * max(1, layout.gpus)


def cores_of(rule: str, parallel: Parallel) -> int:
    """Cores of a rule's jobs, on all nodes."""
    return layout_of(rule, parallel).nodes * cores(rule, parallel)


def gpus_of(rule: str, parallel: Parallel) -> int:
    """GPUs of a rule's jobs, on all nodes."""
    layout = layout_of(rule, parallel)
    return layout.nodes * layout.gpus


def require_cores(rule: str, layout: Layout, cores: int, where: str) -> None:
    """Raise ConfigError if a node's cores are too few for the simulators of its GPUs.

    Args:
        where: what says how many cores there are, e.g. `set-threads`.
    """
    share = cores // layout.per_node
    if REQUESTS[rule].simulates and layout.gpus > 1 and share < LEAST_CORES:
        raise ConfigError(
            f"{where}: {rule}: {cores} cores for {layout.gpus} GPUs leave each {share}, with "
            f"{simulators(share, layout.gpus)} simulators, which keep it waiting: give each {LEAST_CORES}, "
            f"{LEAST_CORES * layout.gpus} in all, or set fewer GPUs (parallel.{REQUESTS[rule].layout}.gpus)"
        )


def minutes(rule: str, attempt: int, most: int | None = None, members: int = 1) -> int:
    """Time limit of a job: longer after each failed attempt.

    Args:
        most: the longest limit of a submission (default: two days, or the first attempt's).
        members: how many jobs may share a submission, one after the other: its limit is their sum.
    """
    first = REQUESTS[rule].minutes
    most = most or max(first, MOST_MINUTES)
    return max(1, min(first * attempt, most // members))


def memory_mb(cores: int, gpus: int, attempt: int) -> int:
    """Memory of a job on each node: 2 GB a simulator, and the policy's share; up to twice after failures.

    That share is 64 GB with a GPU and 20 GB with each further one, 1.3 times a 7B policy in bfloat16.
    """
    policy = 64000 + 20000 * (gpus - 1) if gpus else 0
    first = 4000 + 2000 * simulators(cores, gpus) + policy
    return min(2 * first, first * (attempt + 1) // 2)


def simulators(cores: int, gpus: int) -> int:
    """Simulators for so many cores: one each, or two each where the policy acts on a GPU.

    There a simulator mostly waits for the policy, and more simulators make larger batches.
    """
    return cores * (2 if gpus else 1)


def scratch_path(output: str) -> str:
    """Where a job keeps the state from which it resumes.

    `results/<preset>/…/evaluation/episodes.parquet` → `scratch/<preset>/…/evaluation/episodes`: outside the
    outputs, which Snakemake deletes when a job fails.

    Args:
        output: the first output of the job's rule, below `results/`.
    """
    return str(PurePosixPath("scratch", *PurePosixPath(output).parts[1:]).with_suffix(""))


def sweep_size(stage: PlusStage) -> int:
    """Episodes of a LIBERO-Plus sweep, our own styles included: known without LIBERO-Plus's task list."""
    plus = stage.plus
    return count(stage.suite, stage.tasks, plus.dimensions, plus.per_dimension) + len(STYLES) * plus.styles
