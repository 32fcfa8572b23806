"""Self-Referential Policy Optimization (SRPO, arXiv 2511.15605) for vision-language-action policies."""

import os
from pathlib import Path

__version__ = "0.1.0"
ROOT: Path = Path(__file__).resolve().parents[1]
"""The folder of this repository."""


def _fix_kernels() -> None:
    """Let OpenBLAS take the same kernels on every x86 processor that has AVX2.

    Otherwise it takes those of the processor, and a simulation's last bits follow: of 384 episodes, seven
    ended a fraction of a millimetre elsewhere with AVX-512. It reads the variable when NumPy is loaded, so
    this must come first.
    """
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as lines:
            first = lines.read(8192)  # of the first core
    except OSError:  # not Linux
        return
    if "avx2" in first.split():
        os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")


_fix_kernels()
