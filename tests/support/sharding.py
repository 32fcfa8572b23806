"""FSDP on CPUs, as configs/accelerate/fsdp-8gpu.yaml has it on GPUs."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch import nn

from srpo import ROOT
from srpo.runtime import distributed

FILE = ROOT / "configs" / "accelerate" / "fsdp-8gpu.yaml"


def environment(mixed_precision: str) -> dict[str, str]:
    """What `accelerate launch` with the file makes of it for its processes, but in this precision."""
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(FILE), "--mixed_precision", mixed_precision, "--main_process_port", "0", "x"]
    )
    variables = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {k: v for k, v in variables.items() if k.startswith(("FSDP_", "ACCELERATE_"))}


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Checks that the policy is spread before it has any values, and that its blocks are gathered singly."""
    policy = getattr(model, "policy", model)
    assert all(tensor.is_meta for tensor in policy.state_dict().values())
    distributed.shard(model, accelerator)
    spread = {name for name, part in model.named_modules() if type(part).__name__.startswith("FSDP")}
    prefix = "" if policy is model else "policy."
    blocks = {"vision_backbone.featurizer.blocks.1", "language_model.model.layers.1"}
    assert {prefix + name for name in blocks} | {""} <= spread, spread


class ShardingAccelerator(Accelerator):
    """Runs may follow one another in a process."""

    def end_training(self) -> None:
        pass  # the process group is needed again
