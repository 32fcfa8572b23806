"""Evaluation's bookkeeping: which episodes, which rows, and what survives a kill."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from srpo import evaluate as evaluation
from srpo.analysis.sequential import confidence_limits
from srpo.analysis.stats import ALPHA
from srpo.config import Evaluate, EvaluateStage, PlusStage, Protocol
from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.errors import FinalExit
from srpo.evaluate import (
    VIDEO_FRAMES,
    Journal,
    Outputs,
    _shard,
    episode_row,
    in_full,
    libero_specs,
    looks,
    plus_specs,
)
from srpo.libero_plus.tasks import read_tasks
from srpo.policies.weights import CheckpointError
from srpo.results import ResultError
from srpo.results.rows import check_episodes, read_rows, write_rows
from srpo.results.schemas import EPISODES, PATHS
from srpo.rollouts import policy_runner
from srpo.rollouts.policy_runner import PolicyRunner, require_most_ran
from srpo.runtime.manifest import sha256
from srpo.runtime.peers import ALONE, Peers
from srpo.runtime.videos import read_video
from support.policies import small_policy
from support.sharing import start, together
from support.synthetic_results import plus_tasks_file

CONFIG = EvaluateStage(
    preset="test",
    suite="libero_goal",
    tasks=(7, 8),
    protocol=Protocol(
        profile="held_out", max_steps=20, settle_steps=0, env_seed=0, image_size=16, render="fast"
    ),
    variant="sft",
    seed=0,
    evaluate=Evaluate(states=3),
)


def finished(spec: EpisodeSpec, success: bool) -> Episode:
    empty = np.zeros((0,))
    return Episode(spec, success, 12, empty, empty, empty, empty, empty, empty, empty, empty, 0.5)


def test_held_out_states_are_evaluated_in_order() -> None:
    specs = libero_specs(CONFIG)
    assert [(s.task_id, s.init_state) for s in specs] == [(t, s) for t in (7, 8) for s in (40, 41, 42)]
    assert all(spec.temperature == 0 for spec in specs)


def test_rows_fit_the_schema_and_a_crash_is_no_failure(tmp_path: Path) -> None:
    spec = libero_specs(CONFIG)[0]
    plus = EpisodeSpec(
        "libero_goal", 7, 0, 0, 0.0,
        variant="turn_on_the_stove_view_0_0_100_0_0_initstate_0_noise_12",
    )  # fmt: skip
    rows = [
        episode_row(CONFIG, "tiny", finished(spec, True)),
        episode_row(CONFIG, "tiny", finished(libero_specs(CONFIG)[1], False)),
        episode_row(CONFIG, "tiny", FailedRun(libero_specs(CONFIG)[2], "GL context lost")),
        episode_row(CONFIG, "tiny", finished(plus, True)),
    ]
    assert [row["status"] for row in rows] == ["success", "failure", "infra_error", "success"]
    assert rows[2]["error"] == "GL context lost" and rows[0]["task"] == "turn_on_the_stove"
    assert rows[3]["perturbation"] == "noise" and json.loads(rows[3]["perturbation_parameters"]) == {
        "kind": "gaussian", "severity": 2,
    }  # fmt: skip
    protocol = json.loads(rows[0]["protocol"])
    assert protocol["render"] == "fast" and protocol["mujoco"]
    write_rows(tmp_path / "episodes.parquet", rows, EPISODES)


class TestJournal:
    def rows(self, *statuses: str) -> list[dict]:
        specs = libero_specs(CONFIG)
        made = {
            "success": lambda spec: finished(spec, True),
            "infra_error": lambda spec: FailedRun(spec, "lost"),
        }
        return [
            episode_row(CONFIG, "tiny", made[status](spec))
            for status, spec in zip(statuses, specs, strict=False)
        ]

    def test_a_torn_last_line_is_dropped_and_errors_are_tried_again(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, "run")
        for row in self.rows("success", "infra_error", "success"):
            journal.add(row)
        file = tmp_path / "rows.jsonl"
        file.write_text(file.read_text()[:-40])
        again = Journal(tmp_path, "run")
        assert [row["init_state"] for row in again.rows] == [40]
        again.add(self.rows("success", "success")[1])
        assert [row["init_state"] for row in Journal(tmp_path, "run").rows] == [40, 41]

    def test_another_runs_rows_are_discarded(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Journal(tmp_path, "run").add(self.rows("success")[0])
        assert Journal(tmp_path, "other").rows == []
        assert "another run's rows" in capsys.readouterr().out


def test_shards() -> None:
    assert _shard("2/4") == (2, 4)
    for wrong in ("4/4", "x/2", "1", "-1/3"):
        with pytest.raises(Exception, match="INDEX/NUMBER"):
            _shard(wrong)


class RecordedRollouts:
    """Episodes with synthetic frames and paths; an initial state's number is the steps of its episode."""

    def __init__(self, *_: object) -> None: ...
    def __enter__(self) -> "RecordedRollouts":
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, specs: list[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
        assert len({spec.temperature for spec in specs}) == 1  # as `PolicyRunner` asks
        for spec in specs:
            if (spec.task_id, spec.init_state) == (8, 42):
                yield FailedRun(spec, "lost")
                continue
            path = np.linspace(0, spec.task_id, 3 * (spec.init_state + 1), dtype=np.float32).reshape(-1, 3)
            frames = np.zeros((spec.frames, 16, 16, 3), np.uint8)
            result = finished(spec, spec.task_id == 7)
            yield replace(result, steps=spec.init_state, frames=frames, path=path)


def test_evaluation_keeps_paths_and_videos_across_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = SimpleNamespace(settings=SimpleNamespace(name="tiny"))
    monkeypatch.setattr(evaluation, "PolicyRunner", RecordedRollouts)
    monkeypatch.setattr(evaluation, "load_policy", lambda *_: policy)
    monkeypatch.setattr(evaluation, "write_rows", lambda *_: 1 / 0)
    (tmp_path / "policy").mkdir()
    names = ("out/episodes.parquet", "out/sampled.parquet", "out/paths.parquet", "out/videos")
    outputs = Outputs(*(tmp_path / name for name in names))
    config = CONFIG.model_copy(update={"evaluate": Evaluate(states=3, sampled=1)})
    arguments = (config, libero_specs(config), tmp_path / "policy", outputs, tmp_path / "scratch", 1)
    with pytest.raises(ZeroDivisionError):  # killed when it is about to write
        evaluation.evaluate(*arguments)
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "load_policy", lambda *_: policy)
    ran: list[EpisodeSpec] = []

    class Counting(RecordedRollouts):
        def run(self, specs: list[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
            ran.extend(specs)
            yield from super().run(specs)

    monkeypatch.setattr(evaluation, "PolicyRunner", Counting)
    evaluation.evaluate(*arguments)
    # Those that could not be run, the greedy one and the sampled one.
    assert [(spec.task_id, spec.init_state, spec.temperature) for spec in ran] == [(8, 42, 0), (8, 42, 1)]
    points = read_rows(tmp_path / "out/paths.parquet", PATHS)
    sizes = points.groupby(["task_id", "init_state"]).size().to_dict()
    assert sizes == {(task, s): s + 1 for task in (7, 8) for s in (40, 41, 42) if (task, s) != (8, 42)}
    assert points["success"].equals(points["task_id"] == 7)
    last = points[(points["task_id"] == 8) & (points["init_state"] == 41)].iloc[-1]
    assert (last["step"], last["z"]) == (41, 8)
    episodes, sampled = (read_rows(tmp_path / name, EPISODES) for name in names[:2])
    assert set(episodes["temperature"]) == {0} and set(sampled["temperature"]) == {1}
    assert list(sampled["episode_seed"]) == [90, 91, 92] * 2 and sampled["video"].isna().all()
    filmed = episodes[episodes["video"].notna()]
    assert list(filmed["init_state"]) == [40, 40]
    for video, steps in zip(filmed["video"], filmed["steps"], strict=True):
        frames, fps = read_video(outputs.episodes.parent / video)
        assert len(frames) == VIDEO_FRAMES
        assert (VIDEO_FRAMES - 1) / fps == pytest.approx(steps / 20, rel=0.01)  # real time


def test_an_episode_without_pictures_has_no_video_of_another_run(tmp_path: Path) -> None:
    spec = libero_specs(CONFIG)[0]
    row = episode_row(CONFIG, "tiny", finished(spec, True))
    recordings = evaluation.Recordings(tmp_path)
    filmed = replace(finished(spec, True), steps=40, frames=np.zeros((2, 16, 16, 3), np.uint8))
    recordings.add(row, filmed)
    assert recordings.video(row).exists()
    recordings.add(row, replace(filmed, frames=filmed.frames[:0]))
    assert not recordings.video(row).exists()


class FailingRollouts(RecordedRollouts):
    """`broken` says which episodes cannot be run."""

    @staticmethod
    def broken(spec: EpisodeSpec) -> bool:
        raise NotImplementedError

    def run(self, specs: list[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
        for result in super().run(specs):
            yield FailedRun(result.spec, "boom") if self.broken(result.spec) else result


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda spec: True, r"greedy: 3 of 3 episodes could not be run.*at least 50% must"),
        (lambda spec: spec.init_state > 40, "greedy: 2 of 3 episodes could not be run"),
        (lambda spec: spec.temperature > 0, "sampled: 3 of 3 episodes could not be run"),
    ],
)
def test_an_evaluation_of_which_too_little_ran_fails(
    broken: Callable[[EpisodeSpec], bool], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written; when the cause is mended, what ran is not run again."""
    policy = SimpleNamespace(settings=SimpleNamespace(name="tiny"))
    monkeypatch.setattr(evaluation, "load_policy", lambda *_: policy)
    monkeypatch.setattr(evaluation, "PolicyRunner", FailingRollouts)
    monkeypatch.setattr(FailingRollouts, "broken", staticmethod(broken))
    (tmp_path / "policy").mkdir()
    outputs = Outputs(tmp_path / "out/episodes.parquet", tmp_path / "out/sampled.parquet")
    config = CONFIG.model_copy(update={"tasks": (7,), "evaluate": Evaluate(states=3, sampled=1)})
    specs = libero_specs(config)
    arguments = (config, specs, tmp_path / "policy", outputs, tmp_path / "scratch", 1)
    with pytest.raises(SystemExit, match=message) as caught:
        evaluation.evaluate(*arguments)
    assert isinstance(caught.value.code, str)  # which is printed, with exit code 1
    assert not (tmp_path / "out").exists()
    ran: list[EpisodeSpec] = []

    def mended(spec: EpisodeSpec) -> bool:
        ran.append(spec)
        return False

    monkeypatch.setattr(FailingRollouts, "broken", staticmethod(mended))
    evaluation.evaluate(*arguments)
    assert sorted(ran, key=specs.index) == [spec for spec in specs if broken(spec)]
    assert len(read_rows(outputs.episodes, EPISODES)) == 3


def test_half_of_the_episodes_is_enough_and_unavailable_ones_do_not_count() -> None:
    require_most_ran(ran=2, errors=2, what="greedy")
    require_most_ran(ran=0, errors=0, what="only unavailable ones")
    with pytest.raises(SystemExit, match=r"^error: greedy: 3 of 5 episodes could not be run"):
        require_most_ran(ran=2, errors=3, what="greedy")


def test_a_policy_without_the_suites_statistics_starts_no_simulator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy_runner, "EnvPool", None)
    with pytest.raises(CheckpointError, match="not for 'libero_10'"):
        PolicyRunner("libero_10", CONFIG.protocol, small_policy(), workers=1)


def test_sampled_episodes_have_seeds_of_their_own_and_leave_the_greedy_ones_as_they_are() -> None:
    greedy = libero_specs(CONFIG)
    evaluate = Evaluate(states=3, sampled=2, temperature=1.5)
    both = libero_specs(CONFIG.model_copy(update={"evaluate": evaluate}))
    assert both[: len(greedy)] == greedy
    sampled = both[len(greedy) :]
    assert len(sampled) == 2 * len(greedy) and {spec.temperature for spec in sampled} == {1.5}
    assert {spec.frames for spec in sampled} == {0}
    assert len({(spec.task_id, spec.seed) for spec in both}) == len(both)
    assert all(spec.seed % 50 == spec.init_state for spec in sampled)


class SolvedRollouts(RecordedRollouts):
    """Every episode succeeds; `ran` are those that were asked for, and after `kill_after` of them it dies."""

    ran: ClassVar[list[EpisodeSpec]] = []
    kill_after = 1000

    def run(self, specs: list[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
        for spec in specs:
            if len(self.ran) == self.kill_after:
                raise KeyboardInterrupt
            self.ran.append(spec)
            yield replace(finished(spec, True), path=np.zeros((2, 3), np.float32))


LONG = CONFIG.model_copy(
    update={
        "variant": "grpo",
        "protocol": CONFIG.protocol.model_copy(update={"profile": "official"}),
        "evaluate": Evaluate(states=20, sampled=1, stop_early=True),
    }
)


def baseline(path: Path, solved: Callable[[EpisodeSpec], bool], config: EvaluateStage = LONG) -> Path:
    """Greedy rows of `sft` on the same tasks and states."""
    sft = config.model_copy(update={"variant": "sft", "evaluate": Evaluate(states=20)})
    rows = [episode_row(sft, "tiny", finished(spec, solved(spec))) for spec in libero_specs(sft)]
    write_rows(path, rows, EPISODES)
    return path


def stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: Path | None) -> Outputs:
    """Run `LONG` beside a baseline's rows, or in full; `SolvedRollouts.ran` says what ran."""
    policy = SimpleNamespace(settings=SimpleNamespace(name="tiny"))
    monkeypatch.setattr(evaluation, "load_policy", lambda *_: policy)
    monkeypatch.setattr(evaluation, "PolicyRunner", SolvedRollouts)
    monkeypatch.setattr(SolvedRollouts, "ran", [])
    (tmp_path / "policy").mkdir(parents=True, exist_ok=True)
    outputs = Outputs(tmp_path / "out/episodes.parquet", tmp_path / "out/sampled.parquet")
    config = LONG if compared else in_full(LONG)
    evaluation.evaluate(
        config, libero_specs(config), tmp_path / "policy", outputs, tmp_path / "scratch", 1, baseline=compared
    )
    return outputs


def test_looks_are_at_the_same_states_of_all_tasks() -> None:
    parts = looks([spec for spec in libero_specs(LONG) if spec.temperature == 0])
    assert [{spec.init_state for spec in part} for part in parts] == [
        set(range(start, start + 5)) for start in (0, 5, 10, 15)
    ]
    assert all({spec.task_id for spec in part} == {7, 8} and len(part) == 10 for part in parts)


def test_a_decided_comparison_ends_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten pairs of which the policy is better and ten alike win twenty times the money; five do not."""
    outputs = stopping(
        tmp_path, monkeypatch, baseline(tmp_path / "sft.parquet", lambda spec: spec.task_id == 7)
    )
    greedy = [spec for spec in SolvedRollouts.ran if spec.temperature == 0]
    assert sorted((spec.task_id, spec.init_state) for spec in greedy) == [
        (task, state) for task in (7, 8) for state in range(10)
    ]
    rows = read_rows(outputs.episodes, EPISODES)
    assert rows["status"].value_counts().to_dict() == {"success": 20, "stopped": 20}
    (reason,) = set(rows.loc[rows["status"] == "stopped", "error"])
    assert reason.startswith("decided after 20 paired episodes: +0.500 beside the baseline")
    assert len(read_rows(outputs.sampled, EPISODES)) == 40  # sampled ones all run
    check_episodes(rows)


def test_an_undecided_comparison_runs_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = baseline(tmp_path / "sft.parquet", lambda spec: spec.init_state % 5 > 0)
    outputs = stopping(tmp_path, monkeypatch, compared)
    assert set(read_rows(outputs.episodes, EPISODES)["status"]) == {"success"}


class SharedRollouts(SolvedRollouts):
    """Those of them that no other process runs."""

    def __init__(self, *arguments: object) -> None:
        self.peers = arguments[-1]

    def run(self, specs: list[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
        assert isinstance(self.peers, Peers)
        yield from super().run([spec for spec in specs if self.peers.claim(spec)])


def test_two_processes_decide_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = baseline(tmp_path / "sft.parquet", lambda spec: spec.task_id == 7)
    expected = stopping(tmp_path / "one", monkeypatch, compared)
    monkeypatch.setattr(evaluation, "PolicyRunner", SharedRollouts)
    monkeypatch.setattr(SolvedRollouts, "ran", [])
    outputs = Outputs(tmp_path / "two/episodes.parquet", tmp_path / "two/sampled.parquet")
    specs, policy = libero_specs(LONG), tmp_path / "one/policy"

    def work(peers: Peers) -> None:
        evaluation.evaluate(LONG, specs, policy, outputs, tmp_path / "two", 1, None, compared, peers)

    together(work, 2)
    assert len(set(SolvedRollouts.ran)) == len(SolvedRollouts.ran) == 20 + 40
    for one, two in ((expected.episodes, outputs.episodes), (expected.sampled, outputs.sampled)):
        assert one is not None and two is not None
        pd.testing.assert_frame_equal(read_rows(one, EPISODES), read_rows(two, EPISODES), check_exact=True)


class SlowRollouts(SharedRollouts):
    """Shared episodes of which each takes a while."""

    def run(self, specs: list[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
        assert isinstance(self.peers, Peers)
        for spec in specs:
            if self.peers.claim(spec):
                time.sleep(0.1)
                success = spec.task_id == 7
                yield replace(finished(spec, success), path=np.full((3, 3), spec.seed, np.float32))


def test_an_evaluation_goes_on_in_another_number_of_processes_when_one_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = SimpleNamespace(settings=SimpleNamespace(name="tiny"))
    monkeypatch.setattr(evaluation, "load_policy", lambda *_: policy)
    monkeypatch.setattr(evaluation, "PolicyRunner", SlowRollouts)
    (tmp_path / "policy").mkdir()
    config = CONFIG.model_copy(update={"evaluate": Evaluate(states=10, sampled=1)})
    specs = libero_specs(config)

    def outputs(name: str) -> Outputs:
        return Outputs(*(tmp_path / name / f"{kind}.parquet" for kind in ("episodes", "sampled", "paths")))

    def evaluate(name: str, peers: Peers) -> None:
        scratch = tmp_path / f"{name}-scratch"
        evaluation.evaluate(config, specs, tmp_path / "policy", outputs(name), scratch, 1, peers=peers)

    def lines(rank: int) -> list[str]:
        file = tmp_path / "killed-scratch" / (f"rows-{rank}.jsonl" if rank else "rows.jsonl")
        return file.read_text().splitlines() if file.exists() else []

    evaluate("whole", ALONE)
    first, second = start(lambda peers: evaluate("killed", peers), 2)
    deadline = time.monotonic() + 60
    while len(lines(0)) + len(lines(1)) < 3:
        assert first.is_alive() and second.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    for process in (second, first):  # which the launcher does
        process.kill()
        process.join()
    kept = [*lines(0), *lines(1)]
    assert len(kept) < len(specs) and not (tmp_path / "killed").exists()
    three = start(lambda peers: evaluate("killed", peers), 3)
    for process in three:
        process.join(60)
    assert [process.exitcode for process in three] == [0, 0, 0]
    # Nothing was run twice, and the first process did not run all.
    assert set(kept) <= set(lines(0)) and (lines(1) or lines(2))
    assert len(lines(0)) + len(lines(1)) + len(lines(2)) == len(specs)
    whole, killed = outputs("whole"), outputs("killed")
    for one, two, schema in (
        (whole.episodes, killed.episodes, EPISODES),
        (whole.sampled, killed.sampled, EPISODES),
        (whole.paths, killed.paths, PATHS),
    ):
        assert one is not None and two is not None
        pd.testing.assert_frame_equal(read_rows(one, schema), read_rows(two, schema), check_exact=True)
    manifest = json.loads(killed.episodes.with_suffix(".manifest.json").read_text())
    assert manifest["processes"] == 3


@pytest.mark.parametrize("killed", [3, 10, 13, 19])
def test_a_killed_evaluation_stops_where_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    compared = baseline(tmp_path / "sft.parquet", lambda spec: spec.task_id == 7)
    monkeypatch.setattr(SolvedRollouts, "kill_after", killed)
    with pytest.raises(KeyboardInterrupt):
        stopping(tmp_path, monkeypatch, compared)
    monkeypatch.setattr(SolvedRollouts, "kill_after", 1000)
    outputs = stopping(tmp_path, monkeypatch, compared)
    assert len([spec for spec in SolvedRollouts.ran if spec.temperature == 0]) == 20 - killed
    assert read_rows(outputs.episodes, EPISODES)["status"].value_counts()["stopped"] == 20
    # Asked for again, as when another job of its group failed: nothing is run, and the same is written.
    again = stopping(tmp_path, monkeypatch, compared)
    assert SolvedRollouts.ran == []
    assert read_rows(again.episodes, EPISODES)["status"].value_counts()["stopped"] == 20


def test_what_a_decided_comparison_left_out_can_be_run_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = baseline(tmp_path / "sft.parquet", lambda spec: spec.task_id == 7)
    stopping(tmp_path, monkeypatch, compared)
    manifest = json.loads((tmp_path / "out/episodes.manifest.json").read_text())
    assert manifest["baseline"] == sha256(compared)
    outputs = stopping(tmp_path, monkeypatch, None)
    assert [spec.init_state for spec in SolvedRollouts.ran] == [*range(10, 20), *range(10, 20)]
    assert read_rows(outputs.episodes, EPISODES)["status"].value_counts().to_dict() == {"success": 40}
    assert "baseline" not in json.loads((tmp_path / "out/episodes.manifest.json").read_text())


def test_another_protocols_baseline_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = LONG.model_copy(update={"protocol": LONG.protocol.model_copy(update={"settle_steps": 7})})
    compared = baseline(tmp_path / "sft.parquet", lambda spec: False, other)
    with pytest.raises(ResultError, match=r"sft\.parquet: holds other episodes.*\(settle_steps 7, not 0\)"):
        stopping(tmp_path, monkeypatch, compared)
    assert SolvedRollouts.ran == []


# A shard of a LIBERO-Plus sweep.

PLUS = PlusStage.model_validate(
    {
        **LONG.model_dump(exclude={"evaluate"}),
        "plus": {
            **{"dimensions": ["camera", "noise"], "per_dimension": 60, "shard_size": 60, "seed": 0},
            **{"robot_start": "official", "leaked_prompt": False, "assets": None, "styles": 0},
            "stop_early": True,
        },
    }
)


def plus_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solved: Callable[[int], bool], config: PlusStage = PLUS
) -> pd.DataFrame:
    """Rows of the first of two shards, all solved, beside a baseline that solves some: tests say which.

    `solved` has the place of a task in the order in which the shard runs its tasks.
    """
    tasks = read_tasks(plus_tasks_file(tmp_path / "tasks.csv", ("camera", "noise"), 40))
    specs = plus_specs(config, tasks, 0, 2)
    place = {spec: k for k, spec in enumerate(spec for part in looks(specs) for spec in part)}
    sft = config.model_copy(update={"variant": "sft"})
    rows = [episode_row(sft, "tiny", finished(spec, solved(place[spec]))) for spec in specs]
    compared = tmp_path / "sft.parquet"
    write_rows(compared, rows, EPISODES)
    monkeypatch.setattr(
        evaluation, "load_policy", lambda *_: SimpleNamespace(settings=SimpleNamespace(name="tiny"))
    )
    monkeypatch.setattr(evaluation, "PolicyRunner", SolvedRollouts)
    monkeypatch.setattr(SolvedRollouts, "ran", [])
    (tmp_path / "policy").mkdir(exist_ok=True)
    outputs = Outputs(tmp_path / "out/shard-0.parquet")
    evaluation.evaluate(
        *(config, specs, tmp_path / "policy", outputs, tmp_path / "scratch", 1),
        baseline=compared if config.stops_early else None,
        of_shards=2,
    )
    return read_rows(outputs.episodes, EPISODES)


def test_a_shards_tasks_are_looked_at_in_random_order(tmp_path: Path) -> None:
    tasks = read_tasks(plus_tasks_file(tmp_path / "tasks.csv", ("camera", "noise"), 40))
    config = PLUS.model_copy(update={"plus": PLUS.plus.model_copy(update={"shard_size": 120})})
    specs = plus_specs(config, tasks, 0, 1)
    parts = looks(specs)
    assert [len(part) for part in parts] == [20] * 6
    assert {spec for part in parts for spec in part} == set(specs)
    for part in parts:  # `specs` has 60 of the camera, then 60 of noise
        assert 0 < sum("noise" in str(spec.variant) for spec in part) < 20
    assert looks(specs[::-1]) == parts
    # Tasks that are unavailable do not change the order of the others.
    assert [s for part in looks(specs[1:]) for s in part] == [s for p in parts for s in p if s != specs[0]]
    with pytest.raises(FinalExit, match=r"--shard 0/2: the sweep's 120 tasks are 1 shards"):
        plus_specs(config, tasks, 0, 2)


def test_a_shard_stops_when_its_comparison_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = plus_shard(tmp_path, monkeypatch, lambda place: place % 20 >= 9)
    assert len(SolvedRollouts.ran) == 40
    assert rows["status"].value_counts().to_dict() == {"success": 40, "stopped": 20}
    (reason,) = set(rows.loc[rows["status"] == "stopped", "error"])
    values = np.array([1.0] * 18 + [0.5] * 22)
    low, high = (2 * limit - 1 for limit in confidence_limits(values, ALPHA / 2))
    assert reason == (
        "decided after 40 paired episodes: +0.450 beside the baseline, at any time of looking and in all 2 "
        f"shards [{low:+.3f}, {high:+.3f}]"
    )
    check_episodes(rows)
    # The others are run, and no other, once it may not stop.
    ran = set(SolvedRollouts.ran)
    whole = PLUS.model_copy(update={"plus": PLUS.plus.model_copy(update={"stop_early": False})})
    rows = plus_shard(tmp_path, monkeypatch, lambda place: True, whole)
    assert len(SolvedRollouts.ran) == 20 and not ran & set(SolvedRollouts.ran)
    assert set(rows["status"]) == {"success"}


def test_a_shard_is_decided_at_its_share_of_alpha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of the first twenty: enough at 5%, not at 2.5%, the share of one of two shards."""
    values = np.array([1.0] * 9 + [0.5] * 11)
    assert confidence_limits(values, ALPHA / 2)[0] < 0.5 < confidence_limits(values, ALPHA)[0]
    plus_shard(tmp_path, monkeypatch, lambda place: place >= 9)
    assert len(SolvedRollouts.ran) > 20


def test_a_killed_shard_stops_where_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SolvedRollouts, "kill_after", 25)
    with pytest.raises(KeyboardInterrupt):
        plus_shard(tmp_path, monkeypatch, lambda place: place % 20 >= 9)
    monkeypatch.setattr(SolvedRollouts, "kill_after", 1000)
    rows = plus_shard(tmp_path, monkeypatch, lambda place: place % 20 >= 9)
    assert len(SolvedRollouts.ran) == 15
    assert rows["status"].value_counts().to_dict() == {"success": 40, "stopped": 20}


def test_policies_that_are_alike_are_never_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = plus_shard(tmp_path, monkeypatch, lambda place: True)
    assert rows["status"].value_counts().to_dict() == {"success": 60}


def test_another_shards_baseline_is_refused(tmp_path: Path) -> None:
    tasks = read_tasks(plus_tasks_file(tmp_path / "tasks.csv", ("camera", "noise"), 40))
    first, second = (plus_specs(PLUS, tasks, index, 2) for index in (0, 1))
    rows = [episode_row(PLUS, "tiny", finished(spec, True)) for spec in second]
    write_rows(tmp_path / "shard-1.parquet", rows, EPISODES)
    with pytest.raises(ResultError, match=r"shard-1\.parquet: holds other episodes .*\(other tasks\)"):
        evaluation.Comparison(PLUS, first, tmp_path / "shard-1.parquet", 2)
