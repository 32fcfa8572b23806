"""Skills for the predicates `open`, `close` and `turnon`: drawers, the microwave's door, the stove's knob."""

from __future__ import annotations

import numpy as np

from srpo.envs.expert.arm import CLOSED, OPEN
from srpo.envs.expert.grasping import Hand
from srpo.envs.expert.scene import FINGERS_ALONG_Y, Matrix, Vector, about, top_down

TRIES = 3
UP = np.array([0.0, 0.0, 1.0])


def tilted(outward: Vector, degrees: float, *, fingers_vertical: bool) -> Matrix:
    """A gripper orientation tilted by `degrees` from straight down, approaching against `outward`.

    Args:
        outward: horizontal unit vector (3,).
        fingers_vertical: whether the fingers move in the vertical plane of the approach, or across it.
    """
    angle = np.arctan2(outward[1], outward[0])
    down = top_down(angle if fingers_vertical else angle + np.pi / 2)
    return about(np.cross(UP, outward), degrees) @ down


def open_drawer(hand: Hand, region: str) -> None:
    """Pinch the handle from the front and pull."""
    scene, arm = hand.scene, hand.arm
    drawer = scene.drawer(region)
    out = drawer.outward
    rotation = tilted(out, 75, fingers_vertical=True)

    def handle() -> Vector:
        return scene.data.geom_xpos[drawer.handle].copy()

    def pulled() -> bool:
        slipped = np.linalg.norm(arm.position - handle()) > 0.06
        return bool(scene.joint_value(drawer.qpos) < -0.152 or slipped)

    for _ in range(TRIES):
        arm.move(handle() + 0.14 * out + 0.02 * UP, rotation, OPEN, tolerance=0.03, angle=0.2, steps=90)
        arm.move(handle() + 0.07 * out, angle=0.12, steps=40)
        arm.move(handle() + 0.002 * out, tolerance=0.008, steps=40, speed=0.7)
        arm.hold(10, CLOSED)
        arm.move(
            lambda: arm.at_height(handle()[2]) + 0.10 * out, tolerance=0.0, steps=45, speed=0.8, until=pulled
        )
        arm.hold(6, OPEN)
        arm.move(arm.position + 0.07 * out, tolerance=0.02, steps=30)
        if scene.holds("open", region):
            break
    arm.move(
        arm.position + 0.10 * UP + 0.03 * out, FINGERS_ALONG_Y, OPEN, tolerance=0.04, angle=0.4, steps=60
    )


def close(hand: Hand, target: str) -> None:
    """Make (close target) true for a drawer's region or a microwave."""
    if target.startswith("microwave"):
        _close_microwave(hand, target)
    else:
        _close_drawer(hand, target)


def _close_drawer(hand: Hand, region: str) -> None:
    """Push the drawer's front with the closed gripper."""
    scene, arm = hand.scene, hand.arm
    drawer = scene.drawer(region)
    out = drawer.outward
    rotation = tilted(out, 45, fingers_vertical=False)

    def handle() -> Vector:
        return scene.data.geom_xpos[drawer.handle].copy()

    for _ in range(TRIES):
        arm.move(handle() + 0.10 * out + 0.10 * UP, rotation, CLOSED, tolerance=0.04, angle=0.3, steps=90)
        arm.move(handle() + 0.06 * out, tolerance=0.015, angle=0.2, steps=50)
        arm.move(
            lambda: handle() - 0.03 * out,
            tolerance=0.0,
            steps=60,
            speed=0.8,
            until=lambda: scene.joint_value(drawer.qpos) > 0.001,
        )
        if scene.holds("close", region):
            break
        arm.move(arm.position + 0.08 * out, tolerance=0.03, steps=30)
    arm.move(arm.position + 0.06 * out, tolerance=0.03, steps=25)


def _close_microwave(hand: Hand, microwave: str) -> None:
    """Push the door near its top, from its outer side, around the hinge."""
    scene, arm = hand.scene, hand.arm
    joint = scene.model.joint(f"{microwave}_microjoint").id
    qpos = int(scene.model.jnt_qposadr[joint])
    hinge = scene.data.xanchor[joint].copy()
    top = scene.position(microwave)[2] + 0.165

    def beside_door(angle: float, distance: float) -> Vector:
        """A point 17 cm from the hinge and `distance` in front of the door's face when it is at `angle`."""
        along = np.array([np.cos(angle), np.sin(angle)])
        front = np.array([np.sin(angle), -np.cos(angle)])
        return np.append(hinge[:2] + 0.17 * along + (0.025 + distance) * front, top)

    for _ in range(TRIES):
        arm.move(arm.at_height(top + 0.13), FINGERS_ALONG_Y, CLOSED, tolerance=0.04, angle=0.4, steps=60)
        start = beside_door(scene.joint_value(qpos), 0.07)
        arm.move(start + 0.13 * UP, tolerance=0.03, angle=0.2, steps=90)
        arm.move(start, tolerance=0.02, steps=50)
        arm.move(
            lambda: beside_door(min(scene.joint_value(qpos) + 0.45, 0.25), 0.010),
            tolerance=0.0,
            steps=110,
            until=lambda: scene.holds("close", microwave),
        )
        if scene.holds("close", microwave):
            break
        arm.move(arm.shift(x=-0.03, y=-0.08), tolerance=0.03, steps=30)
    arm.move(arm.shift(y=-0.08, z=0.05), tolerance=0.03, steps=30)


def turn_on(hand: Hand, stove: str) -> None:
    """Pinch the knob's ridge and turn it about the vertical."""
    scene, arm = hand.scene, hand.arm
    knob = scene.model.body(f"{stove}_button").id
    qpos = int(scene.model.jnt_qposadr[scene.model.body_jntadr[knob]])
    for _ in range(TRIES):
        ridge = scene.data.xpos[knob] + 0.038 * UP
        rotation = about(UP, np.degrees(scene.joint_value(qpos))) @ FINGERS_ALONG_Y
        arm.move(ridge + 0.09 * UP, rotation, OPEN, tolerance=0.02, angle=0.12, steps=90)
        arm.move(ridge, tolerance=0.006, angle=0.08, steps=45, gain=1.3)
        arm.hold(10, CLOSED)
        turned = about(UP, np.degrees(1.3)) @ rotation
        arm.move(ridge, turned, tolerance=0.0, steps=40, until=lambda: scene.joint_value(qpos) > 0.7)
        arm.hold(5, OPEN)
        arm.move(arm.shift(z=0.1), tolerance=0.03, steps=30)
        if scene.holds("turnon", stove):
            return
