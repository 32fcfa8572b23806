"""From a rendered image to the policy's input: OpenVLA-OFT's evaluation transform, in NumPy.

Simulation processes transform their own images, in parallel with the policy, so this must not load PyTorch.
Weights are sparse, and sums are sequential: the same bits with any number of threads.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_array


@dataclass(frozen=True)
class ImageTransform:
    """OpenVLA-OFT's evaluation transform (`experiments/robot/openvla_utils.py`) without TensorFlow.

    A JPEG round trip, a Lanczos resize to `size`, and a centre crop of `crop_area` of the area, brought back
    to `size` bilinearly; values are rounded to integers after each. A step that would change nothing is
    skipped, and so is the JPEG round trip if `jpeg` is false.
    """

    size: int
    crop_area: float
    jpeg: bool

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 (H, H, 3) in official orientation to uint8 (size, size, 3)."""
        height, width, _ = image.shape
        if height != width:
            raise ValueError(f"pictures are {height} × {width} pixels, not square")
        if self.jpeg:
            image = _jpeg(image)
        if height != self.size:
            resized = _resample(image.astype(np.float32), _lanczos(height, self.size))
            image = np.rint(resized).clip(0, 255).astype(np.uint8)
        if self.crop_area != 1.0:
            cropped = _resample(image.astype(np.float32) / np.float32(255), _crop(self.size, self.crop_area))
            # tf.image.convert_image_dtype converts back to integers by ⌊255.5 x⌋.
            image = (cropped.clip(0, 1) * np.float32(255.5)).astype(np.uint8)
        return image


def _jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image after a JPEG round trip with TensorFlow's defaults (quality 95, halved chroma)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    with Image.open(buffer) as decoded:
        return np.asarray(decoded)


@cache
def _lanczos(source: int, target: int) -> csr_array:
    """Weights (target, source) of an antialiased Lanczos3 resize: `tf.image.resize(..., antialias=True)`."""
    scale = source / target
    width = max(scale, 1.0)  # shrinking widens the kernel
    centres = (np.arange(target)[:, None] + 0.5) * scale
    x = (np.arange(source) + 0.5 - centres) / width
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return csr_array((weights / weights.sum(1, keepdims=True)).astype(np.float32))


@cache
def _crop(size: int, area: float) -> csr_array:
    """Weights (size, size) of a centre crop of `area` brought back to `size`: `tf.image.crop_and_resize`.

    Bilinear; the corners of the output are the corners of the box.
    """
    half = math.sqrt(area) / 2
    positions = np.linspace(0.5 - half, 0.5 + half, size) * (size - 1)
    return csr_array((1 - np.abs(positions[:, None] - np.arange(size))).clip(min=0).astype(np.float32))


def _resample(image: NDArray[np.float32], weights: csr_array) -> NDArray[np.float32]:
    """An image (H, H, 3) resampled with the same weights along its height, then along its width."""
    for _ in range(2):
        rows = weights @ image.reshape(len(image), -1)
        image = np.ascontiguousarray(rows.reshape(len(rows), -1, 3).swapaxes(0, 1))
    return image
