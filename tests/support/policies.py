"""A policy of a few thousand parameters for tests, of the same architecture as the real ones."""

from __future__ import annotations

import numpy as np
import torch

from srpo.config import Encoder, LanguageModel, Policy
from srpo.policies.checkpoints import create_policy
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.policies.prompts import make_tokenizer

SUITE = "libero_goal"
INSTRUCTIONS = ["turn on the stove", "put the bowl on the plate", "open the middle drawer of the cabinet"]
STATISTICS = {
    SUITE: {
        "action": {"q01": [-0.5] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]},
        "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8},
    }
}
ENCODER = Encoder(
    patch_size=8,
    hidden_size=16,
    depth=2,
    heads=2,
    mlp_ratio=2.0,
    registers=0,
    cls_token=False,
    layer_scale=False,
    read_block=-1,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
)


LLM = LanguageModel(
    hidden_size=16,
    intermediate_size=32,
    layers=2,
    heads=2,
    vocab_size=640,
    padding=8,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
)


def small_settings(**changes: object) -> Policy:
    values = dict(
        name="small",
        checkpoint=None,
        revision=None,
        image_size=16,
        crop_area=1.0,
        proprio=True,
        learned_placeholders=True,
        encoders=(ENCODER,),
        llm=LLM,
    )
    return Policy(**(values | changes))  # type: ignore[arg-type]


def small_policy(seed: int = 0, **changes: object) -> OpenVLAOFT:
    settings = small_settings(**changes)
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(INSTRUCTIONS, settings.llm.vocab_size - 256)
    policy = create_policy(settings, tokenizer, STATISTICS)
    with torch.no_grad():  # larger than the usual start, so that outputs differ visibly
        for parameter in policy.parameters():
            parameter.mul_(3).add_(0.02 * torch.randn_like(parameter))
    return policy.eval()


def observations(count: int, seed: int = 0) -> tuple[np.ndarray, list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    words = [INSTRUCTIONS[k % len(INSTRUCTIONS)] for k in range(count)]
    return images, words, rng.normal(size=(count, 8)).astype(np.float32)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two policies' weights."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)
