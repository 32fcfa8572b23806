"""OpenGL without a screen: its back end, its GPU, and what is wrong if it does not work.

The back end is the environment variable `MUJOCO_GL`: `egl` (a driver, on a GPU where there is one) or
`osmesa` (software). Unset, it is EGL where this process has an NVIDIA GPU, else OSMesa. There is no fallback
to the other one, and every result records it and the renderer. Under EGL each process of a distributed run
renders on the GPU on which it learns.

`python -m srpo.envs` draws a picture and tells in one line what works, or what is wrong.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srpo.errors import InputError

_LIBRARIES = {"osmesa": ("OSMesa", "libosmesa6"), "egl": ("EGL", "libegl1")}
_EGL_CUDA_DEVICE_NV = 0x323A  # of the extension EGL_NV_device_cuda
_DEVICES = Path("/dev")
_SOFTWARE = re.compile("llvmpipe|softpipe|swrast|swiftshader|software", re.IGNORECASE)


class MissingGLError(InputError, RuntimeError):
    """The chosen OpenGL back end cannot be used."""

    passing = True  # another node may have what is missing here


def choose_backend() -> str:
    """The back end of this process. Also sets the variables that MuJoCo and PyOpenGL read at import."""
    backend = os.environ.setdefault("MUJOCO_GL", "egl" if has_gpu() else "osmesa")
    os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    return backend


def has_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an NVIDIA GPU is given to this process: a device opens, and CUDA may see it.

    A Slurm job that asked for no GPU may find the node's devices, closed to it or another job's.
    """
    given = environment.get("CUDA_VISIBLE_DEVICES", "" if "SLURM_JOB_ID" in environment else "0")
    return given not in ("", "-1", "NoDevFiles") and any(map(_opens, _DEVICES.glob("nvidia[0-9]*")))


def _opens(device: Path) -> bool:
    """Unlike its mode, this notices cgroups."""
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError:
        return False
    return True


def is_software(renderer: str) -> bool:
    """Whether OpenGL's name of a renderer is one of Mesa's that draw on CPUs."""
    return bool(_SOFTWARE.search(renderer))


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


def gpu_name(environment: Mapping[str, str] = os.environ) -> str:
    """CUDA's name of this process's GPU, '' if it has none: a number, or a UUID of a GPU or MIG instance.

    Of the GPUs that CUDA shows it is the one of the process's local rank, on which it learns, too. Where each
    process is shown a GPU of its own, it is that one.
    """
    rank = int(environment.get("LOCAL_RANK", "0"))
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return str(rank)
    names = [name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",")]
    return names[rank % len(names)]


def cuda_number(name: str) -> int | None:
    """CUDA's number of a GPU: by its number, the beginning of its UUID, or that of one of its MIG instances.

    None if the driver has no such GPU. (Its numbers are CUDA's where a node's GPUs are alike.)
    """
    if name.isdigit():
        return int(name)
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    number = None
    for line in listing.splitlines():
        if gpu := re.match(r"GPU (\d+):", line):
            number = int(gpu[1])
        uuid = re.search(r"UUID: ([^)]+)\)", line)
        if name and uuid and uuid[1].startswith(name):
            return number
    return None


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

    With EGL it is on the GPU of `MUJOCO_EGL_DEVICE_ID` (EGL's number), else on this process's (`gpu_name`).

    Raises:
        MissingGLError: no context can be created; the message tells why.
    """
    require_gl()
    if choose_backend() == "egl" and "MUJOCO_EGL_DEVICE_ID" not in os.environ and has_gpu():
        name = gpu_name()
        number = cuda_number(name)
        device = None if number is None else egl_device(number)
        if device is None:
            raise MissingGLError(
                f"MUJOCO_GL=egl: no EGL device is CUDA's {name!r} (CUDA_VISIBLE_DEVICES, LOCAL_RANK): "
                "install NVIDIA's OpenGL libraries, or render in software: MUJOCO_GL=osmesa"
            )
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
    if choose_backend() == "egl" and gpu_name().startswith("MIG-"):
        return f"{gpu_name()} is a part of a GPU (MIG), and few of those render: MUJOCO_GL=osmesa"
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
