from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import rankdata, ttest_ind

from srpo.rewards.metrics import (
    jensen_shannon_divergence,
    maximum_mean_discrepancy,
    monotonicity,
    progress_curve,
    spearman_correlation,
    standardised_mean_difference,
)
from srpo.rewards.progress import nearest_distances

seeds = st.integers(0, 2**32 - 1)


def samples(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.beta(4, 2, size=rng.integers(2, 30)), rng.beta(2, 3, size=rng.integers(2, 30))


def test_progress_by_hand() -> None:
    # Nearest of (0, 0) and (9, 0): distances 4, 2, 5 (from (9, 0)), 0; the farthest is 5.
    prefixes = np.array([[4.0, 0], [2, 0], [9, 5], [0, 0]])
    references = np.array([[0.0, 0], [9, 0]])
    assert progress_curve(nearest_distances(prefixes, references)) == pytest.approx([0.2, 0.6, 0, 1])


def test_progress_on_the_reference_throughout() -> None:
    assert progress_curve(np.zeros(3)).tolist() == [1, 1, 1]


@given(seeds)
def test_progress_is_free_of_isometries_and_of_unit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prefixes, references = rng.normal(size=(6, 4)), rng.normal(size=(3, 4))
    rotation, shift = np.linalg.qr(rng.normal(size=(4, 4)))[0], rng.normal(size=4)
    curve = progress_curve(nearest_distances(prefixes, references))
    assert curve.min() == 0 and (curve <= 1).all()
    moved = nearest_distances(3e3 * (prefixes @ rotation + shift), 3e3 * (references @ rotation + shift))
    np.testing.assert_allclose(progress_curve(moved), curve, atol=1e-9)


@given(seeds)
def test_progress_rises_where_the_distance_falls(seed: int) -> None:
    distances = np.random.default_rng(seed).uniform(size=8)
    assert (np.argsort(progress_curve(distances)) == np.argsort(-distances)).all()


def test_spearman_by_hand() -> None:
    # Ranks 1 3 2 4 against 1 2 3 4: 1 − 6·(0 + 1 + 1 + 0)/(4·15) = 0.8
    assert spearman_correlation(np.array([0.1, 0.5, 0.3, 0.9])) == pytest.approx(0.8)
    assert spearman_correlation(np.array([0.9, 0.5, 0.3])) == pytest.approx(-1)
    assert spearman_correlation(np.full(4, 0.3)) == 0


@given(seeds)
def test_spearman_is_the_correlation_of_ranks(seed: int) -> None:
    progress = np.random.default_rng(seed).integers(0, 5, size=10) / 4  # with ties
    if np.ptp(progress) > 0:
        expected = np.corrcoef(rankdata(progress), np.arange(10))[0, 1]
        assert spearman_correlation(progress) == pytest.approx(expected)


def test_monotonicity_by_hand() -> None:
    # up, equal, down, up: 3 of 4
    assert monotonicity(np.array([0.1, 0.2, 0.2, 0.1, 0.4])) == 0.75
    assert monotonicity(np.array([0.1, 0.2, 0.2, 0.1, 0.4]), strict=True) == 0.5


def test_mmd_by_hand() -> None:
    # Pooled 0, 0, 1, 1: distances 0, 1, 1, 1, 1, 0, median 1, so k = 1 or e^(−1/2) = 0.6065307
    # MMD² = 1 + 1 − 2·0.6065307 = 0.7869387; root 0.8870956
    found = maximum_mean_discrepancy(np.array([1.0, 1.0]), np.array([0.0, 0.0]))
    assert found == pytest.approx(0.8870956, abs=1e-7)
    square = maximum_mean_discrepancy(np.array([1.0, 1.0]), np.array([0.0, 0.0]), squared=True)
    assert square == pytest.approx(0.7869387, abs=1e-7)


def test_mmd_bandwidth_where_most_values_are_equal() -> None:
    # Pooled 1, 1, 1, 1, 0.5: 6 of 10 distances are 0, the others 0.5. MMD² as above.
    found = maximum_mean_discrepancy(np.ones(4), np.array([0.5]))
    assert found == pytest.approx(0.8870956, abs=1e-7)
    assert maximum_mean_discrepancy(np.ones(4), np.ones(3)) == 0


@given(seeds)
def test_mmd_is_the_double_sum(seed: int) -> None:
    x, y = samples(seed)
    sigma = np.median(pdist(np.concatenate([x, y])[:, None]))

    def kernel(a: float, b: float) -> float:
        return math.exp(-((a - b) ** 2) / (2 * sigma**2))

    within_x = sum(kernel(a, b) for a in x for b in x) / len(x) ** 2
    within_y = sum(kernel(a, b) for a in y for b in y) / len(y) ** 2
    between = sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    found = maximum_mean_discrepancy(x, y)
    assert found**2 == pytest.approx(within_x + within_y - 2 * between, abs=1e-9)
    assert found == pytest.approx(maximum_mean_discrepancy(y, x))
    assert found == pytest.approx(maximum_mean_discrepancy(5 * x - 2, 5 * y - 2))
    assert maximum_mean_discrepancy(x, x) == pytest.approx(0, abs=1e-6)


def test_js_by_hand() -> None:
    # First and last bin: p = (1/2, 1/2) (1 is in the last one), q = (1, 0), m = (3/4, 1/4).
    # KL(p‖m) = (log2 2/3 + log2 2)/2 = 0.2075187, KL(q‖m) = log2 4/3 = 0.4150375; mean 0.3112781
    found = jensen_shannon_divergence(np.array([0.05, 1.0]), np.array([0.0, 0.09]))
    assert found == pytest.approx(0.3112781, abs=1e-7)
    assert jensen_shannon_divergence(np.array([0.95, 1.0]), np.array([0.1])) == pytest.approx(1)
    natural = jensen_shannon_divergence(np.array([0.95, 1.0]), np.array([0.1]), base=math.e)
    assert natural == pytest.approx(math.log(2))


@given(seeds)
def test_js_is_the_entropy_of_the_mixture_minus_the_mean_entropy(seed: int) -> None:
    x, y = samples(seed)
    p, q = (np.bincount((s * 10).astype(int), minlength=10) / len(s) for s in (x, y))

    def entropy(r: np.ndarray) -> float:
        return -sum(v * math.log2(v) for v in r if v > 0)

    found = jensen_shannon_divergence(x, y)
    assert found == pytest.approx(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, abs=1e-9)
    assert jensen_shannon_divergence(y, x) == pytest.approx(found)
    assert jensen_shannon_divergence(x, x) == pytest.approx(0, abs=1e-12)


def test_smd_by_hand() -> None:
    # Means 0.7 and 0.2; squared deviations 0.02 and 0.02; pooled √(0.04/(2 + 2)) = 0.1
    high, low = np.array([0.6, 0.7, 0.8]), np.array([0.1, 0.2, 0.3])
    assert standardised_mean_difference(high, low) == pytest.approx(5)
    assert standardised_mean_difference(low, high) == pytest.approx(-5)


def test_smd_without_spread() -> None:
    same, other = np.full(3, 0.3), np.full(2, 0.8)
    assert standardised_mean_difference(same, same) == 0
    assert standardised_mean_difference(other, same) == math.inf
    assert standardised_mean_difference(same, other) == -math.inf
    assert math.isnan(standardised_mean_difference(np.array([0.8]), np.array([0.3])))


@given(seeds)
def test_smd_is_students_t_without_its_sample_sizes(seed: int) -> None:
    x, y = samples(seed)
    t = ttest_ind(x, y).statistic
    expected = t * math.sqrt(1 / len(x) + 1 / len(y))
    assert standardised_mean_difference(x, y) == pytest.approx(expected)


@pytest.mark.parametrize(
    "metric", [maximum_mean_discrepancy, jensen_shannon_divergence, standardised_mean_difference]
)
def test_separated_progress_scores_higher_than_mixed(metric) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    good, bad = rng.uniform(0.7, 1, 70), rng.uniform(0, 0.4, 30)
    assert metric(good, bad) > 2 * metric(rng.permutation(np.r_[good, bad])[:70], np.r_[bad, good[:40]])


@pytest.mark.parametrize(
    "metric", [maximum_mean_discrepancy, jensen_shannon_divergence, standardised_mean_difference]
)
def test_empty_or_broken_samples_are_errors(metric) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="failures"):
        metric(np.ones(2), np.ones(0))
    with pytest.raises(ValueError, match="successes must be finite"):
        metric(np.array([0.5, np.nan]), np.ones(2))


def test_bad_curves_are_errors() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        progress_curve(np.ones(0))
    with pytest.raises(ValueError, match="distances must be finite"):
        progress_curve(np.array([1, np.nan]))
    with pytest.raises(ValueError, match="two points"):
        monotonicity(np.ones(1))
    with pytest.raises(ValueError, match="two points"):
        spearman_correlation(np.ones(1))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        jensen_shannon_divergence(np.array([1.2]), np.array([0.5]))
