"""Values of moments: their branches, and progress rewards beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from srpo.analysis.figures import f6
from srpo.analysis.stats import wilson
from srpo.analysis.tables import t3_values
from srpo.analysis.tables.t3_truth import along, shared
from srpo.analysis.values import DISTANCE, beside, lost_from, read_values, with_distance
from srpo.config import ValuesStage
from srpo.episode import CHUNK, Episode, EpisodeSpec, FailedRun
from srpo.results import ResultError
from srpo.results.coverage import load_benchmark
from srpo.results.rows import read_rows, write_rows
from srpo.results.schemas import CURVES, VALUES
from srpo.rollouts.journal import Journal
from srpo.rollouts.trajectories import FILE, TrajectoryError
from srpo.runtime.peers import Peers
from srpo.values import Moment, chosen_queries, read_moments, run_branches, value_rows
from support.drawing import check_latex, check_readable, run, texts, written
from support.sharing import together
from support.synthetic_results import curves_of, protocol, reward_benchmark, values_of

BRANCHES = 4


def stage(**changes: Any) -> ValuesStage:
    return ValuesStage.model_validate(
        {
            "preset": "test",
            "suite": "libero_goal",
            "tasks": [3, 5],
            "protocol": protocol("libero_goal"),
            "reward_benchmark": {
                "successes": 1,
                "failures": 1,
                "max_episodes": 9,
                "temperature": 1.3,
                "prefixes": 5,
                "seed": 1,
            },
            "values": {"points": 3, "branches": BRANCHES, "seed": 7, **changes},
        }
    )


@pytest.fixture
def trajectories(tmp_path: Path) -> Path:
    """A success of task 3 with 9 queries, and a failure of task 5 with 2."""
    folder = tmp_path / "trajectories"
    folder.mkdir()
    config = stage()
    with h5py.File(folder / FILE, "w") as file:
        file.attrs["suite"] = config.suite
        file.attrs["protocol"] = config.protocol.model_dump_json()
        file.attrs["reward_benchmark"] = config.reward_benchmark.model_dump_json()
        file["success"], file["task_id"], file["init_state"] = [True, False], [3, 5], [11, 12]
        file["steps"], file["frames"], file["distance_to_goal"] = [70, 16], np.zeros(2), np.zeros(2)
        file["states/0"] = np.arange(9 * 4.0).reshape(9, 4)
        file["states/1"] = 100 + np.arange(2 * 5.0).reshape(2, 5)
    return folder


class Branches:
    """Stands for the rollouts: odd seeds succeed after 5 steps; what is asked for may be cut short."""

    def __init__(self, dies_after: int | None = None, broken: int = 0) -> None:
        self.dies_after, self.broken = dies_after, broken
        self.ran: list[EpisodeSpec] = []

    def run(self, specs: Sequence[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
        for spec in specs[::-1]:
            if len(self.ran) == self.dies_after:
                raise KeyboardInterrupt
            self.ran.append(spec)
            if len(self.ran) <= self.broken:
                yield FailedRun(spec, "no picture")
                continue
            nothing: Any = np.zeros(0)
            yield Episode(spec, bool(spec.seed % 2), 5, *[nothing] * 8, 0.0)


def finished(folder: Path, moments: list[Moment], branches: Branches) -> list[dict[str, Any]]:
    journal = Journal(folder, "run")
    run_branches(stage(), moments, branches.run, journal)
    return value_rows(stage(), moments, journal.rows)


def test_points_are_queries_from_first_to_last() -> None:
    assert chosen_queries(12, 6).tolist() == [0, 2, 4, 7, 9, 11]
    assert chosen_queries(3, 6).tolist() == [0, 1, 2]


def test_moments_and_their_branches(trajectories: Path) -> None:
    moments = read_moments(stage(), trajectories)
    assert [(m.trajectory, m.start.query) for m in moments] == [(0, 0), (0, 4), (0, 8), (1, 0), (1, 1)]
    assert np.frombuffer(moments[1].start.state).tolist() == [16, 17, 18, 19]
    assert np.frombuffer(moments[4].start.state).tolist() == [105, 106, 107, 108, 109]
    specs = [moment.spec(stage(), branch) for moment in moments for branch in range(BRANCHES)]
    assert len({spec.seed for spec in specs}) == len(specs)
    assert {(spec.task_id, spec.init_state, spec.temperature) for spec in specs} == {
        (3, 11, 1.3),
        (5, 12, 1.3),
    }
    assert moments[0].spec(stage(seed=8), 0).seed != specs[0].seed


def test_rows_count_branches(tmp_path: Path, trajectories: Path) -> None:
    moments = read_moments(stage(), trajectories)
    branches = Branches()
    rows = finished(tmp_path / "scratch", moments, branches)
    write_rows(tmp_path / "values.parquet", rows, VALUES)
    assert len(branches.ran) == 5 * BRANCHES
    for moment, row in zip(moments, rows, strict=True):
        seeds = [moment.spec(stage(), branch).seed for branch in range(BRANCHES)]
        assert row["successes"] == sum(seed % 2 for seed in seeds)
        assert (row["branches"], row["environment_steps"]) == (BRANCHES, 5 * BRANCHES)
        assert row["step"] == moment.start.query * CHUNK
        assert row["success"] == (row["trajectory"] == 0)


def test_an_interrupted_set_is_even_and_goes_on(tmp_path: Path, trajectories: Path) -> None:
    moments = read_moments(stage(), trajectories)
    whole = finished(tmp_path / "whole", moments, Branches())
    with pytest.raises(KeyboardInterrupt):
        finished(tmp_path / "killed", moments, Branches(dies_after=12))
    so_far = value_rows(stage(), moments, Journal(tmp_path / "killed", "run").rows)
    assert sorted(row["branches"] for row in so_far) == [2, 2, 2, 3, 3]
    second = Branches()
    assert finished(tmp_path / "killed", moments, second) == whole
    assert len(second.ran) == 5 * BRANCHES - 12


def test_several_processes_run_the_branches_of_one(tmp_path: Path, trajectories: Path) -> None:
    moments = read_moments(stage(), trajectories)

    def work(peers: Peers) -> tuple[int, list[dict[str, Any]]]:
        journal, branches = Journal(tmp_path / "shared", "run", peers), Branches()

        def run(specs: Sequence[EpisodeSpec]) -> Iterator[Episode | FailedRun]:
            peers.start_round()
            return branches.run([spec for spec in specs if peers.claim(spec)])

        run_branches(stage(), moments, run, journal, peers)
        journal.share()
        return len(branches.ran), value_rows(stage(), moments, journal.rows)

    numbers, rows = zip(*together(work, 3), strict=True)
    assert sum(numbers) == 5 * BRANCHES
    assert all(found == finished(tmp_path / "alone", moments, Branches()) for found in rows)


def test_branches_that_could_not_be_run_are_no_failures_and_are_tried_again(
    tmp_path: Path, trajectories: Path
) -> None:
    moments = read_moments(stage(), trajectories)
    rows = finished(tmp_path / "scratch", moments, Branches(broken=2))
    assert sum(row["branches"] for row in rows) == 5 * BRANCHES - 2
    again = Branches()
    assert finished(tmp_path / "scratch", moments, again) == finished(tmp_path / "x", moments, Branches())
    assert len(again.ran) == 2


def test_other_trajectories_are_refused(trajectories: Path) -> None:
    other = stage().model_copy(update={"protocol": protocol("libero_goal", render="fast")})
    with pytest.raises(TrajectoryError, match="collected with another protocol"):
        read_moments(other, trajectories)
    (trajectories / "manifest.json").write_text('{"packages": {"mujoco": "3.1.0"}}')
    with pytest.raises(TrajectoryError, match=r"MuJoCo 3\.1\.0's, and this is"):
        read_moments(stage(), trajectories)
    with h5py.File(trajectories / FILE, "r+") as file:
        del file["states"]
    with pytest.raises(TrajectoryError, match=r"has no states .*collect` again"):
        read_moments(stage(), trajectories)


# Progress beside values.


@pytest.fixture
def drawn(tmp_path: Path) -> tuple[list[Path], Path, Path]:
    """Curves of two representations, the folder of trajectories, and values."""
    scores = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.4, "vjepa2-tiny": 0.8})
    return *curves_of(scores), values_of(scores[0])


def moments_of(value: list[float], progress: list[float], trajectory: int = 0) -> pd.DataFrame:
    wins = [round(8 * v) for v in value]
    return pd.DataFrame(
        {
            **{"suite": "libero_goal", "task_id": 3, "trajectory": trajectory, "success": False},
            **{"step": range(len(value)), "branches": 8, "successes": wins, "value": value},
            "progress": progress,
        }
    )


def test_where_a_failure_was_lost() -> None:
    assert lost_from(moments_of([0.5, 0, 0.25, 0, 0], [0] * 5)) == 3
    assert lost_from(moments_of([0, 0], [0] * 2)) == 0
    assert np.isnan(lost_from(moments_of([0.5, 0.25], [0] * 2)))


def test_values_have_intervals_and_progress_is_read_between_points(
    drawn: tuple[list[Path], Path, Path],
) -> None:
    curves, _, file = drawn
    values = read_values([file])
    first = values.iloc[0]
    assert (first["value"], first["low"]) == (0.5, wilson(4, 8).low)
    rows = shared(load_benchmark(curves, CURVES, "curves", allow_incomplete=False)[0])
    both = beside(with_distance(rows), values)
    assert list(both["representation"].cat.categories) == ["pixel", "vjepa2-tiny", DISTANCE]
    # The distance falls evenly from 1 to 0 along a success, and from 1 to 0.4 along a failure.
    for number, end in ((0, 1.0), (15, 0.6)):
        own = both[(both["representation"] == DISTANCE) & (both["trajectory"] == number)]
        last = rows.loc[rows["trajectory"] == number, "step"].max()
        np.testing.assert_allclose(own["progress"], end * own["step"] / last, atol=0.02)


def test_correlations_are_of_moments_whose_value_changes() -> None:
    moments = pd.concat(
        [
            moments_of([0.5, 0.25, 0.125, 0], [0.9, 0.8, 0.6, 0.1], 0),
            moments_of([0.5, 0.25, 0.125, 0], [0.1, 0.2, 0.3, 0.4], 1),
            moments_of([0, 0, 0], [0.1, 0.2, 0.3], 2),
        ]
    )
    (task,) = along(moments.assign(failing=-moments["value"]), "failing")
    assert task.tolist() == pytest.approx([1, -1])


def test_failures_are_in_order_by_their_values() -> None:
    failures = pd.DataFrame(
        {
            **{"suite": "libero_goal", "task_id": [3, 3, 3, 5, 5]},
            "value": [0.5, 0.2, 0.2, 0.0, 0.4],
            "end": [-1.0, -2.0, -3.0, -1.0, -2.0],
        }
    )
    found = t3_values.in_order(failures, "end", np.random.default_rng(0))
    assert found.value == pytest.approx(2 / 3)  # two pairs of task 3 are in order, the one of task 5 is not
    assert 0 <= found.low <= found.value <= found.high <= 1
    equal = t3_values.in_order(failures.assign(value=0.0), "end", np.random.default_rng(0))
    assert np.isnan(equal.value)


def test_calibration_pools_branches_by_progress() -> None:
    moments = pd.concat([moments_of([0.5, 1.0], [0.1, 0.19], 0), moments_of([0.0, 0.25], [0.0, 1.0], 1)])
    low, high = t3_values.calibration("pixel", moments)
    assert (low["progress"], low["value"], low["trajectories"]) == (0.1, pytest.approx(12 / 24), 2)
    assert (high["progress"], high["value"], high["trajectories"]) == (0.9, 0.25, 1)


def test_a_failure_at_equal_length_is_judged_when_the_median_success_ends(
    drawn: tuple[list[Path], Path, Path],
) -> None:
    rows = shared(load_benchmark(drawn[0], CURVES, "curves", allow_incomplete=False)[0])
    ends = t3_values.final_progress(rows).set_index(["representation", "trajectory"])
    own = rows[(rows["representation"] == "pixel") & (rows["task_id"] == 0)].sort_values("step")
    last = own.groupby("trajectory").tail(1).set_index("trajectory")
    median = last.loc[last["success"], "step"].median()
    failure = own[own["trajectory"] == 14]
    assert failure["step"].max() > median
    assert ends.loc[("pixel", 14), "end"] == -failure["distance"].iloc[-1]
    assert ends.loc[("pixel", 14), "matched"] == -failure.loc[failure["step"] <= median, "distance"].iloc[-1]


def test_the_table_is_drawn(tmp_path: Path, drawn: tuple[list[Path], Path, Path]) -> None:
    curves, _, values = drawn
    out = tmp_path / "out"
    run("t3_values", out, "--curves", *curves, "--values", values)
    assert written(out) == {f"t3_values.{form}" for form in ("csv", "tex", "html", "png", "pdf")}
    check_latex((out / "tables/t3_values.tex").read_text())
    table = pd.read_csv(out / "tables/t3_values.csv").set_index(["representation", "measure"])
    # A success's value rises with time, as its way to the goal falls; a failure's does the opposite.
    assert table.loc[(DISTANCE, "along successes"), "value"].item() == pytest.approx(1)
    assert table.loc[(DISTANCE, "along failures"), "value"].item() < 0
    # Of six failures (14 to 19) two have one hopeful moment of four, one has three, two have two, one none.
    assert table.loc[(DISTANCE, "along failures"), "trajectories"].item() == 5
    assert table.loc[(t3_values.AGAIN, "along failures"), "value"].item() > 0.5
    shares = [1 - k / 4 for k in (2, 3, 0, 1, 2, 3)]
    lost = table.loc[(t3_values.AGAIN, t3_values.LOST)]
    assert lost["value"].item() == pytest.approx(np.mean(shares), abs=0.01)
    figure = t3_values.draw(table.reset_index())
    check_readable(figure)


def test_values_of_other_trajectories_are_refused(drawn: tuple[list[Path], Path, Path]) -> None:
    curves, folder, values = drawn
    config = values.with_name("config.yaml")
    settings = yaml.safe_load(config.read_text())
    settings["reward_benchmark"]["seed"] += 1
    config.write_text(yaml.safe_dump(settings))
    for make in (
        lambda: t3_values.make(curves, [values], allow_incomplete=True),
        lambda: f6.make(curves, [folder], [values], allow_incomplete=True),
    ):
        with pytest.raises(ResultError, match=r"values\.parquet: its trajectories were collected with other"):
            make()


def test_trajectories_without_values_are_refused_or_counted(
    tmp_path: Path, drawn: tuple[list[Path], Path, Path]
) -> None:
    curves, _, values = drawn
    rows = read_rows(values, VALUES)
    write_rows(values, rows[rows["trajectory"] > 1].to_dict("records"), VALUES)
    with pytest.raises(ResultError, match="incomplete: 2 trajectories that were scored have no values"):
        t3_values.make(curves, [values], allow_incomplete=False)
    assert t3_values.make(curves, [values], allow_incomplete=True).missing == "2 trajectories' values"


def test_the_figure_shows_the_failure_that_threw_most_away(
    tmp_path: Path, drawn: tuple[list[Path], Path, Path]
) -> None:
    curves, folder, values = drawn
    made = f6.make(curves, [folder], [values], allow_incomplete=False)
    assert made.table is not None and made.figure is not None
    # Failures 15 and 19 had 6 of 8 at their third moment; the first of them is shown.
    assert set(made.table["trajectory"]) == {15}
    chance = made.table[made.table["quantity"] == f6.VALUE]
    assert chance["y"].tolist() == [0.5, 0.625, 0.75, 0]
    steps = read_values([values]).query("trajectory == 15")["step"].tolist()
    assert set(chance["lost"]) == {steps[3]}
    figure = made.figure()
    assert "Goal, task 1: failure, 300 steps" in texts(figure)
    run("f6", tmp_path / "out", "--curves", *curves, "--trajectories", folder, "--values", values)
    assert written(tmp_path / "out") == {"f6.csv", "f6.png", "f6.pdf"}
