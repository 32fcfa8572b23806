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


@pytest.mark.parametrize(
    ("opens", "variables", "backend"),
    [
        (True, {}, "egl"),
        (True, {"CUDA_VISIBLE_DEVICES": "GPU-1"}, "egl"),
        (True, {"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "3"}, "egl"),
        (False, {}, "osmesa"),  # the node's GPU is closed to this job
        (True, {"SLURM_JOB_ID": "1"}, "osmesa"),  # or another's
        (True, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "osmesa"),
        (True, {"CUDA_VISIBLE_DEVICES": ""}, "osmesa"),
    ],
)
def test_unset_a_gpu_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opens: bool, variables: dict[str, str], backend: str
) -> None:
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "nvidiactl").touch()
    device = tmp_path / "nvidia0"
    device.touch() if opens else device.mkdir()
    monkeypatch.setattr(gl, "_DEVICES", tmp_path)
    assert gl.choose_backend() == backend


@pytest.mark.parametrize(
    ("visible", "ranks"),
    [
        (None, ["0", "1", "2"]),
        ("4,6", ["4", "6", "4"]),
        ("GPU-a, GPU-b", ["GPU-a", "GPU-b", "GPU-a"]),
        ("5", ["5", "5", "5"]),  # each process is shown its own
        ("", ["", "", ""]),
    ],
)
def test_each_rank_has_a_gpu_of_its_own(visible: str | None, ranks: list[str]) -> None:
    shown = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [gl.gpu_name(shown | {"LOCAL_RANK": str(rank)}) for rank in range(3)] == ranks
    assert gl.gpu_name(shown) == ranks[0]


NVIDIA_SMI = """#!/bin/sh
cat <<'END'
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5d5ba0d6-9af9-ceba-0000-000000000000)
  MIG 3g.40gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-7a2e7c0f-1111-2222-3333-444444444444)
  MIG 1g.10gb     Device  0: (UUID: MIG-28de6a4d-0000-0000-0000-000000000000)
END
"""


def test_uuids_have_cudas_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gl.cuda_number("3") == 3
    assert gl.cuda_number("GPU-7a2e7c0f-1111-2222-3333-444444444444") == 1
    assert gl.cuda_number("GPU-7a2e") == 1  # CUDA takes its beginning, too
    assert gl.cuda_number("MIG-28de6a4d-0000-0000-0000-000000000000") == 1
    assert gl.cuda_number("GPU-9") is None and gl.cuda_number("") is None


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="no EGL here")
def test_a_gpu_that_egl_does_not_have_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by another rank's nor by software."""
    for name, value in {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "998,999")
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(gl, "_DEVICES", tmp_path)
    with pytest.raises(gl.MissingGLError, match="no EGL device is CUDA's '999'"):
        gl.create_context(64)


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
