"""One training run outside the workflow: submitted to Slurm, or started here, watched, stopped.

srpo launch train --config CONFIG --policy FOLDER [--world-model FOLDER] [--demos FOLDER]
    --out FOLDER --scratch FOLDER [--executor slurm|local|debug] [--gpus 8] [--nodes 2] [--strategy fsdp] ...
srpo launch status --out FOLDER
srpo launch cancel --out FOLDER

`train` shows the log until the run ends; Ctrl-C leaves the run alone and only stops watching. The job starts
`srpo train` as the workflow does (`srpo.cluster.processes`), once for each GPU. Before its time limit, or
when preempted, it stops, is queued again and goes on from its scratch folder. Job states come from
`squeue`, and from `sacct` where that works, so a cluster without accounting will do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import submitit
from submitit.core.utils import FailedJobError

from srpo.cluster.accounting import ask
from srpo.cluster.processes import node_command, srun_options, workers
from srpo.cluster.resources import require_cores
from srpo.config import Layout, TrainStage, load_stage, validate
from srpo.errors import FINAL_FILE, run_command
from srpo.runtime.arguments import positive
from srpo.runtime.files import write_json
from srpo.runtime.preemption import PREEMPTED

SIGNAL = "USR1"
"""Slurm sends it to all processes before the time limit: training stops, and submitit requeues the job."""
SIGNAL_SECONDS = 60
UNFINISHED = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED")
"""States of a job that is still to end."""


@dataclass(frozen=True)
class Command:
    """What a job runs on each of its nodes: `srpo` with these arguments, in all of the node's processes."""

    arguments: Sequence[str]
    layout: Layout
    cores: int
    final: Path
    """Is there after a failure that another try would not mend."""

    def __call__(self) -> None:
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # srpo, accelerate
        environment = {**os.environ, "PATH": programs, "PYTHONUNBUFFERED": "1"}
        environment[FINAL_FILE] = str(self.final)
        if (cores := os.environ.get("SLURM_CPUS_PER_TASK")) is not None:
            environment.setdefault("OMP_NUM_THREADS", cores)  # or it would use all of the node's cores
        command = [*node_command(self.layout, self.cores), *self.arguments]
        signalled = threading.Event()
        with noticed(signalled):
            code = subprocess.run(command, stderr=subprocess.STDOUT, env=environment).returncode
        if signalled.is_set() or code == PREEMPTED:
            # The signal ends this process too, on the first node, and requeues the job: wait for it.
            time.sleep(2 * SIGNAL_SECONDS)
        if code:
            raise SystemExit(f"training ended with exit code {code}; the log above tells why")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What runs after a requeue: the same command, which goes on from its scratch folder."""
        return submitit.helpers.DelayedSubmission(self)


@contextmanager
def noticed(signalled: threading.Event) -> Iterator[None]:
    """Within this block `signalled` is set when SIGNAL arrives, beside what submitit does then."""
    number = signal.Signals[f"SIG{SIGNAL}"]
    before = signal.getsignal(number)

    def notice(number: int, frame: FrameType | None) -> None:
        signalled.set()
        if callable(before):
            before(number, frame)

    signal.signal(number, notice)
    try:
        yield
    finally:
        signal.signal(number, before)


def training_command(arguments: argparse.Namespace, layout: Layout) -> list[str]:
    """The arguments of `srpo train`, with absolute paths."""
    # Mistakes show now, not when the job starts.
    load_stage(arguments.config, TrainStage)
    for option in ("policy", "world_model"):
        folder = getattr(arguments, option)
        if folder is not None and not (folder / "config.json").is_file():
            name = option.replace("_", "-")
            raise SystemExit(f"error: --{name} {folder}: is no checkpoint's folder: it has no config.json")
    if arguments.demos is not None and not arguments.demos.is_dir():
        raise SystemExit(f"error: --demos {arguments.demos}: is no folder")
    command = ["train"]
    for name in ("config", "policy", "world_model", "demos", "out", "scratch"):
        if (path := getattr(arguments, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(path.resolve())]
    return [*command, "--workers", str(workers(layout, arguments.cpus))]


def make_executor(arguments: argparse.Namespace, folder: Path) -> submitit.Executor:
    """submitit's executor with the requested resources."""
    if arguments.executor == "slurm":
        return _slurm_executor(arguments, folder)
    if arguments.nodes > 1:
        raise SystemExit(f"--executor {arguments.executor} starts processes here: for more nodes use slurm")
    if arguments.executor == "local":
        local = submitit.LocalExecutor(folder, max_num_timeout=arguments.timeouts)
        local.update_parameters(timeout_min=arguments.minutes, signal_delay_s=SIGNAL_SECONDS)
        return local
    return submitit.DebugExecutor(folder)


def _slurm_executor(arguments: argparse.Namespace, folder: Path) -> submitit.SlurmExecutor:
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL  # also read in the job, which inherits it
    submitit.JobEnvironment.USR_SIG = SIGNAL  # was read from the environment when submitit was imported
    parameters: dict[str, Any] = {
        "job_name": f"srpo-{arguments.out.name}",
        "nodes": arguments.nodes,
        "ntasks_per_node": 1,  # which starts all processes of its node
        "cpus_per_task": arguments.cpus,
        "mem": f"{arguments.memory_gb}GB",
        "time": arguments.minutes,
        "signal_delay_s": SIGNAL_SECONDS,
        "additional_parameters": {"requeue": True, "open-mode": "append"},
        "srun_args": srun_options(arguments.cpus),
    }
    if arguments.gpus:
        parameters["gpus_per_node"] = arguments.gpus
    for name in ("partition", "account", "qos", "constraint"):
        if (value := getattr(arguments, name)) is not None:
            parameters[name] = value
    if submitit.SlurmExecutor.affinity() < 0:
        raise SystemExit("error: there is no Slurm here (srun): --executor local starts it on this machine")
    executor = submitit.SlurmExecutor(folder, max_num_timeout=arguments.timeouts)
    executor.update_parameters(**parameters)
    return executor


def job_file(out: Path) -> Path:
    """Where the job that was launched into a folder is remembered: its executor, number and log."""
    return out.resolve() / "launch/job.json"


def final_file(out: Path) -> Path:
    """What a launched job leaves when another try would not help."""
    return out.resolve() / "launch/final"


def read_job(out: Path) -> dict[str, str]:
    """The job that was launched into a folder; SystemExit where none was."""
    try:
        job: dict[str, str] = json.loads(job_file(out).read_text())
    except FileNotFoundError:
        raise SystemExit(f"{out}: nothing was launched into this folder") from None
    return job


def launch(arguments: argparse.Namespace) -> None:
    """Submit a training, remember its job, and watch it."""
    out, file = arguments.out, job_file(arguments.out)
    if file.exists() and (now := state(read_job(out))) in ("PENDING", "RUNNING"):
        raise SystemExit(f"{out}: is at work already ({now}): srpo launch cancel --out ...")
    asked = {name: getattr(arguments, name) for name in ("nodes", "gpus", "strategy")}
    layout = validate(Layout, asked, "srpo launch train")
    require_cores("train", layout, arguments.cpus, "--cpus")
    final = final_file(out)
    command = Command(training_command(arguments, layout), layout, arguments.cpus, final)
    final.unlink(missing_ok=True)  # of an earlier try
    try:
        job = make_executor(arguments, file.parent).submit(command)
    except FailedJobError as error:  # what sbatch says
        raise SystemExit(f"error: Slurm does not take the job: {' '.join(str(error).split())}") from None
    if arguments.executor == "debug":  # runs in this process, now
        job.result()
        return
    log = job.paths.stdout
    write_json(file, {"executor": arguments.executor, "job": job.job_id, "log": str(log)})
    print(f"{arguments.executor} job {job.job_id}, log {log}", flush=True)
    if not arguments.detach:
        watch(out)


def state(job: dict[str, str]) -> str:
    """A job's state by Slurm's names; `UNKNOWN` where nothing remembers it."""
    if job["executor"] == "local":
        try:
            process = psutil.Process(int(job["job"]))
            return "RUNNING" if process.status() != psutil.STATUS_ZOMBIE else "COMPLETED"
        except psutil.NoSuchProcess:
            return "COMPLETED"
    for command in (
        ["squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job["job"]],
        ["sacct", "--noheader", "--allocations", "--parsable2", "--format=State", "--jobs", job["job"]],
    ):
        if words := ask(*command).split():
            return words[0]  # "CANCELLED by 1000" is cancelled
    return "UNKNOWN"


def watch(out: Path) -> None:
    """Show the log as it grows until the job is over; SystemExit when the run did not finish."""
    job = read_job(out)
    log, shown, over = Path(job["log"]), 0, False
    try:
        while True:
            if log.exists():
                with log.open("rb") as handle:
                    handle.seek(shown)
                    text = handle.read()
                shown += len(text)
                sys.stdout.write(text.decode(errors="replace"))
                sys.stdout.flush()
            if over:
                break
            over = state(job) not in UNFINISHED  # then the log is read once more
            time.sleep(1)
    except KeyboardInterrupt:
        print(f"\nstill running: srpo launch status --out {out.resolve()}")
        return
    if not finished(out):
        last = f"not finished ({state(job)})"
        if final_file(out).exists():
            raise SystemExit(f"{last}; another try would not help: mend what the log says first")
        raise SystemExit(f"{last}; the same command goes on from its scratch folder")


def finished(out: Path) -> bool:
    """Whether the run's results are newer than its launch."""
    manifest = out.resolve() / "manifest.json"
    return manifest.exists() and manifest.stat().st_mtime >= job_file(out).stat().st_mtime


def status(arguments: argparse.Namespace) -> None:
    """Print the job's state and the end of its log."""
    job = read_job(arguments.out)
    result = "finished" if finished(arguments.out) else "not finished"
    print(f"{job['executor']} job {job['job']}: {state(job)}, {result}, log {job['log']}")
    if (log := Path(job["log"])).exists():
        print("".join(f"  {line}\n" for line in log.read_text(errors="replace").splitlines()[-5:]), end="")


def cancel(arguments: argparse.Namespace) -> None:
    """Stop the job. It can be launched again and goes on."""
    job = read_job(arguments.out)
    if job["executor"] == "slurm":
        if shutil.which("scancel") is None:
            raise SystemExit(f"error: there is no Slurm here (scancel): job {job['job']} is elsewhere")
        if subprocess.run(["scancel", job["job"]]).returncode:
            raise SystemExit("error: the job is not cancelled: scancel says why")
    else:
        try:
            process = psutil.Process(int(job["job"]))
            for each in [*process.children(recursive=True), process]:
                each.terminate()
        except psutil.NoSuchProcess:
            pass
    print(f"{job['executor']} job {job['job']}: cancelled")


def main() -> None:
    parser = argparse.ArgumentParser(prog="srpo launch", description="One training run outside the workflow.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="submit a training run and show its log")
    train.add_argument("--config", type=Path, required=True, help="resolved configuration of the run")
    train.add_argument("--policy", type=Path, required=True, help="policy checkpoint to start from")
    train.add_argument("--world-model", type=Path, help="checkpoint folder of a pretrained world model")
    train.add_argument("--demos", type=Path, help="demonstrations, for the references `fixed_expert`")
    train.add_argument("--out", type=Path, required=True, help="folder for the results")
    train.add_argument("--scratch", type=Path, required=True, help="folder for resumable state")
    train.add_argument("--executor", choices=("slurm", "local", "debug"), default="slurm")
    train.add_argument("--nodes", type=positive, default=1, help="nodes (default: 1)")
    train.add_argument("--gpus", type=int, default=0, help="GPUs a node, one process each (default: 0)")
    train.add_argument(
        "--strategy",
        choices=("ddp", "fsdp"),
        default="ddp",
        help="fsdp trains all weights of a policy that is too large for one GPU (default: ddp)",
    )
    train.add_argument(
        "--cpus", type=positive, default=4, help="cores a node: a simulator each, two with GPUs (default: 4)"
    )
    train.add_argument("--memory-gb", type=positive, default=16, help="memory a node (default: 16)")
    train.add_argument(
        "--minutes", type=positive, default=1440, help="time limit of one job (default: a day)"
    )
    train.add_argument("--timeouts", type=int, default=10, help="time limits it may meet (default: 10)")
    for name in ("partition", "account", "qos", "constraint"):
        train.add_argument(f"--{name}", help="Slurm's, where the cluster needs it")
    train.add_argument("--detach", action="store_true", help="do not wait and show the log")
    for name, text in (("status", "tell the state of a launched run"), ("cancel", "stop a launched run")):
        commands.add_parser(name, help=text).add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    {"train": launch, "status": status, "cancel": cancel}[arguments.command](arguments)


if __name__ == "__main__":
    run_command(main)
