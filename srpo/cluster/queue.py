"""Jobs of the workflow that Slurm will never start: told by `srpo status`, and while Snakemake runs.

Slurm takes a job that asks for more than its partition, account or quality of service allows, and leaves it
pending. Neither it nor Snakemake's plugin says more than a reason that `squeue` shows.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from srpo.cluster.accounting import ask

LOOK_SECONDS = 60
NEVER = {
    r"PartitionTimeLimit|WallDurationPerJob": "it asks for more minutes than are allowed "
    "(resources: runtime=...)",
    r"AccountNotAllowed|InvalidAccount": "the account must not use this partition "
    "(default-resources: slurm_account)",
    r"InvalidQOS|QOSNotAllowed": "its account or partition does not allow the QOS (slurm-qos)",
    r"PerJob|PerNode|QOSMin|Partition(Node|Max|Min|Config)|BadConstraints": "it asks for what a "
    "job cannot have there (set-resources, set-threads)",
    r"(?i:held)": "it is held (scontrol release lets it go)",
}
"""Slurm's reasons (squeue's manual, JOB REASON CODES) for which a job does not start whatever else ends, and
what is wrong, with the profile's key. Limits on the sum of many jobs (`PerUser`, `Grp`) are none of them."""


class Stuck(NamedTuple):
    """A job that will never start: its number, Slurm's reason, and what the plugin says it is of."""

    job: str
    reason: str
    comment: str

    def __str__(self) -> str:
        fix = next(text for pattern, text in NEVER.items() if re.search(pattern, self.reason))
        return (
            f"Slurm job {self.job} ({self.comment}) will never start: {self.reason}: {fix}. Change "
            "slurm/config.yaml, end Snakemake (SIGTERM) and start it again"
        )


def stuck_jobs(folder: Path) -> list[Stuck]:
    """This user's jobs that were submitted from a folder and will never start; none where squeue fails."""
    pending = ask("squeue", "--me", "--noheader", "--states=PENDING", "--format=%i|%r|%k|%Z")
    jobs = [line.split("|", 3) for line in pending.splitlines() if line.count("|") >= 3]
    return [
        Stuck(job, reason, comment)
        for job, reason, comment, submitted_from in jobs
        if Path(submitted_from).resolve() == folder.resolve()
        and any(re.search(pattern, reason) for pattern in NEVER)
    ]


def watch(folder: Path, say: Callable[[str], None]) -> None:
    """From now on tell, once each, which jobs of a folder will never start. For Snakemake's main thread.

    After SIGTERM Snakemake waits for all jobs that it has submitted. So these are cancelled then.
    """
    ending = threading.Event()
    before = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        ending.set()
        if callable(before):
            before(number, frame)

    def look() -> None:
        told = set()
        while True:
            for job in stuck_jobs(folder):
                if ending.is_set():
                    ask("scancel", job.job)
                    say(f"{job}; cancelled, since Snakemake is to end")
                elif job.job not in told:
                    told.add(job.job)
                    say(str(job))
            if ending.is_set():
                time.sleep(LOOK_SECONDS)
            else:
                ending.wait(LOOK_SECONDS)

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=look, name="watch of Slurm's queue", daemon=True).start()
