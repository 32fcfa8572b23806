"""The scripts in benchmarks/ run; how fast is for them to say, not for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from srpo import ROOT
from srpo.results.rows import read_episodes
from support.synthetic_results import rl_run


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_reward_writes_a_row_a_setting(tmp_path: Path) -> None:
    small = ["--batch", "32", "--dimension", "6", "--tasks", "2", "--repeats", "2"]
    result = run("reward.py", *small, "--limit", "1e9", "--out", str(tmp_path / "reward.csv"))
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "reward.csv")
    assert table["references"].tolist() == [
        "mean",
        "medoid",
        "nearest",
        "dbscan",
        "dbscan, relative",
        "dbscan, relative, by group",
        "fixed expert",
    ]
    assert (table["median_ms"] <= table["longest_ms"]).all() and (table["longest_ms"] > 0).all()
    slow = run("reward.py", *small, "--limit", "0")
    assert slow.returncode == 1 and "7 of 7 medians are above 0 ms" in slow.stderr


def test_policy_writes_a_row_a_batch(tmp_path: Path) -> None:
    tiny = ["--quick", "--policy", str(ROOT / "configs/policies/tiny.yaml")]
    result = run("policy.py", *tiny, "--out", str(tmp_path / "policy.csv"))
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "policy.csv")
    assert table["what"].tolist() == ["product", *["prepare", "act"] * 3, "update"]
    assert table["batch"].tolist() == [1, 1, 1, 16, 16, 64, 64, 8]
    counted = table["what"].isin(["act", "update"])
    assert (table["seconds"] > 0).all() and table["estimate_gib"].notna().tolist() == counted.tolist()
    shares = table["share_of_peak"]
    assert shares[0] == 1 and (shares[counted] > 0).all() and shares[table["what"] == "prepare"].isna().all()
    acting = table[table["what"] == "act"]
    assert acting["estimate_gib"].is_monotonic_increasing and acting["ratio_to_one"].iloc[0] == 1


def test_sequential_writes_a_row_a_case(tmp_path: Path) -> None:
    results = ROOT / "results/reference/smoke"
    rows = ["--results", str(results), "--repeats", "20"]
    result = run("sequential.py", *rows, "--out", str(tmp_path / "sequential.csv"))
    assert result.returncode == 0, result.stderr
    episodes = read_episodes(sorted(results.glob("runs/*/*/seed0/evaluation/episodes.parquet")))
    rates = episodes["status"].eq("success").groupby(episodes["variant"]).mean()
    table = pd.read_csv(tmp_path / "sequential.csv")
    assert len(table) == 3 * 2 * 2 and set(table["case"]) == {"no difference", "as they are"}
    assert table["difference"].abs().max() == pytest.approx(rates.max() - rates.min())
    assert table["run"].between(0.1, 1).all()
    assert table["decided"].between(0, 1).all() and table["wrong"].isna().sum() == 6


def test_areas_compares_sets_of_runs(tmp_path: Path) -> None:
    """Of a CSV and of a suite's folder; constant curves, whose areas are their heights."""
    heights = {"grpo": (0.25, 0.5), "srpo": (0.5, 0.75)}
    columns = ["variant", "seed", "step", "episodes", "successes"]
    rows = [(v, s, step, 8, 8 * h) for v, hs in heights.items() for s, h in enumerate(hs) for step in (1, 2)]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "set.csv", index=False)
    for variant, seed in (("grpo", 0), ("grpo", 1), ("srpo", 0), ("srpo", 1), ("srpo-pixel", 0)):
        file = rl_run(tmp_path, "libero_goal", variant, [0.25, 0.25], seed=seed)  # draws its successes
        pd.read_csv(file).assign(episodes=32, successes=8, success_rate=0.25).to_csv(file, index=False)
    (tmp_path / "libero_goal").rename(tmp_path / "suite")
    result = run("areas.py", str(tmp_path / "set.csv"), str(tmp_path / "suite"))
    assert result.returncode == 0, result.stderr
    lines = [line.split(" | ") for line in result.stdout.splitlines()[2:]]
    assert lines[0][:3] == ["| set", "25.0, 50.0", "50.0, 75.0"] and lines[0][3].startswith("+25.0 points [")
    assert lines[1][:3] == ["| suite", "25.0, 25.0", "25.0, 25.0"]
    assert lines[2][:3] == ["| mean", "31.2", "43.8"] and lines[2][3].startswith("+12.5 points [")
