"""Rollouts beside the update (`train.overlap`): what is computed, in which order, and after a kill."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from safetensors.torch import load_file

from srpo import optim
from srpo.config import Branching, Lora, Offline, TrainStage
from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.policies.checkpoints import load_policy, save_policy
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.results.rows import read_rows
from srpo.results.schemas import RL_METRICS
from srpo.rewards.references import EarlierSuccesses
from srpo.rl import collect, score, trainer, update
from srpo.rl.branching import run_branches
from srpo.rollouts.episode_store import EpisodeStore
from srpo.runtime.preemption import Preempted, preemptible
from srpo.world_models import load_world_model
from support.policies import SUITE, small_policy
from support.recorded_training import LiveRollouts
from support.stages import training_stage

SETTINGS = {
    "steps": 4, "overlap": 1, "group_size": 3, "microbatch": 16, "keep_success": (0.1, 0.9), "resample": 1,
    "learning_rate": 1e-3, "grad_clip": 1.0, "evaluate_every": 2,
}  # fmt: skip
PATIENCE = 60


def stage(**changes: object) -> TrainStage:
    """Four steps with all that a step may have: episodes that cannot be run, further rounds, evaluation."""
    if "branching" in changes:
        return training_stage(SETTINGS | changes, {"shaping": "none"}, pixel=False)
    return training_stage(SETTINGS | changes, {"earlier_successes": 3})


class Rollouts(LiveRollouts):
    """Notes with which weights what was run: (temperature, episodes, weights)."""

    noted: list[tuple[float, int, int]]

    def run(
        self, specs: Sequence[EpisodeSpec], others: Sequence[EpisodeSpec] = ()
    ) -> Iterator[Episode | FailedRun]:
        if specs:
            self.noted.append((specs[0].temperature, len(specs), weights_hash(self._policy)))
        yield from super().run(specs, others)


def weights_hash(policy: OpenVLAOFT) -> int:
    return hash(tuple(float(parameter.detach().double().sum()) for parameter in policy.parameters()))


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int, int]]:
    """What was run, in order."""
    Rollouts.noted = []
    monkeypatch.setattr(trainer, "PolicyRunner", Rollouts)
    return Rollouts.noted


def run(folder: Path, config: TrainStage, out: str = "out", **policy: object) -> trainer.Trainer:
    """A run in `folder` to its end; `policy`: settings of the one it starts from."""
    if not (folder / "initial").exists():
        save_policy(small_policy(**policy), folder / "initial")
    found = trainer.Trainer(
        config, trainer.Folders(folder / "initial", folder / out, folder / f"{out}-scratch"), workers=1
    )
    found.train()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed; a run by other checkpoints learns the same."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        Rollouts.noted = []
        patch.setattr(trainer, "PolicyRunner", Rollouts)
        run(folder, stage())
    return folder


def assert_same(folder: Path, whole: Path) -> None:
    """The run in `folder` learnt and logged what the whole one did, bit for bit."""
    found, expected = (load_file(each / "out/policy/model.safetensors") for each in (folder, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    pd.testing.assert_frame_equal(metrics(folder), metrics(whole), check_exact=True)


def metrics(folder: Path, out: str = "out") -> pd.DataFrame:
    found = read_rows(folder / out / "metrics.csv", RL_METRICS)
    return found[[name for name in found if "second" not in str(name) and "memory" not in str(name)]]


def sequentially(config: TrainStage, initial: Path) -> tuple[OpenVLAOFT, list[int]]:
    """The policy after the run, and a hash of its weights after each update: one thing after another."""
    train = config.train
    policy = load_policy(initial).eval()
    torch.manual_seed(config.seed)
    policy.make_trainable(train.freeze_vision)
    optimiser = optim.adamw(policy, train.learning_rate, train.weight_decay, train.betas)
    learner = update.Learner(policy, None, optimiser, Accelerator())
    world_model = None if config.world_model is None else load_world_model(config.world_model, None)

    def roll_out(step: int, acting: OpenVLAOFT) -> collect.Batch:
        with TemporaryDirectory() as scratch:
            rollouts = LiveRollouts(SUITE, config.protocol, acting, 1)
            collector = collect.Collector(rollouts, EpisodeStore(Path(scratch)), Accelerator())  # type: ignore[arg-type]
            return run_branches(config, step, collect.collect_batch(config, step, collector), collector)

    earlier: EarlierSuccesses = {}
    batch, hashes = roll_out(1, policy), [weights_hash(policy)]
    for step in range(1, train.steps + 1):
        following = roll_out(step + 1, copy.deepcopy(policy)) if step < train.steps else None
        embeddings = world_model and score.embed_batch(config, batch, world_model, Accelerator())
        scores = score.score_batch(config, batch, embeddings, None, earlier)
        if train.branching is not None:
            scores = score.score_moments(batch, scores)
        earlier = score.remember_successes(config, batch, scores, embeddings, earlier)
        update.update_policy(config, learner, batch, scores, step)
        hashes.append(weights_hash(policy))
        if following is not None:
            batch = following
    return policy, hashes


@pytest.mark.parametrize(
    ("changes", "lora"),
    [
        ({}, None),
        ({"learning_rate": 1e-2}, Lora(rank=2, alpha=4.0)),
        ({"branching": Branching(points=1, branches=2)}, None),
    ],
    ids=["all weights", "adapters", "branches"],
)
def test_a_run_learns_what_one_thing_after_another_does(
    tmp_path: Path, noted: list[tuple[float, int, int]], changes: dict[str, object], lora: Lora | None
) -> None:
    config = stage(**changes)
    found = run(tmp_path, config, lora=lora).learner.policy.state_dict()
    ran = noted.copy()
    expected, after = sequentially(config, tmp_path / "initial")
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())

    # Which weights acted: in the first two steps the initial ones, then those of one update less each.
    # Greedy episodes are an evaluation, with all updates up to its step.
    assert len(set(after)) == 5
    greedy = [weights for temperature, _, weights in ran if temperature == 0]
    assert greedy == [after[2], after[4]]
    sampled = [(number, weights) for temperature, number, weights in ran if temperature > 0]
    firsts = [weights for number, weights in sampled if number == 12]
    assert firsts == [after[k] for k in (0, 0, 1, 2)]
    order = [after.index(weights) for _, weights in sampled]
    assert order == sorted(order) and len(sampled) > 4, "no further rounds"

    table = metrics(tmp_path)
    assert table["policy_lag"].tolist() == [0, 1, 1, 1] and table["infra_errors"].sum() > 0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["config"]["train"]["overlap"] == 1


def test_the_ratio_is_to_the_policy_that_acted(tmp_path: Path) -> None:
    """With one mini-batch a step, how far the policy is from it is nothing in the first step alone."""
    one = {"minibatch": 4, "resample": 0, "keep_success": (0.0, 1.0), "learning_rate": 1e-2}
    run(tmp_path, stage(**one), "beside")
    run(tmp_path, stage(**one, overlap=0), "after")
    beside, after = (metrics(tmp_path, out)["update_kl"] for out in ("beside", "after"))
    assert after.max() < 1e-9 and beside[0] < 1e-9 and beside[1:].min() > 1e-6
    assert metrics(tmp_path, "after")["policy_lag"].tolist() == [0, 0, 0, 0]


def test_rollouts_and_update_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each waits for the other to have begun; both with one CPU thread."""
    updating, rolling = threading.Event(), threading.Event()
    learn, seen = trainer.Trainer.update, []

    class Waiting(Rollouts):
        def run(
            self, specs: Sequence[EpisodeSpec], others: Sequence[EpisodeSpec] = ()
        ) -> Iterator[Episode | FailedRun]:
            if threading.current_thread() is not threading.main_thread():
                rolling.set()
                assert updating.wait(PATIENCE)
                seen.append(torch.get_num_threads())
            yield from super().run(specs, others)

    def wait_and_update(self: trainer.Trainer, *rest: Any) -> dict[str, float | None]:
        updating.set()
        assert rolling.wait(PATIENCE)
        seen.append(torch.get_num_threads())
        return learn(self, *rest)

    monkeypatch.setattr(trainer, "PolicyRunner", Waiting)
    monkeypatch.setattr(trainer.Trainer, "update", wait_and_update)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(tmp_path, stage(steps=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [1, 1, 2], "the last update has no rollouts beside it"


class KilledError(Exception):
    pass


@pytest.mark.parametrize(("every", "killed_in"), [(1, 3), (2, 4), (3, 2)])
def test_a_run_goes_on_as_if_it_had_not_been_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path, every: int, killed_in: int
) -> None:
    config = stage(checkpoint_every=every)
    killed(monkeypatch, tmp_path, config, killed_in)
    run(tmp_path, config)
    assert_same(tmp_path, whole)


def test_a_damaged_checkpoint_does_not_change_what_is_learnt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one before it still has the episodes of the step that follows."""
    killed(monkeypatch, tmp_path, stage(), 4)
    scratch = tmp_path / "out-scratch"
    left = {path.name for path in (scratch / "episodes").iterdir()}
    assert {"step-00000003", "step-00000004"} <= left and "step-00000001" not in left
    shutil.copytree(tmp_path, tmp_path / "bare", ignore=shutil.ignore_patterns("bare", "episodes"))
    for folder in (tmp_path, tmp_path / "bare"):
        (part,) = (folder / "out-scratch/checkpoint-00000003").glob("*.safetensors")
        part.write_bytes(part.read_bytes()[:-1])
        run(folder, stage())
        log = capsys.readouterr().out
        assert "damaged; trying the one before" in log and "resuming after step 2\n" in log
    assert_same(tmp_path, whole)
    # And what that rests on: without those episodes other weights act, and something else is learnt.
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "bare", whole)


def killed(monkeypatch: pytest.MonkeyPatch, folder: Path, config: TrainStage, step: int) -> None:
    """A run in `folder` that ends in a step's update."""
    learn = trainer.Trainer.update

    def end(self: trainer.Trainer, *rest: Any) -> dict[str, float | None]:
        if rest[-1] == step:
            raise KilledError
        return learn(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "update", end)
        with pytest.raises(KilledError):
            run(folder, config)
    assert not (folder / "out").exists()


def test_an_error_of_the_rollouts_ends_the_update_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path
) -> None:
    failed, passes = threading.Event(), []

    class Failing(Rollouts):
        def run(
            self, specs: Sequence[EpisodeSpec], others: Sequence[EpisodeSpec] = ()
        ) -> Iterator[Episode | FailedRun]:
            found = super().run(specs, others)
            if threading.current_thread() is not threading.main_thread():
                yield next(found)
                failed.set()
                raise FloatingPointError("the policy's logits are not finite")
            yield from found

    log_probs = OpenVLAOFT.log_probs

    def counted(self: OpenVLAOFT, *rest: Any) -> Any:
        assert failed.wait(PATIENCE)
        for thread in threading.enumerate():
            if thread.name.startswith("rollouts"):
                thread.join(PATIENCE)
        passes.append(1)
        return log_probs(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "PolicyRunner", Failing)
        patch.setattr(OpenVLAOFT, "log_probs", counted)
        with pytest.raises(FloatingPointError, match="not finite"):
            run(tmp_path, stage())
    assert len(passes) <= 1, "the update went on"
    stored = tmp_path / "out-scratch/episodes"
    assert len(list((stored / "step-00000001").iterdir())) >= 11
    assert len(list((stored / "step-00000002").iterdir())) == 1
    run(tmp_path, stage())
    assert_same(tmp_path, whole)


def test_preemption_in_an_update_stops_both_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path
) -> None:
    rolling, stopped = threading.Event(), threading.Event()
    learn = trainer.Trainer.update

    class Endless(Rollouts):
        """In the thread, after an episode there is no other until it is stopped."""

        def run(
            self, specs: Sequence[EpisodeSpec], others: Sequence[EpisodeSpec] = ()
        ) -> Iterator[Episode | FailedRun]:
            found = super().run(specs, others)
            if threading.current_thread() is not threading.main_thread():
                yield next(found)
                rolling.set()
                assert stopped.wait(PATIENCE)
                raise RuntimeError("stopped")
            yield from found

        def stop(self) -> None:
            stopped.set()

    def preempted(self: trainer.Trainer, *rest: Any) -> dict[str, float | None]:
        assert rolling.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGTERM)
        return learn(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "PolicyRunner", Endless)
        patch.setattr(trainer.Trainer, "update", preempted)
        with pytest.raises(Preempted), preemptible():
            run(tmp_path, stage())
    assert stopped.is_set() and len(list((tmp_path / "out-scratch/episodes/step-00000002").iterdir())) == 1
    run(tmp_path, stage())
    assert_same(tmp_path, whole)


def test_nothing_is_rolled_out_for_a_step_that_does_not_come(
    tmp_path: Path, noted: list[tuple[float, int, int]]
) -> None:
    """After the last step; at the target what ran beside the update is not learnt from."""
    once = {"resample": 0, "evaluate_every": 0}
    run(tmp_path, stage(**once), "all")
    assert [number for _, number, _ in noted] == [12] * 4
    noted.clear()
    run(tmp_path, stage(resample=0, target=0.0), "target")
    assert [temperature for temperature, _, _ in noted] == [1.0, 1.0, 1.0, 0.0]
    assert metrics(tmp_path, "target")["step"].tolist() == [1, 2]


def test_offline_there_is_nothing_to_run_beside_an_update() -> None:
    with pytest.raises(ValidationError, match="offline and overlap exclude each other"):
        stage(offline=Offline(beta=1.0, max_weight=20.0), evaluate_every=0)
    with pytest.raises(ValidationError, match="overlap"):
        stage(overlap=2)
