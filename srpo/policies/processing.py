"""From an observation to the policy's input: the picture, the prompt, the proprioception."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedTokenizerFast

SPACE = "<space>"
"""Stands for Llama's token 29871 (a lone space), which OpenVLA appends to the prompt."""


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


def prepare_images(images: NDArray[np.uint8], size: int, crop_area: float) -> torch.Tensor:
    """Pictures as the policy sees them, before each encoder's normalisation.

    Lanczos resize to `size`, then a centre crop of `crop_area` of the area, brought back to `size` bilinearly
    (OpenVLA-OFT's evaluation transform). Either is left out where it would change nothing.

    Args:
        images: uint8 (N, H, W, 3), official orientation.

    Returns:
        float32 (N, 3, size, size) in [0, 1].
    """
    if images.shape[1:3] != (size, size):
        resized = [Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS) for image in images]
        images = np.stack([np.asarray(image) for image in resized])
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255.0
    if crop_area == 1.0:
        return pixels
    # tf.image.crop_and_resize: the corners of the output are the corners of the box.
    half = math.sqrt(crop_area)
    line = torch.linspace(-half, half, size)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).expand(len(images), -1, -1, -1)
    return F.grid_sample(pixels, grid, mode="bilinear", align_corners=True).clamp(0.0, 1.0)


def prepare_prompts(
    tokenizer: PreTrainedTokenizerFast, instructions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt tokens without BOS, ending in the space token, padded on the left.

    On the left, so that the last prompt token always stands right before the action positions.

    Returns:
        ids int64 (N, L) and mask bool (N, L), False where padded.
    """
    space = tokenizer.convert_tokens_to_ids(SPACE) if SPACE in tokenizer.get_vocab() else 29871
    rows = []
    for instruction in instructions:
        ids = tokenizer(prompt(instruction), add_special_tokens=False)["input_ids"]
        rows.append(ids if ids and ids[-1] == space else [*ids, space])
    length = max(len(row) for row in rows)
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    return ids, mask
