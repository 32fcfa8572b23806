"""The policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from srpo.config.fields import NonNegativeInt, Number, Positive, PositiveInt, Section, UnitFraction


class Encoder(Section):
    """One vision transformer of the policy (a fused policy has two)."""

    patch_size: PositiveInt
    """Side of a patch in pixels."""
    hidden_size: PositiveInt
    """Width; a multiple of `heads`."""
    depth: PositiveInt
    """Blocks."""
    heads: PositiveInt
    """Attention heads."""
    mlp_ratio: Positive
    """Width of a block's MLP over `hidden_size`."""
    registers: NonNegativeInt
    """Register tokens (DINOv2 has 4, SigLIP none)."""
    cls_token: bool
    """A class token before the patches (DINOv2 has one, SigLIP none)."""
    layer_scale: bool
    """A learned factor a channel on each residual branch, as DINOv2 has."""
    read_block: Annotated[int, Field(le=-1)]
    """The block whose output is used: -1 the last, -2 the second to last."""
    mean: Annotated[tuple[Number, Number, Number], Field(strict=False)]
    """Mean of the input's channels, subtracted from pictures in [0, 1]."""
    std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
    """Standard deviation of the input's channels, divided by."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Encoder:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        if self.read_block < -self.depth:
            raise ValueError(f"read_block {self.read_block}: depth is only {self.depth} blocks")
        if int(self.hidden_size * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} of hidden_size {self.hidden_size} is no width")
        return self

    def weights(self, image_size: int) -> int:
        """How many it has, blocks behind the one that is read left out (they are not built)."""
        width, patches = self.hidden_size, (image_size // self.patch_size) ** 2
        block = 4 * width**2 + 2 * width * int(width * self.mlp_ratio)
        return (self.depth + self.read_block + 1) * block + (3 * self.patch_size**2 + patches) * width


class LanguageModel(Section):
    """The Llama of the policy."""

    hidden_size: PositiveInt
    """Width; an even multiple of `heads`."""
    intermediate_size: PositiveInt
    """Width of the MLP."""
    layers: PositiveInt
    """Blocks."""
    heads: PositiveInt
    """Attention heads."""
    vocab_size: PositiveInt
    """Token ids before padding; the last 256 are the actions."""
    padding: NonNegativeInt
    """Rows that pad the embedding (64 in OpenVLA)."""
    rope_theta: Positive
    """Base of the rotary embeddings' wavelengths."""
    rms_norm_eps: Positive
    """Added to the mean square in RMSNorm."""

    @model_validator(mode="after")
    def _heads_divide(self) -> LanguageModel:
        if self.hidden_size % (2 * self.heads):  # rotary embeddings turn pairs of a head's numbers
            raise ValueError(f"hidden_size {self.hidden_size} is not an even multiple of heads {self.heads}")
        if self.vocab_size <= 256:
            raise ValueError(f"vocab_size {self.vocab_size} leaves no room beside the 256 action tokens")
        return self


class Lora(Section):
    """Low-rank adapters on every linear layer but the output, trained in place of the weights."""

    rank: PositiveInt
    """Rank of an adapter."""
    alpha: Positive
    """An adapter's product is scaled by this over `rank`."""


class Policy(Section):
    """An OpenVLA-OFT policy with discrete action tokens."""

    name: str
    """The file's name; recorded with every episode."""
    checkpoint: str | None
    """Start from these weights: a folder, a hub id, or `simplevla-rl` or `siirl`, the one-demonstration SFT
    checkpoints that those projects released; none: random weights. In an id, `{suite}` becomes
    libero-spatial, libero-object, libero-goal or libero10."""
    revision: str | None
    """Revision on the hub; none: the newest."""
    image_size: PositiveInt
    """Side of the policy's input picture, after the crop."""
    crop_area: UnitFraction
    """Share of the picture's area kept by the centre crop."""
    jpeg: bool = False
    """Send the picture through a JPEG round trip first, as OpenVLA-OFT's evaluation does."""
    proprio: bool
    """Feed end-effector pose and gripper (8 numbers) as one token, as OpenVLA-OFT's proprio variant does."""
    learned_placeholders: bool
    """Give each action position an input embedding of its own instead of zeros. With zeros the positions
    differ only through rotary embeddings, which costs a shallow model its first two layers."""
    encoders: Annotated[tuple[Encoder, ...], Field(strict=False, min_length=1, max_length=2)]
    """One vision transformer, or two whose features are concatenated (OpenVLA: DINOv2 and SigLIP)."""
    llm: LanguageModel
    """The language model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights in memory. With bfloat16 only adapters (`lora`) can be trained."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping its activations."""
    lora: Lora | None = None
    """Train adapters only; saved policies have them beside the weights."""

    @model_validator(mode="after")
    def _consistent(self) -> Policy:
        for encoder in self.encoders:
            if self.image_size % encoder.patch_size:
                raise ValueError(
                    f"image_size {self.image_size} is not a multiple of patch_size {encoder.patch_size}"
                )
        if len(sizes := {encoder.patch_size for encoder in self.encoders}) > 1:
            raise ValueError(
                f"encoders differ in patch_size, {sorted(sizes)}: features of the same patches are joined"
            )
        if self.checkpoint is None and self.revision is not None:
            raise ValueError(f"revision {self.revision!r} without a checkpoint")
        return self

    @property
    def trainable(self) -> bool:
        """Whether it can be trained: bfloat16 rounds most updates of whole weights away."""
        return self.lora is not None or self.dtype != "bfloat16"

    @property
    def weights(self) -> int:
        """How many weights it has, without adapters, biases and norms (a few thousandths at most)."""
        llm, features = self.llm, sum(encoder.hidden_size for encoder in self.encoders)
        fused = len(self.encoders) == 2
        middle = 4 * features if fused else llm.hidden_size
        projector = features * middle + middle * llm.hidden_size + fused * llm.hidden_size**2
        block = 4 * llm.hidden_size**2 + 3 * llm.hidden_size * llm.intermediate_size
        words = 2 * (llm.vocab_size + llm.padding) * llm.hidden_size  # that go in, and that come out
        vision = sum(encoder.weights(self.image_size) for encoder in self.encoders)
        return vision + projector + llm.layers * block + words
