"""Inspect policies, and convert checkpoints from one layout to the other.

srpo policy inspect PATH          a checkpoint folder, or a policy's YAML file
srpo policy convert FOLDER OUT    OpenVLA's layout to this project's, or back
"""

from __future__ import annotations

import argparse
from pathlib import Path

from srpo.config import ConfigError, Lora, Policy, did_you_mean, read_yaml, validate
from srpo.config.resolve import CONFIGS
from srpo.errors import run_command
from srpo.runtime.arguments import new_folder

POLICIES = CONFIGS / "policies"
SHARDS = 8
"""GPUs over which FSDP shards the policy, in configs/accelerate/fsdp-8gpu.yaml."""
ADAPTERS = Lora(rank=32, alpha=16.0)
"""Adapters of the estimate for a policy that is configured without any."""
MICROBATCH = 32
"""Queries of one pass in the estimate: `train.microbatch` in configs/policies/openvla-7b.yaml."""


def read_policy(path: Path) -> Policy:
    """The policy of a YAML file in `configs/policies/`. Raises ConfigError."""
    values = read_yaml(path).get("policy")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: has no section `policy`")
    return validate(Policy, {"name": path.stem, **values}, f"{path}: policy")


def inspect(path: Path, policy: Policy) -> str:
    """A description of a checkpoint (or of a configuration), and the memory that it needs.

    Args:
        policy: the architecture of a checkpoint in OpenVLA's layout.
    """
    from srpo.policies import memory
    from srpo.policies.checkpoints import is_openvla, open_policy

    lines = []
    if path.is_file():
        model = memory.on_meta(policy)
    else:
        model, entries = open_policy(path, policy if is_openvla(path) else None)
        size = sum(file.stat().st_size for file in {entry.file for entry in entries.values()})
        dtypes = ", ".join(sorted({entry.dtype for entry in entries.values()}))
        lines += [
            f"layout        {'OpenVLA' if is_openvla(path) else 'srpo'}",
            f"on disk       {len(entries)} tensors, {_gib(size)}, {dtypes}",
            f"statistics    {', '.join(sorted(model.config.norm_stats or {})) or 'none'}",
        ]
        policy = model.settings
    vision = " + ".join(
        f"ViT {e.hidden_size} × {e.depth + e.read_block + 1}, patch {e.patch_size}" for e in policy.encoders
    )
    counts = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in memory.parameters(model).items())
    lines += [
        f"architecture  {vision}; Llama {policy.llm.hidden_size} × {policy.llm.layers}; "
        f"{policy.image_size} px, proprioception {'yes' if policy.proprio else 'no'}",
        f"parameters    {counts}",
        *memory_lines(policy),
    ]
    return "\n".join(lines)


def memory_lines(policy: Policy) -> list[str]:
    """The memory that a policy needs to be loaded, to act, and to be trained in two ways."""
    import torch

    from srpo.policies import memory

    full_policy = policy.model_copy(
        update={"dtype": "float32", "lora": None, "gradient_checkpointing": True}, deep=True
    )
    lora_policy = policy.model_copy(
        update={"dtype": "bfloat16", "lora": policy.lora or ADAPTERS, "gradient_checkpointing": True}
    )
    acting_policy = policy.model_copy(update={"dtype": "bfloat16"})
    full = memory.training(full_policy, MICROBATCH, compute=torch.bfloat16)
    lora = memory.training(lora_policy, MICROBATCH)
    gathered = memory.gathered(full_policy)
    acting = memory.weights(acting_policy) + memory.acting(acting_policy, 64)
    assert lora_policy.lora is not None
    return [
        f"to load       {_gib(memory.weights(policy))} in {policy.dtype}",
        "to act        " + ", ".join(f"batch {n}: + {_gib(memory.acting(policy, n))}" for n in (1, 16, 64)),
        f"to train      LoRA {lora_policy.lora.rank} in bfloat16, one GPU: {_gib(lora.total)} ("
        f"weights {_gib(lora.weights)}, gradients {_gib(lora.gradients)}, AdamW {_gib(lora.optimiser)}, "
        f"activations {_gib(lora.activations)})",
        f"to train      all weights in float32, each of {SHARDS} GPUs: "
        f"{_gib(full.static // SHARDS + gathered + full.activations)} ("
        f"weights {_gib(full.weights // SHARDS)}, gradients {_gib(full.gradients // SHARDS)}, "
        f"AdamW {_gib(full.optimiser // SHARDS)}, "
        f"gathered {_gib(gathered)}, activations {_gib(full.activations)})",
        f"              with gradient checkpointing and micro-batches of {MICROBATCH} queries; reinforcement "
        f"learning has an acting copy beside it: {_gib(memory.weights(acting_policy))}",
        f"overlap       the acting copy beside LoRA too, and it acts meanwhile: + {_gib(acting)} (batch 64)",
    ]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def convert(folder: Path, out: Path, policy: Policy) -> None:
    """Write a checkpoint in the other layout; weights keep their values in `policy.dtype`."""
    from srpo.policies.checkpoints import is_openvla, load_policy, save_openvla, save_policy

    if is_openvla(folder):
        save_policy(load_policy(folder, policy=policy), out)
    else:
        save_openvla(load_policy(folder), out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="srpo policy", description="Inspect and convert policies.")
    commands = parser.add_subparsers(dest="command", required=True)
    inspecting = commands.add_parser("inspect", help="architecture, parameters, statistics, memory")
    inspecting.add_argument("path", type=Path, help="checkpoint folder, or a policy's YAML file")
    converting = commands.add_parser("convert", help="OpenVLA's layout to this project's, or back")
    converting.add_argument("path", type=Path, help="checkpoint folder", metavar="FOLDER")
    converting.add_argument("out", type=new_folder, help="folder to make")
    for command in (inspecting, converting):
        command.add_argument(
            "--policy",
            default="openvla-7b",
            help="configs/policies/NAME.yaml: the architecture of a checkpoint in OpenVLA's layout",
        )
    arguments = parser.parse_args()
    file = POLICIES / f"{arguments.policy}.yaml"
    if not file.is_file():
        names = [path.stem for path in POLICIES.glob("*.yaml")]
        raise ConfigError(
            f"--policy: there is no {arguments.policy!r}{did_you_mean(arguments.policy, names)}"
        )
    if arguments.command == "inspect":
        is_file = arguments.path.is_file()
        print(inspect(arguments.path, read_policy(arguments.path if is_file else file)))
    else:
        convert(arguments.path, arguments.out, read_policy(file))


if __name__ == "__main__":
    run_command(main)
