"""The plan of a preset before it is submitted: counts, hours, the critical path, measured rates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from srpo.config import ConfigError, Protocol
from srpo.plan import CORES, Throughput, Work, critical_path, read_throughput, submissions, work
from srpo.resolve import load_preset, plan

ROOT = Path(__file__).resolve().parents[2]
RATES = {
    (f"libero_{suite}", mode): 100.0
    for suite in ("spatial", "object", "goal", "10")
    for mode in ("exact", "fast")
}
THROUGHPUT = Throughput(Path("rollout.csv"), RATES, None)


def test_cores_are_those_of_the_rules() -> None:
    text = "".join(file.read_text() for file in (ROOT / "workflow/rules").glob("*.smk"))
    found = re.findall(r"^rule (\w+):(?:(?!^rule).)*?^    threads: (\d+)", text, re.MULTILINE | re.DOTALL)
    assert {rule: int(threads) for rule, threads in found} == CORES


def test_the_papers_counts() -> None:
    """As Snakemake's own dry run has them, but for the contact sheet of LIBERO-Plus."""
    preset, source = load_preset("paper")
    jobs = work(plan(preset, source, ROOT / "configs"), THROUGHPUT, 0)
    counts = {rule: sum(job.rule == rule for job in jobs) for rule in CORES}
    assert counts == {
        **{"demos": 4, "world_model": 0, "sft": 4, "train": 168, "evaluate": 172},
        **{"plus_shard": 412, "trajectories": 4, "score": 16},
    }
    assert submissions(jobs) == 288
    evaluated = [job for job in jobs if job.rule == "evaluate"]
    assert {job.episodes for job in evaluated} == {500}  # ten tasks from fifty states
    # 500 episodes of 512 steps, 100 steps a second on each of 8 cores
    assert {job.seconds for job in evaluated} == {500 * 512 / 800}
    swept = {}
    for job in jobs:
        if job.rule == "plus_shard" and job.folder.startswith("runs/libero_10/sft/"):
            swept[job.folder] = job.episodes
    assert list(swept.values())[:-1] == [100] * 25  # and the rest


def test_training_episodes_of_the_smoke_preset() -> None:
    preset, source = load_preset("smoke")
    jobs = work(plan(preset, source, ROOT / "configs"), THROUGHPUT, 7)
    trained = [job for job in jobs if job.rule == "train"]
    assert {job.episodes for job in trained} == {3 * 4 * 6}
    assert all(job.disk > 7 for job in trained)


def test_critical_path() -> None:
    jobs = [
        Work("demos", "a", 0, 10.0, ()),
        Work("sft", "b", 0, 5.0, ("a",)),
        Work("train", "c", 0, 1.0, ("b", "elsewhere")),
        Work("train", "d", 0, 3.0, ("b",)),
        Work("world_model", "e", 0, 17.0, ()),
    ]
    seconds, chain = critical_path(jobs)
    assert seconds == 18.0
    assert [job.folder for job in chain] == ["a", "b", "d"]


def test_throughput_is_read_from_what_was_measured(tmp_path: Path) -> None:
    rollout, metrics = tmp_path / "rollout.csv", tmp_path / "metrics.csv"
    rollout.write_text(
        "suite,loop,measure,value,ratio_to_stock\nlibero_goal,exact,steps_per_second,200.0,9\n"
        "libero_goal,stock,steps_per_second,20.0,1\nlibero_goal,exact,steps_per_core_second,1.0,1\n"
    )
    metrics.write_text("environment_steps,seconds_total\n300,10.0\n100,10.0\n")
    alone, whole = read_throughput(rollout), read_throughput(rollout, metrics)
    assert alone.simulation == {("libero_goal", "exact"): 200.0}
    protocol = Protocol.model_validate(
        {**dict(profile="official", max_steps=100, settle_steps=10, env_seed=0), "image_size": 128}
        | {"render": "exact"}
    )
    assert alone.seconds(4000, "libero_goal", protocol, 4) == 5.0
    assert whole.whole == 20.0
    assert whole.seconds(4000, "libero_goal", protocol, 4) == 200.0
    with pytest.raises(ConfigError, match="no steps_per_second of libero_10, loop exact"):
        alone.seconds(1, "libero_10", protocol, 1)
    metrics.write_text("steps\n1\n")
    with pytest.raises(ConfigError, match="has no rows with environment_steps, seconds_total"):
        read_throughput(rollout, metrics)
