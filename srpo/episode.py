"""Plain data passed between simulation, rewards and learning."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from srpo.config import FrameSelection

CHUNK = 8
"""Control steps of one action chunk."""
ACTION_DIM = 7
"""xyz delta, axis-angle delta, gripper; each in [-1, 1]; gripper -1 opens, +1 closes (LIBERO's sign)."""
TOKENS = CHUNK * ACTION_DIM
"""Action tokens of one policy query."""
PROMPT_TOKENS = 30
"""Tokens of a prompt, as estimates assume; those of LIBERO's instructions have about 20 to 40."""
PROPRIO_DIM = 8
"""End-effector position (3, metres), axis-angle orientation (3, radians), finger positions (2, metres)."""


@dataclass(frozen=True)
class Start:
    """A moment of an episode from which another one goes on.

    query  number of the policy's query at that moment, from 0; the episode had taken `CHUNK` steps for each
    state  that query's row of `Episode.states`, as bytes, because specs are compared and hashed
    """

    query: int
    state: bytes = field(repr=False)


@dataclass(frozen=True)
class EpisodeSpec:
    """Everything that determines an episode besides the policy's weights and the protocol.

    `variant` names a LIBERO-Plus task (`None`: the unperturbed task); `seed` seeds the action sampling and
    the perturbation's randomness, if any. Temperature 0 is greedy. `frames`: how many frames to keep for the
    world model (0: none), chosen as `frame_selection` says. `states`: whether to keep the simulator's state
    at every query, from which branches can start.

    `start` makes a branch: it goes on from there, until the step at which a whole episode ends. With the seed
    and temperature of the episode that was there, it is the rest of that episode, bit for bit.

    Raises:
        ValueError: a LIBERO-Plus task has a start, which leaves out the state of its perturbation.
    """

    suite: str
    task_id: int
    init_state: int
    seed: int
    temperature: float
    frames: int = 0
    variant: str | None = None
    frame_selection: FrameSelection = "even"
    states: bool = False
    start: Start | None = None

    def __post_init__(self) -> None:
        if self.start is not None and self.variant is not None:
            raise ValueError(f"{self.variant}: episodes of LIBERO-Plus have no branches")


@dataclass(frozen=True)
class Episode:
    """One finished rollout of C policy queries and `steps` control steps; of a branch, after its start.

    images            uint8 (C, H, W, 3)      the policy's images, official orientation
    proprio           float32 (C, 8)          metres and radians, not normalised
    tokens            int64 (C, 56)           sampled action bins, 0…255
    log_probs         float32 (C, 56)         of the tokens at the sampling temperature
    valid             bool (C, 56)            False for tokens of control steps after the episode's end
    frames            uint8 (F, H, W, 3)      spread over the whole episode, F = spec.frames
    path              float32 (steps + 1, 3)  end-effector position, metres
    distance_to_goal  float32 (steps + 1,)    metres to the goal (`srpo.envs.goal`)
    states            float64 (C, S)          `LiberoEnv.snapshot` at each query; (0, 0) without `spec.states`
    """

    spec: EpisodeSpec
    success: bool
    steps: int
    images: NDArray[np.uint8]
    proprio: NDArray[np.float32]
    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    valid: NDArray[np.bool_]
    frames: NDArray[np.uint8]
    path: NDArray[np.float32]
    distance_to_goal: NDArray[np.float32]
    wall_seconds: float
    states: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))


@dataclass(frozen=True)
class FailedRun:
    """An episode that could not be run (a crashed simulator, say). It is not a failed episode."""

    spec: EpisodeSpec
    error: str
