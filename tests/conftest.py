"""For all tests."""

import signal
from pathlib import PurePosixPath
from typing import Any

import pytest

import srpo  # noqa: F401 (before NumPy: it says which kernels that takes)

SHARED = ("slurm", "workflow")
"""Folders whose tests share a cluster, or a finished workflow."""

# Tests may run in the background of a shell, where SIGINT is ignored, also by every program that they
# start: each would be deaf to the Ctrl-C that is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In pytest-xdist's processes, the tests that take longest come first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.parent.name not in SHARED)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under pytest-xdist, tests that share fixtures run in one process: those of a file or of a folder."""
    from xdist.scheduler import LoadScopeScheduling

    class TogetherAsTheyShare(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = PurePosixPath(nodeid.split("::")[0])
            return str(file.parent if file.parent.name in SHARED else file)

    return TogetherAsTheyShare(config, log)
