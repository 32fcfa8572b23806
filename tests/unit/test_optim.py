"""The optimiser and the learning-rate schedule."""

from itertools import pairwise

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from srpo import optim


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    rates = [optim.learning_rate(update, 100, 1.0, 0.1) for update in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[99] < 1e-3 and rates[100] == pytest.approx(0.0)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


def test_learning_rate_falls_to_a_tenth_at_once() -> None:
    rates = [optim.learning_rate(update, 10, 2.0, 0.2, decay_after=6) for update in range(10)]
    assert rates == pytest.approx([1, 2, 2, 2, 2, 2, 0.2, 0.2, 0.2, 0.2])


def test_adamw_is_fused_on_a_gpu_and_takes_what_is_trained() -> None:
    """Fake tensors say that they are on a GPU."""
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    optimiser = optim.adamw(model, 0.1, 0.0)
    assert optimiser.param_groups[0]["params"] == [model.weight] and optimiser.defaults["fused"] is None
    with FakeTensorMode():
        model.weight = torch.nn.Parameter(torch.empty(2, 3, device="cuda"))
        assert optim.adamw(model, 0.1, 0.0).defaults["fused"]
