"""What is wrong with what a user gave, as opposed to a defect of this program, and how a command ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

FINAL = 65
"""Exit code of what another try would not change (sysexits.h: EX_DATAERR). Unlike 75, which asks for one
(`srpo.runtime.preemption`), and others, after which one may help."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Of writing to a disk, or over a quota, that is full."""
FINAL_FILE = "SRPO_FINAL"
"""Environment variable: a file to make at such an end, for those who do not see the exit code. Snakemake does
not see that of a Slurm job, and accelerate's launcher changes it."""


class InputError(Exception):
    """A configuration, file or checkpoint cannot be used. The message names it, what is wrong, and the fix.

    The command `srpo` shows the message alone, without a traceback.
    """

    passing = False
    """Whether another try may help without a change by the user: later, or on another node."""


class FinalExit(SystemExit):
    """Ends a command with a message and the code FINAL."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = FINAL


def run_command(main: Callable[[], None]) -> None:
    """Call a command's `main`. What is wrong with its input, or a path, ends the process with one line."""
    try:
        main()
    except InputError as error:
        if error.passing:
            sys.exit(f"error: {error}")
        _end(FinalExit(f"error: {error}"))
    except FinalExit as error:
        _end(error)
    except OSError as error:
        if error.errno in FULL:
            sys.exit(f"error: {error.filename or 'writing'}: {error.strerror}: make room and start again")
        if error.filename is None:
            raise  # not about a path that somebody gave
        sys.exit(f"error: {error.filename}: {error.strerror}")


def _end(error: FinalExit) -> None:
    print(error, file=sys.stderr)
    if file := os.environ.get(FINAL_FILE):
        Path(file).touch()
    raise error from None
