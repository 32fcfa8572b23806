"""What Slurm knows of jobs: which wait and run (`squeue`), and what each has used (`sacct`)."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

LOOK_TIMEOUT = 30
"""Seconds that those who look again and again wait for an answer."""


class Use(NamedTuple):
    """What one start of a Slurm job held.

    state    Slurm's word: `COMPLETED`, `TIMEOUT`, `RUNNING`, …
    seconds  between its start and its end, or now
    """

    state: str
    seconds: float
    cores: int
    gpus: int


class Queued(NamedTuple):
    """A job in the queue: Slurm's words for its state, and why it waits."""

    state: str
    reason: str


def uses(jobs: Iterable[str]) -> Mapping[str, Sequence[Use]]:
    """Every start of some jobs, by their numbers: several where Slurm itself started a job again.

    Empty where there is no accounting, or it does not answer.
    """
    numbers = sorted(set(jobs), key=int)
    if not numbers:
        return {}
    columns = "--format=JobIDRaw,State,ElapsedRaw,AllocTRES"
    options = ["--allocations", "--duplicates", "--noheader", "--parsable2", columns]
    return parse_uses(ask("sacct", *options, "--jobs", ",".join(numbers), timeout=LOOK_TIMEOUT))


def parse_uses(text: str) -> Mapping[str, Sequence[Use]]:
    """What `sacct` prints: lines `number|state|seconds|cpu=4,gres/gpu=1,…`, a job's starts in their order."""
    found: dict[str, list[Use]] = defaultdict(list)
    for line in text.splitlines():
        number, state, seconds, held = (*line.split("|"), "", "", "")[:4]
        if not (state and seconds.isdecimal()):
            continue
        tres = dict(item.partition("=")[::2] for item in held.split(","))
        gpus = tres.get("gres/gpu")
        typed = sum(int(count) for name, count in tres.items() if name.startswith("gres/gpu:"))
        use = Use(state.split()[0], float(seconds), int(tres.get("cpu", 0)), int(gpus) if gpus else typed)
        found[number].append(use)
    return found


def queue() -> Mapping[str, Queued]:
    """This user's jobs that wait or run, by their numbers. Empty where there is no Slurm."""
    lines = ask("squeue", "--me", "--noheader", "--format=%i|%T|%r", timeout=LOOK_TIMEOUT).splitlines()
    return {
        number: Queued(state, reason)
        for number, state, reason in (line.split("|", 2) for line in lines if line.count("|") >= 2)
    }


def ask(*command: str, timeout: float = 60) -> str:
    """What a Slurm command prints; '' where there is none, it fails, or takes longer (seconds)."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
