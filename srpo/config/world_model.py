"""World models, and how a small one is pretrained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from srpo.config.fields import AsNumber, Fraction, Positive, PositiveInt, Section, Seed, require_distinct

FrameSelection = Literal["even", "siirl", "end"]
"""How frames are chosen of an episode (`srpo.world_models.base.select_frames`)."""
GRID = 4
"""Cells along each side of the image that pooling `grid` keeps separate."""


class Pretraining(Section):
    """How a small V-JEPA 2 is pretrained on play data."""

    scenes: Annotated[tuple[Annotated[int, Field(ge=0, lt=90)], ...], Field(strict=False, min_length=1)]
    """libero_90 tasks whose scenes are played in; they are never evaluated."""
    episodes: PositiveInt
    """Play episodes a scene."""
    steps: PositiveInt
    """Control steps of a play episode."""
    updates: PositiveInt
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=2)]
    """Clips of one update."""
    learning_rate: Positive
    """Learning rate of AdamW."""
    ema: Fraction
    """Decay of the target encoder's moving average."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1), AsNumber]
    """Share of the patches that the predictor must fill in."""
    hidden_size: PositiveInt
    """Width of the encoder."""
    depth: PositiveInt
    """Blocks of the encoder."""
    heads: PositiveInt
    """Attention heads of the encoder."""
    patch_size: PositiveInt
    """Side of a patch in pixels."""
    predictor_hidden_size: PositiveInt
    """Width of the predictor."""
    predictor_depth: PositiveInt
    """Blocks of the predictor."""
    predictor_heads: PositiveInt
    """Attention heads of the predictor."""
    seed: Seed
    """Seed of play, weights and masks."""

    @model_validator(mode="after")
    def _consistent(self) -> Pretraining:
        require_distinct("scenes", self.scenes)
        for size, heads in (("hidden_size", "heads"), ("predictor_hidden_size", "predictor_heads")):
            if getattr(self, size) % getattr(self, heads):
                raise ValueError(
                    f"{size} {getattr(self, size)} is not a multiple of {heads} {getattr(self, heads)}"
                )
        return self


class WorldModel(Section):
    """A representation: frames of an episode to one vector."""

    name: str
    """The file's name."""
    kind: Literal["pixel", "efficientnet-lite", "image", "vjepa2"]
    """`pixel`: downsampled frames. `image`: the mean over frames of a picture encoder's embedding (DINOv2,
    CLIP or SigLIP). `efficientnet-lite`: the same with EfficientNet-Lite0, whose ImageNet weights are
    installed with this project. `vjepa2`: a V-JEPA 2 encoder of whole clips."""
    checkpoint: str | None
    """A folder or hub id of an `image` encoder or V-JEPA 2; none: the workflow pretrains a small V-JEPA 2
    (`pretraining`)."""
    revision: str | None
    """Revision on the hub; none: the newest."""
    frames: PositiveInt
    """Frames taken of an episode."""
    frame_selection: FrameSelection = "even"
    """`even`: places are rounded to the nearest frame, and a shorter episode shows each of its frames longer.
    `siirl`: places are rounded down, and a shorter episode starts again from its first frame. `end`: as
    `even`, over the episode's last quarter alone."""
    image_size: PositiveInt
    """Side of the encoder's input, after the resize and centre crop of its kind (V-JEPA 2, DINOv2 and
    EfficientNet-Lite0: the short side to 256/224 of it)."""
    pooling: Literal["mean", "grid"] | None
    """For `vjepa2` alone. `mean`: over all patch tokens, as the paper does. `grid`: over each cell of a 4 × 4
    grid at each time step, side by side, which keeps when and where."""
    dtype: Literal["float32", "float16", "bfloat16"]
    """Precision of the encoder."""
    pretraining: Pretraining | None
    """How the workflow pretrains it, if it has no `checkpoint`."""

    @model_validator(mode="after")
    def _complete(self) -> WorldModel:
        if self.kind == "vjepa2" and (self.checkpoint is None) == (self.pretraining is None):
            raise ValueError("a vjepa2 world model needs either `checkpoint` or `pretraining`")
        if self.kind == "image" and (self.checkpoint is None or self.pretraining is not None):
            raise ValueError("an image world model needs `checkpoint`, and no `pretraining`")
        if self.kind == "pixel":
            if (self.checkpoint, self.revision, self.pretraining) != (None, None, None):
                raise ValueError(
                    "pixels have no weights: `checkpoint`, `revision` and `pretraining` must be null"
                )
            if self.dtype != "float32":
                raise ValueError(f"dtype must be float32 for pixels, not {self.dtype}")
        if self.kind == "efficientnet-lite":
            if (self.checkpoint, self.revision, self.pretraining) != (None, None, None):
                raise ValueError(
                    "an efficientnet-lite world model has its own weights: `checkpoint`, `revision` and "
                    "`pretraining` must be null"
                )
            if self.image_size != 224:
                raise ValueError(f"image_size must be 224 for efficientnet-lite, not {self.image_size}")
        if (self.kind == "vjepa2") != (self.pooling is not None):
            raise ValueError("`pooling` is for vjepa2 world models, and null for every other kind")
        if self.kind == "vjepa2" and self.frames % 2:
            raise ValueError(f"frames {self.frames} must be even: V-JEPA 2 takes them in pairs")
        if self.checkpoint is None and self.revision is not None:
            raise ValueError(f"revision {self.revision!r} without a checkpoint")
        if self.pretraining and self.image_size % self.pretraining.patch_size:
            patch_size = self.pretraining.patch_size
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {patch_size}")
        if self.pretraining and self.pooling == "grid":
            side = self.image_size // self.pretraining.patch_size
            if side % GRID:
                raise ValueError(
                    f"pooling `grid`: image_size {self.image_size} has {side} × {side} patches of patch_size "
                    f"{self.pretraining.patch_size}, which {GRID} × {GRID} cells do not divide"
                )
        return self
