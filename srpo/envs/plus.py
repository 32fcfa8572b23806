"""LIBERO-Plus perturbations of one LIBERO task: the camera's pose and the picture's noise.

What upstream does (github.com/sylvestf/LIBERO-plus, `libero/libero/envs/problems/*.py` for the camera and
`env_wrapper.py` for the noise), with two differences: nothing is drawn from NumPy's global generator, and
noise is defined for any picture size. Upstream's lengths are pixels of a 256-pixel picture, so a picture of
another size is brought to that one, corrupted, and brought back: a severity means the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from srpo.plus_tasks import parse

if TYPE_CHECKING:
    from srpo.envs.libero import LiberoEnv

AVAILABLE = ("camera", "noise")
"""Dimensions that run today."""
SIDE = 256
"""Side of the picture, in pixels, that upstream's noise is made for."""

Image = NDArray[np.float64]
Vector = NDArray[np.float64]


class UnavailableDimension(ValueError):  # noqa: N818
    """A LIBERO-Plus task of a dimension that cannot be run (it is not a failed episode)."""


@dataclass(frozen=True)
class Perturbation:
    """What a LIBERO-Plus task changes: `apply` the camera's pose around an episode, `corrupt` each picture.

    The episode itself is the base task's (`suite`, `task_id`, its own instruction) from initial state
    `srpo.plus_tasks.INIT_STATE`. `dimension` and `parameters` are those of `srpo.plus_tasks.PlusTask`.
    """

    suite: str
    task_id: int
    dimension: str
    parameters: dict[str, int | str]

    @classmethod
    def from_task(cls, name: str) -> Perturbation:
        """The perturbation of an official task name.

        Raises:
            ValueError: the name is not a LIBERO-Plus task's.
            UnavailableDimension: the task's dimension cannot be run.
        """
        task = parse(name)
        if task.dimension not in AVAILABLE:
            raise UnavailableDimension(
                f"{name}: LIBERO-Plus's {task.dimension} dimension is not available; "
                f"available are {' and '.join(AVAILABLE)}"
            )
        return cls(task.suite, task.task_id, task.dimension, task.parameters)

    @contextmanager
    def apply(self, env: LiberoEnv) -> Iterator[None]:
        """Move the agent view's camera; on leaving, it is back where it was, bit for bit.

        Resets inside or outside the block make no difference: they do not touch the camera.
        """
        # Noise tasks are "views" too: upstream rounds their unmoved camera to 4 decimals as well.
        view = (
            {key: int(value) for key, value in self.parameters.items()} if self.dimension == "camera" else {}
        )
        camera = env.model.camera("agentview").id
        position, quaternion = env.model.cam_pos[camera].copy(), env.model.cam_quat[camera].copy()
        _set_camera(env, camera, *camera_pose(position, quaternion, **view))
        try:
            yield
        finally:
            _set_camera(env, camera, position, quaternion)

    def corrupt(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Add the task's noise to one agent-view picture; other tasks' pictures come back as they are.

        Args:
            image: uint8 (n, n, 3) in the official orientation, as `LiberoEnv.render` gives it. Upstream
                corrupts the camera's picture inside the environment, before it is rotated by 180° for the
                policy, and motion blur and glass have a direction: so that is done here, too.
            rng: drawn from anew for each picture, as upstream does at each step.
        """
        if self.dimension != "noise":
            return image
        if image.ndim != 3 or image.shape[0] != image.shape[1]:
            raise ValueError(f"noise is defined for square pictures, not shape {image.shape}")
        corruption = _CORRUPTIONS[str(self.parameters["kind"])]
        raw = resize(image[::-1, ::-1] / 255, SIDE)
        noisy = resize(corruption(raw, int(self.parameters["severity"]), rng), len(image))
        return np.ascontiguousarray((np.clip(noisy, 0, 1) * 255).astype(np.uint8)[::-1, ::-1])


def _set_camera(env: LiberoEnv, camera: int, position: Vector, quaternion: Vector) -> None:
    env.model.cam_pos[camera] = position
    env.model.cam_quat[camera] = quaternion
    mujoco.mj_camlight(env.model, env.data)  # the next picture shows it without a step; physics is untouched


def camera_pose(
    position: Vector,
    quaternion: Vector,
    horizontal: int = 0,
    vertical: int = 0,
    scale: int = 100,
    turn: int = 0,
    tilt: int = 0,
) -> tuple[Vector, Vector]:
    """Upstream's `_setup_camera`: move a camera in five stages, rounding to 4 decimals after each.

    Args:
        position: float64 (3,), metres.
        quaternion: float64 (4,), w x y z.
        horizontal: degrees around the vertical axis through the origin.
        vertical: degrees upwards, around the y axis through the pivot (0, 0, 0.8).
        scale: percent of the distance from the pivot.
        turn: degrees around the vertical axis, in place.
        tilt: degrees downwards around the y axis, in place.

    Returns:
        The new position (3,) and unit quaternion (4,).
    """
    pivot = np.array([0, 0, 0.8])
    orientation = Rotation.from_quat(quaternion, scalar_first=True)

    def around_y(degrees: int) -> Rotation:
        return Rotation.from_rotvec(np.radians(-degrees) * np.array([0, 1, 0]))

    def around_z(degrees: int) -> Rotation:
        return Rotation.from_euler("z", degrees, degrees=True)

    def rounded(position: Vector, orientation: Rotation) -> tuple[Vector, Rotation]:
        quaternion = [round(float(x), 4) for x in orientation.as_quat(scalar_first=True)]
        return np.array([round(float(x), 4) for x in position]), Rotation.from_quat(
            quaternion, scalar_first=True
        )

    if vertical:
        up = around_y(vertical)
        position, orientation = rounded(up.apply(position - pivot) + pivot, up * orientation)
    aside = around_z(horizontal)
    position, orientation = rounded(aside.apply(position), aside * orientation)
    if scale != 100:
        position, orientation = rounded(pivot + (position - pivot) * (scale / 100), orientation)
    if turn:
        position, orientation = rounded(position, around_z(turn) * orientation)
    if tilt:
        position, orientation = rounded(position, around_y(tilt) * orientation)
    return position, orientation.as_quat(scalar_first=True)


# Corruptions take and give pictures of float64 (SIDE, SIDE, 3) in [0, 1], in the camera's own orientation.
# Their strengths by severity 1…10 are from upstream's env_wrapper.py.
_MOTION = ((5, 2), (8, 3), (10, 4), (12, 5), (15, 6), (18, 8), (20, 10), (25, 12), (30, 15), (35, 20))
_ZOOM = (
    *((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    *((1.36, 0.01), (1.41, 0.01), (1.46, 0.02), (1.51, 0.02), (1.56, 0.03)),
)
_FOG = (
    *((0.5, 3.0), (1.0, 2.8), (1.5, 2.5), (2.0, 2.2), (2.5, 2.0)),
    *((3.0, 1.8), (3.5, 1.6), (4.0, 1.5), (4.5, 1.4), (5.0, 1.3)),
)
_GLASS = (
    *((0.5, 1, 3), (0.7, 1, 3), (0.9, 2, 3), (1.0, 2, 2), (1.1, 3, 2)),
    *((1.3, 3, 2), (1.5, 4, 2), (1.8, 4, 2), (2.2, 5, 1), (2.5, 5, 1)),
)


def resize(x: Image, side: int) -> Image:
    """Bring a picture (n, n, 3) to (side, side, 3); each new pixel is the mean of the area it covers."""
    n = len(x)
    if n == side:
        return x
    old, new = np.arange(n) * side, np.arange(side)[:, None] * n  # where pixels begin, in common units
    overlap = np.clip(np.minimum(old + side, new + n) - np.maximum(old, new), 0, None) / n
    return overlap @ np.tensordot(overlap, x, axes=1)


def _blur(x: Image, sigma: float) -> Image:
    return gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def motion_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """ImageMagick's MotionBlur, a one-sided Gaussian comb along a line at −45…45°."""
    radius, sigma = _MOTION[severity - 1]
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
    """The mean of the picture and of its central zooms."""
    factors = np.arange(1, *_ZOOM[severity - 1])
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def _zoomed(x: Image, factor: float) -> Image:
    """Upstream's `clipped_zoom`: the centre, enlarged linearly (corners on corners) and cut to size."""
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

    As in ImageNet-C (Hendrycks & Dietterich 2019): each halving of the step divides the roughness by `decay`.
    """
    heights = np.zeros((SIDE, SIDE))
    roughness = 100.0

    def mean(four: NDArray[np.float64]) -> NDArray[np.float64]:
        return four / 4 + roughness * rng.uniform(-roughness, roughness, four.shape)

    step = SIDE
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = mean(pairs + np.roll(pairs, -1, axis=1))
        centres = heights[half::step, half::step]
        beside = centres + np.roll(centres, 1, axis=0)
        heights[::step, half::step] = mean(beside + corners + np.roll(corners, -1, axis=1))
        above = centres + np.roll(centres, 1, axis=1)
        heights[half::step, ::step] = mean(above + corners + np.roll(corners, -1, axis=0))
        step = half
        roughness /= decay
    heights -= heights.min()
    return heights / heights.max()


def fog(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Add a plasma fractal and scale back to the picture's brightness."""
    amount, decay = _FOG[severity - 1]
    brightest = x.max()
    return (x + amount * plasma(decay, rng)[..., None]) * brightest / (brightest + amount)


def glass_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Blur, displace pixels locally, blur."""
    sigma, shift, rounds = _GLASS[severity - 1]
    pixels = np.floor(_blur(x, sigma) * 255).reshape(-1, 3) / 255
    for _ in range(rounds):
        pixels = pixels[displaced(rng.integers(-shift, shift, (SIDE, SIDE, 2)), shift)]
    return _blur(pixels.reshape(x.shape), sigma)


def displaced(offsets: NDArray[np.int_], shift: int) -> NDArray[np.int_]:
    """One round of upstream's pixel shuffle: which pixel each pixel's colour comes from.

    Upstream goes backwards over rows and columns `shift` + 1 … 224 − `shift` of the 256-pixel picture and
    means to swap each pixel with the one at its offset; as both are views of one array, it copies that pixel
    and leaves it as it is. A pixel copied from later in the picture has itself been overwritten before, which
    makes chains: they are followed here by doubling instead of pixel by pixel.

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
    end = np.maximum(source, pixels.ravel())  # one link of the chain: a later pixel, or here it ends
    while (end[end] != end).any():
        end = end[end]
    return source[end]


_CORRUPTIONS: dict[str, Callable[[Image, int, np.random.Generator], Image]] = {
    "motion": motion_blur,
    "gaussian": gaussian_blur,
    "zoom": zoom_blur,
    "fog": fog,
    "glass": glass_blur,
}
