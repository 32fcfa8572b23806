"""How a job starts `srpo` in each of its processes: for the workflow's rules and for `srpo launch`.

Imports nothing heavy, as srpo.cluster.resources.
"""

from __future__ import annotations

import shlex

from srpo import ROOT
from srpo.cluster.resources import simulators
from srpo.config import Layout

CONFIGURATIONS = {"ddp": "multi-gpu.yaml", "fsdp": "fsdp-8gpu.yaml"}
"""By strategy, the file in configs/accelerate/. Without one accelerate reads the user's own."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What libraries read. Snakemake sets them to the job's cores, which processes share."""
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""What accelerate's launcher passes on to its processes: as PyTorch has it, and Slurm's for `srpo launch`."""
FIRST_PORT, PORTS = 20000, 10000
"""Where processes of several nodes meet, by their job's number: below the ports that systems give away."""


def share(layout: Layout, cores: int) -> int:
    """Cores of a process, at least one, where so many are of a node."""
    return max(1, cores // layout.per_node)


def workers(layout: Layout, cores: int) -> int:
    """Simulators of a process: the value of its `--workers`."""
    return simulators(share(layout, cores), layout.gpus)


def node_command(layout: Layout, cores: int) -> list[str]:
    """The command line on each node that stands for `srpo` and starts it in all of the node's processes.

    Args:
        cores: of the node.
    """
    if layout.size == 1 and layout.strategy == "ddp":
        return ["srpo"]
    launch = [
        "env",
        *(f"{name}={share(layout, cores)}" for name in THREADS),
        f"PET_SIGNALS_TO_HANDLE={SIGNALS}",
        *("accelerate", "launch", "--config_file"),
        str(ROOT / "configs" / "accelerate" / CONFIGURATIONS[layout.strategy]),
        *("--num_processes", str(layout.size), "--num_machines", str(layout.nodes)),
        *([] if layout.gpus else ["--mixed_precision", "no"]),  # on CPUs several compute as one does
    ]
    if layout.nodes == 1:
        return [*launch, "--main_process_port", "0", "--module", "srpo"]  # any free one
    # Each node reads its own number there. The first one starts the job's steps, and so is where all meet.
    meeting = (
        "--machine_rank $SLURM_NODEID --main_process_ip $SLURM_LAUNCH_NODE_IPADDR "
        f"--main_process_port $(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))"
    )
    return ["bash", "-c", f'exec {shlex.join(launch)} {meeting} --module srpo "$@"', "srpo"]


def srun_options(cores: int) -> list[str]:
    """Options of `srun` that starts a task with so many cores on each node."""
    # Not every version takes the cores from the job. When a node's processes fail, those of the others wait
    # for them: end them all.
    return [f"--cpus-per-task={cores}", "--cpu-bind=none", "--kill-on-bad-exit=1"]


def job_command(layout: Layout, cores: int) -> list[str]:
    """The same for a job that has begun on its first node: Slurm starts it on each of several nodes."""
    if layout.nodes == 1:
        return node_command(layout, cores)
    nodes = [f"--nodes={layout.nodes}", f"--ntasks={layout.nodes}", "--ntasks-per-node=1"]
    return ["srun", *nodes, *srun_options(cores), *node_command(layout, cores)]
