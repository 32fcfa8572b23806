"""The scripts in benchmarks/ run; how fast is for them to say, not for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "reward.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_reward_writes_a_row_a_setting(tmp_path: Path) -> None:
    small = ["--batch", "32", "--dimension", "6", "--tasks", "2", "--repeats", "2"]
    result = run(*small, "--limit", "1e9", "--out", str(tmp_path / "reward.csv"))
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "reward.csv")
    assert table["references"].tolist() == [
        "mean",
        "medoid",
        "dbscan",
        "dbscan, relative",
        "dbscan, relative, by group",
        "fixed expert",
    ]
    assert (table["median_ms"] <= table["longest_ms"]).all() and (table["longest_ms"] > 0).all()
    slow = run(*small, "--limit", "0")
    assert slow.returncode == 1 and "6 of 6 medians are above 0 ms" in slow.stderr
