"""The tensors of a checkpoint folder: listed and checked from their headers, read one at a time, and written.

Two layouts share most names: this project's, and OpenVLA's, which also contains unused parts of its vision
transformers. Only safetensors are opened; nothing in a checkpoint is executed.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from srpo.config import Encoder, Policy
from srpo.errors import InputError
from srpo.runtime.distributed import local_part, place, row_shards, with_local
from srpo.runtime.files import write_json

FILES = "model{suffix}.safetensors"
INDEX = "model.safetensors.index.json"
FILE_SIZE = "1GB"
"""A file of a checkpoint at most, but for a larger tensor."""
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""By safetensors."""
DTYPES = set(DTYPE_NAMES.values())
FEATURIZERS = ("featurizer", "fused_featurizer")
"""Names of the one or two vision transformers in `vision_backbone`."""


Shape = tuple[int, ...]


class CheckpointError(InputError, ValueError):
    """A policy checkpoint that cannot be loaded as it is."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checkpoint: its file, its shape, and its dtype by safetensors' name."""

    file: Path
    shape: Shape
    dtype: str


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    # Asked, since safetensors says "no such file" of one that may not be read.
    if not os.access(path, os.R_OK, effective_ids=True):
        return CheckpointError(f"{path}: this user may not read it; ask its owner, or chmod it")
    return CheckpointError(f"{path} cannot be loaded ({error}); fetch or make it again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises CheckpointError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch the checkpoint again")
    return value


def read_index(folder: Path) -> dict[str, TensorEntry]:
    """All tensors of a checkpoint folder by name, from the headers of its safetensors files.

    Raises:
        CheckpointError: there are none or only pickles, a shard is missing or broken, or shards and index
            differ.
    """
    files = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    stated: dict[str, str] | None = None
    if (folder / INDEX).is_file():
        stated = read_json(folder / INDEX).get("weight_map", {})
        missing = sorted({str(name) for name in stated.values()} - {file.name for file in files})
        if missing:
            raise CheckpointError(f"{folder}: shards are missing: {missing}; fetch the checkpoint again")
        files = [file for file in files if file.name in stated.values()]
    if not files:
        reason = f" (its pickles {pickles} are not read: they can run code)" if pickles else ""
        raise CheckpointError(f"{folder} has no *.safetensors{reason}; convert it to safetensors")
    entries: dict[str, TensorEntry] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (not a mapping)
                    part = shard.get_slice(name)
                    if name in entries:
                        raise CheckpointError(
                            f"{folder}: {name} is in {entries[name].file.name} and {file.name}"
                        )
                    entries[name] = TensorEntry(file, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from None
    if stated is not None:
        actual = {name: entry.file.name for name, entry in entries.items()}
        wrong = sorted({name for name, _ in actual.items() ^ stated.items()})
        if wrong:
            raise CheckpointError(f"{folder}: {INDEX} and the shards differ in {_listed(wrong)}")
    return entries


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def unread_tensors(policy: Policy) -> dict[str, Shape]:
    """Names and shapes of the tensors of OpenVLA's layout that no policy uses.

    They are the blocks after the one that is read, the last norm, and the attention pooling of encoders
    without a class token (timm's `AttentionPoolLatent`).
    """
    shapes: dict[str, Shape] = {}
    for featurizer, encoder in zip(FEATURIZERS, policy.encoders, strict=False):
        unused: dict[str, Shape] = {f"norm.{kind}": (encoder.hidden_size,) for kind in ("weight", "bias")}
        for block in range(encoder.depth + encoder.read_block + 1, encoder.depth):
            unused |= {f"blocks.{block}.{name}": shape for name, shape in _block(encoder).items()}
        if not encoder.cls_token:
            unused |= {f"attn_pool.{name}": shape for name, shape in _pooling(encoder).items()}
        shapes |= {f"vision_backbone.{featurizer}.{name}": shape for name, shape in unused.items()}
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _block(encoder: Encoder) -> dict[str, Shape]:
    width, hidden = encoder.hidden_size, int(encoder.hidden_size * encoder.mlp_ratio)
    shapes: dict[str, Shape] = {f"norm{k}.{kind}": (width,) for k in (1, 2) for kind in ("weight", "bias")}
    if encoder.layer_scale:
        shapes |= {f"ls{k}.scale_factor": (width,) for k in (1, 2)}
    return (
        shapes
        | _linear("attn.qkv", width, 3 * width)
        | _linear("attn.proj", width, width)
        | _linear("mlp.fc1", width, hidden)
        | _linear("mlp.fc2", hidden, width)
    )


def _pooling(encoder: Encoder) -> dict[str, Shape]:
    width, hidden = encoder.hidden_size, int(encoder.hidden_size * encoder.mlp_ratio)
    return (
        {"latent": (1, 1, width), "norm.weight": (width,), "norm.bias": (width,)}
        | _linear("q", width, width)
        | _linear("kv", width, 2 * width)
        | _linear("proj", width, width)
        | _linear("mlp.fc1", width, hidden)
        | _linear("mlp.fc2", hidden, width)
    )


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name is one of `srpo.policies.lora`'s."""
    return name.endswith((".lora_A", ".lora_B"))


def check_tensors(entries: Mapping[str, TensorEntry], model: nn.Module, ignored: Mapping[str, Shape]) -> None:
    """Raise a CheckpointError that lists every tensor that is missing, unexpected or of another kind.

    Args:
        ignored: tensors that may be present and are not read, with their shapes.
    """
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    known = {**ignored, **needed}
    common = [name for name in entries if name in known]
    problems = {
        "missing": sorted(needed.keys() - entries.keys()),
        "unexpected": sorted(entries.keys() - known.keys()),
        "of another shape": [
            f"{name} {list(entries[name].shape)} instead of {list(known[name])}"
            for name in common
            if entries[name].shape != known[name]
        ],
        "of another dtype": [
            f"{name} {entries[name].dtype}" for name in common if entries[name].dtype not in DTYPES
        ],
    }
    lines = [f"{what}: {_listed(names)}" for what, names in problems.items() if names]
    if lines:
        raise CheckpointError("tensors do not fit the architecture: " + "; ".join(lines))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite. NaN survives a minimum, and no copy of the values is made."""
    return tensor.numel() == 0 or all(extreme.isfinite().item() for extreme in torch.aminmax(tensor))


def load_tensors(
    model: nn.Module, entries: Mapping[str, TensorEntry], device: torch.device, dtype: torch.dtype
) -> None:
    """Give a model on the meta device its tensors, each read straight to its device and dtype.

    Of a tensor that is sharded (`srpo.runtime.distributed.shard`) a process reads its part only. Adapters
    stay float32. Host memory holds one tensor at a time. Rotary frequencies are computed, since checkpoints
    do not contain them.

    Raises:
        CheckpointError: a file is broken, or a tensor has values that are not finite or was left without.
    """
    needed = model.state_dict()
    for file in sorted({entry.file for entry in entries.values()}):
        try:
            with safe_open(file, "pt") as shard:
                names = [name for name in needed if entries[name].file == file]
                # Copied, since what safetensors gives is a view of the file.
                values = {
                    name: shard.get_slice(name)[local_part(needed[name])].to(
                        device, torch.float32 if is_adapter(name) else dtype, copy=True
                    )
                    for name in names
                }
                if broken := [name for name, tensor in values.items() if not is_finite(tensor)]:
                    raise CheckpointError(
                        f"{file} has values that are not finite in {_listed(broken)}; fetch or make it again"
                    )
                tensors = {name: with_local(needed[name], tensor) for name, tensor in values.items()}
                model.load_state_dict(tensors, strict=False, assign=True)
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from None
    _require_values(model, device)


def spread_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Give a model that is sharded on the meta device its tensors, which only the first process has.

    All processes must call. One tensor after the other goes to all of them, and each keeps its part.
    """
    for name, needed in model.state_dict().items():
        if place()[0] == 0:
            whole = tensors[name].to(device).contiguous()
        else:
            whole = torch.empty(needed.shape, dtype=needed.dtype, device=device)
        dist.broadcast(whole, src=0)
        part = with_local(needed, whole[local_part(needed)].clone())
        model.load_state_dict({name: part}, strict=False, assign=True)
    _require_values(model, device)


def _require_values(model: nn.Module, device: torch.device) -> None:
    """Compute rotary frequencies, which are in no checkpoint; then nothing may be left on the meta device."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LlamaRotaryEmbedding):
                setattr(module, name, LlamaRotaryEmbedding(child.config).to(device))
    empty = [n for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    if empty:
        raise CheckpointError(f"tensors were left without values: {_listed(empty)}")


def write_tensors(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write tensors as safetensors: one file, or several of `FILE_SIZE` and their index.

    All processes of a distributed run must call. The first writes what the others hand it, one shard of a
    tensor at a time, and no more is held. The files do not depend on the number of processes.
    """
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(shapes, filename_pattern=FILES, max_shard_size=FILE_SIZE)
    for file, names in split.filename_to_tensors.items():
        _write_file({name: tensors[name].detach() for name in names}, folder / file)
    if split.is_sharded and place()[0] == 0:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / INDEX, index)


def _write_file(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """One file, as safetensors' own `save_file` writes it, which wants whole tensors, and all of them."""
    # Large numbers first, so that each is at a multiple of its size.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    ends = list(itertools.accumulate(tensors[name].nbytes for name in names))
    header = {"__metadata__": {"format": "pt"}} | {
        name: {
            "dtype": DTYPE_NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [end - tensors[name].nbytes, end],
        }
        for name, end in zip(names, ends, strict=True)
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    writer = place()[0] == 0
    with path.open("wb") if writer else nullcontext() as handle:
        if handle is not None:
            handle.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for rows in row_shards(tensors[name]):
                if handle is not None:
                    handle.write(rows.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
