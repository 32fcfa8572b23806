"""Progress curves and the five metrics of the progress-reward benchmark (SRPO, arXiv 2511.15605, Table 3).

The metrics' names are the paper's. Where ours differ from its own (as published descriptions of its appendix
have them), an argument says which is meant; choices that both leave open (bandwidth, bins) are in the
docstrings. All functions raise ValueError on values that are not finite.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon, pdist
from scipy.stats import spearmanr

JS_BINS = 10
"""Bins of equal width over [0, 1], few enough for some tens of trajectories."""

EQUAL_SPREAD = 1e-12
"""Progress values (of order 1) within this difference are equal up to rounding."""


def progress_curve(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Progress p(t) = 1 − d(t)/max d along one trajectory: float64 (P,) in [0, 1].

    1 is on a reference, 0 is the trajectory's farthest point. Dividing by that maximum (rather than by d(0),
    which would need clipping) makes the curve independent of the embedding's unit and keeps the order of all
    distances, which SC and Mono measure: clipping would make all points farther than the start equal, and
    Mono counts ties as progress. If all distances are 0, progress is 1 throughout.

    Args:
        distances: float (P,), P ≥ 1, of prefixes o_0…t of rising length to the nearest reference
            (`srpo.rewards.progress.nearest_distances`); for a success, without the success itself.
    """
    _require_finite("distances", distances)
    if len(distances) == 0:
        raise ValueError("progress needs at least one point")
    farthest = distances.max()
    return np.ones_like(distances) if farthest == 0 else 1 - distances / farthest


def spearman_correlation(progress: NDArray[np.floating]) -> float:
    """SC of one trajectory: Spearman's rank correlation of progress (P,), P ≥ 2, with time; ties share ranks.

    A constant curve has no rank correlation and counts as 0. The table's SC is
    the mean over successful trajectories.
    """
    _require_finite("progress", progress)
    if len(progress) < 2:
        raise ValueError("a correlation with time needs at least two points")
    if np.ptp(progress) == 0:
        return 0.0
    return float(spearmanr(progress, np.arange(len(progress))).statistic)


def monotonicity(progress: NDArray[np.floating], strict: bool = False) -> float:
    """Mono of one trajectory: share of consecutive pairs with p(t+1) ≥ p(t), of progress (P,), P ≥ 2.

    The table's Mono is the mean over successful trajectories. `strict`: with p(t+1) > p(t), as the paper's.
    """
    _require_finite("progress", progress)
    if len(progress) < 2:
        raise ValueError("monotonicity needs at least two points")
    rises = np.diff(progress)
    return float(np.mean(rises > 0 if strict else rises >= 0))


def maximum_mean_discrepancy(
    successes: NDArray[np.floating], failures: NDArray[np.floating], squared: bool = False
) -> float:
    """MMD between the final progress of successes (M,) and of failures (N,): in [0, √2].

    √(mean k(x, x') + mean k(y, y') − 2·mean k(x, y)) with k(a, b) = exp(−(a − b)²/(2σ²)): the biased
    estimate, whose means include a sample with itself, so that it is never negative (Gretton et al., "A
    Kernel Two-Sample Test", JMLR 2012, eq. 5). σ is the median distance of distinct pairs of the pooled
    sample (section 8 there); of the pairs at non-zero distance where that median is 0.

    Args:
        squared: give the square, in [0, 2], as the paper does.
    """
    first, second = _samples(successes, failures)
    sigma = bandwidth(np.concatenate([first, second]))
    if sigma == 0:
        return 0.0

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.exp(-(((a[:, None] - b[None, :]) / sigma) ** 2) / 2).mean())

    square = max(kernel(first, first) + kernel(second, second) - 2 * kernel(first, second), 0.0)
    return square if squared else float(np.sqrt(square))  # max: rounding may leave -1e-17


def bandwidth(values: NDArray[np.floating]) -> float:
    """Width σ of the MMD's kernel for a pooled sample (N,), as defined there. 0 if all values are equal."""
    pairwise = pdist(values[:, None])
    sigma = np.median(pairwise)
    if sigma > 0:
        return float(sigma)
    apart = pairwise[pairwise > 0]
    return float(np.median(apart)) if apart.size else 0.0


def jensen_shannon_divergence(
    successes: NDArray[np.floating], failures: NDArray[np.floating], base: float = 2
) -> float:
    """JS divergence of the histograms of final progress of successes (M,) and failures (N,): in [0, 1].

    (KL(p ‖ m) + KL(q ‖ m))/2 with m = (p + q)/2 (Lin, "Divergence measures based on the Shannon entropy",
    1991), histograms of `JS_BINS` equal bins over [0, 1], without smoothing.

    Args:
        base: of the logarithms. With e, as in the paper, the divergence is at most ln 2 = 0.693.
    """
    first, second = _samples(successes, failures)
    for sample in (first, second):
        if sample.min() < 0 or sample.max() > 1:
            raise ValueError("progress lies in [0, 1]")
    p, q = (np.histogram(sample, bins=JS_BINS, range=(0, 1))[0] for sample in (first, second))
    # SciPy gives the distance, the root of the divergence; it normalises the counts.
    return float(jensenshannon(p, q, base=base) ** 2)


def standardised_mean_difference(successes: NDArray[np.floating], failures: NDArray[np.floating]) -> float:
    """SMD of final progress, successes (M,) minus failures (N,): Cohen's d.

    (mean_s − mean_f)/√(((M−1)·s_s² + (N−1)·s_f²)/(M+N−2)) with sample variances (Cohen, "Statistical Power
    Analysis for the Behavioral Sciences", 1988, section 2.5). If neither sample varies: 0 if the means are
    equal, else ±∞. With one value in each: NaN, since there is no deviation.
    """
    first, second = _samples(successes, failures)
    degrees = len(first) + len(second) - 2
    if degrees == 0:
        return float("nan")
    difference = first.mean() - second.mean()
    squares = ((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum()
    pooled = np.sqrt(squares / degrees)
    if pooled <= EQUAL_SPREAD:
        return 0.0 if abs(difference) <= EQUAL_SPREAD else float(np.copysign(np.inf, difference))
    return float(difference / pooled)


def _samples(
    successes: NDArray[np.floating], failures: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    for name, sample in (("successes", successes), ("failures", failures)):
        if sample.ndim != 1 or len(sample) == 0:
            raise ValueError(f"{name} must have shape (n,) with n ≥ 1, not {sample.shape}")
        _require_finite(name, sample)
    return successes.astype(np.float64), failures.astype(np.float64)


def _require_finite(name: str, values: NDArray[np.floating]) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite")
