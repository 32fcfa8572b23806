"""Settings of a small RL run, for tests."""

from __future__ import annotations

from typing import Any

from srpo.config import Protocol, Reward, Train, TrainStage, WorldModel

TASKS = (7, 8)
PIXEL = WorldModel(
    name="pixel", kind="pixel", checkpoint=None, revision=None, frames=4, image_size=4, pooling=None,
    dtype="float32", pretraining=None,
)  # fmt: skip


def training_stage(
    train: dict[str, Any] | None = None, reward: dict[str, Any] | None = None, pixel: bool = True
) -> TrainStage:
    """Three steps of four groups of four rollouts; `train` and `reward`: other settings."""
    settings: dict[str, Any] = dict(
        steps=3, prompts=4, group_size=4, temperature=1.0, keep_success=(0.0, 1.0), resample=0,
        learning_rate=1e-2, warmup=0.0, schedule="constant", weight_decay=0.0, betas=(0.9, 0.999),
        deviation="group", freeze_vision=False, minibatch=2, microbatch=1000, epochs=1, clip_low=0.2,
        clip_high=0.28, kl=0.0, entropy=0.0, grad_clip=1e9, offline=None, evaluate_every=0,
        evaluate_states=2, target=None, checkpoint_every=1, keep_checkpoints=2, trackers=(),
    )  # fmt: skip
    shaping: dict[str, Any] = dict(
        shaping="paper", alpha=0.8, references="mean", scope="batch", eps=0.5, eps_relative=False,
        min_samples=2,
    )  # fmt: skip
    return TrainStage(
        preset="test",
        suite="libero_goal",
        tasks=TASKS,
        protocol=Protocol(
            profile="held_out", max_steps=20, settle_steps=0, env_seed=0, image_size=16, render="fast"
        ),
        variant="test",
        seed=5,
        world_model=PIXEL if pixel else None,
        reward=Reward(**(shaping | (reward or {}))),
        train=Train(**(settings | (train or {}))),
    )
