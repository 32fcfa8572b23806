"""Offline SRPO: one set of rollouts, scored once, learnt from again and again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from srpo.config import Offline, TrainStage
from srpo.episode import EpisodeSpec
from srpo.policies.checkpoints import save_policy
from srpo.results.rows import read_rows
from srpo.results.schemas import REWARDS, RL_METRICS
from srpo.rl import score, trainer, update
from support.policies import small_policy
from support.recorded_training import RecordedRollouts
from support.rl_steps import batch, learn, scored
from support.stages import training_stage as stage

SETTINGS = Offline(beta=1.0, max_weight=20.0)


def config(**changes: object) -> TrainStage:
    return stage({"offline": SETTINGS, "learning_rate": 1e-3, **changes})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[EpisodeSpec]:
    """Every episode that is run, by recorded rollouts in place of the simulator."""
    ran: list[EpisodeSpec] = []

    class Listed(RecordedRollouts):
        def run(self, specs):  # type: ignore[no-untyped-def]
            ran.extend(specs)
            return super().run(specs)

    monkeypatch.setattr(trainer, "PolicyRunner", Listed)
    return ran


def train(folder: Path, settings: TrainStage) -> None:
    if not (folder / "initial").exists():
        save_policy(small_policy(), folder / "initial")
    folders = trainer.Folders(folder / "initial", folder / "out", folder / "scratch")
    trainer.Trainer(settings, folders, workers=1).train()


def test_what_is_learnt_is_what_the_better_episodes_did() -> None:
    """With a small beta the worse episodes weigh nothing; with the signs turned round, the better ones."""
    settings = config(minibatch=4, offline=Offline(beta=0.05, max_weight=20.0))
    data = batch(settings, "1100" + "1010" + "0001" + "1110", small_policy())
    right = scored(settings, data)

    def preference(scores: score.BatchScores) -> float:
        """Σ log π of the successes minus that of the failures, after an update."""
        policy = small_policy()
        optimiser = torch.optim.SGD(policy.parameters(), lr=1e-3)
        learn(settings, policy, None, optimiser, data, scores)
        signs = np.array([1.0 if data.episodes[k].success else -1.0 for k in data.episodes])
        actions = update.make_action_batch(
            settings, policy, update.episode_queries(data.episodes.values(), signs)
        )
        with torch.no_grad():
            log_probs, _ = policy.log_probs(actions.inputs, actions.tokens, 1.0)
        return float((log_probs * actions.valid * actions.advantages[:, None]).sum())

    assert preference(right) > preference(replace(right, advantages=-right.advantages)) + 1


def test_the_set_is_rolled_out_and_scored_once(ran: list[EpisodeSpec], tmp_path: Path) -> None:
    train(tmp_path, config())
    assert len(ran) == len(set(ran)) == 16
    metrics = read_rows(tmp_path / "out/metrics.csv", RL_METRICS)
    assert metrics["step"].tolist() == [1, 2, 3] and metrics["distance_mean"].nunique() == 1
    assert metrics["loss"].is_monotonic_decreasing
    assert metrics["seconds_rollout"].tolist()[1:] == [0, 0] and metrics["seconds_rollout"][0] > 0
    rewards = read_rows(tmp_path / "out/rewards.parquet", REWARDS)
    assert len(rewards) == metrics["episodes"][0] and set(rewards["step"]) == {1}
    # Asked for once more, the results are written at once, from the last checkpoint.
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.*") if file.suffix != ".json"}
    train(tmp_path, config())
    assert len(ran) == 16 and all(file.read_bytes() == content for file, content in before.items())


def test_a_stopped_run_goes_on_to_the_same_bits(
    ran: list[EpisodeSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(whole, config())
    first = len(ran)
    ran.clear()

    class StopError(Exception):
        pass

    def stop(run: trainer.Trainer, step: int) -> None:
        if step == 2:
            raise StopError
        original(run, step)

    original = trainer.Trainer.save
    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(trainer.Trainer, "save", stop)
        train(stopped, config())
    assert len(ran) == first and not (stopped / "out/policy").exists()
    ran.clear()
    train(stopped, config())
    # Only those that could not be run are tried again.
    assert len(ran) == first - len(read_rows(stopped / "out/rewards.parquet", REWARDS))
    one, two = (load_file(folder / "out/policy/model.safetensors") for folder in (whole, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)
    start = load_file(whole / "initial/model.safetensors")
    assert any(not torch.equal(one[name], start[name]) for name in one)
    rows = [read_rows(folder / "out/metrics.csv", RL_METRICS) for folder in (whole, stopped)]
    left = [
        frame[[name for name in frame if "second" not in name and "memory" not in name]] for frame in rows
    ]
    pd.testing.assert_frame_equal(*left, check_exact=True)


def test_one_command_trains_online_and_offline(
    ran: list[EpisodeSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online each step has episodes of its own, offline all have the same."""
    save_policy(small_policy(), tmp_path / "initial")
    for name, settings, episodes in (("online", stage({"steps": 2}), 32), ("offline", config(steps=2), 16)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(settings.model_dump_json())
        options = {"config": file, "policy": tmp_path / "initial", "out": tmp_path / name}
        options["scratch"] = tmp_path / f"{name}-scratch"
        monkeypatch.setattr("sys.argv", ["train", *(f"--{key}={value}" for key, value in options.items())])
        ran.clear()
        trainer.main()
        assert len(ran) == len(set(ran)) == episodes
        assert read_rows(tmp_path / name / "metrics.csv", RL_METRICS)["step"].tolist() == [1, 2]


def test_there_is_no_evaluation_in_the_loop() -> None:
    with pytest.raises(ValidationError, match="evaluate_every must be 0 offline"):
        config(evaluate_every=1)
