"""Evaluation on LIBERO and LIBERO-Plus, and the benchmark of progress rewards."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from srpo.config.fields import NonNegativeInt, Positive, PositiveInt, Section, Seed, require_distinct

Dimension = Literal["camera", "robot", "language", "light", "background", "noise", "layout"]
DIMENSIONS: tuple[str, ...] = get_args(Dimension)
"""The seven perturbation dimensions of LIBERO-Plus, in the order of its leaderboard."""
STYLES = ("style_light", "style_background", "style_distractors")
"""Our own perturbations in LIBERO-Plus's manner, on LIBERO's own assets: no part of LIBERO-Plus."""


class Evaluate(Section):
    """Evaluation on LIBERO's test states: a greedy episode of each, and sampled ones."""

    states: PositiveInt
    """Test states a task, taken in order."""
    sampled: NonNegativeInt = 0
    """Further episodes of each test state with sampled actions, as in training. RL raises the success of
    sampled actions; greedy decoding follows as far as the likeliest tokens are the good ones."""
    temperature: Positive = 1.0
    """Sampling temperature of these."""
    stop_early: bool = False
    """true: an evaluation ends when the comparison of its greedy episodes with those of the suite's `sft` is
    decided, at 5%: whether it is better or worse, not by how much. T1 then shows wider intervals, which allow
    for looking (`srpo.analysis.sequential`). Sampled episodes all run."""

    def sampled_seeds(self, state: int) -> range:
        """Episode seeds of a test state's sampled episodes; a task has 50 states, so that all differ."""
        return range(50 + state, 50 * (self.sampled + 1) + state, 50)

    @property
    def episodes_per_task(self) -> int:
        """Greedy and sampled."""
        return self.states * (1 + self.sampled)


class Plus(Section):
    """LIBERO-Plus robustness sweep."""

    dimensions: Annotated[tuple[Dimension, ...], Field(strict=False, min_length=1)]
    """Perturbations to run. Tasks that cannot run here become rows with status `unavailable` and a reason."""
    per_dimension: PositiveInt | None
    """A seeded sample of this many tasks a dimension, spread over the base tasks; none: all of them."""
    robot_start: Literal["official", "true_start"]
    """Robot tasks: `official`: as upstream runs them, the initial state puts the arm back and only the
    controller keeps the start posture, so the arm drifts; `true_start`: the arm begins in the posture."""
    leaked_prompt: bool
    """true: outside Language, prompt with the words of the task's file name, which give the perturbation
    away, as upstream's `task.language` does; false: with the base task's instruction."""
    assets: str | None
    """Folder of LIBERO-Plus's asset pack (`srpo libero-plus fetch-assets`); none: LIBERO's own assets, on
    which light, most backgrounds and added distractors are unavailable."""
    styles: NonNegativeInt
    """Tasks of each of our styles (`plus_style`): light, background and distractors in our own declared
    ranges, on LIBERO's own assets. They have columns of their own and are in no total of LIBERO-Plus."""
    shard_size: PositiveInt
    """Tasks of one job."""
    seed: Seed
    """Seed of that sample, of perturbations that draw, and of the order in which a shard that may stop early
    runs its tasks."""
    stop_early: bool = False
    """true: a shard ends when the comparison of its tasks with the same ones of the suite's `sft` is decided:
    whether it is better or worse, at 5% for all shards of the sweep together. Each shard decides for itself.
    T2 then shows wider intervals, which allow for looking (`srpo.analysis.sequential`)."""

    @model_validator(mode="after")
    def _dimensions_differ(self) -> Plus:
        require_distinct("dimensions", self.dimensions)
        return self


class Values(Section):
    """The policy's own chance of success at moments of the reward benchmark's trajectories, by branches."""

    points: PositiveInt
    """Moments of a trajectory from which branches start: policy queries spread evenly from first to last."""
    branches: NonNegativeInt
    """Branches from each moment: rollouts of the policy that go on from there. 0: no values."""
    seed: Seed
    """Seed of the branches."""


class RewardBenchmark(Section):
    """Progress-reward benchmark: labelled trajectories, scored under several representations."""

    successes: PositiveInt
    """Successful trajectories to collect, a suite."""
    failures: PositiveInt
    """Failed trajectories to collect, a suite."""
    max_episodes: PositiveInt
    """Stop collecting after this many rollouts, with however many successes and failures there are."""
    temperature: Positive
    """Sampling temperature of the rollouts."""
    prefixes: Annotated[int, Field(ge=3)]
    """Points along a trajectory at which progress is measured."""
    seed: Seed
    """Seed of the rollouts."""

    @model_validator(mode="after")
    def _enough_episodes(self) -> RewardBenchmark:
        wanted = self.successes + self.failures
        if self.max_episodes < wanted:
            raise ValueError(
                f"max_episodes {self.max_episodes} is below successes + failures, {wanted}: it would always "
                "stop early"
            )
        return self
