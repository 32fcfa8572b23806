"""Compiled MuJoCo models of a scene (physics, visual geoms, rendering), cached on disk.

Compiling a scene's meshes and textures takes seconds and leaves MuJoCo's own caches in memory. So it is done
in a subprocess, and the result is kept in a folder that all processes share: `$SRPO_CACHE`, else
`$XDG_CACHE_HOME/srpo`, else `~/.cache/srpo`. If it holds more than `$SRPO_CACHE_GB` (10), least recently used
models are deleted.

python -m srpo.envs.models KIND FILE < SCENE.xml
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mujoco
import numpy as np

from srpo.runtime.files import atomic_file

PHYSICS, VISIBLE = "physics", "visible"
DECIMATION = {"near": (0.001, 0.1, 1024, True), "fast": (0.002, 0.4, 512, False)}
"""Render mode → tolerance (m) and shading (cosine) of `srpo.envs.decimate`, largest texture (pixels), and
whether textures keep their seams."""
RECIPE = 6
"""Version of the models: increase it with every change of this module that makes different ones."""
STALE_SECONDS = 3600
"""Age of an unfinished file from which its process must have been killed."""


@functools.lru_cache(maxsize=1)
def physics_model(scene: str) -> mujoco.MjModel:
    """The model for simulation of a scene's XML, without visual geoms. It is shared: copy it to change it."""
    return _model(_without_textures(scene), PHYSICS)  # scenes that differ only in pictures share it


def visible_model(scene: str) -> mujoco.MjModel:
    """The model of a scene's XML with visual geoms, for their poses: without pictures on them."""
    return _model(_without_textures(scene), VISIBLE)


def render_model(scene: str, render: str) -> mujoco.MjModel:
    """The model for rendering of a scene's XML; `render` is `exact`, `near` or `fast`."""
    # `srpo.envs.renderer` has further differences between the modes.
    return _model(scene, render)


def with_linear_textures(scene: str) -> str:
    """A scene's XML whose texture files are taken as linear, whatever colour space they state.

    From 3.3.3 on MuJoCo otherwise decodes the PNG files that state sRGB, and draws them darker; older
    versions know no colour spaces.
    """
    if not hasattr(mujoco, "mjtColorSpace"):
        return scene
    return re.sub(r"<texture\b(?=[^>]*\bfile)", '<texture colorspace="linear"', scene)


def _model(scene: str, kind: str) -> mujoco.MjModel:
    folder = cache_folder()
    entry = folder / f"{_key(scene, kind)}.mjb"
    try:
        with _exclusive(entry.with_suffix(".lock")):
            model = _load(entry)
            if model is None:
                with atomic_file(entry) as temporary:
                    _compile_in_subprocess(scene, kind, temporary)
                _limit_size(folder, keep=entry)
                model = _load(entry)
    except OSError as error:
        _warn(f"{folder}: no cache for compiled models ({error.strerror or error}); SRPO_CACHE sets another")
        model = None
    return compiled(scene, kind) if model is None else model


@functools.cache  # once per message
def _warn(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Folder of compiled models."""
    if folder := os.environ.get("SRPO_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "srpo"


def _key(scene: str, kind: str) -> str:
    """Hash of everything that a compiled model depends on: MuJoCo, the recipe, the scene and its files."""
    digest = hashlib.sha256(f"{mujoco.__version__} {RECIPE} {kind}\n{scene}".encode())
    for name in sorted(set(re.findall(r'file\w*="([^"]+)"', scene))):
        if Path(name).is_absolute():
            stat = Path(name).stat()
            digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    """Wait until no other process builds the same model."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _load(entry: Path) -> mujoco.MjModel | None:
    """A model from the cache; None if it is missing or damaged."""
    if not entry.exists():
        return None
    try:
        model = mujoco.MjModel.from_binary_path(str(entry))
    except ValueError:
        return None
    os.utime(entry)
    return model


def _compile_in_subprocess(scene: str, kind: str, file: Path) -> None:
    """Compile a scene into a file.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: the scene does not compile.
    """
    run = subprocess.run(
        [sys.executable, "-m", "srpo.envs.models", kind, str(file)],
        input=scene,
        capture_output=True,
        text=True,
    )
    if run.returncode == os.EX_IOERR:
        raise OSError(run.stderr.strip())
    if run.returncode:
        raise RuntimeError(f"the scene does not compile:\n{run.stderr.strip()}")


def _limit_size(folder: Path, keep: Path) -> None:
    """Delete least recently used models until the folder is within its limit."""
    limit = float(os.environ.get("SRPO_CACHE_GB", "10")) * 1e9
    files = []
    for file in folder.iterdir():
        try:
            files.append((file.stat().st_mtime, file.stat().st_size, file))
        except FileNotFoundError:  # another process has just deleted it
            continue
    total = sum(size for _, size, file in files if file.suffix == ".mjb")
    for used, size, file in sorted(files):
        if file.suffix == ".tmp" and used < time.time() - STALE_SECONDS:
            file.unlink(missing_ok=True)
        elif file.suffix == ".mjb" and file != keep and total > limit:
            file.unlink(missing_ok=True)
            file.with_suffix(".lock").unlink(missing_ok=True)
            total -= size


def compiled(scene: str, kind: str) -> mujoco.MjModel:
    """Compile a scene's XML, as `physics`, `visible`, `exact`, `near` or `fast`.

    Raises:
        ValueError: MuJoCo cannot compile it.
    """
    if kind == PHYSICS:
        # More than a third of the geoms collide with nothing, yet MuJoCo moves and sorts them in every
        # substep. Masses, contacts and their order are the same without them, and without sensors.
        spec = mujoco.MjSpec.from_string(_without_textures(scene))
        spec.compiler.discardvisual = True
        spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_SENSOR
        return spec.compile()
    if kind == VISIBLE:
        return mujoco.MjModel.from_xml_string(_without_textures(scene))
    model = mujoco.MjModel.from_xml_string(scene)
    visible = model.geom_group == 1
    meshes = set(model.geom_dataid[visible & (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH)].tolist())
    for mesh in set(range(model.nmesh)) - meshes:
        model.mesh_facenum[mesh] = 0
    model.mesh_graphadr[:] = -1  # convex hulls are not drawn
    if kind in DECIMATION:
        from srpo.envs.decimate import decimate_meshes

        tolerance, shade, side, seams = DECIMATION[kind]
        decimate_meshes(model, meshes, tolerance, shade, seams)
        _shrink_textures(model, side)
    return model


def _without_textures(xml: str) -> str:
    """The same scene with flat textures in place of pictures."""

    def flatten(match: re.Match[str]) -> str:
        tag = match.group(0)
        if "file" not in tag:
            return tag
        name = re.search(r'name="[^"]*"', tag)
        kind = re.search(r'type="([^"]*)"', tag)
        shape = kind.group(1) if kind else "cube"
        height = 8 if shape == "2d" else 48
        return (
            f'<texture {name.group(0) if name else ""} type="{shape}" builtin="flat" '
            f'width="8" height="{height}" rgb1="1 1 1"/>'
        )

    return re.sub(r"<texture\b[^>]*?/>", flatten, xml)


def _shrink_textures(model: mujoco.MjModel, side: int) -> None:
    """Halve textures in place until none is wider or higher than `side` pixels."""
    for texture in range(model.ntex):
        if model.tex_type[texture] == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            continue
        width, height = int(model.tex_width[texture]), int(model.tex_height[texture])
        faces = 6 if model.tex_type[texture] == mujoco.mjtTexture.mjTEXTURE_CUBE else 1
        channels, start = int(model.tex_nchannel[texture]), int(model.tex_adr[texture])
        factor = 1
        while max(width, height // faces) / factor > side and not (
            width % (2 * factor) or height % (2 * factor)
        ):
            factor *= 2
        if factor == 1:
            continue
        pixels = model.tex_data[start : start + width * height * channels]
        blocks = pixels.reshape(height // factor, factor, width // factor, factor, channels)
        small = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
        model.tex_data[start : start + small.size] = small.ravel()
        model.tex_width[texture], model.tex_height[texture] = width // factor, height // factor


def main(kind: str, file: str) -> int:
    model = compiled(sys.stdin.read(), kind)
    try:
        mujoco.mj_saveModel(model, file, None)
        if Path(file).stat().st_size < mujoco.mj_sizeModel(model):
            raise OSError("the disk is full")
    except (OSError, mujoco.FatalError) as error:
        print(error, file=sys.stderr)
        return os.EX_IOERR
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
