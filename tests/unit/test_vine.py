"""Credit by branches. Numbers are worked out by hand, on scripted episodes of 9, 12, 15, 18, 9, … steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from srpo.config import Branching, Offline, TrainStage
from srpo.config.resolve import Resolver, load_preset
from srpo.rl import branching, collect, metrics, score, update
from srpo.rl.advantages import success_of_others, value_changes
from srpo.rl.branching import chosen_queries
from support.policies import small_policy
from support.rl_steps import ScriptedRunner, collector, learn
from support.stages import training_stage

NAN = np.nan


def stage(**changes: object) -> TrainStage:
    """Two groups of two, of tasks 7 and 8; two branches from each of two moments."""
    settings = {"prompts": 2, "group_size": 2, "branching": Branching(points=2, branches=2)}
    return training_stage(settings | changes, {"shaping": "none"}, pixel=False)


def ran(config: TrainStage, flags: str, scratch: Path) -> tuple[collect.Batch, ScriptedRunner]:
    """A step with its branches; `flags`: of the rollouts, then of the branches."""
    runner = ScriptedRunner(small_policy(), flags)
    rollouts = collector(runner, scratch)
    batch = collect.collect_batch(config, 1, rollouts)
    return branching.run_branches(config, 1, batch, rollouts), runner


def scored(config: TrainStage, batch: collect.Batch) -> score.BatchScores:
    return score.score_moments(batch, score.score_batch(config, batch, None))


def advantages(scores: score.BatchScores) -> list[list[float]]:
    assert scores.chunks is not None
    return [each.tolist() for each in scores.chunks]


# Pure functions.


def test_a_chunk_is_credited_with_the_change_of_value() -> None:
    # From 0.5 to 0.75 in two chunks, to 0.25 in one, and to success in three.
    found = value_changes([0, 2, 3], [0.5, 0.75, 0.25], chunks=6, success=True)
    assert found.tolist() == [0.25, 0.25, -0.5, 0.75, 0.75, 0.75]
    found = value_changes([0, 2, 3], [0.5, 0.75, 0.25], chunks=6, success=False)
    assert found.tolist() == [0.25, 0.25, -0.5, -0.25, -0.25, -0.25]
    assert value_changes([0], [0.25], chunks=2, success=True).tolist() == [0.75, 0.75]


def test_nothing_is_taught_after_a_failure_was_lost() -> None:
    found = value_changes([0, 1, 3, 4], [0.5, 0.25, 0.0, 0.0], chunks=7, success=False)
    assert found.tolist() == [-0.25, -0.25, -0.25, 0, 0, 0, 0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(0, 6), st.booleans())
def test_changes_lead_from_the_start_to_the_outcome(
    seed: int, chunks: int, points: int, success: bool
) -> None:
    queries = [0, *chosen_queries(chunks, points)]
    values = np.random.default_rng(seed).uniform(size=len(queries))
    found = value_changes(queries, values.tolist(), chunks, success)
    assert found.shape == (chunks,) and (np.abs(found) <= 1).all()
    assert found[queries].sum() == pytest.approx(success - values[0])


def test_the_start_is_valued_by_the_others_of_the_group() -> None:
    success = np.array([True, True, True, False, False, False, True])
    groups = np.array([0, 1, 0, 0, 1, 0, 2])
    # Group 0: two of four succeeded; group 1: one of two; group 2 has one alone.
    expected = [1 / 3, 0, 1 / 3, 2 / 3, 1, 2 / 3, NAN]
    np.testing.assert_allclose(success_of_others(success, groups), expected)


@pytest.mark.parametrize(
    ("queries", "points", "chosen"),
    [(12, 3, [3, 6, 9]), (4, 2, [1, 2]), (9, 2, [3, 6]), (3, 5, [1, 2]), (2, 1, [1]), (1, 3, [])],
)
def test_moments_part_an_episode_evenly(queries: int, points: int, chosen: list[int]) -> None:
    assert chosen_queries(queries, points) == chosen


# A step.


def test_a_step_by_hand(tmp_path: Path) -> None:
    """Rollouts of 2, 2, 2 and 3 chunks have 1, 1, 1 and 2 moments, two branches each."""
    config = stage()
    batch, runner = ran(config, "1000" + "11" + "10" + "00" + "01" + "00", tmp_path)
    # Branches take 9, 12, 15, 18, 9, 12, 15, 18, 9, 12 steps.
    moments = [(0, 1, 2, 2, 21), (1, 1, 2, 1, 33), (2, 1, 2, 0, 21), (3, 1, 2, 1, 33), (3, 2, 2, 0, 21)]
    assert batch.moments == tuple(collect.Moment(*each) for each in moments)
    scores = scored(config, batch)
    # Starts: 0 and 1 in the first group, 0 and 0 in the second. The third is lost from its start on.
    assert advantages(scores) == [[1, 0], [-0.5, -0.5], [0, 0], [0.5, -0.5, 0]]
    assert scores.advantages == pytest.approx([0.5, -0.5, 0, 0])
    assert scores.kept.all() and scores.signal.tolist() == [True, True, False, True]

    rollouts, branches = runner.ran[:4][::-1], runner.ran[4:][::-1]
    assert all(spec.states and spec.start is None for spec in rollouts)
    assert not any(spec.states for spec in branches)
    assert len({spec.seed for spec in (*rollouts, *branches)}) == 14
    places = [(spec.task_id, spec.start.query) for spec in branches if spec.start]
    assert places == [(7, 1)] * 4 + [(8, 1)] * 4 + [(8, 2)] * 2
    state = batch.episodes[3].states[2]
    assert branches[-1].start is not None and branches[-1].start.state == state.tobytes()

    assert batch.seconds > 0
    none, batch = dict.fromkeys(update.UPDATE_METRICS, None), replace(batch, seconds=2.0)
    seconds = dict.fromkeys(metrics.PHASES, 2.0)
    row = metrics.metrics_row(metrics.StepRecord(1, batch, scores, none, 1e-4, collect.Batch(), seconds))
    assert (row["episodes"], row["branches"], row["branch_steps"]) == (4, 10, 129)
    assert row["environment_steps"] == 9 + 12 + 15 + 18 + 129
    assert row["episodes_per_second"] == 14 / 2 and row["infra_errors"] == 0
    assert row["groups_without_signal"] == 0 and row["groups_without_signal_outcome"] == 1


def test_a_branch_that_could_not_be_run_counts_for_nothing(tmp_path: Path) -> None:
    """A moment without any is passed over: its value is not known."""
    config = stage()
    batch, _ = ran(config, "1000" + "1x" + "10" + "00" + "xx" + "01", tmp_path)
    assert [(each.branches, each.successes) for each in batch.moments] == [
        (1, 1),
        (2, 1),
        (2, 0),
        (0, 0),
        (2, 1),
    ]
    assert batch.errors == 3
    assert advantages(scored(config, batch))[3] == [0.5, 0.5, -0.5]


def test_without_most_of_its_branches_a_step_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="step 1, branches: 6 of 10 episodes could not be run"):
        ran(stage(), "1000" + "xxxxxx0000", tmp_path)


def test_a_rollout_alone_in_its_group_is_left_out(tmp_path: Path) -> None:
    config = stage()
    batch, _ = ran(config, "1x00" + "00" + "01" + "00", tmp_path)
    assert {each.number for each in batch.moments} == {2, 3}
    scores = scored(config, batch)
    assert scores.kept.tolist() == [False, True, True] and advantages(scores)[0] == []


def test_groups_that_are_left_out_have_no_branches(tmp_path: Path) -> None:
    config = stage(keep_success=(0.1, 0.9))
    batch, runner = ran(config, "1000" + "11" + "10", tmp_path)
    assert {each.number for each in batch.moments} == {0, 1} and len(runner.ran) == 8
    assert scored(config, batch).kept.tolist() == [True, True, False, False]


def test_branches_that_were_kept_are_not_run_again(tmp_path: Path) -> None:
    config = stage()
    first, before = ran(config, "1000" + "11" + "10" + "00" + "x1" + "00", tmp_path)
    second, after = ran(config, "0", tmp_path)
    assert after.ran == [before.ran[7]]  # they come in reverse
    assert (first.simulated, second.simulated, second.errors) == (13, 1, 0)
    assert [each.successes for each in second.moments] == [2, 1, 0, 1, 0]
    pictures = [len(np.load(file)["images"]) for file in tmp_path.rglob("*.npz")]
    assert sorted(pictures) == [0] * 10 + [2, 2, 2, 3]


def test_without_branching_a_batch_stays_as_it_is(tmp_path: Path) -> None:
    config = stage(branching=None)
    batch, runner = ran(config, "1000", tmp_path)
    assert batch.moments == () and len(runner.ran) == 4 and not any(spec.states for spec in runner.ran)


def test_what_is_learnt_is_what_raised_the_value(tmp_path: Path) -> None:
    """The second rollout's chunks alone differ: one raised the value, the other lowered it."""
    config = stage(minibatch=2, learning_rate=0.05)
    batch, _ = ran(config, "0000" + "00" + "11" + "00" + "00" + "00", tmp_path)
    scores = scored(config, batch)
    assert advantages(scores) == [[0, 0], [1, -1], [0, 0], [0, 0, 0]]
    policy = small_policy()
    queries = update.episode_queries([batch.episodes[1]], [np.array([1.0, -1.0])])
    actions = update.make_action_batch(config, policy, queries)

    def preference() -> float:
        with torch.no_grad():
            log_probs, _ = policy.log_probs(actions.inputs, actions.tokens, 1.0)
        return float((log_probs * actions.valid * actions.advantages[:, None]).sum())

    before = preference()
    learn(config, policy, None, torch.optim.SGD(policy.parameters(), lr=0.05), batch, scores)
    assert preference() > before


# Settings.


def test_the_variant_differs_from_grpo_in_credit_alone() -> None:
    resolver = Resolver(*load_preset("smoke"))
    vine, grpo = (resolver.stage("train", "libero_spatial", name, 0) for name in ("vine", "grpo"))
    assert isinstance(vine, TrainStage) and isinstance(grpo, TrainStage)
    assert vine.train.branching is not None and vine.world_model is None
    train = vine.train.model_copy(update={"branching": None})
    assert vine.model_copy(update={"train": train, "variant": "grpo"}) == grpo


def test_what_branching_cannot_go_with_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"set reward\.shaping `none`, not `paper`"):
        training_stage({"branching": Branching(points=1, branches=1)})
    offline = Offline(beta=1.0, max_weight=20.0)
    with pytest.raises(ValidationError, match="offline and branching exclude each other"):
        stage(offline=offline)


def test_a_warning_about_groups_without_success_is_grpos() -> None:
    assert metrics.settings_warnings(stage()) == []
    assert len(metrics.settings_warnings(stage(branching=None))) == 1
