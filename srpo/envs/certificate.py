"""Whether the simulator that is installed is the one that released checkpoints were trained and tested in.

What it makes of some tasks is compared with what stock LIBERO on MuJoCo 3.3.2 made of them
(`configs/reference/certificate.json`, written by `benchmarks/certificate.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo import ROOT

KNOWN = ROOT / "configs/reference/certificate.json"
TASKS = (
    ("libero_spatial", 5),  # its bowl slips off the ramekin from MuJoCo 3.4.0 on
    ("libero_spatial", 7),
    ("libero_object", 8),  # its floor is darker from 3.3.3 on
    ("libero_object", 0),
    ("libero_goal", 2),
    ("libero_goal", 8),
    ("libero_10", 4),
    ("libero_10", 2),
)
SETTLE_STEPS = 10
MOVES = 8
MOVE = np.array([0.5, -0.3, -0.2, 0.1, 0.2, -0.1, 1.0])
"""Action of each of the moves: every controlled direction, and the gripper closing."""
SIDE, BLOCK = 256, 32
"""Side of a picture, and of the blocks whose mean levels are kept."""
SAME_POSITION = 1e-5
"""Metres and radians: versions of MuJoCo that behave alike differ by 1e-8 after settling."""
SAME_LEVEL = 2.0
"""Levels of a block: OpenGL's drivers filter textures differently along edges."""


@dataclass(frozen=True)
class Measured:
    """What a simulator makes of one task, from its first initial state.

    settled  float64 (nq,)             positions after settling
    moved    float32 (8,)              proprioception after the moves: metres, radians, metres
    picture  SHA-256 of the agent view, uint8 (SIDE, SIDE, 3), of the known settled positions
    blocks   float64 (8, 8, 3)         its mean levels
    """

    settled: NDArray[np.float64]
    moved: NDArray[np.float64]
    picture: str
    blocks: NDArray[np.float64]

    @classmethod
    def of(
        cls, settled: NDArray[np.float64], moved: NDArray[np.floating], picture: NDArray[np.uint8]
    ) -> Measured:
        """From the picture itself, uint8 (SIDE, SIDE, 3) in the official orientation."""
        count = SIDE // BLOCK
        blocks = picture.reshape(count, BLOCK, count, BLOCK, 3).mean((1, 3))
        digest = hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()
        return cls(settled, np.asarray(moved, np.float64), digest, blocks)

    def as_json(self) -> dict[str, Any]:
        """For `KNOWN`; the positions keep all their bits."""
        return {
            "settled": self.settled.tolist(),
            "moved": self.moved.tolist(),
            "picture": self.picture,
            "blocks": self.blocks.round(1).tolist(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measured:
        """The reverse of `as_json`."""
        arrays = {name: np.array(values[name], np.float64) for name in ("settled", "moved", "blocks")}
        return cls(picture=values["picture"], **arrays)


def known(path: Path = KNOWN) -> dict[tuple[str, int], Measured]:
    """The known values of `TASKS`."""
    values = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return {(suite, task): Measured.from_json(values[f"{suite}/{task}"]) for suite, task in TASKS}


def measure(suite: str, task: int, settled: NDArray[np.float64]) -> Measured:
    """Our environment's, with `linear` textures; its picture is of the positions `settled`, float64 (nq,)."""
    from srpo.config import Protocol
    from srpo.envs.libero import LiberoEnv

    protocol = Protocol(
        profile="official", max_steps=MOVES, settle_steps=SETTLE_STEPS, env_seed=0, image_size=SIDE,
        render="exact", textures="linear",
    )  # fmt: skip
    env = LiberoEnv(suite, task, protocol)
    env.reset(0)
    ours = env.data.qpos.copy()
    for _ in range(MOVES):
        env.step(MOVE)
    moved = env.proprio()
    env.set_state(np.concatenate([[0.0], settled, np.zeros(env.model.nv)]))
    return Measured.of(ours, moved, env.render())


@dataclass(frozen=True)
class Verdict:
    """What one aspect of the protocol has been found to be, in words."""

    same: bool
    what: str


def verdicts(
    measured: Mapping[tuple[str, int], Measured], good: Mapping[tuple[str, int], Measured]
) -> list[Verdict]:
    """Pictures, states after settling, controller, quaternion and gripper, compared with known-good ones."""
    return [_pictures(measured, good), _states(measured, good), *_moves(measured, good)]


def digest(measured: Mapping[tuple[str, int], Measured]) -> str:
    """Equal on machines whose pictures and states are equal to the bit."""
    text = json.dumps([each.as_json() for each in measured.values()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _worst(differences: Mapping[tuple[str, int], float]) -> tuple[float, str]:
    """The largest difference, and the task that has it."""
    suite, task = max(differences, key=lambda key: differences[key])
    return differences[suite, task], f"task {task} of {suite}"


def _pictures(
    measured: Mapping[tuple[str, int], Measured], good: Mapping[tuple[str, int], Measured]
) -> Verdict:
    if all(measured[key].picture == good[key].picture for key in good):
        return Verdict(
            True, f"pictures of {len(good)} tasks are those that released checkpoints saw, bit for bit"
        )
    largest, where = _worst({key: abs(measured[key].blocks - good[key].blocks).max() for key in good})
    if largest <= SAME_LEVEL:
        return Verdict(
            True,
            f"pictures of {len(good)} tasks are those that released checkpoints saw, but for the OpenGL "
            f"driver ({largest:.1f} levels at most, as means over {BLOCK} × {BLOCK} pixels)",
        )
    return Verdict(
        False,
        f"these pictures are not those the released checkpoints saw: parts of {where} differ by "
        f"{largest:.0f} levels",
    )


def _states(
    measured: Mapping[tuple[str, int], Measured], good: Mapping[tuple[str, int], Measured]
) -> Verdict:
    largest, where = _worst({key: abs(measured[key].settled - good[key].settled).max() for key in good})
    if largest <= SAME_POSITION:
        return Verdict(True, f"objects settle where they did for released checkpoints (to {largest:.0e} m)")
    return Verdict(
        False,
        f"objects do not settle where they did for released checkpoints: {where} differs by {largest:.3f} m "
        "or rad",
    )


def _moves(
    measured: Mapping[tuple[str, int], Measured], good: Mapping[tuple[str, int], Measured]
) -> list[Verdict]:
    parts = {
        "controller: actions move the hand": slice(0, 3),
        "quaternion convention: the hand's orientation reads": slice(3, 6),
        "gripper convention: the fingers move": slice(6, 8),
    }
    found = []
    for what, part in parts.items():
        largest, where = _worst({key: abs(measured[key].moved - good[key].moved)[part].max() for key in good})
        same = bool(largest <= SAME_POSITION)
        how = "as" if same else "not as"
        found.append(
            Verdict(same, f"{what} {how} in the official stacks ({where} differs by {largest:.0e} m or rad)")
        )
    return found
