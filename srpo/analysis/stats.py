"""From outcomes to estimates with intervals: pure functions on counts and arrays. All intervals are 95%."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

ALPHA = 0.05
RESAMPLES = 10_000
NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; all NaN where there is nothing to estimate from."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Success rate of a method minus that of its baseline on the same `pairs` tasks and states."""

    pairs: int
    estimate: Estimate
    p_value: float
    """Two-sided, of no difference."""
    test: str
    """`mcnemar` (exact) or `sign flip`."""


def wilson(successes: int, episodes: int) -> Estimate:
    """Success rate with Wilson's score interval (Wilson, JASA 1927)."""
    if not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes")
    if episodes == 0:
        return Estimate(NAN, NAN, NAN)
    low, high = proportion_confint(successes, episodes, alpha=ALPHA, method="wilson")
    return Estimate(successes / episodes, float(low), float(high))


def combine(estimates: Sequence[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """Weighted mean Σ wᵢ·xᵢ / Σ wᵢ of independent estimates (weights None: all equal).

    The interval puts theirs together by squares (MOVER: Zou & Donner, Statistics in Medicine 2008): the
    mean's distance to its limit is √(Σ (wᵢ·dᵢ)²) / Σ wᵢ with dᵢ each estimate's distance to its own. NaN if
    one of them is, for without it the mean would be another quantity.
    """
    if not estimates:
        return Estimate(NAN, NAN, NAN)
    share = np.ones(len(estimates)) if weights is None else np.asarray(weights, dtype=float)
    share = share / share.sum()
    value, low, high = np.array([(e.value, e.low, e.high) for e in estimates]).T
    mean = float(share @ value)
    below, above = np.hypot.reduce(share * (value - low)), np.hypot.reduce(share * (high - value))
    return Estimate(mean, float(mean - below), float(mean + above))


def paired_difference(
    baseline: NDArray[np.float64], method: NDArray[np.float64], seed: int = 0
) -> PairedDifference:
    """Compare two success rates on the same tasks and states.

    Args:
        baseline, method: float64 (P,), the success rate of each pair: 0 or 1 when it was run with one seed,
            the mean over seeds when with several (they are not independent pairs).
        seed: of the resampling.

    One seed each: McNemar's exact test, and Newcombe's square-and-add interval. Several: a sign-flip test,
    which is McNemar's generalised to differences other than ±1, and a percentile bootstrap over pairs. Both
    speak about tasks and states like these for the policies at hand, not about other training seeds.
    """
    if baseline.shape != method.shape:
        raise ValueError(f"{len(baseline)} baseline outcomes for {len(method)} of the method")
    pairs = len(baseline)
    if pairs == 0:
        return PairedDifference(0, Estimate(NAN, NAN, NAN), NAN, "")
    if np.isin(np.concatenate([baseline, method]), (0, 1)).all():
        both, gained = int((baseline * method).sum()), int((method > baseline).sum())
        lost = int((method < baseline).sum())
        neither = pairs - both - gained - lost
        p_value = float(mcnemar([[both, gained], [lost, neither]], exact=True).pvalue)
        return PairedDifference(pairs, newcombe(both, gained, lost, neither), p_value, "mcnemar")
    rng = np.random.default_rng(seed)
    difference = method - baseline
    observed = float(difference.mean())
    flipped = np.array([rng.choice((-1.0, 1.0), pairs) @ difference / pairs for _ in range(RESAMPLES)])
    # The observed labelling is one of the possible ones: +1 keeps the test from claiming p = 0.
    extreme = int((np.abs(flipped) >= abs(observed) - 1e-12).sum())
    interval = bootstrap(lambda index: float(difference[index].mean()), [pairs], rng)
    return PairedDifference(
        pairs, Estimate(observed, *interval), (extreme + 1) / (RESAMPLES + 1), "sign flip"
    )


def newcombe(both: int, gained: int, lost: int, neither: int) -> Estimate:
    """Difference of two paired proportions, (gained − lost)/n, with Newcombe's square-and-add interval.

    Method 10 of Newcombe (Statistics in Medicine 1998, 17:2635–2650): Wilson intervals of the two
    proportions, joined with a correlation φ that is corrected for continuity when positive.

    Args:
        both, gained, lost, neither: pairs solved by both, by the method alone, by the baseline alone, by
        neither.
    """
    n = both + gained + lost + neither
    method, baseline = wilson(both + gained, n), wilson(both + lost, n)
    cross = float(both * neither - gained * lost)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    phi = cross / np.sqrt(margins) if margins else 0.0

    def joined(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0)))

    difference = (gained - lost) / n
    return Estimate(
        difference,
        difference - joined(method.value - method.low, baseline.high - baseline.value),
        difference + joined(method.high - method.value, baseline.value - baseline.low),
    )


def bootstrap(
    statistic: Callable[..., float],
    sizes: Sequence[int],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of independent samples.

    Args:
        statistic: called with one int array of indices a sample, drawn with replacement.
        sizes: of the samples.

    Resamples whose statistic is not finite (no spread left, say) are left out; if more than half are, the
    interval
    is NaN: it would describe the lucky rest.
    """
    values = np.array([statistic(*(rng.integers(0, n, n) for n in sizes)) for _ in range(resamples)])
    values = values[np.isfinite(values)]
    if len(values) <= resamples / 2:
        return NAN, NAN
    low, high = np.percentile(values, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)
