"""Check in seconds whether a node can run this project: a line a check, and how to fix what fails.

srpo doctor [--scratch FOLDER] [--protocol]

Run it where jobs run (`srun --gpus 1 srpo doctor`): a head node often has other drivers. `--protocol` takes a
minute more: it runs eight tasks and compares pictures, states and conventions with those of the official
stacks.
The exit code is 1 when a check failed; warnings do not count.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from srpo import ROOT
from srpo.envs.gl import MissingGLError, choose_backend, is_software, probe
from srpo.envs.installation import OFFICIAL, PACKAGE, LiberoError, require_package
from srpo.errors import run_command

FREE_GB = 20
"""For one step's episodes with the paper's settings (docs/hpc.md), and a margin."""
OPEN_FILES = 1024
"""For the pipes of a hundred simulators, the shards of a 7B checkpoint, and a margin."""


@dataclass(frozen=True)
class Finding:
    """The result of a check: `ok`, `warning` or `failed`; what was seen; what to do."""

    level: str
    what: str
    fix: str = ""


def opengl() -> Finding:
    """OpenGL renders, and EGL on a GPU: one picture is drawn."""
    try:
        drew = probe()
    except MissingGLError as error:
        return Finding("failed", str(error), "see docs/performance.md, OpenGL")
    if choose_backend() == "egl" and is_software(drew):
        fix = "install NVIDIA's OpenGL libraries (libEGL_nvidia), or MUJOCO_GL=osmesa"
        return Finding("failed", f"{drew}: EGL renders in software, not on a GPU", fix)
    return Finding("ok", drew)


def mujoco() -> Finding:
    """MuJoCo's version is part of the evaluation protocol: another one is another benchmark."""
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = next(pin.split("==")[1].split()[0] for pin in pins if pin.startswith("mujoco=="))
    installed = metadata.version("mujoco")
    if installed == pinned:
        return Finding("ok", f"MuJoCo {installed}")
    fix = f"pip install mujoco=={pinned}; docs/libraries.md says what other versions change"
    return Finding("failed", f"MuJoCo {installed}, and results are made with {pinned}", fix)


def libero() -> Finding:
    """The package `libero` and its files are LIBERO's; LIBERO-plus, for one, has the same name."""
    try:
        require_package()  # before anything of it is imported
        from srpo.envs.libero import libero_record

        records = [libero_record(suite) for suite in OFFICIAL]
    except LiberoError as error:
        what, _, fix = str(error).partition(". ")
        return Finding("failed", what, fix)
    tasks = sum(record["tasks"] for record in records)
    return Finding("ok", f"{PACKAGE} {records[0]['version']}, {tasks} tasks with LIBERO's own files")


def certificate() -> Iterator[Finding]:
    """Pictures, states and conventions are those that released checkpoints were trained and tested with."""
    from srpo.envs.certificate import digest, known, measure, verdicts

    good = known()
    measured = {task: measure(*task, good[task].settled) for task in good}
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("mujoco", "robosuite", PACKAGE))
    yield Finding("ok", f"protocol certificate {digest(measured)}: {versions}, {choose_backend()}")
    fix = "results of released checkpoints do not count here: docs/performance.md, Render modes"
    for verdict in verdicts(measured, good):
        yield Finding("ok" if verdict.same else "failed", verdict.what, fix)


def gpu() -> Finding:
    """PyTorch can use the GPU that the driver shows."""
    import torch

    if torch.cuda.is_available():
        names = [
            f"{each.name} ({each.total_memory / 2**30:.0f} GiB)"
            for each in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ]
        return Finding("ok", f"{len(names)} GPU: {', '.join(names)}")
    if Path("/dev/nvidiactl").exists():
        if torch.version.cuda is None:
            return Finding(
                "failed",
                f"there is an NVIDIA device, but PyTorch {torch.__version__} is the CPU build",
                "rm -rf .venv, then make TORCH=cuda .venv/installed",
            )
        return Finding(
            "failed",
            f"there is an NVIDIA device, but PyTorch {torch.__version__} cannot use it",
            "ask Slurm for one (--gpus 1); compare `nvidia-smi`'s CUDA version with PyTorch's",
        )
    return Finding("warning", "no GPU: enough for the presets smoke and mini", "Slurm: --gpus 1")


def space(folder: Path) -> Finding:
    """The folder can be written, supports hard links, and has room for resumable state."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            os.link(file.name, f"{file.name}.link")
            Path(f"{file.name}.link").unlink()
    except OSError as error:
        return Finding(
            "failed", f"{folder}: {error}", "choose a folder that can be written and supports hard links"
        )
    free = shutil.disk_usage(folder).free / 1e9
    if free < FREE_GB:
        return Finding("warning", f"{folder}: {free:.0f} GB free", f"{FREE_GB} GB for the paper's settings")
    return Finding("ok", f"{folder}: {free:.0f} GB free")


def limits() -> Finding:
    """Enough files can be open at once."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < OPEN_FILES:
        return Finding("warning", f"{files} open files at most", f"ulimit -n {OPEN_FILES}")
    return Finding("ok", f"{files} open files at most")


def cores() -> Finding:
    """The cores that this process may use: a good value for --workers."""
    return Finding("ok", f"{len(os.sched_getaffinity(0))} cores to use, of {os.cpu_count()}")


def slurm() -> Finding:
    """Slurm's commands are there and its controller answers."""
    if shutil.which("sbatch") is None:
        return Finding(
            "warning", "no Slurm here (sbatch)", "needed for --profile slurm, on the head node only"
        )
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=15)
    except subprocess.TimeoutExpired:
        return Finding(
            "failed", "Slurm's controller does not answer", "try later; then ask its administrators"
        )
    if " is UP" not in ping.stdout:
        answer = (ping.stdout + ping.stderr).strip().partition("\n")[0]
        return Finding("failed", f"Slurm's controller does not answer: {answer}", "scontrol ping")
    settings = subprocess.run(
        ["scontrol", "show", "config"], capture_output=True, text=True, timeout=15
    ).stdout
    accounting = "accounting_storage/none" not in settings
    age = re.search(r"^MinJobAge\s*=\s*(\d+)", settings, re.MULTILINE)
    if age and int(age[1]) < 200 and not accounting:
        return Finding(
            "warning",
            f"squeue forgets finished jobs after {age[1]} s, and there is no accounting",
            "ask for MinJobAge=300: Snakemake looks at jobs every three minutes",
        )
    advice = "slurm-status-command: sacct will do" if accounting else "slurm-status-command: squeue"
    if age and int(age[1]) < 200:
        advice = f"squeue forgets finished jobs after {age[1]} s: set slurm-status-command: sacct"
    return Finding("ok", f"Slurm answers {'with' if accounting else 'without'} accounting ({advice})")


def examine(scratch: Path, protocol: bool = False) -> Iterator[Finding]:
    """All checks, the quick ones first; `protocol`: also the certificate."""
    choose_backend()  # before MuJoCo is imported
    from srpo.envs.models import cache_folder

    checks: list[Callable[[], Finding]] = [mujoco, cores, limits, slurm]
    checks += [lambda: space(scratch), lambda: space(cache_folder()), libero, opengl, gpu]
    for check in checks:
        yield check()
    if protocol:
        yield from certificate()


def main() -> None:
    parser = argparse.ArgumentParser(prog="srpo doctor", description="Check whether this node can run srpo.")
    parser.add_argument(
        "--scratch", type=Path, default=Path("scratch"), help="folder for resumable state (default: scratch)"
    )
    parser.add_argument(
        "--protocol",
        action="store_true",
        help="compare pictures, states and conventions with those of the official stacks",
    )
    arguments = parser.parse_args()
    failed = False
    for finding in examine(arguments.scratch, arguments.protocol):
        print(f"{finding.level:8} {finding.what}", flush=True)
        if finding.fix and finding.level != "ok":
            print(f"{'':8} → {finding.fix}", flush=True)
        failed |= finding.level == "failed"
    sys.exit(int(failed))


if __name__ == "__main__":
    run_command(main)
