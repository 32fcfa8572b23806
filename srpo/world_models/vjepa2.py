"""V-JEPA 2 (Assran et al. 2025, arXiv 2506.09985) as a representation: mean of the encoder's patch tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional
from transformers import VJEPA2Config, VJEPA2Model
from transformers.utils import logging as transformers_logging

from srpo.config import WorldModel as WorldModelConfig
from srpo.world_models.base import Embedding, Frames, WorldModel

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TOKENS_PER_BATCH = 16384
"""Patch tokens encoded at once. One clip of the released ViT-g/384 (64 frames) has 18,432: one at a time."""


def resized_side(size: int) -> int:
    """Pixels of the short side after the resize, of which the centre `size` are kept."""
    return int(size * 256 / 224)


def preprocess(video: Tensor, size: int) -> Tensor:
    """V-JEPA 2's evaluation transform: uint8 (..., H, W, 3) to float32 (..., 3, size, size).

    The short side is resized (bilinear, antialiased) to ⌊size · 256/224⌋, the centre cropped, the values
    scaled to [0, 1] and normalised by ImageNet's statistics, as transformers' `VJEPA2VideoProcessor` does.
    That class needs torchvision and rounds the resized picture to 8 bits; this keeps the fractions.
    """
    *leading, height, width, _ = video.shape
    pixels = video.reshape(-1, height, width, 3).permute(0, 3, 1, 2).float() / 255
    short = resized_side(size)
    scale = short / min(height, width)
    resized = (short, int(width * scale)) if height <= width else (int(height * scale), short)
    if resized != (height, width):
        pixels = functional.interpolate(pixels, resized, mode="bilinear", antialias=True, align_corners=False)
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    pixels = pixels[..., top : top + size, left : left + size]
    mean = pixels.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = pixels.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return ((pixels - mean) / std).reshape(*leading, 3, size, size)


def load_vjepa2(source: str, revision: str | None, dtype: torch.dtype) -> VJEPA2Model:
    """Load a transformers V-JEPA 2 from a local folder or the hub; safetensors only, no remote code.

    Raises FileNotFoundError when it is not there, ValueError when it is another kind of model or incomplete.
    """
    folder = Path(source)
    if not folder.is_dir() and (folder.is_absolute() or source.startswith(".") or source.count("/") != 1):
        raise FileNotFoundError(
            f"world model folder {source} does not exist: set world_model.checkpoint to a folder or hub id"
        )
    fix = (
        "download it again (`hf download facebook/vjepa2-vitl-fpc64-256 --local-dir DIR`, say), "
        "or remove the folder and rerun the workflow if that made it"
    )
    try:
        facts, _ = VJEPA2Config.get_config_dict(source, revision=revision)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"world model {source} has no readable config.json: {fix}") from error
    if not facts:
        raise FileNotFoundError(f"world model {source} has no config.json: {fix}")
    if facts.get("model_type") != "vjepa2":
        raise ValueError(
            f"world model {source} is of type {facts.get('model_type')!r}, not 'vjepa2': set "
            "world_model.checkpoint to a V-JEPA 2, such as facebook/vjepa2-vitg-fpc64-384"
        )
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a log file is no place for one
    try:
        model, report = VJEPA2Model.from_pretrained(
            source, revision=revision, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"world model {source} has no readable model.safetensors ({error}): {fix}"
        ) from error
    missing = sorted(key for key in report["missing_keys"] if key.startswith("encoder."))
    if missing:
        raise ValueError(f"world model {source} lacks {len(missing)} weights, such as {missing[0]}: {fix}")
    return model


class VJepa2WorldModel(WorldModel):
    """A frozen V-JEPA 2 encoder; an embedding is the mean over a clip's patch tokens (D = hidden size)."""

    def __init__(self, config: WorldModelConfig, source: str, device: torch.device) -> None:
        model = load_vjepa2(source, config.revision, getattr(torch, config.dtype))
        architecture = model.config
        if config.image_size != architecture.crop_size:
            # Rotary positions are counted on the grid of `crop_size`: another size would scramble them.
            raise ValueError(
                f"world_model.image_size is {config.image_size}, but {source} takes "
                f"{architecture.crop_size}: set image_size: {architecture.crop_size}"
            )
        if config.frames % architecture.tubelet_size:
            raise ValueError(
                f"world_model.frames {config.frames} is not a multiple of {source}'s tubelet of "
                f"{architecture.tubelet_size} frames"
            )
        grid = architecture.crop_size // architecture.patch_size
        tokens = config.frames // architecture.tubelet_size * grid**2
        super().__init__(config.frames, architecture.hidden_size, max(1, TOKENS_PER_BATCH // tokens))
        self.image_size = config.image_size
        self.device = device
        self.encoder = model.encoder.to(device).eval().requires_grad_(False)  # the predictor is not needed

    @torch.inference_mode()
    def encode(self, videos: Sequence[Frames]) -> Embedding:
        clips = [preprocess(torch.from_numpy(video).to(self.device), self.image_size) for video in videos]
        tokens = self.encoder(torch.stack(clips)).last_hidden_state
        return np.asarray(tokens.float().mean(1).cpu())
