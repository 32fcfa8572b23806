"""The conventions of demonstrations: what arrays of the right shapes must still agree on.

A file in another convention would be read without an error and train a policy to do something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
FINGERS_REST, FINGERS_MOVE = 5e-5, 1.5e-4
"""Metres a step below which a finger rests, and above which it moves: robosuite's move by 0.3 mm in the first
step after a command, by 2 mm in the second, and by 0.02 mm while they hold."""
METRES_PER_ACTION = (0.003, 0.05)
"""Metres that the hand goes in a step, for a full action: robosuite's does 0.01 on the way; its goal is 0.05
away."""
POSITION_FOLLOWS, ROTATION_FOLLOWS = 0.5, 0.5
"""Correlation of commanded and seen motion from which a pose is what actions move. The expert's is above 0.9
for positions and 0.88 for rotations; Euler angles taken for axis-angle have 0.27 at most."""
ROTATION_COMMANDS = 0.1
"""Root mean square of the commanded rotation about an axis (full action: 1) below which nothing is said of
it: small ones drown in what the hand's own motion turns."""
SYMMETRIC_FINGERS = 5e-3
"""Metres up to which the two fingers are opposite to each other."""
SAME_SCENE = 25.0
"""Mean difference of pixels (of 255) up to which two pictures are of the same scene. Those of a task's other
states differ by 3 to 4, mirrored or turned ones by 20 and more."""
IDLE = 1e-4
"""Length of an action below which it moves nothing, in OpenVLA's regenerate_libero_dataset.py."""


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

    Its numbers are finite, actions are in [-1, 1], the gripper is -1 where it opens and 1 where it closes.
    Where it has the simulator's states, as LIBERO's own files do, these begin with the time, observations
    state one pose, and they are those of a moment before or after the actions (`observations_are_late`).
    """
    for name, values in recording.items():
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{name} is {values.dtype}, not a number")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} is not finite in row {np.argwhere(~np.isfinite(values))[0, 0]}")
    actions = recording["actions"]
    if np.abs(actions).max() > 1:
        raise ValueError("actions leaves [-1, 1]: LIBERO's are what the controller takes, not metres")
    _require_gripper_values(actions[:, -1])
    if "states" in recording:
        times = recording["states"][:, 0]
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
    arm's seven joints come first. A recording without `states` was aligned when it was imported.

    Raises:
        ValueError: the joints fit neither, or both alike.
    """
    if "states" not in recording:
        return False
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


# ------------------------------------------------------------------ recordings without the simulator's states


def fingers_are_late(actions: NDArray[np.floating], fingers: NDArray[np.floating]) -> bool | None:
    """Whether fingers at rest have moved in the very row of the first command that opens or closes them.

    Then row t's observation is from after action t. None where no such command tells.

    Args:
        actions: (T, 7) in LIBERO's convention.
        fingers: (T, 2) positions (m).
    """
    moved = np.diff(np.abs(fingers[:, 0]), prepend=np.abs(fingers[:1, 0]))
    for row in np.flatnonzero(np.diff(actions[:, -1])) + 1:
        if row >= 3 and np.abs(moved[row - 2 : row]).max() < FINGERS_REST:
            return bool(-moved[row] * actions[row, -1] > FINGERS_MOVE)
    return None


def require_pose(poses: NDArray[np.floating]) -> None:
    """Raise ValueError unless poses (T, 8) end with the positions of two fingers, opposite to each other."""
    fingers = poses[:, 6:]
    if not np.isfinite(poses).all():
        raise ValueError(f"is not finite in row {np.argwhere(~np.isfinite(poses))[0, 0]}")
    if np.abs(fingers.sum(axis=1)).max() > SYMMETRIC_FINGERS or (fingers[:, 0] < -SYMMETRIC_FINGERS).any():
        raise ValueError(
            "does not end with the positions of two fingers (m), opposite to each other: expected are the "
            "hand's position (m), its orientation as axis-angle (rad), the fingers; not joint angles"
        )


def require_pose_follows(recordings: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]]) -> None:
    """Raise ValueError unless the hand goes where actions send it: then positions are metres, orientations
    axis-angle, and actions those of LIBERO's controller, not normalised ones.

    Args:
        recordings: actions (T, 7) and poses (T, 8) each, of one row's moment.
    """
    wanted = np.concatenate([actions[:-1, :3] for actions, _ in recordings])
    went = np.concatenate([np.diff(poses[:, :3], axis=0) for _, poses in recordings])
    correlation, slope = _follows(wanted, went)
    if correlation < POSITION_FOLLOWS:
        raise ValueError(
            f"has positions that do not go where actions send the hand (correlation {correlation:.2f}): "
            "expected are metres in the robot's frame, and actions that are its motion, not absolute poses"
        )
    if not METRES_PER_ACTION[0] < slope < METRES_PER_ACTION[1]:
        raise ValueError(
            f"has positions that go {slope:.3g} in a step for a full action, where LIBERO's go 0.01 m: they "
            "must be metres, and actions as the controller takes them, not normalised by a data set's "
            "statistics"
        )
    wanted = np.concatenate([actions[:-1, 3:6] for actions, _ in recordings])
    turns = [Rotation.from_rotvec(poses[:, 3:6]) for _, poses in recordings]
    went = np.concatenate([(turn[1:] * turn[:-1].inv()).as_rotvec() for turn in turns])
    for axis, name in enumerate("xyz"):
        if np.sqrt(np.square(wanted[:, axis]).mean()) < ROTATION_COMMANDS:
            continue
        correlation, _ = _follows(wanted[:, axis], went[:, axis])
        if correlation < ROTATION_FOLLOWS:
            raise ValueError(
                f"has orientations that do not turn about {name} as actions turn the hand (correlation "
                f"{correlation:.2f}): they must be axis-angle (rad), not Euler angles or part of a quaternion"
            )


def _follows(wanted: NDArray[np.floating], went: NDArray[np.floating]) -> tuple[float, float]:
    """Correlation (about 0) and slope of motion on commands."""
    both, commands, motion = (wanted * went).sum(), np.square(wanted).sum(), np.square(went).sum()
    if commands == 0 or motion == 0:
        return 0.0, 0.0
    return float(both / np.sqrt(commands * motion)), float(both / commands)


def idle_steps(actions: NDArray[np.floating]) -> int:
    """How many actions (T, 7) move nothing: OpenVLA's script leaves these out of LIBERO's demonstrations."""
    still = np.linalg.norm(actions[:, :-1], axis=1) < IDLE
    return int((still[1:] & (np.diff(actions[:, -1]) == 0)).sum()) + int(still[0])


def is_turned(picture: NDArray[np.uint8], scene: NDArray[np.uint8]) -> bool:
    """Whether a picture of a scene is turned by 180°, as in LIBERO's own files, not in official orientation.

    Args:
        picture, scene: uint8 (H, H, 3), `scene` the task's in official orientation.

    Raises:
        ValueError: it is mirrored, or of another scene or camera.
    """
    views = {
        "official": picture,
        "turned": picture[::-1, ::-1],
        "upside down": picture[::-1],
        "mirrored": picture[:, ::-1],
    }
    away = {name: float(np.abs(view.astype(float) - scene).mean()) for name, view in views.items()}
    nearest = min(away, key=lambda name: away[name])
    if away[nearest] > SAME_SCENE:
        raise ValueError(
            f"does not show the task's scene through LIBERO's camera agentview: pixels differ by "
            f"{away[nearest]:.0f} of 255 on average"
        )
    if nearest not in ("official", "turned"):
        raise ValueError(
            f"is {nearest} beside the simulator's picture of the task: only official orientation, and that "
            "turned by 180° as in LIBERO's own files, are read; flip the rows or columns of every frame"
        )
    return nearest == "turned"
