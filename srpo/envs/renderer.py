"""Pictures on request, from models separate from the physics."""

from __future__ import annotations

import atexit
import functools
from collections import OrderedDict
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from srpo.envs.gl import create_context
from srpo.envs.models import render_model, visible_model
from srpo.envs.osc import Observation

CONTEXTS = 2
"""Number of scenes that a process keeps: meshes and textures in OpenGL's memory, geoms in its own."""
_LIGHT_TYPE = "light_type" if hasattr(mujoco.MjModel, "light_type") else "light_directional"  # to 3.3.2
MOVABLE = ("body_pos", "body_quat", "site_pos", "site_size", "cam_pos", "cam_quat", _LIGHT_TYPE,
           "light_castshadow", "light_pos", "light_dir", "light_diffuse", "light_specular",
           "light_ambient")  # fmt: skip
"""Arrays of a simulation's model that tasks, resets or perturbations change and that pictures depend on."""


@functools.cache
def _gl_context() -> Any:
    """The process's one OpenGL context, shared by the MuJoCo contexts of all render models."""
    context = create_context(640)
    atexit.register(free_contexts)  # before the OpenGL context itself is freed
    return context


class VisibleScene:
    """A scene (XML) with its visual geoms, shared by its simulations, whose own models lack them."""

    def __init__(self, scene: str) -> None:
        self.model = visible_model(scene)
        self.data = mujoco.MjData(self.model)

    def pose(self, physics: mujoco.MjModel, qpos: NDArray[np.float64]) -> None:
        """Pose bodies, cameras and lights as a simulation of this scene has them at `qpos`, float64 (nq,)."""
        for name in MOVABLE:
            getattr(self.model, name)[:] = getattr(physics, name)
        self.data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)


visible_scene = functools.lru_cache(maxsize=CONTEXTS)(VisibleScene)


class RenderContext:
    """The meshes and textures of a scene in OpenGL's memory, for pictures of one size.

    exact: the picture of robosuite's stock offscreen renderer, pixel for pixel.
    near:  the same with meshes decimated to less than a pixel's error, and smaller textures.
    fast:  decimated further, without multisampling and without reflections.
    """

    def __init__(self, scene: str, size: int, render: str) -> None:
        model = render_model(scene, render)
        if render == "fast":
            model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._gl = _gl_context()
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        self._visible = visible_scene(scene)
        self._scene = mujoco.MjvScene(self._visible.model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = int(render != "fast")
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision geometry
        self._options.geomgroup[1] = 1
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, size, size)
        self._image = np.empty((size, size, 3), np.uint8)

    def draw(self, physics: mujoco.MjModel, observation: Observation, camera: int) -> NDArray[np.uint8]:
        """The picture uint8 (size, size, 3) of a simulation of this scene, in OpenGL's order."""
        # Several MuJoCo contexts share the OpenGL context.
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        model, data = self._visible.model, self._visible.data
        self._visible.pose(physics, observation.qpos)
        model.site_rgba[:] = observation.site_rgba
        self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            model, data, self._options, self._perturb, self._camera, everything, self._scene
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._image, None, self._viewport, self._context)
        return self._image

    def free(self) -> None:
        """Free the memory, while the OpenGL context still exists."""
        self._gl.make_current()
        self._context.free()


_contexts: OrderedDict[tuple[str, int, str], RenderContext] = OrderedDict()


def render_context(scene: str, size: int, render: str) -> RenderContext:
    """The context of a scene (XML), shared by all its tasks.

    A process keeps the `CONTEXTS` most recently used: some scenes take half a gigabyte with stock textures.
    """
    key = (scene, size, render)
    if key not in _contexts:
        if len(_contexts) == CONTEXTS:
            _contexts.popitem(last=False)[1].free()
        _contexts[key] = RenderContext(scene, size, render)
    _contexts.move_to_end(key)
    return _contexts[key]


def free_contexts() -> None:
    """Free all contexts of this process; they are created again when needed."""
    while _contexts:
        _contexts.popitem()[1].free()


class Renderer:
    """Renders the observations of one physics model, with the meshes and textures of its scene (XML)."""

    def __init__(self, physics: mujoco.MjModel, scene: str, render: str) -> None:
        self._physics, self._xml, self._render = physics, scene, render

    def __call__(self, observation: Observation, camera: str, size: int) -> NDArray[np.uint8]:
        """Render one camera.

        Returns:
            uint8 (size, size, 3), rotated by 180° from OpenGL's order as the official stacks do
            (`image[::-1, ::-1]`): upright and mirrored.
        """
        context = render_context(self._xml, size, self._render)
        image = context.draw(self._physics, observation, self._physics.camera(camera).id)
        return np.ascontiguousarray(image[::-1, ::-1])
