"""Work that several processes share, of which each does whatever none of the others has begun.

They are started together, by accelerate's launcher or one Slurm task each (docs/hpc.md), and find each other
by the variables that PyTorch reads (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`). What they exchange
goes in JSON through the key-value store of torch.distributed, of which no process group is made: a process
meets the others only when it asks for work and when it has none left.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from srpo.errors import FinalExit
from srpo.runtime.preemption import PREEMPTED, Preempted

if TYPE_CHECKING:
    import torch

START_TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others to start; the first may have to wait for a lock."""
POLL_SECONDS = 0.1
"""Between two looks at what another process is awaited for."""


def is_first_process() -> bool:
    """Whether this process is alone or the first of its group, which alone writes what is not shared."""
    return os.environ.get("RANK", "0") == "0"


def require_given_gpus() -> None:
    """Raise SystemExit if Slurm gave this job GPUs and PyTorch cannot use any: it would run on the CPU.

    With `CUDA_VISIBLE_DEVICES` empty that is what is wanted.
    """
    import torch

    given = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if given == "0" or hidden or torch.accelerator.is_available():
        return
    build = "" if torch.version.cuda or torch.version.hip else ", the CPU build,"
    raise FinalExit(
        f"Slurm gave this job {given} GPU (SLURM_GPUS_ON_NODE), and PyTorch {torch.__version__}{build} can "
        "use none: see `srpo doctor` (the CUDA build: rm -rf .venv, then make TORCH=cuda .venv/installed)"
    )


def own_device() -> torch.device:
    """The GPU of this process, by its rank on its node; the CPU where there is none."""
    import torch

    if not torch.cuda.is_available():
        require_given_gpus()
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


class Peers:
    """This process among those that share its work; by default it is alone.

    rank  of this process, from 0
    size  number of processes
    """

    def __init__(self, rank: int = 0, size: int = 1, store: torch.distributed.Store | None = None) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._gathered = self._round = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def start_round(self) -> None:
        """Begin other work, whose items may be told by the same texts. All must do so equally often."""
        self._round += 1

    def claim(self, item: object) -> bool:
        """Whether an item of the round's work is this process's, as it is of the first that asks.

        Args:
            item: told from others by its text.

        Raises:
            SystemExit: another process has failed.
        """
        if self._store is None:
            return True
        self._require_no_failure()
        own = str(self.rank)
        return self._store.compare_set(f"claim/{self._round}/{item}", "", own) == own.encode()

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """The values (of JSON) of all processes, in the order of their ranks. All must call, and wait.

        Raises:
            SystemExit: another process has failed.
        """
        if self._store is None:
            return list(values)
        self._gathered += 1
        name = f"gather/{self._gathered}"
        # A value a key, because the store takes no more than 8 MB at once.
        for number, value in enumerate(values):
            self._store.set(f"{name}/{self.rank}/{number}", json.dumps(value))
        self._store.set(f"{name}/{self.rank}", str(len(values)))
        found = []
        for rank in range(self.size):
            self._wait_for(f"{name}/{rank}")
            count = int(self._store.get(f"{name}/{rank}"))
            found += [json.loads(self._store.get(f"{name}/{rank}/{number}")) for number in range(count)]
        return found

    def leave(self) -> None:
        """Say that this process needs the others no longer. The first waits for all: the store may be its."""
        assert self._store is not None
        self._store.set(f"left/{self.rank}", "")
        if self.is_first:
            for rank in range(self.size):
                self._wait_for(f"left/{rank}")

    def fail(self, preempted: bool = False) -> None:
        """Make the others end, too, as preempted ones if this one is."""
        assert self._store is not None
        self._store.compare_set("failed", "", json.dumps([self.rank, preempted]))

    def _wait_for(self, key: str) -> None:
        assert self._store is not None
        while not self._store.check([key]):
            self._require_no_failure()
            time.sleep(POLL_SECONDS)

    def _require_no_failure(self) -> None:
        assert self._store is not None
        if self._store.check(["failed"]):
            rank, preempted = json.loads(self._store.get("failed"))
            if preempted:
                raise Preempted(PREEMPTED)
            raise SystemExit(
                f"error: process {rank} of {self.size}, counted from 0, ended with an error, which it tells; "
                "what is done is kept: mend the cause, start again"
            )


ALONE = Peers()


@contextmanager
def joined_peers() -> Iterator[Peers]:
    """The processes that were started together with this one, within this block; it waits for all at first.

    If one of them leaves the block by an exception, the others end with SystemExit, at the latest when they
    wait for it. One that is killed cannot say so: that is up to what started them (accelerate's launcher,
    `srun --kill-on-bad-exit`).

    Raises:
        SystemExit: the environment has no address at which they meet, or another process has failed.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield ALONE
        return
    from torch.distributed import DistError, DistNetworkError, PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, number = next(rendezvous("env://", timeout=START_TIMEOUT))
    except ValueError as error:
        raise FinalExit(
            f"error: WORLD_SIZE is {size}, but: {error}. Start the processes as docs/hpc.md says, or unset it"
        ) from None
    except DistError as error:
        raise SystemExit(f"error: the {size} processes do not find each other: {error}") from None
    # The store may be that of the launcher, and outlive a start of the processes.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    peers = Peers(rank, number, PrefixStore(f"srpo/{start}", store))
    try:
        yield peers
        peers.leave()
    except DistNetworkError:
        raise SystemExit(
            "error: the first process has ended, see what it tells; what is done is kept: mend the cause, "
            "start again"
        ) from None
    except BaseException as error:
        with suppress(DistNetworkError):
            peers.fail(preempted=isinstance(error, Preempted))
        raise
