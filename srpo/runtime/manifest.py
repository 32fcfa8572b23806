"""Where a result comes from: code revision, package versions, machine, settings, hashes of inputs."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from srpo.runtime.files import SNAKEMAKES, write_json


def _git_revision() -> str | None:
    """The checkout's revision, with `-dirty` for uncommitted changes; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name; on x86 with family and model, for several generations may have one name."""
    try:
        first = cpuinfo.read_text().split("\n\n")[0]
    except OSError:
        return platform.processor()
    facts = dict(re.findall(r"^(.+?)[ \t]*: (.*)$", first, re.MULTILINE))
    name = facts.get("model name", platform.processor())
    if not {"cpu family", "model"} <= facts.keys():
        return name
    return f"{name} (family {facts['cpu family']}, model {facts['model']})"


@functools.cache
def _renderer(backend: str | None) -> str | None:
    """What renders with a back end of OpenGL, and its version; None without one, or if it does not render.

    A process of its own tells: only the simulators' processes have OpenGL, and on this process's GPU.
    """
    if backend is None:
        return None
    command = [sys.executable, "-m", "srpo.envs"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition(": ")[2]


def sha256(path: Path) -> str:
    """The hash of a file, or of a folder's files with their names, without those that Snakemake adds."""
    digest = hashlib.sha256()
    files = (p for p in path.rglob("*") if p.is_file() and p.name != SNAKEMAKES)
    for file in [path] if path.is_file() else sorted(files):
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def fingerprint(*parts: str) -> str:
    """One hash of everything that decides a run (settings, hashes of its inputs)."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def write_manifest(path: Path, config: BaseModel, **facts: Any) -> None:
    """Write `manifest.json`: settings, versions of every installed package, host, GPU, OpenGL back end and
    renderer, time.

    Args:
        facts: further entries, for instance hashes of the inputs.
    """
    gpus: list[str] = []
    try:
        import torch

        gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    except ImportError:
        pass
    write_json(
        path,
        {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "git_revision": _git_revision(),
            "config": config.model_dump(mode="json"),
            "packages": dict(sorted((d.metadata["Name"], d.version) for d in metadata.distributions())),
            "python": platform.python_version(),
            "system": platform.platform(),
            "host": platform.node(),
            "processor": processor(),
            "blas_kernels": os.environ.get("OPENBLAS_CORETYPE"),
            "cores": os.cpu_count(),
            "gpus": gpus,
            "gl_backend": os.environ.get("MUJOCO_GL"),
            "gl_renderer": _renderer(os.environ.get("MUJOCO_GL")),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            **facts,
        },
    )
