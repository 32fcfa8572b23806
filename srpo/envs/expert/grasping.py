"""Picking things up, carrying them and letting go.

Grasps are chosen from a list of candidates by cost: collisions of a gripper made of boxes with everything
around (at the grasp, on the way and where the object will be put), wrist rotation and reach. Ignoring reach
is the surest way to fail: the arm gets stuck in a corner of its workspace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from srpo.envs.expert.arm import CAREFUL, CLOSED, CLOSING_STEPS, OPEN, Arm
from srpo.envs.expert.scene import (
    FINGERS_ALONG_Y,
    Matrix,
    Scene,
    Vector,
    about,
    rotation_vector,
    top_down,
    upright,
)

FINGER_OPENING = 0.04
"""Distance of an open finger from the gripper's middle."""
LOWEST = 0.0125
"""The finger tips stay so far above an object's bottom."""
WIDEST = 0.072
"""The widest thing that goes between the fingers."""
REACH = (0.42, 0.70)
"""Horizontal distance between base and gripper within which the arm moves freely."""
LOST = 0.04
"""An object that has moved so far in the gripper has slipped."""
DEPTH = 0.022
"""How far below its top an ordinary object is gripped."""


@dataclass(frozen=True)
class Rim:
    """A round rim to pinch: its centre in the object's frame, its radius, and the depth below the top."""

    centre: tuple[float, float]
    radius: float
    depth: float


RIMS = {
    "akita_black_bowl": Rim((0.0, 0.0), 0.047, 0.016),
    "glazed_rim_porcelain_ramekin": Rim((0.0, 0.0), 0.041, 0.014),
    "plate": Rim((0.0, 0.0), 0.064, 0.008),
    "porcelain_mug": Rim((0.015, 0.0), 0.047, 0.022),
    "white_yellow_mug": Rim((-0.018, 0.0), 0.042, 0.022),
}
FLAT = {"plate"}
"""Rims too low to be gripped with a tilted hand."""

KNOBS = {"moka_pot": np.array([0.0, 0.001, 0.0775])}
"""Things lifted by a knob, at this position in the object's frame."""


def category(name: str) -> str:
    """An object's category: its name without the number."""
    return name.rsplit("_", 1)[0]


class GraspError(Exception):
    """An object could not be picked up."""


@dataclass(frozen=True)
class Grasp:
    """A gripper pose at which to close, and what speaks against it (before collisions and reach)."""

    position: Vector
    rotation: Matrix
    cost: float

    def before(self, distance: float) -> Vector:
        """The position `distance` metres back along the approach."""
        return self.position - distance * self.rotation[:, 2]


def _rim_grasps(scene: Scene, name: str, rim: Rim) -> Iterator[Grasp]:
    position, rotation = scene.position(name), scene.rotation(name)
    top = ((scene.points(name) - position) @ rotation)[:, 2].max()
    lowest = scene.bottom(name) + LOWEST
    yaw = np.arctan2(rotation[1, 0], rotation[0, 0])
    can_tilt = category(name) not in FLAT and rotation[2, 2] > 0.97
    for angle in np.arange(0, 2 * np.pi, np.pi / 12) - yaw:
        radial = np.array([np.cos(angle), np.sin(angle), 0.0])
        across = rotation @ radial
        gripper = top_down(np.arctan2(across[1], across[0]))
        for radius, cost in ((rim.radius, 0.0), (rim.radius - 0.012, 0.3)):
            point = position + rotation @ (np.array([*rim.centre, top - rim.depth]) + radius * radial)
            point[2] = max(point[2], lowest)
            cost += 4 * abs(across[2])
            yield Grasp(point, gripper, cost)
            if not can_tilt or abs(gripper[1, 0]) <= 0.6:
                continue
            for degrees in (25, 40):  # leaning back towards the robot, to get under things
                tilted = about(gripper[:, 0], degrees) @ gripper
                if tilted[0, 2] < 0:
                    tilted = about(gripper[:, 0], -degrees) @ gripper
                yield Grasp(point, tilted, cost + 0.5 + degrees / 60)


def _knob_grasps(scene: Scene, name: str, knob: Vector) -> Iterator[Grasp]:
    point = scene.position(name) + scene.rotation(name) @ knob
    for x, y in ((0, 1), (1, 1), (1, -1)):
        across = scene.rotation(name) @ np.array([x, y, 0.0])
        yield Grasp(point, top_down(np.arctan2(across[1], across[0])), 0.0)


def _body_grasps(scene: Scene, name: str) -> Iterator[Grasp]:
    """From above, across the object's middle, wherever it is narrow enough."""
    low, high = scene.bounds(name)
    points = scene.points(name)
    height = max(low[2] + LOWEST, high[2] - DEPTH)
    slab = points[(points[:, 2] > height - 0.02) & (points[:, 2] < height + 0.015)]
    slab = slab if len(slab) >= 4 else points
    for angle in np.arange(0, np.pi, np.pi / 24):
        across = np.array([np.cos(angle), np.sin(angle)])
        along = np.array([-across[1], across[0]])
        a, b = slab[:, :2] @ across, slab[:, :2] @ along
        width = np.ptp(a)
        if width <= WIDEST:
            xy = across * (a.max() + a.min()) / 2 + along * (b.max() + b.min()) / 2
            # Off the middle by most of what the open fingers allow: away from a neighbour.
            aside = 0.6 * (FINGER_OPENING - width / 2)
            for shift, cost in ((0.0, 0.0), (aside, 0.4), (-aside, 0.4)):
                yield Grasp(np.append(xy + shift * across, height), top_down(angle), 8 * width + cost)


def candidate_grasps(scene: Scene, name: str) -> list[Grasp]:
    """All grasps worth weighing for an object."""
    kind = category(name)
    if kind in RIMS:
        return list(_rim_grasps(scene, name, RIMS[kind]))
    if kind in KNOBS:
        return list(_knob_grasps(scene, name, KNOBS[kind]))
    return list(_body_grasps(scene, name))


def _inside(points: Vector, x: tuple[float, float], y: float, z: tuple[float, float]) -> int:
    """How many points, in the gripper's frame, lie in a box that is symmetric in x and y."""
    ax, ay, pz = np.abs(points[:, 0]), np.abs(points[:, 1]), points[:, 2]
    return int(((ax > x[0]) & (ax < x[1]) & (ay < y) & (pz > z[0]) & (pz < z[1])).sum())


def gripper_collisions(position: Vector, rotation: Matrix, obstacles: Vector, margin: float = 0.0) -> int:
    """Obstacle points inside the open gripper (fingers, hand, wrist) there and on the last 7 cm before it.

    `margin` widens the gripper on all sides, to count near misses too.
    """
    hand, half_depth, wrist = 0.107 + margin, 0.035 + margin, 0.06 + margin
    fingers = (FINGER_OPENING - 0.004 - margin, FINGER_OPENING + 0.026 + margin)
    local = (obstacles - position) @ rotation
    local = local[(np.abs(local[:, 0]) < hand) & (np.abs(local[:, 1]) < wrist)]
    count = 0
    for back in (0.0, 0.03, 0.07):
        shifted = local + np.array([0.0, 0.0, back])
        count += _inside(shifted, (-1.0, hand), half_depth, (-0.123, -0.028))
        count += _inside(shifted, fingers, 0.014 + margin, (-0.045, 0.011))
        count += _inside(shifted, (-1.0, wrist), wrist, (-0.25, -0.123))
    return count


def grasp_collisions(grasp: Grasp, own: Vector) -> int:
    """Points of the object itself inside the hand or, thrice as bad, inside the open fingers."""
    local = (own - grasp.position) @ grasp.rotation
    hand = _inside(local, (-1.0, 0.107), 0.035, (-0.123, -0.031))
    fingers = _inside(local, (FINGER_OPENING - 0.001, FINGER_OPENING + 0.026), 0.012, (-0.045, 0.010))
    return hand + 3 * fingers


def _collision_cost(count: int) -> float:
    return 0.25 * min(count, 40) + 0.02 * count


class Hand:
    """Arm and scene together: picks, carries and releases objects."""

    def __init__(self, scene: Scene, arm: Arm) -> None:
        self.scene = scene
        self.arm = arm

    # Choosing

    def _reach_cost(self, xy: Vector) -> float:
        distance = float(np.linalg.norm(xy - self.scene.base[:2]))
        return 0.8 * distance + 25 * max(0.0, distance - REACH[1]) + 25 * max(0.0, REACH[0] - distance)

    def _cost(
        self,
        grasp: Grasp,
        start: Vector,
        own: Vector,
        obstacles: Vector,
        towards: Vector | None,
        place: Vector | None,
    ) -> float:
        angle = float(np.linalg.norm(rotation_vector(FINGERS_ALONG_Y, grasp.rotation)))
        cost = grasp.cost + 0.5 * angle + 0.8 * max(0.0, angle - 1.1)
        collisions = gripper_collisions(grasp.position, grasp.rotation, obstacles)
        cost += _collision_cost(collisions + grasp_collisions(grasp, own))
        near_misses = gripper_collisions(grasp.position, grasp.rotation, obstacles, margin=0.012)
        cost += min(1.0, 0.05 * near_misses)
        cost += self._reach_cost(grasp.position[:2])
        if towards is not None:
            cost += self._reach_cost(towards[:2] + (grasp.position - start)[:2])
        if place is not None:
            collisions = 0
            for share in (1.0, 0.35, 0.7):
                via = start + share * (place - start)
                if share < 1:
                    via[2] = max(place[2] + 0.06, start[2] + 0.06)
                collisions += gripper_collisions(via + grasp.position - start, grasp.rotation, obstacles)
            cost += _collision_cost(collisions)
        return cost

    def plan(self, name: str, towards: Vector | None = None, place: Vector | None = None) -> Grasp:
        """The cheapest grasp of an object that is to go `towards` xy, or to have its body put at `place`."""
        candidates = candidate_grasps(self.scene, name)
        if not candidates:
            raise GraspError(f"{name}: too wide for the gripper")
        start, own, obstacles = self.scene.position(name), self.scene.points(name), self.scene.obstacles(name)
        towards = place if towards is None else towards
        return min(candidates, key=lambda grasp: self._cost(grasp, start, own, obstacles, towards, place))

    # Acting

    def approach(self, grasp: Grasp) -> None:
        """Bring the open gripper down (or in) to a grasp."""
        self.arm.move(
            grasp.position,
            grasp.rotation,
            OPEN,
            tolerance=0.006,
            angle=0.1,
            steps=45,
            gain=1.3,
            speed=CAREFUL,
        )

    def _travel(self, name: str, target: Vector, rotation: Matrix) -> None:
        """Bring the open gripper to `target`; first over it, without sinking, if something is on the way."""
        arm = self.arm
        obstacles = self.scene.obstacles(name)
        way = np.linspace(arm.position, target, 6)[1:-1]
        if any(gripper_collisions(point, arm.rotation, obstacles, margin=0.02) for point in way):
            over = np.append(target[:2], max(arm.position[2], target[2]))
            arm.move(over, rotation, OPEN, tolerance=0.015, angle=0.4, steps=60)
        arm.move(target, rotation, OPEN, tolerance=0.02, angle=0.12, steps=90)

    def pick(
        self,
        name: str,
        *,
        lift: float = 0.12,
        towards: Vector | None = None,
        place: Vector | None = None,
        tries: int = 3,
    ) -> None:
        """Pick an object up by `lift` metres. Raises GraspError if it will not come."""
        arm, scene = self.arm, self.scene
        for attempt in range(tries):
            grasp = self.plan(name, towards, place)
            height = scene.position(name)[2]
            if attempt or arm.position[2] < grasp.position[2] + 0.05:
                rotation = None if attempt else grasp.rotation
                arm.move(arm.shift(z=0.08), rotation, OPEN, tolerance=0.03, steps=25)
            self._travel(name, grasp.before(0.09), grasp.rotation)
            again = self.plan(name, towards, place)  # the object may have been pushed
            if np.linalg.norm(again.position - grasp.position) > 0.004:
                grasp = again
                arm.move(grasp.before(0.07), grasp.rotation, OPEN, tolerance=0.02, angle=0.12, steps=60)
            self.approach(grasp)
            arm.move(grasp.position, gripper=CLOSED, tolerance=0.0, steps=CLOSING_STEPS, speed=CAREFUL)
            arm.move(grasp.before(-lift / grasp.rotation[2, 2]), tolerance=0.02, steps=40, speed=0.9)
            if scene.position(name)[2] > height + 0.4 * lift:
                return
            arm.move(arm.shift(z=0.05), gripper=OPEN, tolerance=0.02, steps=15)
        raise GraspError(f"{name} did not come up in {tries} tries")

    def carry(
        self,
        name: str,
        xy: Vector,
        height: float,
        *,
        clear: float,
        onto: str | None = None,
        tolerance: float = 0.012,
        speed: float = 0.6,
    ) -> bool:
        """Carry the held object to `xy`, its bottom passing at least at `clear`, put it at `height`, let go.

        Steers by the object's own pose, so that a grasp that shifts does not matter. What it is put `onto`
        is not in the way. Returns False if the object slips; it is let go then.
        """
        arm, scene = self.arm, self.scene
        rotation = upright(arm.target_rotation)
        clear = max(clear, height + 0.04)
        obstacles = scene.obstacles(name, *([onto] if onto else []))
        low, high = scene.bounds(name)
        half_width = (high - low)[:2].max() / 2 + 0.02
        grip = arm.rotation.T @ (scene.position(name) - arm.position)

        def lost() -> bool:
            now = arm.rotation.T @ (scene.position(name) - arm.position)
            return bool(np.linalg.norm(now - grip) > LOST)

        def to_go() -> float:
            return float(np.linalg.norm(scene.position(name)[:2] - xy))

        def gripper_at(object_xy: Vector, bottom: float) -> Vector:
            """Where the gripper must be for the object to be there."""
            offset = arm.position - scene.position(name)
            return np.append(object_xy + offset[:2], bottom + arm.position[2] - scene.bottom(name))

        anchor: Vector | None = None

        def waypoint() -> Vector:
            """Straight up while too low to pass over what is on the way, then over there."""
            nonlocal anchor
            start, distance = scene.position(name)[:2], to_go()
            direction = (xy - start) / max(distance, 1e-6)
            relative = obstacles[:, :2] - start
            along = np.clip(relative @ direction, 0, distance)
            crossed = np.linalg.norm(relative - along[:, None] * direction, axis=1) < half_width
            bottom = clear
            if crossed.any() and distance > 0.03:
                bottom = max(clear, obstacles[crossed, 2].max() + 0.015)
            target = gripper_at(xy, bottom)
            if scene.bottom(name) < bottom - 0.015 and distance > 0.02:
                anchor = arm.position if anchor is None else anchor
                target[:2] = anchor[:2]
            else:
                anchor = None
            return target

        def arrived() -> bool:
            return to_go() < tolerance and abs(scene.bottom(name) - clear) < 0.03

        arm.move(waypoint, rotation, CLOSED, tolerance=0.004, steps=140, until=lambda: lost() or arrived())
        if lost():
            arm.hold(4, OPEN)
            arm.move(arm.shift(z=0.08), tolerance=0.02, steps=20)
            return False

        heights: list[float] = []

        def blocked() -> bool:
            """The gripper has not moved vertically for seven steps."""
            heights.append(arm.position[2])
            return len(heights) > 7 and bool(np.all(np.abs(np.diff(heights[-8:])) < 0.0008))

        arm.move(
            lambda: gripper_at(xy, height + 0.002),
            tolerance=0.006,
            steps=60,
            gain=1.3,
            speed=speed,
            until=blocked,
        )
        self.release()
        return True

    def release(self, retreat: float = 0.12) -> None:
        """Let go and move up."""
        self.arm.hold(8, OPEN)
        self.arm.move(self.arm.shift(z=retreat), tolerance=0.03, steps=30, speed=0.8)
