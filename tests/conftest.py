"""For all tests."""

import signal

import pytest

SHARED = ("slurm", "workflow")
"""Folders whose tests share a cluster, or a finished workflow."""

# Tests may run in the background of a shell, where SIGINT is ignored, also by every program that they
# start: each would be deaf to the Ctrl-C that is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With pytest-xdist (`--dist loadgroup`), tests that share fixtures run in one process: those of a file,
    or of a whole folder where files share expensive fixtures. Such folders take longest and come first."""
    if hasattr(config, "workerinput"):  # one of its processes
        for item in items:
            folder = item.path.parent
            item.add_marker(pytest.mark.xdist_group(str(folder if folder.name in SHARED else item.path)))
        items.sort(key=lambda item: item.path.parent.name not in SHARED)
