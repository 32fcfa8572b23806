"""Host memory of each process that loads and saves a policy under FSDP, and how long a save keeps training.

    python benchmarks/sharding.py [--processes N]

A policy of OpenVLA-OFT 7B's widths with three layers a part, 1.0 B random parameters: bfloat16 on disk,
float32 in training. The optimiser has no moments; AdamW's two would treble a checkpoint. With 4 processes it
takes 11 GB of memory, and the pass at the end, beside which the time of a save is seen, 21 GB.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from srpo import ROOT
from srpo.cluster.processes import node_command
from srpo.config import Layout, Policy, Sft, read_yaml
from srpo.episode import PROMPT_TOKENS
from srpo.policies import memory
from srpo.policies.__main__ import POLICIES, read_policy
from srpo.policies.checkpoints import load_policy, save_policy
from srpo.policies.openvla_oft import Inputs, OpenVLAOFT
from srpo.policies.prompts import make_tokenizer
from srpo.policies.weights import write_tensors
from srpo.runtime.checkpoint import Checkpoints
from srpo.runtime.distributed import gather_values, make_accelerator, place, shard
from srpo.sft import load_model

LAYERS = 3


def settings() -> Policy:
    wide = read_policy(POLICIES / "openvla-7b.yaml")
    encoders = tuple(encoder.model_copy(update={"depth": LAYERS}) for encoder in wide.encoders)
    llm = wide.llm.model_copy(update={"layers": LAYERS})
    return wide.model_copy(update={"dtype": "float32", "lora": None, "encoders": encoders, "llm": llm})


def write_policy(folder: Path) -> None:
    """A checkpoint of random weights in bfloat16."""
    model = memory.on_meta(settings())
    weights = {
        name: torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(0, 0.02)
        for name, tensor in model.state_dict().items()
    }
    folder.mkdir()
    write_tensors(weights, folder)
    model.config.save_pretrained(folder)
    make_tokenizer({"turn on the stove"}, 1000).save_pretrained(folder)
    size = sum(weight.nbytes for weight in weights.values())
    print(f"{size / 2e9:.2f} B parameters, {size / 1e9:.2f} GB in bfloat16", flush=True)


def status(key: str) -> float:
    """One of this process's sizes in /proc, in GB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e9


def measure(what: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; the first process prints each one's memory at its peak, and the longest time."""
    gather_values(None)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = status("VmRSS"), time.perf_counter()
    result = work()
    seconds, peak = time.perf_counter() - start, status("VmHWM")
    found = gather_values((seconds, before, peak))
    if place()[0] == 0:
        memories = ", ".join(f"{before:.2f} → {peak:.2f}" for _, before, peak in found)
        print(f"{what:26} {max(seconds for seconds, *_ in found):6.1f} s   GB: {memories}", flush=True)
    return result


def query(policy: OpenVLAOFT) -> Inputs:
    """One observation with a prompt of the usual length."""
    size = policy.settings.image_size
    pixels = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    ids = torch.zeros(1, PROMPT_TOKENS, dtype=torch.long)
    return Inputs(pixels, ids, torch.ones_like(ids, dtype=torch.bool), None, padded=False)


def work(folder: Path) -> None:
    """One process's part."""
    accelerator = make_accelerator()

    def spread(policy: OpenVLAOFT) -> None:
        policy.make_trainable()
        shard(policy, accelerator)

    sft = Sft(**read_yaml(ROOT / "configs/base.yaml")["sft"] | {"auxiliary": 1.0})
    tuned = settings().model_copy(update={"checkpoint": str(folder / "policy")})
    model = measure("load, fine-tuning", lambda: load_model(tuned, sft, None, accelerator))
    del model
    gc.collect()
    policy = measure("load, training", lambda: load_policy(folder / "policy", prepare=spread))
    optimiser = torch.optim.SGD(policy.parameters())
    checkpoints = Checkpoints.shared(folder / "scratch", "run", accelerator)
    measure("save: training waits", lambda: checkpoints.save(1, policy, optimiser, {}))
    measure("save: in the background", checkpoints.wait)
    measure("restore", lambda: checkpoints.restore(policy, optimiser))
    measure("export", lambda: save_policy(policy, folder / "exported", accelerator.is_main_process))
    with torch.no_grad():
        measure("a pass, one query each", lambda: policy(query(policy)))
    accelerator.end_training()


def main() -> None:
    parser = argparse.ArgumentParser(description="Host memory and time of loading and saving under FSDP.")
    parser.add_argument("--processes", type=int, default=4, help="processes on this machine (default: 4)")
    processes = parser.parse_args().processes
    with tempfile.TemporaryDirectory() as folder:
        write_policy(Path(folder) / "policy")
        command = node_command(Layout(processes=processes, strategy="fsdp"), cores=processes)
        environment = os.environ | {
            "SHARDING_FOLDER": folder,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        subprocess.run([*command[:-2], __file__], env=environment, check=True)


if __name__ == "__main__":
    if "SHARDING_FOLDER" in os.environ:  # started by `main`
        work(Path(os.environ["SHARDING_FOLDER"]))
    else:
        main()
