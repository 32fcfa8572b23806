"""The residual: what it does to the actions, and that reinforcement learning trains it alone."""

import numpy as np
import pytest
import torch
from policies import SUITE, observations, small_policy
from pydantic import ValidationError

from srpo.config import Lora, Policy
from srpo.envs.libero import load_task
from srpo.policies.openvla_oft import OpenVLAOFT, _numbers, create_policy, load_policy, save_policy


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
