"""Worker processes that record demonstrations and play."""

import time
from pathlib import Path

import pytest

from srpo.runtime.processes import worker_pool


def test_after_ctrl_c_no_further_task_begins(tmp_path: Path) -> None:
    """But for the one that waits in the worker's queue: a pool hands out one more than it has workers."""
    with pytest.raises(KeyboardInterrupt), worker_pool(1) as pool:
        begun = pool.submit((tmp_path / "first").touch)
        pool.submit(time.sleep, 0.5)
        later = [pool.submit((tmp_path / f"later{number}").touch) for number in range(10)]
        begun.result()
        raise KeyboardInterrupt
    assert (tmp_path / "first").exists()
    assert sum(future.cancelled() for future in later) >= 8
    assert len(list(tmp_path.glob("later*"))) <= 2
