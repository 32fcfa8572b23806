"""Pictures on demand, from a render model kept apart from the physics."""

from __future__ import annotations

import atexit
import functools
from collections import OrderedDict
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from srpo.envs.gl import create_context
from srpo.envs.models import render_model

CONTEXTS = 2
"""Scenes whose meshes and textures a process keeps in OpenGL's memory."""


@functools.cache
def _gl_context() -> Any:
    """The process's one OpenGL context; each render model has a MuJoCo context of its own in it."""
    context = create_context(640)
    atexit.register(free_contexts)  # before the OpenGL context itself goes
    return context


class RenderContext:
    """The meshes and textures of a scene in OpenGL's memory, for pictures of one size.

    exact: the picture of robosuite's stock offscreen renderer, pixel for pixel.
    near:  the same with meshes decimated below what a pixel shows, and smaller textures.
    fast:  decimated further, without multisampling and without reflections.
    """

    def __init__(self, scene: str, size: int, render: str) -> None:
        model = render_model(scene, render)
        if render == "fast":
            model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._gl = _gl_context()
        self._gl.make_current()
        self.mujoco = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)

    def make_current(self) -> None:
        """Direct OpenGL to this context: several of MuJoCo's share one of OpenGL's."""
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.mujoco)

    def free(self) -> None:
        """Give the memory back, while the OpenGL context is still there."""
        self._gl.make_current()
        self.mujoco.free()


_contexts: OrderedDict[tuple[str, int, str], RenderContext] = OrderedDict()


def render_context(scene: str, size: int, render: str) -> RenderContext:
    """The context of a scene (XML), shared by all tasks that have it.

    A process keeps the `CONTEXTS` that were used last: some scenes take half a gigabyte with stock textures.
    """
    key = (scene, size, render)
    if key not in _contexts:
        if len(_contexts) == CONTEXTS:
            _contexts.popitem(last=False)[1].free()
        _contexts[key] = RenderContext(scene, size, render)
    _contexts.move_to_end(key)
    return _contexts[key]


def free_contexts() -> None:
    """Free all of this process's contexts; they come back when they are needed."""
    while _contexts:
        _contexts.popitem()[1].free()


class Renderer:
    """Renders the states of one physics model, with the meshes and textures of its scene (XML)."""

    def __init__(self, physics: mujoco.MjModel, scene: str, render: str) -> None:
        self._physics = physics
        self._xml, self._render = scene, render
        self._scene = mujoco.MjvScene(physics, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = int(render != "fast")
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision geometry
        self._options.geomgroup[1] = 1
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def __call__(self, data: mujoco.MjData, camera: str, size: int) -> NDArray[np.uint8]:
        """Render one camera.

        Returns:
            uint8 (size, size, 3), rotated by 180° from OpenGL's order as the official stacks do
            (`image[::-1, ::-1]`): upright and mirrored.
        """
        context = render_context(self._xml, size, self._render)
        context.make_current()
        self._camera.fixedcamid = self._physics.camera(camera).id
        mujoco.mjv_updateScene(
            self._physics,
            data,
            self._options,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        viewport = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(viewport, self._scene, context.mujoco)
        image = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, context.mujoco)
        return np.ascontiguousarray(image[::-1, ::-1])
