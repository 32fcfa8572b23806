"""What the `config.yaml` of each stage holds: the sections that the stage reads."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from srpo.config.demos import Demos
from srpo.config.evaluate import Evaluate, Plus, RewardBenchmark, Values
from srpo.config.fields import TASKS_PER_SUITE, Section, Seed, Suite, TaskIds, require_distinct
from srpo.config.policy import Policy
from srpo.config.protocol import Protocol
from srpo.config.reward import Reward
from srpo.config.sft import Sft
from srpo.config.train import Train
from srpo.config.world_model import WorldModel

SFT = "sft"
"""The variant that is not trained by reinforcement: what every other variant starts from."""
UNTRAINABLE = (
    "bfloat16 allows no training of all weights, whose updates would be rounded away: set policy.lora, or "
    "policy.dtype float32"
)


class Stage(Section):
    """What every stage's resolved file holds."""

    preset: str
    suite: Suite
    tasks: TaskIds
    protocol: Protocol

    @model_validator(mode="after")
    def _tasks_exist(self) -> Stage:
        missing = [task for task in self.tasks if task >= TASKS_PER_SUITE]
        if missing:
            raise ValueError(f"{self.suite} has tasks 0–{TASKS_PER_SUITE - 1}, not {missing}")
        require_distinct("tasks", self.tasks)
        return self


class DemosStage(Stage):
    demos: Demos


class WorldModelStage(Section):
    """World models are shared by all suites."""

    preset: str
    protocol: Protocol
    world_model: WorldModel


class RunStage(Stage):
    """A stage of one policy."""

    variant: str
    """Name of the run's row in the sheets; `variant` in its result rows."""
    seed: Seed


class SftStage(RunStage):
    policy: Policy
    sft: Sft

    @model_validator(mode="after")
    def _has_weights(self) -> SftStage:
        if self.sft.updates == 0 and self.policy.checkpoint is None:
            raise ValueError("sft.updates 0 takes policy.checkpoint as it is, and there is none")
        if self.sft.updates and not self.policy.trainable:
            raise ValueError(f"policy.dtype {UNTRAINABLE}")
        return self


class TrainStage(RunStage):
    world_model: WorldModel | None
    """None for GRPO, whose reward needs no representation, and for the references `simulator`."""
    reward: Reward
    train: Train

    @model_validator(mode="after")
    def _reward_has_representation(self) -> TrainStage:
        if self.reward.needs_world_model != (self.world_model is not None):
            raise ValueError(
                "reward.shaping `none` and reward.references `simulator` go without a world_model, every "
                "other reward with one"
            )
        return self

    @model_validator(mode="after")
    def _steps_have_progress(self) -> TrainStage:
        if self.train.by_step and (self.world_model is None or self.reward.references == "matched_prefix"):
            raise ValueError(
                "train.offline.advantage `step` measures progress by a world model, from an episode's start "
                "to its end: it needs a reward.shaping other than `none`, and reward.references other than "
                "`simulator` and `matched_prefix`"
            )
        return self

    @model_validator(mode="after")
    def _branches_measure_success(self) -> TrainStage:
        if self.train.branching is not None and self.reward.shaping != "none":
            raise ValueError(
                "train.branching weighs by the measured chance of success, and no progress reward: set "
                f"reward.shaping `none`, not `{self.reward.shaping}`, or train.branching null"
            )
        return self

    @model_validator(mode="after")
    def _prompts_exist(self) -> TrainStage:
        states = len(self.protocol.train_states())
        if self.train.prompts > len(self.tasks) * states:
            raise ValueError(
                f"train.prompts {self.train.prompts}: {len(self.tasks)} tasks × {states} states are fewer"
            )
        tests = len(self.protocol.test_states())
        if self.train.evaluate_states > tests:
            raise ValueError(
                f"train.evaluate_states {self.train.evaluate_states}: {self.protocol.profile} has {tests} "
                "test states"
            )
        return self


class EvaluateStage(RunStage):
    evaluate: Evaluate

    @property
    def stops_early(self) -> bool:
        """Whether it may end before all its episodes; that of `sft`, with which it is compared, does not."""
        return self.evaluate.stop_early and self.variant != SFT

    @model_validator(mode="after")
    def _states_exist(self) -> EvaluateStage:
        available = len(self.protocol.test_states())
        if self.evaluate.states > available:
            raise ValueError(
                f"evaluate.states {self.evaluate.states}: {self.protocol.profile} has {available} test states"
            )
        return self


class PlusStage(RunStage):
    plus: Plus

    @property
    def stops_early(self) -> bool:
        """Whether its shards may end before all their tasks; those of `sft`, compared with, do not."""
        return self.plus.stop_early and self.variant != SFT


class RewardBenchmarkStage(Stage):
    reward_benchmark: RewardBenchmark
    world_models: Annotated[tuple[WorldModel, ...], Field(strict=False, min_length=1)]


class ValuesStage(Stage):
    reward_benchmark: RewardBenchmark
    """With what the trajectories were collected."""
    values: Values


STAGES: dict[str, type[Stage] | type[WorldModelStage]] = {
    "demos": DemosStage,
    "world_model": WorldModelStage,
    "sft": SftStage,
    "train": TrainStage,
    "evaluate": EvaluateStage,
    "plus": PlusStage,
    "reward_benchmark": RewardBenchmarkStage,
    "values": ValuesStage,
}


class Settings(Section):
    """What the YAML layers may say: every section, whichever stage reads it."""

    protocol: Protocol
    demos: Demos
    policy: Policy
    sft: Sft
    world_model: WorldModel
    reward: Reward
    train: Train
    evaluate: Evaluate
    plus: Plus
    reward_benchmark: RewardBenchmark
    values: Values
