"""OpenVLA-OFT with discrete action tokens, from about a million parameters to seven billion.

One forward pass predicts a whole chunk of eight actions: the sequence

    BOS | image patches | (proprioception) | prompt | 56 action placeholders | stop

goes through a Llama with *bidirectional* attention, and the hidden state before each placeholder gives the
logits of its action token (OpenVLA-OFT, arXiv 2502.19645; a causal mask costs the released checkpoints a
third of their success). Module names are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
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
from transformers.utils.logging import disable_progress_bar

from srpo import config as settings
from srpo.episode import ACTION_DIM, CHUNK, PROPRIO_DIM, TOKENS
from srpo.policies import action_tokens, weights
from srpo.policies.lora import LoraLinear
from srpo.policies.pictures import Preparation
from srpo.policies.processing import LONE_SPACE, SPACE, prepare_prompts
from srpo.policies.vision import VisionTransformer
from srpo.policies.weights import CheckpointError, check, fill, is_adapter, read_index, read_json, unread
from srpo.runtime.distributed import gather_full
from srpo.runtime.files import atomic_directory, write_json

MODEL_TYPE = "srpo_openvla_oft"
OPENVLA = "openvla"
"""The model types of the two layouts of checkpoints."""
RUNNING = {"name", "checkpoint", "revision", "dtype", "gradient_checkpointing", "lora"}
"""Settings of a policy that say how it is held and trained, not what it is."""

disable_progress_bar()  # transformers' bars for loading and saving, noise in a log


class OpenVLAOFTConfig(PreTrainedConfig):
    """What a checkpoint's config.json says.

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

    pixels  uint8 (N, size, size, 3), as `srpo.policies.pictures` prepares them
    ids     int64 (N, L) prompt tokens, padded on the left; mask bool (N, L)
    proprio float32 (N, 8) normalised to [-1, 1], or None for a policy without proprioception
    padded  whether the mask hides anything; known without asking the GPU
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
        """On a GPU, without waiting for what it is doing: from memory that it reads itself."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            if device.type == "cuda" and tensor.device.type == "cpu":
                tensor = tensor.pin_memory()
            return tensor.to(device, non_blocking=True)

        proprio = None if self.proprio is None else moved(self.proprio)
        return Inputs(moved(self.pixels), moved(self.ids), moved(self.mask), proprio, self.padded)


class _VisionBackbone(nn.Module):
    def __init__(self, policy: settings.Policy) -> None:
        super().__init__()
        encoders = [VisionTransformer(e.model_dump(), policy.image_size) for e in policy.encoders]
        self.featurizer = encoders[0]
        self.fused_featurizer = encoders[1] if len(encoders) == 2 else None

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """uint8 (N, size, size, 3) → features (N, patches, widths side by side)."""
        # Divided by a tensor: CUDA multiplies by a number's reciprocal, whose last bits differ.
        pixels = pictures.permute(0, 3, 1, 2).float() / torch.full((), 255.0, device=pictures.device)
        features: torch.Tensor = self.featurizer(pixels)
        if self.fused_featurizer is None:
            return features
        return torch.cat([features, self.fused_featurizer(pixels)], dim=2)


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
    """Draw from N × T distributions, float32 (N, T, K) log-probabilities on the CPU; int64 (N, T).

    Each of the N has a generator of its own, of which it takes T numbers, whatever the others are: a draw is
    where its number falls among the cumulated probabilities.
    """
    cumulated = log_p.exp().cumsum(-1, dtype=torch.float64)
    cumulated = cumulated / cumulated[..., -1:]  # ends at 1, which no number reaches
    shape = (log_p.shape[1], 1)
    numbers = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generators])
    return torch.searchsorted(cumulated, numbers, right=True)[..., 0]


class OpenVLAOFT(PreTrainedModel):
    """The policy. `tokenizer` travels with it: `load_policy` and `save_policy` keep both in one folder."""

    config_class = OpenVLAOFTConfig
    _supports_sdpa = True
    _no_split_modules: ClassVar = ["LlamaDecoderLayer", "_Block"]  # what FSDP gathers at a time
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
            layer.self_attn.is_causal = (
                False  # and the kernels must not add causality where no mask is needed
            )
        self.post_init()

    def make_trainable(self, freeze_vision: bool = False) -> None:
        """Get ready for training as the settings say: with adapters alone, with blocks computed twice.

        Neither changes what the policy computes. Seed torch first: adapters start at random times zero.

        Args:
            freeze_vision: leave the vision encoders and their projector as they are.

        Raises:
            ValueError: whole weights in bfloat16, which would round most updates away.
        """
        frozen = ("vision_backbone.", "projector.") if freeze_vision else ()
        if self.settings.lora is not None:
            linear = [
                name
                for name, part in self.named_modules()
                # The output matrix is read by rows, not called.
                if isinstance(part, nn.Linear) and name != "language_model.lm_head"
            ]
            self.add_adapters(name for name in linear if not name.startswith(frozen))
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(is_adapter(name))
        elif self.settings.dtype == "bfloat16":
            raise ValueError(
                "policy.dtype bfloat16 cannot be trained whole: its updates would be rounded away; "
                "set policy.lora, or policy.dtype float32"
            )
        for name, parameter in self.named_parameters():
            if name.startswith(frozen):
                parameter.requires_grad_(False)
        if self.settings.gradient_checkpointing:
            for block in [part for part in self.modules() if type(part).__name__ in self._no_split_modules]:
                # transformers' own checkpointing is off in evaluation mode, in which policies are trained.
                block.forward = partial(
                    checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
                )

    def add_adapters(self, names: Iterable[str]) -> None:
        """Put adapters beside the linear layers of these names that have none yet."""
        lora = self.settings.lora
        assert lora is not None
        for name in names:
            part = self.get_submodule(name)
            if not isinstance(part, LoraLinear):
                self.set_submodule(name, LoraLinear(part, lora.rank, lora.alpha))

    def merged_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights by their checkpoint names, adapters added in and rounded to the weights' precision."""
        merged = {name: t for name, t in self.state_dict().items() if not is_adapter(name)}
        for path, part in self.named_modules():
            if isinstance(part, LoraLinear):
                merged[f"{path}.weight"] = part.merged.detach()
        return merged

    def prepare(
        self,
        suite: str,
        images: NDArray[np.uint8],
        instructions: Sequence[str],
        proprio: NDArray[np.float32],
    ) -> Inputs:
        """Observations (N pictures, instructions, proprioceptions) as the network's inputs, on the CPU."""
        pictures = np.stack([self.preparation(image) for image in images])
        return self.inputs(suite, pictures, instructions, proprio)

    @property
    def preparation(self) -> Preparation:
        """How a rendered picture becomes what the policy sees."""
        return Preparation(self.settings.image_size, self.settings.crop_area, self.settings.jpeg)

    def inputs(
        self,
        suite: str,
        pictures: NDArray[np.uint8],
        instructions: Sequence[str],
        proprio: NDArray[np.float32],
    ) -> Inputs:
        """`prepare` with pictures that have gone through `preparation`."""
        ids, mask = prepare_prompts(self.tokenizer, instructions)
        felt = None
        if self.settings.proprio:
            statistics = self.statistics(suite)["proprio"]
            felt = torch.from_numpy(action_tokens.normalise(proprio, statistics)).float()
        return Inputs(torch.from_numpy(pictures), ids, mask, felt, not bool(mask.all()))

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (N, size, size, 3) → projected patches (N, patches, llm width)."""
        projected: torch.Tensor = self.projector(self.vision_backbone(pixels))
        return projected

    def action_logits(self, inputs: Inputs, patches: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the 256 action tokens at the 56 positions, float32 (N, 56, 256).

        Args:
            patches: the result of `encode_images`, if it is at hand already.
        """
        if patches is None:
            patches = self.encode_images(inputs.pixels)
        embed = self.language_model.get_input_embeddings()
        batch = len(inputs)
        # Filled there: a copy to a GPU would wait for all that it has yet to do.
        special = torch.stack([inputs.ids.new_full((), token) for token in (self._bos, self._eos)])
        bos, stop = embed(special).to(patches.dtype)[:, None, None].expand(-1, batch, 1, -1)
        prefix = [bos, patches]
        if self.proprio_projector is not None:
            assert inputs.proprio is not None
            felt = inputs.proprio.to(self.proprio_projector.fc1.weight.dtype)
            prefix.append(self.proprio_projector(felt)[:, None].to(patches.dtype))
        if self.placeholders is None:
            holes = patches.new_zeros(batch, TOKENS, patches.shape[2])
        else:
            holes = self.placeholders.to(patches.dtype).expand(batch, -1, -1)
        words = embed(inputs.ids).to(patches.dtype)
        sequence = torch.cat([*prefix, words, holes, stop], dim=1)

        ahead, behind = sum(part.shape[1] for part in prefix), TOKENS + 1
        mask = F.pad(inputs.mask, (ahead, behind), value=True)
        length = mask.shape[1]
        # Positions count real tokens only, so that padding changes nothing.
        positions = mask.long().cumsum(1) - 1
        hidden = self.language_model.model(
            inputs_embeds=sequence,
            # In attention's own shape: transformers would look what it hides, and wait for the GPU.
            attention_mask=mask[:, None, None].expand(-1, 1, length, -1) if inputs.padded else None,
            position_ids=positions,
        ).last_hidden_state
        start = length - behind - 1
        # Only the action positions go through the output matrix, and only its action rows: token k is row
        # vocab_size - 1 - k.
        vocab = self.settings.llm.vocab_size
        rows = self.language_model.lm_head.weight[vocab - action_tokens.BINS : vocab].flip(0)
        return F.linear(hidden[:, start : start + TOKENS], rows).float()

    def forward(self, inputs: Inputs, patches: torch.Tensor | None = None) -> torch.Tensor:
        """`action_logits`: what FSDP wraps, so all else goes through it."""
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
            temperature: 0 is greedy.
            generators: one CPU generator for each observation, so that an episode's draws are its own.

        Returns:
            tokens int64 (N, 56) and their log-probabilities float32 (N, 56) (zeros when greedy).

        Raises:
            FloatingPointError: the logits are not finite; greedy decoding would hide it.
        """
        logits = self(inputs.to(self.device)).cpu()
        if not torch.isfinite(logits).all():
            raise FloatingPointError("the policy's logits are not finite: its weights are broken")
        if temperature == 0:
            return logits.argmax(-1).numpy(), np.zeros(logits.shape[:2], np.float32)
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
        """The action and proprio statistics of a suite, as its name or as `{suite}_no_noops`.

        Raises CheckpointError, listing the keys, when there are none.
        """
        stats: dict[str, Any] = self.config.norm_stats or {}
        for key in (suite, f"{suite}_no_noops"):
            if key in stats:
                return stats[key]
        raise CheckpointError(f"this policy has action statistics for {sorted(stats)}, not for {suite!r}")

    @property
    def _bos(self) -> int:
        return 1 if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def _eos(self) -> int:
        return 2 if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id


def create_policy(
    policy: settings.Policy, tokenizer: PreTrainedTokenizerFast, norm_stats: dict[str, Any]
) -> OpenVLAOFT:
    """A policy with random weights (seed torch first)."""
    room = policy.llm.vocab_size - action_tokens.BINS
    if len(tokenizer) > room:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens; llm.vocab_size {policy.llm.vocab_size} leaves "
            f"{room} beside the action tokens"
        )
    model = OpenVLAOFT(OpenVLAOFTConfig(policy=policy.model_dump(mode="json"), norm_stats=norm_stats))
    model.tokenizer = tokenizer
    return model


def save_policy(model: OpenVLAOFT, folder: Path, writer: bool = True) -> None:
    """Write weights (safetensors), configuration, statistics and tokenizer as one folder, atomically.

    Adapters are kept beside the weights: most of what reinforcement learning changes is smaller than the
    distance between two bfloat16 numbers, and merging would round it away.

    Of a distributed run's processes all call, since weights may be spread over them; the `writer` writes.
    """
    tensors = gather_full(model.state_dict(), writer)
    if not writer:
        return
    with atomic_directory(folder) as temporary:
        model.save_pretrained(temporary, state_dict=tensors, max_shard_size="5GB")
        model.tokenizer.save_pretrained(temporary)


def save_openvla(model: OpenVLAOFT, folder: Path) -> None:
    """Write a policy that came from OpenVLA's layout in that layout, atomically.

    Adapters are merged: that layout has none. The parts of the vision transformers that nobody reads were not
    loaded; they are written as zeros.

    Raises:
        CheckpointError: the policy did not come from OpenVLA's layout, whose config.json names timm models.
    """
    if model.config.openvla is None:
        raise CheckpointError("only a policy that was loaded from OpenVLA's layout can be written in it")
    zeros = {name: torch.zeros(shape, dtype=model.dtype) for name, shape in unread(model.settings).items()}
    tensors = model.merged_state_dict() | zeros
    with atomic_directory(folder) as temporary:
        model.save_pretrained(temporary, state_dict=tensors, max_shard_size="5GB")
        model.tokenizer.save_pretrained(temporary)
        write_json(temporary / "config.json", model.config.openvla | {"norm_stats": model.config.norm_stats})


def load_policy(
    folder: Path, device: str | torch.device = "cpu", policy: settings.Policy | None = None
) -> OpenVLAOFT:
    """Load what `save_policy` wrote, or a checkpoint in OpenVLA's layout; nothing in it is executed.

    Weights go one by one to their device and precision (`policy.dtype`).

    Args:
        policy: the architecture of a checkpoint in OpenVLA's layout, which does not say it, and how it is
            held and trained (`dtype`, `lora`, `gradient_checkpointing`). None: as it was saved.

    Raises:
        CheckpointError: the folder is missing, of another architecture, or its tensors do not fit.
    """
    model, entries = open_policy(folder, policy)
    model.tokenizer = _load_tokenizer(folder)
    fill(model, entries, torch.device(device), getattr(torch, model.settings.dtype))
    return model


def open_policy(
    folder: Path, policy: settings.Policy | None = None
) -> tuple[OpenVLAOFT, dict[str, weights.Entry]]:
    """A checkpoint's policy on the meta device, and its tensors, which are checked and not read.

    Arguments and errors are `load_policy`'s.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is not a policy checkpoint: it has no config.json")
    description = read_json(folder / "config.json")
    kind = description.get("model_type")
    if kind not in (MODEL_TYPE, OPENVLA):
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type {kind!r} is not {MODEL_TYPE!r} or {OPENVLA!r}"
        )
    config = (_own if kind == MODEL_TYPE else _openvla)(description, folder, policy)
    with torch.device("meta"):
        model = OpenVLAOFT(config)
    entries = read_index(folder)
    adapted = [name.removesuffix(".lora_A") for name in entries if name.endswith(".lora_A")]
    if adapted:
        saved, wanted = description["policy"]["lora"], model.settings.lora
        if wanted is None or wanted.model_dump() != saved:
            raise CheckpointError(
                f"{folder} has adapters, which train on as they are: set policy.lora to {saved}, or merge "
                "them (srpo policy convert)"
            )
        known = dict(model.named_modules())
        model.add_adapters(name for name in adapted if isinstance(known.get(name), nn.Linear))
    try:
        check(entries, model, unread(model.settings) if kind == OPENVLA else {})
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return model.eval(), entries


def _own(description: dict[str, Any], folder: Path, policy: settings.Policy | None) -> OpenVLAOFTConfig:
    try:
        saved = settings.Policy.model_validate(description.get("policy"))
    except ValidationError as error:
        raise CheckpointError(f"{folder / 'config.json'}: policy: {error}") from None
    if policy is not None:
        theirs, ours = saved.model_dump(exclude=RUNNING), policy.model_dump(exclude=RUNNING)
        wrong = [f"{key} {theirs[key]} instead of {ours[key]}" for key in ours if theirs[key] != ours[key]]
        if wrong:
            raise CheckpointError(f"{folder} is of another architecture: {'; '.join(wrong)}")
    return OpenVLAOFTConfig(
        policy=(policy or saved).model_dump(mode="json"),
        norm_stats=description.get("norm_stats"),
        openvla=description.get("openvla"),
    )


def _openvla(description: dict[str, Any], folder: Path, policy: settings.Policy | None) -> OpenVLAOFTConfig:
    """Check what OpenVLA's config.json states against `policy`; shapes of tensors say the rest."""
    if policy is None:
        raise CheckpointError(
            f"{folder} is in OpenVLA's layout, which does not say its architecture: convert it first "
            f"(srpo policy convert {folder} OUT)"
        )
    llm, text = policy.llm, description.get("text_config", {})
    expected = {
        "image_sizes": [policy.image_size] * len(policy.encoders),
        "use_fused_vision_backbone": len(policy.encoders) == 2,
        "timm_override_act_layers": [None] * len(policy.encoders),
        "n_action_bins": action_tokens.BINS,
        "pad_to_multiple_of": llm.padding,
        "text_config.model_type": "llama",
        "text_config.vocab_size": llm.vocab_size + llm.padding,
        "text_config.hidden_size": llm.hidden_size,
        "text_config.intermediate_size": llm.intermediate_size,
        "text_config.num_hidden_layers": llm.layers,
        "text_config.num_attention_heads": llm.heads,
        "text_config.num_key_value_heads": llm.heads,
        "text_config.rms_norm_eps": llm.rms_norm_eps,
        "text_config.rope_theta": llm.rope_theta,
    }
    stated = description | {f"text_config.{key}": value for key, value in text.items()}
    wrong = [
        f"{key} {stated[key]} instead of {value}"
        for key, value in expected.items()
        if stated.get(key, value) != value
    ]
    if wrong:
        raise CheckpointError(f"{folder / 'config.json'} is of another architecture: {'; '.join(wrong)}")
    statistics = description.get("norm_stats") or {}
    beside = folder / "dataset_statistics.json"
    if beside.is_file():  # of the data that the policy was fine-tuned on
        statistics = statistics | read_json(beside)
    # `auto_map` names Python files of the checkpoint; nothing here reads them, and nothing shall later.
    kept = {key: value for key, value in description.items() if key not in ("norm_stats", "auto_map")}
    return OpenVLAOFTConfig(policy=policy.model_dump(mode="json"), norm_stats=statistics, openvla=kept)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json; fetch the checkpoint again")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded: {error}") from error
    vocabulary = tokenizer.get_vocab()
    if SPACE not in vocabulary and LONE_SPACE not in vocabulary:
        raise CheckpointError(f"{folder}: its tokenizer has no {LONE_SPACE!r}, with which prompts end")
    return tokenizer
