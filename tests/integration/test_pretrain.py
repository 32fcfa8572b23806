"""Play in real libero_90 scenes, and pretraining by the command line, killed on the way and run again."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from transformers import VJEPA2Model

from srpo.config import Pretraining, Protocol, WorldModel, WorldModelStage
from srpo.envs.libero import LiberoEnv
from srpo.world_models import load_world_model
from srpo.world_models.pretraining import play
from srpo.world_models.pretraining.play import collect_play, episode_file

pytestmark = pytest.mark.integration

CONFIG = WorldModelStage(
    preset="test",
    protocol=Protocol(
        profile="official", max_steps=100, settle_steps=2, env_seed=0, image_size=48, render="fast"
    ),
    world_model=WorldModel(
        name="vjepa2-tiny",
        kind="vjepa2",
        checkpoint=None,
        revision=None,
        frames=4,
        image_size=32,
        pooling="mean",
        dtype="float32",
        pretraining=Pretraining(
            scenes=(9,),
            episodes=2,
            steps=40,
            updates=130,
            batch_size=4,
            learning_rate=1e-3,
            ema=0.99,
            mask_ratio=0.5,
            hidden_size=24,
            depth=2,
            heads=2,
            patch_size=8,
            predictor_hidden_size=12,
            predictor_depth=1,
            predictor_heads=1,
            seed=0,
        ),
    ),
)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene's two play episodes, by one process."""
    folder = tmp_path_factory.mktemp("play")
    assert collect_play(CONFIG, folder, workers=1) == [episode_file(folder, 9, n) for n in range(2)]
    return folder


def test_play_moves_things(played: Path) -> None:
    for number in range(2):
        frames = np.load(episode_file(played, 9, number), allow_pickle=False)
        assert frames.shape == (4, 48, 48, 3) and frames.dtype == np.uint8
        changed = np.abs(np.diff(frames.astype(int), axis=0)).max(-1) > 30
        assert (
            changed.mean((1, 2)) > 0.01
        ).all()  # the arm alone covers more than a hundredth of the picture


def test_play_does_not_depend_on_the_workers(played: Path, tmp_path: Path) -> None:
    collect_play(CONFIG, tmp_path, workers=2)  # one episode a process, so the second is its process's first
    for number in range(2):
        one, two = (np.load(episode_file(folder, 9, number)) for folder in (played, tmp_path))
        np.testing.assert_array_equal(one, two)


def test_play_goes_on_after_an_unstable_simulation(
    played: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The episode is played anew with other actions; the next one is what it always was."""
    step, steps = LiberoEnv.step, iter(range(1000))

    def upset(env: LiberoEnv, action: NDArray[np.float64]) -> bool:
        if next(steps) == 20:
            env.data.qvel[3] = 1e11
        return step(env, action)

    monkeypatch.setattr(LiberoEnv, "step", upset)
    play._play_scene(CONFIG, tmp_path, 9, range(2))
    first, second = (np.load(episode_file(tmp_path, 9, number)) for number in range(2))
    assert next(steps) > 2 * 40, "the first episode was played twice, in part"
    assert first.shape == second.shape and (first != np.load(episode_file(played, 9, 0))).any()
    np.testing.assert_array_equal(second, np.load(episode_file(played, 9, 1)))


def test_pretraining_survives_a_kill(played: Path, tmp_path: Path) -> None:
    settings, out, scratch = tmp_path / "config.yaml", tmp_path / "out", tmp_path / "scratch"
    settings.write_text(yaml.safe_dump(json.loads(CONFIG.model_dump_json())))
    command = [
        sys.executable,
        "-m",
        "srpo.world_models.pretraining.pretrain",
        "--config",
        str(settings),
        "--workers",
        "1",
    ]
    command += ["--out", str(out), "--scratch", str(scratch)]
    checkpoint = scratch / "checkpoint.pt"

    process = subprocess.Popen(command, start_new_session=True)
    try:
        while not checkpoint.exists():
            assert process.poll() is None, "pretraining ended without a checkpoint"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    kept = episode_file(scratch / "play", 9, 0)
    np.testing.assert_array_equal(np.load(kept), np.load(episode_file(played, 9, 0)))

    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "resuming after update" in again.stderr
    assert not checkpoint.exists() and not kept.exists()  # all done, nothing left behind

    with (out / "metrics.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [int(row["update"]) for row in rows] == list(range(1, 131))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["config"]["world_model"]["pretraining"]["updates"] == 130
    processor = json.loads((out / "video_preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 36} and processor["crop_size"]["height"] == 32

    model, report = VJEPA2Model.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.hidden_size == 24
    frames = np.load(episode_file(played, 9, 1))
    embeddings = load_world_model(CONFIG.world_model, out, device="cpu").embed_prefixes(frames, range(4))
    assert np.linalg.norm(embeddings[0] - embeddings[3]) > 1e-3


def test_a_world_model_without_pretraining_is_refused(tmp_path: Path) -> None:
    pixel = CONFIG.world_model.model_copy(
        update={"kind": "pixel", "name": "pixel", "pooling": None, "pretraining": None}
    )
    settings = tmp_path / "config.yaml"
    stage = CONFIG.model_copy(update={"world_model": pixel})
    settings.write_text(yaml.safe_dump(json.loads(stage.model_dump_json())))
    command = [sys.executable, "-m", "srpo", "pretrain", "--config", str(settings)]
    command += ["--out", str(tmp_path / "out"), "--scratch", str(tmp_path / "scratch")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "error: world model pixel: world_model.pretraining is not set" in result.stderr
