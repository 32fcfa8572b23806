"""Run locks: one owner at a time, and a dead owner's lock is nobody's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from srpo.runtime import locks
from srpo.runtime.locks import Owner, is_gone, lock_held

HOLD = """
import sys, time, pathlib
from srpo.runtime.locks import lock_held
with lock_held(pathlib.Path(sys.argv[1])):
    {}
"""


def holder(scratch: Path, then: str = "time.sleep(60)") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD.format(then), str(scratch)]
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_JOB_ID"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    scratch = tmp_path / "run"
    first = holder(scratch)
    wait_for(tmp_path / "run.lock")
    second = holder(scratch, "pass")
    output, _ = second.communicate(timeout=30)
    assert second.returncode == 1
    assert f"this run is at work already: process {first.pid} on {os.uname().nodename}" in output
    first.send_signal(signal.SIGKILL)
    first.wait()
    third = holder(scratch, "pass")
    output, _ = third.communicate(timeout=30)
    assert third.returncode == 0
    assert f"left behind by process {first.pid}" in output
    assert list(tmp_path.iterdir()) == []  # nothing is left, neither lock nor temporary files


def test_of_many_at_once_one_is_in(tmp_path: Path) -> None:
    """Each that gets in notes it; had two been in together, a note would have been there already."""
    then = "p = pathlib.Path(sys.argv[1] + '.in'); p.touch(exist_ok=False); time.sleep(0.2); p.unlink()"
    processes = [holder(tmp_path / "run", then) for _ in range(6)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert any(process.returncode == 0 for process in processes)
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0 or "at work already" in output, output


def test_other_processes_of_a_distributed_run_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lock_held(tmp_path / "run"):
        monkeypatch.setenv("RANK", "1")
        with lock_held(tmp_path / "run"):
            pass
        assert (tmp_path / "run.lock").exists()
        monkeypatch.setenv("RANK", "0")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `squeue` that answers from a file, and a `scancel` that empties it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    queue = tmp_path / "queue"
    queue.write_text("")
    (folder / "squeue").write_text(
        f'#!/bin/sh\n[ -s {queue} ] || {{ echo "error: Invalid job id specified" >&2; exit 1; }}\n'
        f"cat {queue}\n"
    )
    (folder / "scancel").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/cancelled\n: > {queue}\n')
    for file in folder.iterdir():
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return queue


def test_who_is_gone(slurm: Path) -> None:
    me = Owner.of_this_process({"SLURM_JOB_ID": "7"})
    assert not is_gone(me, me)
    assert is_gone(replace(me, started=me.started - 100), me)  # the process id is another process's now
    elsewhere = replace(me, host="another")
    assert is_gone(elsewhere, me)  # this very job, before it was requeued
    assert not is_gone(replace(elsewhere, slurm_job=None), me)  # nobody can tell
    other = replace(elsewhere, slurm_job="6")
    for state, gone in (("RUNNING", False), ("COMPLETING", False), ("PENDING", True), ("TIMEOUT", True)):
        slurm.write_text(state)
        assert is_gone(other, me) is gone, state
    slurm.write_text("")
    assert is_gone(other, me)  # Slurm has forgotten it


def test_slurm_out_of_reach_leaves_it_in_doubt(slurm: Path) -> None:
    (slurm.parent / "bin/squeue").write_text(
        '#!/bin/sh\necho "Unable to contact slurm controller" >&2; exit 1\n'
    )
    me = Owner.of_this_process({"SLURM_JOB_ID": "7"})
    assert not is_gone(replace(me, host="another", slurm_job="6"), me)


def test_a_later_job_takes_over(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    owner = replace(Owner.of_this_process(), host="another", slurm_job="6")
    slurm.write_text("RUNNING")
    (tmp_path / "run.lock").write_text(json.dumps(asdict(owner)))
    with lock_held(tmp_path / "run"):
        assert json.loads((tmp_path / "run.lock").read_text())["slurm_job"] == "7"
    assert (tmp_path / "cancelled").read_text() == "6\n"
    assert not (tmp_path / "run.lock").exists()


def test_a_lock_that_changed_hands_is_left(tmp_path: Path) -> None:
    me = Owner.of_this_process({})
    lock = tmp_path / "run.lock"
    lock.write_text(json.dumps(asdict(me)))
    locks._remove(lock, replace(me, pid=1))
    assert locks._read(lock) == me


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """Files may have no bytes here, as on a full disk."""
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    script = full + HOLD.format("pass")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True
    )
    assert done.returncode != 0 and "OSError" in done.stderr
    assert list(tmp_path.iterdir()) == []
