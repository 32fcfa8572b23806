"""Policies fine-tuned by two processes against one: each has all weights or, under FSDP, a shard of them.

By plain gradient descent, because AdamW amplifies rounding errors.
"""

import csv
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from srpo import ROOT, optim, sft
from srpo.cluster.processes import node_command
from srpo.config import Layout
from srpo.runtime import distributed
from support import sharding
from support.fine_tuning import demonstration, stage
from support.policies import small_settings
from support.recorded_training import descent

RATE = optim.learning_rate


@pytest.mark.parametrize("file", sharding.FILE.parent.glob("*.yaml"), ids=lambda file: file.stem)
def test_accelerate_reads_its_configuration(file: Path) -> None:
    """Its own loader refuses keys that it does not know."""
    config = load_config_from_file(str(file))
    told = {"fsdp-8gpu": 8, "multi-gpu": -1}  # −1: the command line says how many
    assert config.num_processes == told[file.stem]


def two_processes(folder: Path, how: str) -> str:
    """What this file prints as a script, in two processes that are started as the workflow does."""
    strategy: Literal["ddp", "fsdp"] = "fsdp" if how == "sharded" else "ddp"
    command = node_command(Layout(processes=2, strategy=strategy), cores=2)
    assert command[-2:] == ["--module", "srpo"]
    done = subprocess.run(
        [*command[:-2], "--mixed_precision", "no", __file__, str(folder), how],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode == 0) == (how != "killed"), done.stderr
    return done.stdout


def results(folder: Path) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """Losses of a run, and its policy's weights."""
    assert (folder / "scratch/checkpoint-00000060").exists()
    rows = list(csv.DictReader((folder / "out/metrics.csv").open()))
    losses = [[float(row[key]) for key in ("loss", "cross_entropy", "position_error")] for row in rows]
    return losses, load_file(folder / "out/policy/model.safetensors")


def test_fine_tuning_in_two_processes_is_that_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same batches, divided; the same losses; written once.

    Also where one process ends what two began, of which one was killed; under FSDP after an interruption.
    """
    for place, name in ((sft, "_task_name"), (sft, "read_demonstrations"), (torch.optim, "AdamW")):
        monkeypatch.setattr(place, name, getattr(place, name))  # put back afterwards
    fine_tune(tmp_path / "one")
    losses, weights = results(tmp_path / "one")
    assert len(losses) == 3 and losses[2][0] < losses[0][0]
    for how in ("data-parallel", "sharded"):
        assert two_processes(tmp_path, how).count("update 60:") == (2 if how == "sharded" else 1)
        others, found = results(tmp_path / how)
        np.testing.assert_allclose(others, losses, rtol=1e-5)
        assert found.keys() == weights.keys()
        assert max(float((found[name] - weights[name]).abs().max()) for name in weights) <= 1e-6
    assert "update 40:" in two_processes(tmp_path, "killed")
    assert not (tmp_path / "killed/out").exists()
    fine_tune(tmp_path / "killed")
    assert "resuming after update 40\n" in capsys.readouterr().out
    ended, weighed = results(tmp_path / "killed")
    np.testing.assert_allclose(ended, losses, rtol=1e-5)
    assert max(float((weighed[name] - weights[name]).abs().max()) for name in weights) <= 1e-6
    again, resumed = results(tmp_path / "interrupted")
    assert again == others and all(torch.equal(resumed[name], found[name]) for name in found)


def fine_tune(folder: Path) -> None:
    sft._task_name = lambda config, task: f"task{task}"
    sft.read_demonstrations = lambda path: [demonstration(30, k) for k in range(3)]
    torch.optim.AdamW = descent
    folder.mkdir(exist_ok=True)
    (folder / "task0_demo.hdf5").touch()
    config = stage(small_settings(gradient_checkpointing=True))
    sft.train(config, folder, folder / "out", folder / "scratch")


def die_in_update_47(update: int, *rest: float, **named: int | None) -> float:
    """A learning rate, but the second process does not live to see this one."""
    if update == 46 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return RATE(update, *rest, **named)


def interrupted(folder: Path) -> None:
    """Fine-tune, but stop in the 47th update and go on from the 40th."""

    def stop(update: int, *rest: float, **named: int | None) -> float:
        if update == 46:
            raise KeyboardInterrupt
        return RATE(update, *rest, **named)

    optim.learning_rate = stop
    with pytest.raises(KeyboardInterrupt):
        fine_tune(folder)
    assert (folder / "scratch/checkpoint-00000040").exists()
    optim.learning_rate = RATE
    fine_tune(folder)


class ParallelAccelerator(distributed.Accelerator):
    """Checks that nothing of the training holds the process group when it ends."""

    def end_training(self) -> None:
        assert not any(type(each) is DistributedDataParallel for each in gc.get_objects())
        super().end_training()


if __name__ == "__main__":
    folder, how = Path(sys.argv[1]), sys.argv[2]
    sharded = how == "sharded"
    if how == "killed":
        optim.learning_rate = die_in_update_47
    distributed.Accelerator = sharding.ShardingAccelerator if sharded else ParallelAccelerator
    fine_tune(folder / how)
    if sharded:
        interrupted(folder / "interrupted")
        torch.distributed.destroy_process_group()
