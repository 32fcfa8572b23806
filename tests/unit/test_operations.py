"""Counted operations: against PyTorch's own counter of what small networks do, and by hand at full size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model, VJEPA2Model

from srpo.cluster.operations import ARCHITECTURES, Architecture, encoding, learning, policy_forward
from srpo.config import Lora, WorldModel, read_yaml
from srpo.config.resolve import CONFIGS
from srpo.episode import TOKENS
from srpo.policies.__main__ import POLICIES, read_policy
from srpo.world_models.pretraining.jepa import architecture
from support.policies import ENCODER, SUITE, observations, small_policy, small_settings

LORA = Lora(rank=2, alpha=4.0)


def counted(work: Any) -> int:
    """FLOP that PyTorch counts: attention as two products, since it leaves out the CPU's fused kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_checkpointing": True},
        {"lora": LORA},
        {"lora": LORA, "gradient_checkpointing": True},
        {"encoders": (ENCODER, ENCODER), "gradient_checkpointing": True, "proprio": False},
    ],
)
def test_policy_against_pytorchs_counter(changes: dict[str, Any]) -> None:
    policy, settings = small_policy(**changes), small_settings(**changes)
    policy.make_trainable()
    inputs = policy.prepare_inputs(SUITE, *observations(1))
    prompt = inputs.ids.shape[1]

    def act() -> None:
        with torch.no_grad():
            policy.action_logits(inputs)

    def learn() -> None:
        log_probs, entropy = policy.log_probs(inputs, torch.zeros(1, TOKENS, dtype=torch.long), 1.0)
        (log_probs.sum() + entropy.sum()).backward()

    assert policy_forward(settings, prompt).total == pytest.approx(counted(act), rel=0.01)
    assert learning(settings, prompt) == pytest.approx(counted(learn), rel=0.03)


def world_model(name: str, **changes: Any) -> WorldModel:
    values = read_yaml(CONFIGS / f"world_models/{name}.yaml")["world_model"]
    return WorldModel.model_validate({"name": name, **values, **changes})


def test_video_encoder_against_pytorchs_counter() -> None:
    settings = world_model("vjepa2-tiny")
    assert settings.pretraining is not None
    encoder = VJEPA2Model(architecture(settings, settings.pretraining)).encoder.eval()
    clip = torch.zeros(1, settings.frames, 3, settings.image_size, settings.image_size)
    with torch.no_grad():
        assert encoding(settings) == pytest.approx(counted(lambda: encoder(clip)), rel=0.01)


def test_picture_encoder_against_pytorchs_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    size = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=4, patch_size=14)
    model = Dinov2Model(Dinov2Config(**size, image_size=56)).eval()
    monkeypatch.setitem(ARCHITECTURES, "small/dinov2", Architecture(48, 192, 3, 14, extra=1))
    settings = world_model("dinov2", checkpoint="small/dinov2", image_size=56, frames=5)
    pictures = torch.zeros(5, 3, 56, 56)  # one at a time, so five times as much
    with torch.no_grad():
        assert encoding(settings) == pytest.approx(counted(lambda: model(pictures)), rel=0.01)


def test_query_of_7b_by_hand() -> None:
    policy = read_policy(POLICIES / "openvla-7b.yaml")
    forward = policy_forward(policy)
    # Llama: 344 tokens (BOS, 256 patches, 30 of the prompt, 56 actions, stop) times 32 blocks of
    # 4 · 4096² + 3 · 4096 · 11008 = 202.4 M weights: 2 · 344 · 6.476 G = 4.456 T
    # DINOv2: 261 tokens, 23 blocks of 12 · 1024² = 12.58 M: 2 · 261 · 289.4 M = 0.151 T
    # SigLIP: 256 tokens, 26 blocks of 4 · 1152² + 2 · 1152 · 4304 = 15.22 M: 2 · 256 · 395.8 M = 0.203 T
    # projector: 2 · 256 · (2176 · 8704 + 8704 · 4096 + 4096²) = 2 · 256 · 71.37 M = 0.037 T
    assert forward.weights == pytest.approx(4.456e12 + 0.151e12 + 0.203e12 + 0.037e12, rel=1e-3)
    # 4 · tokens² · width · blocks: 62.0 G + 6.4 G + 7.9 G
    assert forward.attention == pytest.approx(76.3e9, rel=1e-2)
    # Llama: 2 · 344 · 32 · 32 · (4 · 8192 + 3 · 15104) = 55.0 G; DINOv2 6.3 G, SigLIP 7.6 G, projector 0.5 G
    assert forward.adapters == pytest.approx(69.4e9, rel=1e-2)
    whole = policy.model_copy(update={"lora": None})
    assert policy_forward(whole).total == pytest.approx(4.92e12, rel=1e-3)
    # Adapters, checkpoints: the frozen weights three times, all else four times.
    assert learning(policy) == pytest.approx(3 * 4.847e12 + 4 * 0.146e12, rel=5e-3)
    # All weights: four times, but each block's last layer three times: of Llama 22% (45.1 M of 202.4 M).
    assert learning(whole) == pytest.approx(4 * 4.92e12 - 0.22 * 4.456e12 - 0.13e12, rel=5e-3)
    # Without checkpoints nothing is computed twice.
    kept = whole.model_copy(update={"gradient_checkpointing": False})
    assert learning(kept) == pytest.approx(3 * 4.923e12, rel=1e-3)


def test_encoders_of_t3_by_hand() -> None:
    # ViT-g/384, 64 frames: 32 · 24² = 18,432 tokens; 40 · (4 · 1408² + 2 · 1408 · 6144) = 1.009 G weights
    # 2 · 18432 · 1.009 G = 37.2 T, attention 4 · 18432² · 1408 · 40 = 76.5 T, patches 0.1 T
    assert encoding(world_model("vjepa2-vitg")) == pytest.approx(113.8e12, rel=1e-3)
    # ViT-L/256: 32 · 16² = 8,192 tokens; 24 · 12 · 1024² = 302 M: 2 · 8192 · 302 M = 4.95 T;
    # 4 · 8192² · 1024 · 24 = 6.60 T
    assert encoding(world_model("vjepa2-vitl")) == pytest.approx(11.55e12, rel=5e-3)
    # ViT-H/14: 64 pictures of 257 tokens; 32 · 12 · 1280² = 629 M: 64 · 2 · 257 · 629 M = 20.7 T;
    # 64 · 4 · 257² · 1280 · 32 = 0.69 T
    assert encoding(world_model("imagebind")) == pytest.approx(21.4e12, rel=5e-3)
    assert encoding(world_model("pixel")) == 0
    assert encoding(world_model("dinov2", checkpoint="somebody/else")) is None
