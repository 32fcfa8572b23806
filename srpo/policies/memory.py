"""The memory that a policy needs, computed from its configuration alone: no weights, no GPU.

Static parts (weights, gradients, Adam's moments) are counted on the meta device. Activations are measured by
running on fake tensors, which have sizes but no contents, and are allocated as in a real run.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from srpo.config import Policy
from srpo.episode import PROMPT_TOKENS, PROPRIO_DIM, TOKENS
from srpo.policies.openvla_oft import Inputs, OpenVLAOFT, OpenVLAOFTConfig

ADAM = 8
"""Bytes per trained parameter: two moments in float32."""


class Meter(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is active: `live` now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {_storage(tensor)._cdata for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if _is_tensor(tensor) and _storage(tensor)._cdata not in before:
                self._see(_storage(tensor))
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.live -= size


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


@dataclass(frozen=True)
class Training:
    """Bytes of one update: weights, gradients and Adam's moments; and activations at their peak."""

    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def static(self) -> int:
        return self.weights + self.gradients + self.optimiser

    @property
    def checkpoint(self) -> int:
        """Of a training checkpoint: trained weights, as large as their gradients, and the moments."""
        return self.gradients + self.optimiser

    @property
    def total(self) -> int:
        return self.static + self.activations


def on_meta(policy: Policy) -> OpenVLAOFT:
    """A policy of these settings without weights, in its precision."""
    with torch.device("meta"):
        model = OpenVLAOFT(OpenVLAOFTConfig(policy=policy.model_dump(mode="json")))
    return model.to(getattr(torch, policy.dtype)).eval()


def parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each of the model's parts, and in all."""
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in model.named_children()
    }
    return counts | {"in all": sum(parameter.numel() for parameter in model.parameters())}


def weights(policy: Policy) -> int:
    """Bytes of the weights for inference."""
    return sum(parameter.nbytes for parameter in on_meta(policy).parameters())


def static(policy: Policy) -> Training:
    """Bytes of an update without activations."""
    model = on_meta(policy)
    model.make_trainable()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Training(
        sum(parameter.nbytes for parameter in model.parameters()),
        sum(parameter.nbytes for parameter in trained),
        ADAM * sum(parameter.numel() for parameter in trained),
        activations=0,
    )


def acting(policy: Policy, batch: int) -> int:
    """Peak bytes of choosing actions for `batch` observations, without the weights."""
    with _fake(policy, trainable=False) as (model, inputs), torch.no_grad(), Meter() as meter:
        model.action_logits(inputs(batch))
        return meter.peak


def training(policy: Policy, microbatch: int, compute: torch.dtype | None = None) -> Training:
    """Bytes of an update that takes its queries in micro-batches of this size.

    Args:
        compute: the precision of the passes if it differs from that of the weights, as under FSDP's mixed
            precision, which gathers the weights of a few blocks at a time in it.
    """
    with _fake(policy, trainable=True, dtype=compute) as (model, inputs):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        tokens = torch.zeros(microbatch, TOKENS, dtype=torch.long)
        for parameter in trained:  # gradients exist from the second micro-batch on
            parameter.grad = torch.empty_like(parameter)
        with Meter() as meter:
            log_probs, entropy = model.log_probs(inputs(microbatch), tokens, 1.0)
            (log_probs.sum() + entropy.sum()).backward()
    return replace(static(policy), activations=meter.peak)


def gathered(policy: Policy) -> int:
    """Bytes of the unsharded tensors that FSDP holds at a time.

    Weights of two blocks, and of everything outside blocks, in bfloat16; gradients of a block in float32.
    """
    model = on_meta(policy)
    parts = [part for part in model.modules() if type(part).__name__ in model._no_split_modules]
    blocks = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    return 2 * (parameters(model)["in all"] - sum(blocks) + 2 * max(blocks)) + 4 * max(blocks)


@contextlib.contextmanager
def _fake(
    policy: Policy, trainable: bool, dtype: torch.dtype | None = None
) -> Iterator[tuple[OpenVLAOFT, Any]]:
    """The model, and a function that makes inputs for it, both of fake tensors."""
    model = on_meta(policy)
    if trainable:
        model.make_trainable()
    empty = model.state_dict()
    with FakeTensorMode():
        values = {name: torch.empty(tuple(t.shape), dtype=dtype or t.dtype) for name, t in empty.items()}
        model.load_state_dict(values, assign=True)
        llama = model.language_model.model
        llama.rotary_emb = LlamaRotaryEmbedding(llama.config)
        model.tokenizer = _SpecialTokens()

        def inputs(batch: int) -> Inputs:
            return Inputs(
                torch.empty(batch, policy.image_size, policy.image_size, 3, dtype=torch.uint8),
                torch.zeros(batch, PROMPT_TOKENS, dtype=torch.long),
                torch.ones(batch, PROMPT_TOKENS, dtype=torch.bool),
                torch.empty(batch, PROPRIO_DIM) if policy.proprio else None,
                padded=True,
            )

        yield model, inputs


class _SpecialTokens:
    bos_token_id, eos_token_id = 1, 2
