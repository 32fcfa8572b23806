"""Host memory of each process that loads and saves a policy under FSDP, and how long a save keeps training.

    python benchmarks/sharding.py [--processes N]

A policy of OpenVLA-OFT 7B's widths with three layers a part, 1.0 B random parameters: bfloat16 on disk,
float32 in training. The optimiser has no moments; AdamW's two would treble a checkpoint. With 4 processes it
takes 10 GB of memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from srpo.config import Policy
from srpo.policies import memory
from srpo.policies.__main__ import POLICIES, read_policy
from srpo.policies.checkpoints import load_policy, save_policy
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.policies.prompts import make_tokenizer
from srpo.policies.weights import write_tensors
from srpo.runtime.checkpoint import Checkpoints
from srpo.runtime.distributed import gather_values, place

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


def spread(model: OpenVLAOFT) -> None:
    model.make_trainable()
    for part in list(model.modules()):
        if type(part).__name__ in model._no_split_modules:
            fully_shard(part)
    fully_shard(model)


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


def work(folder: Path) -> None:
    """One process's part."""
    dist.init_process_group("gloo")
    policy = measure("load", lambda: load_policy(folder / "policy", prepare=spread))
    optimiser = torch.optim.SGD(policy.parameters())
    writer = place()[0] == 0
    if writer:
        checkpoints = Checkpoints(folder / "scratch", "run")
    gather_values(None)
    if not writer:
        checkpoints = Checkpoints(folder / "scratch", "run", writer=False)
    measure("save: training waits", lambda: checkpoints.save(1, policy, optimiser, {}))
    measure("save: in the background", checkpoints.wait)
    measure("restore", lambda: checkpoints.restore(policy, optimiser))
    measure("export", lambda: save_policy(policy, folder / "exported", writer))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="Host memory and time of loading and saving under FSDP.")
    parser.add_argument("--processes", type=int, default=4, help="processes on this machine (default: 4)")
    processes = parser.parse_args().processes
    with tempfile.TemporaryDirectory() as folder:
        write_policy(Path(folder) / "policy")
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "SHARDING_FOLDER": folder}
        subprocess.run([sys.executable, *command], env=environment, check=True)


if __name__ == "__main__":
    if "SHARDING_FOLDER" in os.environ:  # started by `main`
        work(Path(os.environ["SHARDING_FOLDER"]))
    else:
        main()
