"""Benchmarks that simulate run; what they find is for them to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.integration
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_identity_compares_states_flags_and_pixels(tmp_path: Path) -> None:
    result = run("identity.py", "--quick", "--out", str(tmp_path / "identity.csv"))
    assert result.returncode == 0, result.stdout + result.stderr
    table = pd.read_csv(tmp_path / "identity.csv")
    assert table["actions"].tolist() == ["random", "expert"]
    assert (table["steps"] > 0).all() and (table["pictures"] > 0).all()
    assert not table.filter(like="differing").to_numpy().any()


def test_a_steps_parts_are_all_there(tmp_path: Path) -> None:
    result = run("step.py", "--episodes", "6", "--out", str(tmp_path / "step.csv"))
    assert result.returncode == 0, result.stdout + result.stderr
    table = pd.read_csv(tmp_path / "step.csv")
    parts = {"simulate", "render", "policy", "other", "encode", "reward", "update"}
    assert set(table["part"]) == parts and (table["seconds"] > 0).all()
    assert table["share"].sum() == pytest.approx(1)
