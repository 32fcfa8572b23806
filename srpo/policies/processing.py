"""From an observation to the policy's input: the picture, the prompt, the proprioception."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LONE_SPACE = "▁"
"""Llama's token 29871, which OpenVLA appends to the prompt."""
SPACE = "<space>"
"""Stands for it in the tokenizers that we make."""


def prompt(instruction: str) -> str:
    """OpenVLA's prompt."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


def make_tokenizer(instructions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer trained on the prompts of `instructions`.

    Any text can be encoded, the training instructions in about one token a word. Ids stay below `vocab_size`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>", SPACE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prompt(text) for text in sorted(set(instructions))), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture behind a JPEG round trip with TensorFlow's defaults (quality 95, halved chroma)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    with Image.open(buffer) as decoded:
        return np.asarray(decoded)


@cache
def _lanczos(source: int, target: int) -> torch.Tensor:
    """Weights (target, source) of an antialiased Lanczos3 resize: `tf.image.resize(..., antialias=True)`."""
    scale = source / target
    width = max(scale, 1.0)  # shrinking widens the kernel
    centres = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * scale
    x = (torch.arange(source, dtype=torch.float64) + 0.5 - centres) / width
    weights = torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)
    return (weights / weights.sum(1, keepdim=True)).float()


@cache
def _crop(size: int, area: float) -> torch.Tensor:
    """Weights (size, size) of a centre crop of `area` brought back to `size`: `tf.image.crop_and_resize`.

    Bilinear; the corners of the output are the corners of the box.
    """
    half = math.sqrt(area) / 2
    at = torch.linspace(0.5 - half, 0.5 + half, size, dtype=torch.float64) * (size - 1)
    distance = (at[:, None] - torch.arange(size, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0.0).float()


def _resample(pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, H, W) by the same weights along height and width."""
    return weights @ pixels @ weights.T


def prepare_images(images: NDArray[np.uint8], size: int, crop_area: float, jpeg: bool) -> torch.Tensor:
    """Pictures as the policy sees them, before each encoder's normalisation.

    OpenVLA-OFT's evaluation transform (`experiments/robot/openvla_utils.py`) without TensorFlow: a JPEG round
    trip, a Lanczos resize to `size`, and a centre crop of `crop_area` of the area, brought back to `size`
    bilinearly; whole grey levels after each. Each is left out where it would change nothing, the JPEG round
    trip where `jpeg` is false.

    Args:
        images: uint8 (N, H, W, 3), official orientation.

    Returns:
        float32 (N, 3, size, size) in [0, 1].
    """
    if jpeg:
        images = np.stack([_jpeg(image) for image in images])
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    if images.shape[1:3] != (size, size):
        if images.shape[1] != images.shape[2]:
            raise ValueError(f"pictures are {images.shape[1]} × {images.shape[2]} pixels, not square")
        pixels = _resample(pixels, _lanczos(images.shape[1], size)).round().clamp(0, 255)
    pixels = pixels / 255.0
    if crop_area == 1.0:
        return pixels
    # tf.image.convert_image_dtype goes back to whole levels by ⌊255.5 x⌋.
    return (_resample(pixels, _crop(size, crop_area)).clamp(0.0, 1.0) * 255.5).floor() / 255.0


def prepare_prompts(
    tokenizer: PreTrainedTokenizerFast, instructions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt tokens without BOS, ending in the space token, padded on the left.

    On the left, so that the last prompt token always stands right before the action positions.

    Returns:
        ids int64 (N, L) and mask bool (N, L), False where padded.
    """
    vocabulary = tokenizer.get_vocab()
    space = vocabulary[SPACE] if SPACE in vocabulary else vocabulary[LONE_SPACE]
    rows = []
    for instruction in instructions:
        ids = tokenizer(prompt(instruction), add_special_tokens=False)["input_ids"]
        rows.append(ids if ids and ids[-1] == space else [*ids, space])
    length = max(len(row) for row in rows)
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    return ids, mask
