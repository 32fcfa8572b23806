from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srpo.rl.losses import LossInputs, PolicyLoss, k3, policy_loss, regression_loss

clipped_loss = partial(policy_loss, clip_low=0.2, clip_high=0.28)


def logs(*ratios: float) -> Tensor:
    return torch.tensor([list(ratios)], dtype=torch.float64).log()


def one(ratio: float, advantage: float, valid: bool = True) -> PolicyLoss:
    zero = torch.zeros(1, 1, dtype=torch.float64)
    advantages = torch.tensor([advantage], dtype=torch.float64)
    return clipped_loss(LossInputs(logs(ratio), zero, advantages, torch.tensor([[valid]]), 1))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 2.0, -2.56, 1),  # −min(1.5·2, 1.28·2)
        (1.25, 2.0, -2.5, 0),  # inside: above 1 + 0.2, below 1 + 0.28
        (0.5, 2.0, -1.0, 0),  # −min(0.5·2, 0.8·2): a good token made rarer is not clipped
        (0.5, -1.0, 0.8, 1),  # −min(−0.5, −0.8)
        (1.5, -1.0, 1.5, 0),  # −min(−1.5, −1.28): a bad token made likelier is not clipped
        (1.5, 0.0, 0.0, 0),
    ],
)
def test_clip_by_hand(ratio: float, advantage: float, loss: float, clipped: float) -> None:
    result = one(ratio, advantage)
    assert result.total.item() == pytest.approx(loss)
    assert result.surrogate.item() == pytest.approx(loss)
    assert result.clip_fraction.item() == clipped


def test_aggregation_kl_and_entropy_by_hand() -> None:
    # Ratios 1.5 | 0.5, 1.1; advantages 2 and −1; the second token of query one is not valid; 3 valid tokens.
    # surrogate (−2.56 + 0.8 + 1.1)/3 = −0.22; clipped 2/3
    # reference/policy 1, 2, 1/2: k3 = 0, 2 − 1 − ln 2, 1/2 − 1 + ln 2: mean 0.5/3 = 0.1666667
    # entropy (1 + 2 + 3)/3 = 2; total −0.22 + 0.3·0.1666667 − 0.01·2 = −0.19
    log_probs = torch.cat([logs(1.5, 7.0), logs(0.5, 1.1)])
    inputs = LossInputs(
        log_probs,
        torch.zeros(2, 2, dtype=torch.float64),
        torch.tensor([2.0, -1.0], dtype=torch.float64),
        torch.tensor([[True, False], [True, True]]),
        3,
        reference_log_probs=log_probs + torch.cat([logs(1.0, 9.0), logs(2.0, 0.5)]),
        entropy=torch.tensor([[1.0, 50.0], [2.0, 3.0]], dtype=torch.float64),
    )
    result = clipped_loss(inputs, kl_weight=0.3, entropy_weight=0.01)
    assert result.surrogate.item() == pytest.approx(-0.22)
    assert result.kl.item() == pytest.approx(1 / 6)
    assert result.entropy.item() == pytest.approx(2)
    assert result.total.item() == pytest.approx(-0.19)
    assert result.clip_fraction.item() == pytest.approx(2 / 3)
    # ratio − 1 − ln ratio: 0.5 − 0.4054651, −0.5 + 0.6931472, 0.1 − 0.0953102, over 3
    assert result.approx_kl.item() == pytest.approx((0.0945349 + 0.1931472 + 0.0046898) / 3, abs=1e-7)


def random_batch(seed: int, queries: int = 6, tokens: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    valid = torch.rand(queries, tokens, generator=generator) < 0.7
    valid[0, 0] = True
    return {
        "logits": normal(queries, tokens, 8),
        "actions": torch.randint(8, (queries, tokens), generator=generator),
        "noise": normal(queries, tokens) * 0.3,
        "reference_noise": normal(queries, tokens) * 0.3,
        "advantages": normal(queries),
        "valid": valid,
    }


def loss_of(batch: dict[str, Tensor], part: slice, normaliser: float, logits: Tensor) -> PolicyLoss:
    log_p = logits.log_softmax(-1)
    log_probs = log_p.gather(-1, batch["actions"][part].unsqueeze(-1)).squeeze(-1)
    fixed = log_probs.detach()
    inputs = LossInputs(
        log_probs,
        fixed + batch["noise"][part],
        batch["advantages"][part],
        batch["valid"][part],
        normaliser,
        reference_log_probs=fixed + batch["reference_noise"][part],
        entropy=-(log_p.exp() * log_p).sum(-1),
    )
    return clipped_loss(inputs, kl_weight=0.1, entropy_weight=0.05)


@settings(max_examples=15)
@given(st.integers(0, 2**31 - 1))
def test_value_and_gradient_are_those_of_the_written_formula(seed: int) -> None:
    batch = random_batch(seed)
    normaliser = batch["valid"].sum().item()
    logits = batch["logits"].clone().requires_grad_()
    result = loss_of(batch, slice(None), normaliser, logits).total
    (gradient,) = torch.autograd.grad(result, logits)

    # The formula token by token, with plain Python control flow.
    again = batch["logits"].clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for q in range(6):
        for t in range(5):
            if not batch["valid"][q, t]:
                continue
            p = again[q, t].exp() / again[q, t].exp().sum()
            new = p[batch["actions"][q, t]].log()
            r = (new - new.detach() - batch["noise"][q, t]).exp()
            a = batch["advantages"][q]
            bound = 1.28 if a > 0 else 0.8
            objective = bound * a if (r > bound if a > 0 else r < bound) else r * a
            delta = new.detach() + batch["reference_noise"][q, t] - new
            total = total - objective + 0.1 * (delta.exp() - 1 - delta) + 0.05 * (p * p.log()).sum()
    (expected,) = torch.autograd.grad(total / normaliser, again)
    assert result.item() == pytest.approx((total / normaliser).item())
    torch.testing.assert_close(gradient, expected)


@settings(max_examples=15)
@given(st.integers(0, 2**31 - 1), st.integers(1, 6))
def test_micro_batches_add_up(seed: int, size: int) -> None:
    batch = random_batch(seed)
    normaliser = batch["valid"].sum().item()
    whole_logits = batch["logits"].clone().requires_grad_()
    whole = loss_of(batch, slice(None), normaliser, whole_logits)
    whole.total.backward()
    logits = batch["logits"].clone().requires_grad_()
    parts = []
    for start in range(0, 6, size):
        part = slice(start, start + size)
        parts.append(loss_of(batch, part, normaliser, logits[part]))
        parts[-1].total.backward()
    torch.testing.assert_close(logits.grad, whole_logits.grad)
    for term in ("total", "surrogate", "kl", "entropy", "clip_fraction", "approx_kl"):
        added = sum(getattr(part, term).item() for part in parts)
        assert added == pytest.approx(getattr(whole, term).item(), abs=1e-12), term


def test_tokens_after_the_end_change_nothing_even_when_impossible() -> None:
    log_probs = torch.tensor([[-1.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.1, -math.inf]], dtype=torch.float64)
    valid = torch.tensor([[True, False]])
    result = clipped_loss(LossInputs(log_probs, old, torch.tensor([1.0]), valid, 1, reference_log_probs=old))
    result.total.backward()
    assert log_probs.grad is not None
    assert result.total.item() == pytest.approx(-math.exp(0.1))
    assert log_probs.grad.tolist() == [[pytest.approx(-math.exp(0.1)), 0.0]]


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    log_probs = torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    valid = torch.ones(1, 2, dtype=torch.bool)
    result = clipped_loss(LossInputs(log_probs, log_probs.detach(), torch.tensor([0.5]), valid, 2))
    result.total.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[-0.25, -0.25]]  # −A/2 each
    assert result.approx_kl.item() == 0 and result.clip_fraction.item() == 0


def test_a_huge_ratio_stays_finite() -> None:
    zero, valid = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    result = clipped_loss(LossInputs(torch.full((1, 1), 500.0), zero, torch.tensor([-1.0]), valid, 1))
    assert torch.isfinite(result.total)


@given(st.integers(0, 2**31 - 1), st.floats(0, 3))
def test_k3_is_never_negative_and_zero_on_itself(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(4, 3, generator=generator) - 2
    other = log_probs + spread * torch.randn(4, 3, generator=generator)
    valid = torch.ones(4, 3, dtype=torch.bool)
    assert (k3(log_probs, other, valid) >= 0).all()
    assert (k3(log_probs, log_probs, valid) == 0).all()
    assert (k3(log_probs, other, ~valid) == 0).all()


def test_k3_is_an_unbiased_estimate_of_the_divergence() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    expectation = (p * k3(p.log(), q.log(), torch.ones(3, dtype=torch.bool))).sum()
    assert expectation.item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-6)


def test_missing_inputs_are_errors() -> None:
    zero, valid = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    tensors = (zero, zero, torch.zeros(1), valid)
    with pytest.raises(ValueError, match="reference_log_probs"):
        clipped_loss(LossInputs(*tensors, 1), kl_weight=0.1)
    with pytest.raises(ValueError, match="entropy"):
        clipped_loss(LossInputs(*tensors, 1), entropy_weight=0.1)
    with pytest.raises(ValueError, match="valid tokens"):
        clipped_loss(LossInputs(*tensors, 0))


def test_regression_by_hand() -> None:
    # Weights exp(A/β) with β = 2: A = 2·ln 3 gives 3, A = −2·ln 2 gives 1/2, A = 2·ln 50 is cut at 20.
    # log π: −1 | −2, −4 | −0.1; the second token of query one is not valid: 4 valid tokens.
    # −(3·(−1) + 0.5·(−2) + 0.5·(−4) + 20·(−0.1))/4 = 8/4 = 2; one of four tokens has its weight cut
    log_probs = torch.tensor([[-1.0, 7.0], [-2.0, -4.0], [-0.1, 7.0]], dtype=torch.float64)
    log_probs.requires_grad_()
    advantages = 2 * torch.tensor([3.0, 0.5, 50.0], dtype=torch.float64).log()
    valid = torch.tensor([[True, False], [True, True], [True, False]])
    inputs = LossInputs(log_probs, log_probs.detach(), advantages, valid, 4)
    result = regression_loss(inputs, beta=2.0, max_weight=20.0)
    assert result.total.item() == pytest.approx(2.0)
    assert result.clip_fraction.item() == pytest.approx(0.25) and result.approx_kl.item() == 0
    result.total.backward()
    expected = torch.tensor([[-0.75, 0.0], [-0.125, -0.125], [-5.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(log_probs.grad, expected)


@settings(max_examples=15)
@given(st.integers(0, 2**31 - 1), st.floats(0.2, 5), st.floats(1, 30))
def test_regression_follows_the_written_formula(seed: int, beta: float, most: float) -> None:
    batch = random_batch(seed)
    valid, actions = batch["valid"], batch["actions"]
    total = float(valid.sum())

    def gradient(loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        logits = batch["logits"].clone().requires_grad_()
        loss = loss_of(logits.log_softmax(-1))
        loss.backward()
        assert logits.grad is not None
        return loss.detach(), logits.grad

    def written(log_p: Tensor) -> Tensor:
        loss = torch.zeros((), dtype=torch.float64)
        for query, token in valid.nonzero().tolist():
            p = log_p[query, token]
            weight = min(math.exp(batch["advantages"][query].item() / beta), most)
            log_ratio = batch["reference_noise"][query, token] + p[actions[query, token]].detach()
            log_ratio = log_ratio - p[actions[query, token]]
            loss = loss - weight * p[actions[query, token]] / total
            loss = loss + 0.1 * (log_ratio.exp() - 1 - log_ratio) / total
            loss = loss + 0.05 * (p.exp() * p).sum() / total
        return loss

    def computed(log_p: Tensor) -> Tensor:
        chosen = log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        inputs = LossInputs(
            chosen,
            chosen.detach(),
            batch["advantages"],
            valid,
            total,
            reference_log_probs=chosen.detach() + batch["reference_noise"],
            entropy=-(log_p.exp() * log_p).sum(-1),
        )
        return regression_loss(inputs, beta=beta, max_weight=most, kl_weight=0.1, entropy_weight=0.05).total

    for mine, theirs in zip(gradient(computed), gradient(written), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-9)
