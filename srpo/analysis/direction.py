"""Whether advantages point to where success lies, for a policy whose exploration is noise on a residual.

Such a policy acts through each rollout under noise ε that is drawn once, and learns by moving its residual
by the mean of advantage × ε (`srpo.update`). So the rewards of failures are of use as far as they pull ε the
way that success does. That way is taken from success and failure alone, and from the runs of other seeds.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srpo.analysis.stats import NAN, Estimate, percentile_interval
from srpo.types import ACTION_DIM

RESAMPLES = 1_000
"""Bootstrap resamples."""

RUN = ["suite", "variant", "seed"]
GROUP = [*RUN, "step", "group"]


def noise(rewards: pd.DataFrame) -> NDArray[np.float64]:
    """The noise that each rollout (N,) acted under, in units of its standard deviation: (N, 7).

    Drawn again from the seed of the episode. Of the two rollouts of a group that share a seed the second had
    the noise with its sign turned round; where one of them could not be run, it is not known which is left:
    NaN.
    """
    import torch  # only here, so that the analysis starts at once

    pairs = rewards.groupby([*GROUP, "episode_seed"], sort=False)
    sign = np.where(pairs.cumcount() == 0, 1.0, -1.0)
    sign[pairs["episode_seed"].transform("size") != 2] = NAN
    seeds, which = np.unique(rewards["episode_seed"], return_inverse=True)
    drawn = [torch.randn(ACTION_DIM, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return sign[:, None] * torch.stack(drawn).double().numpy()[which]


def advantages(rewards: pd.DataFrame, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Advantages of the rollouts (N,) of some runs, as training gives them, were `values` their rewards."""
    import torch

    from srpo.algo.advantages import group_advantages

    groups = rewards.groupby(GROUP).ngroup().to_numpy(copy=True)
    return group_advantages(torch.from_numpy(values), torch.from_numpy(groups)).numpy()


def way_of_success(advantage: NDArray[np.float64], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The unit vector (7,) along Σ advantage (N,) × noise (N, 7); NaN where that is 0."""
    total = (advantage[:, None] * drawn).sum(0)
    length = np.linalg.norm(total)
    return total / length if length else np.full_like(total, NAN)


def along_success(rewards: pd.DataFrame) -> pd.DataFrame:
    """Rollouts of several runs, with how far their noise lay along the way of success (`along`), in standard
    deviations, and their advantages by outcome (`outcome`) and by minus the way left (`true`).

    The way of success of a task is that of all variants' runs of the other seeds; without any, NaN.
    """
    success = rewards["success"].to_numpy(dtype=float)
    outcome = advantages(rewards, success)
    drawn = noise(rewards)
    known = np.isfinite(drawn).all(axis=1)
    along = np.full(len(rewards), NAN)
    tasks = rewards.groupby(["suite", "task_id"]).ngroup().to_numpy().astype(np.int64)
    seeds = rewards["seed"].to_numpy(dtype=np.int64)
    for task, seed in np.unique(np.stack([tasks, seeds]), axis=1).T:
        here = (tasks == task) & (seeds == seed)
        others = (tasks == task) & (seeds != seed) & known
        along[here] = drawn[here] @ way_of_success(outcome[others], drawn[others])
    nearness = np.where(success == 1, 0.0, -rewards["way_left"].to_numpy(dtype=float))
    return rewards.assign(along=along, outcome=outcome, true=advantages(rewards, nearness))


def failed_throughout(rewards: pd.DataFrame) -> pd.Series:
    """Whether all rollouts of a rollout's group failed: bool (N,)."""
    return ~rewards.groupby(GROUP)["success"].transform("any")


def mixed(rewards: pd.DataFrame) -> pd.Series:
    """Whether a rollout's group has both successes and failures: bool (N,)."""
    success = rewards.groupby(GROUP)["success"]
    return success.transform("any") & ~success.transform("all")


def pull(rewards: pd.DataFrame, advantage: str, seed: int = 0) -> Estimate:
    """Mean of advantage × `along` over rollouts that `along_success` gave, with a percentile bootstrap
    interval of runs drawn anew. 0 is no knowledge.
    """
    told = rewards[rewards["along"].notna()]
    runs = (told[advantage] * told["along"]).groupby([told[key] for key in RUN])
    sums, weights = runs.sum().to_numpy(), runs.size().to_numpy()
    if not len(sums):
        return Estimate(NAN, NAN, NAN)
    chosen = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    interval = percentile_interval(sums[chosen].sum(1) / weights[chosen].sum(1))
    return Estimate(float(sums.sum() / weights.sum()), *interval)
