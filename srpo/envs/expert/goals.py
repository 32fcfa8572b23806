"""From a task's BDDL goals to a run of the expert."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from srpo.envs.expert.arm import OPEN, Arm, BeforeStep, EpisodeEnd
from srpo.envs.expert.grasping import GraspError, Hand
from srpo.envs.expert.mechanisms import close, open_drawer, turn_on
from srpo.envs.expert.placing import put_in, put_on
from srpo.envs.expert.scene import Scene
from srpo.envs.libero import LiberoEnv

SKILLS: dict[str, Callable[..., None]] = {
    "open": open_drawer,
    "turnon": turn_on,
    "on": put_on,
    "in": put_in,
    "close": close,
}
"""What makes each predicate true, in the order in which a task's goals are done: doors close last."""
PATIENCE = 12
"""Control steps to wait at the end for things to come to rest."""


def run_expert(
    env: LiberoEnv,
    init_state: int,
    *,
    noise: float,
    rng: np.random.Generator,
    max_steps: int,
    before_step: BeforeStep,
) -> bool:
    """Play one episode; it ends at the first success. Returns whether it succeeded.

    Args:
        env: any task of libero_spatial, libero_object, libero_goal or libero_10.
        init_state: the initial state to start from.
        noise: standard deviation of the noise added to executed translations (full action is 1; rotations get
            0.3 of it, and slow moves near things half). It is correlated in time: AR(1) with ρ = 0.8.
        rng: source of the noise, and of nothing else.
        max_steps: control steps after which the episode has failed.
        before_step: called before each step with the intended action (7,), without noise; what `env` shows at
            that moment is the observation that belongs to it.
    """
    env.reset(init_state)
    scene = Scene(env)
    hand = Hand(scene, Arm(env, noise, rng, max_steps, before_step))
    order = list(SKILLS)
    try:
        for predicate, *arguments in sorted(scene.goals, key=lambda goal: order.index(goal[0])):
            if not scene.holds(predicate, *arguments):
                SKILLS[predicate](hand, *arguments)
        hand.arm.hold(PATIENCE, OPEN)
    except EpisodeEnd as over:
        return over.success
    except GraspError:
        return False
    return False
