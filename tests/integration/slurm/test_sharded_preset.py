"""A preset from start to report on the cluster, its policy sharded, against one process without Slurm."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from srpo import ROOT
from srpo.results.rows import read_rows
from srpo.results.schemas import EPISODES, PATHS, REWARDS, RL_METRICS, SFT_METRICS, TASK_METRICS
from support.policies import distance
from support.slurm_cluster import Cluster
from support.sweeping import without_times
from support.workflow import SNAKEMAKE, SUPPORT, copy_workflow

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

SHEET = "name\tlabel\trole\tvariant\tset\n{}srpo\tSRPO\t{}\tsrpo\t\n"
SHEETS = {"two": SHEET.format("sft\tSFT\tbaseline\tsft\t\n", "ours"), "one": SHEET.format("", "baseline")}
PRESET = {
    "suites": ["libero_goal"],
    "tasks": {"libero_goal": [7]},
    "seeds": [0],
    "policy": "tiny",
    "world_model": "pixel",
    "world_models": ["pixel"],
    "tables": {"t1": {"sheet": "two"}, "t2": {"sheet": "two"}, "f2": {"sheet": "one"}},
    "settings": {
        "protocol": {"profile": "held_out", "max_steps": 24, "image_size": 64},
        "policy": {"image_size": 64},
        "world_model": {"frames": 4},
        "demos": {"per_task": 1, "max_steps": 136},
        "sft": {"updates": 20, "batch_size": 8, "stride": 4},
        "reward": {"references": "fixed_expert"},  # from which failures, too, get rewards to learn from
        "train": {"steps": 2, "prompts": 2, "group_size": 2, "minibatch": 1, "microbatch": 8},
        "evaluate": {"states": 2},
        "plus": {"dimensions": ["robot"], "per_dimension": 2, "shard_size": 2},
        "reward_benchmark": {"successes": 1, "failures": 1, "max_episodes": 2, "prefixes": 3},
    },
}
PARALLEL = {
    "sft": {"processes": 2, "strategy": "fsdp"},
    "train": {"nodes": 2, "strategy": "fsdp"},
    "evaluate": {"processes": 2},
}
FILES = {
    "sft/seed0/metrics.csv": SFT_METRICS,
    "srpo/seed0/metrics.csv": RL_METRICS,
    "srpo/seed0/tasks.csv": TASK_METRICS,
    "srpo/seed0/rewards.parquet": REWARDS,
    "sft/seed0/evaluation/episodes.parquet": EPISODES,
    "srpo/seed0/evaluation/episodes.parquet": EPISODES,
    "sft/seed0/evaluation/paths.parquet": PATHS,
    "srpo/seed0/evaluation/paths.parquet": PATHS,
}
STAGES = ("demos", "sft", "train", "evaluate", "plus_shard", "trajectories", "score")


def snakemake(folder: Path, *arguments: str) -> None:
    """Run it on the workflow's copy; AssertionError, with the logs of stages, when it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(folder),
            "PATH": f"{folder / 'slurm/without-accounting'}:{os.environ['PATH']}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    logs = "".join(log.read_text()[-2000:] for log in folder.glob("results/*/logs/*/libero_goal/**/*.log"))
    assert done.returncode == 0, done.stdout[-6000:] + logs


def test_a_sharded_preset_runs_from_start_to_report_and_is_that_of_one_process(
    cluster: Cluster, tmp_path: Path
) -> None:
    copy_workflow(tmp_path, "slurm_stage.py")
    shutil.copy(ROOT / "workflow/shell.sh", tmp_path / "workflow")  # nothing is stood in for
    for name, rows in SHEETS.items():
        (tmp_path / f"configs/experiments/{name}.tsv").write_text(rows)
    for name, more in (("alone", {}), ("sharded", {"parallel": PARALLEL})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **PRESET, **more}))

    sizes = ["--set-threads", *(f"{stage}=2" for stage in STAGES)]
    sizes += ["--set-resources", *(f"{stage}:mem_mb=4000" for stage in STAGES), "evaluate:in_turn=1"]
    quick = ["--slurm-init-seconds-before-status-checks", "1", "--max-status-checks-per-second", "2"]
    quick += ["--latency-wait", "5", "--retries", "0"]
    polling = [str(SUPPORT / "slurm_polling.py"), "--profile", "slurm", "--configfile", "sharded.yaml"]
    snakemake(tmp_path, *polling, *sizes, *quick)
    snakemake(tmp_path, str(SNAKEMAKE), "--configfile", "sharded.yaml", "--report", "report.html", "--quiet")
    assert (tmp_path / "report.html").stat().st_size > 1e5
    # Slurm knows the jobs of other tests, too, with lower numbers; the last one of a rule is meant.
    jobs = sorted(cluster.jobs("completed"), key=by_number)
    nodes = {f"rule_{rule}_": "" for rule in ("sft", "train")}
    for _, _, where, comment in jobs:
        nodes |= {rule: where for rule in nodes if rule in comment}
    assert re.fullmatch(r"node\d", nodes["rule_sft_"])
    assert re.fullmatch(r"node\[\d[-,]\d\]", nodes["rule_train_"])

    runs = "results/{}/runs/libero_goal"
    wanted = [f"{runs.format('alone')}/{run}/seed0/evaluation/episodes.parquet" for run in ("sft", "srpo")]
    snakemake(tmp_path, str(SNAKEMAKE), "--cores", "2", "--configfile", "alone.yaml", "--", *wanted)
    alone, sharded = (tmp_path / runs.format(name) for name in ("alone", "sharded"))
    assert json.loads((alone / "srpo/seed0/manifest.json").read_text())["processes"] == 1
    assert json.loads((sharded / "srpo/seed0/manifest.json").read_text())["processes"] == 2
    # But for rounding, which AdamW amplifies: sums over processes are made in another order. Training moves
    # weights by far more.
    before = None
    for run in ("sft", "srpo"):
        one, two = (load_file(folder / run / "seed0/policy/model.safetensors") for folder in (alone, sharded))
        assert distance(one, two) < 3e-5
        assert before is None or distance(one, before) > 2e-4
        before = one
    for file, schema in FILES.items():
        one, two = (
            without_times(read_rows(folder / file, schema)).drop(columns="preset", errors="ignore")
            for folder in (alone, sharded)
        )
        pd.testing.assert_frame_equal(one, two, rtol=1e-4, atol=1e-6)


def by_number(job: tuple[str, str, str, str]) -> int:
    return int(job[0])
