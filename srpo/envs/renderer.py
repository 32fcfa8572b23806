"""Pictures on demand, from a render model kept apart from the physics."""

from __future__ import annotations

import functools
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray


@functools.cache
def _gl_context() -> Any:
    """The process's one OpenGL context; each render model has a MuJoCo context of its own in it."""
    from robosuite.utils.binding_utils import GLContext

    return GLContext(max_width=640, max_height=480, device_id=-1)


class Renderer:
    """Renders a physics model's state with the meshes and textures of `render_model`.

    exact: the picture of robosuite's stock offscreen renderer, pixel for pixel.
    fast:  the same scene without multisampling and without reflections.
    """

    def __init__(self, physics: mujoco.MjModel, render_model: mujoco.MjModel, size: int, mode: str) -> None:
        self._gl = _gl_context()
        self._gl.make_current()
        self._physics = physics
        self._size = size
        if mode == "fast":
            render_model.vis.quality.offsamples = 0
        render_model.vis.global_.offwidth = max(size, 640)
        render_model.vis.global_.offheight = max(size, 480)
        self._context = mujoco.MjrContext(render_model, mujoco.mjtFontScale.mjFONTSCALE_150)
        self._scene = mujoco.MjvScene(physics, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = int(mode != "fast")
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision geometry
        self._options.geomgroup[1] = 1
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, size, size)

    def __call__(self, data: mujoco.MjData, camera: str) -> NDArray[np.uint8]:
        """Render one camera.

        Returns:
            uint8 (size, size, 3), rotated by 180° from OpenGL's order as the official stacks do
            (`image[::-1, ::-1]`): upright and mirrored.
        """
        self._gl.make_current()
        # Several MuJoCo contexts share the GL context: the buffer must be chosen anew each time.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
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
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        image = np.empty((self._size, self._size, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._viewport, self._context)
        return np.ascontiguousarray(image[::-1, ::-1])

    def close(self) -> None:
        """Free the MuJoCo context while its OpenGL context is still alive."""
        self._gl.make_current()
        self._context.free()
