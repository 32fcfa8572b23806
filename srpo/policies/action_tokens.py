"""Actions as tokens, like OpenVLA's `ActionTokenizer` (github.com/openvla/openvla).

256 bin edges evenly over [-1, 1] make 255 bins; an action's token is the number of edges at or below it,
minus one (0…255), and decodes to the centre of its bin. Token k is the language model's id
`vocab_size - 1 - k`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 256
EDGES = np.linspace(-1.0, 1.0, BINS)
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2.0
GRIPPER = 6
"""Index of the gripper in an action."""


def encode(actions: NDArray[np.floating]) -> NDArray[np.int64]:
    """Tokens 0…255 of normalised actions (any shape); values beyond [-1, 1] are clipped."""
    return np.digitize(np.clip(actions, -1.0, 1.0), EDGES).astype(np.int64) - 1


def decode(tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    """Normalised actions of tokens: the centres of their bins. Token 255 (exactly +1) shares bin 254."""
    return CENTRES[np.clip(tokens, 0, BINS - 2)]


def action_statistics(actions: NDArray[np.floating]) -> dict[str, Any]:
    """1st and 99th percentiles of actions (N, 7) and the mask of dimensions that are normalised by them.

    The layout is that of an OpenVLA checkpoint's `norm_stats[key]["action"]`. The gripper is not normalised.
    """
    mask = np.ones(actions.shape[1], bool)
    mask[GRIPPER] = False
    return _statistics(actions) | {"mask": mask.tolist()}


def proprio_statistics(proprio: NDArray[np.floating]) -> dict[str, Any]:
    """1st and 99th percentiles of proprioception (N, 8), laid out as `norm_stats[key]["proprio"]`."""
    return _statistics(proprio)


def _statistics(values: NDArray[np.floating]) -> dict[str, Any]:
    return {
        "q01": np.quantile(values, 0.01, axis=0).tolist(),
        "q99": np.quantile(values, 0.99, axis=0).tolist(),
    }


def require_statistics(statistics: Any, size: int) -> None:
    """Raise ValueError unless these are statistics of vectors (size,), as `normalise` takes them.

    Another length would be broadcast, other words than true and false in the mask taken for true.
    """
    if not isinstance(statistics, dict):
        raise ValueError("they are missing")
    for name in ("q01", "q99"):
        values = statistics.get(name)
        if not isinstance(values, list) or len(values) != size:
            found = f"{len(values)} values" if isinstance(values, list) else repr(values)
            raise ValueError(f"{name} is not a list of {size} numbers, but {found}")
        wrong = [v for v in values if type(v) not in (int, float) or not np.isfinite(v)]
        if wrong:
            raise ValueError(f"{name} has {wrong[0]!r}, which is no finite number")
    pairs = zip(statistics["q01"], statistics["q99"], strict=True)
    if swapped := [k for k, (low, high) in enumerate(pairs) if low > high]:
        raise ValueError(f"q01 is above q99 in dimensions {swapped}")
    mask = statistics.get("mask", [True] * size)
    if not isinstance(mask, list) or [type(v) for v in mask] != [bool] * size:
        raise ValueError(f"mask is not a list of {size} times true or false, but {mask!r}")


def normalise(values: NDArray[np.floating], statistics: dict[str, Any]) -> NDArray[np.float64]:
    """Map [q01, q99] to [-1, 1] and clip; dimensions outside the mask stay as they are."""
    low, high = np.array(statistics["q01"]), np.array(statistics["q99"])
    mask = np.array(statistics.get("mask", np.ones(len(low), bool)))
    scaled = np.clip(2.0 * (values - low) / (high - low + 1e-8) - 1.0, -1.0, 1.0)
    return np.where(mask, scaled, values)


def unnormalise(values: NDArray[np.floating], statistics: dict[str, Any]) -> NDArray[np.float64]:
    """The inverse of `normalise`, as OpenVLA-OFT computes it."""
    low, high = np.array(statistics["q01"]), np.array(statistics["q99"])
    mask = np.array(statistics.get("mask", np.ones(len(low), bool)))
    return np.where(mask, 0.5 * (values + 1.0) * (high - low + 1e-8) + low, values)


def from_libero(actions: NDArray[np.floating]) -> NDArray[np.float64]:
    """LIBERO actions (gripper -1 opens, +1 closes) in the model's convention (gripper 1 opens, 0 closes)."""
    converted = np.array(actions, np.float64)
    converted[..., GRIPPER] = (1.0 - np.clip(converted[..., GRIPPER], -1.0, 1.0)) / 2.0
    return converted


def to_libero(actions: NDArray[np.floating]) -> NDArray[np.float64]:
    """The model's actions as the simulator takes them: the gripper to [-1, 1], to its sign, inverted."""
    converted = np.array(actions, np.float64)
    converted[..., GRIPPER] = -np.sign(2.0 * converted[..., GRIPPER] - 1.0)
    return converted
