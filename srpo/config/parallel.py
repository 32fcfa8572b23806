"""How the stages of a preset run in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import model_validator

from srpo.config.fields import NonNegativeInt, PositiveInt, Section
from srpo.config.policy import Policy
from srpo.config.stages import SftStage, Stage, TrainStage, WorldModelStage

WHOLE = 16
"""Bytes a weight of learning all of them: itself, its gradient and AdamW's two moments in float32."""
FSDP_COPY = 2
"""Bytes of a weight in the copy that acts while a policy learns under FSDP: bfloat16."""


class Layout(Section):
    """The processes of a job, as many on each of its nodes."""

    nodes: PositiveInt = 1
    """Nodes; more than one needs Slurm."""
    gpus: NonNegativeInt = 0
    """GPUs of each node, with a process on each; 0: the policy runs on CPUs."""
    processes: PositiveInt = 1
    """Processes on each node where there are no GPUs."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: each process has the whole policy, and gradients are averaged. `fsdp`: each has a part of every
    weight, gradient and moment, for all weights of a policy that is too large for one GPU."""

    @model_validator(mode="after")
    def _possible(self) -> Layout:
        if self.gpus and self.processes > 1:
            raise ValueError(
                f"processes {self.processes} beside gpus {self.gpus}: each GPU has one process, leave it out"
            )
        return self

    @property
    def per_node(self) -> int:
        """Processes on each node."""
        return self.gpus or self.processes

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.nodes * self.per_node


class Parallel(Section):
    """The processes of each kind of job. Stages that are not named here have one process."""

    sft: Layout = Layout()
    """Supervised fine-tuning."""
    train: Layout = Layout()
    """Reinforcement learning."""
    evaluate: Layout = Layout()
    """Rollouts of finished policies: evaluation, LIBERO-Plus, the reward benchmark's trajectories, values."""
    gpu_memory: PositiveInt = 80
    """Memory of a GPU, in GB: what cannot fit is an error before any job starts."""

    @model_validator(mode="after")
    def _evaluation_learns_nothing(self) -> Parallel:
        if self.evaluate.strategy == "fsdp":
            raise ValueError("evaluate.strategy fsdp shards what is learnt, and evaluation learns nothing")
        if self.evaluate.nodes > 1:
            raise ValueError(
                f"evaluate.nodes {self.evaluate.nodes}: evaluations are many jobs, each of which has one node"
            )
        return self

    @property
    def on_gpus(self) -> bool:
        """Whether any job runs the policy on a GPU."""
        return any(layout.gpus for layout in (self.sft, self.train, self.evaluate))


def misfits(parallel: Parallel, stages: Mapping[str, Stage | WorldModelStage]) -> Iterator[str]:
    """A line for each layout that the preset's policies cannot run in, with the arithmetic and what to set.

    Memory is a lower bound, of weights, gradients and moments: activations and world model come on top.
    """
    trainings = [stage for stage in stages.values() if isinstance(stage, TrainStage)]
    trained = {stage.suite for stage in trainings}
    overlap = {stage.suite for stage in trainings if stage.train.overlap}
    for stage in stages.values():
        if not isinstance(stage, SftStage):
            continue
        policy = stage.policy
        uses = {"sft": bool(stage.sft.updates), "train": stage.suite in trained, "evaluate": False}
        processes = parallel.sft.size
        if uses["sft"] and stage.sft.batch_size % processes:
            yield (
                f"parallel.sft: its {processes} processes cannot share sft.batch_size {stage.sft.batch_size} "
                "equally: set one of them"
            )
        for name, learns in uses.items():
            layout: Layout = getattr(parallel, name)
            if layout.strategy == "fsdp" and learns and (policy.lora or policy.dtype != "float32"):
                what = "adapters (lora)" if policy.lora else f"dtype {policy.dtype}"
                yield (
                    f"parallel.{name}.strategy: fsdp is for all weights in float32, the policy has {what}: "
                    "set ddp, or settings.policy.dtype float32 and settings.policy.lora null"
                )
                continue
            copy = acting_copy(layout, policy, stage.suite in overlap) if name == "train" and learns else 0
            needed, terms = held_on_gpu(layout, policy, learns, copy)
            if layout.gpus and needed > parallel.gpu_memory * 1e9:
                yield (
                    f"parallel.{name}: {terms} = {needed / 1e9:.0f} GB on each GPU, which has "
                    f"{parallel.gpu_memory} (parallel.gpu_memory): {_remedy(layout, policy, learns)}"
                    + (", or set train.overlap to 0" if copy and layout.strategy == "ddp" else "")
                )


def acting_copy(layout: Layout, policy: Policy, overlap: bool) -> int:
    """Bytes of a weight in the copy that acts beside a policy that learns; 0: there is none, that one acts.

    Args:
        overlap: whether it acts while the other learns (`train.overlap`).
    """
    if layout.strategy == "fsdp":
        return FSDP_COPY
    return _size(policy) if overlap else 0


def held_on_gpu(layout: Layout, policy: Policy, learns: bool, copy: int) -> tuple[float, str]:
    """Bytes that the policy takes on each GPU, without activations, and the sum that they are.

    Args:
        copy: bytes of a weight in the copy that acts.
    """
    count = f"{policy.weights / 1e9:.2f} G weights"
    acts = f" + × {copy} bytes (the copy that acts)" if copy else ""
    if not learns or policy.lora is not None:
        size = _size(policy)
        return (size + copy) * policy.weights, f"{count} × {size} bytes ({policy.dtype}){acts}"
    whole = f"{count} × {WHOLE} bytes (weights, gradients and AdamW's moments in float32)"
    if layout.strategy == "ddp":
        return (WHOLE + copy) * policy.weights, f"{whole}{acts}"
    return (WHOLE / layout.size + copy) * policy.weights, f"{whole} / {layout.size}{acts}"


def _size(policy: Policy) -> int:
    """Bytes of a weight."""
    return 4 if policy.dtype == "float32" else 2


def _remedy(layout: Layout, policy: Policy, learns: bool) -> str:
    if not learns or policy.lora is not None:
        return "set settings.policy.dtype to bfloat16" if policy.dtype == "float32" else "take larger GPUs"
    if layout.strategy == "ddp":
        return "set strategy to fsdp, with 8 GPUs, say, or train adapters (settings.policy.lora)"
    return "set more gpus or nodes, or train adapters (settings.policy.lora)"
