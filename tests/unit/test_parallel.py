"""How stages run in parallel: what a preset may ask for, and the command that starts a job's processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from srpo import ROOT
from srpo.cluster.processes import job_command, node_command, workers
from srpo.config import ConfigError, Layout, Parallel, Stage, WorldModelStage, read_yaml, validate
from srpo.config.parallel import misfits
from srpo.config.plan import plan
from srpo.config.resolve import load_preset
from srpo.policies import memory
from srpo.policies.__main__ import POLICIES, read_policy

EIGHT = Layout(gpus=8)
OVERLAP = "train.overlap=1"


@cache
def stages(preset: str, *settings: str) -> Mapping[str, Stage | WorldModelStage]:
    """Of a preset that runs on CPUs, whatever its own GPUs."""
    made, source = load_preset(preset)
    own = {"parallel": Parallel()}
    if OVERLAP in settings:  # of the preset, since on the command line it is refused for `srpo-offline`
        own |= {"settings": made.settings | {"train": {**made.settings.get("train", {}), "overlap": 1}}}
    made = made.model_copy(update=own)
    return plan(made, source, ROOT / "configs", [each for each in settings if each != OVERLAP]).stages


@pytest.mark.parametrize("policy", ["openvla-7b", "tiny"])
def test_weights_are_counted_without_torch(policy: str) -> None:
    settings = read_policy(POLICIES / f"{policy}.yaml")
    counted = memory.parameters(memory.on_meta(settings.model_copy(update={"lora": None})))["in all"]
    left_out = {"openvla-7b": 2e-4, "tiny": 0.03}[policy]
    assert (1 - left_out) * counted < settings.weights < counted


ALL, SOME = {"gpus": 8, "strategy": "fsdp"}, {"gpus": 2, "strategy": "fsdp"}
UPDATES = "sft.updates=9"


@pytest.mark.parametrize(
    ("policy", "parallel", "message"),
    [
        (["paper"], {"train": {"gpus": 8}}, r"train: 7\.50 G .* × 16 bytes .* = 120 GB .* has 80 .* fsdp"),
        # 7.50 G · (16 / 2 + 2) bytes
        (["paper"], {"train": SOME, "gpu_memory": 40}, r"/ 2 \+ × 2 bytes .* = 75 GB .* has 40 .*more gpus"),
        (["paper"], {"train": SOME}, None),
        (["paper"], {"train": {"gpus": 8}, "gpu_memory": 141}, None),
        (["paper", UPDATES], {"sft": ALL, "train": ALL, "evaluate": {"gpus": 1}}, None),
        (["paper", UPDATES], {"sft": {"gpus": 1}}, r"parallel\.sft: .* = 120 GB .*set strategy to fsdp"),
        (["paper"], {"sft": {"gpus": 1}}, None),  # learns nothing
        (
            ["paper"],
            {"evaluate": {"gpus": 1}, "gpu_memory": 24},
            r"× 4 bytes \(float32\) = 30 GB .* bfloat16",
        ),
        (
            ["paper-lora"],
            {"train": ALL},
            r"for all weights in float32, the policy has adapters \(lora\): set ddp",
        ),
        (["paper-lora"], {"train": {"gpus": 8}}, None),
        (
            ["paper-lora"],
            {"train": {"gpus": 1}, "gpu_memory": 12},
            r"× 2 bytes \(bfloat16\) = 15 GB .*larger",
        ),
        (["paper-lora", OVERLAP], {"train": {"gpus": 1}, "gpu_memory": 40}, None),
        (
            ["paper-lora", OVERLAP],
            {"train": {"gpus": 1}, "gpu_memory": 24},
            r"× 2 bytes \(bfloat16\) \+ × 2 bytes \(the copy that acts\) = 30 GB .*, or set train\.overlap",
        ),
        (
            ["paper", OVERLAP],
            {"train": {"gpus": 8}, "gpu_memory": 140},
            r"16 bytes .* \+ × 4 bytes \(the copy that acts\) = 150 GB .*strategy to fsdp.* train\.overlap",
        ),
        (["paper", OVERLAP], {"train": ALL}, None),  # a copy acts anyway
        (["smoke"], {"train": {"processes": 2}, "evaluate": {"processes": 2}}, None),
        (["smoke"], {"train": {"gpus": 8}}, None),  # a small policy has room
        (["smoke"], {"sft": {"processes": 3}}, r"its 3 processes cannot share sft\.batch_size 32 equally"),
        (["paper"], {"sft": {"gpus": 3}}, None),  # learns nothing
    ],
)
def test_what_cannot_fit_is_refused_with_the_arithmetic(
    policy: Sequence[str], parallel: dict[str, Any], message: str | None
) -> None:
    found = list(dict.fromkeys(misfits(validate(Parallel, parallel, "parallel"), stages(*policy))))
    if message is None:
        assert not found
    else:
        assert len(found) == 1 and re.search(message, found[0]), found


def test_a_preset_with_a_misfit_is_refused() -> None:
    preset, source = load_preset("smoke")
    sharded = validate(Parallel, {"train": ALL}, "")
    with pytest.raises(ConfigError, match=r"smoke\.yaml: parallel\.train\.strategy: fsdp .* adapters"):
        plan(
            preset.model_copy(update={"parallel": sharded}),
            source,
            overrides=["policy.lora={rank: 2, alpha: 2}"],
        )


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"train": {"gpus": 2, "processes": 2}}, "p: train: processes 2 beside gpus 2: each GPU has one"),
        ({"evaluate": {"nodes": 2}}, "p: evaluate.nodes 2: evaluations are many jobs"),
        ({"evaluate": {"gpus": 1, "strategy": "fsdp"}}, "evaluation learns nothing"),
        ({"train": {"gpu": 2}}, r"p: train.gpu: unknown key \(did you mean `gpus`"),
    ],
)
def test_what_a_layout_cannot_be(parallel: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(Parallel, parallel, "p")


def test_the_papers_presets_differ_in_what_is_trained_and_where_alone() -> None:
    whole, adapters = (read_yaml(ROOT / f"configs/presets/{name}.yaml") for name in ("paper", "paper-lora"))
    assert whole.pop("name") == "paper" and adapters.pop("name") == "paper-lora"
    layouts = [validate(Parallel, preset.pop("parallel"), "") for preset in (whole, adapters)]
    assert layouts[0].train == Layout(gpus=8, strategy="fsdp") and layouts[1].train == Layout(gpus=1)
    assert whole["settings"].pop("policy") == {"dtype": "float32", "lora": None}
    assert whole == adapters


@pytest.mark.parametrize(
    ("layout", "cores", "simulators"),
    [
        (Layout(), 16, 16),
        (Layout(processes=2), 16, 8),
        (Layout(gpus=1), 12, 24),
        (EIGHT, 96, 24),
        (Layout(nodes=2, gpus=8), 96, 24),  # a node's cores
        (Layout(processes=2), 1, 1),
    ],
)
def test_processes_share_a_nodes_cores(layout: Layout, cores: int, simulators: int) -> None:
    assert workers(layout, cores) == simulators


def test_commands() -> None:
    assert job_command(Layout(), 8) == job_command(Layout(gpus=1), 8) == ["srpo"]
    eight = job_command(EIGHT, 96)
    assert eight == node_command(EIGHT, 96)
    assert eight[:2] == ["env", "OMP_NUM_THREADS=12"] and eight[-2:] == ["--module", "srpo"]
    assert str(ROOT / "configs/accelerate/multi-gpu.yaml") in eight
    assert "--num_processes 8 --num_machines 1 --main_process_port 0" in " ".join(eight)
    sharded = Layout(nodes=2, gpus=8, strategy="fsdp")
    command = job_command(sharded, 96)
    assert command[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert command[-4:-2] == ["bash", "-c"] and command[-1] == "srpo"
    assert "fsdp-8gpu.yaml --num_processes 16 --num_machines 2 --machine_rank $SLURM_NODEID" in command[-2]
    on_cpus = job_command(Layout(processes=2, strategy="fsdp"), 2)
    assert "--mixed_precision no" in " ".join(on_cpus) and "--mixed_precision" not in command[-2]


PRINTS = """
import os, signal, sys, time
def stop(number, frame):
    os.write(1, b"stopped by %d\\n" % number)
    os._exit(75)
signal.signal(signal.SIGUSR1, stop)
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
more = {"fsdp": os.environ.get("ACCELERATE_USE_FSDP"), "arguments": sys.argv[1:]}
import json
os.write(1, (json.dumps({name: os.environ.get(name) for name in names} | more) + "\\n").encode())
if "wait" in sys.argv:
    time.sleep(600)
"""


def started(folder: Path, command: list[str], **variables: str) -> subprocess.Popen[str]:
    """Start a command whose `srpo` prints what it is given."""
    (folder / "srpo.py").write_text(PRINTS)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), **variables}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def told(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, _ = process.communicate(timeout=120)
    return sorted(
        (json.loads(line) for line in out.splitlines() if line[:1] == "{"), key=lambda one: one["RANK"]
    )


def test_two_nodes_meet_by_slurms_own_variables(tmp_path: Path) -> None:
    """Two launchers take the place of two nodes."""
    layout = Layout(nodes=2, gpus=2, strategy="fsdp")
    command = [*node_command(layout, 4), "train", "--out", "a folder"]
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
    nodes = [started(tmp_path, command, SLURM_NODEID=str(node), **slurm) for node in range(2)]
    found = [one for node in nodes for one in told(node)]
    assert [one["RANK"] for one in found] == ["0", "1", "2", "3"]
    assert [one["LOCAL_RANK"] for one in found] == ["0", "1"] * 2
    for one in found:
        assert (one["WORLD_SIZE"], one["MASTER_ADDR"], one["MASTER_PORT"]) == ("4", "127.0.0.1", "23456")
        assert (one["OMP_NUM_THREADS"], one["fsdp"]) == ("2", "true")
        assert one["arguments"] == ["train", "--out", "a folder"]


def test_slurms_signal_reaches_every_process(tmp_path: Path) -> None:
    """Which accelerate's launcher by itself dies of, and leaves its processes behind."""
    process = started(tmp_path, [*node_command(Layout(processes=2), 2), "wait"])
    assert process.stdout is not None
    assert [process.stdout.readline()[:1] for _ in range(2)] == ["{", "{"]
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.read().split("\n")[:2] == [f"stopped by {int(signal.SIGUSR1)}"] * 2
    assert process.wait(60) != 0
