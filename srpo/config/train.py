"""Reinforcement learning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from srpo.config.fields import (
    AsNumber,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Section,
    require_distinct,
)

Aggregate = Literal["token", "trajectory"]


class Offline(Section):
    """Advantage-weighted fine-tuning on a fixed set of rollouts."""

    advantage: Literal["trajectory", "step"] = "trajectory"
    """What weighs. `trajectory`: each rollout, by its reward within its group. `step`: each of its action
    chunks, by the progress gained in it, standardised over all chunks of the set."""
    beta: Positive
    """A rollout, or chunk, weighs exp(advantage / `beta`): the smaller, the more the best ones count."""
    max_weight: Annotated[float, Field(ge=1, allow_inf_nan=False), AsNumber]
    """Largest weight of a rollout, or chunk."""


class Branching(Section):
    """Credit by chunks: what each changed of the policy's own chance of success, measured by branches."""

    points: PositiveInt
    """Moments of a rollout from which branches start: policy queries that part it evenly. A rollout of fewer
    queries has fewer. At its start the group's other rollouts serve as branches."""
    branches: PositiveInt
    """Branches from each moment: rollouts of the acting policy that go on from there. Nothing is learned from
    them, but their control steps are counted as the rollouts' are."""


class Train(Section):
    """Reinforcement learning (SRPO, or GRPO when the reward's shaping is `none`)."""

    # Settings with a default are younger than the first published rows; the default is what those runs did.

    steps: PositiveInt
    """RL steps (rounds of rollouts and an update); offline, passes over the fixed set of rollouts."""
    prompts: PositiveInt
    """Groups a step: one (task, initial state) each."""
    group_size: Annotated[int, Field(ge=2)]
    """Rollouts a group."""
    temperature: Positive
    """Sampling temperature of the action tokens."""
    keep_success: Annotated[tuple[Fraction, Fraction], Field(strict=False)]
    """Groups whose success rate lies outside this range are left out of the update (dynamic sampling);
    `reward.filter` says whether of the rewards too."""
    resample: NonNegativeInt
    """Further rounds of rollouts a step at most, each with as many new groups as were left out so far."""
    learning_rate: Positive
    """Peak learning rate of AdamW."""
    warmup: Fraction
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["constant", "cosine"]
    """The learning rate after the warm-up: constant, or a cosine that ends at zero."""
    weight_decay: NonNegative
    """Weight decay of AdamW."""
    deviation: Literal["group", "batch"]
    """What advantages are divided by: the standard deviation of each group's rewards (GRPO), or that of all
    groups' rewards of the step around their groups' means, so that a group of failures, whose rewards differ
    little, counts less than one with a success."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)]
    """Decay rates of AdamW's running means of the gradient and of its square."""
    freeze_vision: bool
    """Train neither the vision encoders nor their projector."""
    minibatch: PositiveInt
    """Groups of one optimiser step; must divide `prompts`."""
    microbatch: PositiveInt
    """Policy queries in one forward pass; changes memory, not the result."""
    aggregate: Aggregate = "token"
    """What a mini-batch's loss is a mean over: its tokens, or its trajectories, of each of which it is the
    mean over the tokens, so that a token of a long episode counts less."""
    epochs: PositiveInt
    """Passes over a step's rollouts."""
    clip_low: Annotated[float, Field(gt=0, lt=1), AsNumber]
    """The probability ratio is clipped below at 1 − this (0.2: at 0.8)."""
    clip_high: Positive
    """The probability ratio is clipped above at 1 + this (0.28: at 1.28)."""
    kl: NonNegative
    """Weight of the k3 estimate of KL(policy ‖ SFT policy)."""
    entropy: NonNegative
    """Weight of an entropy bonus."""
    grad_clip: Positive
    """Largest norm of the gradient."""
    offline: Offline | None
    """Learn from a fixed set of the SFT policy's rollouts, by advantage-weighted regression; none: online."""
    branching: Branching | None = None
    """Weigh each action chunk by what it changed of the measured chance of success, from the start to the
    outcome (VinePPO); none: all of a rollout's chunks have its advantage."""
    overlap: Literal[0, 1] = 0
    """1: the next step's rollouts run during this step's update, by a copy of the policy from before it, and
    so are one update off policy; the ratio is to that copy, and clipped as ever. 0: they come after it."""
    evaluate_every: NonNegativeInt
    """RL steps between greedy evaluations on test states; 0: none."""
    evaluate_states: PositiveInt
    """Test states a task of such an evaluation, taken in order."""
    target: Fraction | None
    """Stop as soon as such an evaluation's success rate reaches this; none: never. F2 wants all steps."""
    checkpoint_every: PositiveInt
    """RL steps between resumable checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=2)]
    """Newest checkpoints that are kept: should one turn out damaged, the one before it serves."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], Field(strict=False)]
    """Where each step's metrics are logged besides metrics.csv; `wandb` and `trackio` must be installed."""

    @property
    def by_step(self) -> bool:
        """Whether each action chunk weighs by its gain in progress."""
        return self.offline is not None and self.offline.advantage == "step"

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if self.prompts % self.minibatch:
            raise ValueError(f"prompts {self.prompts} is not a multiple of minibatch {self.minibatch}")
        require_distinct("trackers", self.trackers)
        if self.keep_success[0] > self.keep_success[1]:
            raise ValueError(f"keep_success {list(self.keep_success)} must rise")
        low, high = self.keep_success
        if not any(low <= count / self.group_size <= high for count in range(self.group_size + 1)):
            raise ValueError(
                f"keep_success [{low}, {high}] leaves out every group of group_size {self.group_size}"
            )
        if max(self.betas) == 1:
            raise ValueError(f"betas {list(self.betas)} must be below 1")
        if self.target is not None and not self.evaluate_every:
            raise ValueError("target needs evaluate_every: without evaluation it is never reached")
        if self.offline is not None and self.evaluate_every:
            raise ValueError("evaluate_every must be 0 offline: no simulator is in that loop")
        if self.offline is not None and self.overlap:
            raise ValueError(
                "offline and overlap exclude each other: offline all rollouts come before the first update. "
                "Set offline null, or overlap 0"
            )
        if self.offline is not None and self.branching is not None:
            raise ValueError(
                "offline and branching exclude each other: branches are of the policy that acts in a step. "
                "Set one of them null"
            )
        return self
