"""One policy trained by several processes: each holds all of its weights or, under FSDP, a shard of each.

FSDP (configs/accelerate/fsdp-8gpu.yaml) is for full fine-tuning of weights that are too large for one GPU. A
pass gathers them block by block in all processes at once, so all processes must make equally many passes.
Rollouts do not: the policy that acts is an unsharded copy in each process, in the precision of the passes.

No process ever holds all weights in float32: a policy is spread while it is on the meta device (`shard`), and
then each process reads its part of them (`srpo.policies.weights`) and writes its part of a checkpoint
(`srpo.runtime.checkpoint`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from srpo.config import Policy
from srpo.errors import FinalExit
from srpo.runtime.files import atomic_directory
from srpo.runtime.peers import require_given_gpus

COLLECTIVE_TIMEOUT = timedelta(days=1)
"""How long a process waits for the others, whose episodes may take longer; torch's default is minutes."""


def make_accelerator(**options: Any) -> Accelerator:
    """The accelerator of a run, with accelerate's own `options`.

    Raises SystemExit for FSDP in another version than 2 or another precision than bf16 or none, and for GPUs
    that Slurm gave and PyTorch cannot use.
    """
    require_given_gpus()
    accelerator = Accelerator(
        # Otherwise processes on CPUs do not form a group, and each trains alone.
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
        **options,
    )
    if not torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _shard_on_cpus(accelerator)
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


def _shard_on_cpus(accelerator: Accelerator) -> None:
    """Put a run under FSDP as its launcher asks, which accelerate itself does on GPUs alone."""
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)


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


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Spread a model over the processes under FSDP, in place; its tensors may be on the meta device.

    `Accelerator.prepare` does this too, but only with an optimiser, whose parameters need values.
    """
    fsdp2_prepare_model(accelerator, model)


def place() -> tuple[int, int]:
    """This process's number, from 0, and how many processes there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather_values(value: Any) -> list[Any]:
    """Every process's value, in their order; all must call, and none goes on before the others have."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def shared_directory(path: Path) -> Iterator[Path]:
    """`atomic_directory` for a folder into which all processes write; it is in place when one goes on."""
    main = place()[0] == 0
    with ExitStack() as stack:
        temporary: Path = gather_values(stack.enter_context(atomic_directory(path)) if main else None)[0]
        yield temporary
        gather_values(None)
    gather_values(None)


def nbytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of tensors, of sharded ones in all processes."""
    return sum(tensor.nbytes for tensor in tensors.values())


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered, for which all processes must call; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def row_shards(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The shards of a tensor, one after the other and each in all processes, which must all go through them.

    An unsharded tensor, which every process has, is one.
    """
    if not isinstance(tensor, DTensor):
        yield tensor
        return
    assert tensor.placements == (Shard(0),), tensor.placements
    own, (process, processes) = tensor.to_local().contiguous(), place()
    rows = -(-len(tensor) // processes)
    for source in range(processes):
        count = max(0, min(rows, len(tensor) - source * rows))
        part = own if source == process else own.new_empty(count, *tensor.shape[1:])
        if count:
            dist.broadcast(part, source)
            yield part


def local_part(tensor: torch.Tensor) -> tuple[slice, ...]:
    """The part of a tensor that is this process's, in each dimension: of an unsharded one, all of it."""
    shape, offsets = tuple(tensor.shape), (0,) * tensor.dim()
    if isinstance(tensor, DTensor):
        shape, offsets = compute_local_shape_and_global_offset(
            tensor.shape, tensor.device_mesh, tensor.placements
        )
    return tuple(slice(start, start + size) for start, size in zip(offsets, shape, strict=True))


def with_local(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A tensor sharded as `tensor` whose `local_part` has these values; `values` if that is not sharded."""
    if not isinstance(tensor, DTensor):
        return values
    return DTensor.from_local(
        values,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def sync_weights(actor: nn.Module, policy: nn.Module) -> None:
    """Copy the weights of `policy` to `actor`, unless they are the same module; all processes must call.

    Shards are converted to the actor's precision before they are gathered, one tensor at a time.
    """
    if actor is policy:
        return
    with torch.no_grad():
        for target, source in zip(actor.parameters(), policy.parameters(), strict=True):
            target.copy_(full_tensor(source.detach().to(target.dtype)))
