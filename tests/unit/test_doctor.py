"""The node's check: each finding can be bad, and then says what to do."""

from __future__ import annotations

import ctypes.util
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from srpo.cluster import doctor


def test_this_machine_can_do_the_work(tmp_path: Path) -> None:
    """As the command line: no check that counts fails where these tests run."""
    command = [sys.executable, "-m", "srpo", "doctor", "--scratch", str(tmp_path / "scratch")]
    environment = {
        **os.environ,
        "PATH": str(Path(sys.executable).parent),
        "SRPO_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert not any(line.startswith("failed") for line in lines)
    for what in ("ok       MuJoCo 3.", "ok       MUJOCO_GL="):
        assert any(line.startswith(what) for line in lines), what
    assert any(f"{tmp_path / 'scratch'}: " in line for line in lines)  # ok, or a warning: a full disk
    assert "warning  no Slurm here (sbatch)" in lines


def test_another_mujoco_is_another_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "3.4.0")
    finding = doctor.mujoco()
    assert finding.level == "failed"
    assert "3.4.0" in finding.what and "pip install mujoco==3.3.7" in finding.fix


def test_a_missing_opengl_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    finding = doctor.opengl()
    assert finding.level == "failed"
    assert "apt-get install libegl1" in finding.what


@pytest.mark.parametrize(
    ("backend", "renderer", "level"),
    [
        ("egl", "llvmpipe (LLVM 15.0.6, 256 bits), 4.5 Mesa 22.3.6", "failed"),
        ("egl", "NVIDIA H200/PCIe/SSE2, 4.6.0 NVIDIA 570.86", "ok"),
        ("osmesa", "llvmpipe (LLVM 15.0.6, 256 bits), 4.5 Mesa 22.3.6", "ok"),
    ],
)
def test_egl_in_software_is_no_gpu(
    backend: str, renderer: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.setattr(doctor, "probe", lambda: f"MUJOCO_GL={backend}: {renderer}")
    assert doctor.opengl().level == level


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert doctor.space(file).level == "failed"


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    finding = doctor.limits()
    assert (finding.level, finding.fix) == ("warning", "ulimit -n 1024")


SCONTROL = """#!/bin/sh
[ "$1" = ping ] && {{ echo "Slurmctld(primary) at head is {state}"; exit 0; }}
echo "AccountingStorageType   = accounting_storage/{accounting}"
echo "MinJobAge               = {age} sec"
"""


@pytest.mark.parametrize(
    ("state", "accounting", "age", "level", "said"),
    [
        ("DOWN", "none", 300, "failed", "does not answer"),
        ("UP", "none", 300, "ok", "slurm-status-command: squeue"),
        ("UP", "slurmdbd", 60, "ok", "after 60 s: set slurm-status-command: sacct"),
        ("UP", "none", 60, "warning", "forgets finished jobs after 60 s"),
    ],
)
def test_slurm(
    state: str,
    accounting: str,
    age: int,
    level: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("sbatch", "scontrol"):
        (tmp_path / name).write_text(SCONTROL.format(state=state, accounting=accounting, age=age))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    finding = doctor.slurm()
    assert finding.level == level and said in finding.what
