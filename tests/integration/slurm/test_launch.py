"""`srpo launch` on the cluster, with a real training: preempted twice, cancelled, and finished."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import cloudpickle
import pandas as pd
import pytest
from safetensors.torch import load_file

from srpo.cluster.launch import Command, job_file, make_executor, state
from srpo.config import Layout
from srpo.policies.checkpoints import save_policy
from srpo.results.rows import read_rows
from srpo.results.schemas import RL_METRICS
from srpo.runtime.files import write_json
from support.slurm_cluster import Cluster, wait_until
from support.sweeping import TRAINING, sweeping_policy, without_times, write_config

pytestmark = pytest.mark.integration


def launch(*arguments: str, code: int = 0, path: str = os.environ["PATH"]) -> str:
    command = [sys.executable, "-m", "srpo", "launch", *arguments]
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, env=environment
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def test_a_training_is_launched_preempted_cancelled_and_finished(cluster: Cluster, tmp_path: Path) -> None:
    save_policy(sweeping_policy(), tmp_path / "policy")
    config = write_config(tmp_path / "config.yaml", TRAINING)

    def train(name: str, *more: str, code: int = 0) -> str:
        out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
        inputs = ["--config", str(config), "--policy", str(tmp_path / "policy")]
        folders = ["--out", str(out), "--scratch", str(scratch)]
        return launch("train", *inputs, *folders, "--cpus", "2", "--memory-gb", "4", *more, code=code)

    out, scratch = tmp_path / "run", tmp_path / "run-scratch"
    said = train("run", "--executor", "slurm", "--detach")
    job = said.split("slurm job ")[1].split(",")[0]

    def log() -> str:
        return (out / f"launch/{job}_0_log.out").read_text()

    def kept() -> int:
        return len(list(scratch.glob("episodes/step-*/*.npz"))) + 4 * len(list(scratch.glob("checkpoint-*")))

    # What Slurm sends before a time limit.
    wait_until(lambda: kept() > 0, "an episode", 240)
    cluster.do("scancel", "--signal=USR1", job)
    cluster.hurry(job)
    assert "SIGUSR1: stopping" in log()
    assert "at work already" in train("run", "--executor", "slurm", "--detach", code=1)
    # A better paying job in its place.
    wait_until(lambda: (tmp_path / "run-scratch.lock").exists(), "the training again", 240)
    node = next(where for number, _, where, _ in cluster.jobs("running") if number == job)
    cluster.do("sbatch", "-p", "urgent", "-w", node, "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    cluster.hurry(job)
    before = kept()
    assert "RUNNING, not finished" in launch("status", "--out", str(out))
    assert "cancelled" in launch("cancel", "--out", str(out))
    wait_until(lambda: cluster.state(job) == "CANCELLED", "the job's end")
    assert "CANCELLED, not finished" in launch("status", "--out", str(out))
    assert kept() >= before > 0

    # Launched once more it goes on, and its log is shown to the end.
    shown = train("run", "--executor", "slurm")
    assert "step 3: success" in shown
    assert "COMPLETED, finished" in launch("status", "--out", str(out))
    # The same as a run that nobody touched.
    train("whole", "--executor", "debug")
    runs = [load_file(tmp_path / name / "policy/model.safetensors") for name in ("run", "whole")]
    assert all((runs[0][name] == runs[1][name]).all() for name in runs[0])
    rows = [
        without_times(read_rows(tmp_path / name / "metrics.csv", RL_METRICS)) for name in ("run", "whole")
    ]
    pd.testing.assert_frame_equal(rows[0], rows[1], check_exact=True)


PROCESS = """
import os, signal, sys, time
from pathlib import Path

def write(text):
    with open({log!r}, "a") as log:
        log.write(text + chr(10))

def stop(number, frame):
    write("stopped")
    sys.exit(75)

signal.signal(signal.SIGUSR1, stop)
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
write(" ".join([os.environ[name] for name in names] + sys.argv[1:]))
while not Path({go!r}).exists():
    time.sleep(0.1)
"""


class OtherProgram(Command):
    """Starts another program in place of `srpo`: in these processes, not in the one that submitit starts."""

    def __call__(self) -> None:
        os.chdir(self.arguments[0])  # where `python -m` looks first
        super().__call__()


def test_processes_of_two_nodes_find_one_another(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And share their nodes' cores, and go on together after Slurm's signal. What trains is stood in for."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # jobs do not see the tests' folder
    wanted = Namespace(
        **dict(executor="slurm", out=tmp_path, nodes=2, gpus=2, cpus=8, memory_gb=1, minutes=60, timeouts=3),
        **dict.fromkeys(("partition", "account", "qos", "constraint")),
    )
    log, go = tmp_path / "log", tmp_path / "go"
    (tmp_path / "srpo.py").write_text(PROCESS.format(log=str(log), go=str(go)))
    command = OtherProgram([str(tmp_path)], Layout(nodes=2, gpus=2), 8, tmp_path / "final")
    job = make_executor(wanted, tmp_path / "launch").submit(command)
    wait_until(lambda: log.exists() and log.read_text().count("\n") == 4, "four processes", 300)
    ranks = [f"{rank} 4 {rank % 2} 127.0.0.1 0,1 4 {tmp_path}" for rank in range(4)]
    assert sorted(log.read_text().splitlines()) == ranks
    cluster.do("scancel", "--signal=USR1", job.job_id)
    wait_until(lambda: log.read_text().count("stopped") == 4, "four processes that stop", 120)
    go.touch()
    cluster.hurry(job.job_id)
    wait_until(lambda: cluster.state(job.job_id) == "COMPLETED", "the job's end", 300)
    assert sorted(log.read_text().splitlines()) == sorted([*2 * ranks, *4 * ["stopped"]])
    assert state({"executor": "slurm", "job": job.job_id}) == "COMPLETED"
    assert state({"executor": "slurm", "job": "99999"}) == "UNKNOWN"


def test_on_this_machine(tmp_path: Path) -> None:
    """Without Slurm: a process of submitit's, whose end and failure are noticed."""
    config = write_config(tmp_path / "config.yaml", TRAINING)
    policy = tmp_path / "policy"
    arguments = ["train", "--config", str(config), "--policy", str(policy)]
    folders = ["--out", str(tmp_path / "run"), "--scratch", str(tmp_path / "scratch")]
    said = launch(*arguments, *folders, "--executor", "local", code=1)
    assert "policy: is no checkpoint's folder" in said and not (tmp_path / "run").exists()
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    said = launch(*arguments, *folders, "--executor", "local", code=1)
    assert "not finished" in said and "another try would not help" in said
    assert "must be at least 1" in launch(*arguments, *folders, "--minutes", "0", code=2)
    assert "not finished" in launch("status", "--out", str(tmp_path / "run"))
    assert "nothing was launched" in launch("status", "--out", str(tmp_path / "nowhere"), code=1)
    said = launch(*arguments, *folders, code=1, path=str(tmp_path))
    assert said == "error: there is no Slurm here (srun): --executor local starts it on this machine\n"


def test_a_job_that_cannot_be_cancelled_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm.conf").touch()
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    write_json(job_file(tmp_path), {"executor": "slurm", "job": "99999", "log": "log"})
    said = launch("cancel", "--out", str(tmp_path), code=1, path=str(tmp_path))
    assert said == "error: there is no Slurm here (scancel): job 99999 is elsewhere\n"
    if shutil.which("scancel"):
        said = launch("cancel", "--out", str(tmp_path), code=1)
        assert "error: the job is not cancelled" in said and "Traceback" not in said


def test_what_slurm_does_not_take_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", TRAINING)
    (tmp_path / "config.json").touch()
    folders = ["--policy", str(tmp_path), "--out", str(tmp_path / "run"), "--scratch", str(tmp_path / "s")]
    said = launch("train", "--config", str(config), *folders, "--partition", "none", code=1)
    assert "error: Slurm does not take the job: " in said and "partition" in said
    assert "Traceback" not in said and not (tmp_path / "run/launch/job.json").exists()
