"""Stopping on a signal: SIGTERM and SIGUSR1 end a program with an exit code that means "run it again"."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PREEMPTED = 75
"""Exit code of a run that a signal stopped: run it again and it resumes (sysexits.h: EX_TEMPFAIL)."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send: the node is needed for another job, or the time limit is near."""


class Preempted(SystemExit):
    """A signal of `SIGNALS` arrived."""


@contextmanager
def preemptible() -> Iterator[None]:
    """Within this block SIGTERM and SIGUSR1 raise `Preempted`, which ends the program with code 75.

    Nothing is left to save then: checkpoints are written after steps, episodes as they end.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:  # a second signal must not interrupt the clean-up
            signal.signal(each, signal.SIG_IGN)
        print(f"{signal.Signals(number).name}: stopping; the same command resumes from here", flush=True)
        raise Preempted(PREEMPTED)

    previous = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
