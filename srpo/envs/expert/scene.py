"""The expert's privileged state: poses, shapes and goals, read from the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from srpo.envs.libero import LiberoEnv

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

POINT_SPACING = 0.012
"""Metres between the points that represent a collision box: narrower than a finger."""

FINGERS_ALONG_Y: Matrix = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""The gripper's orientation at the start: z (the approach) points down, x (the fingers) along world y."""


def top_down(angle: float) -> Matrix:
    """The downward gripper orientation with fingers along the world direction `angle` (radians from x).

    The gripper is symmetric: of the two such orientations, the one nearer to the start's.
    """
    return Rotation.from_euler("z", angle % np.pi - np.pi / 2).as_matrix() @ FINGERS_ALONG_Y


def about(axis: Vector, degrees: float) -> Matrix:
    """Rotation about a unit axis."""
    return Rotation.from_rotvec(np.radians(degrees) * axis).as_matrix()


def rotation_vector(source: Matrix, target: Matrix) -> Vector:
    """The rotation from `source` to `target` as a vector in the world frame, radians."""
    return Rotation.from_matrix(target @ source.T).as_rotvec()


def upright(rotation: Matrix) -> Matrix:
    """`rotation` turned by the smallest angle after which its approach (z) points straight down."""
    axis = np.cross(rotation[:, 2], [0.0, 0.0, -1.0])
    sine = float(np.linalg.norm(axis))
    if sine < 0.05:
        return rotation
    return about(axis / sine, np.degrees(np.arcsin(min(1.0, sine)))) @ rotation


@dataclass(frozen=True)
class Cloud:
    """Points attached to collision geoms: `points[n]` (3,) is in the frame of geom `geoms[n]`."""

    points: Vector
    geoms: NDArray[np.intp]


@dataclass(frozen=True)
class Drawer:
    """A drawer: its joint, its handle and the direction (world, unit) in which it opens.

    The joint's coordinate decreases from 0 to about -0.16 m as the drawer opens.
    """

    qpos: int
    handle: int
    geoms: list[int]
    outward: Vector


class Scene:
    """Privileged state of one episode's simulation. All positions are metres in the world frame."""

    def __init__(self, env: LiberoEnv) -> None:
        self.domain: Any = env.env
        self.model = env.model
        self.data = env.data
        self.base: Vector = self.data.xpos[self.model.body("robot0_base").id].copy()
        self._clouds: dict[tuple[str, bool], Cloud] = {}

    # Goals

    @property
    def goals(self) -> list[tuple[str, ...]]:
        """The task's goal: (predicate, argument, ...) tuples that all must hold."""
        return [tuple(goal) for goal in self.domain.parsed_problem["goal_state"]]

    def holds(self, *predicate: str) -> bool:
        """Whether a BDDL predicate, such as ("on", "plate_1", "stove_region"), is true now."""
        return bool(self.domain._eval_predicate(list(predicate)))

    def is_object(self, name: str) -> bool:
        """Whether a name is a movable object's (goals also name regions)."""
        return name in self.domain.objects_dict

    def parent(self, region: str) -> str | None:
        """The fixture or object that a goal region belongs to; None for a region of the table."""
        name: str | None = self.domain.object_sites_dict[region].parent_name
        return name

    # Poses

    def position(self, name: str) -> Vector:
        """Body position of an object or fixture."""
        position: Vector = self.data.xpos[self.domain.obj_body_id[name]].copy()
        return position

    def rotation(self, name: str) -> Matrix:
        """Body orientation (3, 3) of an object or fixture."""
        return self.data.xmat[self.domain.obj_body_id[name]].reshape(3, 3).copy()

    def region_position(self, region: str) -> Vector:
        """Centre of a goal region."""
        position: Vector = self.data.site_xpos[self.model.site(region).id].copy()
        return position

    def region_rotation(self, region: str) -> Matrix:
        """Orientation (3, 3) of a goal region."""
        return self.data.site_xmat[self.model.site(region).id].reshape(3, 3).copy()

    def region_half_size(self, region: str) -> Vector:
        """Half the extent (3,) of a goal region along its own axes."""
        return np.asarray(self.domain.object_sites_dict[region].size, dtype=float)

    # Shapes

    def collision_geoms(self, body: int) -> list[int]:
        """Collision geoms of a body and of everything attached to it."""
        inside = {body}
        for child in range(body + 1, self.model.nbody):  # parents come before children
            if self.model.body_parentid[child] in inside:
                inside.add(child)
        return [
            geom
            for geom in range(self.model.ngeom)
            if self.model.geom_bodyid[geom] in inside
            and (self.model.geom_contype[geom] or self.model.geom_conaffinity[geom])
        ]

    def _geom_points(self, geom: int, dense: bool) -> Vector:
        """Corners of a geom's bounding box in its own frame; if `dense`, a grid of points in boxes."""
        if dense and self.model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX:
            half = self.model.geom_size[geom]
            counts = np.maximum(2, np.ceil(2 * half / POINT_SPACING).astype(int) + 1)
            axes = [np.linspace(-h, h, n) for h, n in zip(half, counts, strict=True)]
            centre = np.zeros(3)
        else:
            centre, half = np.split(self.model.geom_aabb[geom], 2)
            axes = [np.array([-h, h]) for h in half]
        return centre + np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)

    def _cloud(self, name: str, dense: bool) -> Cloud:
        if (name, dense) not in self._clouds:
            geoms = self.collision_geoms(self.domain.obj_body_id[name])
            points = [self._geom_points(geom, dense) for geom in geoms]
            geom_of_point = np.repeat(np.array(geoms, dtype=np.intp), [len(p) for p in points])
            self._clouds[name, dense] = Cloud(np.concatenate(points), geom_of_point)
        return self._clouds[name, dense]

    def _world(self, cloud: Cloud) -> Vector:
        rotations = self.data.geom_xmat[cloud.geoms].reshape(-1, 3, 3)
        world: Vector = np.einsum("nij,nj->ni", rotations, cloud.points) + self.data.geom_xpos[cloud.geoms]
        return world

    def points(self, name: str) -> Vector:
        """Points (N, 3) that fill an object's or fixture's collision shape."""
        return self._world(self._cloud(name, dense=True))

    def bounds(self, name: str) -> tuple[Vector, Vector]:
        """Lowest and highest corner (3,) of an object's or fixture's bounding box along the world axes."""
        corners = self._world(self._cloud(name, dense=False))
        return corners.min(axis=0), corners.max(axis=0)

    def geom_top(self, geom: int) -> float:
        """Height of a geom's highest corner."""
        corners = self._geom_points(geom, dense=False) @ self.data.geom_xmat[geom].reshape(3, 3).T
        return float((corners + self.data.geom_xpos[geom])[:, 2].max())

    def bottom(self, name: str) -> float:
        """Height of an object's lowest point."""
        return float(self.bounds(name)[0][2])

    def obstacles(self, *excluded: str) -> Vector:
        """Points (N, 3) of all objects and fixtures except the excluded ones."""
        names = [*self.domain.objects_dict, *self.domain.fixtures_dict]
        clouds = [self.points(name) for name in names if name not in excluded]
        return np.concatenate(clouds) if clouds else np.zeros((0, 3))

    def table_height(self) -> float:
        """Height of the table, on which the lowest object stands."""
        return min(self.bottom(name) for name in self.domain.objects_dict)

    def surface_height(self, fixture: str, xy: Vector) -> float:
        """Height of a fixture's top within 6 cm of `xy`."""
        points = self.points(fixture)
        near = np.linalg.norm(points[:, :2] - xy, axis=1) < 0.06
        return float(points[near, 2].max())

    # Mechanisms

    @cached_property
    def _joint_of_body(self) -> dict[int, int]:
        return {int(body): joint for joint, body in enumerate(self.model.jnt_bodyid)}

    def joint_value(self, qpos: int) -> float:
        """A joint's coordinate (metres or radians) by its address in `qpos`."""
        return float(self.data.qpos[qpos])

    def drawer(self, region: str) -> Drawer:
        """The drawer that a goal region is in."""
        body = int(self.model.site_bodyid[self.model.site(region).id])
        while body not in self._joint_of_body:
            body = int(self.model.body_parentid[body])
        joint = self._joint_of_body[body]
        outward = -self.data.xaxis[joint] / np.linalg.norm(self.data.xaxis[joint])
        geoms = [geom for geom in self.collision_geoms(body) if self.model.geom_bodyid[geom] == body]
        small = [geom for geom in geoms if self.model.geom_size[geom].max() < 0.05]
        handle = max(small, key=lambda geom: float(self.data.geom_xpos[geom] @ outward))
        return Drawer(int(self.model.jnt_qposadr[joint]), handle, geoms, outward)
