"""An update logs what the schema of metrics.csv says; computed here a second time, in another way."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from srpo.envs.libero import load_task
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.rl import update
from support.policies import SUITE, observations, small_policy
from support.rl_steps import batch, learn, scored
from support.stages import training_stage as stage

OUTCOMES = "1100" + "1010" + "0001" + "1110"
RATE, CLIP_LOW, CLIP_HIGH, KL, ENTROPY = 0.02, 0.002, 0.003, 0.1, 0.01


def by_hand(policy: OpenVLAOFT, minibatch: int, epochs: int, aggregate: str) -> dict[str, float]:
    """Plain gradient descent on the paper's objective, a mini-batch of groups at a time; what it saw."""
    config = stage()
    data = batch(config, OUTCOMES, policy)
    advantages, reference = scored(config, data).advantages, copy.deepcopy(policy)
    seen: dict[str, list[float]] = {name: [] for name in update.UPDATE_METRICS}
    for epoch in range(epochs):
        order = np.random.default_rng([config.seed, 1, epoch]).permutation(4)
        for start in range(0, 4, minibatch):
            members = [k for k in range(16) if k // 4 in order[start : start + minibatch]]
            sums = {name: torch.zeros(()) for name in ("loss", "kl", "update_kl", "clipped", "entropy")}
            parts = 0
            for k in members:
                episode = data.episodes[k]
                inputs = policy.prepare_inputs(
                    SUITE,
                    episode.images,
                    [instruction(episode.spec.task_id)] * len(episode.images),
                    episode.proprio,
                )
                valid = torch.from_numpy(episode.valid)
                chosen = torch.from_numpy(episode.tokens)[..., None]
                p = torch.softmax(policy(inputs), -1)
                with torch.no_grad():
                    start_p = torch.softmax(reference(inputs), -1).gather(-1, chosen)[..., 0]
                now, old = p.gather(-1, chosen)[..., 0], torch.from_numpy(episode.log_probs).exp()
                ratio, gain = now / old, float(advantages[k])
                cut = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
                kl = start_p / now - 1 - (start_p / now).log()
                entropy = -(p * p.log()).sum(-1)
                surrogate = torch.minimum(ratio * gain, cut * gain)
                values = {
                    "loss": -surrogate + KL * kl - ENTROPY * entropy,
                    "kl": kl.detach(),
                    "update_kl": (ratio - 1 - ratio.log()).detach(),
                    "clipped": (cut * gain < ratio * gain).float(),
                    "entropy": entropy.detach(),
                }
                for name, value in values.items():
                    own = value[valid]
                    sums[name] = sums[name] + (own.sum() if aggregate == "token" else own.mean())
                parts += int(valid.sum()) if aggregate == "token" else 1
            policy.zero_grad()
            (sums["loss"] / parts).backward()
            gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
            norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))  # type: ignore[arg-type]
            with torch.no_grad():
                for parameter in policy.parameters():
                    if parameter.grad is not None:
                        parameter -= RATE * parameter.grad
            for name, total in zip(update.UPDATE_METRICS, sums.values(), strict=False):
                seen[name].append(float(total.detach()) / parts)
            seen["grad_norm"].append(float(norm))
    return {name: float(np.mean(values)) for name, values in seen.items()}


def instruction(task: int) -> str:
    return load_task(SUITE, task).language


@pytest.mark.parametrize(
    ("minibatch", "epochs", "aggregate"), [(4, 1, "token"), (2, 2, "token"), (2, 1, "trajectory")]
)
def test_every_logged_figure_is_a_mean_over_tokens_and_minibatches(
    minibatch: int, epochs: int, aggregate: str
) -> None:
    """Or over trajectories, of each of which it is the mean over its tokens."""
    changes = {"minibatch": minibatch, "epochs": epochs, "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH}
    changes |= {"aggregate": aggregate}
    config, policy = stage(changes | {"kl": KL, "entropy": ENTROPY, "microbatch": 3}), small_policy()
    data = batch(config, OUTCOMES, policy)
    optimiser = torch.optim.SGD(policy.parameters(), lr=RATE)
    logged = learn(config, policy, copy.deepcopy(policy), optimiser, data, scored(config, data))
    expected = by_hand(small_policy(), minibatch, epochs, aggregate)
    assert logged == pytest.approx(expected, rel=2e-3, abs=2e-6)
    assert 0 < logged["entropy"] <= np.log(256)
    assert (logged["clip_fraction"] > 0) == (minibatch < 4), "only steps before a mini-batch make ratios"


@pytest.mark.parametrize("acting", [1, 3, 16])
def test_the_ratio_is_1_whatever_batch_acted(acting: int) -> None:
    """The first update sees the policy that acted, though it takes the queries in other batches."""
    policy = small_policy()
    inputs = policy.prepare_inputs(SUITE, *observations(16))
    parts = []
    for at in range(0, 16, acting):
        part = inputs[slice(at, at + acting)]
        parts.append(policy.act(part, 1.6, [torch.Generator().manual_seed(k) for k in range(len(part))]))
    tokens, old = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True))
    with torch.no_grad():
        for at in range(0, 16, 5):
            part = slice(at, at + 5)
            log_probs, _ = policy.log_probs(inputs[part], tokens[part], 1.6)
            assert float(((log_probs - old[part]).exp() - 1).abs().max()) < 1e-6


def test_an_update_raises_what_did_better_above_what_did_worse() -> None:
    """All chunks go through one network and move together; those of better episodes end higher."""
    config, policy = stage({"minibatch": 4}), small_policy()
    data = batch(config, OUTCOMES, policy)
    scores = scored(config, data)
    queries = update.episode_queries(data.episodes.values(), scores.advantages)
    actions = update.make_action_batch(config, policy, queries)
    learn(config, policy, None, torch.optim.SGD(policy.parameters(), lr=1e-4), data, scores)
    with torch.no_grad():
        log_probs, _ = policy.log_probs(actions.inputs, actions.tokens, 1.0)
    change = ((log_probs - actions.log_probs) * actions.valid).sum(1)
    better, worse = change[actions.advantages > 0], change[actions.advantages < 0]
    assert float(better.mean()) > float(worse.mean()) and float(better.median()) > float(worse.median())
    assert float((actions.advantages * change).sum()) > 0


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_chunk_alone_moves_with_its_advantage(advantage: float) -> None:
    config, policy = stage({"minibatch": 4}), small_policy()
    episode = next(iter(batch(config, OUTCOMES, policy).episodes.values()))
    queries = update.episode_queries([episode], np.array([advantage]))
    actions = update.make_action_batch(config, policy, queries)
    optimiser = torch.optim.SGD(policy.parameters(), lr=1e-3)
    learner = update.Learner(policy, None, optimiser, Accelerator())
    update.accumulate_gradients(config, learner, queries, float(actions.valid.sum()))
    optimiser.step()
    with torch.no_grad():
        log_probs, _ = policy.log_probs(actions.inputs, actions.tokens, 1.0)
    assert (((log_probs - actions.log_probs) * actions.valid).sum(1) * advantage > 0).all()
