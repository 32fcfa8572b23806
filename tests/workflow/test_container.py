"""Jobs under `--sdm apptainer`, with stand-ins for Apptainer and for the container's Python."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from srpo import ROOT
from support.workflow import in_copy

APPTAINER = """#!{python}
import os, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("apptainer version 1.4.0"))
image = next(word for word in sys.argv if word.endswith(".sif"))
shell, _, command = sys.argv[sys.argv.index(image) + 1 :]
with open({calls!r}, "a") as calls:
    print(image, file=calls)
os.execve("/bin/" + shell, [shell, "-c", command], {{"PATH": {programs!r} + ":/usr/bin:/bin"}})
"""
PYTHON = """#!/bin/sh
# python -m srpo demos ... --out FOLDER ...
echo "$PYTHONPATH $*" > {seen}
while [ "$1" != --out ]; do shift; done
mkdir -p "$2"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the workflow whose jobs run their real commands."""
    for name in ("configs", "workflow", "profiles", "slurm", "srpo"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml", "tests/example.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_jobs_run_in_the_container(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's Python, and not the one that runs Snakemake, runs the clone's code."""
    inside, outside, seen, calls = (clone / name for name in ("inside", "outside", "seen", "calls"))
    stand_in = APPTAINER.format(python=sys.executable, calls=str(calls), programs=str(inside))
    for program, text in (
        (outside / "apptainer", stand_in),
        (inside / "python", PYTHON.format(seen=seen)),
    ):
        program.parent.mkdir()
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{outside}:/usr/bin:/bin")
    in_copy(clone, "--sdm", "apptainer", "--cores", "1", "results/example/demos/libero_goal/data")
    path, *command = seen.read_text().split()
    assert path == str(clone)
    assert command[:3] == ["-m", "srpo", "demos"]
    assert set(calls.read_text().split()) == {str(clone / "srpo.sif")}
