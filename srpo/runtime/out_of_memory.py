"""Say whether a job that failed was out of memory, from the counters of its control group (Linux).

python -m srpo.runtime.out_of_memory    prints a line, or nothing; the rules' shell calls it after a failure
                                        in whose time the kernel killed a process

The kernel kills a process of the group that has reached its limit, and that process cannot say so itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

OWN, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class Names(NamedTuple):
    """Files of a control group, in version 1 or 2 of them."""

    kills: str
    limit: str
    used: str


V1 = Names("memory.oom_control", "memory.limit_in_bytes", "memory.max_usage_in_bytes")
V2 = Names("memory.events", "memory.max", "memory.peak")
NO_LIMIT = 1 << 60
"""Bytes. Version 1 writes about 2 to the power of 63 for none."""


def explain(own: Path = OWN, root: Path = ROOT) -> str | None:
    """A line with what the job asked for and used, in MB; None unless something of it was killed for memory.

    Args:
        own: the list of this process's control groups.
        root: where control groups are mounted.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    groups = [(root / "memory", path, V1) for _, kinds, path in lines if "memory" in kinds.split(",")]
    groups += [(root, path, V2) for _, kinds, path in lines if not kinds]
    for mounted, path, names in groups:
        group = mounted / path.strip("/")
        counts = dict(line.split() for line in _read(group / names.kills).splitlines())
        if int(counts.get("oom_kill", 0)):
            while not (limit := _bytes(group / names.limit)) and group != mounted:
                group = group.parent
            used = _bytes(group / names.used)
            return (
                "out of memory: the kernel killed a process of this job, which asked for "
                f"{_megabytes(limit)} (mem_mb) and used up to {_megabytes(used)}"
            )
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _bytes(file: Path) -> int | None:
    text = _read(file).strip()
    return int(text) if text.isdigit() and int(text) < NO_LIMIT else None


def _megabytes(number: int | None) -> str:
    return "an unknown number of MB" if number is None else f"{number / 1e6:,.0f} MB"


if __name__ == "__main__":
    if line := explain():
        print(line)
