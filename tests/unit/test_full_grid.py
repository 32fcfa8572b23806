"""Every table and figure from made-up results of the paper's full grid; `pytest -s` shows the seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from srpo import ROOT
from srpo.config import SUITES
from support.synthetic_results import (
    curves_of,
    libero_run,
    paths_of,
    plus_run,
    plus_tasks_file,
    reward_benchmark,
    rl_run,
)

SHEETS = ROOT / "configs" / "experiments" / "paper"
SEEDS = (0, 1, 2)
RATES = {"sft": 0.5, "grpo": 0.85, "srpo-offline": 0.9, "srpo": 0.98}
REWARDS = {
    "srpo-alpha-0": {"alpha": 0.0},
    "srpo-alpha-0.3": {"alpha": 0.3},
    "srpo-alpha-0.5": {"alpha": 0.5},
    "srpo-alpha-1": {"alpha": 1.0},
    "srpo-siirl": {"shaping": "siirl"},
    "srpo-nearest": {"references": "nearest"},
    "srpo-dbscan-relative": {"eps": 0.8, "eps_relative": True},
    "srpo-fixed-expert": {"references": "fixed_expert"},
}
DIMENSIONS = ("camera", "noise")


def labels(name: str) -> list[str]:
    return list(pd.read_csv(SHEETS / f"{name}.tsv", sep="\t", comment="#")["name"])


def learning(rate: float, steps: int) -> list[float]:
    return list(rate - (rate - 0.3) * np.exp(-np.arange(steps) / (20 * (1.2 - rate))))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of all runs that the paper's preset asks for: 4 suites, 3 seeds, 50 states of 10 tasks each."""
    root = tmp_path_factory.mktemp("grid")
    tasks = plus_tasks_file(root / "tasks.csv", DIMENSIONS, per_base_task=50)
    for suite in SUITES:
        for variant in dict.fromkeys([*labels("t1"), *labels("ablations")]):
            rate = RATES.get(variant, 0.9 + 0.001 * len(variant))
            models = {"srpo-pixel": "pixel", "srpo-dinov2": "dinov2", "srpo-imagebind": "imagebind"}
            reward = {"eps": 0.5, "eps_relative": False} | REWARDS.get(variant, {})
            for seed in SEEDS[:1] if variant == "sft" else SEEDS:
                libero_run(root, suite, variant, rate, seed=seed, tasks=10, states=50)
                if variant in labels("t2"):
                    rates = dict.fromkeys(DIMENSIONS, 0.7 * rate)
                    plus_run(
                        root, suite, variant, rates, tasks, seed=seed, per_dimension=500, tasks=range(10)
                    )
                if variant != "sft":
                    model = models.get(variant, "vjepa2-vitg")
                    rl_run(
                        root,
                        suite,
                        variant,
                        learning(rate, 60),
                        seed=seed,
                        episodes=512,
                        model=model,
                        **reward,
                    )
        representations = {"pixel": 0.4, "vjepa2-vitl": 0.7, "vjepa2-vitg": 0.9}
        curves_of(reward_benchmark(root, suite, representations, successes=175, failures=75))
    for variant, reach in (("sft", 0.1), ("srpo", 0.2)):
        paths_of(root / "libero_spatial" / variant / "seed0" / "evaluation" / "episodes.parquet", reach)
    return root


def files(root: Path, name: str, variants: list[str], suites: tuple[str, ...] = SUITES) -> list[str]:
    found = [path for s in suites for v in variants for path in sorted(root.glob(f"{s}/{v}/seed*/{name}"))]
    assert found
    return [str(path) for path in found]


def commands(root: Path) -> dict[str, list[str]]:
    """The command line of every table and figure, as the workflow calls it."""
    published = ["--published", str(ROOT / "configs" / "reference" / "published.csv")]
    evaluated, trained = "evaluation/episodes.parquet", "metrics.csv"
    ablations, long = labels("ablations"), ("libero_object", "libero_10")
    scores = [str(p) for p in sorted(root.glob("reward_benchmark/*/*.parquet")) if "-curves" not in p.name]
    curves = [str(path) for path in sorted(root.glob("reward_benchmark/*/*-curves.parquet"))]
    trajectories = [str(path) for path in sorted(root.glob("reward_benchmark/*/trajectories"))]
    episodes = {name: files(root, evaluated, labels(name)) for name in ("t1", "ablations")}
    plus = ["--tasks", str(root / "tasks.csv"), "--episodes"]
    plus += files(root, "plus/episodes.parquet", labels("t2"))
    pair = [f"{root}/libero_spatial/{v}/seed0/evaluation/paths.parquet" for v in ("sft", "srpo")]
    return {
        "t1": [*sheet("t1"), *published, "--episodes", *episodes["t1"]],
        "t2": [*sheet("t2"), *published, *plus],
        "t2_curves": [*sheet("t2"), *plus],
        "t3": [*published, "--scores", *scores],
        "t3_distributions": ["--scores", *scores],
        "t3_truth": ["--curves", *curves],
        "f1": ["--curves", *curves, "--trajectories", *trajectories],
        "f2": [*sheet("f2"), "--metrics", *files(root, trained, labels("f2"), long)],
        "f3": [*sheet("ablations"), "--metrics", *files(root, trained, ablations)],
        "f4": [*sheet("t1"), "--paths", *pair],
        "f5": [*sheet("ablations"), "--episodes", *episodes["ablations"]],
    }  # fmt: skip


def sheet(name: str) -> list[str]:
    return ["--sheet", str(SHEETS / f"{name}.tsv")]


def test_the_papers_grid_is_drawn_in_two_gigabytes(grid: Path, tmp_path: Path) -> None:
    rows = sum(pq.ParquetFile(path).metadata.num_rows for path in grid.rglob("episodes.parquet"))
    assert rows >= 100_000
    out = Path(os.environ.get("SRPO_KEEP_FIGURES", tmp_path))
    spent = most = 0.0
    for name, arguments in commands(grid).items():
        seconds, megabytes = usage(["draw", name, *arguments, "--out", "."], out)
        print(f"{name}: {seconds:.1f} s")
        spent, most = spent + seconds, max(most, megabytes)
    print(f"{rows:,} episodes: {spent:.1f} s of CPU, at most {most:.0f} MB")
    assert most <= 2048
    for name in commands(grid):
        with Image.open(out / f"figures/{name}.png") as picture:
            assert 500 < picture.width <= 1500, f"{name} is wider than a page"  # 200 dots an inch
        assert len(pd.read_csv(out / f"tables/{name}.csv"))


METERED = """
import os, re, runpy
try:
    runpy.run_module("srpo", run_name="__main__", alter_sys=True)
finally:
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
    print(sum(os.times()[:2]), int(peak) / 1024)
"""


def usage(command: list[str], folder: Path) -> tuple[float, float]:
    """What a command of `srpo` took: CPU seconds, whatever else the machine does, and MB at its peak.

    The peak is read from inside: `getrusage` counts the memory of the process that a command is forked from.
    """
    done = subprocess.run(
        [sys.executable, "-c", METERED, *command],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path()}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seconds, megabytes = done.stdout.splitlines()[-1].split()
    return float(seconds), float(megabytes)


def path() -> str:
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
