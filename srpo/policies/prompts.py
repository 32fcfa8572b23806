"""The policy's prompts: their text and their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LONE_SPACE = "▁"
"""Llama's token 29871, which OpenVLA appends to the prompt."""
SPACE = "<space>"
"""The same token in the tokenizers of `make_tokenizer`."""


def prompt(instruction: str) -> str:
    """OpenVLA's prompt."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


def make_tokenizer(instructions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer trained on the prompts of `instructions`.

    Any text can be encoded, training instructions in about one token per word. Ids are below `vocab_size`.
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


@lru_cache(maxsize=4)
def _space(tokenizer: PreTrainedTokenizerFast) -> int:
    vocabulary = tokenizer.get_vocab()  # a new dictionary of all tokens, 11 ms of 32,000
    return vocabulary[SPACE] if SPACE in vocabulary else vocabulary[LONE_SPACE]


@lru_cache(maxsize=4096)
def _prompt_ids(tokenizer: PreTrainedTokenizerFast, instruction: str) -> list[int]:
    """The tokens of one prompt, kept: a suite has few, and every query asks again."""
    ids = tokenizer(prompt(instruction), add_special_tokens=False)["input_ids"]
    space = _space(tokenizer)
    return ids if ids and ids[-1] == space else [*ids, space]


def tokenise_prompts(
    tokenizer: PreTrainedTokenizerFast, instructions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt tokens without BOS, ending in the space token, padded on the left.

    On the left, so that the last prompt token is always right before the action positions.

    Returns:
        ids int64 (N, L) and mask bool (N, L), False where padded.
    """
    rows = [_prompt_ids(tokenizer, instruction) for instruction in instructions]
    length = max(len(row) for row in rows)
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    return ids, mask
