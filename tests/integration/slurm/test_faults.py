"""The workflow under its Slurm profile through a cluster's faults: no step of a training lost or doubled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from cluster import Cluster, wait_until
from stage import HELD, STEPS

pytestmark = pytest.mark.integration

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
RUNS = [f"{variant}-seed{seed}" for variant in ("grpo", "srpo-vjepa2-tiny") for seed in (0, 1)]


class Workflow:
    """A copy of the workflow whose stages are stood in for, and Snakemake at work in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hold = folder / "hold"
        self.hold.mkdir()
        for name in ("configs", "workflow", "profiles", "slurm", "srpo"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Snakefile", "environment.yml"):
            shutil.copy(ROOT / name, folder)
        with (folder / "workflow/shell.sh").open("a") as prelude:
            prelude.write(f'\nlogged() {{ "{sys.executable}" "{HERE / "stage.py"}" "$@"; }}\n')
        preset = yaml.safe_load((ROOT / "tests/example.yaml").read_text())
        preset |= {"seeds": [0, 1], "gpus": 1, "world_models": [], "tables": {"t1": {"sheet": "tiny/t1"}}}
        (folder / "preset.yaml").write_text(yaml.safe_dump(preset))
        self.log = folder / "snakemake.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        command = [
            sys.executable,
            str(HERE / "polling.py"),
            "--profile",
            "slurm",
            "--configfile",
            "preset.yaml",
        ]
        # A node here has four cores and 8 GB; a training gets one of its own.
        sizes = [f"{rule}=4" for rule in ("demos", "sft", "world_model", "train", "evaluate")]
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

    def finish(self, seconds: float = 240) -> str:
        """Wait for Snakemake to end well; what it printed."""
        assert self.process is not None
        code = self.process.wait(seconds)
        text = self.log.read_text()
        assert code == 0, text[-6000:]
        return text

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

    def steps(self, run: str) -> list[tuple[int, str]]:
        """(step, Slurm job), of a finished run or of one on its way."""
        variant, _, seed = run.rpartition("-")
        inside = f"example/runs/libero_goal/{variant}/{seed}"
        for file in (
            self.folder / f"scratch/{inside}/policy/steps",
            self.folder / f"results/{inside}/metrics.csv",
        ):
            with suppress(FileNotFoundError):
                return [(int(line.split(",")[0]), line.split(",")[1]) for line in file.read_text().split()]
        return []

    def hold_all(self) -> None:
        for run in RUNS:
            (self.hold / run).touch()

    def all_held(self) -> bool:
        return all(len(self.steps(run)) == HELD for run in RUNS)

    def check_steps(self) -> None:
        for run in RUNS:
            assert [step for step, _ in self.steps(run)] == list(range(1, STEPS + 1)), run


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Workflow]:
    workflow = Workflow(tmp_path)
    yield workflow
    workflow.kill()
    workflow.kill_the_left()


def test_lost_cancelled_preempted_and_overlong_jobs(cluster: Cluster, workflow: Workflow) -> None:
    workflow.hold_all()
    workflow.start()
    wait_until(workflow.all_held, "four trainings at work", 120)
    cancelled, lost, preempted, overlong = RUNS
    first = {run: workflow.attempts(run)[0] for run in RUNS}
    node = {job: where for job, _, where, _ in cluster.jobs("running")}

    cluster.do("scontrol", "update", f"JobId={first[overlong]}", "TimeLimit=1")
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
    wait_until(lambda: len(workflow.attempts(preempted)) == 2, "a preempted job again", 200)
    # The controller is away, just when Snakemake looks, and the jobs are not.
    cluster.stop_controller()
    wait_until(lambda: "Falling back to 'sacct'" in workflow.log.read_text(), "a look in vain", 60)
    (workflow.hold / preempted).unlink()
    wait_until(lambda: len(workflow.steps(preempted)) > HELD + 2, "steps without a controller")
    cluster.start_controller()
    for run in (cancelled, lost, overlong):
        wait_until(lambda run=run: len(workflow.attempts(run)) == 2, f"{run} again", 200)  # type: ignore[misc]
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
    # Every job had one of its node's two GPUs, and libraries that start no more threads than it has cores.
    threads = min(4, len(os.sched_getaffinity(0)))
    given = list(workflow.folder.glob("scratch/example/runs/*/*/*/given"))
    assert len(given) == 4 and {file.read_text() for file in given} == {f"0 {threads}\n" * 2}
