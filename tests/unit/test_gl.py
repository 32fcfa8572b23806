"""Choosing an OpenGL back end, and one line about what is wrong with it."""

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from srpo.envs import gl


def probe(**variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-m", "srpo.envs"],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert gl.choose_backend() == "egl" == os.environ["PYOPENGL_PLATFORM"]


@pytest.mark.parametrize(("device", "backend"), [(True, "egl"), (False, "osmesa")])
def test_unset_a_gpu_decides(monkeypatch: pytest.MonkeyPatch, device: bool, backend: str) -> None:
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(Path, "exists", lambda path: device)
    assert gl.choose_backend() == backend


@pytest.mark.parametrize(("backend", "package"), [("osmesa", "libosmesa6"), ("egl", "libegl1")])
def test_a_missing_library_names_its_package(
    monkeypatch: pytest.MonkeyPatch, backend: str, package: str
) -> None:
    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(gl.MissingGLError, match=f"MUJOCO_GL={backend} .* apt-get install {package}"):
        gl.require_gl()


def test_a_back_end_with_a_screen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(gl.MissingGLError, match="`egl` or `osmesa`"):
        gl.require_gl()


def test_a_closed_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(
        Path, "glob", lambda folder, pattern: [folder / pattern.replace("*", "128")][: "render" in pattern]
    )
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert gl._reason(RuntimeError("?")).startswith("no right to open /dev/dri/renderD128")


def test_the_probe_draws() -> None:
    result = probe(MUJOCO_GL="osmesa")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("MUJOCO_GL=osmesa: ") and result.stdout.count("\n") == 1


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="no EGL here")
def test_the_probe_tells_what_is_wrong_in_one_line() -> None:
    result = probe(MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="99")
    assert result.returncode == 1
    assert result.stderr.startswith("MUJOCO_GL=egl: ") and result.stderr.count("\n") == 1
    assert "MUJOCO_EGL_DEVICE_ID" in result.stderr


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="no EGL here")
def test_a_gpu_that_is_not_there_has_no_egl_device() -> None:
    assert gl.egl_device(1_000) is None
