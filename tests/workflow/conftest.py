"""One finished copy of the workflow for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.workflow import copy_workflow, in_copy


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workflow with a finished example preset, whose stages were stood in for.

    In a folder whose name a shell would take apart.
    """
    copy = tmp_path_factory.mktemp("copy") / "a user's copy"
    copy_workflow(copy, "stage_stand_in.py")
    in_copy(copy, "--cores", "2")
    return copy


@pytest.fixture(scope="session")
def report(finished: Path) -> Path:
    """The report of that preset."""
    in_copy(finished, "--report", "report.html")
    return finished / "report.html"
