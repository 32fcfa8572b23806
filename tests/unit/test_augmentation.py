"""Augmentation of fine-tuning's pictures: every change by its definition, and all of them in their order."""

import colorsys

import numpy as np
import pytest

from srpo import ROOT
from srpo.policies import augmentation
from srpo.policies.augmentation import augment, brightened, contrasted, saturated, turned_hue
from srpo.policies.images import crop_weights, resample

LEVELS = np.random.default_rng(0).uniform(0, 1, (6, 6, 3)).astype(np.float32)
LEVELS[0, 0] = 0.3  # grey
LEVELS[0, 1] = 0  # black


CHANGES = {
    "crop": lambda levels: resample(levels, crop_weights(len(levels), np.sqrt(0.9), 0.02)),
    "brightness": lambda levels: brightened(levels, 0.13),
    "contrast": lambda levels: contrasted(levels, 1.17),
    "saturation": lambda levels: saturated(levels, 1.19),
    "hue": lambda levels: turned_hue(levels, -0.04),
}


def by_hsv(hue: float = 0.0, saturation: float = 1.0) -> np.ndarray:
    """A pixel at a time, with Python's own conversion."""
    changed = np.zeros(LEVELS.shape)
    for place in np.ndindex(6, 6):
        h, s, v = colorsys.rgb_to_hsv(*LEVELS[place].astype(float))
        changed[place] = colorsys.hsv_to_rgb((h + hue) % 1, min(s * saturation, 1), v)
    return changed


@pytest.mark.parametrize("factor", [0.8, 1.2, 3.0])
def test_saturation_is_hsvs(factor: float) -> None:
    np.testing.assert_allclose(saturated(LEVELS, factor), by_hsv(saturation=factor), atol=1e-6)


@pytest.mark.parametrize("delta", [-0.05, 0.05])
def test_hue_is_hsvs(delta: float) -> None:
    np.testing.assert_allclose(turned_hue(LEVELS, delta), by_hsv(hue=delta), atol=1e-6)


def test_contrast_is_about_each_channels_mean() -> None:
    changed = contrasted(LEVELS, 1.2)
    np.testing.assert_allclose(changed.mean((0, 1)), LEVELS.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(changed.std((0, 1)), 1.2 * LEVELS.std((0, 1)), atol=1e-6)


def test_brightness_is_added() -> None:
    np.testing.assert_allclose(brightened(LEVELS, -0.1), LEVELS - 0.1, atol=1e-7)


def test_the_crop_is_of_its_area_and_on_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two ramps, where the crop's corners can be read off."""
    for name in ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE"):
        monkeypatch.setattr(augmentation, name, 0.0)
    ramps = np.zeros((256, 256, 3), np.uint8)
    ramps[..., 0], ramps[..., 1] = np.arange(256)[:, None], np.arange(256)
    offsets = []
    for seed in range(20):
        cropped = augment(ramps, 0.9, np.random.default_rng(seed)).astype(int)
        (top, left), (bottom, right) = cropped[0, 0, :2], cropped[-1, -1, :2]
        assert (top, bottom) == (left, right)
        assert bottom - top == pytest.approx(np.sqrt(0.9) * 255, abs=1.1)
        offsets.append(top)
    assert min(offsets) <= 2 and max(offsets) >= 10  # of 13 levels that are cut off
    assert len(set(offsets)) > 5


def test_changes_follow_one_another() -> None:
    """Without a crop: the draws in the order of the definition, clipped after each."""
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    rng = np.random.default_rng(7)
    rng.uniform()  # the crop's
    levels = np.clip(image / np.float32(255) + np.float32(rng.uniform(-0.2, 0.2)), 0, 1)
    levels = contrasted(levels, rng.uniform(0.8, 1.2)).clip(0, 1)
    levels = saturated(levels, rng.uniform(0.8, 1.2)).clip(0, 1)
    levels = turned_hue(levels, rng.uniform(-0.05, 0.05)).clip(0, 1)
    ours = augment(image, 1.0, np.random.default_rng(7)).astype(int)
    assert np.abs(ours - np.floor(levels * 255.5)).max() <= 1
    assert np.abs(ours - image).max() > 10


def test_every_change_is_tensorflows() -> None:
    """Each of the result of the one before it, with the values of `tests/support/tensorflow_values.py`."""
    with np.load(ROOT / "tests/support/tensorflow_values.npz") as values:
        images, *expected = (values[name] for name in ("images", *CHANGES))
    levels = images[0] / np.float32(255)
    for change, result in zip(CHANGES.values(), expected, strict=True):
        np.testing.assert_allclose(change(levels).clip(0, 1), result, atol=2e-6)
        levels = result
