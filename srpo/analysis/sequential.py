"""Success that may be looked at while episodes still run: intervals that hold at every look at once.

Evaluations whose comparison may stop early run state by state, each state on every task. The interval holds
with 95% at all numbers of states at once (a confidence sequence), so also at the one at which somebody stops
because of what it says; an interval for a number fixed beforehand would be wrong there too often.

It is by betting (Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", Journal of
the Royal Statistical Society B 2024): for a supposed mean m, somebody who bets on each value in turn, at fair
odds if the mean is m, multiplies the money by 20 with a chance of 5% at most, ever (Ville's inequality). The
interval is of the m at which he has not. The bets are a mixture of fixed shares of the money, half of it on
values above m and half on values below.

The mean is that over tasks, whose own may differ. After whole states the bets are still no better than fair:
the initial states of tasks are independent draws, so the money's expected factor over a state is a product
over tasks of 1 + share·(mean of the task/m − 1), at most the power of the tasks' average, which is 1.

LIBERO-Plus has one episode a task. A shard's tasks come in random order, and count as independent draws, as
they do in the intervals of whole sweeps. For the mean of just these tasks that is cautious: drawn without
putting back, they stray less from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from srpo.analysis.stats import ALPHA, NAN, NO_PAIRS, Difference, Estimate

LOOK_EVERY = 5
"""States, each on all tasks, between two looks at an evaluation that may stop early: enough to keep the
simulators busy. The interval allows for looks of any number."""
LOOK_EVERY_TASKS = 20
"""Of LIBERO-Plus, likewise."""
SHARES = ((np.arange(50) + 0.5) / 50) ** 2
"""Shares of the money that are bet, more of them small: many values that differ little need these. Never all
of it."""
HALVINGS = 25
"""Of the searches for an interval's ends and for p."""


def log_capital(values: NDArray[np.floating], mean: float) -> NDArray[np.float64]:
    """Logarithm of the money after each value, float (n,), of 1 at first, betting against a supposed mean.

    Args:
        values: float (n,) in [0, 1], in the order in which they came.
        mean: strictly between 0 and 1.
    """
    return _mixed(_bets(values, mean).cumsum(axis=0))


def _bets(values: NDArray[np.floating], mean: float) -> NDArray[np.float64]:
    """Logarithms of the factors by which each value (n,) multiplies the money in each bet, (n, bets)."""
    above = np.log1p(SHARES * (values[:, None] / mean - 1))
    below = np.log1p(SHARES * ((1 - values[:, None]) / (1 - mean) - 1))
    return np.hstack([above, below])


def _mixed(bets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the money of which each bet, the last axis, had an even part at first."""
    return np.logaddexp.reduce(bets, axis=-1) - np.log(bets.shape[-1])


def confidence_limits(values: NDArray[np.floating], alpha: float = ALPHA) -> tuple[float, float]:
    """The means in [0, 1] against which nobody has won 1 / alpha by the last value: one interval.

    The money is convex in the supposed mean (products of falling convex functions, and of rising ones), and
    not above 1 at the values' own mean.
    """
    if not len(values):
        return 0.0, 1.0
    own = float(values.mean())
    # The money at the end is a product, in which equal values are few factors.
    distinct, times = np.unique(values, return_counts=True)

    def limit(end: float) -> float:
        outside, inside = end, own
        for _ in range(HALVINGS):
            middle = (outside + inside) / 2
            # At 0 and 1 themselves there is nothing to bet against.
            wins = 0 < middle < 1 and _mixed(times @ _bets(distinct, middle)) >= -np.log(alpha)
            outside, inside = (middle, inside) if wins else (outside, middle)
        return outside

    return limit(0.0), limit(1.0)


def mean_over_sequences(
    sequences: Sequence[NDArray[np.floating]],
    low: float,
    high: float,
    alpha: float = ALPHA,
    weights: Sequence[float] | None = None,
) -> Estimate:
    """Mean over sequences (suites, runs, shards of a sweep) of their mean value; NaN where all are empty.

    Each has its own interval at alpha / (number of sequences), and the ends are averaged: all hold together.
    That of an empty one is all of [low, high], and the value is the mean over the others.

    Args:
        sequences: float (n,) each, in [low, high], in order; the n may differ.
        weights: what each counts; None: all alike.
    """
    some = [len(values) > 0 for values in sequences]
    if not any(some):
        return Estimate(NAN, NAN, NAN)
    weight = np.ones(len(sequences)) if weights is None else np.asarray(weights, dtype=float)
    means = [values.mean() for values in sequences if len(values)]
    ends = [confidence_limits((values - low) / (high - low), alpha / len(sequences)) for values in sequences]
    lower, upper = low + (high - low) * np.average(ends, axis=0, weights=weight)
    return Estimate(float(np.average(means, weights=weight[some])), float(lower), float(upper))


def rate(sequences: Sequence[NDArray[np.floating]], weights: Sequence[float] | None = None) -> Estimate:
    """A success rate, from each run's successes, float (episodes,) in [0, 1]."""
    return mean_over_sequences(sequences, 0.0, 1.0, weights=weights)


def difference(
    sequences: Sequence[NDArray[np.floating]],
    pairs: int,
    runs: tuple[int, int],
    alpha: float = ALPHA,
    weights: Sequence[float] | None = None,
) -> Difference:
    """A difference of success rates, from each run's paired differences, float (pairs,) in [-1, 1].

    p is the least alpha at which the interval leaves 0 out.

    Args:
        pairs, runs: as in `Difference`.
        alpha, weights: as in `mean_over_sequences`.
    """
    estimate = mean_over_sequences(sequences, -1.0, 1.0, alpha, weights)
    if np.isnan(estimate.value):
        return NO_PAIRS
    out, within = 0.0, -30.0  # natural logarithms of alpha
    for _ in range(HALVINGS):
        middle = (out + within) / 2
        wider = mean_over_sequences(sequences, -1.0, 1.0, float(np.exp(middle)), weights)
        out, within = (out, middle) if wider.low <= 0 <= wider.high else (middle, within)
    return Difference(estimate, float(np.exp(out)), pairs, runs)
