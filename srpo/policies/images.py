"""From a rendered image to the policy's input: OpenVLA-OFT's evaluation transform, in NumPy.

Simulation processes transform their own images, in parallel with the policy, so this must not load PyTorch.
Weights are sparse, and sums are sequential: the same bits with any number of threads.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import simplejpeg
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
        image = self.resized(image)
        if self.crop_area == 1.0:
            return image
        side = math.sqrt(self.crop_area)
        return from_unit(resample(to_unit(image), crop_weights(self.size, side, (1 - side) / 2)))

    def resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The same without the crop."""
        height, width, _ = image.shape
        if height != width:
            raise ValueError(f"pictures are {height} × {width} pixels, not square")
        if self.jpeg:
            image = _jpeg(image)
        if height != self.size:
            resized = resample(image.astype(np.float32), _lanczos(height, self.size))
            image = np.rint(resized).clip(0, 255).astype(np.uint8)
        return image


def _jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image after a JPEG round trip with TensorFlow's defaults (quality 95, halved chroma)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    # TensorFlow decodes with the fast inverse DCT; Pillow has the accurate one alone, which gives other
    # values in two thirds of the policy's input, nearly as far away as without JPEG.
    return simplejpeg.decode_jpeg(buffer.getvalue(), fastdct=True, fastupsample=False)


@cache
def _lanczos(source: int, target: int) -> csr_array:
    """Weights (target, source) of an antialiased Lanczos3 resize: `tf.image.resize(..., antialias=True)`."""
    scale = source / target
    width = max(scale, 1.0)  # shrinking widens the kernel
    centres = (np.arange(target)[:, None] + 0.5) * scale
    x = (np.arange(source) + 0.5 - centres) / width
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return csr_array((weights / weights.sum(1, keepdims=True)).astype(np.float32))


@lru_cache(maxsize=8)
def crop_weights(size: int, side: float, offset: float) -> csr_array:
    """Weights (size, size) of a crop brought back to `size`: `tf.image.crop_and_resize`.

    Bilinear; the corners of the output are the corners of the box.

    Args:
        side: of the box, as a share of the picture's.
        offset: of the box from the picture's upper and left edges, the same share.
    """
    positions = np.linspace(offset, offset + side, size) * (size - 1)
    return csr_array((1 - np.abs(positions[:, None] - np.arange(size))).clip(min=0).astype(np.float32))


def to_unit(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Levels 0…255 as numbers in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def from_unit(levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Back to integers as tf.image.convert_image_dtype does it, by ⌊255.5 x⌋."""
    return (levels.clip(0, 1) * np.float32(255.5)).astype(np.uint8)


def resample(image: NDArray[np.float32], weights: csr_array) -> NDArray[np.float32]:
    """An image (H, H, 3) resampled with the same weights along its height, then along its width."""
    for _ in range(2):
        rows = weights @ image.reshape(len(image), -1)
        image = np.ascontiguousarray(rows.reshape(len(rows), -1, 3).swapaxes(0, 1))
    return image
