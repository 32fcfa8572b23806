"""The reward."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from srpo.config.fields import Fraction, NonNegativeInt, Positive, PositiveInt, Section


def needs_world_model(shaping: object, references: object) -> bool:
    """Whether rewards of this `shaping` and these `references` compare episodes by a world model."""
    return shaping != "none" and references != "simulator"


class Reward(Section):
    """How failed trajectories are rewarded; successes always get 1."""

    # Settings with a default are younger than the first published rows; the default is what those runs did.

    shaping: Literal["paper", "siirl", "linear", "none"]
    """`paper`: α·sigmoid(−z). `siirl`: 0.6·sigmoid(10·(0.5 − m)). `linear`: α·(1 − m). `none`: 0, which is
    GRPO. z is the standardised distance to the nearest reference, m the min-max normalised one."""
    alpha: Fraction
    """Upper bound of a failure's reward: `linear` gives it to the nearest failure, `paper` to none."""
    filter: Literal["before", "after", "none"] = "after"
    """When groups whose success rate lies outside `train.keep_success` are left out of a step: `before`
    rewards, so that they are neither references nor compared, or `after`, so that they are both and only the
    update leaves them out. `none`: they stay."""
    scope: Literal["batch", "rank", "group"]
    """Which of a task's episodes a failure is rewarded among. `batch`: all of the step's. `rank`: those of
    `rank_prompts` groups, as if a process with so many prompts knew no others: references and normalisation
    are its own. `group`: distances are normalised within the failure's group, and references are the
    batch's."""
    rank_prompts: PositiveInt = 8
    """Groups of a rank in the scope `rank`: the step's groups in their order, so many at a time, whatever
    number of processes there is."""
    distance: Literal["l2", "squared"] = "l2"
    """What is normalised of the distance to the nearest reference: itself, or its square."""
    references: Literal["dbscan", "mean", "medoid", "nearest", "matched_prefix", "fixed_expert", "simulator"]
    """What failures are compared with. Of the successes: the centres of their DBSCAN clusters, their mean,
    their medoid, or the nearest of them all. `matched_prefix`: their mean, with every episode cut at the
    length of the task's median success and seen in the policy's own pictures; what a failure does after that
    does not count. `fixed_expert`: the expert's demonstrations, whatever the batch holds.
    `simulator`: no pictures, but the distance to the goal that a failure ended at, which the simulator knows
    and no method may see: a control."""
    eps: Positive
    """DBSCAN's neighbourhood radius on standardised embeddings."""
    eps_relative: bool
    """Measure `eps` in units of the median pairwise distance of the successes."""
    min_samples: PositiveInt
    """Successes within `eps` that make a cluster."""
    earlier_successes: NonNegativeInt = 0
    """Newest successes a task, of earlier steps, that are the references of failures which have no success
    of their own step to be compared with; 0: such failures get 0."""

    @property
    def needs_world_model(self) -> bool:
        """Whether failures are compared in a world model's representation."""
        return needs_world_model(self.shaping, self.references)

    @model_validator(mode="after")
    def _failures_earn_less(self) -> Reward:
        if self.shaping == "linear" and self.alpha == 1:
            raise ValueError("shaping `linear` with alpha 1 pays the nearest failure like a success")
        return self

    @model_validator(mode="after")
    def _earlier_successes_compare(self) -> Reward:
        if self.earlier_successes and self.references == "matched_prefix":
            raise ValueError(
                "earlier_successes must be 0 with references `matched_prefix`: without a success of the step "
                "there is no length at which its failures could be cut"
            )
        return self
