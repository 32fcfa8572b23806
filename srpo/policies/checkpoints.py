"""Policies as folders: loading, checking and saving them, in this project's layout or in OpenVLA's.

Nothing in a checkpoint is executed: only JSON and safetensors files are read (`srpo.policies.weights`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from srpo.config import SUITES, Policy
from srpo.episode import ACTION_DIM, PROPRIO_DIM
from srpo.policies import action_tokens
from srpo.policies.openvla_oft import MODEL_TYPE, OpenVLAOFT, OpenVLAOFTConfig, statistics_keys
from srpo.policies.prompts import LONE_SPACE, SPACE
from srpo.policies.weights import (
    CheckpointError,
    TensorEntry,
    check_tensors,
    is_adapter,
    load_tensors,
    read_index,
    read_json,
    unread_tensors,
    write_tensors,
)
from srpo.runtime.distributed import nbytes, shared_directory
from srpo.runtime.files import atomic_directory, full_disk_told, write_json

OPENVLA = "openvla"
"""Model type of a checkpoint in OpenVLA's layout."""
TRAINING_SETTINGS = {"name", "checkpoint", "revision", "dtype", "gradient_checkpointing", "lora"}
"""Settings of a policy that do not belong to its architecture."""

disable_progress_bar()  # transformers' bars for loading and saving clutter a log


def create_policy(
    policy: Policy, tokenizer: PreTrainedTokenizerFast, norm_stats: dict[str, Any]
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

    Adapters are not merged: most updates of reinforcement learning are smaller than the distance between two
    bfloat16 numbers, and merging would round them away.

    All processes of a distributed run must call, for their shards of the weights: the `writer`, the first,
    writes every file.
    """
    tensors = model.state_dict()
    with full_disk_told(folder, nbytes(tensors)), shared_directory(folder) as temporary:
        write_tensors(tensors, temporary)
        if writer:
            model.config.save_pretrained(temporary)
            model.tokenizer.save_pretrained(temporary)


def save_openvla(model: OpenVLAOFT, folder: Path) -> None:
    """Write a policy that was loaded from OpenVLA's layout in that layout, atomically.

    Adapters are merged, since that layout has none, and merged weights are float32, whatever the others are.
    The unused parts of the vision transformers were not loaded and are written as zeros.

    Raises:
        CheckpointError: the policy was not loaded from OpenVLA's layout, whose config.json names timm models.
    """
    if model.config.openvla is None:
        raise CheckpointError("only a policy that was loaded from OpenVLA's layout can be written in it")
    unread = unread_tensors(model.settings)
    zeros = {name: torch.zeros(shape, dtype=model.dtype) for name, shape in unread.items()}
    tensors = model.merged_state_dict() | zeros
    with full_disk_told(folder, nbytes(tensors)), atomic_directory(folder) as temporary:
        write_tensors(tensors, temporary)
        model.tokenizer.save_pretrained(temporary)
        write_json(temporary / "config.json", model.config.openvla | {"norm_stats": model.config.norm_stats})


def is_openvla(folder: Path) -> bool:
    """Whether a checkpoint folder is in OpenVLA's layout."""
    file = folder / "config.json"
    return file.is_file() and read_json(file).get("model_type") == OPENVLA


def load_policy(
    folder: Path,
    device: str | torch.device = "cpu",
    policy: Policy | None = None,
    prepare: Callable[[OpenVLAOFT], None] | None = None,
    as_stored: bool = False,
) -> OpenVLAOFT:
    """Load what `save_policy` wrote, or a checkpoint in OpenVLA's layout.

    Weights are moved one by one to their device and precision (`policy.dtype`).

    Args:
        policy: the architecture, which OpenVLA's layout does not contain, and how the policy is held and
            trained (`dtype`, `lora`, `gradient_checkpointing`). None: as it was saved.
        prepare: called with the policy on the meta device; what it shards (`srpo.runtime.distributed.shard`)
            is read by each process in part.
        as_stored: to be saved again, not to be run: weights that are stored in bfloat16 stay so, whatever
            `policy.dtype`.

    Raises:
        CheckpointError: the folder is missing, of another architecture, its tensors do not fit or are not
            finite, or its statistics of a LIBERO suite cannot be used.
    """
    model, entries = open_policy(folder, policy)
    model.tokenizer = _load_tokenizer(folder)
    if prepare is not None:
        prepare(model)
    dtype = getattr(torch, model.settings.dtype)
    if as_stored and all(entry.dtype == "BF16" or is_adapter(name) for name, entry in entries.items()):
        dtype = torch.bfloat16
    load_tensors(model, entries, torch.device(device), dtype)
    return model


def open_policy(folder: Path, policy: Policy | None = None) -> tuple[OpenVLAOFT, dict[str, TensorEntry]]:
    """A checkpoint's policy on the meta device, and its tensors, which are checked but not read.

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
    config = (_saved_config if kind == MODEL_TYPE else _openvla_config)(description, folder, policy)
    _require_statistics(config, folder)
    with torch.device("meta"):
        model = OpenVLAOFT(config)
    entries = read_index(folder)
    adapted = [name.removesuffix(".lora_A") for name in entries if name.endswith(".lora_A")]
    if adapted:
        saved, wanted = description["policy"]["lora"], model.settings.lora
        if wanted is None or wanted.model_dump() != saved:
            merge = ", or merge them (srpo policy convert)" if config.openvla is not None else ""
            raise CheckpointError(
                f"{folder} has adapters, whose settings cannot change: set policy.lora to {saved}{merge}"
            )
        known = dict(model.named_modules())
        model.add_adapters(name for name in adapted if isinstance(known.get(name), nn.Linear))
    try:
        check_tensors(entries, model, unread_tensors(model.settings) if kind == OPENVLA else {})
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return model.eval(), entries


def _require_statistics(config: OpenVLAOFTConfig, folder: Path) -> None:
    """Check the statistics of LIBERO's suites; a checkpoint may have those of other robots too."""
    stats: Any = config.norm_stats or {}
    if not isinstance(stats, dict):
        raise CheckpointError(
            f"{folder / 'config.json'}: norm_stats is no object; fetch the checkpoint again"
        )
    sizes = {"action": ACTION_DIM}
    if config.policy is not None and config.policy["proprio"]:
        sizes["proprio"] = PROPRIO_DIM
    for key in [key for suite in SUITES for key in statistics_keys(suite) if key in stats]:
        for kind, size in sizes.items():
            part = stats[key].get(kind) if isinstance(stats[key], dict) else None
            try:
                action_tokens.require_statistics(part, size)
            except ValueError as error:
                raise CheckpointError(
                    f"{folder}: norm_stats.{key}.{kind}: {error}; correct config.json (or "
                    "dataset_statistics.json), or fetch the checkpoint again"
                ) from None


def _saved_config(description: dict[str, Any], folder: Path, policy: Policy | None) -> OpenVLAOFTConfig:
    try:
        saved = Policy.model_validate(description.get("policy"))
    except ValidationError as error:
        raise CheckpointError(f"{folder / 'config.json'}: policy: {error}") from None
    if policy is not None:
        actual, expected = (each.model_dump(exclude=TRAINING_SETTINGS) for each in (saved, policy))
        wrong = [
            f"{key} {actual[key]} instead of {value}"
            for key, value in expected.items()
            if actual[key] != value
        ]
        if wrong:
            raise CheckpointError(f"{folder} is of another architecture: {'; '.join(wrong)}")
    return OpenVLAOFTConfig(
        policy=(policy or saved).model_dump(mode="json"),
        norm_stats=description.get("norm_stats"),
        openvla=description.get("openvla"),
    )


def _openvla_config(description: dict[str, Any], folder: Path, policy: Policy | None) -> OpenVLAOFTConfig:
    """Check OpenVLA's config.json against `policy`; the rest follows from the shapes of tensors."""
    if policy is None:
        raise CheckpointError(
            f"{folder} is in OpenVLA's layout, which does not state its architecture: convert it first "
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
    if beside.is_file() and isinstance(statistics, dict):  # of the data that the policy was fine-tuned on
        statistics = statistics | read_json(beside)
    # `auto_map` names Python files of the checkpoint, which must never be executed.
    description = {key: value for key, value in description.items() if key not in ("norm_stats", "auto_map")}
    return OpenVLAOFTConfig(policy=policy.model_dump(mode="json"), norm_stats=statistics, openvla=description)


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
