"""Branches: an episode that starts from a moment of another one goes on as that one did, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srpo.envs.libero import LiberoEnv
from srpo.episode import CHUNK, Episode, EpisodeSpec, Start
from srpo.policies.checkpoints import load_policy
from srpo.rollouts.policy_runner import PolicyRunner
from support.sweeping import BOWL, PROTOCOL, STOVE, SUITE

pytestmark = pytest.mark.integration

WHOLE = [EpisodeSpec(SUITE, task, 3, seed=task, temperature=1.0, states=True) for task in (STOVE, BOWL)]


@pytest.fixture(scope="module")
def runner(policy: Path) -> Iterator[PolicyRunner]:
    with PolicyRunner(SUITE, PROTOCOL, load_policy(policy), workers=1) as rollouts:
        yield rollouts


@pytest.fixture(scope="module")
def episodes(runner: PolicyRunner) -> list[Episode]:
    found = [result for result in runner.run(WHOLE) if isinstance(result, Episode)]
    assert len(found) == len(WHOLE)
    return found


def branches(runner: PolicyRunner, specs: list[EpisodeSpec]) -> dict[EpisodeSpec, Episode]:
    found = {result.spec: result for result in runner.run(specs) if isinstance(result, Episode)}
    assert set(found) == set(specs)
    return found


def test_a_branch_with_the_episodes_own_seed_is_its_rest(
    runner: PolicyRunner, episodes: list[Episode]
) -> None:
    rests = {
        replace(e.spec, start=Start(query, e.states[query].tobytes())): (e, query)
        for e in episodes
        for query in range(len(e.states))
    }
    for spec, rest in branches(runner, list(rests)).items():
        whole, query = rests[spec]
        assert (rest.success, rest.steps) == (whole.success, whole.steps - query * CHUNK)
        for name in ("images", "proprio", "tokens", "log_probs", "valid", "states"):
            np.testing.assert_array_equal(getattr(rest, name), getattr(whole, name)[query:], err_msg=name)
        np.testing.assert_array_equal(rest.path, whole.path[query * CHUNK :])
        # The first is measured before a step, when poses are not yet a substep behind the state.
        np.testing.assert_array_equal(rest.distance_to_goal[1:], whole.distance_to_goal[query * CHUNK + 1 :])
        np.testing.assert_allclose(rest.distance_to_goal[0], whole.distance_to_goal[query * CHUNK], atol=0.01)
    assert len({whole.success for whole, _ in rests.values()}) == 2


def test_a_branch_has_a_seed_of_its_own_and_ends_when_a_whole_episode_does(
    runner: PolicyRunner, episodes: list[Episode]
) -> None:
    (failure,) = [episode for episode in episodes if not episode.success]
    start = Start(2, failure.states[2].tobytes())
    specs = [replace(failure.spec, seed=seed, start=start) for seed in (100, 101)]
    one, other = branches(runner, specs).values()
    np.testing.assert_array_equal(one.images[0], other.images[0])
    np.testing.assert_array_equal(one.images[0], failure.images[2])
    assert (one.tokens[0] != other.tokens[0]).any()
    for branch in (one, other):
        assert branch.success or branch.steps == PROTOCOL.max_steps - 2 * CHUNK
        assert len(branch.path) == branch.steps + 1


@pytest.mark.parametrize(("suite", "task_id"), [("libero_10", 2), ("libero_object", 0)])
def test_another_environment_goes_on_from_a_snapshot(suite: str, task_id: int) -> None:
    """Also in contact, with a stove that is lit on the way, and before the first step of all."""
    protocol = PROTOCOL.model_copy(update={"settle_steps": 0, "max_steps": 200})
    one, other = (LiberoEnv(suite, task_id, protocol) for _ in range(2))
    one.reset(1)
    rng = np.random.default_rng(0)
    actions = [np.array([0.2, 0.1, -1.0, 0, 0, 0.3, 1]) + 0.3 * rng.uniform(-1, 1, 7) for _ in range(48)]
    for action in actions[::7]:
        action[3:6] = 0
    snapshots, states, pictures = [], [], []
    for action in actions:
        snapshots.append(one.snapshot())
        one.step(action)
        states.append(one.integration_state())
        pictures.append(one.render())
    assert one.data.ncon > 0
    for begin in (0, 1, 17, 40):
        other.restore(snapshots[begin], steps=begin)
        for step in range(begin, len(actions)):
            other.step(actions[step])
            np.testing.assert_array_equal(other.integration_state(), states[step], err_msg=f"{begin} {step}")
        np.testing.assert_array_equal(other.render(), pictures[-1])
        assert other.steps == len(actions)
    with pytest.raises(ValueError, match=rf"{one.task.name}: a snapshot has \d+ numbers, not shape \(3,\)"):
        other.restore(np.zeros(3), steps=0)


def test_episodes_of_libero_plus_have_no_branches() -> None:
    with pytest.raises(ValueError, match="camera_7: episodes of LIBERO-Plus have no branches"):
        EpisodeSpec(SUITE, 7, 0, 0, 0.0, variant="camera_7", start=Start(0, b""))
