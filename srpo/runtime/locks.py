"""One writer at a time for a run's scratch folder, across the nodes of a cluster.

A job may be started twice: Snakemake was killed while its jobs kept running, and was run again; or the same
run was launched by hand. The lock is a file beside the scratch folder that names its owner: host, process,
Slurm job. It is created by a hard link, which is atomic on NFS too and needs no locking by the file system.

- If the owner is gone (its process ended, its Slurm job no longer runs), the lock is stale and is taken.
- If owner and newcomer are both Slurm jobs, the newcomer takes over, since only its submitter is known to be
  waiting: it cancels the owner's job and resumes from its last checkpoint.
- Otherwise the newcomer is refused with a message that names the owner and what to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from srpo.runtime.peers import is_first_process

TAKE_OVER_SECONDS = 180
"""How long a cancelled job has to end: Slurm's KillWait, and a margin."""
_RUNNING = {
    "RUNNING",
    "COMPLETING",
    "CONFIGURING",
    "STAGE_OUT",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "RESIZING",
}


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. `started` (seconds since 1970) tells a process from a later one of its id."""

    host: str
    pid: int
    started: float
    slurm_job: str | None

    @classmethod
    def of_this_process(cls, environment: Mapping[str, str] = os.environ) -> Owner:
        process = psutil.Process()
        return cls(os.uname().nodename, process.pid, process.create_time(), environment.get("SLURM_JOB_ID"))

    def __str__(self) -> str:
        job = f"Slurm job {self.slurm_job}, " if self.slurm_job else ""
        return f"{job}process {self.pid} on {self.host}"


def is_gone(owner: Owner, me: Owner) -> bool:
    """Whether an owner can no longer write; False in doubt (a process on another host outside Slurm, say)."""
    if owner.host == me.host:
        try:
            return abs(psutil.Process(owner.pid).create_time() - owner.started) > 1
        except psutil.NoSuchProcess:
            return True
    if owner.slurm_job is None:
        return False
    # The same job id on another host is this very job before Slurm requeued it.
    return owner.slurm_job == me.slurm_job or not _is_running(owner.slurm_job)


def _is_running(job: str) -> bool:
    """Whether a job runs according to Slurm; True if Slurm cannot be asked."""
    command = ["squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return True
    if done.returncode != 0:
        return "Invalid job id" not in done.stderr
    return bool(_RUNNING & set(done.stdout.split()))


@contextmanager
def lock_held(scratch: Path) -> Iterator[None]:
    """Hold the lock `<scratch>.lock` within this block. Of several processes only the first does.

    Raises:
        SystemExit: another process holds it and cannot be stopped.
    """
    if not is_first_process():
        yield
        return
    lock = scratch.with_name(f"{scratch.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    me = Owner.of_this_process()
    mine = lock.with_name(f"{lock.name}.{me.host}.{me.pid}")
    try:
        mine.write_text(json.dumps(asdict(me)) + "\n")  # a full disk leaves an empty file
        while not _acquire(lock, mine):
            owner = _read(lock)
            if owner is None:
                continue  # released meanwhile
            if not is_gone(owner, me):
                _take_over(lock, owner, me)
            print(f"{lock}: left behind by {owner}; taken", flush=True)
            _remove(lock, owner)
        mine.unlink()
        yield
    finally:
        _remove(lock, me)
        mine.unlink(missing_ok=True)


def _acquire(lock: Path, mine: Path) -> bool:
    try:
        os.link(mine, lock)
    except FileExistsError:
        return False
    return True


def _read(lock: Path) -> Owner | None:
    try:
        return Owner(**json.loads(lock.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise SystemExit(f"{lock}: is not a lock of this program ({error}); remove it") from None


def _remove(lock: Path, owner: Owner) -> None:
    """Remove an owner's lock, unless another process has taken it meanwhile."""
    aside = lock.with_name(f"{lock.name}.{os.uname().nodename}.{os.getpid()}.old")
    if _read(lock) != owner:
        return
    try:
        lock.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != owner:  # it changed hands between reading and renaming: put it back
        os.link(aside, lock)
    aside.unlink()


def _take_over(lock: Path, owner: Owner, me: Owner) -> None:
    """Cancel the owner's job and wait until it is gone; SystemExit if that is not possible."""
    if not (owner.slurm_job and me.slurm_job) or owner.slurm_job == me.slurm_job:
        raise SystemExit(
            f"{lock}: this run is at work already: {owner}. Wait for it or stop it; if you know that it is "
            "gone, remove the file."
        )
    print(
        f"{lock}: this run is at work in Slurm job {owner.slurm_job}; cancelling that and resuming",
        flush=True,
    )
    # Its output does not matter, only whether the job ends.
    subprocess.run(["scancel", owner.slurm_job], capture_output=True, timeout=60)
    end = time.monotonic() + TAKE_OVER_SECONDS
    while not is_gone(owner, me):
        if time.monotonic() > end:
            raise SystemExit(
                f"{lock}: {owner} did not stop in {TAKE_OVER_SECONDS} s: cancel it, then run again"
            )
        time.sleep(1)
