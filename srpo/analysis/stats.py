"""From outcomes to estimates with intervals: pure functions on counts and arrays. All intervals are 95%."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, trim_mean, ttest_ind, ttest_rel
from statsmodels.duration.survfunc import SurvfuncRight
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


NO_PAIRS = PairedDifference(0, Estimate(NAN, NAN, NAN), NAN, "")
"""Nothing to compare."""


def direction(difference: Estimate) -> bool | None:
    """Whether a difference is above 0 beyond its interval (True), below it (False), or neither (None)."""
    if difference.low > 0:
        return True
    return False if difference.high < 0 else None


def cautious_difference(before: Estimate, after: Estimate) -> Estimate:
    """How much higher a value is, at least and at most, by two intervals: cautious, and above 0 (or below)
    only where the two do not overlap."""
    return Estimate(after.value - before.value, after.low - before.high, after.high - before.low)


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
        return NO_PAIRS
    if np.isin(np.concatenate([baseline, method]), (0, 1)).all():
        both, gained = int((baseline * method).sum()), int((method > baseline).sum())
        lost = int((method < baseline).sum())
        neither = pairs - both - gained - lost
        p_value = float(mcnemar([[both, gained], [lost, neither]], exact=True).pvalue)
        return PairedDifference(pairs, newcombe(both, gained, lost, neither), p_value, "mcnemar")
    rng = np.random.default_rng(seed)
    difference = method - baseline
    observed = float(difference.mean())
    turned = rng.random((RESAMPLES, pairs)) < 0.5
    flipped = np.where(turned, -difference, difference).mean(axis=1)
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
    interval is NaN: it would describe the lucky rest.
    """
    draws = np.array([statistic(*(rng.integers(0, n, n) for n in sizes)) for _ in range(resamples)])
    return percentile_interval(draws)


def percentile_interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The interval of a bootstrap's draws, by the rule of `bootstrap` for those that are not finite."""
    finite = draws[np.isfinite(draws)]
    return _percentiles(finite) if len(finite) > len(draws) / 2 else (NAN, NAN)


# ------------------------------------------------------------------------------- runs: seeds, tasks, curves


def hierarchical_draws(
    successes: NDArray[np.integer],
    episodes: NDArray[np.integer],
    rng: np.random.Generator,
    tasks: Literal["fixed", "random"] = "fixed",
    resamples: int = RESAMPLES,
) -> NDArray[np.float64]:
    """Success rates of bootstrapped training runs, float64 (resamples,): seeds, then tasks, then episodes.

    Args:
        successes, episodes: int (S, T), of S seeds on T tasks; every task was evaluated, if unequally often.
        tasks: `fixed` keeps all tasks (they are strata: the benchmark is these tasks), `random` draws them
            with replacement too (they stand for tasks like these).

    The rate is the mean over seeds and tasks, each counting alike. Drawing n of a cell's n episodes with
    replacement gives a binomial number of successes, so cells of counts do for the episodes themselves. One
    seed has no spread between seeds to draw from: the draws then speak about that one policy alone.
    """
    if successes.shape != episodes.shape or successes.ndim != 2 or successes.size == 0:
        raise ValueError(f"successes {successes.shape} and episodes {episodes.shape} must both be (S, T)")
    if (episodes < 1).any() or (successes < 0).any() or (successes > episodes).any():
        raise ValueError("every seed needs episodes of every task, and no more successes than those")
    seeds, number = successes.shape
    draws = np.empty(resamples)
    block = max(1, 4_000_000 // successes.size)  # bounds the memory
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        seed = rng.integers(0, seeds, (size, seeds, 1))
        task = (
            np.arange(number)[None, None, :]
            if tasks == "fixed"
            else rng.integers(0, number, (size, seeds, number))
        )
        n = episodes[seed, task]
        draws[start : start + size] = (rng.binomial(n, successes[seed, task] / n) / n).mean(axis=(1, 2))
    return draws


def hierarchical(
    successes: NDArray[np.integer],
    episodes: NDArray[np.integer],
    rng: np.random.Generator,
    tasks: Literal["fixed", "random"] = "fixed",
) -> Estimate:
    """Success rate of a method over its training runs, with the interval of `hierarchical_draws`."""
    draws = hierarchical_draws(successes, episodes, rng, tasks)
    return Estimate(float((successes / episodes).mean()), *_percentiles(draws))


def interquartile_mean(scores: NDArray[np.floating]) -> float:
    """Mean of the middle half of all scores (Agarwal et al., "Deep RL at the Edge of the Statistical
    Precipice", arXiv 2108.13264): a quarter of them, rounded down, is cut off at either end."""
    return float(trim_mean(scores, 0.25, axis=None))


def probability_of_improvement(method: NDArray[np.floating], baseline: NDArray[np.floating]) -> float:
    """Chance that a run of the method beats one of the baseline on a task drawn at random; ties count half.

    The mean over tasks of Mann and Whitney's U over the number of pairs of runs (same paper, section 4.3).

    Args:
        method, baseline: float (R, T) and (R', T), the scores of R and R' runs on the same T tasks.
    """
    if method.ndim != 2 or baseline.ndim != 2 or method.shape[1] != baseline.shape[1]:
        raise ValueError(f"scores {method.shape} and {baseline.shape} must be (R, T) and (R', T)")
    u = mannwhitneyu(method, baseline, axis=0, method="asymptotic").statistic
    return float(np.mean(u) / (len(method) * len(baseline)))


def area_under_curve(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Mean height of a training curve: its area by the trapezoid rule over the width of x; y of one point."""
    if len(x) != len(y) or len(x) == 0 or (np.diff(x) <= 0).any():
        raise ValueError("a curve needs points, and x must rise")
    return float(y[0]) if len(x) == 1 else float(np.trapezoid(y, x) / (x[-1] - x[0]))


def mean_difference(baseline: Sequence[float], method: Sequence[float]) -> Estimate:
    """Mean of a method's runs minus that of a baseline's, with Welch's t interval over the runs.

    With less than two runs of either, or without any spread, there is no interval: it is NaN.
    """
    value = float(np.mean(method) - np.mean(baseline))
    if min(len(baseline), len(method)) < 2 or np.ptp(baseline) == np.ptp(method) == 0:
        return Estimate(value, NAN, NAN)
    interval = ttest_ind(method, baseline, equal_var=False).confidence_interval(1 - ALPHA)
    return Estimate(value, float(interval.low), float(interval.high))


def mean_paired_difference(baseline: Sequence[float], method: Sequence[float]) -> Estimate:
    """The same with Student's t interval over pairs of runs, which have their draws (a seed) in common.

    Raises:
        ValueError: not as many runs of one as of the other.
    """
    if len(baseline) != len(method):
        raise ValueError(f"{len(baseline)} runs and {len(method)} are not pairs")
    differences = np.subtract(method, baseline)
    if len(differences) < 2 or np.ptp(differences) == 0:
        return Estimate(float(differences.mean()), NAN, NAN)
    interval = ttest_rel(method, baseline).confidence_interval(1 - ALPHA)
    return Estimate(float(differences.mean()), float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Reached:
    """When a curve first reached a level; `censored`: it had not by `at`, where it ends."""

    at: float
    censored: bool


def first_reached(x: NDArray[np.floating], y: NDArray[np.floating], level: float, window: int = 1) -> Reached:
    """The first x at which the mean of the last `window` points of y is at least `level`.

    A window keeps one lucky step from counting; there is no reaching before it is full.
    """
    if len(x) != len(y) or len(x) == 0 or window < 1:
        raise ValueError("a curve needs points, and a window of at least one")
    sums = np.concatenate([[0.0], np.cumsum(y)])
    means = (sums[window:] - sums[:-window]) / window
    hits = np.flatnonzero(means >= level - 1e-12)
    if len(hits):
        return Reached(float(x[hits[0] + window - 1]), False)
    return Reached(float(x[-1]), True)


def median_reached(runs: Sequence[Reached]) -> Reached:
    """The median over runs by Kaplan and Meier's estimator, which uses runs that ended too early for what
    they say; censored at the longest such run where fewer than half are seen to arrive."""
    if not runs:
        raise ValueError("no runs")
    arrived = np.array([not run.censored for run in runs])
    median = NAN
    if arrived.any():
        survival = SurvfuncRight(np.array([run.at for run in runs]), arrived.astype(int))
        median = float(survival.quantile(0.5))
    if np.isfinite(median):
        return Reached(median, False)
    return Reached(max(run.at for run in runs), True)


def _percentiles(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(draws, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)
