"""Policy losses: PPO's clipped surrogate or advantage-weighted regression, with a KL penalty and an entropy
bonus, averaged over valid tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-probability ratios are clamped here before exponentiation, as in verl: one token must not overflow."""


@dataclass(frozen=True)
class LossInputs:
    """What a loss is computed from: Q policy queries of T action tokens each.

    log_probs            float (Q, T)  of the sampled tokens under the policy
    old_log_probs        float (Q, T)  when they were sampled, without gradient
    advantages           float (Q,)    of the query: each of its tokens has the same
    valid                bool (Q, T)   False for tokens of control steps after the episode's end
    normaliser           sum of the valid tokens' weights in the whole mini-batch, not this micro-batch; > 0
    weights              float (Q,)    of each token of the query; None: 1
    reference_log_probs  float (Q, T)  under the reference policy; needed for a KL penalty
    entropy              float (Q, T)  of each token's distribution; needed for an entropy bonus
    """

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    valid: Tensor
    normaliser: float
    weights: Tensor | None = None
    reference_log_probs: Tensor | None = None
    entropy: Tensor | None = None


@dataclass(frozen=True)
class PolicyLoss:
    """Scalars, each a weighted sum over the valid tokens given, divided by the normaliser.

    So the terms of micro-batches add up to those of the whole mini-batch, whatever the split.

    total          with gradient: −surrogate objective + β·KL − entropy weight·entropy
    surrogate      the clipped surrogate's part of the loss
    kl             k3 estimate of KL(policy ‖ reference); 0 without reference
    entropy        of the action distributions
    clip_fraction  share of tokens, by their weights, whose gradient (in `regression_loss`: weight) is clipped
    approx_kl      k3 estimate of KL(rollout policy ‖ policy): how far the update has gone
    """

    total: Tensor
    surrogate: Tensor
    kl: Tensor
    entropy: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor


def policy_loss(
    inputs: LossInputs,
    *,
    clip_low: float,
    clip_high: float,
    kl_weight: float = 0.0,
    entropy_weight: float = 0.0,
) -> PolicyLoss:
    """SRPO's loss (arXiv 2511.15605): GRPO's objective with DAPO's asymmetric clip.

    With ratio r = exp(log π − log π_old), for each token
    −min(r·A, clip(r, 1 − clip_low, 1 + clip_high)·A) + kl_weight·k3 − entropy_weight·H,
    summed over valid tokens by their weights and divided by the normaliser. siiRL's loss adds verl's dual
    clip, a bound of c·|A| for A < 0; the paper's objective does not, and neither does this one. siiRL's
    scripts set c = 10,000, which no ratio near 1 reaches; only that of libero_goal leaves the default, 3.

    Raises:
        ValueError: a weighted term has no input, or the normaliser is not positive.
    """
    ratio = _log_ratio(inputs.log_probs, inputs.old_log_probs, inputs.valid).exp()
    advantage = inputs.advantages.unsqueeze(-1)
    unclipped = -ratio * advantage
    clipped = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    surrogate = torch.maximum(unclipped, clipped)
    return _regularise(surrogate, clipped > unclipped, inputs, kl_weight, entropy_weight)


def regression_loss(
    inputs: LossInputs,
    *,
    beta: float,
    max_weight: float,
    kl_weight: float = 0.0,
    entropy_weight: float = 0.0,
) -> PolicyLoss:
    """Offline SRPO's loss: advantage-weighted regression (AWR; Peng et al. 2019, arXiv 1910.00177).

    −w·log π for each token, with w = min(exp(A/beta), max_weight): the log-likelihood of the actions taken,
    weighted by their advantage. It needs no ratio to the policy that acted, so the rollouts may be reused.
    The SRPO paper uses AWR in its real-robot part, with step-level advantages (`srpo.rewards.steps`); AWR's
    own code clips weights at 20.

    Result and errors as in `policy_loss`; `clip_fraction` is the share of tokens whose weight was clipped.
    """
    weights = (inputs.advantages / beta).exp()
    clipped = (weights > max_weight).unsqueeze(-1).expand_as(inputs.log_probs)
    surrogate = -weights.clamp(max=max_weight).unsqueeze(-1) * inputs.log_probs
    return _regularise(surrogate, clipped, inputs, kl_weight, entropy_weight)


def _regularise(
    surrogate: Tensor, clipped: Tensor, inputs: LossInputs, kl_weight: float, entropy_weight: float
) -> PolicyLoss:
    """Sum a surrogate (Q, T) over valid tokens, add the KL penalty and the entropy bonus."""
    valid, reference = inputs.valid, inputs.reference_log_probs
    if inputs.normaliser <= 0:
        raise ValueError(f"normaliser {inputs.normaliser}: a mini-batch without valid tokens has no loss")
    if kl_weight > 0 and reference is None:
        raise ValueError("kl_weight > 0 needs reference_log_probs")
    if entropy_weight > 0 and inputs.entropy is None:
        raise ValueError("entropy_weight > 0 needs entropy")

    def mean(values: Tensor) -> Tensor:
        if inputs.weights is not None:
            values = values * inputs.weights.unsqueeze(-1)
        return torch.where(valid, values, 0.0).sum() / inputs.normaliser

    objective = mean(surrogate)
    zero = inputs.log_probs.new_zeros(())
    kl = zero if reference is None else mean(k3(inputs.log_probs, reference, valid))
    entropy = zero if inputs.entropy is None else mean(inputs.entropy)
    with torch.no_grad():
        clip_fraction = mean(clipped.to(inputs.log_probs.dtype))
        approx_kl = mean(k3(inputs.old_log_probs, inputs.log_probs, valid))
    return PolicyLoss(
        total=objective + kl_weight * kl - entropy_weight * entropy,
        surrogate=objective.detach(),
        kl=kl.detach(),
        entropy=entropy.detach(),
        clip_fraction=clip_fraction,
        approx_kl=approx_kl,
    )


def k3(log_probs: Tensor, other_log_probs: Tensor, valid: Tensor) -> Tensor:
    """Estimate of KL(π ‖ other) from tokens sampled from π: other/π − 1 − log(other/π), never negative.

    Unbiased, of lower variance than −log(other/π) (J. Schulman, "Approximating KL Divergence", 2020).
    Shapes as in `LossInputs`; 0 at tokens that are not valid.
    """
    log_ratio = _log_ratio(other_log_probs, log_probs, valid)
    return log_ratio.expm1() - log_ratio


def _log_ratio(log_probs: Tensor, other_log_probs: Tensor, valid: Tensor) -> Tensor:
    """log_probs − other_log_probs, but 0 (and without gradient) at tokens that are not valid."""
    difference = torch.where(valid, log_probs - other_log_probs, 0.0)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
