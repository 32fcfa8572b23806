"""Offline SRPO: one set of rollouts, scored once, learnt from again and again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import load_file

from srpo.config import Offline, TrainStage
from srpo.episode import Episode, EpisodeSpec
from srpo.policies.checkpoints import save_policy
from srpo.results.rows import read_rows
from srpo.results.schemas import REWARDS, RL_METRICS
from srpo.rl import score, trainer, update
from srpo.world_models import load_world_model
from support.policies import small_policy
from support.recorded_training import RecordedRollouts
from support.rl_steps import batch, learn, scored
from support.stages import PIXEL
from support.stages import training_stage as stage

SETTINGS = Offline(beta=1.0, max_weight=20.0)
BY_STEP = Offline(advantage="step", beta=1.0, max_weight=20.0)


def config(**changes: object) -> TrainStage:
    return stage({"offline": SETTINGS, "learning_rate": 1e-3, **changes})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[EpisodeSpec]:
    """Every episode that is run, by recorded rollouts in place of the simulator."""
    ran: list[EpisodeSpec] = []

    class Listed(RecordedRollouts):
        def run(self, specs, others=()):  # type: ignore[no-untyped-def]
            ran.extend(specs)
            return super().run(specs, others)

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


def test_a_group_that_succeeded_throughout_is_imitated_and_one_that_failed_is_not() -> None:
    settings = config(minibatch=4, keep_success=(0.0, 1.0))

    def moved(outcomes: str) -> bool:
        data = batch(settings, outcomes, small_policy())
        policy = small_policy()
        before = {name: value.clone() for name, value in policy.state_dict().items()}
        optimiser = torch.optim.SGD(policy.parameters(), lr=1e-3)
        learn(settings, policy, None, optimiser, data, scored(settings, data))
        return any(not torch.equal(before[name], value) for name, value in policy.state_dict().items())

    assert moved("1111" * 4) and not moved("0000" * 4)


def test_the_set_is_rolled_out_and_scored_once(ran: list[EpisodeSpec], tmp_path: Path) -> None:
    train(tmp_path, config())
    assert len(ran) == len(set(ran)) == 16
    metrics = read_rows(tmp_path / "out/metrics.csv", RL_METRICS)
    assert metrics["step"].tolist() == [1, 2, 3] and metrics["distance_mean"].nunique() == 1
    assert metrics["loss"].is_monotonic_decreasing
    assert metrics["seconds_rollout"].tolist()[1:] == [0, 0] and metrics["seconds_rollout"][0] > 0
    assert metrics["environment_steps"].tolist()[1:] == [0, 0] and metrics["environment_steps"][0] > 0
    assert metrics["episodes_per_second"].notna().tolist() == [True, False, False]
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


# By steps.


def on_a_line(*places: float) -> NDArray[np.float32]:
    return np.array([[1, place] for place in places], np.float32)


def test_each_chunk_of_each_task_has_its_own_advantage() -> None:
    """Two groups of two tasks each; the second task has no success, and nothing to be compared with."""
    settings = config(offline=BY_STEP)
    data = batch(settings, "1100" + "0000" + "0000" + "0000", small_policy())
    assert data.tasks.tolist() == [7] * 4 + [8] * 4 + [7] * 4 + [8] * 4
    # Episodes have 2, 2, 2 and 3 chunks. The successes end at 1 and −1: the reference is 0.
    paths = [(4, 2, 1), (-4, -2, -1), (4, 3, 4), (4, 2, 0, 4)]
    prefixes = {number: on_a_line(*paths[number % 4]) for number in data.episodes}
    whole = np.stack([prefixes[number][-1] for number in range(16)])
    scores = score.score_steps(settings, data, score.score_batch(settings, data, whole), prefixes, whole)
    # d/max d: 1, 0.5, 0.25; the same; 1, 0.75, 1; 1, 0.5, 0, 1. In two groups, of which the first two
    # episodes of the second are failures, rewarded alike.
    gains = [[0.5, 0.25], [0.5, 0.25], [0.25, -0.25], [0.5, 0.5, -1]]
    pooled = np.concatenate(gains * 2)
    expected = [(np.array(each) - pooled.mean()) / pooled.std() for each in gains]
    assert scores.chunks is not None
    for number in range(16):
        kept = data.tasks[number] == 7
        assert scores.kept[number] == scores.signal[number] == kept
        assert scores.chunks[number] == pytest.approx(expected[number % 4] if kept else [])
        assert scores.advantages[number] == pytest.approx(expected[number % 4].mean() if kept else 0)


def test_a_broken_prefix_leaves_its_episode_out() -> None:
    settings = config(offline=BY_STEP)
    data = batch(settings, "1000" * 4, small_policy())
    lengths = {number: len(episode.images) + 1 for number, episode in data.episodes.items()}
    prefixes = {number: on_a_line(*range(length)) for number, length in lengths.items()}
    prefixes[1] = np.concatenate([on_a_line(np.nan), prefixes[1][1:]])
    whole = np.stack([prefixes[number][-1] for number in range(16)])
    scores = score.score_steps(settings, data, score.score_batch(settings, data, whole), prefixes, whole)
    assert np.flatnonzero(~scores.kept).tolist() == [1] and scores.chunks is not None
    assert len(scores.chunks[1]) == 0 and np.isfinite(np.concatenate(scores.chunks)).all()


def test_experts_are_references_by_steps_too() -> None:
    settings = stage({"offline": BY_STEP}, {"references": "fixed_expert"})
    data = batch(settings, "0000" * 4, small_policy())
    prefixes = {k: on_a_line(*range(9, 8 - len(each.images), -1)) for k, each in data.episodes.items()}
    whole = np.stack([prefixes[number][-1] for number in range(16)])
    experts = {7: on_a_line(0), 8: on_a_line(9, 20)}
    before = score.score_batch(settings, data, whole, experts)
    scores = score.score_steps(settings, data, before, prefixes, whole, experts)
    assert scores.kept.all() and scores.chunks is not None
    # Task 7 gains 1/9 a chunk; task 8 starts on its expert: it loses all, in equal parts.
    gains = [
        np.full(n := len(data.episodes[k].images), 1 / 9 if data.tasks[k] == 7 else -1 / n) for k in range(16)
    ]
    pooled = np.concatenate(gains)
    for chunks, each in zip(scores.chunks, gains, strict=True):
        assert chunks == pytest.approx((each - pooled.mean()) / pooled.std(), abs=1e-6)


def test_what_is_learnt_is_what_the_better_chunks_did() -> None:
    """The same as of episodes: chunk by chunk, within one episode."""
    settings = config(minibatch=4, offline=Offline(advantage="step", beta=0.05, max_weight=20.0))
    data = batch(settings, "1100" + "1010" + "0001" + "1110", small_policy())
    signs = [np.where(np.arange(len(each.images)) % 2, -1.0, 1.0) for each in data.episodes.values()]

    def preference(factor: float) -> float:
        """Σ log π of the chunks that are even minus that of those that are odd, after an update."""
        policy = small_policy()
        optimiser = torch.optim.SGD(policy.parameters(), lr=1e-3)
        scores = replace(scored(settings, data), chunks=tuple(factor * each for each in signs))
        learn(settings, policy, None, optimiser, data, scores)
        actions = update.make_action_batch(
            settings, policy, update.episode_queries(data.episodes.values(), signs)
        )
        with torch.no_grad():
            log_probs, _ = policy.log_probs(actions.inputs, actions.tokens, 1.0)
        return float((log_probs * actions.valid * actions.advantages[:, None]).sum())

    assert preference(1) > preference(-1) + 1


def test_the_set_is_scored_by_steps_once(ran: list[EpisodeSpec], tmp_path: Path) -> None:
    settings = config(offline=BY_STEP)
    train(tmp_path, settings)
    assert len(ran) == 16 and {spec.frames for spec in ran} == {1}
    metrics = read_rows(tmp_path / "out/metrics.csv", RL_METRICS)
    assert metrics["step"].tolist() == [1, 2, 3] and metrics["loss"].is_monotonic_decreasing
    # By hand: the policy's images and the last one, by the world model, prefix by prefix.
    world_model = load_world_model(PIXEL, None)
    episodes = [each for each in RecordedRollouts().run(ran) if isinstance(each, Episode)]
    paths = {}
    for episode in episodes:
        seen = [*episode.images, episode.frames[-1]]
        paths[episode.spec] = [world_model.embed(np.stack(seen[: end + 1])) for end in range(len(seen))]
    ended = {spec: path[-1] for spec, path in paths.items()}
    gains = {}
    for episode in episodes:
        task = episode.spec.task_id
        mean = np.mean([ended[e.spec] for e in episodes if e.success and e.spec.task_id == task], axis=0)
        distances = [np.linalg.norm(point - mean) for point in paths[episode.spec]]
        gains[episode.spec.seed] = -np.diff(distances) / max(distances)
    pooled = np.concatenate(list(gains.values()))
    rewards = read_rows(tmp_path / "out/rewards.parquet", REWARDS)
    expected = [(gains[seed].mean() - pooled.mean()) / pooled.std() for seed in rewards["episode_seed"]]
    assert rewards["advantage"].tolist() == pytest.approx(expected, abs=1e-4) and rewards["kept"].all()


@pytest.mark.parametrize("references", ["matched_prefix", "simulator"])
def test_progress_by_steps_needs_a_world_model(references: str) -> None:
    with pytest.raises(ValidationError, match="advantage `step` measures progress by a world"):
        stage({"offline": BY_STEP}, {"references": references}, pixel=references == "matched_prefix")


def test_there_is_no_evaluation_in_the_loop() -> None:
    with pytest.raises(ValidationError, match="evaluate_every must be 0 offline"):
        config(evaluate_every=1)
