"""The expert's controller: proportional control of the gripper's pose, with optional noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from srpo.envs.expert.scene import FINGERS_ALONG_Y, Matrix, Vector, rotation_vector
from srpo.envs.libero import LiberoEnv

OPEN, CLOSED = -1.0, 1.0
"""Gripper commands."""
TRANSLATION, ROTATION = 0.05, 0.5
"""Displacement (metres) and rotation (radians) of a full action."""
GAIN = 1.5
ROTATION_GAIN = 1.2
ROTATION_LIMIT = 0.6
"""Largest rotation number of an action."""
NOISE_CORRELATION = 0.8
NOISE_SCALE = np.array([1.0, 1.0, 1.0, 0.3, 0.3, 0.3])
"""Noise on translation and rotation, as fractions of the configured standard deviation."""
SLOW = 0.8
"""Speed from which downwards the gripper is near objects, where full noise would spoil grasps."""
SLOW_NOISE = 0.5
"""Fraction of the noise at slow speed."""
CLOSING_STEPS = 12
"""Control steps that the gripper takes to close."""

BeforeStep = Callable[[Vector], None]


class EpisodeEnd(Exception):  # noqa: N818  (not an error)
    """The task is solved or the steps are used up."""

    def __init__(self, success: bool) -> None:
        super().__init__("solved" if success else "out of steps")
        self.success = success


class CorrelatedNoise:
    """AR(1) noise x' = ρ x + √(1 − ρ²) σ ε of an action's six motion numbers, starting at 0."""

    def __init__(self, scale: float, rng: np.random.Generator) -> None:
        self._deviation = scale * NOISE_SCALE
        self._rng = rng
        self._value = np.zeros(6)

    def __call__(self) -> Vector:
        """The next value (6,)."""
        innovation = self._rng.standard_normal(6) * self._deviation
        self._value = NOISE_CORRELATION * self._value + np.sqrt(1 - NOISE_CORRELATION**2) * innovation
        return self._value


class Arm:
    """The robot's gripper.

    `before_step` is called with every intended action just before it is executed with noise. So noisy
    demonstrations have states off the path, labelled with the action that returns to it.
    """

    def __init__(
        self,
        env: LiberoEnv,
        noise: float,
        rng: np.random.Generator,
        max_steps: int,
        before_step: BeforeStep,
    ) -> None:
        self._env = env
        self._site = env.env.robots[0].eef_site_id
        self._noise = CorrelatedNoise(noise, rng)
        self._steps_left = max_steps
        self._before_step = before_step
        self._command = OPEN
        self._target_rotation = FINGERS_ALONG_Y

    @property
    def position(self) -> Vector:
        """Gripper position (3,), between the finger tips."""
        position: Vector = self._env.data.site_xpos[self._site].copy()
        return position

    @property
    def rotation(self) -> Matrix:
        """Gripper orientation (3, 3): x along the fingers' motion, z the approach."""
        return self._env.data.site_xmat[self._site].reshape(3, 3).copy()

    @property
    def target_rotation(self) -> Matrix:
        """The orientation last commanded."""
        return self._target_rotation

    def _act(self, target: Vector, gain: float, speed: float) -> None:
        """One control step towards `target`, scaled so that no axis exceeds `speed`."""
        action = np.empty(7)
        action[:3] = gain / TRANSLATION * (target - self.position)
        action[:3] *= min(1.0, speed / max(np.abs(action[:3]).max(), 1e-9))
        action[3:6] = ROTATION_GAIN / ROTATION * rotation_vector(self.rotation, self._target_rotation)
        action[3:6] *= min(1.0, ROTATION_LIMIT / max(np.abs(action[3:6]).max(), 1e-9))
        action[6] = self._command
        self._before_step(action.copy())
        noise = self._noise() * (SLOW_NOISE if speed <= SLOW else 1.0)
        action[:6] = np.clip(action[:6] + noise, -1.0, 1.0)
        self._steps_left -= 1
        if self._env.step(action):
            raise EpisodeEnd(success=True)
        if self._steps_left <= 0:
            raise EpisodeEnd(success=False)

    def move(
        self,
        target: Vector | Callable[[], Vector],
        rotation: Matrix | None = None,
        gripper: float | None = None,
        *,
        tolerance: float = 0.012,
        angle: float = 0.15,
        steps: int = 70,
        gain: float = GAIN,
        speed: float = 1.0,
        until: Callable[[], bool] | None = None,
    ) -> bool:
        """Move to `target` (world, metres; a function is evaluated at every step).

        Ends when within `tolerance` (metres) and `angle` (radians), when `until()` is true, or after `steps`
        steps; only the last returns False. `rotation` and `gripper` default to those of the move before.
        """
        if rotation is not None:
            self._target_rotation = rotation
        if gripper is not None:
            self._command = gripper
        for _ in range(steps):
            goal = target() if callable(target) else target
            angle_left = np.linalg.norm(rotation_vector(self.rotation, self._target_rotation))
            if np.linalg.norm(goal - self.position) < tolerance and angle_left < angle:
                return True
            if until is not None and until():
                return True
            self._act(goal, gain, speed)
        return False

    def shift(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Vector:
        """The gripper's position plus an offset, metres."""
        return self.position + np.array([x, y, z])

    def at_height(self, z: float) -> Vector:
        """The gripper's position at another height."""
        return np.append(self.position[:2], z)

    def hold(self, steps: int, gripper: float) -> None:
        """Hold the present position while the gripper opens or closes."""
        self._command = gripper
        target = self.position
        for _ in range(steps):
            self._act(target, GAIN, SLOW)
