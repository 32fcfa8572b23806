"""RL steps without a simulator, for tests: configurations, scripted episodes, their scores and updates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator

from srpo.config import Protocol, Reward, Train, TrainStage, WorldModel
from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.rl import collect, score, update
from srpo.rollouts.episode_store import EpisodeStore
from srpo.world_models import load_world_model
from support.policies import SUITE
from support.recorded_training import episode

TASKS = (7, 8)


def stage(train: dict | None = None, reward: dict | None = None, pixel: bool = True) -> TrainStage:
    settings = dict(
        steps=3, prompts=4, group_size=4, temperature=1.0, keep_success=(0.0, 1.0),
        learning_rate=1e-2, weight_decay=0.0, deviation="group", betas=(0.9, 0.999), freeze_vision=False,
        minibatch=2,
        microbatch=1000, epochs=1, clip_low=0.2, clip_high=0.28, kl=0.0, entropy=0.0, grad_clip=1e9,
        checkpoint_every=1, resample=0, warmup=0.0, schedule="constant", offline=None, evaluate_every=0,
        evaluate_states=2, target=None,
        keep_checkpoints=2, trackers=(),
    )  # fmt: skip
    shaping = dict(
        shaping="paper",
        alpha=0.8,
        references="mean",
        scope="task",
        eps=0.5,
        eps_relative=False,
        min_samples=2,
    )
    world_model = WorldModel(
        name="pixel", kind="pixel", checkpoint=None, revision=None, frames=4, image_size=4,
        pooling=None, dtype="float32", pretraining=None,
    )  # fmt: skip
    return TrainStage(
        preset="test",
        suite=SUITE,
        tasks=TASKS,
        protocol=Protocol(
            profile="held_out", max_steps=20, settle_steps=0, env_seed=0, image_size=16, render="fast"
        ),
        variant="test",
        seed=5,
        world_model=world_model if pixel else None,
        reward=Reward(**(shaping | (reward or {}))),
        train=Train(**(settings | (train or {}))),
    )


def specs_of(config: TrainStage, step: int) -> list[EpisodeSpec]:
    return collect.episode_specs(config, step, collect.sample_prompts(config, step))


class ScriptedRunner:
    """A `PolicyRunner` with given successes: one character (1, 0, or x: could not be run) per episode."""

    def __init__(self, policy: object, successes: str) -> None:
        self.policy, self.successes = policy, iter(successes)
        self.ran: list[EpisodeSpec] = []

    def run(self, specs: list[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
        flags = [next(self.successes) for _ in specs]
        for k, (spec, flag) in reversed(list(enumerate(zip(specs, flags, strict=True)))):
            self.ran.append(spec)
            if flag == "x":
                yield FailedRun(spec, "boom")
            else:
                yield episode(spec, flag == "1", 9 + 3 * (k % 4), self.policy)


def collector(runner: ScriptedRunner, scratch: Path) -> collect.Collector:
    return collect.Collector(runner, EpisodeStore(scratch), Accelerator())  # type: ignore[arg-type]


def batch(config: TrainStage, successes: str, policy: object) -> collect.Batch:
    """One episode a character of `successes` (1, 0), in the order of the first step's specs."""
    with TemporaryDirectory() as scratch:
        return collect.collect_batch(config, 1, collector(ScriptedRunner(policy, successes), Path(scratch)))


def scored(config: TrainStage, data: collect.Batch) -> score.BatchScores:
    embeddings = None
    if config.world_model is not None:
        world_model = load_world_model(config.world_model, None)
        embeddings = score.embed_batch(config, data, world_model, Accelerator())
    return score.score_batch(config, data, embeddings)


def learn(
    config: TrainStage,
    policy: OpenVLAOFT,
    reference: OpenVLAOFT | None,
    optimiser: torch.optim.Optimizer,
    data: collect.Batch,
    scores: score.BatchScores,
) -> dict[str, float | None]:
    learner = update.Learner(policy, reference, optimiser, Accelerator())
    return update.update_policy(config, learner, data, scores, 1)
