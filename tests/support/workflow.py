"""Running Snakemake on this workflow, or on a copy of it whose stages are stood in for."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from srpo import ROOT

SUPPORT = ROOT / "tests/support"
SNAKEMAKE = Path(sys.executable).with_name("snakemake")


def snakemake(where: Path, *arguments: str, snakefile: Path = ROOT / "Snakefile") -> str:
    """Run Snakemake in a folder and return all it prints; AssertionError when it fails."""
    done = run(where, *arguments, snakefile=snakefile)
    assert done.returncode == 0, done.stdout
    return done.stdout


def run(where: Path, *arguments: str, snakefile: Path) -> subprocess.CompletedProcess[str]:
    command = [str(SNAKEMAKE), "--snakefile", str(snakefile), "--directory", str(where), *arguments]
    paths = [str(snakefile.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def seconds() -> float:
    """CPU time of the commands run so far: unlike the clock's, it does not depend on the machine's load."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def job_counts(output: str) -> dict[str, int]:
    """The last table `job  count` that Snakemake printed; empty where there is nothing to do."""
    table = output.rpartition("Job stats:")[2].split("\n\n")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def copy_workflow(folder: Path, stand_in: str) -> None:
    """Copy the workflow. Its jobs run a script of this folder in place of their commands."""
    for name in ("configs", "workflow", "profiles", "slurm", "srpo"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml", "tests/example.yaml"):
        shutil.copy(ROOT / name, folder)
    with (folder / "workflow/shell.sh").open("a") as prelude:
        prelude.write(f'\nlogged() {{ "{sys.executable}" "{SUPPORT / stand_in}" "$@"; }}\n')


def in_copy(copy: Path, *arguments: str) -> str:
    """Run Snakemake with the example preset in a copy of the workflow."""
    return snakemake(copy, "--configfile", "example.yaml", *arguments, snakefile=copy / "Snakefile")


def dry_run(copy: Path, *arguments: str) -> str:
    return in_copy(copy, "--dry-run", *arguments)
