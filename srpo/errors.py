"""What is wrong with what a user gave, as opposed to a defect of this program."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(Exception):
    """A configuration, file or checkpoint cannot be used. The message names it, what is wrong, and the fix.

    The command `srpo` shows the message alone, without a traceback.
    """


def run_command(main: Callable[[], None]) -> None:
    """Call a command's `main`. What is wrong with its input, or a path, ends the process with one line."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None:
            raise  # not about a path that somebody gave
        sys.exit(f"error: {error.filename}: {error.strerror}")
