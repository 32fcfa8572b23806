"""Evaluation and the reward benchmark's rollouts in two processes: what one makes, also after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import psutil
import pytest

from srpo import ROOT
from srpo.config import Evaluate, EvaluateStage, RewardBenchmark, RewardBenchmarkStage, Values, ValuesStage
from srpo.results.rows import read_rows
from srpo.results.schemas import EPISODES, PATHS, VALUES
from srpo.rollouts.trajectories import FILE
from support.stages import PIXEL
from support.sweeping import BOWL, PROTOCOL, STOVE, SUITE, without_times, write_config

pytestmark = pytest.mark.integration

EVALUATION = EvaluateStage(
    preset="test",
    suite=SUITE,
    tasks=(STOVE, BOWL),
    protocol=PROTOCOL.model_copy(update={"max_steps": 29}),  # a greedy sweep takes 28 to 30
    variant="sft",
    seed=0,
    evaluate=Evaluate(states=4, sampled=1),
)
BENCHMARK = RewardBenchmarkStage(
    preset="test",
    suite=SUITE,
    tasks=(STOVE,),
    protocol=PROTOCOL,
    reward_benchmark=RewardBenchmark(
        successes=2, failures=2, max_episodes=8, temperature=1.0, prefixes=3, seed=1
    ),
    world_models=(PIXEL,),
)
PATIENCE = 500
"""Seconds; a run takes some twenty on an idle machine."""


def command(processes: int, *words: str, **options: object) -> list[str]:
    """A command of `srpo`, started as `accelerate launch` does it on GPUs."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    parts = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, *(launcher if processes > 1 else []), "-m", "srpo", *words, *parts]


SETTINGS: dict[str, Any] = dict(
    env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
)


def run(arguments: list[str]) -> str:
    """What a run to its end prints."""
    done = subprocess.run(arguments, timeout=PATIENCE, **SETTINGS)
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


def run_and_kill_one(arguments: list[str], when: Callable[[], bool], rank: int) -> None:
    """Kill the process of this rank as soon as `when` holds, and see all others go, too."""
    launcher = subprocess.Popen(arguments, start_new_session=True, **SETTINGS)
    try:
        deadline = time.monotonic() + PATIENCE
        while not when():
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        everyone = psutil.Process(launcher.pid).children(recursive=True)
        (own,) = [
            process
            for process in psutil.Process(launcher.pid).children()
            if process.environ().get("RANK") == str(rank)
        ]
        assert len(everyone) >= 4, "no workers"
        own.send_signal(signal.SIGKILL)
        output, _ = launcher.communicate(timeout=PATIENCE)
        assert launcher.returncode != 0 and "Signal 9 (SIGKILL)" in output
        assert not psutil.wait_procs(everyone, timeout=60)[1]
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.wait()


def test_evaluation_in_two_processes_survives_a_kill(policy: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", EVALUATION)

    def evaluation(name: str, processes: int) -> list[str]:
        out = tmp_path / name
        return command(
            processes,
            "evaluate",
            config=config,
            policy=policy,
            out=out / "episodes.parquet",
            sampled=out / "sampled.parquet",
            paths=out / "paths.parquet",
            videos=out / "videos",
            scratch=tmp_path / f"{name}-scratch",
            workers=1,
        )

    def lines(file: str) -> list[str]:
        journal = tmp_path / "two-scratch" / file
        return journal.read_text().splitlines() if journal.exists() else []

    run(evaluation("one", processes=1))
    run_and_kill_one(
        evaluation("two", processes=2),
        when=lambda: len(lines("rows.jsonl") + lines("rows-1.jsonl")) >= 2,
        rank=1,
    )
    kept = [*lines("rows.jsonl"), *lines("rows-1.jsonl")]
    others = len(lines("rows-1.jsonl"))
    assert 2 <= len(kept) < 16 and not (tmp_path / "two").exists()
    output = run(evaluation("two", processes=2))
    assert output.count(f"resuming: {len(kept)} of 16 episodes are done\n") == 1
    assert output.count(" of 8 greedy episodes succeeded") == 1
    # Each episode was run once, none of those that had been; and both processes ran some.
    assert len(lines("rows.jsonl")) + len(lines("rows-1.jsonl")) == 16
    assert others + len(lines("rows-1.jsonl")) > 0
    assert set(kept) <= set(lines("rows.jsonl"))
    assert json.loads((tmp_path / "two/episodes.manifest.json").read_text())["processes"] == 2
    for name, schema in (("episodes", EPISODES), ("sampled", EPISODES), ("paths", PATHS)):
        one, two = (read_rows(tmp_path / folder / f"{name}.parquet", schema) for folder in ("one", "two"))
        pd.testing.assert_frame_equal(without_times(one), without_times(two), check_exact=True)
    assert {path.name for path in (tmp_path / "two/videos").iterdir()} == {
        path.name for path in (tmp_path / "one/videos").iterdir()
    }
    episodes = pd.concat(read_rows(tmp_path / f"two/{n}.parquet", EPISODES) for n in ("episodes", "sampled"))
    assert set(episodes["status"]) == {"success", "failure"}
    # Asked for again, by one process, it is written from what is there.
    again = run(evaluation("two", processes=1))
    assert "resuming: 16 of 16 episodes are done" in again and len(lines("rows.jsonl")) == 16


def test_two_processes_collect_the_trajectories_and_values_of_one(policy: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", BENCHMARK)

    def collection(name: str, processes: int) -> list[str]:
        out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
        return command(
            processes,
            "reward-benchmark",
            "collect",
            config=config,
            policy=policy,
            out=out,
            scratch=scratch,
            workers=1,
        )

    expected = run(collection("one", processes=1))
    episodes = tmp_path / "two-scratch/episodes"
    run_and_kill_one(collection("two", processes=2), when=lambda: any(episodes.glob("*.h5")), rank=0)
    kept = {path.name for path in episodes.glob("*.h5")}
    assert kept and not (tmp_path / "two").exists()
    output = run(collection("two", processes=2))
    (summary,) = [line for line in expected.splitlines() if line.startswith("libero_goal task 7: ")]
    assert output.count(summary) == 1
    assert not (tmp_path / "two-scratch").exists()
    with h5py.File(tmp_path / "one" / FILE) as one, h5py.File(tmp_path / "two" / FILE) as two:
        assert dict(one.attrs) == dict(two.attrs) and set(one) == set(two)
        assert set(one["success"][()]) == {True, False}
        for name in set(one) - {"states"}:
            np.testing.assert_array_equal(one[name][()], two[name][()], err_msg=name)
        for name in one["states"]:
            np.testing.assert_array_equal(one["states"][name][()], two["states"][name][()])

    stage = ValuesStage(
        **BENCHMARK.model_dump(exclude={"world_models"}), values=Values(points=2, branches=2, seed=3)
    )
    valued = write_config(tmp_path / "values.yaml", stage)
    for name, processes in (("one", 1), ("two", 2)):
        run(
            command(
                processes,
                "values",
                config=valued,
                policy=policy,
                trajectories=tmp_path / "one",
                out=tmp_path / f"{name}.parquet",
                scratch=tmp_path / f"values-{name}",
                workers=1,
            )
        )
    values = [read_rows(tmp_path / f"{name}.parquet", VALUES) for name in ("one", "two")]
    pd.testing.assert_frame_equal(*values, check_exact=True)
    assert (values[0]["branches"] == 2).all() and 0 < values[0]["successes"].sum() < 2 * len(values[0])
