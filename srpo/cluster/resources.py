"""What the workflow's jobs ask for, and where they keep the state from which they resume.

Read by the rules (workflow/rules/), `srpo plan`, `srpo status` and `srpo launch`. Every Slurm job parses the
rules again, so this module imports nothing heavy.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from srpo.config import STYLES, PlusStage
from srpo.libero_plus.tasks import count


class Request(NamedTuple):
    """What a rule's jobs ask for.

    cores    `threads`
    minutes  of the first attempt (`runtime`)
    gpus     of the preset's: none of them, one, or all (a process each)
    """

    cores: int
    minutes: int
    gpus: Literal["none", "one", "all"] = "one"


REQUESTS = {
    "demos": Request(8, 240, "none"),
    "world_model": Request(8, 480),
    "sft": Request(8, 1440),
    "train": Request(16, 1440, "all"),
    "evaluate": Request(8, 480),
    "plus_shard": Request(8, 120),
    "trajectories": Request(8, 480),
    "score": Request(8, 480),
    "values": Request(8, 1440),
}
"""By rule. `set-threads` and `set-resources` in slurm/config.yaml change them for a site."""
SFT_CPU_CORES = 2
"""Cores of SFT without a GPU. Few and fixed: the last bits of sums depend on the number of threads, and the
success of a policy whose fine-tuning stops early depends on those."""
GROUPS = {
    "evaluate": "evaluate_{suite}_{any_variant}",
    "plus_shard": "plus_{suite}_{any_variant}_{seed}",
}
"""By rule, Snakemake's `group`: its jobs may share a submission to Slurm. `group-components` in
slurm/config.yaml says how many do."""
MOST_MINUTES = 2 * 24 * 60
"""The longest time limit that is asked for where the profile names none: many clusters allow no more."""


def cores(rule: str, gpus: int) -> int:
    """Cores of a rule's jobs in a preset with so many GPUs a job."""
    return SFT_CPU_CORES if rule == "sft" and not gpus else REQUESTS[rule].cores


def gpus_of(rule: str, gpus: int) -> int:
    """GPUs of a rule's jobs in a preset with so many GPUs a job."""
    return {"none": 0, "one": min(1, gpus), "all": gpus}[REQUESTS[rule].gpus]


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
    """Memory of a job: 2 GB a simulator, and the policy's share; up to twice as much after failures."""
    first = 4000 + 2000 * simulators(cores, gpus) + (64000 if gpus else 0)
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
