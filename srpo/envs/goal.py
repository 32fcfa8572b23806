"""How far a task is from its goal, by what the simulator knows: what progress rewards are judged by."""

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
"""Predicates about a joint → LIBERO's name for the range of the joint that makes them true."""


@dataclass(frozen=True)
class _Placing:
    """An object (body) that shall be at a place (body or site)."""

    body: int
    place: tuple[str, int]

    def way(self, data: mujoco.MjData, hand: NDArray[np.float64]) -> float:
        kind, number = self.place
        target = data.xpos[number] if kind == "body" else data.site_xpos[number]
        own = data.xpos[self.body]
        return float(np.linalg.norm(hand - own) + np.linalg.norm(own - target))


@dataclass(frozen=True)
class _Turning:
    """A joint that shall come into a range: the hand has to reach its body, whose rim then moves along.

    radius  metres of the rim from a hinge's axis; 1 for a slide, whose coordinate is in metres
    """

    body: int
    qpos: int
    low: float
    high: float
    radius: float

    def way(self, data: mujoco.MjData, hand: NDArray[np.float64]) -> float:
        value = data.qpos[self.qpos]
        off = max(self.low - value, value - self.high, 0.0)
        return float(np.linalg.norm(hand - data.xipos[self.body]) + self.radius * off)


class Goal:
    """The predicates of a task's goal, and the way that is left to them."""

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
            (list(goal), _part(domain, model, goal, visible)) for goal in domain.parsed_problem["goal_state"]
        ]

    def distance_to_goal(self) -> float:
        """Metres of way that the hand still has to go at least, in straight lines; 0 where the goal holds.

        The sum over the predicates that do not hold: from the hand to the object (drawer, door, knob), and
        from there to where it shall be. It knows nothing of obstacles, of grasping or of the order of
        predicates, and its zero is not sharp (an object's origin is not where it is held or rests), so it is
        for comparing moments and episodes of one task.
        """
        return sum(
            part.way(self._data, self._hand)
            for goal, part in self._parts
            if not self._domain._eval_predicate(goal)
        )


def _part(
    domain: Any, model: mujoco.MjModel, goal: Sequence[str], visible: Callable[[], VisibleScene]
) -> _Placing | _Turning:
    predicate, name, *rest = goal
    if predicate in ("on", "in"):
        return _Placing(domain.obj_body_id[name], _place(domain, model, rest[0]))
    if predicate in RANGES:
        # A cabinet's drawers are named by the regions within them.
        part = domain.object_sites_dict.get(name)
        owner = domain.get_object(name if part is None else part.parent_name)
        joint = model.joint((owner if part is None else part).joints[0]).id
        low, high = sorted(owner.object_properties["articulation"][RANGES[predicate]])
        body = int(model.jnt_bodyid[joint])
        hinge = model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE
        radius = _radius(visible(), joint, body) if hinge else 1.0
        return _Turning(body, int(model.jnt_qposadr[joint]), low, high, radius)
    raise ValueError(
        f"goal {goal}: no measure of the way to {predicate!r}; there is one for on, in, {', '.join(RANGES)}"
    )


def _place(domain: Any, model: mujoco.MjModel, name: str) -> tuple[str, int]:
    if name in domain.object_sites_dict:
        return "site", model.site(name).id
    return "body", domain.obj_body_id[name]


def _radius(scene: VisibleScene, joint: int, body: int) -> float:
    """Metres from a hinge's axis to its body's rim: the far side of the farthest geom's bounding sphere."""
    model, data = scene.model, scene.data
    geoms = np.flatnonzero(model.geom_bodyid == body)
    arms = data.geom_xpos[geoms] - data.xanchor[joint]
    across = arms - np.outer(arms @ data.xaxis[joint], data.xaxis[joint])
    return float((np.linalg.norm(across, axis=1) + model.geom_rbound[geoms]).max())
