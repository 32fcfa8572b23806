"""What a control group's counters say of a job that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from srpo.runtime.out_of_memory import explain

JOB = "slurm/uid_0/job_5/step_0"
SAID = (
    "out of memory: the kernel killed a process of this job, which asked for 2,000 MB (mem_mb) and used up "
    "to 1,999 MB"
)


def control_groups(folder: Path, version: int, kills: int) -> tuple[Path, Path]:
    """The list of a task's groups, and where they are mounted. Its step's has the limit."""
    own, root = folder / "cgroup", folder / "mounted"
    own.write_text(f"9:cpu:/\n4:memory:/{JOB}/task_0\n" if version == 1 else f"0::/{JOB}/task_0\n")
    step = (root / "memory" if version == 1 else root) / JOB
    (step / "task_0").mkdir(parents=True)
    names = {
        1: ("memory.oom_control", "memory.limit_in_bytes", "memory.max_usage_in_bytes", str(2**63 - 4096)),
        2: ("memory.events", "memory.max", "memory.peak", "max"),
    }
    events, limit, peak, none = names[version]
    (step / "task_0" / events).write_text(f"oom 3\noom_kill {kills}\n")
    (step / "task_0" / limit).write_text(f"{none}\n")
    (step / "task_0" / peak).write_text("5\n")
    (step / limit).write_text("2000000000\n")
    (step / peak).write_text("1999000000\n")
    return own, root


@pytest.mark.parametrize("version", [1, 2])
def test_a_killed_process_is_told_with_the_jobs_limit(tmp_path: Path, version: int) -> None:
    assert explain(*control_groups(tmp_path, version, kills=1)) == SAID


@pytest.mark.parametrize("version", [1, 2])
def test_without_a_kill_there_is_nothing_to_tell(tmp_path: Path, version: int) -> None:
    assert explain(*control_groups(tmp_path, version, kills=0)) is None
    assert explain(tmp_path / "missing", tmp_path) is None
