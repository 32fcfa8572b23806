"""Time and memory of a policy with random weights: preparing inputs, acting, and one update.

    python benchmarks/policy.py --out FILE.csv [--policy configs/policies/openvla-7b.yaml] [--quick]

`prepare` is the preprocessing of images and prompts on the CPU, `act` the choice of action chunks, `update`
the forward and backward pass of one micro-batch and a step of AdamW, for the weights that the policy's
settings train (adapters, or all). `product` is one large matrix product in the policy's precision: the peak
of this machine, of which the others reach a share. Rows of what, batch, seconds (a median),
queries_per_second, ratio_to_one (to one query at a time), tflops (as `srpo.cluster.operations` counts),
share_of_peak, memory_gib (at the peak, weights included; of GPUs only), estimate_gib (by
`srpo.policies.memory`). A 7B policy needs a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from srpo import optim
from srpo.cluster import operations
from srpo.config import Policy
from srpo.episode import ACTION_DIM, PROPRIO_DIM, TOKENS
from srpo.policies import action_tokens, memory
from srpo.policies.__main__ import POLICIES, read_policy
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.policies.prompts import make_tokenizer
from srpo.rl.losses import LossInputs, policy_loss
from srpo.runtime.files import write_with

SUITE, INSTRUCTIONS = "libero_goal", ["turn on the stove", "open the middle drawer of the cabinet"]
BATCHES = (1, 16, 64)
MICROBATCH, PIXELS, TEMPERATURE = 8, 256, 1.6


def random_policy(settings: Policy, device: torch.device) -> OpenVLAOFT:
    """Created on its device and in its precision, without host memory."""
    policy = memory.on_meta(settings).to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(std=0.02)
    llama = policy.language_model.model
    llama.rotary_emb = LlamaRotaryEmbedding(llama.config).to(device)
    policy.tokenizer = make_tokenizer(INSTRUCTIONS, settings.llm.vocab_size - action_tokens.BINS)
    action = {"q01": [-1.0] * ACTION_DIM, "q99": [1.0] * ACTION_DIM, "mask": [True] * 6 + [False]}
    proprio = {"q01": [-1.0] * PROPRIO_DIM, "q99": [1.0] * PROPRIO_DIM}
    policy.config.norm_stats = {SUITE: {"action": action, "proprio": proprio}}
    return policy


def observations(count: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, PIXELS, PIXELS, 3), dtype=np.uint8)
    instructions = [INSTRUCTIONS[k % len(INSTRUCTIONS)] for k in range(count)]
    return SUITE, images, instructions, rng.normal(size=(count, PROPRIO_DIM)).astype(np.float32)


def measured(work: Callable[[], object], repeats: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of `work`, and GiB of the GPU's memory at the peak."""
    gpu, seconds = device.type == "cuda", []
    work()  # warm-up
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        if gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() / 2**30 if gpu else np.nan


def measure(settings: Policy, repeats: int) -> pd.DataFrame:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = 8192 if device.type == "cuda" else 1024
    factors = torch.randn(2, side, side, device=device).to(getattr(torch, settings.dtype))
    product, _ = measured(lambda: factors[0] @ factors[1], repeats, device)
    policy = random_policy(settings, device)
    rows: list[tuple[str, int, float, float, float]] = [("product", 1, product, np.nan, np.nan)]
    for batch in BATCHES:
        observed = observations(batch)
        inputs = policy.prepare_inputs(*observed)
        generators = [torch.Generator().manual_seed(k) for k in range(batch)]
        estimate = (memory.weights(settings) + memory.acting(settings, batch)) / 2**30
        seconds, _ = measured(lambda: policy.prepare_inputs(*observed), repeats, device)  # noqa: B023
        rows.append(("prepare", batch, seconds, np.nan, np.nan))
        act = measured(lambda: policy.act(inputs, TEMPERATURE, generators), repeats, device)  # noqa: B023
        rows.append(("act", batch, *act, estimate))
    policy.make_trainable()
    policy.to(device)  # adapters, too
    optimiser = optim.adamw(policy, 5e-6, 0.0)
    inputs = policy.prepare_inputs(*observations(MICROBATCH)).to(device)
    tokens = torch.zeros(MICROBATCH, TOKENS, dtype=torch.long, device=device)
    with torch.no_grad():
        old, _ = policy.log_probs(inputs, tokens, TEMPERATURE)
    advantages = torch.linspace(-1, 1, MICROBATCH, device=device)
    valid = torch.ones_like(tokens, dtype=torch.bool)

    def update() -> None:
        log_probs, _ = policy.log_probs(inputs, tokens, TEMPERATURE)
        inputs_of_loss = LossInputs(log_probs, old, advantages, valid, tokens.numel())
        policy_loss(inputs_of_loss, clip_low=0.2, clip_high=0.28).total.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    estimate = memory.training(settings, MICROBATCH).total / 2**30
    rows.append(("update", MICROBATCH, *measured(update, repeats, device), estimate))
    names = ["what", "batch", "seconds", "memory_gib", "estimate_gib"]
    table = pd.DataFrame(rows, columns=names)
    table["queries_per_second"] = table["batch"] / table["seconds"]
    one = table[table["batch"] == 1].set_index("what")["queries_per_second"]
    prompt = inputs.ids.shape[1]
    acting = operations.policy_forward(settings.model_copy(update={"lora": None}), prompt).total
    each = {"product": 2 * side**3, "act": acting, "update": operations.learning(settings, prompt)}
    table["tflops"] = table["what"].map(each) * table["queries_per_second"] / 1e12
    table["share_of_peak"] = table["tflops"] / table["tflops"][0]
    table["ratio_to_one"] = table["queries_per_second"] / table["what"].map(one)
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return table.assign(policy=settings.name, dtype=settings.dtype, device=hardware)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of a policy with random weights.")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    parser.add_argument(
        "--policy",
        type=Path,
        default=POLICIES / "openvla-7b.yaml",
        help="settings (default: openvla-7b.yaml)",
    )
    parser.add_argument("--quick", action="store_true", help="one repetition instead of ten")
    arguments = parser.parse_args()
    table = measure(read_policy(arguments.policy), 1 if arguments.quick else 10)
    write_with(arguments.out, lambda temporary: table.to_csv(temporary, index=False))
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
