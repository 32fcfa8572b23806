"""A real training of the workflow on two nodes of the cluster, with a process and a pretended GPU on each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from srpo import ROOT
from srpo.policies.checkpoints import save_policy
from support.slurm_cluster import Cluster
from support.sweeping import sweeping_policy
from support.workflow import SUPPORT, copy_workflow

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

RUN = "results/example/runs/libero_goal/grpo/seed0"
TRAIN = {"steps": 1, "prompts": 2, "minibatch": 1, "group_size": 2, "microbatch": 5}


def test_a_training_runs_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    copy_workflow(tmp_path, "slurm_stage.py")
    shutil.copy(ROOT / "workflow/shell.sh", tmp_path / "workflow")  # nothing is stood in for
    preset = yaml.safe_load((tmp_path / "example.yaml").read_text())
    preset |= {"tasks": {"libero_goal": [7]}, "parallel": {"train": {"nodes": 2, "gpus": 1}}}
    preset["settings"]["protocol"] |= {"max_steps": 16, "image_size": 64}
    preset["settings"]["train"] = TRAIN
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(preset))
    save_policy(sweeping_policy(), tmp_path / "results/example/runs/libero_goal/sft/seed0/policy")
    command = [sys.executable, str(SUPPORT / "slurm_polling.py"), "--profile", "slurm"]
    command += ["--configfile", "preset.yaml", "--allowed-rules", "config", "train", "--retries", "0"]
    command += ["--set-threads", "train=1", "--set-resources", "train:mem_mb=4000", "--latency-wait", "5"]
    command += ["--slurm-init-seconds-before-status-checks", "1", "--", f"{RUN}/policy"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "PATH": f"{tmp_path / 'slurm/without-accounting'}:{os.environ['PATH']}",
            "MUJOCO_GL": "osmesa",  # there is no GPU that could render
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    log = tmp_path / RUN.replace("runs", "logs/train")
    assert done.returncode == 0, done.stdout[-6000:] + log.with_suffix(".log").read_text()[-6000:]
    manifest = json.loads((tmp_path / RUN / "manifest.json").read_text())
    assert manifest["processes"] == 2
    _, state, nodes, comment = max(cluster.jobs(), key=lambda job: int(job[0]))  # others are of other tests
    assert (state, nodes) == ("COMPLETED", "node[1-2]") and "rule_train" in comment
    # A process on each node simulated its half of the four episodes.
    assert "step 1: success" in log.with_suffix(".log").read_text()
