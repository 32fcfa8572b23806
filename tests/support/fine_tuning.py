"""A tiny SFT run, for tests: its demonstrations and its settings."""

from __future__ import annotations

import numpy as np

from srpo.config import Policy, Protocol, Sft, SftStage
from srpo.demos import Demonstration
from support.policies import SUITE


def demonstration(length: int, seed: int) -> Demonstration:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
    actions[:, 6] = np.where(np.arange(length) < length // 2, -1, 1)
    images = rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8)
    return Demonstration(
        "turn on the stove", images, rng.normal(size=(length, 8)).astype(np.float32), actions
    )


def stage(policy: Policy, **changes: object) -> SftStage:
    """Settings of a tiny run."""
    values = dict(
        updates=60,
        batch_size=16,
        learning_rate=1e-2,
        weight_decay=0.0,
        warmup=0.1,
        label_smoothing=3.0,
        auxiliary=1.0,
        stride=1,
        grad_clip=1.0,
        checkpoint_every=20,
    )
    return SftStage(
        preset="test",
        suite=SUITE,
        tasks=(0,),
        protocol=Protocol(
            profile="held_out", max_steps=9, settle_steps=0, env_seed=0, image_size=16, render="fast"
        ),
        variant="sft",
        seed=3,
        policy=policy,
        sft=Sft(**(values | changes)),  # type: ignore[arg-type]
    )
