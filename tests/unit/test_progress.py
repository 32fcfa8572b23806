from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from srpo.config import Reward
from srpo.rewards.progress import (
    ShapedRewards,
    linear_progress,
    nearest_distances,
    paper_progress,
    shape_rewards,
    siirl_progress,
)

SHAPINGS = ("paper", "siirl", "linear")
MIDDLES = [("paper", 0.4), ("siirl", 0.3), ("linear", 0.4)]
"""What a failure earns where distances say nothing, at α = 0.8."""
seeds = st.integers(0, 2**32 - 1)
shapings = st.sampled_from(SHAPINGS)
references_ = st.sampled_from(["mean", "dbscan", "medoid", "fixed_expert"])
scopes = st.sampled_from(["batch", "group"])


def settings(**changes: object) -> Reward:
    values = {
        "shaping": "paper",
        "alpha": 0.8,
        "scope": "batch",
        "references": "mean",
        "eps": 0.5,
        "eps_relative": True,
        "min_samples": 2,
    }
    return Reward.model_validate(values | changes)


def batch(seed: int, tasks: int = 2, episodes: int = 24, d: int = 5) -> tuple[NDArray[Any], ...]:
    """Embeddings, success and task of a batch with at least one success and two failures a task."""
    rng = np.random.default_rng(seed)
    task = np.arange(episodes) % tasks
    success = rng.random(episodes) < 0.4
    success[:tasks] = True
    success[tasks : 3 * tasks] = False
    order = rng.permutation(episodes)
    return rng.normal(size=(episodes, d)), success[order], task[order]


def test_paper_by_hand() -> None:
    # mean 2, std √(2/3) = 0.816497, z = ∓1.224745; sigmoid(1.224745) = 1/(1 + 0.293833) = 0.772897
    # 0.8·0.772897 = 0.618318; 0.8·0.5 = 0.4; 0.8·(1 − 0.772897) = 0.181682
    found = paper_progress(np.array([1.0, 2.0, 3.0]), 0.8)
    assert found == pytest.approx([0.618318, 0.4, 0.181682], abs=1e-6)


def test_siirl_by_hand() -> None:
    # m = 0, 0.5, 1; 0.6·sigmoid(5) = 0.6·0.9933071; 0.6·0.5; 0.6·sigmoid(−5) = 0.6·0.0066929
    assert siirl_progress(np.array([1.0, 2.0, 3.0])) == pytest.approx([0.5959843, 0.3, 0.0040157], abs=1e-7)


def test_linear_by_hand() -> None:
    # m = 0, 0.25, 1; 0.8·(1 − m)
    assert linear_progress(np.array([1.0, 2.0, 5.0]), 0.8) == pytest.approx([0.8, 0.6, 0])


def test_linear_with_alpha_1_would_pay_a_failure_like_a_success() -> None:
    with pytest.raises(ValueError, match=r"linear.*alpha 1"):
        settings(shaping="linear", alpha=1.0)


def test_a_whole_batch_by_hand() -> None:
    # Task 7: successes (1, 1) and (3, 1), mean (2, 1); failures (2, 4) and (6, 4) at distances 3 and 5,
    # mean 4, std 1, z = ∓1; sigmoid(1) = 0.7310586, so 0.5848469 and 0.2151531. Task 1 only fails.
    embeddings = np.array([[1, 1], [2, 4], [9, 9], [3, 1], [6, 4]], dtype=np.float32)
    success = np.array([True, False, False, True, False])
    shaped = shape_rewards(embeddings, success, np.array([7, 7, 1, 7, 7]), settings())
    assert shaped.rewards == pytest.approx([1, 0.5848469, 0, 1, 0.2151531], abs=1e-7)
    assert shaped.distances == pytest.approx([np.nan, 3, np.nan, np.nan, 5], nan_ok=True)
    one, seven = shaped.tasks
    assert (one.task, one.successes, one.failures, one.unshaped) == (1, 0, 1, "no success")
    assert (seven.task, seven.successes, seven.failures, seven.unshaped) == (7, 2, 2, None)


def test_distance_is_to_the_nearest_cluster() -> None:
    # Successes at (0, 1) and (10, 1): a failure at (10, 3) is near the second, one at (5, 1) near their mean.
    embeddings = np.array([[0, 1], [0, 1], [10, 1], [10, 1], [10, 3], [5, 1]], dtype=np.float32)
    success = np.array([True] * 4 + [False] * 2)
    task = np.zeros(6, dtype=int)
    clusters = shape_rewards(embeddings, success, task, settings(references="dbscan", eps=0.5))
    mean = shape_rewards(embeddings, success, task, settings(references="mean"))
    assert clusters.tasks[0].clusters == 2 and not clusters.tasks[0].fallback
    assert clusters.distances[4:] == pytest.approx([2, 5])
    assert mean.distances[4:] == pytest.approx([29**0.5, 0])
    assert clusters.rewards[4] > clusters.rewards[5] and mean.rewards[4] < mean.rewards[5]


def test_scope_group_by_hand() -> None:
    # The reference is (0, 1). Group 4 has failures at distances 1 and 3, group 9 at 6 and 10 and 8, group 5
    # (of the same task) a single one at 2: on its own, whatever its distance, in the middle.
    heights = [1, 2, 4, 7, 11, 9, 3]
    embeddings = np.array([[0, height] for height in heights], dtype=np.float32)
    success, group = np.arange(7) == 0, np.array([4, 4, 4, 9, 9, 9, 5])
    linear = settings(shaping="linear", scope="group")
    shaped = shape_rewards(embeddings, success, np.zeros(7, int), linear, group=group)
    assert shaped.rewards == pytest.approx([1, 0.8, 0, 0.8, 0, 0.4, 0.4])
    by_task = shape_rewards(embeddings, success, np.zeros(7, int), settings(shaping="linear"), group=group)
    # Over the task: distances 1 3 6 10 8 2, so 0.8·(10 − d)/9.
    assert by_task.rewards == pytest.approx([1, 0.8, 5.6 / 9, 3.2 / 9, 0, 1.6 / 9, 6.4 / 9])
    np.testing.assert_array_equal(by_task.distances, shaped.distances)


@pytest.mark.parametrize("group", [None, np.zeros(2, int)])
def test_scope_group_needs_groups(group: NDArray[np.int64] | None) -> None:
    with pytest.raises(ValueError, match=r"scope 'group' needs the group of each episode \(3,\)"):
        shape_rewards(
            np.ones((3, 2)), np.ones(3, bool), np.zeros(3, int), settings(scope="group"), group=group
        )


def test_a_prefix_has_no_length_without_a_success() -> None:
    with pytest.raises(ValueError, match=r"earlier_successes must be 0 with references `matched_prefix`"):
        settings(references="matched_prefix", earlier_successes=1)


def test_fixed_expert_by_hand() -> None:
    # Task 0 has experts at (0, 1) and (10, 1), task 1 at (5, 5); no success anywhere is needed.
    embeddings = np.array([[0, 4], [10, 2], [5, 1], [5, 9], [5, 5]], dtype=np.float32)
    experts = {0: np.array([[0, 1], [10, 1]], np.float32), 1: np.array([[5, 5]], np.float32)}
    reward = settings(shaping="linear", references="fixed_expert")
    success, task = np.arange(5) == 4, np.array([0, 0, 0, 1, 1])
    shaped = shape_rewards(embeddings, success, task, reward, experts=experts)
    assert shaped.distances == pytest.approx([3, 1, 5, 4, np.nan], nan_ok=True)
    assert shaped.rewards == pytest.approx([0.4, 0.8, 0, 0.4, 1])  # m = 0.5, 0, 1; alone in its task
    assert [t.unshaped for t in shaped.tasks] == [None, None]
    assert shape_rewards(embeddings[4:], success[4:], task[4:], reward, experts=experts).tasks[
        0
    ].unshaped == ("no failure")


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (None, "go with 'fixed_expert' alone"),
        ({1: np.ones((1, 2))}, "no expert embeddings of task 0"),
        ({0: np.zeros((1, 2))}, "task 0: expert embedding 0 is not finite or all zero"),
        ({0: np.ones((0, 2))}, "task 0: expert references must have shape"),
        ({0: np.ones((1, 3))}, "have 3 dimensions, the episodes' 2"),
    ],
)
def test_missing_or_broken_experts_are_errors(
    experts: dict[int, NDArray[np.float64]] | None, message: str
) -> None:
    reward = settings(references="fixed_expert")
    with pytest.raises(ValueError, match=message):
        shape_rewards(np.ones((2, 2)), np.zeros(2, bool), np.zeros(2, int), reward, experts=experts)


def test_experts_of_other_references_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'mean'.*go with 'fixed_expert' alone"):
        shape_rewards(
            np.ones((2, 2)), np.ones(2, bool), np.zeros(2, int), settings(), experts={0: np.ones((1, 2))}
        )


def test_fallback_is_reported() -> None:
    embeddings, success, task = batch(0, tasks=1, d=300)
    shaped = shape_rewards(
        embeddings, success, task, settings(references="dbscan", eps=0.5, eps_relative=False)
    )
    assert shaped.tasks[0].fallback and shaped.tasks[0].clusters == 0 and shaped.tasks[0].unshaped is None


def test_none_is_the_outcome_and_needs_no_embeddings() -> None:
    success, task = np.array([True, False, False]), np.array([0, 0, 1])
    shaped = shape_rewards(None, success, task, settings(shaping="none"))
    assert shaped.rewards.tolist() == [1, 0, 0]
    assert shaped.valid.all() and np.isnan(shaped.distances).all()
    assert [t.unshaped for t in shaped.tasks] == ["outcome", "outcome"]


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_no_success_earns_nothing(shaping: str) -> None:
    shaped = shape_rewards(np.ones((3, 2)), np.zeros(3, bool), np.zeros(3, int), settings(shaping=shaping))
    assert shaped.rewards.tolist() == [0, 0, 0]
    assert shaped.tasks[0].unshaped == "no success"


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_no_failure_leaves_nothing_to_shape(shaping: str) -> None:
    shaped = shape_rewards(np.ones((3, 2)), np.ones(3, bool), np.zeros(3, int), settings(shaping=shaping))
    assert shaped.rewards.tolist() == [1, 1, 1]
    assert shaped.tasks[0].unshaped == "no failure"


@pytest.mark.parametrize(("shaping", "middle"), MIDDLES)
@pytest.mark.parametrize("references", ["mean", "dbscan", "medoid"])
def test_one_success_and_one_failure_meet_in_the_middle(shaping: str, middle: float, references: str) -> None:
    reward = settings(shaping=shaping, references=references)
    embeddings = np.array([[1, 1], [4, 5]], dtype=np.float32)
    shaped = shape_rewards(embeddings, np.array([True, False]), np.zeros(2, int), reward)
    assert shaped.distances[1] == pytest.approx(5)
    assert shaped.rewards == pytest.approx([1, middle])


@pytest.mark.parametrize(("shaping", "middle"), MIDDLES)
def test_equal_distances_meet_in_the_middle(shaping: str, middle: float) -> None:
    # On a circle around the reference: equal but for float32 rounding, which must not become a ranking.
    angles = np.linspace(0, 6, 8)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 3 + 1
    embeddings = np.concatenate([np.ones((1, 2)), circle]).astype(np.float32)
    shaped = shape_rewards(embeddings, np.arange(9) == 0, np.zeros(9, int), settings(shaping=shaping))
    assert np.ptp(shaped.distances[1:]) > 0
    assert shaped.rewards[1:] == pytest.approx([middle] * 8, abs=1e-12)


@pytest.mark.parametrize(("shaping", "middle"), MIDDLES)
def test_failures_that_equal_a_success_do_not_earn_a_success(shaping: str, middle: float) -> None:
    shaped = shape_rewards(np.ones((4, 3)), np.arange(4) < 2, np.zeros(4, int), settings(shaping=shaping))
    assert shaped.distances[2:].tolist() == [0, 0]
    assert shaped.rewards == pytest.approx([1, 1, middle, middle])


@pytest.mark.parametrize("broken", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("shaping", SHAPINGS)
def test_a_broken_embedding_is_invalid_and_changes_no_other_reward(shaping: str, broken: float) -> None:
    embeddings, success, task = batch(3)
    reward = settings(shaping=shaping, references="dbscan", eps=0.7)
    whole = shape_rewards(embeddings, success, task, reward)
    victims = [int(np.flatnonzero(success)[0]), int(np.flatnonzero(~success)[0])]
    others = np.delete(np.arange(len(success)), victims)
    embeddings[victims] = broken
    shaped = shape_rewards(embeddings, success, task, reward)
    assert np.isnan(shaped.rewards[victims]).all() and np.isnan(shaped.distances[victims]).all()
    assert np.flatnonzero(~shaped.valid).tolist() == sorted(victims)
    assert sum(t.invalid for t in shaped.tasks) == 2
    without = shape_rewards(embeddings[others], success[others], task[others], reward)
    assert shaped.rewards[others] == pytest.approx(without.rewards)
    assert whole.valid.all()


def test_a_lone_broken_success_is_no_reference() -> None:
    embeddings = np.array([[np.nan, 1], [1, 1]])
    shaped = shape_rewards(embeddings, np.array([True, False]), np.zeros(2, int), settings())
    assert shaped.tasks[0].unshaped == "no success" and shaped.rewards[1] == 0


@pytest.mark.parametrize("embeddings", [None, np.ones((2, 3)), np.ones(3)])
def test_missing_embeddings_are_an_error(embeddings: NDArray[np.float64] | None) -> None:
    with pytest.raises(ValueError, match="needs embeddings"):
        shape_rewards(embeddings, np.ones(3, bool), np.zeros(3, int), settings())


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="shape"):
        shape_rewards(np.ones((3, 2)), np.ones(3, bool), np.zeros(2, int), settings())


def shape(
    seed: int,
    reward: Reward,
    change: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda e: e,
    order: NDArray[np.int64] | slice = slice(None),
) -> ShapedRewards:
    """Rewards of a random batch in groups of four, whose embeddings and experts are changed alike."""
    embeddings, success, task = batch(seed)
    group = np.arange(len(task)) // 8 * 2 + task  # a group is of one task
    experts = None
    if reward.references == "fixed_expert":
        experts = {t: change(np.random.default_rng([seed, t]).normal(size=(2, 5))) for t in (0, 1)}
    return shape_rewards(
        change(embeddings)[order], success[order], task[order], reward, group=group[order], experts=experts
    )


@given(seeds, shapings, references_, scopes, st.floats(0, 0.99))
def test_range_and_order(seed: int, shaping: str, references: str, scope: str, alpha: float) -> None:
    _, success, task = batch(seed)
    group = np.arange(len(task)) // 8 * 2 + task if scope == "group" else task
    shaped = shape(seed, settings(shaping=shaping, references=references, scope=scope, alpha=alpha))
    assert (shaped.rewards[success] == 1).all()
    failures = shaped.rewards[~success]
    assert (failures >= 0).all() and (failures <= max(alpha, 0.6 * (shaping == "siirl"))).all()
    assert (failures < 1).all()
    for g in np.unique(group):
        own = ~success & (group == g)
        nearest_first = np.argsort(shaped.distances[own])
        assert (np.diff(shaped.rewards[own][nearest_first]) <= 0).all()


@given(seeds, shapings, references_, scopes)
def test_order_of_episodes_does_not_matter(seed: int, shaping: str, references: str, scope: str) -> None:
    reward = settings(shaping=shaping, references=references, scope=scope, eps=0.7)
    order = np.random.default_rng(seed).permutation(24)
    shaped, permuted = shape(seed, reward), shape(seed, reward, order=order)
    np.testing.assert_allclose(permuted.rewards, shaped.rewards[order], atol=1e-9)


@given(seeds, shapings)
def test_tasks_do_not_touch_each_other(seed: int, shaping: str) -> None:
    embeddings, success, task = batch(seed)
    reward = settings(shaping=shaping)
    own = task == 1
    alone = shape_rewards(embeddings[own], success[own], task[own], reward)
    np.testing.assert_allclose(shape_rewards(embeddings, success, task, reward).rewards[own], alone.rewards)


@given(seeds, shapings, st.sampled_from(["mean", "medoid", "fixed_expert"]), scopes)
def test_isometries_of_the_embedding_do_not_matter(
    seed: int, shaping: str, references: str, scope: str
) -> None:
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    shift = rng.normal(size=5)
    reward = settings(shaping=shaping, references=references, scope=scope)
    before, after = shape(seed, reward), shape(seed, reward, lambda e: e @ rotation + shift)
    np.testing.assert_allclose(after.distances, before.distances, atol=1e-9)
    np.testing.assert_allclose(after.rewards, before.rewards, atol=1e-6)


@given(seeds, shapings, references_, scopes)
def test_the_unit_of_the_embedding_does_not_matter(
    seed: int, shaping: str, references: str, scope: str
) -> None:
    reward = settings(shaping=shaping, references=references, scope=scope, eps=0.7)
    before, after = shape(seed, reward), shape(seed, reward, lambda e: e * 37.0)
    np.testing.assert_allclose(after.rewards, before.rewards, atol=1e-6)
    np.testing.assert_allclose(after.distances, before.distances * 37, atol=1e-9)


def test_nearest_distances_by_hand() -> None:
    found = nearest_distances(np.array([[3.0, 4.0], [0.0, 9.0]]), np.array([[0.0, 0.0], [0.0, 10.0]]))
    assert found.tolist() == [5, 1]
