"""Worker processes: one core each, ended with their parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
"""No threads in NumPy, none in Mesa's software renderer."""


@contextmanager
def one_core_each() -> Iterator[None]:
    """Processes started within use one core: their libraries read these variables when they are loaded."""
    before = {name: os.environ.get(name) for name in SINGLE_THREADED}
    os.environ.update(SINGLE_THREADED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def worker_pool(workers: int, tasks_each: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Worker processes of one core each. After an error, or Ctrl-C, they begin no further task.

    Args:
        tasks_each: tasks after which a process is replaced by a new one; None: never.
    """
    spawn = multiprocessing.get_context("spawn")
    with (
        one_core_each(),
        ProcessPoolExecutor(workers, spawn, end_with_parent, max_tasks_per_child=tasks_each) as pool,
    ):
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def end_with_parent() -> None:
    """End this process when its parent is killed; otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
