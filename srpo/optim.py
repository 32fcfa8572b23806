"""The optimiser and the learning-rate schedule of fine-tuning, reinforcement learning and pretraining."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from srpo.errors import FinalExit

DECAY = 0.1
"""OpenVLA-OFT's, of the learning rate after `sft.decay_after` updates."""


def adamw(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """AdamW for a model's trainable parameters; on a GPU it is one fused kernel for many tensors."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = all(parameter.is_cuda for parameter in trainable) or None
    return torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=weight_decay, betas=betas, fused=fused)


def learning_rate(
    update: int,
    updates: int,
    peak: float,
    warmup: float,
    schedule: Literal["constant", "cosine"] = "cosine",
    decay_after: int | None = None,
) -> float:
    """Learning rate of an update, counted from 0.

    Linear warm-up over the fraction `warmup` of all updates; then `peak`, or a cosine from it to zero. With
    `decay_after` there is no cosine, but a tenth of `peak` from that update on.
    """
    rising = max(1, round(warmup * updates))
    if decay_after is not None:
        peak, schedule = peak * (DECAY if update >= decay_after else 1), "constant"
    if schedule == "constant":
        return peak * min(1.0, (update + 1) / rising)
    if update < rising:
        return peak * (update + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (update - rising) / max(1, updates - rising)))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def require_finite(update: str, loss: float, grad_norm: float) -> None:
    """Raise SystemExit if an update's loss or gradient is not finite, for use before the optimiser's step.

    So no weights are changed by it and none are saved; the checkpoint before it can be resumed from.

    Args:
        update: which one, for the message.
        grad_norm: before clipping.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise FinalExit(
            f"error: {update}: the loss is {loss:g}, the gradient's norm {grad_norm:g}. Training ends before "
            "this update, and nothing of it is saved. Lower the learning rate, or look for what is wrong in "
            "the data; started again, it goes on from its last checkpoint"
        )
