"""For all tests."""

import signal
from pathlib import Path
from typing import Any

import pytest

SHARED = ("slurm", "workflow")
"""Folders whose tests share a cluster, or a finished workflow."""

# Tests may run in the background of a shell, where SIGINT is ignored, also by every program that they
# start: each would be deaf to the Ctrl-C that is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


def shared_by(file: Path) -> Path:
    """The file or folder whose tests share fixtures."""
    return file.parent if file.parent.name in SHARED else file


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share fixtures run in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return str(shared_by(Path(nodeid.partition("::")[0])))

    return Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folders take longest and come first."""
    items.sort(key=lambda item: shared_by(item.path) == item.path)
