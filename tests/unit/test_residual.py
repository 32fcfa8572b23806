"""The residual: what it does to the actions, and how reinforcement learning trains it, and it alone."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from math import log, pi
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from policies import SUITE, observations, small_policy
from pydantic import ValidationError
from test_trainer import batch, scored, stage

from srpo import collect, trainer, update
from srpo.config import Lora, Offline, Policy, TrainStage
from srpo.envs.libero import load_task
from srpo.envs.pool import Query
from srpo.policies.openvla_oft import OpenVLAOFT, _numbers, create_policy, load_policy, save_policy
from srpo.rollout import Rollouts, draw_noise
from srpo.types import EpisodeSpec


@pytest.fixture
def policy() -> OpenVLAOFT:
    plain = small_policy()
    settings = plain.settings.model_copy(update={"residual": True})
    made = create_policy(settings, plain.tokenizer, plain.config.norm_stats)
    missing = made.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["residual"]
    return made.eval()


def test_it_starts_by_changing_nothing(policy: OpenVLAOFT) -> None:
    inputs = policy.prepare(SUITE, *observations(3))
    with torch.no_grad():
        torch.testing.assert_close(policy(inputs), small_policy()(inputs), rtol=0, atol=0)


def test_it_leans_one_dimension_under_one_instruction(policy: OpenVLAOFT) -> None:
    images, words, proprio = observations(3)
    inputs = policy.prepare(SUITE, images, words, proprio)
    row = int(_numbers(inputs)[0])
    before = torch.softmax(policy(inputs), -1).detach()
    with torch.no_grad():
        policy.residual[row, 2] = 1.5
    after = torch.softmax(policy(inputs), -1).detach().reshape(3, 8, 7, 256)
    before = before.reshape(3, 8, 7, 256)
    own = torch.tensor([word == words[0] for word in words])
    assert own.any() and not own.all()
    torch.testing.assert_close(after[~own], before[~own])
    torch.testing.assert_close(after[own][:, :, [0, 1, 3, 4, 5, 6]], before[own][:, :, [0, 1, 3, 4, 5, 6]])
    # Exponential tilt: p·exp(1.5·ramp), normalised.
    tilted = before[own][:, :, 2] * torch.exp(1.5 * torch.linspace(-1, 1, 256))
    torch.testing.assert_close(after[own][:, :, 2], tilted / tilted.sum(-1, keepdim=True))


def test_an_instruction_is_found_however_it_is_padded(policy: OpenVLAOFT) -> None:
    images, words, proprio = observations(2)
    alone = policy.prepare(SUITE, images[:1], words[:1], proprio[:1])
    longer = [words[0], words[0] + " and then open the top drawer of the cabinet slowly"]
    assert _numbers(policy.prepare(SUITE, images, longer, proprio))[0] == _numbers(alone)[0]


def test_no_two_instructions_of_libero_share_a_row(policy: OpenVLAOFT) -> None:
    tasks = [
        load_task(suite, task)
        for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10")
        for task in range(10)
    ]
    words = [task.language for task in tasks]
    images, _, proprio = observations(1)
    inputs = policy.prepare(SUITE, np.repeat(images, 40, 0), words, np.repeat(proprio, 40, 0))
    assert len(set(_numbers(inputs).tolist())) == len(set(words))


def test_it_alone_is_trained_by_reinforcement(policy: OpenVLAOFT) -> None:
    policy.make_trainable(reinforcement=True)
    assert [name for name, p in policy.named_parameters() if p.requires_grad] == ["residual"]
    policy.make_trainable()
    assert [name for name, p in policy.named_parameters() if not p.requires_grad] == ["residual"]


def test_it_is_saved(policy: OpenVLAOFT, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        policy.residual[5] = torch.arange(7.0)
    save_policy(policy, tmp_path / "policy")
    torch.testing.assert_close(load_policy(tmp_path / "policy").residual, policy.residual)


def test_it_does_not_go_with_adapters() -> None:
    settings = small_policy().settings.model_dump()
    with pytest.raises(ValidationError, match="set lora null, or residual false"):
        Policy.model_validate({**settings, "residual": True, "lora": Lora(rank=2, alpha=4).model_dump()})


NOISE = 0.5


def residual_of(policy: OpenVLAOFT, task: int) -> torch.Tensor:
    """The residual's row of a task's instruction, which may be written to."""
    images, _, proprio = observations(1)
    number = _numbers(policy.prepare(SUITE, images, [load_task(SUITE, task).language], proprio))[0]
    return policy.residual.data[number]


def explored(policy: OpenVLAOFT, config: TrainStage) -> collect.Batch:
    """A step's episodes, whose leans are what the policy would have drawn: success is to lean up in z."""
    noise = [
        draw_noise(spec)[1] for spec in collect.episode_specs(config, 1, collect.sample_prompts(config, 1))
    ]
    data = batch(config, "".join("01"[int(z[2] > 0)] for z in noise), small_policy())
    episodes = {
        k: replace(e, lean=(residual_of(policy, e.spec.task_id) + noise[k]).numpy())
        for k, e in data.episodes.items()
    }
    return replace(data, episodes=episodes)


def test_what_is_likely_of_a_lean(policy: OpenVLAOFT) -> None:
    """Golden: the logarithm of a normal density, and its entropy."""
    residual_of(policy, 7)[:] = torch.arange(7.0)
    images, _, proprio = observations(1)
    inputs = policy.prepare(SUITE, images, [load_task(SUITE, 7).language], proprio)
    found, entropy = policy.lean_log_probs(inputs, torch.arange(7.0)[None] + 1.0, 0.5)
    expected = -0.5 * (1.0 / 0.5) ** 2 - log(0.5) - 0.5 * log(2 * pi)
    torch.testing.assert_close(found, torch.full((1, 7), expected))
    torch.testing.assert_close(entropy, torch.full((1, 7), 0.5 + 0.5 * log(2 * pi) + log(0.5)))


def test_noise_moves_the_actions_as_the_residual_does(policy: OpenVLAOFT) -> None:
    inputs = policy.prepare(SUITE, *observations(1))
    noise = torch.linspace(-2, 2, 7)
    moved = policy(inputs, noise=noise[None])
    policy.residual.data[_numbers(inputs)[0]] = noise
    torch.testing.assert_close(policy(inputs), moved)
    assert (moved.argmax(-1) != small_policy()(inputs).argmax(-1)).any()


def test_noise_is_drawn_once_an_episode(policy: OpenVLAOFT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two episodes whose queries come in turns: each acts, and says that it did, under its own noise."""
    residual_of(policy, 7)[:] = 0.3
    specs = [EpisodeSpec(SUITE, 7, 0, seed, 0.0, noise=NOISE) for seed in (1, 2)]
    images, _, proprio = observations(1)
    seen: list[torch.Tensor] = []

    class Pool:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def run(self, specs: Sequence[EpisodeSpec], act, size: int):  # type: ignore[no-untyped-def]
            words = load_task(SUITE, 7).language
            for query in range(3):
                for worker, spec in enumerate(specs):
                    act([Query(worker, spec, query == 0, words, images[0], proprio[0])])
            data = batch(stage(), "1" * 16, small_policy())
            yield from (replace(next(iter(data.episodes.values())), spec=spec) for spec in specs)

    act = policy.act

    def noticed(inputs, temperature, generators, noise):  # type: ignore[no-untyped-def]
        seen.append(noise[0])
        return act(inputs, temperature, generators, noise)

    monkeypatch.setattr("srpo.rollout.EnvPool", Pool)
    monkeypatch.setattr(policy, "act", noticed)
    episodes = list(Rollouts(SUITE, stage().protocol, policy, workers=2).run(specs))
    drawn = [draw_noise(spec)[1] for spec in specs]
    assert all(torch.equal(noise, drawn[k % 2]) for k, noise in enumerate(seen)) and len(seen) == 6
    assert not torch.equal(*drawn)
    for episode, noise in zip(episodes, drawn, strict=True):
        np.testing.assert_allclose(episode.lean, noise + 0.3)
    with pytest.raises(ValueError, match="no residual to add noise to"):
        list(Rollouts(SUITE, stage().protocol, small_policy(), workers=2).run(specs))


@pytest.mark.parametrize("start", [0.0, 0.4])
def test_it_learns_to_lean_as_the_better_episodes_did(policy: OpenVLAOFT, start: float) -> None:
    config = stage({"residual_noise": NOISE, "prompts": 8, "minibatch": 8, "kl": 0.1})
    for task in config.tasks:
        residual_of(policy, task)[:] = start
    policy.make_trainable(reinforcement=True)
    data = explored(policy, config)
    scores = scored(config, data)
    reference = copy.deepcopy(policy)  # at which the KL penalty pulls nowhere
    optimiser = update.make_optimiser(policy, config.train.model_copy(update={"learning_rate": 1.0}))
    learnt = update.update(config, policy, reference, optimiser, Accelerator(), data, scores, 1)
    assert learnt["update_kl"] == pytest.approx(0, abs=1e-9), "the noise was drawn around this very residual"
    for task in config.tasks:
        assert residual_of(policy, task)[2] > start + 0.1
    # By hand: the mean over the task's rollouts of A·noise (nothing is clipped).
    noise = torch.stack([draw_noise(e.spec)[1] for e in data.episodes.values()])
    mine = torch.tensor([e.spec.task_id == 7 for e in data.episodes.values()])
    teaches = torch.from_numpy(scores.kept & scores.signal)
    weight = torch.from_numpy(scores.advantages).float() * (mine & teaches)
    expected = (weight[:, None] * noise).sum(0) / mine.sum()
    torch.testing.assert_close(residual_of(policy, 7) - start, expected, rtol=1e-4, atol=1e-6)


def test_it_learns_from_a_fixed_set(policy: OpenVLAOFT) -> None:
    """Regression: towards the leans of the better episodes, pass after pass."""
    config = stage({"residual_noise": NOISE, "minibatch": 4, "offline": Offline(beta=0.3, max_weight=20.0)})
    policy.make_trainable(reinforcement=True)
    data = explored(policy, config)
    scores = scored(config, data)
    optimiser = torch.optim.SGD([policy.residual], lr=0.1)
    for step in range(40):
        update.update(config, policy, None, optimiser, Accelerator(), data, scores, step)
    for task in config.tasks:
        own = [k for k, e in enumerate(data.episodes.values()) if e.spec.task_id == task]
        weight = np.exp(scores.advantages[own] / 0.3).clip(max=20)
        leans = np.stack([e.lean for e in data.episodes.values()])[own]
        expected = (weight[:, None] * leans).sum(0) / weight.sum()
        np.testing.assert_allclose(residual_of(policy, task), expected, atol=0.02)


def test_residual_and_noise_go_together(policy: OpenVLAOFT, tmp_path: Path) -> None:
    save_policy(small_policy(), tmp_path / "plain")
    save_policy(policy, tmp_path / "residual")
    for folder, noise in (("plain", 0.5), ("residual", 0.0)):
        config = stage({"residual_noise": noise})
        with pytest.raises(SystemExit, match=f"{folder}: the policy has .*both or neither"):
            trainer.begin(config, tmp_path / folder, None, None, tmp_path / "out", tmp_path / "scratch")
    with pytest.raises(ValidationError, match="temperature 0 without residual_noise"):
        stage({"temperature": 0.0})
    assert stage({"temperature": 0.0, "residual_noise": 0.1}).train.temperature == 0


def test_noise_comes_in_pairs_of_either_sign() -> None:
    config = stage({"residual_noise": NOISE, "temperature": 0.0})
    specs = collect.episode_specs(config, 1, collect.sample_prompts(config, 1))
    assert len(set(specs)) == len(specs) == 16
    noise = torch.stack([draw_noise(spec)[1] for spec in specs])
    assert torch.equal(noise[0::2], -noise[1::2])
    assert len({tuple(row) for row in noise.abs().tolist()}) == 8
    assert noise[0::2].std() == pytest.approx(NOISE, rel=0.3)
    plain = collect.episode_specs(stage(), 1, collect.sample_prompts(config, 1))
    assert len({spec.seed for spec in plain}) == 16 and not any(spec.noise for spec in plain)
