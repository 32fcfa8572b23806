"""LIBERO, lean: the same physics and pictures as the stock environment, without its waiting.

Importing this package decides the OpenGL back end for the process, before MuJoCo is imported: see
`srpo.envs.gl`.
"""

from __future__ import annotations

import sys
import types

from srpo.envs.gl import choose_backend


def _quiet_robosuite() -> None:
    """Switch robosuite's logging off, through the private settings it looks for.

    It logs to /tmp/robosuite.log, which on a shared node belongs to whoever came first: the next user's
    import would fail.
    """
    private = types.ModuleType("robosuite.macros_private")
    private.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    private.CONSOLE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules.setdefault(private.__name__, private)


choose_backend()
_quiet_robosuite()
