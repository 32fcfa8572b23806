"""One policy trained by several processes: each holds all of its weights or, under FSDP, a shard of each.

FSDP (configs/accelerate/fsdp-8gpu.yaml) is for full fine-tuning of weights that are too large for one GPU. A
pass gathers them block by block in all processes at once, so all processes must make equally many passes.
Rollouts do not: the policy that acts is an unsharded copy in each process, in the precision of the passes.
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
from srpo.errors import FinalExit

COLLECTIVE_TIMEOUT = timedelta(days=1)
"""How long a process waits for the others, whose episodes may take longer; torch's default is minutes."""


def make_accelerator(**options: Any) -> Accelerator:
    """The accelerator of a run, with accelerate's own `options`.

    Raises SystemExit for FSDP in another version than 2 or another precision than bf16 or none.
    """
    accelerator = Accelerator(
        # Otherwise processes on CPUs do not form a group, and each trains alone.
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
        **options,
    )
    if is_sharded(accelerator):
        plugin, precision = accelerator.state.fsdp_plugin, accelerator.mixed_precision
        if plugin.fsdp_version != 2 or precision not in ("no", "bf16"):
            raise FinalExit(
                f"FSDP {plugin.fsdp_version} with mixed_precision {precision}: set fsdp_version 2 and "
                "mixed_precision bf16, as configs/accelerate/fsdp-8gpu.yaml does"
            )
        if precision == "bf16":
            # accelerate's own policy would also sum gradients in bfloat16 and round logits to it.
            plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the run is under FSDP."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def require_full_training(policy: Policy) -> None:
    """Raise SystemExit unless a policy of these settings can be trained under FSDP."""
    if policy.lora is not None or policy.dtype != "float32":
        raise FinalExit(
            "FSDP is for full fine-tuning: set policy.lora null and policy.dtype float32, "
            "or launch without FSDP to train adapters"
        )


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered, for which all processes must call; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_full(tree: Any, keep: bool) -> Any:
    """`tree` with its sharded tensors gathered on the CPU, one by one; None in their place unless `keep`."""

    def gather(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = full_tensor(value)
        return full.cpu() if keep else None

    return tree_map(gather, tree)


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy of a full tensor, which all processes have, sharded as `like` if that is and has its shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor.clone()
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def sync_weights(actor: nn.Module, policy: nn.Module) -> None:
    """Copy the weights of `policy` to `actor`, unless they are the same module; all processes must call."""
    if actor is policy:
        return
    with torch.no_grad():
        for target, source in zip(actor.parameters(), policy.parameters(), strict=True):
            target.copy_(full_tensor(source.detach()))
