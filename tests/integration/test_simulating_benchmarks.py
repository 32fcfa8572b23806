"""Benchmarks that simulate run; what they find is for them to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from srpo import ROOT
from srpo.policies.checkpoints import save_policy
from support.sweeping import TRAINING, sweeping_policy, write_config

pytestmark = pytest.mark.integration
BENCHMARKS = ROOT / "benchmarks"


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


def test_branches_are_compared_with_their_episode(tmp_path: Path) -> None:
    result = run("branching.py", "--quick", "--out", str(tmp_path / "branching.csv"))
    assert result.returncode == 0, result.stdout + result.stderr
    (row,) = pd.read_csv(tmp_path / "branching.csv").to_dict("records")
    assert (row["queries"], row["branches"], row["differing"]) == (4, 2, 0)
    assert row["branches_per_minute"] > 0 and 0 < row["stored_bytes"] < 4 * row["state_bytes"]


def test_a_steps_parts_are_all_there(tmp_path: Path) -> None:
    result = run("step.py", "--episodes", "6", "--out", str(tmp_path / "step.csv"))
    assert result.returncode == 0, result.stdout + result.stderr
    table = pd.read_csv(tmp_path / "step.csv")
    parts = {"simulate", "render", "policy", "other", "encode", "reward", "update"}
    assert set(table["part"]) == parts and (table["seconds"] > 0).all()
    assert table["share"].sum() == pytest.approx(1)
    assert (tmp_path / "step.png").stat().st_size > 5000


def test_gradients_of_steps_are_compared(tmp_path: Path) -> None:
    """A policy whose success sampling decides."""
    torch.manual_seed(0)
    save_policy(sweeping_policy(), tmp_path / "policy")
    train = {"prompts": 1, "minibatch": 1, "group_size": 4}
    config = TRAINING.model_copy(
        update={
            "world_model": None,
            "reward": TRAINING.reward.model_copy(update={"shaping": "none"}),
            "train": TRAINING.train.model_copy(update=train),
        }
    )
    options = {"config": write_config(tmp_path / "config.yaml", config), "policy": tmp_path / "policy"}
    options |= {"scratch": tmp_path / "scratch", "steps": 2, "out": tmp_path / "gradients.csv"}
    result = run(
        "gradients.py", *(str(part) for name, value in options.items() for part in (f"--{name}", value))
    )
    assert result.returncode == 0, result.stdout + result.stderr
    table = pd.read_csv(tmp_path / "gradients.csv")
    assert table["gradient of"].tolist() == ["all weights", "vision", "language model", "output matrix"]
    assert table["cosine"].between(-1, 1).all() and (table["episodes"] == 8).all()
    assert table["successes"].between(1, 7).all()


def test_failures_are_ranked_by_each_representation(tmp_path: Path) -> None:
    """Pixels against the simulator's distance, on the rollouts of a policy whose success sampling decides."""
    torch.manual_seed(0)
    save_policy(sweeping_policy(), tmp_path / "policy")
    train = {"prompts": 1, "minibatch": 1, "group_size": 6}
    config = TRAINING.model_copy(update={"train": TRAINING.train.model_copy(update=train)})
    options = {"config": write_config(tmp_path / "config.yaml", config), "policy": tmp_path / "policy"}
    options |= {"scratch": tmp_path / "scratch", "steps": 1, "out": tmp_path / "order.csv"}
    options |= {"world-models": "pixel"}
    result = run(
        "failure_order.py", *(str(part) for name, value in options.items() for part in (f"--{name}", value))
    )
    assert result.returncode == 0, result.stdout + result.stderr
    table = pd.read_csv(tmp_path / "order.csv")
    assert table[["clip", "references"]].drop_duplicates().shape == (6, 2)
    assert (table["episodes"] == 6).all() and (table["failures"] + table["successes"] == 6).all()
    assert table["in_order"].between(0, 1).all() and table["correlation"].between(-1, 1).all()


def test_choices_of_the_reward_are_compared(tmp_path: Path) -> None:
    """On rollouts of which some groups succeed in part."""
    torch.manual_seed(0)
    save_policy(sweeping_policy(), tmp_path / "policy")
    train = {"prompts": 2, "minibatch": 2, "group_size": 4}
    config = TRAINING.model_copy(update={"train": TRAINING.train.model_copy(update=train)})
    options = {"config": write_config(tmp_path / "config.yaml", config), "policy": tmp_path / "policy"}
    options |= {"scratch": tmp_path / "scratch", "steps": 1, "out": tmp_path / "choices.csv"}
    options |= {"effects": tmp_path / "effects.csv", "world-models": "pixel"}
    result = run(
        "reward_choices.py",
        *(str(part) for name, value in options.items() for part in (f"--{name}", value)),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    table = pd.read_csv(options["out"]).set_index(["filter", "scope", "distance", "references"])
    assert len(table) == 3 * 3 * 2 * 4 and (
        table[["rollouts", "groups", "tasks", "steps"]] == [8, 2, 1, 1]
    ).all(None)
    assert table["failures"].between(1, 7).all()
    paper = table.loc[("after", "batch", "squared", "dbscan")]
    assert paper["with_paper"] == 1 and paper["failures_rewarded"] == 1
    # What only a rank has, one task's batch of eight prompts has too; a square keeps the order of failures.
    same = table.loc[("after", "rank", "squared", "dbscan")], table.loc[("after", "batch", "l2", "dbscan")]
    assert all(row["with_goal"] == paper["with_goal"] for row in same) and same[0]["with_paper"] == 1
    effects = pd.read_csv(options["effects"])
    assert effects["choice"].value_counts().to_dict() == {
        "filter": 3,
        "scope": 3,
        "distance": 1,
        "references": 6,
    }
    assert (effects["least"] <= effects["mean"]).all() and effects["mean"].between(-1, 1).all()
