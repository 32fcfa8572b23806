"""Values of moments (the policy's own chance of success there) beside the progress of representations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from srpo.analysis.stats import wilson
from srpo.config import RewardBenchmarkStage, ValuesStage
from srpo.results import ResultError
from srpo.results.coverage import read_config, require_alike
from srpo.results.rows import read_rows
from srpo.results.schemas import VALUES
from srpo.rewards.metrics import progress_curve

DISTANCE = "distance to goal"
"""The control that knows the simulator's state: one minus the metres to the goal, over the farthest."""
KEYS = ["suite", "task_id", "trajectory"]


def read_values(paths: Sequence[Path]) -> pd.DataFrame:
    """The rows of all suites, with each moment's `value` and its interval, `low` and `high` (Wilson).

    Moments of which no branch ran are left out.

    Raises:
        ResultError: files of several presets, or a moment that is there twice.
    """
    configs = [read_config(path, ValuesStage) for path in paths]
    require_alike(configs)
    rows = pd.concat([read_rows(path, VALUES) for path in paths], ignore_index=True)
    if rows.duplicated([*KEYS, "step"]).any():
        raise ResultError("a moment of a trajectory stands twice in the values")
    rows = rows[rows["branches"] > 0].sort_values([*KEYS, "step"], ignore_index=True)
    if rows.empty:
        raise ResultError("no moment has a value: no branch was run")
    estimates = [wilson(*pair) for pair in zip(rows["successes"], rows["branches"], strict=True)]
    return rows.assign(
        value=[one.value for one in estimates],
        low=[one.low for one in estimates],
        high=[one.high for one in estimates],
    )


def require_same_trajectories(curves: Sequence[Path], values: Sequence[Path]) -> None:
    """Refuse values of other trajectories than the curves', by what they were collected with."""
    scored = [read_config(path, RewardBenchmarkStage) for path in curves]
    valued = [read_config(path, ValuesStage) for path in values]
    require_alike([*scored, *valued])
    collected = {config.suite: config.reward_benchmark for config in scored}
    for path, config in zip(values, valued, strict=True):
        if collected.get(config.suite, config.reward_benchmark) != config.reward_benchmark:
            raise ResultError(
                f"{path}: its trajectories were collected with other settings (reward_benchmark) than those "
                f"of the curves of {config.suite}: run `srpo values` and the scores on the same ones"
            )


def with_distance(curves: pd.DataFrame) -> pd.DataFrame:
    """The curves, and those of the control `DISTANCE`, whose distance is the simulator's."""
    metres = curves[curves["representation"] == curves["representation"].iloc[0]].copy()
    metres["distance"] = metres["distance_to_goal"]
    metres["progress"] = metres.groupby(KEYS)["distance"].transform(
        lambda distance: progress_curve(distance.to_numpy())
    )
    order = [*curves["representation"].cat.categories, DISTANCE]
    both = pd.concat([metres.assign(representation=DISTANCE), curves.astype({"representation": str})])
    return both.assign(representation=pd.Categorical(both["representation"], order, ordered=True))


def beside(curves: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """The moments of `values` once for each representation, with its `progress` there.

    Curves have points of their own, between which progress is interpolated.
    """
    curves = curves.sort_values("step", kind="stable")
    of = dict(list(curves.groupby(["representation", *KEYS], observed=True)))
    frames = []
    for key, moments in values.groupby(KEYS):
        for name in curves["representation"].cat.categories:
            if (curve := of.get((name, *key))) is not None:
                progress = np.interp(moments["step"], curve["step"], curve["progress"])
                frames.append(moments.assign(representation=name, progress=progress))
    if not frames:
        raise ResultError("no trajectory has both values and curves: give those of the same trajectories")
    both = pd.concat(frames, ignore_index=True)
    order = curves["representation"].cat.categories
    return both.assign(representation=pd.Categorical(both["representation"], order, ordered=True))


def lost_from(moments: pd.DataFrame) -> float:
    """The control step of the first moment of a failure from which on no branch succeeded; NaN: none.

    Args:
        moments: its rows of `read_values`.
    """
    hopeful = np.flatnonzero(moments["successes"])
    lost = hopeful[-1] + 1 if len(hopeful) else 0
    return float(moments["step"].iloc[lost]) if lost < len(moments) else np.nan
