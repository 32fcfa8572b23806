"""The choices of docs/method.md: the page says what the settings are, and each choice does what it says.

Numbers are worked out by hand, on pictures that are numbers on a line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from srpo import ROOT
from srpo.config import Reward, TrainStage
from srpo.config.resolve import Resolver, load_preset
from srpo.episode import EpisodeSpec
from srpo.policies.checkpoints import save_policy
from srpo.rewards.references import remember
from srpo.rl import collect, metrics, score, trainer, update
from srpo.world_models import load_world_model, select_frames
from support.policies import small_policy
from support.recorded_training import RecordedRollouts
from support.stages import PIXEL, training_stage

# What the page says.


def resolved(preset: str, variant: str) -> TrainStage:
    loaded, source = load_preset(preset)
    suite = "libero_goal" if "libero_goal" in loaded.suites else loaded.suites[0]
    stage = Resolver(loaded, source).stage("train", suite, variant, 0)
    assert isinstance(stage, TrainStage)
    return stage


def setting(variant: str, key: str) -> object:
    """Of the preset `paper`: of the variant's training, or of the SFT that it starts from."""
    section, *names = key.split(".")
    stage: Any = resolved("paper", variant)
    if section not in type(stage).model_fields:
        loaded, source = load_preset("paper")
        stage = Resolver(loaded, source).stage("sft", "libero_goal", "sft", 0)
    value = getattr(stage, section)
    for name in names:
        value = getattr(value, name)
    return list(value) if isinstance(value, tuple) else value


def choices() -> dict[str, dict[str, object]]:
    """Key → what its row of the page says: the value of the paper, siiRL and ours, if it says one."""
    page = (ROOT / "docs/method.md").read_text(encoding="utf-8").split("\n## Choices\n")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    found = {}
    for _, paper, siirl, ours, key in rows[1:]:
        if named := re.match(r"`([\w.]+)`", key):
            cells = {"paper": paper, "siirl": siirl, "ours": ours}
            values = {name: re.match(r"`([^`]+)`", cell) for name, cell in cells.items()}
            found[named[1]] = {name: yaml.safe_load(value[1]) for name, value in values.items() if value}
    return found


def test_the_page_says_what_the_variants_are() -> None:
    said = choices()
    assert len(said) == 22
    for key, values in said.items():
        if key == "train.offline.advantage":  # the paper's is of real robots, and siiRL has none
            assert values == {"paper": "step", "ours": setting("srpo-offline", key)}
            continue
        assert values["ours"] == setting("srpo", key), key
        assert "siirl" not in values or values["siirl"] == setting("siirl", key), key
        assert values.get("paper", values["ours"]) == values["ours"], f"{key}: the paper's value is ours"


def test_the_variant_siirl_differs_in_nothing_that_the_page_leaves_out() -> None:
    ours, siirl = resolved("paper", "srpo").model_dump(), resolved("paper", "siirl").model_dump()
    differing = {
        f"{section}.{name}"
        for section in ("reward", "train", "world_model")
        for name in ours[section]
        if ours[section][name] != siirl[section][name]
    }
    told = {key for key, values in choices().items() if values.get("siirl", values["ours"]) != values["ours"]}
    assert differing == told and len(told) == 7


@pytest.mark.parametrize("preset", ["smoke", "mini"])
@pytest.mark.parametrize("variant", ["srpo", "grpo"])
def test_published_rows_keep_their_method(preset: str, variant: str) -> None:
    stage = resolved(preset, variant)
    reward, train = stage.reward, stage.train
    assert (reward.filter, reward.scope, reward.distance) == ("after", "batch", "l2")
    assert reward.earlier_successes == 0 and train.aggregate == "token"
    assert stage.world_model is None or stage.world_model.frame_selection == "even"
    assert train.keep_success == (0.0, 1.0)
    assert train.prompts / train.minibatch == 4


# What each choice does. Two rollouts a group; group 1 fails, group 3 succeeds throughout.

PLACES = [0, 2, 4, 6, 10, 7, 20, 20]
SUCCESS = [True, False, False, False, True, False, True, True]
FAILURES = [1, 2, 3, 5]


def stage(reward: dict[str, Any]) -> TrainStage:
    return training_stage(
        {"group_size": 2, "keep_success": (0.1, 0.9)},
        {"shaping": "linear", "alpha": 0.8, "references": "mean"} | reward,
    )


def batch(success: list[bool] = SUCCESS) -> collect.Batch:
    spec = EpisodeSpec("libero_goal", 7, 0, 0, 1.0)
    return collect.Batch(
        tuple(collect.Outcome(k, k // 2, spec, flag, 9, 63, 0.0) for k, flag in enumerate(success))
    )


def embedded(places: list[int]) -> NDArray[np.float32]:
    return np.array([[1, place] for place in places], np.float32)


def scored(**reward: Any) -> score.BatchScores:
    return score.score_batch(stage(reward), batch(), embedded(PLACES))


def test_rewards_after_which_groups_are_left_out() -> None:
    # Successes 0, 10, 20, 20: mean 12.5. Distances 10.5, 8.5, 6.5, 5.5; m = 1, 0.6, 0.2, 0.
    scores = scored(filter="after")
    assert scores.shaped.rewards[FAILURES] == pytest.approx([0, 0.32, 0.64, 0.8])
    assert scores.kept.tolist() == [True, True, False, False, True, True, False, False]
    # A pair's advantages are ±1/√2: three of the groups have some, and group 1's are not used.
    assert scores.filtered == pytest.approx(1 / 3, abs=1e-5)


def test_groups_are_left_out_before_rewards() -> None:
    # Groups 0 and 2 are left: successes 0 and 10, mean 5; failures at distances 3 and 2.
    scores = scored(filter="before")
    assert scores.shaped.rewards[FAILURES] == pytest.approx([0, 0, 0, 0.8])
    assert scores.shaped.distances[FAILURES] == pytest.approx([3, np.nan, np.nan, 2], nan_ok=True)
    assert scores.kept.tolist() == [True, True, False, False, True, True, False, False]
    assert (scores.advantages[[2, 3, 6, 7]] == 0).all() and not scores.signal[[2, 3, 6, 7]].any()
    assert scores.advantages[[0, 1, 4, 5]] == pytest.approx([0.5**0.5, -(0.5**0.5)] * 2, abs=1e-4)
    assert scores.filtered == pytest.approx(1 / 3, abs=1e-5), "as if rewarded before"
    (task,) = scores.shaped.tasks
    assert (task.successes, task.failures) == (2, 2)


def test_no_group_is_left_out() -> None:
    scores = scored(filter="none")
    assert scores.shaped.rewards[FAILURES] == pytest.approx([0, 0.32, 0.64, 0.8])
    assert scores.kept.all() and scores.filtered == 0


def test_a_rank_knows_its_own_groups_alone() -> None:
    # Rank 0: success 0, failures at 2, 4, 6. Rank 1: successes 10, 20, 20 and one failure, in the middle.
    scores = scored(scope="rank", rank_prompts=2)
    assert scores.shaped.rewards[FAILURES] == pytest.approx([0.8, 0.4, 0, 0.4])
    assert scores.shaped.distances[FAILURES] == pytest.approx([2, 4, 6, 50 / 3 - 7])
    # A rank of one group: group 1 has no success, and earns nothing.
    alone = scored(scope="rank", rank_prompts=1).shaped
    assert alone.rewards[FAILURES] == pytest.approx([0.4, 0, 0, 0.4])
    assert scored(scope="rank", rank_prompts=4).shaped.rewards == pytest.approx(scored().shaped.rewards)


def test_squared_distances_are_normalised() -> None:
    # 110.25, 72.25, 42.25, 30.25; m = 1, 0.525, 0.15, 0. What is logged is the distance.
    shaped = scored(distance="squared").shaped
    assert shaped.rewards[FAILURES] == pytest.approx([0, 0.38, 0.68, 0.8])
    assert shaped.distances[FAILURES] == pytest.approx([10.5, 8.5, 6.5, 5.5])


def test_the_nearest_success_is_the_reference() -> None:
    # 2 to 0, 4 to 0, 4 to 10, 3 to 10; m = 0, 1, 1, 0.5.
    assert scored(references="nearest").shaped.rewards[FAILURES] == pytest.approx([0.8, 0, 0, 0.4])


def test_all_of_siirls_choices_at_once() -> None:
    # Rank 0 keeps group 0, a success at 0; rank 1 group 2, a success at 10. A failure alone earns 0.3.
    choices = {"filter": "before", "scope": "rank", "rank_prompts": 2, "shaping": "siirl"}
    shaped = scored(**choices, references="dbscan").shaped
    assert shaped.rewards[FAILURES] == pytest.approx([0.3, 0, 0, 0.3])
    assert shaped.distances[FAILURES] == pytest.approx([2, np.nan, np.nan, 3], nan_ok=True)


# Successes of earlier steps.


def test_a_task_without_success_is_compared_with_earlier_ones(capsys: pytest.CaptureFixture[str]) -> None:
    config, failed = stage({"earlier_successes": 2}), batch([False] * 8)
    embeddings, earlier = embedded(PLACES), {7: embedded([5]), 8: embedded([0])}
    shaped = score.score_batch(config, failed, embeddings, None, earlier).shaped
    # Distances to 5: 5 3 1 1 5 2 15 15; 0.8·(15 − d)/14.
    expected = [0.8 * (15 - d) / 14 for d in (5, 3, 1, 1, 5, 2, 15, 15)]
    assert shaped.rewards == pytest.approx(expected)
    (task,) = shaped.tasks
    assert (task.earlier, task.unshaped, task.successes) == (8, None, 0)
    without = score.score_batch(config, failed, embeddings).shaped
    assert (without.rewards == 0).all() and without.tasks[0].unshaped == "no success"
    own = score.score_batch(config, batch(), embeddings, None, earlier).shaped
    assert own.rewards == pytest.approx(scored().shaped.rewards) and own.tasks[0].earlier == 0

    scores = score.score_batch(config, failed, embeddings, None, earlier)
    updated, seconds = dict.fromkeys(update.UPDATE_METRICS, 0.5), dict.fromkeys(metrics.PHASES, 1.0)
    step = metrics.StepRecord(1, failed, scores, updated, 1e-4, collect.Batch(), seconds)
    row = metrics.metrics_row(step)
    assert row["compared_with_earlier"] == metrics.task_rows(step)[0]["compared_with_earlier"] == 8
    metrics.print_step(row, scores)
    assert "task 7: 8 failures compared with successes of earlier steps" in capsys.readouterr().out


def test_the_newest_successes_are_remembered() -> None:
    earlier = {7: embedded([30, 31]), 8: embedded([40])}
    task = np.array([7, 7, 7, 9])
    found = remember(earlier, embedded([1, 2, 3, 4]), np.array([True, False, True, True]), task, limit=3)
    assert {t: rows[:, 1].tolist() for t, rows in found.items()} == {7: [3, 1, 30], 8: [40], 9: [4]}
    assert earlier[7][:, 1].tolist() == [30, 31]


@pytest.mark.parametrize(("when", "places"), [("after", [20, 20, 10]), ("before", [10, 0])])
def test_what_may_be_a_reference_is_remembered(when: str, places: list[int]) -> None:
    config = stage({"filter": when, "earlier_successes": 3})
    embeddings = embedded(PLACES)
    scores = score.score_batch(config, batch(), embeddings)
    found = score.remember_successes(config, batch(), scores, embeddings, {})
    assert found[7][:, 1].tolist() == places
    off = stage({"filter": when})
    assert score.remember_successes(off, batch(), scores, embeddings, {}) == {}


def test_earlier_successes_survive_a_restart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trainer, "PolicyRunner", RecordedRollouts)
    save_policy(small_policy(), tmp_path / "initial")
    config = training_stage({"steps": 2, "prompts": 2}, {"earlier_successes": 3})
    folders = trainer.Folders(tmp_path / "initial", tmp_path / "out", tmp_path / "scratch")
    before = trainer.Trainer(config, folders, workers=1)
    before.train()
    after = trainer.Trainer(config, folders, workers=1)
    assert after.done == 2 and after.earlier.keys() == before.earlier.keys() and before.earlier
    for task, rows in before.earlier.items():
        assert 1 <= len(rows) <= 3 and after.earlier[task].dtype == rows.dtype == np.float32
        np.testing.assert_array_equal(after.earlier[task], rows)


# Frames.


def test_frames_as_siirl_chooses_them() -> None:
    # 0, 7/3, 14/3, 7: rounded down, or to the nearest.
    assert select_frames(8, 4, "siirl").tolist() == [0, 2, 4, 7]
    assert select_frames(8, 4, "even").tolist() == [0, 2, 5, 7]
    assert select_frames(3, 7, "siirl").tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert select_frames(3, 7, "even").tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert select_frames(64, 64, "siirl").tolist() == list(range(64)), "chosen frames are chosen again alike"


def test_a_world_model_sees_the_frames_that_its_settings_choose() -> None:
    config = PIXEL.model_copy(update={"frame_selection": "siirl"})
    episode = np.repeat(np.arange(3, dtype=np.uint8) * 100, 16 * 16 * 3).reshape(3, 16, 16, 3)
    shown = load_world_model(config, None).embed(episode).reshape(4, -1).mean(axis=1) * 255
    assert shown == pytest.approx([0, 100, 200, 0], abs=1e-3)
    specs = collect.episode_specs(training_stage().model_copy(update={"world_model": config}), 1, [(7, 0)])
    assert {(spec.frames, spec.frame_selection) for spec in specs} == {(4, "siirl")}


def test_defaults_are_what_older_runs_did() -> None:
    """Their config.yaml has none of these keys."""
    older = {"shaping": "paper", "alpha": 0.8, "scope": "batch", "references": "dbscan"}
    reward = Reward.model_validate(older | {"eps": 0.5, "eps_relative": False, "min_samples": 2})
    assert (reward.filter, reward.distance, reward.earlier_successes) == ("after", "l2", 0)
