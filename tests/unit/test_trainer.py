"""The RL loop's parts: which episodes, what they are worth, and the update."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from policies import SUITE, small_policy

from srpo import trainer
from srpo.config import Protocol, Reward, Train, TrainStage, WorldModel
from srpo.types import CHUNK, Episode, EpisodeSpec, FailedRun
from srpo.world_models import load_world_model

TASKS = (7, 8)


def stage(train: dict | None = None, reward: dict | None = None, pixel: bool = True) -> TrainStage:
    settings = dict(
        steps=3, prompts=4, group_size=4, temperature=1.0, keep_success=(0.0, 1.0), learning_rate=1e-2,
        weight_decay=0.0, minibatch=2, microbatch=1000, epochs=1, clip_low=0.2, clip_high=0.28, kl=0.0,
        entropy=0.0, grad_clip=1e9, checkpoint_every=1,
    )  # fmt: skip
    shaping = dict(
        shaping="paper",
        alpha=0.8,
        references="mean",
        scope="task",
        eps=0.5,
        eps_relative=False,
        min_samples=2,
    )
    world_model = WorldModel(
        name="pixel", kind="pixel", checkpoint=None, revision=None, frames=4, image_size=4,
        pooling=None, dtype="float32", pretraining=None,
    )  # fmt: skip
    return TrainStage(
        preset="test",
        suite=SUITE,
        tasks=TASKS,
        protocol=Protocol(
            profile="held_out", max_steps=20, settle_steps=0, env_seed=0, image_size=16, render="fast"
        ),
        variant="test",
        seed=5,
        world_model=world_model if pixel else None,
        reward=Reward(**(shaping | (reward or {}))),
        train=Train(**(settings | (train or {}))),
    )


def episode(spec: EpisodeSpec, success: bool, steps: int, policy: object) -> Episode:
    """An episode with made-up pictures, whose tokens the policy really sampled."""
    rng = np.random.default_rng(spec.seed)
    queries = -(-steps // CHUNK)
    images = rng.integers(0, 256, (queries, 16, 16, 3), dtype=np.uint8)
    proprio = rng.normal(size=(queries, 8)).astype(np.float32)
    words = [trainer.load_task(spec.suite, spec.task_id).language] * queries
    generators = [torch.Generator().manual_seed(k) for k in range(queries)]
    tokens, log_probs = policy.act(policy.prepare(SUITE, images, words, proprio), 1.0, generators)  # type: ignore[attr-defined]
    valid = np.repeat(np.arange(queries * CHUNK) < steps, 7).reshape(queries, 56)
    frames = rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    path = np.zeros((steps + 1, 3), np.float32)
    return Episode(spec, success, steps, images, proprio, tokens, log_probs, valid, frames, path, 0.1)


def batch(config: TrainStage, successes: str, policy: object) -> trainer.Batch:
    """One episode a character of `successes` (1, 0), in the order of the step's specs."""
    specs = trainer.episode_specs(config, 1)
    episodes = [
        episode(spec, flag == "1", 9 + 3 * (k % 4), policy)
        for k, (spec, flag) in enumerate(zip(specs, successes, strict=True))
    ]
    groups = np.arange(len(specs)) // config.train.group_size
    return trainer.Batch(episodes, groups, [])


def test_prompts_take_turns_over_tasks_and_stay_on_training_states() -> None:
    config = stage({"prompts": 6, "minibatch": 3})
    prompts = [trainer.sample_prompts(config, step) for step in range(1, 200)]
    assert prompts == [trainer.sample_prompts(config, step) for step in range(1, 200)]
    assert all([task for task, _ in step] == [7, 8] * 3 for step in prompts)
    assert {state for step in prompts for _, state in step} == set(range(40))


def test_every_rollout_of_a_run_has_a_seed_of_its_own() -> None:
    specs = [spec for step in (1, 2, 3) for spec in trainer.episode_specs(stage(), step)]
    assert len({spec.seed for spec in specs}) == len(specs) == 3 * 16
    assert all(spec.frames == 4 and spec.temperature == 1.0 for spec in specs)
    groups = [specs[k : k + 4] for k in range(0, len(specs), 4)]
    assert all(len({(spec.task_id, spec.init_state) for spec in group}) == 1 for group in groups)


def test_infrastructure_errors_are_set_apart() -> None:
    policy = small_policy()
    specs = trainer.episode_specs(stage(), 1)[:8]

    class Crashing:
        def run(self, wanted: list[EpisodeSpec]) -> object:
            for spec in reversed(wanted):
                yield FailedRun(spec, "boom") if spec is specs[5] else episode(spec, True, 9, policy)

    result = trainer.roll_out(Crashing(), specs, 4, "step 1")  # type: ignore[arg-type]
    assert [e.spec for e in result.episodes] == specs[:5] + specs[6:]
    assert result.groups.tolist() == [0, 0, 0, 0, 1, 1, 1] and [f.spec for f in result.failed] == [specs[5]]


def test_srpo_learns_where_grpo_has_nothing_to_learn_from() -> None:
    """Groups 0 and 2 are task 7's, 1 and 3 task 8's; group 2 fails throughout."""
    policy = small_policy()
    outcomes = "1100" + "1010" + "0000" + "1111"
    grpo = stage(reward={"shaping": "none"}, pixel=False)
    plain = trainer.score(grpo, batch(grpo, outcomes, policy), None)
    assert plain.signal.reshape(4, 4).any(1).tolist() == [True, True, False, False]
    assert set(plain.shaped.rewards) == {0.0, 1.0}
    srpo = stage()
    shaped = trainer.score(srpo, batch(srpo, outcomes, policy), load_world_model(srpo.world_model, None))
    assert shaped.signal.reshape(4, 4).any(1).tolist() == [True, True, True, False]
    assert shaped.outcome_signal.reshape(4, 4).any(1).tolist() == [True, True, False, False]
    failed = shaped.shaped.rewards[[c == "0" for c in outcomes]]
    assert ((failed > 0) & (failed < 0.8)).all()
    np.testing.assert_allclose(shaped.advantages.reshape(4, 4).sum(1), 0, atol=1e-5)


def test_the_filter_keeps_groups_by_their_success_rate() -> None:
    config = stage({"keep_success": (0.1, 0.9)})
    policy = small_policy()
    scores = trainer.score(
        config,
        batch(config, "1100" + "1010" + "0000" + "1111", policy),
        load_world_model(config.world_model, None),
    )
    assert scores.kept.reshape(4, 4).any(1).tolist() == [True, True, False, False]


def updated(config: TrainStage, reference: bool = False) -> tuple[dict, dict]:
    policy = small_policy()
    data = batch(config, "1100" + "1010" + "0001" + "1110", policy)
    scores = trainer.score(config, data, load_world_model(config.world_model, None))
    optimiser = torch.optim.SGD(policy.parameters(), lr=config.train.learning_rate)
    frozen = copy.deepcopy(policy).requires_grad_(False) if reference else None
    log = trainer.update(config, policy, frozen, optimiser, Accelerator(), data, scores, 1)
    return log, {name: p.detach().clone() for name, p in policy.named_parameters()}


def test_the_update_does_not_depend_on_the_micro_batch() -> None:
    weights = {"kl": 0.1, "entropy": 0.01}
    log, whole = updated(stage(weights), reference=True)
    log_parts, parts = updated(stage(weights | {"microbatch": 3}), reference=True)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-6, rtol=1e-5)
    assert log_parts == pytest.approx(log, rel=1e-4, abs=1e-7)


def test_the_first_minibatch_is_on_policy() -> None:
    log, _ = updated(stage({"minibatch": 4}), reference=True)
    assert log["clip_fraction"] == 0 and log["kl"] == pytest.approx(0, abs=1e-6) and log["grad_norm"] > 0
    assert updated(stage({"minibatch": 4}))[0]["kl"] is None


def test_an_update_makes_better_episodes_likelier() -> None:
    config = stage({"minibatch": 4})
    policy = small_policy()
    data = batch(config, "1100" + "1010" + "0001" + "1110", policy)
    scores = trainer.score(config, data, load_world_model(config.world_model, None))
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.05)

    def surrogate() -> float:
        queries = trainer.gather_queries(policy, SUITE, data.episodes, scores.advantages)
        with torch.no_grad():
            log_probs, _ = policy.log_probs(queries.inputs, queries.tokens, 1.0)
        return float((log_probs * queries.valid * queries.advantages[:, None]).sum())

    before = surrogate()
    trainer.update(config, policy, None, optimiser, Accelerator(), data, scores, 1)
    assert surrogate() > before


def test_a_step_without_signal_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    config = stage(reward={"shaping": "none"}, pixel=False)
    policy = small_policy()
    data = batch(config, "0" * 16, policy)
    scores = trainer.score(config, data, None)
    before = [p.detach().clone() for p in policy.parameters()]
    optimiser = torch.optim.SGD(policy.parameters(), lr=1.0)
    learnt = trainer.update(config, policy, None, optimiser, Accelerator(), data, scores, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    row = trainer.metrics_row(1, data, scores, learnt, 1e-4, [0.0, 1.0, 3.0, 6.0])
    assert row["loss"] is None and row["groups_without_signal"] == row["groups"] == 4
    assert (row["seconds_rollout"], row["seconds_encode"], row["seconds_update"]) == (1.0, 2.0, 3.0)
    trainer.report(row, scores)
    assert "nothing to learn from" in capsys.readouterr().out
