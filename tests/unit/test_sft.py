"""Supervised fine-tuning: samples, targets, and resuming without a trace."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from srpo import optim, sft
from srpo.config import Lora
from srpo.policies import action_tokens
from srpo.policies.augmentation import augment
from srpo.policies.checkpoints import load_policy
from srpo.policies.weights import CheckpointError, read_index
from srpo.runtime.files import DiskFullError
from srpo.runtime.hub import FetchError
from srpo.runtime.manifest import sha256
from support import openvla_layout as layout
from support.fine_tuning import demonstration, stage
from support.policies import SUITE, small_settings
from support.small_disk import enlarge, small_disk


def test_a_chunk_behind_the_end_rests_with_the_gripper_as_it_was() -> None:
    actions = demonstration(10, 0).actions
    np.testing.assert_array_equal(sft.chunk_at(actions, 1), actions[1:9])
    tail = sft.chunk_at(actions, 7)
    np.testing.assert_array_equal(tail[:3], actions[7:])
    np.testing.assert_array_equal(tail[3:], np.tile([0, 0, 0, 0, 0, 0, 1.0], (5, 1)))


def test_samples_hold_what_was_seen_and_what_was_done() -> None:
    one = demonstration(9, 1)
    statistics = action_tokens.action_statistics(action_tokens.from_libero(one.actions))
    samples = sft.build_samples([one], 4, statistics)
    np.testing.assert_array_equal(samples.images, one.images[[0, 4, 8]])
    decoded = action_tokens.decode(samples.targets[0]).reshape(8, 7)
    back = action_tokens.to_libero(action_tokens.unnormalise(decoded, statistics))
    inside = (one.actions[:8] >= statistics["q01"]) & (one.actions[:8] <= statistics["q99"])
    error = np.abs(back - one.actions[:8])
    assert error[inside].max() < 2 / 255 and (error[:, 6] == 0).all()


def test_soft_targets() -> None:
    assert torch.equal(sft.soft_targets(0), torch.eye(256))
    rows = sft.soft_targets(3.0)
    torch.testing.assert_close(rows.sum(1), torch.ones(256))
    # Three bins away a Gaussian of width three has fallen by exp(-1/2).
    assert rows[100, 103] / rows[100, 100] == pytest.approx(math.exp(-0.5), rel=1e-5)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A tiny real run. Demonstrations come from memory: their files have tests of their own."""
    monkeypatch.setattr(sft, "_task_name", lambda config, task: f"task{task}")
    monkeypatch.setattr(sft, "read_demonstrations", lambda path: [demonstration(30, k) for k in range(3)])
    with h5py.File(tmp_path / "task0_demo.hdf5", "w"):
        pass
    return SimpleNamespace(config=stage(small_settings()), folder=tmp_path)


def test_it_learns(run: SimpleNamespace) -> None:
    sft.train(run.config, run.folder, run.folder / "out", run.folder / "scratch")
    rows = (run.folder / "out" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in rows] == ["update", "20", "40", "60"]
    assert float(rows[3].split(",")[1]) < float(rows[1].split(",")[1]) - 0.2
    assert {p.name for p in (run.folder / "scratch").iterdir()} == {"run.json", "checkpoint-00000060"}


def test_pictures_are_augmented_each_by_its_own_seed(run: SimpleNamespace) -> None:
    """So a sample's picture is the same on any number of processes."""
    images = demonstration(3, 0).images
    seeds = [[3, 1, place] for place in range(3)]
    off, on = (
        sft.FineTuner(
            stage(small_settings(crop_area=0.9), image_augmentation=set_), run.folder, scratch, None
        )
        for set_, scratch in ((False, run.folder / "off"), (True, run.folder / "on"))
    )
    plain, augmented = off.pixels(images, seeds), on.pixels(images, seeds)
    np.testing.assert_array_equal(plain, np.stack([off.policy.image_transform(image) for image in images]))
    expected = augment(images[2], 0.9, np.random.default_rng([3, 1, 2]))
    np.testing.assert_array_equal(on.pixels(images[2:], seeds[2:])[0], expected)
    np.testing.assert_array_equal(augmented[2], expected)
    assert (augmented != plain).mean() > 0.5


def test_a_finished_run_is_written_again_at_once(
    run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sft.train(run.config, run.folder, run.folder / "out", run.folder / "scratch")
    monkeypatch.setattr(optim, "learning_rate", None)  # no update can be made
    sft.train(run.config, run.folder, run.folder / "again", run.folder / "scratch")
    for file in ("policy/model.safetensors", "metrics.csv"):
        assert (run.folder / "again" / file).read_bytes() == (run.folder / "out" / file).read_bytes()


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sft.train(run.config, run.folder, run.folder / "whole", run.folder / "other-scratch")
    rate = optim.learning_rate

    def stop(update: int, *rest: float, **named: int | None) -> float:
        if update == 47:
            raise KeyboardInterrupt
        return rate(update, *rest, **named)

    monkeypatch.setattr(optim, "learning_rate", stop)
    often = run.config.sft.model_copy(update={"checkpoint_every": 15})  # between two rows of metrics.csv
    config = run.config.model_copy(update={"sft": often})
    with pytest.raises(KeyboardInterrupt):
        sft.train(config, run.folder, run.folder / "parts", run.folder / "scratch")
    assert not (run.folder / "parts").exists()
    monkeypatch.setattr(optim, "learning_rate", rate)
    sft.train(config, run.folder, run.folder / "parts", run.folder / "scratch")
    assert "resuming after update 45" in capsys.readouterr().out
    whole, parts = (load_file(run.folder / n / "policy" / "model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    def rows(name: str) -> list[list[str]]:
        return [line.split(",")[:-1] for line in (run.folder / name / "metrics.csv").read_text().splitlines()]

    assert rows("whole") == rows("parts")


def test_a_run_goes_on_from_its_last_checkpoint_when_there_is_room_again(run: SimpleNamespace) -> None:
    """The disk is full when a checkpoint is written, and another one when the policy is."""
    sft.train(run.config, run.folder, run.folder / "whole", run.folder / "other-scratch")
    whole = load_file(run.folder / "whole/policy/model.safetensors")
    scratch, out = run.folder / "scratch", run.folder / "out"
    checkpoint = sum(f.stat().st_size for f in (run.folder / "other-scratch/checkpoint-00000060").iterdir())

    def train() -> None:
        sft.train(run.config, run.folder, out, scratch / "run")

    with small_disk(scratch, checkpoint * 3 // 2), small_disk(out, checkpoint // 5):
        with pytest.raises(DiskFullError, match=rf"^{scratch}/run/checkpoint-00000040: no room left"):
            train()
        assert not list(out.iterdir())
        enlarge(scratch, checkpoint * 4)
        with pytest.raises(DiskFullError, match=rf"^{out}/policy: no room left .* a training goes on from"):
            train()
        assert not list(out.iterdir())
        enlarge(out, checkpoint)
        train()
        found = load_file(out / "policy/model.safetensors")
        assert all(torch.equal(whole[name], found[name]) for name in whole)


def poison(monkeypatch: pytest.MonkeyPatch, update: int, value: float) -> None:
    """From this update on, one number of the gradient is `value`; the loss is finite."""
    made = sft.FineTuner.update

    def spoilt(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[0, 0] = value
        return gradient

    def watched(run: sft.FineTuner, done: int, rate: float) -> list[float]:
        if done + 1 == update:
            run.policy.projector.fc1.weight.register_hook(spoilt)
        return made(run, done, rate)

    monkeypatch.setattr(sft.FineTuner, "update", watched)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_the_run_and_is_not_saved(
    run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Started again without the fault, it ends as if there had been none."""
    sft.train(run.config, run.folder, run.folder / "whole", run.folder / "other-scratch")
    with monkeypatch.context() as patch:
        poison(patch, 27, value)
        message = r"^error: update 27: the loss is \d\.\d+, the gradient's norm (nan|inf)\."
        with pytest.raises(SystemExit, match=message):
            sft.train(run.config, run.folder, run.folder / "out", run.folder / "scratch")
    assert not (run.folder / "out").exists()
    assert [p.name for p in (run.folder / "scratch").glob("checkpoint-*")] == ["checkpoint-00000020"]
    sft.train(run.config, run.folder, run.folder / "out", run.folder / "scratch")
    whole, parts = (load_file(run.folder / n / "policy" / "model.safetensors") for n in ("whole", "out"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_changes_weights(run: SimpleNamespace) -> None:
    """The first update's rate throws the weights far out; the second sees it, long before a checkpoint."""
    config = stage(small_settings(), learning_rate=1e30, warmup=0.0)
    with pytest.raises(SystemExit, match=r"update 2: the loss is (nan|inf)"):
        sft.train(config, run.folder, run.folder / "out", run.folder / "scratch")
    assert not (run.folder / "out").exists() and not list((run.folder / "scratch").glob("checkpoint-*"))


def test_nothing_to_start_from_is_said(run: SimpleNamespace) -> None:
    config = run.config.model_copy(update={"sft": run.config.sft.model_copy(update={"updates": 0})})
    with pytest.raises(SystemExit, match="nothing to start from"):
        sft.train(config, run.folder, run.folder / "out", run.folder / "scratch")


def test_a_released_checkpoint_is_taken_as_it_is(
    run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = run.folder / "fetched"
    layout.write(fetched, layout.random_tensors())
    files = {file.name: sha256(file) for file in fetched.iterdir()}
    (fetched / "fetched.json").write_text(json.dumps({"files": files}))
    config = stage(layout.settings(checkpoint="lab/policy"), updates=0)
    with pytest.raises(CheckpointError, match=r"srpo download --checkpoint lab/policy"):
        sft.train(config, run.folder, run.folder / "out", run.folder / "scratch")
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")  # of several processes only the first writes
        sft.train(config, run.folder, run.folder / "out", run.folder / "scratch", fetched)
    assert not (run.folder / "out").exists()
    sft.train(config, run.folder, run.folder / "out", run.folder / "scratch", fetched)
    policy = load_policy(run.folder / "out" / "policy")
    for name, tensor in load_policy(fetched, policy=config.policy).state_dict().items():
        assert torch.equal(policy.state_dict()[name], tensor)
    assert policy.statistics(SUITE) == layout.STATISTICS["libero_goal_no_noops"]
    manifest = json.loads((run.folder / "out" / "manifest.json").read_text())
    assert manifest["inputs"] == {"checkpoint": sha256(fetched / "fetched.json")}
    elsewhere = config.model_copy(update={"suite": "libero_10"})
    with pytest.raises(CheckpointError, match="not for 'libero_10'"):
        sft.train(elsewhere, run.folder, run.folder / "other", run.folder / "scratch", fetched)
    (fetched / "dataset_statistics.json").write_text("{}")
    (fetched / "config.json").write_text((fetched / "config.json").read_text() + " ")
    with pytest.raises(FetchError, match=r"changed since it was fetched: config\.json"):
        sft.train(config, run.folder, run.folder / "out", run.folder / "scratch", fetched)


def test_a_released_checkpoint_is_copied_in_the_precision_of_its_files(run: SimpleNamespace) -> None:
    """Also for a policy that will be trained in float32: 7B whole in that would take 30 GB of host memory."""
    tensors = {name: tensor.bfloat16() for name, tensor in layout.random_tensors().items()}
    layout.write(run.folder / "released", tensors)
    config = stage(layout.settings(checkpoint=str(run.folder / "released"), dtype="float32"), updates=0)
    sft.train(config, run.folder, run.folder / "out", run.folder / "scratch")
    assert {entry.dtype for entry in read_index(run.folder / "out" / "policy").values()} == {"BF16"}
    policy = load_policy(run.folder / "out" / "policy")
    for name, tensor in load_policy(run.folder / "released", policy=config.policy).state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(policy.state_dict()[name], tensor)


def test_adapters_of_a_released_checkpoint_are_fine_tuned(run: SimpleNamespace) -> None:
    """The saved policy has them beside the layers that they belong to; all else is as it was."""
    tensors = layout.random_tensors()
    layout.write(run.folder / "official", tensors)
    lora = Lora(rank=4, alpha=8.0)
    policy = layout.settings(checkpoint=str(run.folder / "official"), lora=lora, gradient_checkpointing=True)
    config = stage(policy, auxiliary=0.0, updates=40)
    sft.train(config, run.folder, run.folder / "out", run.folder / "scratch")
    rows = (run.folder / "out" / "metrics.csv").read_text().splitlines()
    assert float(rows[2].split(",")[1]) < float(rows[1].split(",")[1]) - 0.1
    trained = load_policy(run.folder / "out" / "policy").state_dict()
    unchanged = {
        name for name, tensor in tensors.items() if name in trained and torch.equal(trained[name], tensor)
    }
    added = trained.keys() - unchanged
    linear = {
        n.removesuffix(".weight")
        for n in unchanged
        if re.search(r"(attn|mlp|projector)\S*\.(\w+_proj|qkv|proj|fc\d)\.weight$", n)
    }
    assert added == {f"{name}.lora_{factor}" for name in linear for factor in "AB"}
    assert all(trained[name].any() for name in added)


def test_a_batch_that_does_not_divide_is_refused(
    run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(SystemExit, match="batch_size 16 is not a multiple of the 3 processes"):
        sft.train(run.config, run.folder, run.folder / "out", run.folder / "scratch")
