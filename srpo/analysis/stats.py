"""From outcomes to estimates with intervals: pure functions on counts and arrays. All intervals are 95%."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, trim_mean
from statsmodels.duration.survfunc import SurvfuncRight
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
class Difference:
    """Success of a method minus that of its baseline."""

    estimate: Estimate
    p_value: float
    """Two-sided, of no difference, from the same draws as the interval."""
    pairs: int
    """Places (task, initial state, perturbation) that both were tried on; 0 for areas under curves."""
    runs: tuple[int, int]
    """Fewest runs of a suite, of the baseline and of the method. One is taken as it is: an interval then
    says nothing of other seeds."""


NO_PAIRS = Difference(Estimate(NAN, NAN, NAN), NAN, 0, (0, 0))
"""Nothing to compare."""


def direction(difference: Estimate) -> bool | None:
    """Whether a difference is above 0 beyond its interval (True), below it (False), or neither (None)."""
    if difference.low > 0:
        return True
    return False if difference.high < 0 else None


def rate_difference(before: Estimate, after: Estimate) -> Estimate:
    """How much higher one success rate is than another, from their Wilson intervals.

    Newcombe's square-and-add limits (Statistics in Medicine 1998, method 10): of independent episodes, or of
    clusters that the two intervals allow for.
    """
    change = after.value - before.value
    down = np.hypot(after.value - after.low, before.high - before.value)
    up = np.hypot(after.high - after.value, before.value - before.low)
    return Estimate(change, float(change - down), float(change + up))


def wilson(successes: int, episodes: int) -> Estimate:
    """Success rate with Wilson's score interval (Wilson, JASA 1927)."""
    if not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes")
    if episodes == 0:
        return Estimate(NAN, NAN, NAN)
    low, high = proportion_confint(successes, episodes, alpha=ALPHA, method="wilson")
    return Estimate(successes / episodes, float(low), float(high))


def clustered_wilson(successes: NDArray[np.integer], episodes: NDArray[np.integer]) -> Estimate:
    """Success rate of episodes that come in clusters, as those of several seeds on one initial state do.

    Wilson's interval for as many independent episodes as these are worth: their number over the design
    effect, Σ (sₖ − p·nₖ)² / (N·p·(1 − p)) (Rao & Scott, Biometrics 1992), which is not taken below 1 (Korn &
    Graubard, Survey Methodology 1998, for proportions). Where all episodes ended the same, a cluster counts
    as one. Clusters of one episode each give Wilson's own interval.

    Args:
        successes, episodes: int (K,), of each cluster; an empty one counts for nothing.
    """
    solved, total = int(successes.sum()), int(episodes.sum())
    if total == 0:
        return wilson(0, 0)
    rate = solved / total
    if solved in (0, total):
        effect = total / int(np.count_nonzero(episodes))
    else:
        effect = float(((successes - rate * episodes) ** 2).sum()) / (total * rate * (1 - rate))
    effect = max(effect, 1.0)
    low, high = proportion_confint(solved / effect, total / effect, alpha=ALPHA, method="wilson")
    return Estimate(rate, float(low), float(high))


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


def percentile_interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval of a bootstrap's draws.

    Draws that are not finite (no spread left, say) are left out; if more than half are, the interval is NaN:
    it would describe the lucky rest.
    """
    finite = draws[np.isfinite(draws)]
    return _percentiles(finite) if len(finite) > len(draws) / 2 else (NAN, NAN)


# ------------------------------------------------------------------------------- runs: seeds, tasks, curves

# One way to draw anew serves success rates, their differences, and areas under training curves: runs are
# drawn first, then the places on which they were tried. Every interval and its p are of the same draws. All
# runs meet the same places, and drawing both is cautious (Owen, "The pigeonhole bootstrap", Annals of Applied
# Statistics 2007): what is particular to one run on one place counts up to three times in the variance.


@dataclass(frozen=True)
class Outcomes:
    """How the runs of one suite, or of two variants in one suite, did on the same C places.

    A place is a task and initial state (and perturbation). It counts by its share of the whole, and is drawn
    anew among the places of its stratum. All places of a stratum have the same share.
    """

    runs: NDArray[np.float64]
    """(R, C), success of each run on each place."""
    shares: NDArray[np.float64]
    """(C,), which over all suites sum to 1."""
    strata: NDArray[np.integer]
    """(C,), the number of each place's stratum."""
    baseline: NDArray[np.float64] | None = None
    """(R', C), of the runs whose success is subtracted."""


def rate_over_runs(suites: Sequence[Outcomes], seed: int = 0) -> Estimate:
    """Success of a method over its training runs: Σ share × mean over runs, with the interval of draws.

    Two successes and two failures are added to the places that are drawn from (Agresti & Coull, The American
    Statistician 1998): few places that all ended the same make no certainty. The value is without them.
    """
    value = sum(float(suite.shares @ suite.runs.mean(axis=0)) for suite in suites)
    draws = np.clip(_draws(suites, (1.0, 0.0), 2.0, seed), 0, 1)
    return Estimate(value, *percentile_interval(draws))


def difference_over_runs(suites: Sequence[Outcomes], seed: int = 0, lowest: float = -1.0) -> Difference:
    """Success of a method minus that of a baseline on the same places, with interval and p of the same draws.

    No draw counts as below `lowest` or above 1, which no difference can be.

    One place that only the method solved and one that only the baseline did are added to those that are drawn
    from, as in Bonett & Price's interval (Journal of Educational and Behavioral Statistics 2012), for the
    reason given at `rate_over_runs`.
    """
    pairs = sum(len(suite.shares) for suite in suites)
    if pairs == 0:
        return NO_PAIRS
    value = sum(float(s.shares @ (s.runs.mean(axis=0) - _baseline(s).mean(axis=0))) for s in suites)
    runs = min(len(_baseline(suite)) for suite in suites), min(len(suite.runs) for suite in suites)
    draws = np.clip(_draws(suites, (1.0, -1.0), 1.0, seed), lowest, 1.0)
    return _difference(value, draws, pairs, runs)


def area_difference(
    baseline: Sequence[NDArray[np.float64]], method: Sequence[NDArray[np.float64]], *, seed: int = 0
) -> Difference:
    """The same for one number a run, such as the area under its training curve: mean over suites.

    With one run of either in a suite there is no spread to draw from, hence no interval and no p.

    Args:
        baseline, method: float (R,) each, of the runs of a suite.
    """
    if len(baseline) != len(method) or not method:
        raise ValueError(f"areas of {len(baseline)} suites and of {len(method)}")
    value = float(np.mean([m.mean() - b.mean() for b, m in zip(baseline, method, strict=True)]))
    runs = min(map(len, baseline)), min(map(len, method))
    if min(runs) < 2:
        return Difference(Estimate(value, NAN, NAN), NAN, 0, runs)
    rng = np.random.default_rng(seed)
    spread = _spread([len(one) for one in (*baseline, *method)], rng)
    drawn = [
        _runs_drawn(len(m), spread, rng) @ m - _runs_drawn(len(b), spread, rng) @ b
        for b, m in zip(baseline, method, strict=True)
    ]
    return _difference(value, np.mean(drawn, axis=0), 0, runs)


def ratio_over_runs(
    suites: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], *, seed: int = 0
) -> Estimate:
    """A sum over all runs by another one, with the interval of runs drawn anew within each suite.

    With one run of a suite there is no spread to draw from, hence no interval. A draw changes the ratio by
    what each run adds to its numerator beyond the ratio times its denominator (the linearised ratio
    estimator: Cochran, Sampling Techniques, 1977, chapter 6).

    Args:
        suites: numerators and denominators of the runs of each suite, float (R,) each.
    """
    above, below = (float(sum(one[k].sum() for one in suites)) for k in (0, 1))
    if below == 0:
        return Estimate(NAN, NAN, NAN)
    value = above / below
    if min(len(one[0]) for one in suites) < 2:
        return Estimate(value, NAN, NAN)
    rng = np.random.default_rng(seed)
    spread = _spread([len(one[0]) for one in suites], rng)
    draws = np.full(RESAMPLES, value)
    for numerators, denominators in suites:
        beyond = numerators - value * denominators
        draws += len(beyond) * (_runs_drawn(len(beyond), spread, rng) @ beyond - beyond.mean()) / below
    return Estimate(value, *percentile_interval(draws))


def _difference(value: float, draws: NDArray[np.float64], pairs: int, runs: tuple[int, int]) -> Difference:
    """With the p for which the interval ends at 0: twice the share of draws on the smaller side of it."""
    beyond = min((draws <= 1e-12).sum(), (draws >= -1e-12).sum())
    p_value = min(1.0, 2 * (float(beyond) + 1) / (len(draws) + 1))  # + 1: draws do not show p = 0
    return Difference(Estimate(value, *percentile_interval(draws)), p_value, pairs, runs)


def _draws(
    suites: Sequence[Outcomes], added: tuple[float, float], weight: float, seed: int
) -> NDArray[np.float64]:
    """(RESAMPLES,) draws of the sum over suites, with two places of the values `added` among the others.

    Args:
        weight: how often each of the two is added, in all: every stratum has its part.
    """
    rng = np.random.default_rng(seed)
    before = [suite.baseline for suite in suites if suite.baseline is not None]
    spread = _spread([len(one) for one in (*before, *(suite.runs for suite in suites))], rng)
    total = sum(len(np.unique(suite.strata)) for suite in suites)
    draws = np.zeros(RESAMPLES)
    for suite in suites:
        for part in _parts(RESAMPLES, suite.shares.size):
            means = _runs_drawn(len(suite.runs), spread[part], rng) @ suite.runs
            if suite.baseline is not None:
                means -= _runs_drawn(len(suite.baseline), spread[part], rng) @ suite.baseline
            for stratum in np.unique(suite.strata):
                here = suite.strata == stratum
                number, extra = int(here.sum()), weight / total
                size = len(means), round(number + 2 * extra)
                place = rng.random(size) * (number + 2 * extra)
                index = np.minimum(place.astype(np.int64), number - 1)
                values = np.take_along_axis(means[:, here], index, axis=1)
                values[place >= number] = added[0]
                values[place >= number + extra] = added[1]
                draws[part] += suite.shares[here].sum() * values.mean(axis=1)
    return draws


def _spread(runs: Sequence[int], rng: np.random.Generator) -> NDArray[np.float64]:
    """How much wider runs spread in each draw than they seem to, (RESAMPLES,): √(ν/χ²), ν = Σ (R − 1).

    The spread of a few runs is itself known badly, which Student's t allows for with this factor. Drawing
    some of two or three runs with replacement would not: it shows no more than their own values.
    """
    degrees = sum(number - 1 for number in runs)
    if degrees == 0:
        return np.ones(RESAMPLES)
    return np.sqrt(degrees / rng.chisquare(degrees, RESAMPLES))


def _runs_drawn(runs: int, spread: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """How much each of R runs counts in each draw, float (draws, R): normal weights about 1/R, that sum to 1.

    The weighted mean then varies by s²/R (a multiplier bootstrap), times `spread`² (draws,). One run is taken
    as it is.
    """
    if runs == 1:
        return np.ones((len(spread), 1))
    noise = rng.standard_normal((len(spread), runs))
    noise -= noise.mean(axis=1, keepdims=True)
    return 1 / runs + noise * spread[:, None] / np.sqrt(runs * (runs - 1))


def _baseline(suite: Outcomes) -> NDArray[np.float64]:
    if suite.baseline is None:
        raise ValueError("a difference needs a baseline's runs")
    return suite.baseline


def _parts(resamples: int, width: int) -> Iterator[slice]:
    """Resamples in parts of bounded memory."""
    size = max(1, 4_000_000 // max(width, 1))
    return (slice(start, min(start + size, resamples)) for start in range(0, resamples, size))


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
    """Area under a training curve by the trapezoid rule, over the width of x; y of one point.

    The points at its ends count half of what those between do, so it is not their mean.
    """
    if len(x) != len(y) or len(x) == 0 or (np.diff(x) <= 0).any():
        raise ValueError("a curve needs points, and x must rise")
    return float(y[0]) if len(x) == 1 else float(np.trapezoid(y, x) / (x[-1] - x[0]))


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
    """When half of the runs have arrived, by Kaplan and Meier's estimator, which uses runs that ended too
    early for what they say; censored at the longest such run where fewer than half are seen to arrive."""
    if not runs:
        raise ValueError("no runs")
    arrived = np.array([not run.censored for run in runs])
    if arrived.any():
        survival = SurvfuncRight(np.array([run.at for run in runs]), arrived.astype(int))
        half = np.flatnonzero(survival.surv_prob <= 0.5 + 1e-9)  # a product of fractions is rounded
        if len(half):
            return Reached(float(survival.surv_times[half[0]]), False)
    return Reached(max(run.at for run in runs), True)


def _percentiles(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(draws, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)
