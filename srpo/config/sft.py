"""Supervised fine-tuning."""

from __future__ import annotations

from srpo.config.fields import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Section


class Sft(Section):
    """Supervised fine-tuning on demonstrations."""

    updates: NonNegativeInt
    """Optimiser steps; 0 takes the policy's checkpoint as it is."""
    batch_size: PositiveInt
    """Samples of one update."""
    learning_rate: Positive
    """Peak learning rate of AdamW."""
    weight_decay: NonNegative
    """Weight decay of AdamW."""
    warmup: Fraction
    """Share of the updates over which the learning rate rises; then it falls along a cosine, or as
    `decay_after` says."""
    decay_after: NonNegativeInt | None = None
    """Updates after which the learning rate is a tenth of its peak, as in OpenVLA-OFT's code; until then it
    stays there. null: a cosine that ends at zero."""
    label_smoothing: NonNegative
    """Width, in bins, of the Gaussian over neighbouring bins that replaces a one-hot target; 0 is one-hot."""
    auxiliary: NonNegative
    """Weight of a regression of the robot's proprioception from the picture alone, during SFT only."""
    stride: PositiveInt
    """Use every n-th step of a demonstration as a sample."""
    image_augmentation: bool = False
    """Change every picture at random, as OpenVLA-OFT trains: a crop of `policy.crop_area` somewhere in place
    of the one in the centre, brightness, contrast, saturation and hue (`srpo.policies.augmentation`)."""
    grad_clip: Positive
    """Largest norm of the gradient."""
    checkpoint_every: PositiveInt
    """Updates between resumable checkpoints."""
