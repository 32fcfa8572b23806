"""V-JEPA 2 (Assran et al. 2025, arXiv 2506.09985) as a representation: the encoder's patch tokens, pooled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import VJEPA2Model

from srpo.config import WorldModel as WorldModelConfig
from srpo.config.world_model import GRID
from srpo.world_models.base import Embedding, Frames, WorldModel
from srpo.world_models.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    load_pretrained,
    preprocess_images,
    weights_fingerprint,
)

TOKENS_PER_BATCH = 16384
"""Patch tokens encoded at once. One clip of the released ViT-g/384 (64 frames) has 18,432: one at a time."""


def resized_side(size: int) -> int:
    """Pixels of the short side after the resize, before the centre crop to `size`."""
    return int(size * 256 / 224)


def preprocess(video: Tensor, size: int) -> Tensor:
    """V-JEPA 2's evaluation transform: uint8 (..., H, W, 3) to float32 (..., 3, size, size).

    The short side is resized (bilinear) to ⌊size · 256/224⌋, the centre cropped, the values normalised by
    ImageNet's statistics, as transformers' `VJEPA2VideoProcessor` does.
    """
    return preprocess_images(video, resized_side(size), size, IMAGENET_MEAN, IMAGENET_STD, "bilinear")


def load_vjepa2(source: str, revision: str | None, dtype: torch.dtype) -> VJEPA2Model:
    """Load a transformers V-JEPA 2 (`load_pretrained`); its predictor may be missing or broken."""
    model, _ = load_pretrained(
        source,
        revision,
        dtype,
        {"vjepa2": VJEPA2Model},
        "facebook/vjepa2-vitg-fpc64-384",
        unused=("predictor.",),
    )
    return model


class VJepa2WorldModel(WorldModel):
    """A frozen V-JEPA 2 encoder; an embedding is its patch tokens, pooled over the clip.

    `mean` (the paper): over all tokens, D = hidden size. Positions are rotary, that is relative, so this
    contains little about when and where something happened. `grid`: over each cell of a `GRID` × `GRID` grid
    at each time step, concatenated, D = time steps · GRID² · hidden size.
    """

    def __init__(self, config: WorldModelConfig, source: str, device: torch.device) -> None:
        model = load_vjepa2(source, config.revision, getattr(torch, config.dtype))
        architecture = model.config
        if config.image_size != architecture.crop_size:
            # Rotary positions are defined on the grid of `crop_size`; another size would give wrong ones.
            raise ValueError(
                f"world_model.image_size is {config.image_size}, but {source} takes "
                f"{architecture.crop_size}: set image_size: {architecture.crop_size}"
            )
        if config.frames % architecture.tubelet_size:
            raise ValueError(
                f"world_model.frames {config.frames} is not a multiple of {source}'s tubelet of "
                f"{architecture.tubelet_size} frames"
            )
        side = architecture.crop_size // architecture.patch_size
        times = config.frames // architecture.tubelet_size
        cells = 1 if config.pooling == "mean" else times * GRID**2
        if config.pooling == "grid" and side % GRID:
            raise ValueError(
                f"world_model.pooling grid: {source} has {side} × {side} patches, which {GRID} × {GRID} "
                "cells do not divide: set pooling: mean"
            )
        batch_size = max(1, TOKENS_PER_BATCH // (times * side**2))
        super().__init__(config.frames, config.frame_selection, cells * architecture.hidden_size, batch_size)
        self.pooling = config.pooling
        self.grid = (times, GRID, side // GRID, GRID, side // GRID)
        self.image_size = config.image_size
        self.device = device
        self.encoder = model.encoder.to(device).eval().requires_grad_(False)  # the predictor is not needed

    @torch.inference_mode()
    def encode(self, videos: Sequence[Frames]) -> Embedding:
        clips = [preprocess(torch.from_numpy(video).to(self.device), self.image_size) for video in videos]
        tokens = self.encoder(torch.stack(clips)).last_hidden_state
        if self.pooling == "grid":  # time, row of cells, row in cell, column of cells, column in cell
            pooled = tokens.float().unflatten(1, self.grid).mean((3, 5)).flatten(1)
        else:
            pooled = tokens.float().mean(1)
        return np.asarray(pooled.cpu())

    def fingerprint(self) -> str:
        return weights_fingerprint(self.encoder, self.frames, self.selection, self.image_size, self.pooling)
