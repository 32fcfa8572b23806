"""Poor results: every table and figure is right and says what it lacks, or refuses and says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from srpo.analysis import style
from srpo.results import ResultError
from srpo.results.rows import read_rows, write_rows
from srpo.results.schemas import BENCHMARK, CURVES, EPISODES, PATHS, RL_METRICS, Schema
from support.drawing import run, texts, write_sheet
from support.synthetic_results import (
    curves_of,
    libero_run,
    paths_of,
    plus_run,
    plus_tasks_file,
    reward_benchmark,
    rl_run,
)

SUITE = "libero_goal"
VARIANTS = ("srpo", "srpo-pixel", "srpo-alpha-0")
DIMENSIONS = ("camera", "noise")


@dataclass(frozen=True)
class Drawn:
    """A table or figure: its name, the option and schema of its rows, their files, and other options."""

    name: str
    option: str
    schema: Schema
    files: list[Path]
    others: list[Any]


def results(root: Path, rate: float = 0.5) -> dict[str, Drawn]:
    """One seed of three variants, and two representations; about `rate` of all episodes are solved."""
    sheet = ["--sheet", write_sheet(root / "sheet.tsv", {variant: variant.upper() for variant in VARIANTS})]
    changes: dict[str, dict[str, Any]] = {"srpo-pixel": {"model": "clip"}, "srpo-alpha-0": {"alpha": 0.0}}
    metrics = [rl_run(root, SUITE, variant, [rate] * 3, **changes.get(variant, {})) for variant in VARIANTS]
    episodes = [libero_run(root, SUITE, variant, rate) for variant in VARIANTS]
    paths = [paths_of(path, 0.1) for path in episodes[:2]]
    tasks = plus_tasks_file(root / "tasks.csv", DIMENSIONS)
    plus = [plus_run(root, SUITE, variant, dict.fromkeys(DIMENSIONS, rate), tasks) for variant in VARIANTS]
    scores = reward_benchmark(root, SUITE, {"pixel": 0.4, "vjepa2-tiny": 0.8}, successes=14 * (rate > 0))
    curves, films = curves_of(scores)
    shown = [*sheet, "--tasks", tasks]
    return {
        "t1": Drawn("t1", "--episodes", EPISODES, episodes, sheet),
        "t2": Drawn("t2", "--episodes", EPISODES, plus, shown),
        "t2_curves": Drawn("t2_curves", "--episodes", EPISODES, plus, shown),
        "t3": Drawn("t3", "--scores", BENCHMARK, scores, []),
        "t3_distributions": Drawn("t3_distributions", "--scores", BENCHMARK, scores, []),
        "t3_truth": Drawn("t3_truth", "--curves", CURVES, curves, []),
        "f1": Drawn("f1", "--curves", CURVES, curves, ["--trajectories", films]),
        "f2": Drawn("f2", "--metrics", RL_METRICS, metrics, sheet),
        "f3": Drawn("f3", "--metrics", RL_METRICS, metrics, sheet),
        "f4": Drawn("f4", "--paths", PATHS, paths, sheet),
        "f5": Drawn("f5", "--episodes", EPISODES, episodes, sheet),
    }


NAMES = ("t1", "t2", "t2_curves", "t3", "t3_distributions", "t3_truth", "f1", "f2", "f3", "f4", "f5")


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[set[str], pd.DataFrame]]:
    """Draw by the command line: what is written in the picture, a line break as a space, and the table."""
    saved: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, stem: saved.append(figure))

    def call(drawn: Drawn, *arguments: Any) -> tuple[set[str], pd.DataFrame]:
        out = tmp_path / "out"
        run(drawn.name, out, *drawn.others, *arguments, drawn.option, *drawn.files)
        words = {" ".join(text.split()) for text in texts(saved[-1])}
        return words, pd.read_csv(out / "tables" / f"{drawn.name}.csv")

    return call


def without(drawn: Drawn, number: int) -> Drawn:
    """Less the last rows of the last file; less the last episodes where one has many rows."""
    rows = read_rows(drawn.files[-1], drawn.schema)
    if drawn.schema is PATHS:
        last = rows[["task_id", "init_state"]].drop_duplicates().tail(number)
        rows = rows[~rows.set_index(["task_id", "init_state"]).index.isin(list(map(tuple, last.to_numpy())))]
    else:
        rows = rows.iloc[:-number]
    write_rows(drawn.files[-1], rows.to_dict("records"), drawn.schema)
    return drawn


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_is_drawn(
    name: str, tmp_path: Path, draw: Callable[..., tuple[set[str], pd.DataFrame]]
) -> None:
    words, table = draw(results(tmp_path)[name])
    assert len(table) and not any("incomplete" in word for word in words)
    if "band" in table:
        assert set(table["band"]) == {"wilson"}  # not a range of one seed


ABSENT = {
    "t1": "srpo-alpha-0 on libero_goal",
    "t2": "srpo-alpha-0 on libero_goal",
    "t2_curves": "srpo-alpha-0 on libero_goal",
    "t3": "1 sets of scores",
    "t3_distributions": "1 sets of scores",
    "t3_truth": "1 sets of curves",
    "f1": "1 sets of curves",
    "f2": "srpo-alpha-0 on libero_goal",
    "f3": "srpo-alpha-0 on libero_goal",
    "f5": "srpo-alpha-0 on libero_goal",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_run_is_refused_or_named(
    name: str, tmp_path: Path, draw: Callable[..., tuple[set[str], pd.DataFrame]]
) -> None:
    whole = results(tmp_path)[name]
    fewer = Drawn(whole.name, whole.option, whole.schema, whole.files[:-1], whole.others)
    if name == "f4":  # a comparison of two has nothing to say of one
        with pytest.raises(ResultError, match="needs paths of two variants in one suite"):
            draw(fewer, "--allow-incomplete")
        return
    missing = "srpo-alpha-0 on libero_goal" if "libero_goal" in ABSENT[name] else "'vjepa2-tiny'"
    with pytest.raises(ResultError, match=f"incomplete: no .*{missing}"):
        draw(fewer)
    words, _ = draw(fewer, "--allow-incomplete")
    assert f"incomplete: without {ABSENT[name]}" in words


ROWS = {
    "t1": "2 episodes",
    "t2": "2 episodes",
    "t2_curves": "2 episodes",
    "f2": "2 RL steps",
    "f4": "2 episodes that one variant lacks",
    "f5": "2 episodes",
}


@pytest.mark.parametrize("name", NAMES)
def test_missing_rows_are_refused_or_counted(
    name: str, tmp_path: Path, draw: Callable[..., tuple[set[str], pd.DataFrame]]
) -> None:
    drawn = results(tmp_path)[name]
    if name == "f3":  # whose last file is not of a run that F3 shows
        drawn = Drawn(drawn.name, drawn.option, drawn.schema, drawn.files[:2], drawn.others)
    less = without(drawn, 2)
    if name == "f1":  # what one representation lacks is shown under none: nothing to say
        draw(less)
        return
    if name.startswith("t3"):
        with pytest.raises(ResultError, match="representations scored different trajectories"):
            draw(less, "--allow-incomplete")
        return
    with pytest.raises(ResultError, match="incomplete: "):
        draw(less)
    words, _ = draw(less, "--allow-incomplete")
    note = ROWS.get(name, "srpo-alpha-0 on libero_goal, 2 RL steps")
    assert f"incomplete: without {note}" in words


UNSCORED = ("suite", "task_id", "trajectory", "success", "representation", "steps")
"""Columns of a trajectory that has no other to be compared with."""


@pytest.mark.parametrize("name", NAMES)
def test_no_success_at_all(
    name: str, tmp_path: Path, draw: Callable[..., tuple[set[str], pd.DataFrame]]
) -> None:
    """Rates of 0 with their intervals, and no number where there is nothing to compute it from."""
    drawn = results(tmp_path, rate=0.0)[name]
    if drawn.schema is BENCHMARK:  # rows have no scores, and there are no curves
        for path in drawn.files:
            rows = read_rows(path, BENCHMARK).to_dict("records")
            kept = [{name: row[name] if name in UNSCORED else None for name in row} for row in rows]
            write_rows(path, [row | {"success": False} for row in kept], BENCHMARK)
    if drawn.schema is CURVES:
        for path in drawn.files:
            write_rows(path, [], CURVES)
    words, table = draw(drawn)
    if "rate" in table:
        own = table[table.get("source", "ours") == "ours"] if "source" in table else table
        own = own[own["rate"].notna()]
        assert (own["rate"] == 0).all() and (own["high"] > 0).all()
        assert not own.get("best", pd.Series(False)).any()
    if name == "f4":
        assert any("0/20 solved" in word for word in words)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["protocol", "preset"])
def test_mixed_protocols_and_presets_are_refused(
    name: str, what: str, tmp_path: Path, draw: Callable[..., tuple[set[str], pd.DataFrame]]
) -> None:
    drawn = results(tmp_path)[name]
    # Representations share a folder, and so a configuration: the second suite's is the other one.
    if drawn.schema in (BENCHMARK, CURVES):
        scores = reward_benchmark(tmp_path, "libero_10", {"pixel": 0.4, "vjepa2-tiny": 0.8})
        curves, films = curves_of(scores)
        drawn.files.extend(scores if drawn.schema is BENCHMARK else curves)
        drawn.others.extend([films] if drawn.others else [])
    draw(drawn)
    file = drawn.files[-1].parent / "config.yaml"
    config = yaml.safe_load(file.read_text())
    if what == "protocol":
        config["protocol"]["render"] = "fast"
    else:
        config["preset"] = "mini"
    file.write_text(yaml.safe_dump(config))
    if drawn.schema is EPISODES:
        rows = read_rows(drawn.files[-1], EPISODES)
        rows["protocol"] = (
            rows["protocol"].str.replace("exact", "fast") if what == "protocol" else rows["protocol"]
        )
        rows["preset"] = config["preset"]
        write_rows(drawn.files[-1], rows.to_dict("records"), EPISODES)
    with pytest.raises(ResultError, match=rf"mixes {what}s|several {what}s"):
        draw(drawn, "--allow-incomplete")


def test_trajectories_without_failures(
    tmp_path: Path, draw: Callable[..., tuple[set[str], pd.DataFrame]]
) -> None:
    scores = reward_benchmark(tmp_path, SUITE, {"pixel": 0.4, "vjepa2-tiny": 0.8}, failures=0)
    words, table = draw(Drawn("t3", "--scores", BENCHMARK, scores, []))
    assert "pixel (14 + 0)" in words and "–" in words
    own = table[(table["source"] == "ours") & table["metric"].isin(("MMD", "JS", "SMD"))]
    assert own["value"].isna().all()
    words, table = draw(Drawn("t3_distributions", "--scores", BENCHMARK, scores, []))
    assert "pixel (14 + 0)" in words
    assert table.loc[table["outcome"] == "failure", "trajectories"].sum() == 0
    assert np.isfinite(table["low"]).all()
