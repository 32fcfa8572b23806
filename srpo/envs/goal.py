"""Distance of a task from its goal by the simulator's state: the truth for judging progress rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from srpo.envs.renderer import VisibleScene

RANGES = {
    "open": "default_open_ranges",
    "close": "default_close_ranges",
    "turnon": "default_turnon_ranges",
    "turnoff": "default_turnoff_ranges",
}
"""Predicate about a joint → LIBERO's name for the joint's range in which it holds."""


@dataclass(frozen=True)
class _PlaceGoal:
    """An object (a body) has to be at a target: ("body" or "site", its id)."""

    body: int
    target: tuple[str, int]

    def distance(self, data: mujoco.MjData, hand: NDArray[np.float64]) -> float:
        kind, number = self.target
        target = data.xpos[number] if kind == "body" else data.site_xpos[number]
        position = data.xpos[self.body]
        return float(np.linalg.norm(hand - position) + np.linalg.norm(position - target))


@dataclass(frozen=True)
class _JointGoal:
    """A joint has to be in a range: the hand reaches its body, whose rim then moves with it.

    radius  metres from a hinge's axis to the rim; 1 for a slide, whose coordinate is in metres
    """

    body: int
    qpos: int
    low: float
    high: float
    radius: float

    def distance(self, data: mujoco.MjData, hand: NDArray[np.float64]) -> float:
        value = data.qpos[self.qpos]
        outside = max(self.low - value, value - self.high, 0.0)
        return float(np.linalg.norm(hand - data.xipos[self.body]) + self.radius * outside)


class Goal:
    """The predicates of a task's goal, and the distance to them.

    Raises:
        ValueError: there is no measure of distance for a predicate.
    """

    def __init__(
        self,
        domain: Any,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        visible: Callable[[], VisibleScene],
    ) -> None:
        self._domain, self._data = domain, data
        self._hand = data.site_xpos[domain.robots[0].eef_site_id]
        self._parts = [
            (list(predicate), _part(domain, model, predicate, visible))
            for predicate in domain.parsed_problem["goal_state"]
        ]

    def distance(self) -> float:
        """Least distance that the hand still has to move in straight lines, metres; 0 where the goal holds.

        The sum over the predicates that do not hold: from the hand to the object (drawer, door, knob), and
        from there to its target. It ignores obstacles, grasping and the order of predicates, and jumps to 0
        where a predicate becomes true (an object's origin is not where it is held or rests). So it compares
        moments and episodes of one task, not tasks.
        """
        return sum(
            part.distance(self._data, self._hand)
            for predicate, part in self._parts
            if not self._domain._eval_predicate(predicate)
        )


def _part(
    domain: Any, model: mujoco.MjModel, goal: Sequence[str], visible: Callable[[], VisibleScene]
) -> _PlaceGoal | _JointGoal:
    predicate, name, *rest = goal
    if predicate in ("on", "in"):
        return _PlaceGoal(domain.obj_body_id[name], _target(domain, model, rest[0]))
    if predicate in RANGES:
        # A cabinet's drawers have the names of the regions in them.
        drawer = domain.object_sites_dict.get(name)
        owner = domain.get_object(name if drawer is None else drawer.parent_name)
        joint = model.joint((owner if drawer is None else drawer).joints[0]).id
        low, high = sorted(owner.object_properties["articulation"][RANGES[predicate]])
        body = int(model.jnt_bodyid[joint])
        is_hinge = model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE
        radius = _radius(visible(), joint, body) if is_hinge else 1.0
        return _JointGoal(body, int(model.jnt_qposadr[joint]), low, high, radius)
    raise ValueError(
        f"goal {goal}: no measure of the distance to {predicate!r}; there is one for on, in, "
        f"{', '.join(RANGES)}"
    )


def _target(domain: Any, model: mujoco.MjModel, name: str) -> tuple[str, int]:
    if name in domain.object_sites_dict:
        return "site", model.site(name).id
    return "body", domain.obj_body_id[name]


def _radius(scene: VisibleScene, joint: int, body: int) -> float:
    """Metres from a hinge's axis to its body's rim: the far side of the farthest geom's bounding sphere."""
    model, data = scene.model, scene.data
    geoms = np.flatnonzero(model.geom_bodyid == body)
    arms = data.geom_xpos[geoms] - data.xanchor[joint]
    perpendicular = arms - np.outer(arms @ data.xaxis[joint], data.xaxis[joint])
    return float((np.linalg.norm(perpendicular, axis=1) + model.geom_rbound[geoms]).max())
