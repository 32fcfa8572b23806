"""The RL loop's parts: which episodes, their rewards, and the update."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from srpo import optim
from srpo.config import TrainStage
from srpo.policies.checkpoints import save_policy
from srpo.results.rows import read_rows
from srpo.results.schemas import RL_METRICS
from srpo.rl import collect, metrics, score, trainer, update
from srpo.rl.tracking import scalars
from srpo.world_models import load_world_model
from support.policies import small_policy
from support.recorded_training import RecordedRollouts
from support.rl_steps import ScriptedRunner, batch, collector, learn, scored, specs_of
from support.stages import TASKS
from support.stages import training_stage as stage


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def test_prompts_take_turns_over_tasks_and_stay_on_training_states() -> None:
    config = stage({"prompts": 6, "minibatch": 3})
    prompts = [collect.sample_prompts(config, step) for step in range(1, 200)]
    assert prompts == [collect.sample_prompts(config, step) for step in range(1, 200)]
    assert all([task for task, _ in step] == [7, 8] * 3 for step in prompts)
    assert {state for step in prompts for _, state in step} == set(range(40))


def test_a_task_goes_through_all_of_its_states_before_any_comes_again() -> None:
    config = stage({"prompts": 6, "minibatch": 3})

    def states(seed: int) -> list[int]:
        own = config.model_copy(update={"seed": seed})
        return [
            state for step in range(1, 41) for task, state in collect.sample_prompts(own, step) if task == 8
        ]

    seen = states(5)
    rounds = [seen[k : k + 40] for k in range(0, 120, 40)]  # three prompts of it a step
    assert all(sorted(one) == list(range(40)) for one in rounds)
    assert rounds[0] != rounds[1] != rounds[2] and states(6) != seen


def test_every_rollout_of_a_run_has_a_seed_of_its_own() -> None:
    specs = [spec for step in (1, 2, 3) for spec in specs_of(stage(), step)]
    assert len({spec.seed for spec in specs}) == len(specs) == 3 * 16
    assert all(spec.frames == 4 and spec.temperature == 1.0 for spec in specs)
    groups = [specs[k : k + 4] for k in range(0, len(specs), 4)]
    assert all(len({(spec.task_id, spec.init_state) for spec in group}) == 1 for group in groups)


def test_infrastructure_errors_are_set_apart(scratch: Path) -> None:
    config = stage({"prompts": 2, "minibatch": 2})
    result = collect.collect_batch(config, 1, collector(ScriptedRunner(small_policy(), "11111x00"), scratch))
    specs = specs_of(config, 1)
    assert [o.spec for o in result.outcomes] == specs[:5] + specs[6:]
    assert [o.number for o in result.outcomes] == [0, 1, 2, 3, 4, 6, 7]
    assert result.groups.tolist() == [0, 0, 0, 0, 1, 1, 1] and result.errors == 1
    assert result.success.tolist() == [True] * 5 + [False] * 2
    assert all(result.episodes[o.number].spec == o.spec for o in result.outcomes)
    assert [o.tokens for o in result.outcomes] == [7 * o.steps for o in result.outcomes]


@pytest.mark.parametrize("successes", ["x" * 8, "10xxxxx1"])
def test_a_step_of_which_too_little_ran_ends_the_run(scratch: Path, successes: str) -> None:
    config = stage({"prompts": 2, "minibatch": 2})
    with pytest.raises(SystemExit, match=r"step 1: (8|5) of 8 episodes could not be run"):
        collect.collect_batch(config, 1, collector(ScriptedRunner(small_policy(), successes), scratch))


def test_episodes_that_were_kept_are_not_run_again(scratch: Path) -> None:
    config = stage({"prompts": 2, "minibatch": 2})
    first = ScriptedRunner(small_policy(), "10101x00")
    before = collect.collect_batch(config, 1, collector(first, scratch))
    again = ScriptedRunner(small_policy(), "1")
    after = collect.collect_batch(config, 1, collector(again, scratch))
    assert again.ran == [specs_of(config, 1)[5]] and (before.simulated, after.simulated) == (7, 1)
    assert list(before.episodes) == [0, 1, 2, 3, 4, 6, 7] and list(after.episodes) == list(range(8))
    for number, kept in before.episodes.items():
        for name in ("images", "proprio", "tokens", "log_probs", "valid", "frames", "path"):
            np.testing.assert_array_equal(getattr(after.episodes[number], name), getattr(kept, name))
        assert (after.episodes[number].success, after.episodes[number].steps) == (
            kept.success,
            kept.steps,
        )
    other_step = ScriptedRunner(small_policy(), "0" * 8)
    collect.collect_batch(config, 2, collector(other_step, scratch))
    assert len(other_step.ran) == 8


def test_further_rounds_make_up_for_groups_left_out(scratch: Path) -> None:
    """First round: groups 1 and 3 are left out. Second: one of two more. Third: still not; then the bound."""
    config = stage({"keep_success": (0.1, 0.9), "resample": 2})
    outcomes = "1100" + "0000" + "0001" + "1111" + "0000" + "0100" + "1111"
    rollouts = ScriptedRunner(small_policy(), outcomes + "x")
    result = collect.collect_batch(config, 1, collector(rollouts, scratch))
    assert len(rollouts.ran) == len(set(rollouts.ran)) == 28 and result.rounds == 3
    assert result.groups.tolist() == [k // 4 for k in range(28)]
    kept = collect.kept_groups(config, result)
    assert sorted(set(result.groups[kept])) == [0, 2, 5]
    specs = [o.spec for o in result.outcomes]
    assert all(len({(s.task_id, s.init_state) for s in specs[k : k + 4]}) == 1 for k in range(0, 28, 4))
    again = batch(config, outcomes, small_policy())
    assert [o.spec for o in again.outcomes] == specs
    full = batch(config, "1000" * 4, small_policy())
    assert full.rounds == 1 and len(full.outcomes) == 16


def test_further_rounds_do_not_always_begin_with_the_same_task() -> None:
    tasks = {collect.further_prompts(stage(), step, 1, 1)[0][0] for step in range(1, 30)}
    assert tasks == set(TASKS)


def test_srpo_learns_where_grpo_has_nothing_to_learn_from() -> None:
    """Groups 0 and 2 are task 7's, 1 and 3 task 8's; group 2 fails throughout."""
    policy = small_policy()
    outcomes = "1100" + "1010" + "0000" + "1111"
    grpo = stage(reward={"shaping": "none"}, pixel=False)
    plain = scored(grpo, batch(grpo, outcomes, policy))
    assert plain.signal.reshape(4, 4).any(1).tolist() == [True, True, False, False]
    assert set(plain.shaped.rewards) == {0.0, 1.0}
    srpo = stage()
    shaped = scored(srpo, batch(srpo, outcomes, policy))
    assert shaped.signal.reshape(4, 4).any(1).tolist() == [True, True, True, False]
    assert shaped.outcome_signal.reshape(4, 4).any(1).tolist() == [True, True, False, False]
    failed = shaped.shaped.rewards[[c == "0" for c in outcomes]]
    assert ((failed > 0) & (failed < 0.8)).all()
    np.testing.assert_allclose(shaped.advantages.reshape(4, 4).sum(1), 0, atol=1e-5)


def test_the_filter_keeps_groups_by_their_success_rate() -> None:
    config = stage({"keep_success": (0.1, 0.9)})
    policy = small_policy()
    scores = scored(config, batch(config, "1100" + "1010" + "0000" + "1111", policy))
    assert scores.kept.reshape(4, 4).any(1).tolist() == [True, True, False, False]


def updated(config: TrainStage, reference: bool = False) -> tuple[dict, dict]:
    policy = small_policy()
    data = batch(config, "1100" + "1010" + "0001" + "1110", policy)
    scores = scored(config, data)
    optimiser = torch.optim.SGD(policy.parameters(), lr=config.train.learning_rate)
    frozen = copy.deepcopy(policy).requires_grad_(False) if reference else None
    log = learn(config, policy, frozen, optimiser, data, scores)
    return log, {name: p.detach().clone() for name, p in policy.named_parameters()}


def test_the_update_does_not_depend_on_the_micro_batch() -> None:
    weights = {"kl": 0.1, "entropy": 0.01}
    log, whole = updated(stage(weights), reference=True)
    log_parts, parts = updated(stage(weights | {"microbatch": 3}), reference=True)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-6, rtol=1e-5)
    assert log_parts == pytest.approx(log, rel=1e-4, abs=1e-7)


def test_a_process_without_episodes_takes_part_and_adds_nothing() -> None:
    """Its passes are part of FSDP's; its gradients are there, for the mean, and zero."""
    config, policy = stage({"kl": 0.1, "entropy": 0.01}), small_policy()
    data = batch(config, "1100" + "1010" + "0001" + "1110", policy)
    scores = scored(config, data)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    optimiser = torch.optim.SGD(policy.parameters(), lr=1.0)
    logged = learn(config, policy, copy.deepcopy(policy), optimiser, replace(data, episodes={}), scores)
    assert set(logged.values()) == {0.0}
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]) and (parameter.grad == 0).all(), name


def test_the_first_minibatch_is_on_policy() -> None:
    log, _ = updated(stage({"minibatch": 4}), reference=True)
    assert log["clip_fraction"] == 0 and log["kl"] == pytest.approx(0, abs=1e-6) and log["grad_norm"] > 0
    assert log["update_kl"] == pytest.approx(0, abs=1e-9)
    assert updated(stage({"minibatch": 2}))[0]["update_kl"] > 1e-9
    assert updated(stage({"minibatch": 4}))[0]["kl"] is None


def test_an_update_makes_better_episodes_likelier() -> None:
    config = stage({"minibatch": 4})
    policy = small_policy()
    data = batch(config, "1100" + "1010" + "0001" + "1110", policy)
    scores = scored(config, data)
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.05)

    advantages = np.array([scores.advantages[k] for k in data.episodes])

    def surrogate() -> float:
        queries = update.episode_queries(data.episodes.values(), advantages)
        actions = update.make_action_batch(config, policy, queries)
        with torch.no_grad():
            log_probs, _ = policy.log_probs(actions.inputs, actions.tokens, 1.0)
        return float((log_probs * actions.valid * actions.advantages[:, None]).sum())

    before = surrogate()
    learn(config, policy, None, optimiser, data, scores)
    assert surrogate() > before


def test_a_gradient_that_is_not_finite_changes_nothing_and_ends_the_run() -> None:
    """In the second of two mini-batches: what the first did stays."""
    config, policy = stage({"minibatch": 2}), small_policy()
    data = batch(config, "1100" + "1010" + "0001" + "1110", policy)
    calls = iter(range(100))
    weights = []

    def spoilt(gradient: torch.Tensor) -> torch.Tensor:
        weights.append(policy.projector.fc1.weight.detach().clone())
        return gradient * (torch.nan if next(calls) else 1.0)

    policy.projector.fc1.weight.register_hook(spoilt)
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.01)
    with pytest.raises(SystemExit, match=r"^error: step 1, epoch 1, mini-batch 2: the loss is .*norm nan"):
        learn(config, policy, None, optimiser, data, scored(config, data))
    assert len(weights) == 2 and not torch.equal(weights[0], weights[1])
    assert torch.equal(policy.projector.fc1.weight, weights[1])


def test_a_loss_that_is_not_finite_ends_a_run_without_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trainer, "PolicyRunner", RecordedRollouts)
    save_policy(small_policy(), tmp_path / "initial")
    folders = trainer.Folders(tmp_path / "initial", tmp_path / "out", tmp_path / "scratch")
    with pytest.raises(SystemExit, match=r"step 1, epoch 1, mini-batch 2: the loss is (nan|inf)"):
        trainer.Trainer(stage({"learning_rate": 1e30}), folders, workers=1).train()
    assert not (tmp_path / "out").exists() and not list((tmp_path / "scratch").glob("checkpoint-*"))


def test_micro_batches_are_prefetched_in_their_order() -> None:
    """Not all at once, whose pictures are gigabytes; an error of the thread is the update's."""
    made: list[int] = []

    def make(part: list[int]) -> list[int]:
        made.append(part[0])
        if part[0] == 4:
            raise ValueError("a broken picture")
        return part

    batches = update.prefetch(make, ([k] for k in range(9)))  # type: ignore[arg-type, misc]
    assert next(batches) == [0] and len(made) <= 2
    assert [next(batches), next(batches), next(batches)] == [[1], [2], [3]]
    with pytest.raises(ValueError, match="a broken picture"):
        next(batches)
    assert len(made) <= 6
    assert list(update.prefetch(make, [])) == []  # type: ignore[arg-type]


def record(
    data: collect.Batch,
    scores: score.BatchScores,
    update_metrics: dict[str, float | None] | None = None,
    evaluation: collect.Batch | None = None,
    seconds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
) -> metrics.StepRecord:
    """The first step's; by default each of the update's metrics is 0.5."""
    return metrics.StepRecord(
        1,
        data,
        scores,
        update_metrics or dict.fromkeys(update.UPDATE_METRICS, 0.5),
        1e-4,
        evaluation or collect.Batch(),
        dict(zip(metrics.PHASES, seconds, strict=True)),
    )


def test_a_step_without_signal_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    config = stage(reward={"shaping": "none"}, pixel=False)
    policy = small_policy()
    data = batch(config, "0" * 16, policy)
    scores = scored(config, data)
    before = [p.detach().clone() for p in policy.parameters()]
    optimiser = torch.optim.SGD(policy.parameters(), lr=1.0)
    update_metrics = learn(config, policy, None, optimiser, data, scores)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    step = record(replace(data, seconds=0.5), scores, update_metrics, seconds=(1.0, 2.0, 3.0, 4.0))
    row = metrics.metrics_row(step)
    assert row["loss"] is None and row["groups_without_signal"] == row["groups"] == 4
    seconds = [row[f"seconds_{name}"] for name in ("rollout", "encode", "update", "evaluate", "total")]
    assert seconds == [1.0, 2.0, 3.0, 4.0, 10.0] and row["episodes_per_second"] == 32.0
    metrics.print_step(row, scores)
    assert "nothing to learn from" in capsys.readouterr().out
    failed = {**row, "infra_errors": 3}
    assert metrics.run_warnings([failed], metrics.task_rows(step), [7, 8, 9]) == [
        "3 of 19 rollouts could not be run (infra_errors in metrics.csv)",
        "no step had anything to learn from: the policy is still the initial one",
        "tasks [7, 8, 9] never succeeded: nothing could be learned about them",
    ]


def test_rows_tell_of_each_task_and_of_the_rewards() -> None:
    """Task 7: groups 0 and 2; task 8: groups 1 and 3, which fails throughout and so has no reference."""
    config = stage()
    data = batch(config, "1100" + "0000" + "0001" + "0000", small_policy())
    scores = scored(config, data)
    greedy = batch(config, "1000" + "0000" * 3, small_policy())
    step = record(data, scores, evaluation=greedy)
    row = metrics.metrics_row(step)
    histogram = json.loads(row["reward_histogram"])
    assert len(histogram) == 10 and sum(histogram) == 16 and histogram[9] == 3 and histogram[0] >= 8
    assert row["evaluation_success_rate"] == 1 / 16 and row["unshaped_tasks"] == 1
    assert row["distance_min"] <= row["distance_mean"] <= row["distance_max"] and row["memory_mb"] > 50
    seven, eight = metrics.task_rows(step)
    assert (seven["task_id"], seven["successes"], seven["episodes"], seven["success_rate"]) == (
        7,
        3,
        8,
        3 / 8,
    )
    assert seven["unshaped"] is None and 0 < seven["failure_reward_mean"] < 0.8
    assert (eight["unshaped"], eight["failure_reward_mean"], eight["distance_mean"]) == (
        "no success",
        0,
        None,
    )
    logged = scalars(row, [seven, eight])
    assert logged["task 7/success_rate"] == 3 / 8 and "task 8/distance_mean" not in logged
    assert logged["rewards/0.9-1.0"] == 3 and logged["train/successes"] == 3
    assert all(isinstance(value, float) for value in logged.values())


def test_learning_rates() -> None:
    def rates(**changes: object) -> list[float]:
        train = stage({"steps": 8, "learning_rate": 0.4, **changes}).train
        peak, warmup, schedule = train.learning_rate, train.warmup, train.schedule
        return [optim.learning_rate(k, train.steps, peak, warmup, schedule) for k in range(train.steps)]

    assert rates() == [0.4] * 8
    assert rates(warmup=0.5) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4])
    falling = rates(schedule="cosine", warmup=0.25)  # 2 steps up; 0.4·(1 + cos(π·k/6))/2 for k = 0…5
    assert falling == pytest.approx([0.2, 0.4, 0.4, 0.373205, 0.3, 0.2, 0.1, 0.026795], abs=1e-6)


def test_doubtful_settings_are_named() -> None:
    assert metrics.settings_warnings(stage()) == []
    (alpha,) = metrics.settings_warnings(stage(reward={"alpha": 0.0}))
    assert "reward.alpha 0" in alpha
    (kept,) = metrics.settings_warnings(stage(reward={"shaping": "none"}, pixel=False))
    assert "train.keep_success" in kept


def test_a_radius_that_finds_no_cluster_is_told() -> None:
    config = stage(reward={"references": "dbscan", "eps": 1e-9})
    scores = scored(config, data := batch(config, "1100" + "1010" + "1101" + "0001", small_policy()))
    step = record(data, scores)
    (line,) = metrics.run_warnings([metrics.metrics_row(step)], metrics.task_rows(step), config.tasks)
    assert "reward.eps is too small" in line and "no cluster in any step" in line


def test_a_training_without_simulators_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        word for name in ("config", "policy", "out", "scratch") for word in (f"--{name}", f"{tmp_path}")
    ]
    monkeypatch.setattr("sys.argv", ["train", *folders, "--workers", "0"])
    with pytest.raises(SystemExit):
        trainer.main()
    assert "argument --workers: 0: must be at least 1" in capsys.readouterr().err


def test_training_stops_at_its_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All recorded episodes of the test states 40 and 41 succeed: their seeds say so."""
    monkeypatch.setattr(trainer, "PolicyRunner", RecordedRollouts)
    save_policy(small_policy(), tmp_path / "initial")

    def train(config: TrainStage, out: str) -> None:
        folders = trainer.Folders(tmp_path / "initial", tmp_path / out, tmp_path / "scratch")
        trainer.Trainer(config, folders, workers=1).train()

    config = stage({"steps": 9, "evaluate_every": 2, "target": 1.0, "warmup": 0.5, "learning_rate": 1e-4})
    train(config, "out")
    metrics = read_rows(tmp_path / "out/metrics.csv", RL_METRICS)
    assert metrics["step"].tolist() == [1, 2] and metrics["evaluation_episodes"].tolist() == [0, 4]
    assert metrics["evaluation_success_rate"][1] == 1 and pd.isna(metrics["evaluation_success_rate"][0])
    assert metrics["learning_rate"].tolist() == pytest.approx([0.25e-4, 0.5e-4])
    assert "target 100.0% reached" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "scratch").iterdir()} == {"run.json", "checkpoint-00000002"}

    # Asked for once more, it is written at once: no episode is run. What changes no result does not matter.
    monkeypatch.setattr(trainer, "PolicyRunner", None)
    assert config.train.microbatch != 3
    train(config.model_copy(update={"train": config.train.model_copy(update={"microbatch": 3})}), "again")
    for file in ("policy/model.safetensors", "metrics.csv", "tasks.csv", "rewards.parquet"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()


def test_a_world_model_that_the_settings_name_is_part_of_the_run(tmp_path: Path) -> None:
    """Other weights in the same folder are another run's, whether or not the folder is given apart."""
    named = tmp_path / "weights"
    named.mkdir()
    model = stage().world_model
    assert model is not None
    folders = trainer.Folders(tmp_path / "policy", tmp_path / "out", tmp_path / "scratch")

    def source(checkpoint: str | None) -> Path | None:
        config = stage().model_copy(
            update={"world_model": model.model_copy(update={"checkpoint": checkpoint})}
        )
        run = SimpleNamespace(config=config, folders=folders)
        return trainer.Trainer.world_model_folder(run)  # type: ignore[arg-type]

    assert source(str(named)) == named
    assert source(None) is None and source("facebook/vjepa2") is None


def test_the_expert_is_a_reference_where_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Task 8 has no success of its own, and still its failures are compared with the demonstrations."""
    config = stage(reward={"references": "fixed_expert"})
    data = batch(config, "1100" + "0000" + "0001" + "0000", small_policy())
    frames = {task: np.full((6, 16, 16, 3), 20 * task, np.uint8) for task in TASKS}
    shown = []

    def read(file: Path) -> list[SimpleNamespace]:
        shown.append(file.name)
        return [SimpleNamespace(images=frames[TASKS[len(shown) - 1]])] * 2

    monkeypatch.setattr(score, "read_demonstrations", read)
    world_model = load_world_model(config.world_model, None)
    experts = score.embed_experts(config, world_model, [tmp_path / "seven", tmp_path / "eight"])
    assert shown == ["seven", "eight"] and {k: v.shape[0] for k, v in experts.items()} == {7: 2, 8: 2}
    embeddings = score.embed_batch(config, data, world_model, Accelerator())
    scores = score.score_batch(config, data, embeddings, experts)
    assert [task.unshaped for task in scores.shaped.tasks] == [None, None]
    own = world_model.embed(data.episodes[4].frames)
    distance = np.linalg.norm(own.astype(float) - experts[8][0])
    assert scores.shaped.distances[4] == pytest.approx(distance, rel=1e-6)


def test_the_simulator_may_say_how_near_a_failure_came() -> None:
    config = stage(pixel=False, reward={"references": "simulator", "shaping": "linear"})
    data = batch(config, "1100" + "0000" + "1010" + "0000", small_policy())
    distances = [0.0 if outcome.success else 0.1 * outcome.number for outcome in data.outcomes]
    outcomes = [replace(o, distance_to_goal=d) for o, d in zip(data.outcomes, distances, strict=True)]
    data = replace(data, outcomes=tuple(outcomes))
    shaped = score.score_batch(config, data, score.distances_to_goal(data)).shaped
    # Task 7 ended 0.2, 0.3, 0.9 and 1.1 m away. Task 8 has no success: its failures earn 0, as with pictures.
    failures = [2, 3, 9, 11]
    assert shaped.valid.all() and shaped.distances[failures] == pytest.approx([0.2, 0.3, 0.9, 1.1])
    assert shaped.rewards[failures] == pytest.approx([0.8, 0.8 * 8 / 9, 0.8 * 2 / 9, 0])
    assert (shaped.rewards[[4, 5, 6, 7, 12, 13, 14, 15]] == 0).all()


def test_a_failure_is_seen_only_as_long_as_a_success_takes() -> None:
    config = stage(reward={"references": "matched_prefix"}, train={"prompts": 2, "minibatch": 2})
    assert all(spec.frames == 0 for spec in specs_of(config, 1))  # the policy's own pictures do
    data = batch(config, "1100" + "0000", small_policy())
    # Queries of the episodes: 2, 2, 2, 3 of each group. Task 7's successes take two.
    seen = dict(zip(data.episodes, score.matched_prefixes(data), strict=True))
    assert [len(seen[number]) for number in range(8)] == [2, 2, 2, 2, 2, 2, 2, 3]
    for number, pictures in seen.items():
        np.testing.assert_array_equal(pictures, data.episodes[number].images[: len(pictures)])

    late = data.episodes[3].images.copy()
    late[2] = 255 - late[2]
    changed = replace(data, episodes={**data.episodes, 3: replace(data.episodes[3], images=late)})
    np.testing.assert_array_equal(scored(config, changed).shaped.rewards, scored(config, data).shaped.rewards)
    early = late.copy()
    early[0] = 255 - early[0]
    changed = replace(data, episodes={**data.episodes, 3: replace(data.episodes[3], images=early)})
    assert scored(config, changed).shaped.rewards[3] != scored(config, data).shaped.rewards[3]


def test_who_succeeded_sooner_shows_the_last_picture_until_then() -> None:
    config = stage(reward={"references": "matched_prefix"})
    data = batch(config, "0001" + "0000" + "0000" + "0000", small_policy())
    first, slow = data.episodes[0].images, data.episodes[3].images
    assert (len(first), len(slow)) == (2, 3)  # the one success is the slowest of its task
    seen = dict(zip(data.episodes, score.matched_prefixes(data), strict=True))
    np.testing.assert_array_equal(seen[0], first[[0, 1, 1]])
    np.testing.assert_array_equal(seen[3], slow)


def test_groups_may_be_normalised_by_themselves() -> None:
    outcomes = "1100" + "1010" + "0001" + "0111"
    by_task, by_group = stage(), stage(reward={"scope": "group"})
    data = batch(by_task, outcomes, small_policy())
    one, other = scored(by_task, data), scored(by_group, data)
    # Two failures of a group, alone: z = ±1, so α·sigmoid(∓1) = 0.8·0.268941 and 0.8·0.731059.
    assert sorted(other.shaped.rewards[[2, 3]]) == pytest.approx([0.2151531, 0.5848469], abs=1e-6)
    assert one.shaped.rewards[[2, 3]].tolist() != pytest.approx(other.shaped.rewards[[2, 3]].tolist())
