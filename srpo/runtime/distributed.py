"""One policy trained by several processes: each holds all of its weights or, under FSDP, a part of every one.

FSDP (configs/accelerate/fsdp-8gpu.yaml) is for weights that are trained whole and too large for one GPU. A
pass gathers them block by block in all processes at once, so that these must make equally many passes. What
acts does so at its own pace; it is a copy that is whole in each process, in the precision of the passes.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from srpo.config import Policy

PATIENCE = timedelta(days=1)
"""How long a process waits for the others, whose episodes may be longer; torch's default is minutes."""


def make_accelerator(**options: Any) -> Accelerator:
    """The accelerator of a run, with accelerate's own `options`.

    Raises SystemExit for FSDP in another version than 2 or another precision than bf16 or none.
    """
    accelerator = Accelerator(
        # Otherwise processes on CPUs do not find one another, and each takes itself for the only one.
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        **options,
    )
    if is_sharded(accelerator):
        plugin, precision = accelerator.state.fsdp_plugin, accelerator.mixed_precision
        if plugin.fsdp_version != 2 or precision not in ("no", "bf16"):
            raise SystemExit(
                f"FSDP {plugin.fsdp_version} with mixed_precision {precision}: set fsdp_version 2 and "
                "mixed_precision bf16, as configs/accelerate/fsdp-8gpu.yaml does"
            )
        if precision == "bf16":
            # accelerate would have gradients summed in bfloat16, too, and logits rounded to it.
            plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the run is under FSDP."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def require_whole_weights(policy: Policy) -> None:
    """Raise SystemExit if FSDP is not for a policy of these settings."""
    if policy.lora is not None or policy.dtype != "float32":
        raise SystemExit(
            "FSDP is for weights that are trained whole: set policy.lora null and policy.dtype float32, "
            "or launch without FSDP to train adapters"
        )


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is spread put together, for which all processes must call; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_full(tree: Any, keep: bool) -> Any:
    """`tree` with tensors that are spread put together, one by one, on the CPU; None there unless `keep`."""

    def gathered(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = full_tensor(value)
        return full.cpu() if keep else None

    return tree_map(gathered, tree)


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy of a whole tensor, at hand in all processes, spread as `like` if that is and has its shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor.clone()
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def sync_weights(actor: nn.Module, policy: nn.Module) -> None:
    """Give `actor` the weights of `policy`, if that is another; all processes must call."""
    if actor is policy:
        return
    with torch.no_grad():
        for mine, theirs in zip(actor.parameters(), policy.parameters(), strict=True):
            mine.copy_(full_tensor(theirs.detach()))
