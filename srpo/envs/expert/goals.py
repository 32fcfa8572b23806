"""An episode of the expert: a skill for each of the task's BDDL goals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from srpo.envs.expert.arm import OPEN, Arm, BeforeStep, EpisodeEnd
from srpo.envs.expert.grasping import GraspError, Hand
from srpo.envs.expert.mechanisms import close, open_drawer, turn_on
from srpo.envs.expert.placing import put_in, put_on
from srpo.envs.expert.scene import Scene
from srpo.envs.libero import LiberoEnv
from srpo.envs.osc import UnstableSimulationError

SKILLS: dict[str, Callable[..., None]] = {
    "open": open_drawer,
    "turnon": turn_on,
    "on": put_on,
    "in": put_in,
    "close": close,
}
"""Skill that makes each predicate true, in the order in which a task's goals are done: doors close last."""
FINAL_STEPS = 12
"""Control steps to wait at the end for objects to come to rest."""


def run_expert(
    env: LiberoEnv,
    init_state: int,
    *,
    noise: float,
    rng: np.random.Generator,
    max_steps: int,
    before_step: BeforeStep,
) -> bool:
    """Run one episode, which ends at the first success.

    Args:
        env: any task of libero_spatial, libero_object, libero_goal or libero_10.
        init_state: the initial state to start from.
        noise: standard deviation of the noise on executed translations, as a fraction of a full action
            (rotations have 0.3 of it, slow moves near objects half). It is AR(1) with ρ = 0.8.
        rng: source of the noise alone.
        max_steps: control steps after which the episode fails.
        before_step: called before each step with the intended action (7,), without noise, while `env` shows
            the observation that belongs to it.

    Returns:
        Whether the episode succeeded.
    """
    env.reset(init_state)
    scene = Scene(env)
    hand = Hand(scene, Arm(env, noise, rng, max_steps, before_step))
    order = list(SKILLS)
    try:
        for predicate, *arguments in sorted(scene.goals, key=lambda goal: order.index(goal[0])):
            if not scene.holds(predicate, *arguments):
                SKILLS[predicate](hand, *arguments)
        hand.arm.hold(FINAL_STEPS, OPEN)
    except EpisodeEnd as end:
        return end.success
    except (GraspError, UnstableSimulationError):
        return False
    return False
