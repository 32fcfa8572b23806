"""The cluster of these tests is one: jobs get GPUs and several nodes, and survive the loss of one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from srpo.runtime.locks import Owner
from support import slurm_cluster as four_nodes
from support.slurm_cluster import MARK, Cluster, reason_why_not, wait_until


def test_jobs_get_their_gpus_and_nodes(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = "srun bash -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'"
    cluster.do("sbatch", "--wait", "--nodes=2", "--gpus-per-node=2", "--output", str(out), "--wrap", script)
    assert sorted(out.read_text().split("\n")[:-1]) == ["node1 0,1", "node2 0,1"]


def test_a_job_on_a_lost_node_is_requeued(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f'echo $SLURMD_NODENAME $SLURM_RESTART_COUNT >> {log}; [ -n "$SLURM_RESTART_COUNT" ] || sleep 60'
    job = cluster.do("sbatch", "--parsable", "--requeue", "--output=/dev/null", "--wrap", script)
    wait_until(lambda: log.exists() and bool(log.read_text()), "a running job")
    cluster.crash("node1")
    wait_until(lambda: cluster.state(job) == "COMPLETED", "its end")
    assert log.read_text() == "node1\nnode2 1\n"


def test_what_is_left_of_a_killed_test_run_is_in_nobodys_way(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike a cluster that is up, and a Slurm that is not of these tests."""
    me = Owner.of_this_process()
    assert f"is up already, for process {me.pid}" in str(reason_why_not())
    monkeypatch.setattr(four_nodes, "SYSTEM_CONFIGURATION", tmp_path)
    assert reason_why_not() is None
    killed = replace(me, started=me.started - 100)  # its process id may be another's now
    (tmp_path / "slurm.conf").write_text(f"{MARK}{json.dumps(asdict(killed))}\nClusterName=x\n")
    assert reason_why_not() is None
    (tmp_path / "slurm.conf").write_text("ClusterName=theirs\n")
    assert "a Slurm of its own" in str(reason_why_not())
