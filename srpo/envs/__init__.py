"""LIBERO at ten times the stock environment's speed and more, with the same physics and pictures.

Importing this package chooses the OpenGL back end of the process, before MuJoCo is imported (`srpo.envs.gl`).
"""

from __future__ import annotations

import sys
import types

from srpo.envs.gl import choose_backend


def _disable_robosuite_logging() -> None:
    """Disable robosuite's log files, by the private settings module that it looks for.

    It logs to /tmp/robosuite.log. On a shared node that file belongs to the first user, and the import would
    fail for all others.
    """
    private = types.ModuleType("robosuite.macros_private")
    private.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    private.CONSOLE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules.setdefault(private.__name__, private)


choose_backend()
_disable_robosuite_logging()
