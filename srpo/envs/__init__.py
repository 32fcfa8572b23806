"""LIBERO, lean: the same physics and pictures as the stock environment, without its waiting.

Importing this package decides the OpenGL back end for the process, before MuJoCo is imported: the
environment variable `MUJOCO_GL` if it is set, else EGL where there is an NVIDIA device, else OSMesa.
"""

from __future__ import annotations

import ctypes.util
import os
import sys
import types
from pathlib import Path

_LIBRARIES = {"osmesa": ("OSMesa", "libosmesa6"), "egl": ("EGL", "libegl1")}


class MissingGLError(RuntimeError):
    """The OpenGL library of the chosen back end cannot be found."""


def _choose_gl() -> str:
    backend = os.environ.setdefault("MUJOCO_GL", "egl" if Path("/dev/nvidiactl").exists() else "osmesa")
    os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    return backend


def require_gl() -> None:
    """Check that the chosen back end's library is there.

    Raises:
        MissingGLError: with the Debian package that provides it.
    """
    if GL_BACKEND in _LIBRARIES:
        library, package = _LIBRARIES[GL_BACKEND]
        if ctypes.util.find_library(library) is None:
            raise MissingGLError(
                f"MUJOCO_GL={GL_BACKEND} needs lib{library}, which is not installed. Install it "
                f"(Debian, Ubuntu: apt-get install {package}; conda: mesalib) or choose another back end "
                "with MUJOCO_GL=osmesa or MUJOCO_GL=egl."
            )


def _quiet_robosuite() -> None:
    """Switch robosuite's logging off, through the private settings it looks for.

    It logs to /tmp/robosuite.log, which on a shared node belongs to whoever came first: the next user's
    import would fail.
    """
    private = types.ModuleType("robosuite.macros_private")
    private.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    private.CONSOLE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules.setdefault(private.__name__, private)


GL_BACKEND = _choose_gl()
_quiet_robosuite()
