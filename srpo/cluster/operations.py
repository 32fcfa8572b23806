"""Floating-point operations of policies and world models, counted from their settings: without torch.

Matrix products alone are counted, a multiplication and an addition as two operations (FLOP); all else, such
as normalisation, softmax, rotary embeddings and the optimiser, is well below a hundredth of them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

from srpo.config import Encoder, Policy, WorldModel
from srpo.episode import PROMPT_TOKENS, PROPRIO_DIM, TOKENS

ACTION_ROWS = 256
"""Rows of the output matrix that are used: one an action token."""


class Gpu(NamedTuple):
    """Peak in bfloat16 without sparsity, 10^12 FLOP a second; memory, GB; and where both stand."""

    tflops: float
    memory: int
    source: str


GPUS = {
    "a100": Gpu(312, 80, "NVIDIA A100 datasheet, 80 GB SXM"),
    "a800": Gpu(312, 80, "an A100 whose NVLink has 400 GB/s, not 600"),
    "h100": Gpu(989, 80, "NVIDIA H100 datasheet, SXM: 1,979 with sparsity"),
    "h200": Gpu(989, 141, "NVIDIA H200 datasheet, SXM: 1,979 with sparsity"),
    "b200": Gpu(2250, 180, "NVIDIA Blackwell datasheet, HGX B200: 4,500 with sparsity"),
}


class Forward(NamedTuple):
    """FLOP of one forward pass.

    weights    tokens times weights, adapters left out
    attention  tokens times tokens: scores, and values by them
    adapters   tokens times adapters
    once       part of `weights` that gradient checkpointing does not compute again
    """

    weights: int = 0
    attention: int = 0
    adapters: int = 0
    once: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.attention + self.adapters

    def __add__(self, other: Forward) -> Forward:  # type: ignore[override]  # element-wise, unlike a tuple's
        return Forward(*map(operator.add, self, other))


Shapes = Sequence[tuple[int, int]]
"""Linear layers as (numbers of a token that go in, that come out)."""


def linear(tokens: int, shapes: Shapes, rank: int = 0) -> Forward:
    """Linear layers outside blocks, with adapters of this rank (0: without)."""
    weights = sum(2 * tokens * into * out for into, out in shapes)
    adapters = sum(2 * tokens * rank * (into + out) for into, out in shapes)
    return Forward(weights, 0, adapters, weights)


def blocks(depth: int, tokens: int, width: int, shapes: Shapes, rank: int = 0) -> Forward:
    """Transformer blocks in which every token attends to every other.

    Recomputation of a block stops as soon as all that its gradients need is there (torch.utils.checkpoint):
    before its last layer, unless that has an adapter behind it.
    """
    inside = linear(tokens, shapes, rank)
    last = 0 if rank else linear(tokens, shapes[-1:]).weights
    one = Forward(inside.weights, 4 * tokens**2 * width, inside.adapters, last)
    return Forward(*(depth * part for part in one))


def vit_shapes(width: int, hidden: int) -> Shapes:
    """A vision transformer's block: queries, keys and values; projection; the two layers of its MLP."""
    return [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]


# Policies.


def policy_forward(policy: Policy, prompt: int = PROMPT_TOKENS) -> Forward:
    """FLOP of a policy query: one observation, one forward pass, one chunk of eight actions."""
    rank, llm = policy.lora.rank if policy.lora else 0, policy.llm
    patches = (policy.image_size // policy.encoders[0].patch_size) ** 2
    features = sum(encoder.hidden_size for encoder in policy.encoders)
    width, inner = llm.hidden_size, llm.intermediate_size
    fused = len(policy.encoders) == 2
    middle = 4 * features if fused else width
    projector = [(features, middle), (middle, width), *([(width, width)] if fused else [])]
    proprio = [(PROPRIO_DIM, width), (width, width)] if policy.proprio else []
    tokens = 1 + patches + policy.proprio + prompt + TOKENS + 1  # BOS first, stop last
    llama = [(width, width)] * 4 + [(width, inner), (width, inner), (inner, width)]
    parts = [_encoder(encoder, policy.image_size, rank) for encoder in policy.encoders]
    parts += [linear(patches, projector, rank), linear(1, proprio, rank)]
    parts += [blocks(llm.layers, tokens, width, llama, rank), linear(TOKENS, [(width, ACTION_ROWS)])]
    return sum(parts, Forward())


def _encoder(encoder: Encoder, image_size: int, rank: int) -> Forward:
    patches, width = (image_size // encoder.patch_size) ** 2, encoder.hidden_size
    tokens = patches + encoder.cls_token + encoder.registers
    shapes = vit_shapes(width, int(width * encoder.mlp_ratio))
    depth = encoder.depth + encoder.read_block + 1  # blocks behind the one that is read are not built
    return linear(patches, [(3 * encoder.patch_size**2, width)]) + blocks(depth, tokens, width, shapes, rank)


def learning(policy: Policy, prompt: int = PROMPT_TOKENS) -> int:
    """FLOP to learn from a query: forward, recomputed with gradient checkpointing, and backward.

    The backward pass takes a product for the gradient of each layer's input, and one for that of its weights
    if they are trained. So training all weights takes 3 times the forward pass, 4 times with checkpointing
    (less what is not recomputed); frozen weights under adapters take 2 and 3 times. Attention and adapters
    always need both products.
    """
    forward = policy_forward(policy, prompt)
    flop = 2 * forward.weights + 3 * (forward.attention + forward.adapters)
    if policy.lora is None:
        flop += forward.weights
    if policy.gradient_checkpointing:
        flop += forward.total - forward.once
    return flop


# World models.


class Architecture(NamedTuple):
    """A world model's vision transformer.

    hidden   width of the MLP
    tubelet  frames that make a layer of patches; 0: each frame goes through the network alone
    extra    tokens beside the patches (a class token)
    """

    width: int
    hidden: int
    depth: int
    patch: int
    tubelet: int = 0
    extra: int = 0


ARCHITECTURES = {  # by hub id, from their config.json
    "facebook/vjepa2-vitg-fpc64-384": Architecture(1408, 6144, 40, 16, tubelet=2),
    "facebook/vjepa2-vitl-fpc64-256": Architecture(1024, 4096, 24, 16, tubelet=2),
    "facebook/dinov2-large": Architecture(1024, 4096, 24, 14, extra=1),
    "openai/clip-vit-large-patch14": Architecture(1024, 4096, 24, 14, extra=1),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": Architecture(1280, 5120, 32, 14, extra=1),
    "google/siglip-large-patch16-256": Architecture(1024, 4096, 24, 16),
}


def architecture(model: WorldModel) -> Architecture | None:
    """A world model's network; None: its checkpoint is not among those known here."""
    if (made := model.pretraining) is not None:  # a V-JEPA 2 with transformers' default MLP and tubelet
        return Architecture(made.hidden_size, 4 * made.hidden_size, made.depth, made.patch_size, tubelet=2)
    return ARCHITECTURES.get(model.checkpoint or "")


def encoding(model: WorldModel) -> int | None:
    """FLOP of the embedding of one video; 0 of pixels; None: unknown (`architecture`)."""
    if model.kind == "pixel":
        return 0
    if (vit := architecture(model)) is None:
        return None
    patches = (model.image_size // vit.patch) ** 2
    layers, clips = (model.frames // vit.tubelet, 1) if vit.tubelet else (1, model.frames)
    embed = linear(layers * patches, [(3 * max(vit.tubelet, 1) * vit.patch**2, vit.width)])
    shapes = vit_shapes(vit.width, vit.hidden)
    clip = embed + blocks(vit.depth, layers * patches + vit.extra, vit.width, shapes)
    return clips * clip.total
