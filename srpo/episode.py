"""Plain data passed between simulation, rewards and learning."""

from __future__ import annotations

from dataclasses import dataclass

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
class EpisodeSpec:
    """Everything that determines an episode besides the policy's weights and the protocol.

    `variant` names a LIBERO-Plus task (`None`: the unperturbed task); `seed` seeds the action sampling and
    the perturbation's randomness, if any. Temperature 0 is greedy. `frames`: how many frames to keep for the
    world model (0: none), chosen as `frame_selection` says.
    """

    suite: str
    task_id: int
    init_state: int
    seed: int
    temperature: float
    frames: int = 0
    variant: str | None = None
    frame_selection: FrameSelection = "even"


@dataclass(frozen=True)
class Episode:
    """One finished rollout of C policy queries and `steps` control steps.

    images            uint8 (C, H, W, 3)      the policy's images, official orientation
    proprio           float32 (C, 8)          metres and radians, not normalised
    tokens            int64 (C, 56)           sampled action bins, 0…255
    log_probs         float32 (C, 56)         of the tokens at the sampling temperature
    valid             bool (C, 56)            False for tokens of control steps after the episode's end
    frames            uint8 (F, H, W, 3)      spread over the whole episode, F = spec.frames
    path              float32 (steps + 1, 3)  end-effector position, metres
    distance_to_goal  float32 (steps + 1,)    metres to the goal (`srpo.envs.goal`)
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


@dataclass(frozen=True)
class FailedRun:
    """An episode that could not be run (a crashed simulator, say). It is not a failed episode."""

    spec: EpisodeSpec
    error: str
