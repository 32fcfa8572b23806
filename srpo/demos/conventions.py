"""The conventions of demonstrations: what arrays of the right shapes must still agree on.

A file in another convention would be read without an error and train a policy to do something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Recording = dict[str, NDArray[Any]]
"""One demonstration as in the file: dataset's name, such as `obs/ee_pos`, to array; T rows each."""

SAME_JOINTS = 0.05
"""Mean difference (rad) up to which joint angles are those of one moment. A replay differs by less; a shifted
column or another unit by more."""
SAME_POSITION, SAME_ROTATION = 1e-3, 0.01
"""Difference (m; rad) up to which two datasets have the same pose."""
FINGER_TRAVEL = 0.005
"""Metres that the fingers must move against the commands before these are taken for the opposite ones."""


def require_image_convention(attributes: Mapping[str, Any]) -> None:
    """Raise ValueError unless a file's pictures are in OpenGL's row order.

    Args:
        attributes: those of its group `data`; files that do not state their order are taken at that.
    """
    stated = attributes.get("macros_image_convention", "opengl")
    stated = stated.decode() if isinstance(stated, bytes) else stated
    if stated != "opengl":
        raise ValueError(
            f"macros_image_convention is {stated!r}, so its pictures are not in OpenGL's row order (upside "
            "down): render them again with robosuite's macros.IMAGE_CONVENTION `opengl`, or turn the rows "
            "round and set the attribute"
        )


def require_conventions(recording: Recording) -> None:
    """Raise ValueError, naming the dataset, unless a recording's values are what their names say.

    Its numbers are finite, actions are in [-1, 1], the gripper is -1 where it opens and 1 where it closes,
    states begin with the time, observations state one pose, and they are those of a moment before or after
    the actions (`observations_are_late`).
    """
    for name, values in recording.items():
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{name} is {values.dtype}, not a number")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} is not finite in row {np.argwhere(~np.isfinite(values))[0, 0]}")
    actions, times = recording["actions"], recording["states"][:, 0]
    if np.abs(actions).max() > 1:
        raise ValueError("actions leaves [-1, 1]: LIBERO's are what the controller takes, not metres")
    _require_gripper_values(actions[:, -1])
    if (np.diff(times) <= 0).any():
        raise ValueError(
            f"states does not begin with the time: its first column falls or rests after row "
            f"{np.flatnonzero(np.diff(times) <= 0)[0]}; rows are missing, or states without their time"
        )
    _require_one_pose(recording)
    _require_gripper_direction(aligned(recording))


def _require_gripper_values(gripper: NDArray[np.floating]) -> None:
    found = set(np.unique(gripper).tolist())
    if found <= {-1.0, 1.0}:
        return
    if found <= {0.0, 1.0}:
        raise ValueError(
            "actions has a gripper of 0 and 1, as in RLDS, where 1 opens; LIBERO's is -1 (open) and 1 "
            "(closed): replace it by 1 - 2 * gripper"
        )
    other = sorted(found - {-1.0, 1.0})[0]
    raise ValueError(f"actions has a gripper of {other:g}; LIBERO's is -1 (open) or 1 (closed)")


def _require_gripper_direction(recording: Recording) -> None:
    """`recording` has observations from before the actions."""
    width = np.abs(np.diff(recording["obs/gripper_states"], axis=1))[:, 0]
    against = float((recording["actions"][:-1, -1] * np.diff(width)).sum())
    if against > FINGER_TRAVEL:
        raise ValueError(
            "actions has a gripper whose fingers close at -1 and open at 1; LIBERO's open at -1 and close at "
            "1: replace it by -gripper"
        )


def _require_one_pose(recording: Recording) -> None:
    position, orientation = recording["obs/ee_pos"], recording["obs/ee_ori"]
    fingers, other_position, quaternion = np.split(recording["robot_states"], [2, 5], axis=1)
    pairs = {
        "obs/ee_states": (recording["obs/ee_states"], np.hstack([position, orientation])),
        "obs/ee_pos": (position, other_position),
        "obs/gripper_states": (recording["obs/gripper_states"], fingers),
    }
    for name, (one, other) in pairs.items():
        if (difference := np.abs(one - other).max()) > SAME_POSITION:
            raise ValueError(
                f"{name} differs by up to {difference:.3g} from the same quantity elsewhere in the file: "
                "metres, radians and the order (position, axis-angle), (fingers, position, quaternion) are "
                "expected"
            )
    if np.abs(np.linalg.norm(quaternion, axis=1) - 1).max() > SAME_ROTATION:
        raise ValueError("robot_states does not end with a quaternion of length 1")
    difference = (Rotation.from_rotvec(orientation).inv() * Rotation.from_quat(quaternion)).magnitude().max()
    if difference > SAME_ROTATION:
        raise ValueError(
            f"obs/ee_ori is {difference:.3g} rad from the quaternion in robot_states: it must be axis-angle "
            "(not Euler angles), the quaternion xyzw"
        )


def observations_are_late(recording: Recording) -> bool:
    """Whether row t's observation is from after action t, as in LIBERO's own files, not from before it.

    `states` are from before it, so the joint angles tell: a state is time, then positions, of which the
    arm's seven joints come first.

    Raises:
        ValueError: the joints fit neither, or both alike.
    """
    joints, states = recording["obs/joint_states"], recording["states"][:, 1:8]
    if len(joints) < 2:
        raise ValueError("obs/joint_states has one row: nobody can tell whether it is before its action")
    same_row = float(np.abs(joints[1:] - states[1:]).mean())
    one_late = float(np.abs(joints[:-1] - states[1:]).mean())
    better, worse = sorted((same_row, one_late))
    if better > SAME_JOINTS or better > worse / 2 or worse == 0:
        raise ValueError(
            f"obs/joint_states fits states neither from before the actions (mean difference {same_row:.2g} "
            f"rad) nor from after them ({one_late:.2g} rad), or both alike: states must be time, the arm's "
            "seven joints, ..., of every control step"
        )
    return one_late < same_row


def aligned(recording: Recording) -> Recording:
    """The recording with the observation before action t in row t, whether or not it was so already.

    Raises ValueError as `observations_are_late`.
    """
    if not observations_are_late(recording):
        return recording
    late = {name for name in recording if name.startswith("obs/")} | {"robot_states"}
    return {name: values[:-1] if name in late else values[1:] for name, values in recording.items()}
