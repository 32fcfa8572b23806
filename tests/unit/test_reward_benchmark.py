from __future__ import annotations

import fcntl
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import spearmanr

from srpo import reward_benchmark
from srpo.config import RewardBenchmarkStage
from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.errors import run_command
from srpo.results.rows import read_rows
from srpo.results.schemas import BENCHMARK, CURVES
from srpo.reward_benchmark import (
    clear_stale_scratch,
    episode_spec,
    gather_collections,
    quotas,
    stored_frames,
    write_collections,
)
from srpo.rewards.benchmark import has_reference, score_trajectories
from srpo.runtime.peers import Peers
from srpo.world_models import WorldModel
from support.sharing import together

SIZE = 16
SUCCESS_RATE = {3: 0.5, 5: 0.9, 8: 0.0}


def stage(**changes: object) -> RewardBenchmarkStage:
    benchmark = {
        "successes": 7,
        "failures": 4,
        "max_episodes": 60,
        "temperature": 1.0,
        "prefixes": 5,
        "seed": 1,
    }
    pixel = {
        "name": "pixel",
        "kind": "pixel",
        "checkpoint": None,
        "revision": None,
        "frames": 6,
        "image_size": 4,
        "pooling": None,
        "dtype": "float32",
        "pretraining": None,
    }
    protocol = {
        "profile": "held_out",
        "max_steps": 9,
        "settle_steps": 10,
        "env_seed": 0,
        "image_size": SIZE,
        "render": "fast",
    }
    return RewardBenchmarkStage.model_validate(
        {
            "preset": "test",
            "suite": "libero_goal",
            "tasks": [3, 5, 8],
            "protocol": protocol,
            "reward_benchmark": benchmark | changes,
            "world_models": [pixel],
        }
    )


def video(task: int, success: bool, count: int, rng: np.random.Generator) -> np.ndarray:
    """A square that moves from left towards the task's row on the right; in a failure it stops half way."""
    frames = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    for t in range(count):
        x = round((SIZE - 4) * t / (count - 1) * (1 if success else 0.4))
        frames[t, task : task + 4, x : x + 4] = 200
    return frames + rng.integers(0, 20, frames.shape, dtype=np.uint8)


class Simulation:
    """Stands for the rollouts: every spec has one outcome; the order of results is shuffled, runs may die."""

    def __init__(self, order: int = 0, dies_after: int | None = None, broken: bool = False) -> None:
        self.order, self.dies_after, self.broken = np.random.default_rng(order), dies_after, broken
        self.ran: list[EpisodeSpec] = []

    def run(self, specs: Sequence[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
        for index in self.order.permutation(len(specs)):
            if self.dies_after is not None and len(self.ran) == self.dies_after:
                raise KeyboardInterrupt
            spec = specs[index]
            self.ran.append(spec)
            rng = np.random.default_rng(spec.seed)
            if self.broken or rng.random() < 0.1:
                yield FailedRun(spec, "no picture")
                continue
            success = bool(rng.random() < SUCCESS_RATE[spec.task_id])
            nothing: Any = np.zeros(0)
            frames = video(spec.task_id, success, spec.frames, rng)
            distance_to_goal = np.linspace(1, 0 if success else 0.3, 6, dtype=np.float32)
            states = np.full((1, 3 + spec.task_id), spec.seed, float)
            yield Episode(spec, success, 5, *[nothing] * 5, frames, nothing, distance_to_goal, 0.0, states)


def contents(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path, "r") as file:
        return {name: data[()] for name, data in file.items() if isinstance(data, h5py.Dataset)}


def collected(config: RewardBenchmarkStage, simulation: Simulation, folder: Path) -> dict[str, np.ndarray]:
    collections = gather_collections(config, simulation.run, folder)
    write_collections(config, collections, folder / "trajectories.h5")
    return contents(folder / "trajectories.h5")


def test_rollouts_are_kept_only_for_the_same_settings(tmp_path: Path) -> None:
    """Of rollouts that smaller quotas did not need no frames are stored."""
    (policy := tmp_path / "policy").mkdir()
    (policy / "config.json").write_text("{}")

    def kept(config: RewardBenchmarkStage) -> bool:
        clear_stale_scratch(scratch := tmp_path / "scratch", config, policy)
        there = (scratch / "rollout.h5").exists()
        (scratch / "rollout.h5").touch()
        return there

    wanted = stage().reward_benchmark
    assert not kept(stage()) and kept(stage()) and kept(stage(max_episodes=wanted.max_episodes + 9))
    assert not kept(stage(successes=wanted.successes + 1))
    assert not kept(stage(failures=wanted.failures + 1))


def test_quotas_are_even() -> None:
    assert quotas(7, [3, 5, 8]) == {3: 3, 5: 2, 8: 2}
    assert quotas(2, [3, 5, 8]) == {3: 1, 5: 1, 8: 0}


def test_specs_differ_and_stay_on_training_states() -> None:
    specs = [episode_spec(stage(), task, index) for task in (3, 5) for index in range(100)]
    assert len({spec.seed for spec in specs}) == 200
    assert {spec.init_state for spec in specs} == set(range(40))
    assert {spec.frames for spec in specs} == {stored_frames(stage())} == {6}
    assert stored_frames(stage(prefixes=11)) == 11
    assert episode_spec(stage(seed=2), 3, 0).seed != episode_spec(stage(), 3, 0).seed


def test_the_first_of_each_task_are_kept_and_no_more_run_than_needed(tmp_path: Path) -> None:
    simulation = Simulation()
    found = collected(stage(), simulation, tmp_path)
    assert found["frames"].shape == (len(found["success"]), 6, SIZE, SIZE, 3)
    by_task = {t: sorted((s for s in simulation.ran if s.task_id == t), key=order_of) for t in (3, 5, 8)}
    # Task 3 (rate 0.5) fills both quotas, task 5 (0.9) at least its successes, task 8 (0) only its failure.
    kept = {t: found["success"][found["task_id"] == t].tolist() for t in (3, 5, 8)}
    assert kept[3] == [True] * 3 + [False] * 2
    assert kept[5] == [True, True, False]
    assert kept[8] == [False]
    assert len(by_task[8]) == 20  # its share of max_episodes, in search of successes
    assert len(by_task[3]) < 20 and len(by_task[5]) < 20
    for t, specs in by_task.items():
        outcomes = [outcome(spec) for spec in specs]
        for success in (True, False):
            own = (found["task_id"] == t) & (found["success"] == success)
            first = [spec.seed for spec, o in zip(specs, outcomes, strict=True) if o is success]
            assert found["episode_seed"][own].tolist() == first[: own.sum()]
    # Each frame is its own trajectory's.
    for index, seed in enumerate(found["episode_seed"]):
        rng = np.random.default_rng(seed)
        rng.random(2)
        task, success = int(found["task_id"][index]), bool(found["success"][index])
        assert (found["frames"][index] == video(task, success, 6, rng)).all()
        with h5py.File(tmp_path / "trajectories.h5") as file:
            assert (file[f"states/{index}"][()] == np.full((1, 3 + task), seed)).all()


def order_of(spec: EpisodeSpec) -> int:
    return [episode_spec(stage(), spec.task_id, index).seed for index in range(20)].index(spec.seed)


def outcome(spec: EpisodeSpec) -> bool | None:
    rng = np.random.default_rng(spec.seed)
    return None if rng.random() < 0.1 else bool(rng.random() < SUCCESS_RATE[spec.task_id])


def test_order_of_results_and_interruptions_do_not_matter(tmp_path: Path) -> None:
    whole = Simulation(order=0)
    expected = collected(stage(), whole, tmp_path / "whole")
    first, second = Simulation(order=1, dies_after=22), Simulation(order=2)
    with pytest.raises(KeyboardInterrupt):
        collected(stage(), first, tmp_path / "killed")
    found = collected(stage(), second, tmp_path / "killed")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    tried_again = sum(outcome(spec) is None for spec in first.ran)  # what could not be run
    assert tried_again and len(first.ran) + len(second.ran) == len(whole.ran) + tried_again


def test_several_processes_collect_what_one_collects(tmp_path: Path) -> None:
    whole, alone, folder = Simulation(order=0), Simulation(order=1, dies_after=11), tmp_path / "shared"
    expected = collected(stage(), whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        collected(stage(), alone, folder)

    def work(peers: Peers) -> list[EpisodeSpec]:
        simulation = Simulation(order=peers.rank)

        def run(specs: Sequence[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
            return simulation.run([spec for spec in specs if peers.claim(spec)])

        collections = gather_collections(stage(), run, folder, peers)
        if peers.is_first:
            write_collections(stage(), collections, folder / "trajectories.h5")
        return simulation.ran

    shares = together(work, 3)
    found = contents(folder / "trajectories.h5")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    tried_again = sum(outcome(spec) is None for spec in alone.ran)
    assert len(alone.ran) + sum(map(len, shares)) == len(whole.ran) + tried_again


def test_rollouts_that_could_not_be_run_are_neither_successes_nor_failures(tmp_path: Path) -> None:
    collections = gather_collections(stage(), Simulation(broken=True).run, tmp_path)
    for collection in collections:
        assert collection.counts() == {
            "rollouts": 20,
            "successes": 0,
            "not run": 20,
            "kept successes": 0,
            "kept failures": 0,
        }


def test_reference_leaves_the_trajectory_itself_out() -> None:
    success = np.array([True, False, True, True, False, False])
    task = np.array([1, 1, 2, 2, 3, 2])
    # Task 1 has one success (which would have nothing to be compared with), task 2 two, task 3 none.
    assert has_reference(success, task).tolist() == [False, False, True, True, False, True]


def test_scores_by_hand() -> None:
    # One feature. Whole successes: 10, 8, 12. The reference of the first is 10, of the second 11, of the
    # third 9, of the failure 10.
    embeddings = np.array([[0, 5, 10], [1, 9, 8], [0, 9, 12], [5, 0, 2]], dtype=np.float32)[..., None]
    seen = np.array([[0, 4, 8], [0, 3, 6], [0, 7, 14], [0, 8, 20]])
    scored, points = score_trajectories(
        embeddings, np.array([True, True, True, False]), np.zeros(4, int), seen
    )
    curves = [[point["progress"] for point in curve] for curve in points]
    assert [point["step"] for point in points[2]] == [0, 7, 14]
    assert [point["distance"] for point in points[3]] == [5, 10, 8]
    assert curves[0] == pytest.approx([0, 0.5, 1])  # distances 10 5 0
    assert curves[1] == pytest.approx([0, 0.8, 0.7])  # 10 2 3
    assert curves[2] == pytest.approx([0, 1, 2 / 3])  # 9 0 3
    assert curves[3] == pytest.approx([0.5, 0, 0.2])  # 5 10 8
    assert [row["final_progress"] for row in scored] == pytest.approx([1, 0.7, 2 / 3, 0.2])
    # Successes take 6, 8 and 14 steps: the failure is judged after 8, where it is as far as it ever was.
    assert [row["matched_progress"] for row in scored] == pytest.approx([1, 0.7, 2 / 3, 0])
    assert [row["spearman"] for row in scored] == [
        pytest.approx(1),
        pytest.approx(0.5),
        pytest.approx(0.5),
        None,
    ]
    assert [row["monotonicity"] for row in scored] == [1, 0.5, 0.5, None]
    # The paper's: successes by their own ends, at distances 10 5 0, 7 1 0 and 12 3 0.
    assert [row["paper_final_progress"] for row in scored] == pytest.approx([1, 1, 1, 0.2])
    assert [row["paper_spearman"] for row in scored] == [pytest.approx(1)] * 3 + [None]
    assert [row["paper_monotonicity"] for row in scored] == [1, 1, 1, None]


def test_a_failure_is_not_judged_by_what_it_does_after_successes_have_ended() -> None:
    # Both failures do the same until step 10, when successes end; one then stands still, one comes near.
    embeddings = np.array([[9, 2, 0], [9, 2, 0], [9, 5, 5], [9, 5, 1]], dtype=np.float32)[..., None]
    seen = np.array([[0, 5, 10], [0, 5, 10], [0, 10, 20], [0, 10, 20]])
    rows, _ = score_trajectories(embeddings, np.array([True, True, False, False]), np.zeros(4, int), seen)
    assert [row["final_progress"] for row in rows[2:]] == pytest.approx([4 / 9, 8 / 9])
    assert [row["matched_progress"] for row in rows[2:]] == pytest.approx([4 / 9, 4 / 9])


def test_tasks_are_scored_apart() -> None:
    rng = np.random.default_rng(0)
    embeddings, success = rng.normal(size=(8, 4, 3)), np.arange(8) % 4 < 2
    task, seen = np.repeat([0, 1], 4), np.sort(rng.integers(0, 9, (8, 4)))
    seen[:, 0] = 0
    rows, curves = score_trajectories(embeddings, success, task, seen)
    assert (rows[4:], curves[4:]) == score_trajectories(embeddings[4:], success[4:], task[4:], seen[4:])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A resolved configuration and trajectories of it."""
    config = stage()
    collected(config, Simulation(), tmp_path / "trajectories")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str = "pixel") -> Path:
    out = folder / "pixel.parquet"
    arguments = f"score --config {folder}/config.yaml --world-model {name}"
    arguments += f" --trajectories {folder}/trajectories --out {out}"
    arguments += f" --scratch {folder}/scratch --curves {folder}/pixel-curves.parquet"
    monkeypatch.setattr("sys.argv", ["reward_benchmark", *arguments.split()])
    run_command(reward_benchmark.main)
    return out


def test_score_writes_the_documented_table(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_rows(command(monkeypatch, files), BENCHMARK)
    stored = contents(files / "trajectories" / "trajectories.h5")
    usable = stored["task_id"] != 8  # no success there
    assert found["trajectory"].tolist() == np.flatnonzero(usable).tolist()
    assert found["success"].tolist() == stored["success"][usable].tolist()
    assert "1 of 9 trajectories have no reference" in capsys.readouterr().out
    assert set(found["representation"]) == {"pixel"} and set(found["suite"]) == {"libero_goal"}
    assert found["steps"].tolist() == [5] * 8
    points = read_rows(files / "pixel-curves.parquet", CURVES)
    assert points["trajectory"].tolist() == np.repeat(found["trajectory"], 5).tolist()
    assert points["success"].tolist() == np.repeat(found["success"], 5).tolist()
    # 6 frames of 5 steps (0 to 5), of which prefixes end at 5: 0, 1, 3, 4, 5.
    assert points["step"].tolist() == [0, 1, 3, 4, 5] * 8
    whole = points["success"].to_numpy()
    np.testing.assert_allclose(
        points["distance_to_goal"], 1 - points["step"] / 5 * np.where(whole, 1, 0.7), rtol=1e-6
    )
    curves, distances = (points[column].to_numpy().reshape(8, 5) for column in ("progress", "distance"))
    np.testing.assert_allclose(curves, 1 - distances / distances.max(1, keepdims=True))
    assert (curves[:, -1] == found["final_progress"]).all()
    assert (found["matched_progress"] == found["final_progress"]).all()  # all take 5 steps
    successes = found[found["success"]]
    for row, curve in zip(successes.itertuples(), curves[found["success"]], strict=True):
        assert row.spearman == pytest.approx(spearmanr(curve, range(5)).statistic)
    # The square of a success ends where that of other successes does, a failure's does not.
    assert successes["final_progress"].min() > found[~found["success"]]["final_progress"].max()


class Broken:
    """Stands for a world model that fails on some trajectories of the file: NaN, or nothing at all."""

    def __init__(self, numbers: dict[int, float]) -> None:
        self.numbers, self.calls = numbers, -1

    def fingerprint(self) -> None:
        return None

    def embed_prefixes(self, frames: np.ndarray, ends: Sequence[int]) -> np.ndarray:
        self.calls += 1
        embeddings = np.random.default_rng(self.calls).normal(size=(len(ends), 3))
        if self.calls in self.numbers:
            embeddings[2] = self.numbers[self.calls]
        return embeddings


def test_a_broken_embedding_costs_its_trajectory_and_says_so(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Task 3 has successes 0–2 and failures 3 and 4, task 5 successes 5 and 6 and failure 7.
    monkeypatch.setattr(reward_benchmark, "_load", lambda *_: Broken({1: np.nan, 3: 0.0, 6: np.inf}))
    found = read_rows(command(monkeypatch, files), BENCHMARK).set_index("trajectory")
    assert found.index.tolist() == list(range(8))
    unscored = found[found["final_progress"].isna()]
    assert unscored.index.tolist() == [1, 3, 5, 6, 7] and unscored["matched_progress"].isna().all()
    output = capsys.readouterr().out
    assert "trajectory 3: not scored: its embedding is broken" in output
    assert "trajectory 7: not scored: no other success is left to compare with" in output
    curves = read_rows(files / "pixel-curves.parquet", CURVES)
    assert curves["trajectory"].drop_duplicates().tolist() == [0, 2, 4]


class Slow(WorldModel):
    """A world model worth keeping embeddings of; it dies when asked for more trajectories than it may."""

    def __init__(self, most: float) -> None:
        super().__init__(frames=4, selection="even", dimension=3, batch_size=8)
        self.most, self.embedded = most, 0

    def fingerprint(self) -> str:
        return "slow"

    def embed_prefixes(self, frames: np.ndarray, ends: Iterable[int]) -> np.ndarray:
        if self.embedded == self.most:
            raise KeyboardInterrupt
        self.embedded += 1
        return super().embed_prefixes(frames, ends)

    def encode(self, videos: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([video.mean((0, 1, 2)) + video[-1, 0, 0] for video in videos]).astype(np.float32)


def test_a_killed_scoring_goes_on_where_it_was(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, first, second = Slow(math.inf), Slow(3), Slow(math.inf)
    monkeypatch.setattr(reward_benchmark, "_load", lambda *_: whole)
    expected = read_rows(command(monkeypatch, files), BENCHMARK)
    shutil.rmtree(files / "scratch")
    monkeypatch.setattr(reward_benchmark, "_load", lambda *_: first)
    with pytest.raises(KeyboardInterrupt):
        command(monkeypatch, files)
    monkeypatch.setattr(reward_benchmark, "_load", lambda *_: second)
    pd.testing.assert_frame_equal(read_rows(command(monkeypatch, files), BENCHMARK), expected)
    assert (whole.embedded, first.embedded, second.embedded) == (8, 3, 5)


def test_nothing_but_broken_embeddings_is_an_error(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = dict.fromkeys(range(8), np.nan)
    monkeypatch.setattr(reward_benchmark, "_load", lambda *_: Broken(broken))
    with pytest.raises(SystemExit, match="no trajectory could be scored"):
        command(monkeypatch, files)
    assert not (files / "pixel.parquet").exists()


def test_an_unknown_world_model_is_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"no 'pixels'.*pixel"):
        command(monkeypatch, files, "pixels")


def test_a_truncated_file_is_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files / "trajectories" / "trajectories.h5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SystemExit, match=r"trajectories\.h5: truncated .*collect` again"):
        command(monkeypatch, files)
    path.unlink()
    with pytest.raises(SystemExit, match=r"trajectories\.h5: no such file"):
        command(monkeypatch, files)


def test_locked_trajectories_are_not_called_damaged(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (files / "trajectories" / "trajectories.h5").open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match=r"trajectories\.h5: is locked.*HDF5_USE_FILE_LOCKING") as caught:
            command(monkeypatch, files)
    assert "again" not in str(caught.value)


def test_without_two_successes_of_a_task_there_are_rows_without_scores(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a preset goes on; its table says it."""
    with h5py.File(files / "trajectories" / "trajectories.h5", "r+") as file:
        file["success"][...] = False
    found = read_rows(command(monkeypatch, files), BENCHMARK)
    assert found["trajectory"].tolist() == list(range(9)) and not found["success"].any()
    assert found["final_progress"].isna().all() and found["steps"].tolist() == [5] * 9
    assert read_rows(files / "pixel-curves.parquet", CURVES).empty
    assert "no task has two successes" in capsys.readouterr().out


def test_trajectories_of_another_suite_are_refused(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(files / "trajectories" / "trajectories.h5", "r+") as file:
        file.attrs["suite"] = "libero_10"
    with pytest.raises(SystemExit, match="libero_10"):
        command(monkeypatch, files)
