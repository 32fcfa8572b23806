"""OpenGL without a screen: its back end, its GPU, and what is wrong if it does not work.

The back end is the environment variable `MUJOCO_GL`: `egl` (a driver, on a GPU where there is one) or
`osmesa` (software). Unset, it is EGL where there is an NVIDIA device, else OSMesa. There is no fallback to
the other one, and every result records it.

`python -m srpo.envs` draws a picture and tells in one line what works, or what is wrong.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from pathlib import Path
from typing import Any

from srpo.errors import InputError

_LIBRARIES = {"osmesa": ("OSMesa", "libosmesa6"), "egl": ("EGL", "libegl1")}
_EGL_CUDA_DEVICE_NV = 0x323A  # of the extension EGL_NV_device_cuda


class MissingGLError(InputError, RuntimeError):
    """The chosen OpenGL back end cannot be used."""


def choose_backend() -> str:
    """The back end of this process. Also sets the variables that MuJoCo and PyOpenGL read at import."""
    backend = os.environ.setdefault("MUJOCO_GL", "egl" if Path("/dev/nvidiactl").exists() else "osmesa")
    os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    return backend


def require_gl() -> None:
    """Check that the chosen back end's library is installed.

    Raises:
        MissingGLError: it is not; the message has the Debian package that provides it.
    """
    backend = choose_backend()
    if backend not in _LIBRARIES:
        raise MissingGLError(f"MUJOCO_GL={backend}: pictures are rendered with `egl` or `osmesa`")
    library, package = _LIBRARIES[backend]
    if ctypes.util.find_library(library) is None:
        raise MissingGLError(
            f"MUJOCO_GL={backend} needs lib{library}, which is not installed. Install it "
            f"(Debian, Ubuntu: apt-get install {package}; conda: mesalib) or choose another back end "
            "with MUJOCO_GL=osmesa or MUJOCO_GL=egl."
        )


def egl_device(cuda: int) -> int | None:
    """EGL's number of the GPU with CUDA's number `cuda`: the two have different orders.

    None if no EGL device reports that CUDA number (without NVIDIA's driver, for example).
    """
    egl = ctypes.CDLL(ctypes.util.find_library("EGL"))
    egl.eglGetProcAddress.restype = ctypes.c_void_p

    def function(name: str, *arguments: Any) -> Any:
        address = egl.eglGetProcAddress(name.encode())
        return ctypes.CFUNCTYPE(ctypes.c_uint, *arguments)(address) if address else lambda *_: 0

    query_devices = function(
        "eglQueryDevicesEXT", ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)
    )
    query_attribute = function(
        "eglQueryDeviceAttribEXT", ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_ssize_t)
    )
    devices, count = (ctypes.c_void_p * 64)(), ctypes.c_int()
    if not query_devices(len(devices), devices, ctypes.byref(count)):
        return None
    for index in range(count.value):
        number = ctypes.c_ssize_t(-1)
        if (
            query_attribute(devices[index], _EGL_CUDA_DEVICE_NV, ctypes.byref(number))
            and number.value == cuda
        ):
            return index
    return None


def create_context(size: int) -> Any:
    """MuJoCo's OpenGL context for pictures of up to `size` pixels.

    With EGL it is on the GPU of `MUJOCO_EGL_DEVICE_ID` (EGL's number), else on the first of CUDA's.

    Raises:
        MissingGLError: no context can be created; the message tells why.
    """
    require_gl()
    if choose_backend() == "egl" and "MUJOCO_EGL_DEVICE_ID" not in os.environ:
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        device = egl_device(int(first)) if first.isdigit() else None
        if device is not None:
            os.environ["MUJOCO_EGL_DEVICE_ID"] = str(device)
    import mujoco

    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None  # freeing a context that MuJoCo failed to create prints tracebacks
    try:
        context = mujoco.GLContext(size, size)
        context.make_current()
        return context
    except Exception as error:  # PyOpenGL, MuJoCo and ctypes raise many kinds
        reason = _reason(error)
    finally:
        sys.unraisablehook = hook
    raise MissingGLError(f"MUJOCO_GL={choose_backend()}: {reason}")


def _reason(error: Exception) -> str:
    nodes = sorted(Path("/dev/dri").glob("renderD*")) + sorted(Path("/dev").glob("nvidia[0-9]*"))
    closed = [str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if choose_backend() == "egl" and closed:
        return f"no right to open {', '.join(closed)}: join the group that owns it (`ls -l` tells which)"
    return f"no OpenGL context ({' '.join(str(error).split()) or type(error).__name__})"


def probe() -> str:
    """Draw a picture and describe what drew it.

    Raises:
        MissingGLError: it does not work.
    """
    gl = create_context(64)
    import mujoco
    import numpy as np
    from OpenGL import GL

    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><light pos='0 0 3'/><geom size='1' rgba='1 0 0 1'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
    scene, viewport = mujoco.MjvScene(model, maxgeom=10), mujoco.MjrRect(0, 0, 64, 64)
    mujoco.mjv_updateScene(
        model, data, mujoco.MjvOption(), None, mujoco.MjvCamera(), mujoco.mjtCatBit.mjCAT_ALL, scene
    )
    mujoco.mjr_render(viewport, scene, context)
    picture = np.zeros((64, 64, 3), np.uint8)
    mujoco.mjr_readPixels(picture, None, viewport, context)
    names = [GL.glGetString(name).decode() for name in (GL.GL_RENDERER, GL.GL_VERSION)]
    context.free()
    gl.free()
    if picture[32, 32, 0] == 0:
        raise MissingGLError(f"MUJOCO_GL={choose_backend()}: {', '.join(names)} draws nothing")
    return f"MUJOCO_GL={choose_backend()}: {', '.join(names)}"
