"""Encoders of single images (DINOv2, CLIP, SigLIP) as representations: the mean over the frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection, Dinov2Model, PreTrainedModel, SiglipVisionModel

from srpo.config import WorldModel as WorldModelConfig
from srpo.world_models.base import Embedding, Frames, WorldModel, require_frames
from srpo.world_models.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    load_pretrained,
    preprocess_images,
    weights_fingerprint,
)

TOKENS_PER_BATCH = 32768
"""Patch tokens encoded at once: 127 images of a ViT with 256 patches and a class token."""


@dataclass(frozen=True)
class Family:
    """How one kind of encoder is used, as its authors' evaluation does.

    model      transformers' class
    embedding  the field of its output that is an image's embedding
    short      input size → length of the short side after the resize, before the crop
    mean, std  the input's normalisation
    """

    model: type[PreTrainedModel]
    embedding: str
    short: Callable[[int], int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


DINOV2 = Family(
    Dinov2Model,
    "pooler_output",  # the class token after the last normalisation
    lambda size: size * 256 // 224,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
CLIP = Family(
    CLIPVisionModelWithProjection,
    "image_embeds",  # in the space shared with text; not scaled to unit length
    lambda size: size,
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
SIGLIP = Family(
    SiglipVisionModel,
    "pooler_output",  # of the attention-pooling head; not scaled to unit length
    lambda size: size,
    (0.5, 0.5, 0.5),
    (0.5, 0.5, 0.5),
)
FAMILIES = {
    "dinov2": DINOV2,
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
}
"""Model type in config.json, of whole models and of their vision part → how it is used."""
UNUSED = ("text_", "logit_", "vision_model.embeddings.position_ids")
"""How the names of weights begin that whole models of pictures and text have besides: the text's part, and
numbers that are counted, not stored, today."""


class ImageEncoderWorldModel(WorldModel):
    """A frozen encoder of single images; an embedding is the mean of its images' embeddings, of width D.

    The mean discards the order of frames, so episodes that differ only in it have equal embeddings; those of
    a prefix and of the whole episode still differ.
    """

    def __init__(
        self,
        config: WorldModelConfig,
        model: nn.Module,
        dimension: int,
        image_batch: int,
        device: torch.device,
    ) -> None:
        super().__init__(
            config.frames, config.frame_selection, dimension, max(1, image_batch // config.frames)
        )
        self.image_batch = image_batch
        """Images encoded at once."""
        self.image_size = config.image_size
        self.device = device
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.model = model.to(device, self.dtype).eval().requires_grad_(False)

    @abstractmethod
    def preprocess(self, images: Tensor) -> Tensor:
        """Images uint8 (P, H, W, 3) as the encoder's input float32 (P, 3, S, S)."""

    @abstractmethod
    def features(self, inputs: Tensor) -> Tensor:
        """Embeddings (P, D) of preprocessed images (P, 3, S, S)."""

    def encode(self, videos: Sequence[Frames]) -> Embedding:
        return self._encode_images(videos).reshape(len(videos), -1, self.dimension).mean(1)

    def _embed_prefixes(self, frames: Frames, ends: Sequence[int]) -> Embedding:
        # An image has the same features in every prefix, so each is encoded once.
        require_frames(frames)
        chosen = [self.indices(end + 1) for end in ends]
        used, places = np.unique(np.array(chosen), return_inverse=True)
        encoded = self._encode_images([frames[used]])
        return np.stack([encoded[rows].mean(0) for rows in places.reshape(len(ends), -1)])

    @torch.inference_mode()
    def _encode_images(self, videos: Sequence[Frames]) -> Embedding:
        """Embeddings (P, D) of all images of the videos, in their order."""
        inputs = torch.cat([self.preprocess(torch.from_numpy(video).to(self.device)) for video in videos])
        parts = [self.features(part).float().cpu() for part in inputs.split(self.image_batch)]
        return np.asarray(torch.cat(parts))


class ImageWorldModel(ImageEncoderWorldModel):
    """An encoder of transformers: DINOv2, CLIP or SigLIP."""

    def __init__(self, config: WorldModelConfig, source: str, device: torch.device) -> None:
        classes = {kind: family.model for kind, family in FAMILIES.items()}
        model, kind = load_pretrained(
            source, config.revision, getattr(torch, config.dtype), classes, "facebook/dinov2-base", UNUSED
        )
        family, architecture = FAMILIES[kind], model.config
        if family is DINOV2:  # resizes its position embeddings to the input
            if config.image_size % architecture.patch_size:
                raise ValueError(
                    f"world_model.image_size {config.image_size} is not a multiple of {source}'s patches of "
                    f"{architecture.patch_size} pixels"
                )
        elif config.image_size != architecture.image_size:
            raise ValueError(
                f"world_model.image_size is {config.image_size}, but {source} takes "
                f"{architecture.image_size}: set image_size: {architecture.image_size}"
            )
        tokens = (config.image_size // architecture.patch_size) ** 2 + 1
        dimension = architecture.projection_dim if family is CLIP else architecture.hidden_size
        super().__init__(config, model, dimension, max(1, TOKENS_PER_BATCH // tokens), device)
        self.family = family

    def preprocess(self, images: Tensor) -> Tensor:
        family, size = self.family, self.image_size
        return preprocess_images(images, family.short(size), size, family.mean, family.std, "bicubic")

    def features(self, inputs: Tensor) -> Tensor:
        output = self.model(pixel_values=inputs.to(self.dtype))
        embedding: Tensor = getattr(output, self.family.embedding)
        return embedding

    def fingerprint(self) -> str:
        return weights_fingerprint(self.model, self.frames, self.selection, self.image_size)
