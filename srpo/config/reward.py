"""The reward."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from srpo.config.fields import Fraction, Positive, PositiveInt, Section


def needs_world_model(shaping: object, references: object) -> bool:
    """Whether rewards of this `shaping` and these `references` compare episodes by a world model."""
    return shaping != "none" and references != "simulator"


class Reward(Section):
    """How failed trajectories are rewarded; successes always get 1."""

    shaping: Literal["paper", "siirl", "linear", "none"]
    """`paper`: α·sigmoid(−z). `siirl`: 0.6·sigmoid(10·(0.5 − m)). `linear`: α·(1 − m). `none`: 0, which is
    GRPO. z is the standardised distance to the nearest reference, m the min-max normalised one."""
    alpha: Fraction
    """Upper bound of a failure's reward: `linear` gives it to the nearest failure, `paper` to none."""
    scope: Literal["task", "group"]
    """Among which failures distances are normalised: all of the task's in the batch, or the group's alone."""
    references: Literal["dbscan", "mean", "medoid", "matched_prefix", "fixed_expert", "simulator"]
    """What failures are compared with. Of the batch's successes: the centres of their DBSCAN clusters, their
    mean, or their medoid. `matched_prefix`: their mean, with every episode cut at the length of the task's
    median success and seen in the policy's own pictures; what a failure does after that does not count.
    `fixed_expert`: the expert's demonstrations, whatever the batch holds.
    `simulator`: no pictures, but the distance to the goal that a failure ended at, which the simulator knows
    and no method may see: the upper bound of a progress reward."""
    eps: Positive
    """DBSCAN's neighbourhood radius on standardised embeddings."""
    eps_relative: bool
    """Measure `eps` in units of the median pairwise distance of the successes."""
    min_samples: PositiveInt
    """Successes within `eps` that make a cluster."""

    @property
    def needs_world_model(self) -> bool:
        """Whether failures are compared in a world model's representation."""
        return needs_world_model(self.shaping, self.references)

    @model_validator(mode="after")
    def _failures_earn_less(self) -> Reward:
        if self.shaping == "linear" and self.alpha == 1:
            raise ValueError("shaping `linear` with alpha 1 pays the nearest failure like a success")
        return self
