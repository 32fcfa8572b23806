"""The workflow under its Slurm profile through a cluster's faults: no step of a training lost or doubled."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from support.slurm_cluster import NODES, Cluster, wait_until
from support.slurm_stage import HELD, STEPS
from support.workflow import ROOT, SUPPORT, copy_workflow

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

PATIENCE = 500
"""Seconds for what takes one minute on an idle machine."""
RUNS = [f"{variant}-seed{seed}" for variant in ("grpo", "srpo") for seed in (0, 1)]


class Workflow:
    """A copy of the workflow whose stages are stood in for, and Snakemake at work in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hold = folder / "hold"
        self.hold.mkdir()
        copy_workflow(folder, "slurm_stage.py")
        preset = yaml.safe_load((folder / "example.yaml").read_text())
        preset |= {"seeds": [0, 1], "world_models": [], "tables": {"t1": {"sheet": "tiny/t1"}}}
        preset["parallel"] = {name: {"gpus": 1} for name in ("sft", "train", "evaluate")}
        (folder / "preset.yaml").write_text(yaml.safe_dump(preset))
        self.log = folder / "snakemake.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, cores: int = 16) -> None:
        """Start Snakemake. Jobs have so many of a node's sixteen cores, and little of its memory."""
        command = [
            sys.executable,
            str(SUPPORT / "slurm_polling.py"),
            "--profile",
            "slurm",
            "--configfile",
            "preset.yaml",
        ]
        sizes = [f"{rule}={cores}" for rule in ("demos", "sft", "world_model", "train", "evaluate")]
        memory = [f"{line.split('=')[0]}:mem_mb=1000" for line in sizes]
        small = ["--set-threads", *sizes, "--set-resources", *memory, "evaluate:in_turn=1"]
        quick = ["--slurm-init-seconds-before-status-checks", "1", "--max-status-checks-per-second", "2"]
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "HOLD": str(self.hold)}
        environment["PATH"] = f"{self.folder / 'slurm/without-accounting'}:{os.environ['PATH']}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *small, *quick, "--latency-wait", "5", *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what Snakemake and its jobs will do in the end, however slowly."""

        def ended_or_done() -> bool:
            assert self.process is not None
            if condition():
                return True
            assert self.process.poll() is None, (
                f"Snakemake ended before {what}:\n{self.log.read_text()[-6000:]}"
            )
            return False

        wait_until(ended_or_done, what, PATIENCE)

    def wait_for_attempt(self, number: int, run: str) -> None:
        """Wait until a run's training is started for the n-th time."""
        self.wait(lambda: len(self.attempts(run)) == number, f"attempt {number} at {run}")

    def finish(self) -> str:
        """Wait for Snakemake to end well; what it printed."""
        assert self.process is not None
        code = self.process.wait(PATIENCE)
        text = self.log.read_text()
        assert code == 0, text[-6000:]
        return text

    def interrupt(self) -> None:
        """Ctrl-C in the terminal, and wait for Snakemake's end."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)
        assert self.process.wait(PATIENCE) != 0

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def kill_the_left(self) -> None:
        """What a lost node's Slurm does not: here the node's processes live on."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(self.folder):
                    process.kill()

    def attempts(self, run: str) -> list[str]:
        """The Slurm job of each start of a run's training."""
        variant, _, seed = run.rpartition("-")
        file = self.folder / f"scratch/example/runs/libero_goal/{variant}/{seed}/attempts"
        return file.read_text().split() if file.exists() else []

    def last_jobs(self) -> dict[str, str]:
        """Run → the Slurm job of its training's last start."""
        return {run: self.attempts(run)[-1] for run in RUNS}

    def steps(self, run: str, inside: str = "scratch/{}/policy/steps") -> list[tuple[int, str]]:
        """(step, Slurm job) of a run so far."""
        variant, _, seed = run.rpartition("-")
        file = self.folder / inside.format(f"example/runs/libero_goal/{variant}/{seed}")
        if not file.exists():
            return []
        return [(int(line.split(",")[0]), line.split(",")[1]) for line in file.read_text().split()]

    def results(self, run: str) -> list[tuple[int, str]]:
        """(step, Slurm job) of a finished run."""
        return self.steps(run, "results/{}/metrics.csv")

    def hold_all(self) -> None:
        for run in RUNS:
            (self.hold / run).touch()

    def all_held(self) -> bool:
        return all(len(self.steps(run)) == HELD for run in RUNS)

    def check_steps(self) -> None:
        for run in RUNS:
            assert [step for step, _ in self.results(run)] == list(range(1, STEPS + 1)), run


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Workflow]:
    workflow = Workflow(tmp_path)
    yield workflow
    workflow.kill()
    workflow.kill_the_left()


def test_lost_cancelled_preempted_and_overlong_jobs(cluster: Cluster, workflow: Workflow) -> None:
    workflow.hold_all()
    workflow.start("--slurm-jobname-prefix", "srpo-example")
    workflow.wait(workflow.all_held, "four trainings at work")
    cancelled, lost, preempted, overlong = RUNS
    first = {run: workflow.attempts(run)[0] for run in RUNS}
    node = {job: where for job, _, where, _ in cluster.jobs("running")}

    cluster.do("scontrol", "update", f"JobId={first[overlong]}", "EndTime=now+1")  # limits are whole minutes
    cluster.do("scancel", first[cancelled])
    cluster.crash(node[first[lost]])
    cluster.repair(node[first[lost]])  # or there were fewer nodes than trainings, and all of them wait here
    cluster.do(
        "sbatch",
        "-p",
        "urgent",
        "-w",
        node[first[preempted]],
        "--exclusive",
        "--output=/dev/null",
        "--wrap",
        "sleep 2",
    )
    cluster.hurry(first[preempted])
    workflow.wait_for_attempt(2, preempted)
    # The controller is away, just when Snakemake looks, and the jobs are not.
    cluster.stop_controller()
    workflow.wait(lambda: "Falling back to 'sacct'" in workflow.log.read_text(), "a look in vain")
    (workflow.hold / preempted).unlink()
    workflow.wait(lambda: len(workflow.steps(preempted)) > HELD + 2, "steps without a controller")
    cluster.start_controller()
    for run in (cancelled, lost, overlong):
        workflow.wait_for_attempt(2, run)
        (workflow.hold / run).unlink()
    text = workflow.finish()

    workflow.check_steps()
    jobs = {run: workflow.attempts(run) for run in RUNS}
    # Slurm itself starts again what lost its node or its place, under the same number; Snakemake the others.
    for run in (lost, preempted):
        assert jobs[run] == [first[run], first[run]]
    for run, state in ((cancelled, "CANCELLED"), (overlong, "TIMEOUT")):
        assert jobs[run][0] == first[run] and jobs[run][1] != first[run] and len(jobs[run]) == 2
        assert f"SLURM-job '{first[run]}' failed, SLURM status is: '{state}'" in text
    assert (workflow.folder / "results/example/tables/t1.csv").exists()
    check_names(cluster)
    # Every job had one of its node's two GPUs, and libraries that start no more threads than it has cores.
    threads = min(16, len(os.sched_getaffinity(0)))
    given = list(workflow.folder.glob("scratch/example/runs/*/*/*/given"))
    assert len(given) == 4 and {file.read_text() for file in given} == {f"0 {threads}\n" * 2}


def check_names(cluster: Cluster) -> None:
    """The README's `squeue` tells the preset, rule and run of each of the example's jobs."""
    readme = (ROOT / "slurm/README.md").read_text()
    command = next(line for line in readme.splitlines() if line.startswith("    squeue --me"))
    lines = cluster.do(*shlex.split(command), "--noheader", "--states=all").splitlines()
    named = [tuple(line.split()[-2:]) for line in lines if " srpo-example_" in line]
    trainings = {f"rule_train_wildcards_libero_goal_{run.replace('-seed', '_')}" for run in RUNS}
    groups = {f"rule_evaluate_libero_goal_{variant}_evaluate" for variant in ("sft", "grpo", "srpo")}
    others = {
        "demos_wildcards_libero_goal",
        "world_model_wildcards_vjepa2-tiny",
        "sft_wildcards_libero_goal_0",
    }
    expected = trainings | groups | {f"rule_{each}" for each in others}
    assert {comment for _, comment in named} == expected


def test_snakemake_is_interrupted_and_killed(cluster: Cluster, workflow: Workflow) -> None:
    """Ctrl-C takes its jobs along. Killed, it leaves them: what ends before it is back counts, what ends with
    a successor in the queue is not trained again, and what is at work is taken over."""

    def state(jobs: dict[str, str]) -> dict[str, str]:
        return {run: cluster.state(job) for run, job in jobs.items()}

    workflow.hold_all()
    workflow.start()
    workflow.wait(workflow.all_held, "four trainings at work")
    first = workflow.last_jobs()
    workflow.interrupt()
    wait_until(lambda: not cluster.jobs("pending,running,completing"), "the jobs' end", PATIENCE)
    assert state(first) == dict.fromkeys(RUNS, "CANCELLED")

    workflow.start()  # nothing was left locked
    for run in RUNS:
        workflow.wait_for_attempt(2, run)
    left = workflow.last_jobs()
    early, late, *others = RUNS
    node = next(where for job, _, where, _ in cluster.jobs("running") if job == left[early])
    workflow.kill()
    (workflow.hold / early).unlink()
    wait_until(lambda: cluster.state(left[early]) == "COMPLETED", "an end nobody waits for", PATIENCE)
    assert state(left) == {**dict.fromkeys(RUNS, "RUNNING"), early: "COMPLETED"}

    # All nodes are full, so that the jobs of the next Snakemake have to wait.
    full = ("-w", node, "--exclusive", "--output=/dev/null", "--wrap", "sleep 3600")
    blocker = cluster.do("sbatch", "--parsable", *full)
    wait_until(lambda: cluster.state(blocker) == "RUNNING", "four full nodes", PATIENCE)
    workflow.start("--unlock")
    workflow.finish()
    workflow.start()
    workflow.wait(
        lambda: sum("rule_train" in comment for *_, comment in cluster.jobs("pending")) == 3,
        "three in the queue",
    )
    (workflow.hold / late).unlink()
    wait_until(lambda: cluster.state(left[late]) == "COMPLETED", "an end nobody waits for", PATIENCE)
    cluster.do("scancel", blocker)
    for run in others:
        workflow.wait_for_attempt(3, run)
        (workflow.hold / run).unlink()
    workflow.finish()

    workflow.check_steps()
    assert state(left) == {early: "COMPLETED", late: "COMPLETED", **dict.fromkeys(others, "CANCELLED")}
    assert [len(workflow.attempts(run)) for run in RUNS] == [2, 3, 3, 3]
    last = workflow.last_jobs()
    for run in RUNS:
        by = dict(workflow.results(run))
        assert {by[step] for step in by if step <= HELD} == {first[run]}
        assert {by[step] for step in by if step > HELD} == {(last if run in others else left)[run]}


def test_jobs_that_a_limit_keeps_from_starting(cluster: Cluster, workflow: Workflow) -> None:
    """They are told of and not waited for; under the site's limit they start, with their GPUs on one node."""
    run, target = "grpo-seed0", "results/example/runs/libero_goal/grpo/seed0/policy"
    preset = workflow.folder / "preset.yaml"
    settings = yaml.safe_load(preset.read_text())
    settings["parallel"]["train"]["gpus"] = 2
    preset.write_text(yaml.safe_dump(settings))
    told = "will never start: PartitionTimeLimit"
    cluster.do("scontrol", "update", "PartitionName=main", "MaxTime=60")
    try:
        workflow.start(target, cores=8)
        workflow.wait(lambda: told in workflow.log.read_text(), "a word about a job of 240 minutes")
        command = [sys.executable, "-m", "srpo", "status", "preset.yaml"]
        status = subprocess.run(command, cwd=workflow.folder, capture_output=True, text=True, timeout=300)
        assert told in status.stdout, status
        assert workflow.process is not None
        workflow.process.send_signal(signal.SIGTERM)
        assert workflow.process.wait(PATIENCE) != 0
        assert (
            not cluster.jobs("pending") and "cancelled, since Snakemake is to end" in workflow.log.read_text()
        )

        # Every node has one free GPU, so that the two of a training are there, but not on one node.
        one = (
            "--parsable",
            "--gpus=1",
            "--mem=100",
            "--time=60",
            "--output=/dev/null",
            "--wrap",
            "sleep 3600",
        )
        others = [cluster.do("sbatch", "-w", node, *one) for node in NODES]
        workflow.start(target, "--resources", "in_turn=1", "runtime=60", cores=8)
        workflow.wait(lambda: any("rule_train" in job[3] for job in cluster.jobs("pending")), "a training")
        training = next(job for job, _, _, comment in cluster.jobs("pending") if "rule_train" in comment)
        workflow.wait(
            lambda: cluster.ask("squeue", "-h", "-j", training, "-o", "%r").strip() == "Resources",
            "a training that waits for two GPUs of a node",
        )
        cluster.do("scancel", others[0])
        workflow.finish()
    finally:
        cluster.do("scontrol", "update", "PartitionName=main", "MaxTime=UNLIMITED")
    assert [step for step, _ in workflow.results(run)] == list(range(1, STEPS + 1))
    given = workflow.folder / "scratch/example/runs/libero_goal/grpo/seed0/given"
    assert given.read_text().split()[0] == "0,1"
