"""Processes that share work: as threads with a store of torch.distributed, or as `srun` starts them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import TypeVar

from torch.distributed import HashStore

from srpo.errors import run_command
from srpo.runtime.peers import Peers, joined_peers

T = TypeVar("T")


def together(work: Callable[[Peers], T], size: int) -> list[T]:
    """What each of so many threads makes of `work`, in the order of their ranks."""
    store = HashStore()

    def run(peers: Peers) -> T:
        try:
            return work(peers)
        except BaseException:
            peers.fail()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, [Peers(rank, size, store) for rank in range(size)]))


def start(work: Callable[[Peers], object], size: int) -> list[BaseProcess]:
    """Start so many processes that do `work`. Forked: importing torch takes longer than the work."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def run(rank: int) -> None:
        settings = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in settings.items()})

        def main() -> None:
            with joined_peers() as peers:
                work(peers)

        run_command(main)

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(k,)) for k in range(size)]
    for process in processes:
        process.start()
    return processes
