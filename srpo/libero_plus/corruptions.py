"""LIBERO-Plus's image noise: five corruptions in ten severities, from upstream's `env_wrapper.py`.

Upstream defines them in pixels of a 256-pixel picture. A picture of another size is therefore resized to 256
pixels, corrupted and resized back, so that a severity means the same at every size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

SIDE = 256
"""Side of the pictures that upstream's noise is defined for, pixels."""

Image = NDArray[np.float64]
"""A picture float64 (SIDE, SIDE, 3) in [0, 1], in the camera's own orientation."""

# Strengths by severity 1…10.
MOTION = ((5, 2), (8, 3), (10, 4), (12, 5), (15, 6), (18, 8), (20, 10), (25, 12), (30, 15), (35, 20))
"""Radius and standard deviation, pixels."""
ZOOM = (
    *((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    *((1.36, 0.01), (1.41, 0.01), (1.46, 0.02), (1.51, 0.02), (1.56, 0.03)),
)
"""End (exclusive) and step of the zoom factors, which start at 1."""
FOG = (
    *((0.5, 3.0), (1.0, 2.8), (1.5, 2.5), (2.0, 2.2), (2.5, 2.0)),
    *((3.0, 1.8), (3.5, 1.6), (4.0, 1.5), (4.5, 1.4), (5.0, 1.3)),
)
"""Amount and decay of the plasma fractal."""
GLASS = (
    *((0.5, 1, 3), (0.7, 1, 3), (0.9, 2, 3), (1.0, 2, 2), (1.1, 3, 2)),
    *((1.3, 3, 2), (1.5, 4, 2), (1.8, 4, 2), (2.2, 5, 1), (2.5, 5, 1)),
)
"""Standard deviation of the blur (pixels), largest displacement (pixels), rounds of displacement."""


def corrupt(
    image: NDArray[np.uint8], kind: str, severity: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Add noise to one agent-view picture.

    Args:
        image: uint8 (n, n, 3) in the official orientation, as `LiberoEnv.render` returns it. Upstream
            corrupts the camera's picture before it is rotated by 180° for the policy, and motion blur and
            glass have a direction: so the picture is rotated back, corrupted and rotated again.
        kind: one of `srpo.libero_plus.tasks.NOISES`.
        severity: 1…10.
        rng: source of the noise.

    Raises:
        ValueError: the picture is not square.
    """
    if image.ndim != 3 or image.shape[0] != image.shape[1]:
        raise ValueError(f"noise is defined for square pictures, not shape {image.shape}")
    raw = resize(image[::-1, ::-1] / 255, SIDE)
    noisy = resize(CORRUPTIONS[kind](raw, severity, rng), len(image))
    return np.ascontiguousarray((np.clip(noisy, 0, 1) * 255).astype(np.uint8)[::-1, ::-1])


def resize(x: Image, side: int) -> Image:
    """Resize a picture (n, n, 3) to (side, side, 3); each new pixel is the mean of the area it covers."""
    n = len(x)
    if n == side:
        return x
    old, new = np.arange(n) * side, np.arange(side)[:, None] * n  # where pixels start, in common units
    overlap = np.clip(np.minimum(old + side, new + n) - np.maximum(old, new), 0, None) / n
    return overlap @ np.tensordot(overlap, x, axes=1)


def _blur(x: Image, sigma: float) -> Image:
    return gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def motion_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """ImageMagick's MotionBlur: a one-sided Gaussian comb along a line at −45…45°."""
    radius, sigma = MOTION[severity - 1]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = np.radians(rng.uniform(-45, 45))
    rows = np.ceil(steps * np.sin(angle) - 0.5).astype(int)
    columns = np.ceil(steps * np.cos(angle) - 0.5).astype(int)
    margin = 2 * radius
    padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    blurred = np.zeros_like(x)
    for weight, row, column in zip(weights, margin + rows, margin + columns, strict=True):
        blurred += weight * padded[row : row + SIDE, column : column + SIDE]
    return blurred


def gaussian_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """A Gaussian blur of `severity` pixels' standard deviation."""
    return _blur(x, severity)


def zoom_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """The mean of the picture and its central zooms."""
    factors = np.arange(1, *ZOOM[severity - 1])
    return (x + sum(clipped_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def clipped_zoom(x: Image, factor: float) -> Image:
    """Upstream's `clipped_zoom`: the centre, enlarged linearly (corners on corners) and cropped."""
    crop = int(np.ceil(SIDE / factor))
    enlarged = round(crop * factor)
    cut = (enlarged - SIDE) // 2
    place = (SIDE - crop) // 2 + np.arange(cut, cut + SIDE) * (crop - 1) / (enlarged - 1)
    low = np.minimum(place.astype(int), SIDE - 2)
    part = (place - low)[:, None, None]
    x = x[low] * (1 - part) + x[low + 1] * part
    part = part[:, 0]
    return x[:, low] * (1 - part) + x[:, low + 1] * part


def plasma(decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A plasma fractal by the diamond-square algorithm, float64 (SIDE, SIDE) from 0 to 1, periodic.

    As in ImageNet-C (Hendrycks & Dietterich 2019): the roughness is divided by `decay` as the step is halved.
    """
    heights = np.zeros((SIDE, SIDE))
    roughness = 100.0

    def perturbed_mean(sum_of_four: NDArray[np.float64]) -> NDArray[np.float64]:
        return sum_of_four / 4 + roughness * rng.uniform(-roughness, roughness, sum_of_four.shape)

    step = SIDE
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = perturbed_mean(pairs + np.roll(pairs, -1, axis=1))
        centres = heights[half::step, half::step]
        beside = centres + np.roll(centres, 1, axis=0)
        heights[::step, half::step] = perturbed_mean(beside + corners + np.roll(corners, -1, axis=1))
        above = centres + np.roll(centres, 1, axis=1)
        heights[half::step, ::step] = perturbed_mean(above + corners + np.roll(corners, -1, axis=0))
        step = half
        roughness /= decay
    heights -= heights.min()
    return heights / heights.max()


def fog(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Add a plasma fractal and scale back to the picture's brightness."""
    amount, decay = FOG[severity - 1]
    brightest = x.max()
    return (x + amount * plasma(decay, rng)[..., None]) * brightest / (brightest + amount)


def glass_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Blur, displace pixels locally, blur."""
    sigma, shift, rounds = GLASS[severity - 1]
    pixels = np.floor(_blur(x, sigma) * 255).reshape(-1, 3) / 255
    for _ in range(rounds):
        pixels = pixels[source_pixels(rng.integers(-shift, shift, (SIDE, SIDE, 2)), shift)]
    return _blur(pixels.reshape(x.shape), sigma)


def source_pixels(offsets: NDArray[np.int_], shift: int) -> NDArray[np.int_]:
    """One round of upstream's pixel shuffle: from which pixel each pixel takes its colour.

    Upstream goes backwards over rows and columns `shift` + 1 … 224 − `shift` of the 256-pixel picture and
    means to swap each pixel with the one at its offset. As both are views of one array, it copies that pixel
    instead. A pixel copied from later in the picture has already been overwritten, which makes chains; they
    are followed here by pointer doubling instead of pixel by pixel.

    Args:
        offsets: int (SIDE, SIDE, 2), columns and rows, from −shift to shift − 1.

    Returns:
        Flat source indices, int (SIDE²,).
    """
    pixels = np.arange(SIDE**2).reshape(SIDE, SIDE)
    window = slice(shift + 1, 224 - shift + 1)
    copied = pixels.copy()
    copied[window, window] += (offsets[..., 1] * SIDE + offsets[..., 0])[window, window]
    source = copied.ravel()
    end = np.maximum(source, pixels.ravel())  # one link of the chain: a later pixel, or itself at its end
    while (end[end] != end).any():
        end = end[end]
    return source[end]


CORRUPTIONS: dict[str, Callable[[Image, int, np.random.Generator], Image]] = {
    "motion": motion_blur,
    "gaussian": gaussian_blur,
    "zoom": zoom_blur,
    "fog": fog,
    "glass": glass_blur,
}
"""Kind of noise → function of a picture, a severity and a generator."""
