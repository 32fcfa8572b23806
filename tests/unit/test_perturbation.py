"""LIBERO-Plus: from a task's name to its perturbation, and the noise of its pictures."""

import numpy as np
import pytest
import scipy.ndimage

from srpo.libero_plus import corruptions
from srpo.libero_plus.perturbation import Perturbation, UnavailableTask

STOVE = "put_the_bowl_on_the_stove"
PLAIN = "_view_0_0_100_0_0_initstate_0"


def noise(number: int) -> Perturbation:
    return Perturbation.from_task(f"{STOVE}{PLAIN}_noise_{number}")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Smooth areas, edges and texture, uint8 (256, 256, 3)."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:256, :256]
    image = np.stack([x / 2 + 40, y / 2 + 60, (x + y) / 4 + 30], axis=2)
    image[60:120, 80:190] = [200, 40, 60]
    image[150:200, 20:60] = 15
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


class TestPerturbation:
    @pytest.mark.parametrize(
        "suffix", [f"_language_2{PLAIN}", "_moved_level1_sample1", "_table_1", "_light_3"]
    )
    def test_tasks_that_need_data(self, suffix):
        with pytest.raises(UnavailableTask, match=r"need LIBERO-Plus's data: srpo libero-plus fetch"):
            Perturbation.from_task(STOVE + suffix)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="is not the name of a LIBERO-Plus task"):
            Perturbation.from_task("put_the_fork_away")

    def test_camera_tasks_leave_pictures_alone(self, picture):
        camera = Perturbation.from_task(f"{STOVE}_view_30_0_100_0_0_initstate_0")
        assert (camera.task.suite, camera.task.task_id, camera.task.dimension) == ("libero_goal", 1, "camera")
        np.testing.assert_array_equal(camera.corrupt(picture, np.random.default_rng(0)), picture)


class TestNoise:
    @pytest.mark.parametrize("number", range(1, 51))
    def test_every_number(self, number, picture):
        noisy = noise(number).corrupt(picture, np.random.default_rng(5))
        assert noisy.dtype == np.uint8 and noisy.shape == picture.shape and noisy.flags.c_contiguous
        assert (noisy != picture).any()

    @pytest.mark.parametrize(
        ("number", "is_random"), [(3, True), (13, False), (23, False), (33, True), (43, True)]
    )
    def test_generator_decides(self, number, is_random, picture):
        small = picture[:96, :96]
        first, again, other = (
            noise(number).corrupt(small, np.random.default_rng(seed)) for seed in (5, 5, 6)
        )
        assert first.shape == small.shape
        np.testing.assert_array_equal(first, again)
        assert (first != other).any() == is_random

    @pytest.mark.parametrize("side", [64, 96, 128, 320])
    def test_resize_averages_areas(self, side):
        image = np.random.default_rng(0).random((side, side, 3))
        # On a grid of both sizes' common multiple, every pixel is whole.
        fine = np.lcm(side, 256)
        rows = image.repeat(fine // side, axis=0).reshape(256, fine // 256, side, 3).mean(axis=1)
        expected = rows.repeat(fine // side, axis=1).reshape(256, 256, fine // 256, 3).mean(axis=2)
        np.testing.assert_allclose(corruptions.resize(image, 256), expected, atol=1e-12)

    def test_not_square(self, picture):
        with pytest.raises(ValueError, match=r"square pictures, not shape \(256, 200, 3\)"):
            noise(1).corrupt(picture[:, :200], np.random.default_rng(0))

    @pytest.mark.parametrize("severity", [1, 4, 10])
    def test_gaussian_against_a_direct_sum(self, severity, picture):
        reach = np.arange(-4 * severity, 4 * severity + 1)
        kernel = np.exp(-0.5 * (reach / severity) ** 2)
        kernel /= kernel.sum()
        padded = np.pad(picture / 255, ((reach.size // 2,) * 2, (reach.size // 2,) * 2, (0, 0)), mode="edge")
        rows = sum(k * padded[i : i + 256] for i, k in enumerate(kernel))
        expected = sum(k * rows[:, i : i + 256] for i, k in enumerate(kernel))
        corrupted = noise(10 + severity).corrupt(picture, np.random.default_rng(0))
        # The expected picture is a real number, truncated.
        assert (corrupted <= expected * 255 + 1e-6).all()
        assert (corrupted >= expected * 255 - 1 - 1e-6).all()

    @pytest.mark.parametrize("severity", range(1, 11))
    def test_zoom_against_scipy(self, severity, picture):
        def clipped_zoom(x, factor):
            crop = int(np.ceil(256 / factor))
            top = (256 - crop) // 2
            zoomed = scipy.ndimage.zoom(x[top : top + crop, top : top + crop], (factor, factor, 1), order=1)
            trim = (len(zoomed) - 256) // 2
            return zoomed[trim : trim + 256, trim : trim + 256]

        largest, step = corruptions.ZOOM[severity - 1]
        raw = picture[..., :1] / 255
        for factor in np.arange(1, largest, step):
            np.testing.assert_allclose(
                corruptions.clipped_zoom(raw, factor), clipped_zoom(raw, factor), atol=1e-12
            )

    @pytest.mark.parametrize("severity", [1, 5, 10])
    def test_motion_of_a_point(self, severity):
        """A point becomes a comb along the line of its angle; in the official orientation, to the right."""
        radius, sigma = corruptions.MOTION[severity - 1]
        image = np.zeros((256, 256, 3), np.uint8)
        image[128, 100] = 255
        expected = np.zeros((256, 256))
        angle = np.deg2rad(np.random.default_rng(7).uniform(-45, 45))
        weights = [np.exp(-(k**2) / 2 / sigma**2) for k in range(2 * radius + 1)]
        for k, weight in enumerate(weights):
            row, column = 128 + k * np.sin(angle), 100 + k * np.cos(angle)
            expected[int(np.floor(row + 0.5 - 1e-9)), int(np.floor(column + 0.5 - 1e-9))] += weight / sum(
                weights
            )
        corrupted = noise(severity).corrupt(image, np.random.default_rng(7))
        assert np.abs(corrupted[..., 0] - np.floor(expected * 255)).max() <= 1
        assert ((corrupted[..., 0] > 1) == (expected * 255 >= 2)).all()

    @pytest.mark.parametrize("decay", [3.0, 1.3])
    def test_plasma_point_by_point(self, decay):
        """Diamond-square written out point by point, with the same draws."""
        rng = np.random.default_rng(11)
        size, step, roughness = 256, 256, 100.0
        heights = {(0, 0): 0.0}

        def fill(row: int, column: int, neighbours: list[tuple[int, int]]) -> None:
            """Set the points (row, column) + multiples of the step to their neighbours' mean and noise."""
            count = size // step
            draws = rng.uniform(-roughness, roughness, (count, count))
            for i in range(count):
                for j in range(count):
                    y, x = row + i * step, column + j * step
                    around = [heights[(y + dy) % size, (x + dx) % size] for dy, dx in neighbours]
                    heights[y, x] = sum(around) / 4 + roughness * draws[i, j]

        while step >= 2:
            half = step // 2
            straight = [(-half, 0), (half, 0), (0, -half), (0, half)]
            fill(half, half, [(-half, -half), (-half, half), (half, -half), (half, half)])
            fill(0, half, straight)
            fill(half, 0, straight)
            step, roughness = half, roughness / decay
        expected = np.array([[heights[y, x] for x in range(size)] for y in range(size)])
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        np.testing.assert_allclose(corruptions.plasma(decay, np.random.default_rng(11)), expected, atol=1e-12)

    @pytest.mark.parametrize(("severity", "amount", "decay"), [(1, 0.5, 3.0), (10, 5.0, 1.3)])
    def test_fog_over_one_colour(self, severity, amount, decay):
        image = np.full((256, 256, 3), 102, np.uint8)
        haze = corruptions.plasma(decay, np.random.default_rng(2))[::-1, ::-1]
        expected = (0.4 + amount * haze) * 0.4 / (0.4 + amount) * 255
        corrupted = noise(30 + severity).corrupt(image, np.random.default_rng(2))
        np.testing.assert_array_equal(corrupted[..., 1], np.floor(expected + 1e-9))

    @pytest.mark.parametrize("shift", [1, 3, 5])
    def test_glass_against_the_loop(self, shift):
        """Upstream's loop over pixels, on pixels that carry their own number."""
        offsets = np.random.default_rng(shift).integers(-shift, shift, (256, 256, 2))
        x = np.arange(256 * 256).reshape(256, 256, 1)
        for h in range(224 - shift, shift, -1):
            for w in range(224 - shift, shift, -1):
                dx, dy = offsets[h, w]
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
        np.testing.assert_array_equal(corruptions.source_pixels(offsets, shift), x.ravel())

    def test_glass_leaves_the_official_left_and_top_unshuffled(self, picture):
        """Upstream's loop ends at 224 of 256 pixels, in the orientation before the rotation by 180°."""
        glass = noise(41)
        first, second = (glass.corrupt(picture, np.random.default_rng(seed)) for seed in (0, 1))
        changed = (first != second).any(axis=2)
        assert not changed[:28].any() and not changed[:, :28].any()
        assert changed[40:250, 40:250].mean() > 0.3

    @pytest.mark.parametrize("kind", range(5))
    def test_stronger_with_severity(self, kind, picture):
        def distance(severity: int) -> float:
            noisy = noise(10 * kind + severity).corrupt(picture, np.random.default_rng(0))
            return float(np.abs(noisy.astype(float) - picture).mean())

        assert distance(1) < distance(5)
        assert 1 < distance(1) < 60

    @pytest.mark.parametrize("number", [3, 8, 15, 20, 27, 32, 38, 46])
    def test_same_strength_in_a_smaller_picture(self, number):
        """Corrupting half the size is halving the corrupted picture, up to the resampling's own error."""
        y, x = np.mgrid[:256, :256] / 256
        waves = 127 + 80 * np.sin(9 * x + 2) * np.cos(7 * y) + 40 * (x > 0.5)
        image = np.repeat(waves[..., None], 3, axis=2).astype(np.uint8)

        def half(picture: np.ndarray) -> np.ndarray:
            return picture.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))

        large = half(noise(number).corrupt(image, np.random.default_rng(4)))
        small = noise(number).corrupt(half(image).astype(np.uint8), np.random.default_rng(4))
        error = np.abs(large - small).mean()
        assert error < 2.5
        assert error < 0.5 * np.abs(large - half(image)).mean()

    @pytest.mark.parametrize("number", [43, 46, 48])
    def test_glass_displaces_as_far_in_a_smaller_picture(self, number):
        """In a ramp, the change of colour is the displacement."""

        def spread(side: int) -> float:
            ramp = np.broadcast_to((np.arange(side) + 0.5) * 256 / side, (side, side))[..., None].repeat(3, 2)
            noisy = noise(number).corrupt(ramp.astype(np.uint8), np.random.default_rng(0))
            inner = slice(side // 4, -side // 4)
            return float(np.std((noisy - ramp)[inner, inner]))

        assert spread(256) > 0.5
        assert spread(128) == pytest.approx(spread(256), rel=0.15)
