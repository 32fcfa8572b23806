"""RL steps without a simulator, for tests: configurations, scripted episodes, their scores and updates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator

from srpo.config import TrainStage
from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.rl import collect, score, update
from srpo.rollouts.episode_store import EpisodeStore
from srpo.world_models import load_world_model
from support.recorded_training import episode


def specs_of(config: TrainStage, step: int) -> list[EpisodeSpec]:
    return collect.episode_specs(config, step, collect.sample_prompts(config, step))


class ScriptedRunner:
    """A `PolicyRunner` with given successes: one character (1, 0, or x: could not be run) per episode."""

    def __init__(self, policy: object, successes: str) -> None:
        self.policy, self.successes = policy, iter(successes)
        self.ran: list[EpisodeSpec] = []

    def run(
        self, specs: list[EpisodeSpec], others: Sequence[EpisodeSpec] = ()
    ) -> Iterator[Episode | FailedRun]:
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
