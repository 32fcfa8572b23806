from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.cluster import DBSCAN
from sklearn.preprocessing import StandardScaler

from srpo.config import Reward
from srpo.rewards.references import expert_references, find_references


def settings(**changes: object) -> Reward:
    """siiRL's parameters, but for the changes."""
    values = {
        "shaping": "siirl",
        "alpha": 0.8,
        "scope": "batch",
        "references": "dbscan",
        "eps": 0.5,
        "eps_relative": False,
        "min_samples": 2,
    }
    return Reward.model_validate(values | changes)


# Mean 10.4, population variance 116.24, standard deviation 10.78. Standardised, the neighbours lie
# 1/10.78 = 0.09, 9/10.78 = 0.83, 1/10.78 = 0.09 and 19/10.78 = 1.76 apart.
LINE = np.array([[0.0], [1.0], [10.0], [11.0], [30.0]])


def test_absolute_radius_by_hand() -> None:
    found = find_references(LINE, settings(eps=0.5))
    assert sorted(found.centres.ravel()) == pytest.approx([0.5, 10.5])  # 30 is noise
    assert (found.clusters, found.fallback) == (2, False)


def test_a_wider_radius_merges() -> None:
    found = find_references(LINE, settings(eps=0.9))
    assert found.centres == pytest.approx(np.array([[5.5]]))  # (0 + 1 + 10 + 11)/4; 30 is still noise
    assert found.clusters == 1


def test_relative_radius_by_hand() -> None:
    # Pairwise distances 1 1 9 10 10 11 19 20 29 30: median 10.5, whatever the unit.
    assert find_references(LINE, settings(eps=0.1, eps_relative=True)).clusters == 2  # radius 1.05
    none = find_references(LINE, settings(eps=0.05, eps_relative=True))  # radius 0.525: all noise
    assert none.centres == pytest.approx(np.array([[10.4]]))
    assert (none.clusters, none.fallback) == (0, True)


def test_mean_is_no_fallback() -> None:
    found = find_references(LINE, settings(references="mean"))
    assert found.centres == pytest.approx(np.array([[10.4]]))
    assert (found.clusters, found.fallback) == (0, False)


def test_medoid_by_hand() -> None:
    # Sums of distances: 0: 52, 1: 49, 10: 40, 11: 41, 30: 78.
    found = find_references(LINE, settings(references="medoid"))
    assert found.centres.tolist() == [[10]]
    assert (found.clusters, found.fallback) == (0, False)


def test_medoids_that_tie_are_all_references() -> None:
    pair = np.array([[0.0, 1.0], [6.0, 9.0]])
    assert find_references(pair, settings(references="medoid")).centres.tolist() == pair.tolist()
    duplicates = np.array([[2.0, 2.0], [9.0, 9.0], [2.0, 2.0]])
    centres = find_references(duplicates, settings(references="medoid")).centres
    assert centres.tolist() == [[2, 2], [2, 2]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_medoids_do_not_depend_on_order_or_isometries(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 4))
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    before = find_references(points, settings(references="medoid")).centres
    moved = rng.permutation(points) @ rotation + 3
    after = find_references(moved, settings(references="medoid")).centres
    np.testing.assert_allclose(np.sort((after - 3) @ rotation.T, axis=0), np.sort(before, axis=0), atol=1e-9)


def test_every_expert_is_a_centre() -> None:
    experts = np.array([[1, 2], [1, 2], [50, 3]], dtype=np.float32)
    found = expert_references(experts)
    assert found.centres.tolist() == experts.tolist() and found.centres.dtype == np.float64
    assert (found.clusters, found.fallback) == (0, False)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (np.zeros((0, 3)), r"shape \(E, D\) with E ≥ 1, not \(0, 3\)"),
        (np.ones(3), "shape"),
        (np.array([[1.0, 2.0], [0.0, 0.0]]), "expert embedding 1 is not finite or all zero"),
        (np.array([[np.nan, 2.0], [1.0, 0.0]]), "expert embedding 0 is not finite or all zero"),
    ],
)
def test_broken_experts_are_errors(experts: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expert_references(experts)


def test_experts_are_no_successes_of_the_batch() -> None:
    with pytest.raises(ValueError, match="takes the expert's embeddings"):
        find_references(LINE, settings(references="fixed_expert"))


@pytest.mark.parametrize("relative", [False, True])
def test_one_success_is_its_own_centre(relative: bool) -> None:
    found = find_references(np.array([[3.0, -4.0]]), settings(eps_relative=relative))
    assert found.centres == pytest.approx(np.array([[3.0, -4.0]]))
    assert (found.clusters, found.fallback) == (0, True)
    alone = find_references(np.array([[3.0, -4.0]]), settings(eps_relative=relative, min_samples=1))
    assert (alone.clusters, alone.fallback) == (1, False)


@pytest.mark.parametrize("relative", [False, True])
def test_duplicates_are_one_cluster(relative: bool) -> None:
    point = np.random.default_rng(0).normal(size=1408)
    found = find_references(np.tile(point, (4, 1)), settings(eps_relative=relative))
    assert found.centres == pytest.approx(point[None])
    assert (found.clusters, found.fallback) == (1, False)


def test_relative_radius_of_zero_joins_duplicates_only() -> None:
    # Four of five are equal: the median distance is 0.
    points = np.array([[1.0, 2.0]] * 4 + [[5.0, 5.0]])
    found = find_references(points, settings(eps_relative=True))
    assert found.centres == pytest.approx(np.array([[1.0, 2.0]]))


def test_absolute_radius_falls_back_in_many_dimensions_and_a_relative_one_does_not() -> None:
    rng = np.random.default_rng(0)
    blobs = rng.normal(size=(2, 1, 1408)) * 3 + rng.normal(size=(2, 10, 1408))
    points = blobs.reshape(20, 1408).astype(np.float32)
    assert find_references(points, settings(eps=0.5)).fallback
    found = find_references(points, settings(eps=0.6, eps_relative=True))
    assert found.clusters == 2
    assert sorted(found.centres[:, 0]) == pytest.approx(sorted(blobs.mean(axis=1)[:, 0]), abs=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 6), st.floats(0.1, 3))
def test_agrees_with_scikit_learn_and_mapping_centres_back(seed: int, n: int, d: int, eps: float) -> None:
    points = np.random.default_rng(seed).normal(size=(n, d)) * 10.0 ** np.arange(d)
    scaler = StandardScaler().fit(points)
    scaled = scaler.transform(points)
    # A distance that is the radius but for rounding may count for one of the two and not for the other.
    assume(not np.isclose(pdist(scaled), eps, rtol=1e-6).any())
    labels = DBSCAN(eps=eps, min_samples=2).fit(scaled).labels_
    expected = [scaled[labels == label].mean(axis=0) for label in sorted(set(labels) - {-1})]
    found = find_references(points, settings(eps=eps))
    assert found.clusters == len(expected)
    assert found.fallback == (not expected)
    mapped = scaler.inverse_transform(expected) if expected else points.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(found.centres, mapped, atol=1e-7)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_clusters_do_not_depend_on_units_signs_or_order(seed: int, relative: bool) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(9, 4))
    reward = settings(eps=0.7, eps_relative=relative)
    before = find_references(points, reward)
    scale, shift = rng.choice([-1, 1], 4) * rng.uniform(0.1, 100, 4), rng.normal(size=4)
    after = find_references(rng.permutation(points) * scale + shift, reward)
    assert (after.clusters, after.fallback) == (before.clusters, before.fallback)


@pytest.mark.parametrize("shape", [(0, 3), (3,)])
def test_refuses_what_has_no_centre(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="S ≥ 1"):
        find_references(np.zeros(shape), settings())
