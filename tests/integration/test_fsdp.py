"""Policies trained by two processes against one: spread by FSDP, and fine-tuned data-parallel."""

import csv
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model

ROOT = Path(__file__).resolve().parents[2]
ACCELERATE = ROOT / "configs" / "accelerate"
sys.path.insert(0, str(ROOT / "tests" / "unit"))
from policies import SUITE, observations, small_policy, small_settings  # noqa: E402
from test_sft import demonstration, stage  # noqa: E402

from srpo import sft  # noqa: E402

STEPS = 3


@pytest.mark.parametrize("file", ACCELERATE.glob("*.yaml"), ids=lambda file: file.stem)
def test_accelerate_reads_its_configuration(file: Path) -> None:
    """Its own loader refuses keys that it does not know."""
    config = load_config_from_file(str(file))
    assert config.num_processes == (8 if "8gpu" in file.stem else 1)


def run(processes: int, *arguments: object) -> str:
    """This file as a script, in so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, __file__, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_learn_and_act_as_one() -> None:
    """Weights after three updates, gradient norms and sampled tokens."""
    assert run(2, "spread").count("the same") == 2


def test_fine_tuning_in_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """The same batches, shared out; the same losses; written once."""
    losses = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        shown = run(processes, "fine-tune", folder)
        assert shown.count("update 60:") == 1
        rows = list(csv.DictReader((folder / "out" / "metrics.csv").open()))
        losses.append([float(row["loss"]) for row in rows])
        assert (folder / "out" / "policy" / "model.safetensors").is_file()
        assert not (folder / "scratch").exists()
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)


def fine_tune(folder: Path) -> None:
    sft._task_name = lambda config, task: f"task{task}"
    sft.read_demonstrations = lambda path: [demonstration(30, k) for k in range(3)]
    (folder / "task0_demo.hdf5").touch()
    config = stage(small_settings(gradient_checkpointing=True))
    sft.train(config, folder, folder / "out", folder / "scratch")


def one_of_two() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, processes = dist.get_rank(), dist.get_world_size()
    wanted = yaml.safe_load((ACCELERATE / "fsdp-8gpu.yaml").read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=wanted["fsdp_version"],
        auto_wrap_policy=wanted["fsdp_auto_wrap_policy"].lower(),
        transformer_cls_names_to_wrap=wanted["fsdp_transformer_layer_cls_to_wrap"].split(","),
        reshard_after_forward=wanted["fsdp_reshard_after_forward"],
        cpu_ram_efficient_loading=wanted["fsdp_cpu_ram_efficient_loading"],
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",  # so that the numbers can be compared
        is_main_process=rank == 0,
        parallelism_config=None,
        device=torch.device("cpu"),
    )
    policy, alone = small_policy(gradient_checkpointing=True), small_policy()
    policy.make_trainable()
    policy = fsdp2_prepare_model(accelerator, policy)
    spread = [name for name, part in policy.named_modules() if type(part).__name__.startswith("FSDP")]
    assert {"vision_backbone.featurizer.blocks.1", "language_model.model.layers.1"} <= set(spread)
    inputs = alone.prepare(SUITE, *observations(4))
    tokens = torch.zeros(4, 56, dtype=torch.long)
    mine = torch.arange(4)[rank::processes]
    optimisers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (policy, alone)]
    for _ in range(STEPS):
        norms = []
        for model, optimiser, part in zip((policy, alone), optimisers, (mine, slice(None)), strict=True):
            log_probs, _ = model.log_probs(inputs[part], tokens[part], 1.0)
            optimiser.zero_grad()
            (-log_probs.mean()).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
            optimiser.step()
        assert abs(norms[0] / norms[1] - 1) < 1e-4
    whole = {name: tensor.full_tensor() for name, tensor in policy.state_dict().items()}
    assert whole.keys() == alone.state_dict().keys()
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(whole[name], tensor, atol=1e-4, rtol=0, msg=name)
    drawn = [
        model.act(inputs, 1.0, [torch.Generator().manual_seed(k) for k in range(4)])
        for model in (policy, alone)
    ]
    np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
    np.testing.assert_allclose(drawn[0][1], drawn[1][1], atol=1e-4)
    print("the same", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "spread":
        one_of_two()
    else:
        fine_tune(Path(sys.argv[2]))
