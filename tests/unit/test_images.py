"""From rendered images to the policy's input."""

import io
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from srpo import ROOT
from srpo.policies.images import ImageTransform


def picture(side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_nothing_is_done_to_a_picture_that_fits() -> None:
    np.testing.assert_array_equal(ImageTransform(16, 1.0, False)(picture(16)), picture(16))


@pytest.mark.parametrize(("side", "size"), [(40, 16), (256, 224), (10, 16)])
def test_resize_is_lanczos_and_upright(side: int, size: int) -> None:
    """Pillow resizes pictures of floats without rounding between the passes; then whole levels."""
    channels = [Image.fromarray(picture(side)[:, :, c].astype(np.float32)) for c in range(3)]
    resized = np.stack([c.resize((size, size), Image.Resampling.LANCZOS) for c in channels], -1)
    prepared = ImageTransform(size, 1.0, False)(picture(side))
    assert prepared.dtype == np.uint8
    clear = np.abs(resized % 1 - 0.5) > 1e-3  # not on the edge between two levels
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(prepared[clear], resized.round().clip(0, 255)[clear])


@pytest.mark.parametrize("area", [0.9, 0.25])
def test_crop_is_bilinear_between_the_corners_of_the_box(area: float) -> None:
    """tf.image.crop_and_resize written out: output i samples y0 + i·(y1 − y0)/(n − 1), in pixel centres."""
    n = 9
    side = np.sqrt(area)
    at = ((1 - side) / 2 + np.arange(n) / (n - 1) * side) * (n - 1)
    low = np.minimum(at.astype(int), n - 2)
    part = at - low
    grey = picture(n) / 255
    rows = grey[low] * (1 - part)[:, None, None] + grey[low + 1] * part[:, None, None]
    expected = rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]
    cropped = ImageTransform(n, area, False)(picture(n))
    # Back to whole levels as tf.image.convert_image_dtype does it; float32 may fall on an edge's other side.
    difference = np.abs(cropped - np.floor(expected * 255.5))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02


@pytest.fixture(scope="module")
def tensorflow() -> dict[str, NDArray[np.generic]]:
    """TensorFlow's own values (`tests/support/tensorflow_values.py`)."""
    with np.load(ROOT / "tests/support/tensorflow_values.npz") as values:
        return dict(values)


def test_jpeg_is_encoded_and_decoded_as_by_tensorflow(tensorflow: dict[str, NDArray[np.generic]]) -> None:
    """To the value; with Pillow's decoder, which has no fast inverse DCT, many differ."""
    images = tensorflow["images"]
    assert len(images) == 3
    for image, expected in zip(images, tensorflow["decoded"], strict=True):
        transform = ImageTransform(len(image), 1.0, True)
        np.testing.assert_array_equal(transform(image), expected)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95, subsampling="4:2:0")
        assert (np.asarray(Image.open(file)) != expected).mean() > 0.1


def test_evaluations_transform_is_tensorflows(tensorflow: dict[str, NDArray[np.generic]]) -> None:
    size = tensorflow["cropped"].shape[1]
    for image, resized, cropped in zip(*map(tensorflow.get, ("images", "resized", "cropped")), strict=True):
        for area, expected in ((1.0, resized), (0.9, cropped)):
            difference = np.abs(ImageTransform(size, area, True)(image).astype(int) - expected)
            # Sums in another order may fall on an edge's other side.
            assert difference.max() <= 1 and (difference > 0).mean() < 0.002


def test_a_picture_that_is_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match="16 × 20 pixels, not square"):
        ImageTransform(16, 1.0, False)(np.zeros((16, 20, 3), np.uint8))


def test_simulators_prepare_pictures_without_pytorch() -> None:
    """A simulator would take seconds longer to start, and a quarter of a gigabyte more."""
    loaded = "import sys, srpo.rollouts.pool, srpo.policies.images; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
