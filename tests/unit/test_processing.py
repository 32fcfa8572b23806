"""Pictures and prompts on their way into the policy."""

import numpy as np
import pytest
from PIL import Image

from srpo.policies.processing import SPACE, make_tokenizer, prepare_images, prepare_prompts, prompt

TASKS = ["turn on the stove", "put the wine bottle on top of the cabinet"]


def test_nothing_is_done_to_a_picture_that_fits() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pixels = prepare_images(images, 16, 1.0)
    np.testing.assert_array_equal((pixels.permute(0, 2, 3, 1).numpy() * 255).round(), images)


def test_resize_is_lanczos_and_upright() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(images[0]).resize((16, 16), Image.Resampling.LANCZOS)) / 255
    np.testing.assert_allclose(prepare_images(images, 16, 1.0)[0].permute(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize("area", [0.9, 0.25])
def test_crop_is_bilinear_between_the_corners_of_the_box(area: float) -> None:
    """tf.image.crop_and_resize written out: output i samples y0 + i·(y1 − y0)/(n − 1), in pixel centres."""
    n = 9
    images = np.random.default_rng(1).integers(0, 256, (1, n, n, 3), dtype=np.uint8)
    side = np.sqrt(area)
    at = ((1 - side) / 2 + np.arange(n) / (n - 1) * side) * (n - 1)
    low = np.minimum(at.astype(int), n - 2)
    part = at - low
    picture = images[0] / 255
    rows = picture[low] * (1 - part)[:, None, None] + picture[low + 1] * part[:, None, None]
    expected = rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]
    np.testing.assert_allclose(prepare_images(images, n, area)[0].permute(1, 2, 0), expected, atol=1e-5)


def test_prompt_is_openvlas() -> None:
    text = "In: What action should the robot take to turn on the stove?\nOut:"
    assert prompt("Turn on the Stove") == text


def test_tokenizer_is_deterministic_whole_words_and_lossless_elsewhere() -> None:
    one, two = (make_tokenizer(tasks, 700) for tasks in (TASKS, TASKS[::-1]))
    assert one.get_vocab() == two.get_vocab() and len(one) <= 700
    assert one.tokenize(prompt(TASKS[1]))[9:12] == ["Ġput", "Ġthe", "Ġwine"]
    unseen = "fetch grüne Äpfel №7"
    assert one.decode(one(unseen)["input_ids"]) == unseen


def test_prompts_are_padded_left_and_end_in_the_space_token() -> None:
    tokenizer = make_tokenizer(TASKS, 700)
    ids, mask = prepare_prompts(tokenizer, TASKS)
    assert (ids[:, -1] == tokenizer.convert_tokens_to_ids(SPACE)).all()
    assert mask[1].all() and not mask[0, 0] and mask[0, -1]
    lengths = mask.sum(1).tolist()
    for row, length, task in zip(ids, lengths, TASKS, strict=True):
        assert tokenizer.decode(row[len(row) - length : -1]) == prompt(task)
