"""OpenVLA-OFT with discrete action tokens, from about a million parameters to seven billion.

One forward pass predicts a whole chunk of eight actions: the sequence

    BOS | image patches | (proprioception) | prompt | 56 action placeholders | EOS

goes through a Llama with *bidirectional* attention, and the hidden state before each placeholder gives the
logits of its action token (OpenVLA-OFT, arXiv 2502.19645; with a causal mask the released checkpoints lose a
third of their success rate). Module names are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from srpo import config as settings
from srpo.episode import ACTION_DIM, CHUNK, PROPRIO_DIM, TOKENS
from srpo.policies import action_tokens
from srpo.policies.images import ImageTransform
from srpo.policies.lora import LoraLinear
from srpo.policies.prompts import tokenise_prompts
from srpo.policies.vision import VisionTransformer
from srpo.policies.weights import CheckpointError, is_adapter

MODEL_TYPE = "srpo_openvla_oft"
"""Of a checkpoint in this project's layout, in its config.json."""


class OpenVLAOFTConfig(PreTrainedConfig):
    """The contents of a checkpoint's config.json.

    policy      a dumped `srpo.config.Policy`
    norm_stats  action and proprio statistics by suite
    openvla     the config.json of the OpenVLA checkpoint that the weights came from, if they did
    """

    model_type = MODEL_TYPE
    policy: dict | None = None
    norm_stats: dict | None = None
    openvla: dict | None = None


@dataclass(frozen=True)
class Inputs:
    """A prepared batch of N observations.

    pixels   uint8 (N, size, size, 3), after the transform of `srpo.policies.images`
    ids      int64 (N, L) prompt tokens, padded on the left; mask bool (N, L)
    proprio  float32 (N, 8) normalised to [-1, 1], or None for a policy without proprioception
    padded   whether the mask hides anything, known without a GPU synchronisation
    """

    pixels: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    proprio: torch.Tensor | None
    padded: bool

    def __getitem__(self, index: Any) -> Inputs:
        proprio = None if self.proprio is None else self.proprio[index]
        mask = self.mask[index]
        return Inputs(self.pixels[index], self.ids[index], mask, proprio, not bool(mask.all()))

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device) -> Inputs:
        """Copied to a device; to a GPU asynchronously, from pinned memory."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            if device.type == "cuda" and tensor.device.type == "cpu":
                tensor = tensor.pin_memory()
            return tensor.to(device, non_blocking=True)

        proprio = None if self.proprio is None else move(self.proprio)
        return Inputs(move(self.pixels), move(self.ids), move(self.mask), proprio, self.padded)


class _VisionBackbone(nn.Module):
    def __init__(self, policy: settings.Policy) -> None:
        super().__init__()
        encoders = [VisionTransformer(e.model_dump(), policy.image_size) for e in policy.encoders]
        self.featurizer = encoders[0]
        self.fused_featurizer = encoders[1] if len(encoders) == 2 else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (N, size, size, 3) → features (N, patches, sum of the encoders' widths)."""
        # Divided by a tensor: CUDA multiplies by the reciprocal of a Python number, whose last bits differ.
        scaled = pixels.permute(0, 3, 1, 2).float() / torch.full((), 255.0, device=pixels.device)
        features: torch.Tensor = self.featurizer(scaled)
        if self.fused_featurizer is None:
            return features
        return torch.cat([features, self.fused_featurizer(scaled)], dim=2)


class _Projector(nn.Module):
    """Vision features to the language model's width; OpenVLA's fused policies have a third layer."""

    def __init__(self, vision_width: int, llm_width: int, fused: bool) -> None:
        super().__init__()
        hidden = 4 * vision_width if fused else llm_width
        self.fc1 = nn.Linear(vision_width, hidden)
        self.fc2 = nn.Linear(hidden, llm_width)
        self.fc3 = nn.Linear(llm_width, llm_width) if fused else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.fc2(F.gelu(self.fc1(features)))
        return projected if self.fc3 is None else self.fc3(F.gelu(projected))


class _ProprioProjector(nn.Module):
    def __init__(self, llm_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(PROPRIO_DIM, llm_width)
        self.fc2 = nn.Linear(llm_width, llm_width)

    def forward(self, proprio: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.fc2(F.gelu(self.fc1(proprio)))
        return projected


def sample(log_p: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Sample from N × T distributions, float32 (N, T, K) log-probabilities on the CPU; int64 (N, T).

    By inversion of the cumulative distribution. Each of the N rows draws T uniform numbers from its own
    generator, so its samples do not depend on the other rows.
    """
    cumulative = log_p.exp().cumsum(-1, dtype=torch.float64)
    cumulative = cumulative / cumulative[..., -1:]  # ends at exactly 1, above every uniform number
    shape = (log_p.shape[1], 1)
    uniform = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generators])
    return torch.searchsorted(cumulative, uniform, right=True)[..., 0]


def skip(generator: torch.Generator, queries: int) -> None:
    """Put a generator where it is after `sample` has drawn the tokens of so many queries from it."""
    for _ in range(queries):
        torch.rand((TOKENS, 1), generator=generator, dtype=torch.float64)


def statistics_keys(suite: str) -> tuple[str, str]:
    """Where a suite's statistics may be in a checkpoint, the first first."""
    return suite, f"{suite}_no_noops"


class OpenVLAOFT(PreTrainedModel):
    """The policy. `srpo.policies.checkpoints` loads and saves it together with its `tokenizer`."""

    config_class = OpenVLAOFTConfig
    _supports_sdpa = True
    _no_split_modules: ClassVar = ["LlamaDecoderLayer", "_Block"]  # what FSDP shards and gathers
    tokenizer: PreTrainedTokenizerFast

    def __init__(self, config: OpenVLAOFTConfig) -> None:
        super().__init__(config)
        self.settings = settings.Policy.model_validate(config.policy)
        llm = self.settings.llm
        self.vision_backbone = _VisionBackbone(self.settings)
        vision_width = sum(encoder.hidden_size for encoder in self.settings.encoders)
        self.projector = _Projector(vision_width, llm.hidden_size, len(self.settings.encoders) == 2)
        self.proprio_projector = _ProprioProjector(llm.hidden_size) if self.settings.proprio else None
        self.placeholders = (
            nn.Parameter(torch.randn(TOKENS, llm.hidden_size) * 0.02)
            if self.settings.learned_placeholders
            else None
        )
        llama = LlamaConfig(
            vocab_size=llm.vocab_size + llm.padding,
            hidden_size=llm.hidden_size,
            intermediate_size=llm.intermediate_size,
            num_hidden_layers=llm.layers,
            num_attention_heads=llm.heads,
            rms_norm_eps=llm.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": llm.rope_theta},
            use_cache=False,
        )
        llama.is_causal = False  # transformers then builds bidirectional masks
        self.language_model = LlamaForCausalLM(llama)
        for layer in self.language_model.model.layers:
            layer.self_attn.is_causal = False  # kernels without a mask must not be causal either
        self.post_init()

    def make_trainable(self, freeze_vision: bool = False) -> None:
        """Prepare for training as configured: with LoRA adapters, with gradient checkpointing.

        Neither changes what the policy computes. Seed torch first: adapters are initialised at random.

        Args:
            freeze_vision: do not train the vision encoders and their projector.

        Raises:
            ValueError: full fine-tuning in bfloat16, which would round most updates away.
        """
        frozen = ("vision_backbone.", "projector.") if freeze_vision else ()
        if self.settings.lora is not None:
            linear = [
                name
                for name, part in self.named_modules()
                # `action_logits` reads rows of the output matrix and does not call the layer.
                if isinstance(part, nn.Linear) and name != "language_model.lm_head"
            ]
            self.add_adapters(name for name in linear if not name.startswith(frozen))
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(is_adapter(name))
        elif self.settings.dtype == "bfloat16":
            raise CheckpointError(
                "policy.dtype bfloat16 allows no full fine-tuning: its updates would be rounded away; "
                "set policy.lora, or policy.dtype float32"
            )
        for name, parameter in self.named_parameters():
            if name.startswith(frozen):
                parameter.requires_grad_(False)
        if self.settings.gradient_checkpointing:
            for block in [part for part in self.modules() if type(part).__name__ in self._no_split_modules]:
                # transformers' own checkpointing is off in evaluation mode, which policies are trained in.
                block.forward = partial(
                    checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
                )

    def add_adapters(self, names: Iterable[str]) -> None:
        """Add adapters to the linear layers of these names that have none yet."""
        lora = self.settings.lora
        assert lora is not None
        for name in names:
            part = self.get_submodule(name)
            if not isinstance(part, LoraLinear):
                self.set_submodule(name, LoraLinear(part, lora.rank, lora.alpha))

    def merged_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights by checkpoint name; those with adapters are merged, in float32."""
        merged = {name: t for name, t in self.state_dict().items() if not is_adapter(name)}
        for path, part in self.named_modules():
            if isinstance(part, LoraLinear):
                merged[f"{path}.weight"] = part.merged.detach()
        return merged

    @property
    def image_transform(self) -> ImageTransform:
        """From a rendered image to the policy's."""
        return ImageTransform(self.settings.image_size, self.settings.crop_area, self.settings.jpeg)

    def prepare_inputs(
        self,
        suite: str,
        images: NDArray[np.uint8],
        instructions: Sequence[str],
        proprio: NDArray[np.float32],
    ) -> Inputs:
        """Rendered images (N, H, H, 3), N instructions and proprioception (N, 8) as inputs, on the CPU."""
        pixels = np.stack([self.image_transform(image) for image in images])
        return self.build_inputs(suite, pixels, instructions, proprio)

    def build_inputs(
        self,
        suite: str,
        pixels: NDArray[np.uint8],
        instructions: Sequence[str],
        proprio: NDArray[np.float32],
    ) -> Inputs:
        """`prepare_inputs` of images (N, size, size, 3) that `image_transform` has already transformed."""
        ids, mask = tokenise_prompts(self.tokenizer, instructions)
        normalised = None
        if self.settings.proprio:
            statistics = self.statistics(suite)["proprio"]
            normalised = torch.from_numpy(action_tokens.normalise(proprio, statistics)).float()
        return Inputs(torch.from_numpy(pixels), ids, mask, normalised, not bool(mask.all()))

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (N, size, size, 3) → projected patches (N, patches, llm width)."""
        projected: torch.Tensor = self.projector(self.vision_backbone(pixels))
        return projected

    def action_logits(self, inputs: Inputs, patches: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the 256 action tokens at the 56 positions, float32 (N, 56, 256).

        Args:
            patches: the result of `encode_images`, if it is known already.
        """
        if patches is None:
            patches = self.encode_images(inputs.pixels)
        sequence, prefix_length = self._embed_sequence(inputs, patches)
        mask = F.pad(inputs.mask, (prefix_length, TOKENS + 1), value=True)
        length = mask.shape[1]
        # Positions count real tokens only, so that padding changes nothing.
        positions = mask.long().cumsum(1) - 1
        hidden = self.language_model.model(
            inputs_embeds=sequence,
            # In attention's own shape; transformers would inspect a 2-D mask and synchronise with the GPU.
            attention_mask=mask[:, None, None].expand(-1, 1, length, -1) if inputs.padded else None,
            position_ids=positions,
        ).last_hidden_state
        start = length - TOKENS - 2  # of the position before the first placeholder
        # Only the action positions go through the output matrix, and only its action rows: token k is row
        # vocab_size - 1 - k.
        vocab = self.settings.llm.vocab_size
        rows = self.language_model.lm_head.weight[vocab - action_tokens.BINS : vocab].flip(0)
        return F.linear(hidden[:, start : start + TOKENS], rows).float()

    def _embed_sequence(self, inputs: Inputs, patches: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The language model's input embeddings (N, T, width), and how many of them precede the prompt."""
        embed = self.language_model.get_input_embeddings()
        batch, dtype = len(inputs), patches.dtype
        # Filled on the device: a copy to a GPU would wait until the GPU is idle.
        special = torch.stack([inputs.ids.new_full((), token) for token in (self._bos, self._eos)])
        bos, eos = embed(special).to(dtype)[:, None, None].expand(-1, batch, 1, -1)
        prefix = [bos, patches]
        if self.proprio_projector is not None:
            assert inputs.proprio is not None
            proprio = inputs.proprio.to(self.proprio_projector.fc1.weight.dtype)
            prefix.append(self.proprio_projector(proprio)[:, None].to(dtype))
        prompt = embed(inputs.ids).to(dtype)
        if self.placeholders is None:
            action_placeholders = patches.new_zeros(batch, TOKENS, patches.shape[2])
        else:
            action_placeholders = self.placeholders.to(dtype).expand(batch, -1, -1)
        sequence = torch.cat([*prefix, prompt, action_placeholders, eos], dim=1)
        return sequence, sum(part.shape[1] for part in prefix)

    def forward(self, inputs: Inputs, patches: torch.Tensor | None = None) -> torch.Tensor:
        """`action_logits`, as the method that FSDP wraps: the other methods call the model."""
        return self.action_logits(inputs, patches)

    def log_probs(
        self, inputs: Inputs, tokens: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of `tokens` int64 (N, 56) and the entropy, both (N, 56), at `temperature`.

        Both are over the 256 action tokens only, as in the published training code.
        """
        log_p = torch.log_softmax(self(inputs) / temperature, dim=-1)
        chosen = log_p.gather(-1, tokens[..., None])[..., 0]
        return chosen, -(log_p.exp() * log_p).sum(-1)

    @torch.inference_mode()
    def act(
        self,
        inputs: Inputs,
        temperature: float,
        generators: Sequence[torch.Generator] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Choose the tokens of one chunk for each observation.

        Args:
            temperature: 0 is greedy; of tokens that are equally likely, as many are in bfloat16, the one with
                the lowest id of the language model, as in OpenVLA-OFT.
            generators: one CPU generator for each observation, so that an episode's samples are its own.

        Returns:
            tokens int64 (N, 56) and their log-probabilities float32 (N, 56) (zeros when greedy).

        Raises:
            FloatingPointError: the logits are not finite, which greedy decoding would hide.
        """
        logits = self(inputs.to(self.device)).cpu()
        if not torch.isfinite(logits).all():
            raise FloatingPointError("the policy's logits are not finite: its weights are broken")
        if temperature == 0:
            # The first maximum from the end, since ids fall as tokens rise.
            highest = action_tokens.BINS - 1 - logits.flip(-1).argmax(-1)
            return highest.numpy(), np.zeros(logits.shape[:2], np.float32)
        if generators is None or len(generators) != len(inputs):
            raise ValueError(f"sampling {len(inputs)} observations needs as many generators")
        log_p = torch.log_softmax(logits / temperature, dim=-1)
        tokens = sample(log_p, generators)
        return tokens.numpy(), log_p.gather(-1, tokens[..., None])[..., 0].numpy()

    def actions(self, suite: str, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Tokens (N, 56) as LIBERO actions, float64 (N, 8, 7)."""
        values = action_tokens.decode(tokens).reshape(-1, CHUNK, ACTION_DIM)
        statistics = self.statistics(suite)["action"]
        return action_tokens.to_libero(action_tokens.unnormalise(values, statistics))

    def statistics(self, suite: str) -> dict[str, Any]:
        """The action and proprio statistics of a suite, under its name or `{suite}_no_noops`.

        Raises CheckpointError, listing the keys, when there are none.
        """
        stats: dict[str, Any] = self.config.norm_stats or {}
        for key in statistics_keys(suite):
            if key in stats:
                return stats[key]
        raise CheckpointError(f"this policy has action statistics for {sorted(stats)}, not for {suite!r}")

    @property
    def _bos(self) -> int:
        return 1 if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def _eos(self) -> int:
        return 2 if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id
