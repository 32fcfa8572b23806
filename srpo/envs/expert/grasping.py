"""Skills for objects: pick, carry, release.

A grasp is the cheapest of a list of candidates. Its cost has collisions of a gripper made of boxes with
everything else (at the grasp, on the way and where the object will be put), wrist rotation and reach. Without
the reach, the arm gets stuck in a corner of its workspace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from srpo.envs.expert.arm import CLOSED, CLOSING_STEPS, OPEN, SLOW, Arm
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
"""Distance of an open finger from the gripper's middle, metres."""
BOTTOM_CLEARANCE = 0.0125
"""Least height of the finger tips above an object's bottom, metres."""
MAX_WIDTH = 0.072
"""Width of the widest object that fits between the fingers, metres."""
REACH = (0.42, 0.70)
"""Horizontal distance between base and gripper within which the arm moves freely, metres."""
SLIP = 0.04
"""Displacement in the gripper from which on an object has slipped, metres."""
GRASP_DEPTH = 0.022
"""How far below its top an ordinary object is gripped, metres."""


@dataclass(frozen=True)
class Rim:
    """A round rim to pinch: its centre in the object's frame, radius, and depth below the top, metres."""

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
"""Objects whose rim is too low for a tilted hand."""

KNOBS = {"moka_pot": np.array([0.0, 0.001, 0.0775])}
"""Objects lifted by a knob, and its position in the object's frame."""


def category(name: str) -> str:
    """An object's category: its name without the number."""
    return name.rsplit("_", 1)[0]


class GraspError(Exception):
    """An object could not be picked up."""


@dataclass(frozen=True)
class Grasp:
    """A gripper pose at which to close, and its cost without collisions and reach."""

    position: Vector
    rotation: Matrix
    cost: float

    def before(self, distance: float) -> Vector:
        """The position `distance` metres back along the approach."""
        return self.position - distance * self.rotation[:, 2]


def _rim_grasps(scene: Scene, name: str, rim: Rim) -> Iterator[Grasp]:
    position, rotation = scene.position(name), scene.rotation(name)
    top = ((scene.points(name) - position) @ rotation)[:, 2].max()
    lowest = scene.bottom(name) + BOTTOM_CLEARANCE
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
            for degrees in (25, 40):  # leaning back towards the robot, to reach under objects
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
    height = max(low[2] + BOTTOM_CLEARANCE, high[2] - GRASP_DEPTH)
    slab = points[(points[:, 2] > height - 0.02) & (points[:, 2] < height + 0.015)]
    slab = slab if len(slab) >= 4 else points
    for angle in np.arange(0, np.pi, np.pi / 24):
        across = np.array([np.cos(angle), np.sin(angle)])
        along = np.array([-across[1], across[0]])
        a, b = slab[:, :2] @ across, slab[:, :2] @ along
        width = np.ptp(a)
        if width <= MAX_WIDTH:
            xy = across * (a.max() + a.min()) / 2 + along * (b.max() + b.min()) / 2
            # Also off the middle, by most of what the open fingers allow, to avoid a neighbour.
            aside = 0.6 * (FINGER_OPENING - width / 2)
            for shift, cost in ((0.0, 0.0), (aside, 0.4), (-aside, 0.4)):
                yield Grasp(np.append(xy + shift * across, height), top_down(angle), 8 * width + cost)


def candidate_grasps(scene: Scene, name: str) -> list[Grasp]:
    """All grasps to choose from for an object."""
    kind = category(name)
    if kind in RIMS:
        return list(_rim_grasps(scene, name, RIMS[kind]))
    if kind in KNOBS:
        return list(_knob_grasps(scene, name, KNOBS[kind]))
    return list(_body_grasps(scene, name))


def _count_inside(points: Vector, x: tuple[float, float], y: float, z: tuple[float, float]) -> int:
    """Number of points, in the gripper's frame, in a box that is symmetric in x and y."""
    abs_x, abs_y, pz = np.abs(points[:, 0]), np.abs(points[:, 1]), points[:, 2]
    return int(((abs_x > x[0]) & (abs_x < x[1]) & (abs_y < y) & (pz > z[0]) & (pz < z[1])).sum())


def gripper_collisions(position: Vector, rotation: Matrix, obstacles: Vector, margin: float = 0.0) -> int:
    """Number of obstacle points in the open gripper (fingers, hand, wrist), there and 3 and 7 cm before.

    `margin` widens the gripper on all sides, to count near misses too.
    """
    hand, half_depth, wrist = 0.107 + margin, 0.035 + margin, 0.06 + margin
    fingers = (FINGER_OPENING - 0.004 - margin, FINGER_OPENING + 0.026 + margin)
    local = (obstacles - position) @ rotation
    local = local[(np.abs(local[:, 0]) < hand) & (np.abs(local[:, 1]) < wrist)]
    count = 0
    for back in (0.0, 0.03, 0.07):
        shifted = local + np.array([0.0, 0.0, back])
        count += _count_inside(shifted, (-1.0, hand), half_depth, (-0.123, -0.028))
        count += _count_inside(shifted, fingers, 0.014 + margin, (-0.045, 0.011))
        count += _count_inside(shifted, (-1.0, wrist), wrist, (-0.25, -0.123))
    return count


def grasp_collisions(grasp: Grasp, object_points: Vector) -> int:
    """Number of the object's own points in the hand, plus three times those in the open fingers."""
    local = (object_points - grasp.position) @ grasp.rotation
    hand = _count_inside(local, (-1.0, 0.107), 0.035, (-0.123, -0.031))
    fingers = _count_inside(local, (FINGER_OPENING - 0.001, FINGER_OPENING + 0.026), 0.012, (-0.045, 0.010))
    return hand + 3 * fingers


def _collision_cost(count: int) -> float:
    return 0.25 * min(count, 40) + 0.02 * count


@dataclass(frozen=True)
class Pick:
    """What the cost of a grasp depends on.

    start          object's position (3,)
    object_points  points (N, 3) of the object
    obstacles      points (N, 3) of everything else
    towards        where the object is to go, (3,) or (2,)
    place          where its body is to be put, (3,)
    """

    start: Vector
    object_points: Vector
    obstacles: Vector
    towards: Vector | None
    place: Vector | None


class Hand:
    """Skills of the arm in a scene: pick, carry and release objects."""

    def __init__(self, scene: Scene, arm: Arm) -> None:
        self.scene = scene
        self.arm = arm

    def _reach_cost(self, xy: Vector) -> float:
        distance = float(np.linalg.norm(xy - self.scene.base[:2]))
        return 0.8 * distance + 25 * max(0.0, distance - REACH[1]) + 25 * max(0.0, REACH[0] - distance)

    def _cost(self, grasp: Grasp, pick: Pick) -> float:
        angle = float(np.linalg.norm(rotation_vector(FINGERS_ALONG_Y, grasp.rotation)))
        cost = grasp.cost + 0.5 * angle + 0.8 * max(0.0, angle - 1.1)
        collisions = gripper_collisions(grasp.position, grasp.rotation, pick.obstacles)
        cost += _collision_cost(collisions + grasp_collisions(grasp, pick.object_points))
        near_misses = gripper_collisions(grasp.position, grasp.rotation, pick.obstacles, margin=0.012)
        cost += min(1.0, 0.05 * near_misses)
        cost += self._reach_cost(grasp.position[:2])
        if pick.towards is not None:
            cost += self._reach_cost(pick.towards[:2] + (grasp.position - pick.start)[:2])
        if pick.place is not None:
            collisions = 0
            for fraction in (1.0, 0.35, 0.7):
                via = pick.start + fraction * (pick.place - pick.start)
                if fraction < 1:
                    via[2] = max(pick.place[2] + 0.06, pick.start[2] + 0.06)
                gripper = via + grasp.position - pick.start
                collisions += gripper_collisions(gripper, grasp.rotation, pick.obstacles)
            cost += _collision_cost(collisions)
        return cost

    def plan(self, name: str, towards: Vector | None = None, place: Vector | None = None) -> Grasp:
        """The cheapest grasp of an object that is to go `towards` xy, or to have its body put at `place`.

        Raises:
            GraspError: there is none.
        """
        candidates = candidate_grasps(self.scene, name)
        if not candidates:
            raise GraspError(f"{name}: too wide for the gripper")
        pick = Pick(
            start=self.scene.position(name),
            object_points=self.scene.points(name),
            obstacles=self.scene.obstacles(name),
            towards=place if towards is None else towards,
            place=place,
        )
        return min(candidates, key=lambda grasp: self._cost(grasp, pick))

    def approach(self, grasp: Grasp) -> None:
        """Move the open gripper along its approach to a grasp."""
        self.arm.move(
            grasp.position,
            grasp.rotation,
            OPEN,
            tolerance=0.006,
            angle=0.1,
            steps=45,
            gain=1.3,
            speed=SLOW,
        )

    def _travel(self, name: str, target: Vector, rotation: Matrix) -> None:
        """Move the open gripper to `target`; first above it without descending if the path is blocked."""
        arm = self.arm
        obstacles = self.scene.obstacles(name)
        path = np.linspace(arm.position, target, 6)[1:-1]
        if any(gripper_collisions(point, arm.rotation, obstacles, margin=0.02) for point in path):
            above = np.append(target[:2], max(arm.position[2], target[2]))
            arm.move(above, rotation, OPEN, tolerance=0.015, angle=0.4, steps=60)
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
        """Pick an object up by `lift` metres; `towards` and `place` as for `plan`.

        Raises:
            GraspError: it has not been lifted in so many tries.
        """
        arm, scene = self.arm, self.scene
        for attempt in range(tries):
            grasp = self.plan(name, towards, place)
            height = scene.position(name)[2]
            if attempt or arm.position[2] < grasp.position[2] + 0.05:
                rotation = None if attempt else grasp.rotation
                arm.move(arm.shift(z=0.08), rotation, OPEN, tolerance=0.03, steps=25)
            self._travel(name, grasp.before(0.09), grasp.rotation)
            replanned = self.plan(name, towards, place)  # the object may have been pushed
            if np.linalg.norm(replanned.position - grasp.position) > 0.004:
                grasp = replanned
                arm.move(grasp.before(0.07), grasp.rotation, OPEN, tolerance=0.02, angle=0.12, steps=60)
            self.approach(grasp)
            arm.move(grasp.position, gripper=CLOSED, tolerance=0.0, steps=CLOSING_STEPS, speed=SLOW)
            arm.move(grasp.before(-lift / grasp.rotation[2, 2]), tolerance=0.02, steps=40, speed=0.9)
            if scene.position(name)[2] > height + 0.4 * lift:
                return
            arm.move(arm.shift(z=0.05), gripper=OPEN, tolerance=0.02, steps=15)
        raise GraspError(f"{name} was not lifted in {tries} tries")

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
        """Carry the held object to `xy`, put its bottom at `height` and release it.

        Args:
            clear: least height of its bottom on the way, metres.
            onto: fixture or object on which it is put, which is no obstacle.
            tolerance: of `xy`, metres.
            speed: when it is lowered.

        Returns:
            False if the object slips; it is released then.
        """
        arm, clear = self.arm, max(clear, height + 0.04)
        transport = _Transport(self, name, xy, clear, onto)
        arm.move(
            transport.waypoint,
            upright(arm.target_rotation),
            CLOSED,
            tolerance=0.004,
            steps=140,
            until=lambda: transport.slipped() or transport.arrived(tolerance),
        )
        if transport.slipped():
            arm.hold(4, OPEN)
            arm.move(arm.shift(z=0.08), tolerance=0.02, steps=20)
            return False

        heights: list[float] = []

        def blocked() -> bool:
            """The gripper has not moved vertically for seven steps."""
            heights.append(arm.position[2])
            return len(heights) > 7 and bool(np.all(np.abs(np.diff(heights[-8:])) < 0.0008))

        arm.move(
            lambda: transport.gripper_at(height + 0.002),
            tolerance=0.006,
            steps=60,
            gain=1.3,
            speed=speed,
            until=blocked,
        )
        self.release()
        return True

    def release(self, retreat: float = 0.12) -> None:
        """Open the gripper and move up by `retreat` metres."""
        self.arm.hold(8, OPEN)
        self.arm.move(self.arm.shift(z=retreat), tolerance=0.03, steps=30, speed=0.8)


class _Transport:
    """A held object on its way to `xy`, controlled by the object's own pose: its grasp may shift."""

    def __init__(self, hand: Hand, name: str, xy: Vector, clear: float, onto: str | None) -> None:
        self._arm, self._scene = hand.arm, hand.scene
        self._name, self._xy, self._clear = name, xy, clear
        self._obstacles = self._scene.obstacles(name, *([onto] if onto else []))
        low, high = self._scene.bounds(name)
        self._half_width = (high - low)[:2].max() / 2 + 0.02
        self._grip = self._position_in_gripper()
        self._anchor: Vector | None = None
        """Where the gripper rises vertically; None: it does not."""

    def _position_in_gripper(self) -> Vector:
        return self._arm.rotation.T @ (self._scene.position(self._name) - self._arm.position)

    def slipped(self) -> bool:
        """Whether the object has moved in the gripper."""
        return bool(np.linalg.norm(self._position_in_gripper() - self._grip) > SLIP)

    def _distance(self) -> float:
        """Horizontal distance to the goal, metres."""
        return float(np.linalg.norm(self._scene.position(self._name)[:2] - self._xy))

    def arrived(self, tolerance: float) -> bool:
        """Whether the object is over the goal, at the height of the way."""
        return self._distance() < tolerance and abs(self._scene.bottom(self._name) - self._clear) < 0.03

    def gripper_at(self, bottom: float) -> Vector:
        """The gripper's position at which the object is at the goal, with its bottom at this height."""
        offset = self._arm.position - self._scene.position(self._name)
        height = bottom + self._arm.position[2] - self._scene.bottom(self._name)
        return np.append(self._xy + offset[:2], height)

    def waypoint(self) -> Vector:
        """The gripper's next target: straight up while too low for obstacles on the way, then the goal."""
        start, distance = self._scene.position(self._name)[:2], self._distance()
        direction = (self._xy - start) / max(distance, 1e-6)
        relative = self._obstacles[:, :2] - start
        along = np.clip(relative @ direction, 0, distance)
        crossed = np.linalg.norm(relative - along[:, None] * direction, axis=1) < self._half_width
        bottom = self._clear
        if crossed.any() and distance > 0.03:
            bottom = max(self._clear, self._obstacles[crossed, 2].max() + 0.015)
        target = self.gripper_at(bottom)
        if self._scene.bottom(self._name) < bottom - 0.015 and distance > 0.02:
            self._anchor = self._arm.position if self._anchor is None else self._anchor
            target[:2] = self._anchor[:2]
        else:
            self._anchor = None
        return target
