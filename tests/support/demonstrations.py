"""Demonstrations with random values in LIBERO's conventions, for tests."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from srpo.demos.conventions import Recording
from srpo.demos.hdf5 import IMAGES

STATES = 30


def recording(steps: int, seed: int = 0, size: int = 16) -> Recording:
    """A recording with random values in LIBERO's conventions: the hand closes in the second half."""
    rng = np.random.default_rng(seed)
    position, axis_angle = rng.uniform(-1, 1, (2, steps, 3))
    command = np.where(np.arange(steps) < steps // 2, -1.0, 1.0)
    opening = 0.04 * np.cumprod(np.where(np.append(-1.0, command[:-1]) > 0, 0.5, 1.0))
    fingers = np.stack([opening, -opening], axis=1)
    joints = rng.uniform(-1, 1, (steps, 7))
    time = 0.05 * np.arange(1, steps + 1)[:, None]
    return {
        "actions": np.hstack([rng.uniform(-1, 1, (steps, 6)), command[:, None]]),
        "states": np.hstack([time, joints, rng.uniform(-1, 1, (steps, STATES - 8))]),
        "robot_states": np.hstack([fingers, position, Rotation.from_rotvec(axis_angle).as_quat()]),
        "rewards": (np.arange(steps) == steps - 1).astype(np.uint8),
        "dones": (np.arange(steps) == steps - 1).astype(np.uint8),
        IMAGES: rng.integers(0, 256, (steps, size, size, 3)).astype(np.uint8),
        "obs/ee_pos": position,
        "obs/ee_ori": axis_angle,
        "obs/ee_states": np.hstack([position, axis_angle]),
        "obs/gripper_states": fingers,
        "obs/joint_states": joints,
    }


def late(values: Recording) -> Recording:
    """The recording as LIBERO's own script makes it: observations after the action, states before."""
    observed = {name for name in values if name.startswith("obs/")} | {"robot_states"}
    return {name: array[1:] if name in observed else array[:-1] for name, array in values.items()}
