"""Measures of the space that end-effector paths cover."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo.analysis.exploration import (
    expected_voxels,
    hull_volume,
    occupancy_entropy,
    occupied_voxels,
    voxel_counts,
)

seeds = st.integers(0, 2**32 - 1)
MEASURES = (occupied_voxels, occupancy_entropy, hull_volume)


def line(*xs: float) -> np.ndarray:
    return np.array([[x, 0.5, 0.5] for x in xs], dtype=np.float32)


def walks(seed: int, episodes: int = 3, steps: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.cumsum(rng.normal(size=(steps, 3)) * 0.3, axis=0) for _ in range(episodes)]


def test_voxels_by_hand() -> None:
    # Edge 1: 0.1 and 0.9 share a voxel, −0.1 is in the one below, 1.0 begins the next.
    assert voxel_counts([line(0.1, 0.9), line(-0.1, 1.0, 0.5)], edge=1).tolist() == [1, 1, 3]
    assert occupied_voxels([line(0.1, 0.9), line(-0.1, 1.0, 0.5)], edge=1) == 3
    assert occupied_voxels([line(0.1, 0.9)], edge=0.5) == 2


def test_entropy_by_hand() -> None:
    # Shares 1/2, 1/4, 1/4: (1 + 2·2/4) bits = 1.5.
    assert occupancy_entropy([line(0.1, 0.2, 1.5, 2.5)], edge=1) == 1.5
    assert occupancy_entropy([line(0.1, 0.2, 0.3)], edge=1) == 0


def test_hull_by_hand() -> None:
    corners = np.array([[0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 4.0]])
    assert hull_volume([corners[:2], corners[2:]]) == pytest.approx(2 * 3 * 4 / 6)
    inside = np.array([[0.1, 0.1, 0.1]])
    assert hull_volume([corners, inside]) == pytest.approx(4)


@pytest.mark.parametrize(
    "flat",
    [
        line(0.1),
        line(0.1, 0.2, 0.3, 0.4, 0.5),
        np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0.5, 0.3, 1]]),
        np.tile(line(0.3), (9, 1)),
    ],
)
def test_a_plane_has_no_volume(flat: np.ndarray) -> None:
    assert hull_volume([flat]) == 0


@given(seeds)
def test_expected_voxels_is_the_mean_over_all_draws(seed: int) -> None:
    [path] = walks(seed, episodes=1, steps=7)
    voxels = [tuple(v) for v in np.floor(path / 0.4).astype(int)]
    for drawn in (1, 3, 7):
        mean = np.mean([len(set(chosen)) for chosen in combinations(voxels, drawn)])
        assert expected_voxels([path], drawn, edge=0.4) == pytest.approx(mean)


def test_expected_voxels_of_a_long_path() -> None:
    # Half of 100 000 positions in each of two voxels: ten draws miss one of them with 2·2^−10 or so.
    path = np.repeat(line(0.5, 1.5), 50_000, axis=0)
    assert expected_voxels([path], 10, edge=1) == pytest.approx(2 - 2 * 0.5**10, abs=1e-5)


@given(seeds)
def test_order_of_positions_and_episodes_does_not_matter(seed: int) -> None:
    paths = walks(seed)
    rng = np.random.default_rng(seed)
    mixed = np.split(rng.permutation(np.concatenate(paths)), [5, 20])
    for measure in MEASURES:
        assert measure(mixed) == pytest.approx(measure(paths))


@given(seeds)
def test_more_episodes_cover_no_less(seed: int) -> None:
    paths = walks(seed)
    assert occupied_voxels(paths) >= occupied_voxels(paths[:2])
    assert hull_volume(paths) >= hull_volume(paths[:2]) - 1e-12
    voxels = occupied_voxels(paths)
    assert 0 <= occupancy_entropy(paths) <= math.log2(voxels) + 1e-9


@given(seeds)
def test_scaling_space_and_voxels_changes_volume_alone(seed: int) -> None:
    paths = walks(seed)
    doubled = [2 * path for path in paths]
    assert occupied_voxels(doubled, edge=0.5) == occupied_voxels(paths, edge=0.25)
    assert hull_volume(doubled) == pytest.approx(8 * hull_volume(paths))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "no positions"),
        ([np.zeros((0, 3))], "no positions"),
        ([line(0.1), np.zeros((4, 2))], r"path 1 must have shape \(steps \+ 1, 3\), not \(4, 2\)"),
        ([line(np.nan)], "path 0 must be finite"),
    ],
)
def test_bad_paths_are_errors(measure, paths: list[np.ndarray], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        measure(paths)


def test_bad_numbers_are_errors() -> None:
    with pytest.raises(ValueError, match="cannot draw 3 positions of 2"):
        expected_voxels([line(0.1, 0.2)], 3)
    with pytest.raises(ValueError, match="edge must be positive, not 0"):
        occupied_voxels([line(0.1)], edge=0)
