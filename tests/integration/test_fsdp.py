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
from srpo.policies.checkpoints import save_policy
from srpo.runtime import checkpoint, distributed
from srpo.runtime.manifest import sha256
from support import sharding
from support.fine_tuning import demonstration, stage
from support.policies import distance, small_policy, small_settings
from support.recorded_training import descent

RATE = optim.learning_rate


@pytest.mark.parametrize("file", sharding.FILE.parent.glob("*.yaml"), ids=lambda file: file.stem)
def test_accelerate_reads_its_configuration(file: Path) -> None:
    """Its own loader refuses keys that it does not know."""
    config = load_config_from_file(str(file))
    told = {"fsdp-8gpu": 8, "multi-gpu": -1}  # −1: the command line says how many
    assert config.num_processes == told[file.stem]


def processes(folder: Path, how: str, number: int = 2, killed: bool = False) -> str:
    """What this file prints as a script, in so many processes that are started as the workflow does."""
    strategy: Literal["ddp", "fsdp"] = "ddp" if how == "data-parallel" else "fsdp"
    command = node_command(Layout(processes=number, strategy=strategy), cores=number)
    assert command[-2:] == ["--module", "srpo"]
    done = subprocess.run(
        [*command[:-2], __file__, str(folder), how],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode != 0) == killed, done.stderr
    return done.stdout


Run = tuple[list[list[float]], dict[str, torch.Tensor]]


def results(folder: Path) -> Run:
    """Losses of a run, and its policy's weights."""
    assert (folder / "scratch/checkpoint-00000060").exists()
    rows = list(csv.DictReader((folder / "out/metrics.csv").open()))
    losses = [[float(row[key]) for key in ("loss", "cross_entropy", "position_error")] for row in rows]
    return losses, load_file(folder / "out/policy/model.safetensors")


def assert_same(found: Run, expected: Run) -> None:
    """But for rounding."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert found[1].keys() == expected[1].keys()
    assert distance(found[1], expected[1]) <= 2e-6


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """What one process makes of a policy with random weights; `fine_tune` works in this one."""
    for place, name in ((sft, "_task_name"), (sft, "read_demonstrations"), (torch.optim, "AdamW")):
        monkeypatch.setattr(place, name, getattr(place, name))  # put back afterwards
    fine_tune(tmp_path / "one")
    losses, weights = results(tmp_path / "one")
    assert len(losses) == 3 and losses[2][0] < losses[0][0]
    return losses, weights


def test_fine_tuning_in_two_processes_is_that_of_one(one: Run, tmp_path: Path) -> None:
    """The same batches, divided; the same losses; written once; from random weights and from a checkpoint."""
    save_policy(small_policy(), tmp_path / "initial")
    fine_tune(tmp_path / "one-more", tmp_path / "initial")
    assert processes(tmp_path, "data-parallel").count("update 60:") == 1
    assert processes(tmp_path, "sharded").count("update 60:") == 3
    for how in ("data-parallel", "sharded"):
        assert_same(results(tmp_path / how), one)
    assert_same(results(tmp_path / "sharded-more"), results(tmp_path / "one-more"))
    # The last checkpoint of two is read by one.
    fine_tune(tmp_path / "data-parallel")
    assert_same(results(tmp_path / "data-parallel"), one)
    (losses, weights), (again, resumed) = results(tmp_path / "sharded"), results(tmp_path / "interrupted")
    assert again == losses and all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_killed_in_a_save_and_in_an_update_fine_tuning_goes_on_in_any_number_of_processes(
    one: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two spread it, three go on and spread it otherwise, one ends it with all weights."""
    folder = tmp_path / "killed"
    assert "update 40:" in processes(tmp_path, "saving", killed=True)
    left = {path.name for path in (folder / "scratch/checkpoint-00000040").iterdir()}
    assert "part-00001-of-00002.safetensors" in left and "part-00001-of-00002.json" not in left
    assert "resuming after update 20\n" in processes(tmp_path, "updating", number=3, killed=True)
    assert not (folder / "out").exists()
    fine_tune(folder)
    assert "resuming after update 40\n" in capsys.readouterr().out
    assert_same(results(folder), one)


def fine_tune(folder: Path, initial: Path | None = None) -> None:
    sft._task_name = lambda config, task: f"task{task}"
    sft.read_demonstrations = lambda path: [demonstration(30, k) for k in range(3)]
    torch.optim.AdamW = descent
    folder.mkdir(exist_ok=True)
    (folder / "task0_demo.hdf5").touch()
    policy = small_settings(gradient_checkpointing=True, checkpoint=initial and str(initial))
    sft.train(stage(policy, batch_size=12), folder, folder / "out", folder / "scratch")


def die_in_update_47(update: int, *rest: float, **named: int | None) -> float:
    """A learning rate, but the second process does not live to see this one."""
    if update == 46 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return RATE(update, *rest, **named)


def die_in_the_second_save(file: Path) -> str:
    """The hash of a file, but the second process does not live to tell that of its part."""
    if file.parent.name == "checkpoint-00000040" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return sha256(file)


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
    if how == "data-parallel":
        distributed.Accelerator = ParallelAccelerator
        fine_tune(folder / how)
        sys.exit()
    distributed.Accelerator = sharding.ShardingAccelerator
    sft.shard = sharding.shard
    if how == "sharded":
        fine_tune(folder / how)
        fine_tune(folder / f"{how}-more", folder / "initial")
        interrupted(folder / "interrupted")
        torch.distributed.destroy_process_group()
    elif how == "saving":
        checkpoint.sha256 = die_in_the_second_save
        fine_tune(folder / "killed")
    else:
        optim.learning_rate = die_in_update_47
        fine_tune(folder / "killed")
