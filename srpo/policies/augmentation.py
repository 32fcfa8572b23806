"""Random changes of the policy's pictures during fine-tuning, as OpenVLA-OFT trains with."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from numpy.typing import NDArray

from srpo.policies.images import crop_weights, from_unit, resample, to_unit

Image = NDArray[np.float32]

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.2, 0.2, 0.2, 0.05
"""Largest change: of a level, of two factors of 1, of a hue; levels and hues are in [0, 1]."""


def augment(image: NDArray[np.uint8], crop_area: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A crop of `crop_area` brought back to size, then brightness, contrast, saturation and hue.

    OpenVLA-OFT's `image_aug` (`prismatic/vla/datasets/datasets.py`, and `augment_image` of its fork of
    dlimp). There the crop draws both of its offsets with one seed: it moves along the diagonal alone.

    Args:
        image: uint8 (H, H, 3), resized for the policy but not cropped.
        crop_area: share of the picture's area that is kept.

    Returns:
        uint8 (H, H, 3).
    """
    side = math.sqrt(crop_area)
    weights = crop_weights(len(image), side, rng.uniform(0, 1 - side))
    levels = resample(to_unit(image), weights).clip(0, 1)
    levels = brightened(levels, rng.uniform(-BRIGHTNESS, BRIGHTNESS)).clip(0, 1)
    levels = contrasted(levels, rng.uniform(1 - CONTRAST, 1 + CONTRAST)).clip(0, 1)
    levels = saturated(levels, rng.uniform(1 - SATURATION, 1 + SATURATION)).clip(0, 1)
    return from_unit(turned_hue(levels, rng.uniform(-HUE, HUE)))


def brightened(levels: Image, delta: float) -> Image:
    """Levels float32 (H, H, 3) raised by `delta`."""
    return levels + np.float32(delta)


def contrasted(levels: Image, factor: float) -> Image:
    """Distances of levels float32 (H, H, 3) from their channel's mean multiplied by `factor`."""
    mean = levels.mean((0, 1), keepdims=True)
    return (levels - mean) * np.float32(factor) + mean


def saturated(levels: Image, factor: float) -> Image:
    """Saturation (of HSV) of levels float32 (H, H, 3) in [0, 1] multiplied by `factor`, at most to 1."""
    value = levels.max(-1, keepdims=True)
    chroma = value - levels.min(-1, keepdims=True)
    most = np.divide(value, chroma, out=np.ones_like(value), where=chroma > 0)  # where saturation becomes 1
    return value - (value - levels) * np.minimum(np.float32(factor), most)


def turned_hue(levels: Image, delta: float) -> Image:
    """Levels float32 (H, H, 3) in [0, 1] with their hue (of HSV, in [0, 1]) turned by `delta`."""
    hsv = rgb_to_hsv(levels)
    hsv[..., 0] = (hsv[..., 0] + delta) % 1
    return np.asarray(hsv_to_rgb(hsv), np.float32)
