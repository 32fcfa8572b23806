"""Pictures and prompts on their way into the policy."""

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from srpo.policies.processing import SPACE, make_tokenizer, prepare_images, prepare_prompts, prompt

TASKS = ["turn on the stove", "put the wine bottle on top of the cabinet"]


def test_nothing_is_done_to_a_picture_that_fits() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pixels = prepare_images(images, 16, 1.0, False)
    np.testing.assert_array_equal((pixels.permute(0, 2, 3, 1).numpy() * 255).round(), images)


@pytest.mark.parametrize(("side", "size"), [(40, 16), (256, 224), (10, 16)])
def test_resize_is_lanczos_and_upright(side: int, size: int) -> None:
    """Pillow resizes pictures of floats without rounding between the passes; then whole levels."""
    images = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    channels = [Image.fromarray(images[0, :, :, c].astype(np.float32)) for c in range(3)]
    resized = np.stack([c.resize((size, size), Image.Resampling.LANCZOS) for c in channels])
    prepared = prepare_images(images, size, 1.0, False)[0].numpy() * 255
    np.testing.assert_allclose(prepared, prepared.round(), atol=1e-4)
    clear = np.abs(resized % 1 - 0.5) > 1e-3  # not on the edge between two levels
    assert clear.mean() > 0.98
    np.testing.assert_allclose(prepared[clear], resized.round().clip(0, 255)[clear], atol=1e-4)


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
    cropped = prepare_images(images, n, area, False)[0].permute(1, 2, 0).numpy() * 255
    # Back to whole levels as tf.image.convert_image_dtype does it; float32 may fall on an edge's other side.
    difference = np.abs(cropped - np.floor(expected * 255.5))
    assert difference.max() <= 1 + 1e-4 and (difference > 1e-4).mean() < 0.02


def test_jpeg_round_trip() -> None:
    """Smooth pictures come back nearly as they were; a pixel's colour is shared with its neighbours."""
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    smooth = np.broadcast_to(ramp[None, :, None], (1, 32, 32, 3)).copy()
    plain, jpeg = (prepare_images(smooth, 32, 1.0, flag) for flag in (False, True))
    assert 0 < (plain - jpeg).abs().max() < 6 / 255
    red = np.zeros((1, 32, 32, 3), np.uint8)
    red[0, 16, 16, 0] = 255
    seen = prepare_images(red, 32, 1.0, True)[0]
    # Chroma has half the resolution, so the redness of the one pixel reaches beyond it.
    assert seen[0, 16, 17] - seen[1, 16, 17] > 0.05


def test_prompt_is_openvlas() -> None:
    text = "In: What action should the robot take to turn on the stove?\nOut:"
    assert prompt("Turn on the Stove") == text


def test_tokenizer_is_deterministic_whole_words_and_lossless_elsewhere() -> None:
    one, two = (make_tokenizer(tasks, 700) for tasks in (TASKS, TASKS[::-1]))
    assert one.get_vocab() == two.get_vocab() and len(one) <= 700
    assert one.tokenize(prompt(TASKS[1]))[9:12] == ["Ġput", "Ġthe", "Ġwine"]
    unseen = "fetch grüne Äpfel №7"
    assert one.decode(one(unseen)["input_ids"]) == unseen


def test_a_llama_prompt_ends_in_its_lone_space() -> None:
    """Without our own token it is the vocabulary's `▁`, and a prompt that ends in it gets no second one."""
    vocabulary = {"<pad>": 0, "▁": 7} | {piece: 8 + k for k, piece in enumerate("InatoskhrbueOW:?.\n")}
    model = models.WordLevel(vocabulary, unk_token="<pad>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="<pad>")
    ids, _ = prepare_prompts(tokenizer, ["x"])
    assert ids.tolist() == [[0, 7]]


def test_prompts_are_padded_left_and_end_in_the_space_token() -> None:
    tokenizer = make_tokenizer(TASKS, 700)
    ids, mask = prepare_prompts(tokenizer, TASKS)
    assert (ids[:, -1] == tokenizer.convert_tokens_to_ids(SPACE)).all()
    assert mask[1].all() and not mask[0, 0] and mask[0, -1]
    lengths = mask.sum(1).tolist()
    for row, length, task in zip(ids, lengths, TASKS, strict=True):
        assert tokenizer.decode(row[len(row) - length : -1]) == prompt(task)
