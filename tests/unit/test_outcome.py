from __future__ import annotations

import numpy as np

from srpo.rewards.outcome import outcome_rewards


def test_success_is_one_and_failure_zero() -> None:
    rewards = outcome_rewards(np.array([True, False, True]))
    assert rewards.dtype == np.float64
    assert rewards.tolist() == [1.0, 0.0, 1.0]
