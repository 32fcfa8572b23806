"""A real Slurm of four nodes on one machine: root, no systemd, no cgroups; two pretended GPUs a node.

python tests/support/slurm_cluster.py COMMAND...    runs a command with the cluster up, then takes it down

The four nodes are four slurmd on four ports. GPUs are copies of /dev/null. There is no accounting (`sacct`).
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil

from srpo.runtime.locks import Owner, is_gone

PROGRAMS = (
    "munged",
    "munge",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "squeue",
    "scancel",
    "scontrol",
    "sinfo",
)
SYSTEM_CONFIGURATION = Path("/etc/slurm")
"""Job steps of the Snakemake plugin drop `SLURM_CONF`, so the file must also be where Slurm looks for it."""
NODES = ("node1", "node2", "node3", "node4")
CONFIGURATION = ("slurm.conf", "gres.conf")
NAME = "srpo_tests"
"""Of the cluster. Slurm tells it to jobs (`SLURM_CLUSTER_NAME`), and this module to the daemons."""
MARK = "# The four-node Slurm of srpo's tests, started by "

SLURM_CONF = """\
{mark}
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
# Loopback only.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
# No cgroups: their plugins look idle and fail every job.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=1
# More CPUs than there are.
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=256
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=30
SlurmdTimeout=60
InactiveLimit=0
KillWait=3
# squeue remembers finished jobs for a day: there is no accounting to ask.
MinJobAge=86400
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=node[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=16 Boards=1 \
SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=8192 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=node[1-4] Default=YES MaxTime=UNLIMITED DefaultTime=10 PriorityTier=1
PartitionName=urgent Nodes=node[1-4] MaxTime=UNLIMITED DefaultTime=10 PriorityTier=10 PreemptMode=OFF
"""
GRES_CONF = """\
AutoDetect=off
NodeName=node[1-4] Name=gpu File={root}/nvidia[0-1]
"""


def reason_why_not() -> str | None:
    """Why no cluster can be started here, or None."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"Slurm is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "the four-node Slurm is started as root"
    configuration = SYSTEM_CONFIGURATION / "slurm.conf"
    if not configuration.exists():
        return None
    first = configuration.read_text().split("\n")[0]
    if not first.startswith(MARK):
        return f"{configuration} exists: this machine has a Slurm of its own"
    starter = Owner(**json.loads(first.removeprefix(MARK)))
    if not is_gone(starter, Owner.of_this_process()):
        return f"{configuration}: these tests' Slurm is up already, for {starter}"
    return None


def end_what_is_left() -> None:
    """End what a killed test run left of its cluster: jobs, the slurmstepd that started them, daemons."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SLURM_CLUSTER_NAME") == NAME:
                parent = process.parent()
                for each in (process, parent) if parent and parent.name() == "slurmstepd" else (process,):
                    each.kill()
                    each.wait(10)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Poll until a condition holds; AssertionError when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"in {seconds:.0f} s there was not: {what}"
        time.sleep(0.1)


class Cluster:
    """Starts when made; `stop` ends the processes that it started and nothing else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for folder in ("state", *(f"spool/{node}" for node in NODES)):
            (root / folder).mkdir(parents=True)
        root.chmod(0o755)  # munged insists on it
        for number in (0, 1):
            os.mknod(root / f"nvidia{number}", 0o666 | 0o020000, os.makedev(1, 3))
        host = socket.gethostname().split(".")[0]
        port = _free_ports(5)
        mark = MARK + json.dumps(asdict(Owner.of_this_process()))
        values = {"root": root, "host": host, "port": port, "first": port + 1, "last": port + 4}
        (root / "slurm.conf").write_text(SLURM_CONF.format(**values, mark=mark, name=NAME))
        (root / "gres.conf").write_text(GRES_CONF.format(**values))
        end_what_is_left()  # `reason_why_not` has seen no living one
        SYSTEM_CONFIGURATION.mkdir(exist_ok=True)
        for name in CONFIGURATION:
            (SYSTEM_CONFIGURATION / name).unlink(missing_ok=True)
            shutil.copy(root / name, SYSTEM_CONFIGURATION)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        key = self.root / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.root}/munge.{ending}" for option, ending in files.items()]
        self._spawn("munged", ["munged", "-F", "-f", "-S", f"{self.root}/munge.socket", *options])
        wait_until(lambda: _works("munge", "-n", "-S", f"{self.root}/munge.socket"), "munged")
        self.start_controller()
        for node in NODES:
            self._spawn(node, ["slurmd", "-D", "-N", node])
        wait_until(self.is_idle, "four idle nodes")

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        with (self.root / f"{name}.out").open("wb") as out:
            self._daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
                env={**os.environ, "SLURM_CLUSTER_NAME": NAME},
            )

    def _end(self, name: str) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf")}  # this cluster and no other
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)

    def ask(self, *command: str) -> str:
        """What a Slurm command prints; '' when it fails."""
        done = self._run(command)
        return done.stdout if done.returncode == 0 else ""

    def do(self, *command: str) -> str:
        """Run a Slurm command that has to work."""
        done = self._run(command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def start_controller(self) -> None:
        self._spawn("slurmctld", ["slurmctld", "-D"])
        wait_until(lambda: "UP" in self.ask("scontrol", "ping"), "slurmctld")

    def stop_controller(self) -> None:
        self._end("slurmctld")

    def crash(self, node: str) -> None:
        """Lose a node. Slurm requeues its jobs."""
        lost = [job for job, _, where, _ in self.jobs("running") if where == node]
        self.do("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        for job in lost:
            self.hurry(job)

    def repair(self, node: str) -> None:
        self.do("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def jobs(self, states: str = "all") -> list[tuple[str, str, str, str]]:
        """(id, state, node, comment) of jobs."""
        lines = self.ask("squeue", "-h", "-t", states, "-o", "%i|%T|%N|%k").splitlines()
        return [tuple(line.split("|")) for line in lines]  # type: ignore[misc]

    def hurry(self, job: str) -> None:
        """Wait for a job that Slurm requeues, which gives its node two minutes to get clean; here, none."""

        def started() -> bool:
            state, reason = self.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T|%r").strip().split("|")
            if (state, reason) == ("PENDING", "BeginTime"):
                time.sleep(1.1)  # its node refuses whatever starts in the second in which it gave the job up
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
            return state in ("RUNNING", "COMPLETED")

        wait_until(lambda: self.state(job) != "RUNNING", f"{job} out of its place")
        wait_until(started, f"{job} at work again", 90)  # on a busy machine a node takes its time

    def state(self, job: str) -> str:
        return self.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()

    def clear(self) -> None:
        """Cancel what is left and make all nodes usable again, between two tests."""
        self.ask("scancel", "--user=root")
        wait_until(lambda: not self.jobs("pending,running,completing"), "an empty queue", 120)
        for node in NODES:
            self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
        wait_until(self.is_idle, "four idle nodes", 120)

    def is_idle(self) -> bool:
        return len(self.ask("sinfo", "-h", "-p", "main", "-t", "idle", "-N").splitlines()) == len(NODES)

    def stop(self) -> None:
        if "slurmctld" in self._daemons:
            self.ask("scancel", "--user=root")
            end = time.monotonic() + 15
            while self.jobs("pending,running,completing") and time.monotonic() < end:
                time.sleep(0.1)
        for name in (*NODES, "slurmctld", "munged"):
            self._end(name)
        for name in CONFIGURATION:
            (SYSTEM_CONFIGURATION / name).unlink(missing_ok=True)


def _end_with_parent() -> None:
    """Of a test run that is killed no daemon stays behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _works(*command: str) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _free_ports(count: int) -> int:
    """The first of some free ports in a row."""
    for first in range(26817, 60000, 10):
        taken = []
        try:
            for port in range(first, first + count):
                taken.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        finally:
            for each in taken:
                each.close()
        return first
    raise RuntimeError("no free ports")


def main() -> None:
    if reason := reason_why_not():
        sys.exit(reason)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the command
    with tempfile.TemporaryDirectory(prefix="srpo-slurm-") as folder:
        cluster = Cluster(Path(folder) / "cluster")
        try:
            code = subprocess.run(sys.argv[1:]).returncode
        finally:
            cluster.stop()
    sys.exit(code)


if __name__ == "__main__":
    main()
