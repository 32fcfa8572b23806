"""FSDP on CPUs, as configs/accelerate/fsdp-8gpu.yaml has it on GPUs."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch import nn

from srpo import ROOT

FILE = ROOT / "configs" / "accelerate" / "fsdp-8gpu.yaml"


def environment(mixed_precision: str) -> dict[str, str]:
    """What `accelerate launch` with the file makes of it for its processes, but in this precision."""
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(FILE), "--mixed_precision", mixed_precision, "--main_process_port", "0", "x"]
    )
    variables = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {k: v for k, v in variables.items() if k.startswith(("FSDP_", "ACCELERATE_"))}


def assert_spread(model: nn.Module) -> None:
    """The model is spread, and its blocks are gathered one by one."""
    spread = {name for name, part in model.named_modules() if type(part).__name__.startswith("FSDP")}
    prefix = "policy." if hasattr(model, "policy") else ""
    blocks = {"vision_backbone.featurizer.blocks.1", "language_model.model.layers.1"}
    assert {prefix + name for name in blocks} | {""} <= spread, spread


class ShardingAccelerator(Accelerator):
    """Checks that what is prepared is spread. Runs may follow one another in a process."""

    def prepare(self, model: nn.Module, *others: Any) -> Any:  # type: ignore[override]
        prepared = super().prepare(model, *others)
        assert_spread(model)
        return prepared

    def end_training(self) -> None:
        pass  # the process group is needed again
