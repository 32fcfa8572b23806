"""Skills for the predicates `on` and `in`: where each kind of goal has its object, and how it gets there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from srpo.envs.expert.arm import CLOSED, CLOSING_STEPS, OPEN
from srpo.envs.expert.grasping import Hand, category
from srpo.envs.expert.mechanisms import open_drawer, tilted
from srpo.envs.expert.scene import Vector, rotation_vector, top_down

TRIES = 3


def put_on(hand: Hand, name: str, target: str) -> None:
    """Make (on name target) true; the target is an object or a region of a fixture or the table."""
    scene = hand.scene
    if scene.is_object(target):
        _put_on_object(hand, name, target)
        return
    fixture = scene.parent(target)
    if fixture is None:
        if category(name) == "plate":
            _drag_plate(hand, name, scene.region_position(target))
        else:
            hand.pick(name)
            height = scene.table_height() + 0.002
            hand.carry(name, scene.region_position(target)[:2], height, clear=height + 0.08)
    elif fixture.startswith("wine_rack"):
        _put_on_rack(hand, name, target, fixture)
    else:
        _put_on_fixture(hand, name, target, fixture)


def _put_on_object(hand: Hand, name: str, target: str) -> None:
    scene = hand.scene
    for _ in range(TRIES):
        origin_height = scene.position(name)[2] - scene.bottom(name)
        hand.pick(name, lift=0.09, place=scene.position(target) + np.array([0, 0, origin_height + 0.007]))
        position, top = scene.position(target), scene.bounds(target)[1][2]
        if category(target) == "plate":
            height = position[2] + 0.007
        elif "bowl" in category(target):
            height = position[2] + 0.03
        else:
            height = top
        carried = hand.carry(name, position[:2], height, clear=max(height + 0.07, top + 0.05), onto=target)
        if carried and scene.holds("on", name, target):
            return


def _spot_on_fixture(hand: Hand, name: str, region: str) -> Vector:
    """Where on a region to put an object, xy."""
    scene = hand.scene
    xy = scene.region_position(region)[:2]
    if "top_side" in region:  # a cabinet's top is large: put it on the robot's side
        axes = scene.region_rotation(region)[:2, :2]
        half = np.maximum(scene.region_half_size(region)[:2] - 0.045, 0)
        return xy + axes @ np.clip(axes.T @ (scene.base[:2] - xy), -half, half)
    if category(name) == "moka_pot" and sum(goal[0] == "on" for goal in scene.goals) > 1:
        return xy + np.array([0.043 if name.endswith("1") else -0.043, 0.0])  # two pots share the burner
    return xy


def _put_on_fixture(hand: Hand, name: str, region: str, fixture: str) -> None:
    scene = hand.scene
    xy = _spot_on_fixture(hand, name, region)
    top = scene.surface_height(fixture, xy)
    for _ in range(TRIES):
        origin_height = scene.position(name)[2] - scene.bottom(name)
        hand.pick(name, place=np.append(xy, top + 0.01 + origin_height))
        if hand.carry(name, xy, top + 0.003, clear=top + 0.05, onto=fixture) and scene.holds(
            "on", name, region
        ):
            return


def _put_on_rack(hand: Hand, name: str, region: str, rack: str) -> None:
    scene = hand.scene
    for _ in range(TRIES):
        place = scene.region_position(region) + 0.045 * scene.region_rotation(region)[:, 2]
        hand.pick(name, lift=0.15, towards=place)
        hand.carry(name, place[:2], place[2] - 0.01, clear=place[2] + 0.08, onto=rack, speed=0.4)


def _drag_plate(hand: Hand, name: str, goal: Vector) -> None:
    """Pinch the rim and drag: a plate is too flat to carry."""
    scene, arm = hand.scene, hand.arm
    for _ in range(5):
        grasp = hand.plan(name, towards=goal)
        above = grasp.position + np.array([0, 0, 0.09])
        arm.move(above, grasp.rotation, OPEN, tolerance=0.02, angle=0.12)
        hand.approach(grasp)
        arm.hold(CLOSING_STEPS, CLOSED)
        grip = (scene.position(name) - arm.position)[:2]

        def error() -> Vector:
            return (goal - scene.position(name))[:2]

        def done(grip: Vector = grip) -> bool:
            slip = np.linalg.norm((scene.position(name) - arm.position)[:2] - grip)
            return bool(slip > 0.03 or np.linalg.norm(error()) < 0.012)

        def towards(height: float = grasp.position[2] + 0.004) -> Vector:
            return np.append(arm.position[:2] + error(), height)

        arm.move(towards, grasp.rotation, CLOSED, speed=0.5, until=done)
        hand.release(retreat=0.08)
        if np.abs(error()).max() < 0.037:
            return


def put_in(hand: Hand, name: str, region: str) -> None:
    """Make (in name region) true."""
    container = hand.scene.parent(region)
    for prefix, method in _CONTAINERS.items():
        if container is not None and prefix in container:
            method(hand, name, region, container)
            return
    raise NotImplementedError(f"the expert cannot put things in {container or region}")


def _put_in_basket(hand: Hand, name: str, region: str, basket: str) -> None:
    scene = hand.scene
    for _ in range(TRIES):
        hand.pick(name, towards=scene.region_position(region))
        xy = scene.region_position(region)[:2]
        low, high = scene.bounds(basket)
        # Release just above the basket's floor, but with the hand above the rim.
        gripper_height = hand.arm.position[2] - scene.bottom(name)  # above the object's bottom
        height = max(low[2] + 0.03, high[2] - 0.019 - gripper_height)
        carried = hand.carry(name, xy, height, clear=high[2] + 0.025, onto=basket, tolerance=0.02, speed=0.8)
        if carried and scene.holds("in", name, region):
            return


def _put_in_drawer(hand: Hand, name: str, region: str, cabinet: str) -> None:
    scene = hand.scene
    drawer = scene.drawer(region)
    if scene.joint_value(drawer.qpos) > -0.12:
        open_drawer(hand, region)
    top = max(scene.geom_top(geom) for geom in drawer.geoms)
    for _ in range(TRIES):
        place = scene.region_position(region) + 0.014 * drawer.outward
        place[2] = top - 0.02
        hand.pick(name, place=place)
        carried = hand.carry(name, place[:2], top - 0.028, clear=top + 0.03, onto=cabinet, speed=0.5)
        if carried and scene.holds("in", name, region):
            return


def _put_in_caddy(hand: Hand, name: str, region: str, caddy: str) -> None:
    """Turn the book so that its thin side crosses the slot, and drop it in."""
    scene, arm = hand.scene, hand.arm
    fingers_along_x = (top_down(0.0), top_down(0.0) @ np.diag([-1.0, -1.0, 1.0]))
    for _ in range(TRIES):
        hand.pick(name, lift=0.14)
        nearer = min(fingers_along_x, key=lambda turn: np.linalg.norm(rotation_vector(arm.rotation, turn)))
        arm.move(arm.position, nearer, tolerance=0.03, angle=0.12, steps=60)
        middle = scene.data.geom_xpos[scene.collision_geoms(scene.domain.obj_body_id[name])[0]]
        xy = scene.region_position(region)[:2] - (middle - scene.position(name))[:2]
        low, high = scene.bounds(caddy)
        carried = hand.carry(
            name, xy, low[2] + 0.035, clear=high[2] + 0.02, onto=caddy, tolerance=0.008, speed=0.5
        )
        if carried and scene.holds("in", name, region):
            return


MUG_HANDLE = np.array([0.064, 0.0, 0.058])
"""The mug's handle in the mug's frame."""


def _put_in_microwave(hand: Hand, name: str, region: str, microwave: str) -> None:
    """Take the mug by its handle with a tilted hand and slide it in through the door."""
    scene, arm = hand.scene, hand.arm
    inside = scene.position(microwave)
    for _ in range(TRIES):
        if not _lift_by_handle(hand, name):
            arm.hold(4, OPEN)
            arm.move(arm.shift(y=-0.03, z=0.1), tolerance=0.03, steps=30)
            continue

        def gripper_at(depth: float, height: float) -> Vector:
            """The gripper's position at which the mug is `depth` behind the microwave's middle."""
            return inside + np.array([-0.02, depth, height]) + arm.position - scene.position(name)

        arm.move(partial(gripper_at, -0.16, 0.038), steps=80)
        arm.move(partial(gripper_at, 0.003, 0.038), tolerance=0.01, steps=80, speed=0.6)
        arm.move(partial(gripper_at, 0.003, 0.026), tolerance=0.005, steps=15, speed=0.4)
        arm.hold(8, OPEN)
        arm.move(arm.shift(y=-0.12, z=0.03), tolerance=0.03, steps=40)
        if scene.holds("in", name, region):
            return


def _lift_by_handle(hand: Hand, name: str) -> bool:
    """Pinch a mug's handle from the robot's right and lift it by 6.5 cm; returns whether the mug follows."""
    scene, arm = hand.scene, hand.arm
    rotation = tilted(np.array([0.0, -1.0, 0.0]), 65, fingers_vertical=False)
    handle = scene.position(name) + scene.rotation(name) @ MUG_HANDLE
    start = scene.position(name)[2]
    arm.move(handle + np.array([0, -0.03, 0.16]), rotation, OPEN, tolerance=0.04, angle=0.25, steps=90)
    arm.move(handle + np.array([0, -0.01, 0.10]), tolerance=0.015, angle=0.12, steps=60)
    arm.move(handle, tolerance=0.007, angle=0.1, steps=50, gain=1.3, speed=0.8)
    arm.hold(CLOSING_STEPS, CLOSED)
    arm.move(lambda: arm.at_height(handle[2] + 0.065), steps=40, speed=0.7)
    return bool(scene.position(name)[2] > start + 0.03)


_CONTAINERS: dict[str, Callable[[Hand, str, str, str], None]] = {
    "basket": _put_in_basket,
    "cabinet": _put_in_drawer,
    "desk_caddy": _put_in_caddy,
    "microwave": _put_in_microwave,
}
