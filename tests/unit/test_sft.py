"""Supervised fine-tuning: samples, targets, and resuming without a trace."""

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from policies import SUITE, small_settings
from safetensors.torch import load_file

from srpo import sft
from srpo.config import Protocol, Sft, SftStage
from srpo.demos import Demonstration
from srpo.policies import action_tokens


def demonstration(length: int, seed: int) -> Demonstration:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
    actions[:, 6] = np.where(np.arange(length) < length // 2, -1, 1)
    images = rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8)
    return Demonstration(
        "turn on the stove", images, rng.normal(size=(length, 8)).astype(np.float32), actions
    )


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


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    rates = [sft.learning_rate(k, 100, 1.0, 0.1) for k in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[-1] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[10:]))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A tiny real run. Demonstrations come from memory: their files have tests of their own."""
    monkeypatch.setattr(sft, "_task_name", lambda config, task: f"task{task}")
    monkeypatch.setattr(sft, "read_demonstrations", lambda path: [demonstration(30, k) for k in range(3)])
    with h5py.File(tmp_path / "task0_demo.hdf5", "w"):
        pass
    config = SftStage(
        preset="test",
        suite=SUITE,
        tasks=(0,),
        protocol=Protocol(
            profile="held_out", max_steps=9, settle_steps=0, env_seed=0, image_size=16, render="fast"
        ),
        variant="sft",
        seed=3,
        policy=small_settings(),
        sft=Sft(
            updates=60,
            batch_size=16,
            learning_rate=1e-2,
            weight_decay=0.0,
            warmup=0.1,
            label_smoothing=3.0,
            auxiliary=1.0,
            stride=1,
            grad_clip=1.0,
            checkpoint_every=20,
        ),
    )
    return SimpleNamespace(config=config, folder=tmp_path)


def test_it_learns(run: SimpleNamespace) -> None:
    sft.train(run.config, run.folder, run.folder / "out", run.folder / "scratch")
    rows = (run.folder / "out" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in rows] == ["update", "20", "40", "60"]
    assert float(rows[3].split(",")[1]) < float(rows[1].split(",")[1]) - 0.2
    assert not (run.folder / "scratch").exists()


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sft.train(run.config, run.folder, run.folder / "whole", run.folder / "scratch")
    rate = sft.learning_rate

    def stop(update: int, *rest: float) -> float:
        if update == 47:
            raise KeyboardInterrupt
        return rate(update, *rest)

    monkeypatch.setattr(sft, "learning_rate", stop)
    with pytest.raises(KeyboardInterrupt):
        sft.train(run.config, run.folder, run.folder / "parts", run.folder / "scratch")
    assert not (run.folder / "parts").exists()
    monkeypatch.setattr(sft, "learning_rate", rate)
    sft.train(run.config, run.folder, run.folder / "parts", run.folder / "scratch")
    assert "resuming after update 40" in capsys.readouterr().out
    whole, parts = (load_file(run.folder / n / "policy" / "model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    def rows(name: str) -> list[list[str]]:
        return [line.split(",")[:-1] for line in (run.folder / name / "metrics.csv").read_text().splitlines()]

    assert rows("whole") == rows("parts")


def test_nothing_to_start_from_is_said(run: SimpleNamespace) -> None:
    config = run.config.model_copy(update={"sft": run.config.sft.model_copy(update={"updates": 0})})
    with pytest.raises(SystemExit, match="nothing to start from"):
        sft.train(config, run.folder, run.folder / "out", run.folder / "scratch")
