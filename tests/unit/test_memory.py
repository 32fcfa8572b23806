"""Memory estimates against what a real run of the same small policy allocates."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from srpo.config import Lora
from srpo.episode import PROMPT_TOKENS, TOKENS
from srpo.policies import memory
from srpo.policies.__main__ import MICROBATCH, POLICIES, SHARDS, read_policy
from srpo.policies.checkpoints import load_policy, save_policy
from srpo.policies.openvla_oft import Inputs, OpenVLAOFT
from support.policies import ENCODER, SUITE, observations, small_policy, small_settings


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Attention on the CPU takes scratch memory for each thread; beside these small tensors it would show."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def allocated(work: Callable[[], object]) -> int:
    """Bytes at the peak of what `work` allocates on the CPU, by PyTorch's own record of its allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    del kept
    return int(np.cumsum(changes).max())


def inputs(policy: OpenVLAOFT, count: int) -> Inputs:
    """Queries with prompts as long as the estimate's, and as there with padding."""
    one = policy.prepare_inputs(SUITE, *observations(count))
    ids = torch.full((count, PROMPT_TOKENS), 5)
    mask = torch.ones(count, PROMPT_TOKENS, dtype=torch.bool)
    mask[:, 0] = False
    return Inputs(one.pixels, ids, mask, one.proprio, padded=True)


@pytest.mark.parametrize("batch", [1, 6])
def test_acting(batch: int) -> None:
    policy = small_policy()
    queries = inputs(policy, batch)
    with torch.no_grad():
        policy.action_logits(queries)  # whatever is made once only
        real = allocated(lambda: policy.action_logits(queries))
    assert memory.acting(small_settings(), batch) == pytest.approx(real, rel=0.1)
    assert memory.weights(small_settings()) == sum(p.untyped_storage().nbytes() for p in policy.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_checkpointing": True},
        {"lora": Lora(rank=2, alpha=4.0)},
        {"encoders": (ENCODER, ENCODER), "gradient_checkpointing": True, "lora": Lora(rank=2, alpha=4.0)},
    ],
)
def test_training(changes: dict) -> None:
    policy = small_policy(**changes)
    policy.make_trainable()
    queries = inputs(policy, 4)
    optimiser = torch.optim.AdamW(policy.parameters())

    def update() -> None:
        log_probs, entropy = policy.log_probs(queries, torch.zeros(4, TOKENS, dtype=torch.long), 1.0)
        (log_probs.sum() + entropy.sum()).backward()

    update()
    optimiser.step()
    estimate = memory.training(small_settings(**changes), 4)
    assert estimate.activations == pytest.approx(allocated(update), rel=0.1)
    assert estimate.weights == sum(parameter.nbytes for parameter in policy.parameters())
    assert estimate.gradients == sum(p.grad.nbytes for p in policy.parameters() if p.grad is not None)
    moments = [t for state in optimiser.state.values() for name, t in state.items() if name != "step"]
    assert estimate.optimiser == sum(moment.nbytes for moment in moments)


def test_training_under_fsdp() -> None:
    """Against PyTorch's own tracker: one of eight processes, the others made up, on fake tensors."""
    wide = read_policy(POLICIES / "openvla-7b.yaml")
    policy = wide.model_copy(
        update={
            "dtype": "float32",
            "lora": None,
            "encoders": tuple(e.model_copy(update={"depth": 3}) for e in wide.encoders),
            "llm": wide.llm.model_copy(update={"layers": 4}),
        }
    )
    dist.init_process_group("fake", rank=0, world_size=SHARDS, store=FakeStore())
    try:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer", "_Block"],
            reshard_after_forward=True,
            mixed_precision_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32),
        )
        accelerator = SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=plugin),
            mixed_precision="bf16",
            is_main_process=True,
            parallelism_config=SimpleNamespace(fsdp_dim_names=["shard"]),
            torch_device_mesh=init_device_mesh("cpu", (SHARDS,), mesh_dim_names=("shard",)),
        )
        with memory._fake(policy, trainable=True) as (model, inputs):
            model = fsdp2_prepare_model(accelerator, model)
            optimiser = torch.optim.AdamW(model.parameters())
            tracker = FSDPMemTracker(model, optimiser)
            queries, tokens = inputs(MICROBATCH), torch.zeros(MICROBATCH, TOKENS, dtype=torch.long)
            with tracker:
                for _ in range(2):
                    tracker.reset_mod_stats()
                    log_probs, entropy = model.log_probs(queries, tokens, 1.0)
                    (log_probs.sum() + entropy.sum()).backward()
                    optimiser.step()
            peaks = tracker.get_tracker_snapshot("peak")
    finally:
        dist.destroy_process_group()
    (peak,) = (parts["Total"] for parts in peaks.values())
    estimate = memory.training(policy, MICROBATCH, compute=torch.bfloat16)
    assert estimate.static / SHARDS + memory.gathered(policy) + estimate.activations == pytest.approx(
        peak, rel=0.1
    )


def test_loading_holds_the_weights_once_and_one_file_beside(tmp_path: Path) -> None:
    """No model of random weights beside those that are read; files are mapped one after the other."""
    policy = small_policy()
    save_policy(policy, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    policy.save_pretrained(tmp_path, max_shard_size="45KB")
    largest = max(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    weights = memory.weights(small_settings())
    assert largest < 0.4 * weights
    load_policy(tmp_path)
    assert weights <= allocated(lambda: load_policy(tmp_path)) < 1.1 * (weights + largest)
