"""The 0/1 reward of an episode's outcome, GRPO's only signal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def outcome_rewards(success: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1 for a success, 0 for a failure: float64 (N,)."""
    return success.astype(np.float64)
