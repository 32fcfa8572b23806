"""The picture to show first: which episodes it takes, and what stands in it."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from srpo.analysis import style
from srpo.analysis.figures import headline
from srpo.results import ResultError
from srpo.results.rows import write_rows
from srpo.results.schemas import EPISODES
from srpo.runtime.videos import write_video
from support.drawing import check_readable, run, sheet_of, texts, write_sheet
from support.synthetic_results import episode_row, rl_run

PAIR = {"sft": "SFT", "grpo": "GRPO", "srpo": "SRPO"}


def episodes(root: Path, variant: str, statuses: dict[int, str]) -> Path:
    """Task → status of its filmed episode: the picture's grey is 10 times the task's number, and 5 more."""
    rows = []
    for task, status in statuses.items():
        for state in (40, 41):
            video = f"videos/task{task}.mp4" if state == 40 else None
            own = {"task_id": task, "init_state": state, "status": status}
            rows.append(episode_row(variant=variant, task=f"put_{task}", video=video, **own))
        frames = np.full((20, 64, 64, 3), 10 * task + 5 * (variant == "srpo"), np.uint8)
        write_video(root / variant / "videos" / f"task{task}.mp4", frames, 10.0)
    write_rows(root / variant / "episodes.parquet", rows, EPISODES)
    return root / variant / "episodes.parquet"


@pytest.mark.parametrize(
    ("after", "task"),
    [(["success", "success", "success"], 2), (["failure", "failure", "failure"], 1)],
)
def test_it_shows_what_has_become_better(after: list[str], task: int, tmp_path: Path) -> None:
    before = episodes(tmp_path, "sft", {1: "success", 2: "failure", 3: "failure"})
    paths = [before, episodes(tmp_path, "srpo", dict(zip((1, 2, 3), after, strict=True)))]
    pair = headline.choose(paths, sheet_of(PAIR))
    assert list(pair["variant"]) == ["sft", "srpo"]
    assert set(pair["task_id"]) == {task} and set(pair["init_state"]) == {40}
    assert all(path.is_file() for path in pair["file"])
    with pytest.raises(ResultError, match="no task and state was filmed of both sft and srpo"):
        headline.choose([before], sheet_of(PAIR))


def test_curves_above_and_episodes_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, stem: saved.append(figure))
    metrics = [
        str(rl_run(tmp_path, suite, variant, [rate, rate]))
        for suite in ("libero_object", "libero_goal")
        for variant, rate in (("grpo", 0.0), ("srpo", 1.0))
    ]
    paths = [
        str(episodes(tmp_path, "sft", {2: "failure", 4: "failure"})),
        str(episodes(tmp_path, "srpo", {2: "failure", 4: "success"})),
    ]
    sheets = [write_sheet(tmp_path / "f2.tsv", {v: PAIR[v] for v in ("grpo", "srpo")})]
    sheets.append(write_sheet(tmp_path / "t1.tsv", PAIR))
    options = ["--sheet", sheets[0], "--t1-sheet", sheets[1], "--metrics", *metrics]
    run("headline", tmp_path, *options, "--episodes", *paths)
    [figure] = saved
    curves, strips = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title() for axes in curves] == ["Object", "Goal"]
    for axes in curves:
        drawn = {line.get_color(): list(line.get_ydata()) for line in axes.lines}
        assert drawn == {style.look("grpo")[0]: [0.0] * 2, style.look("srpo")[0]: [100.0] * 2}
    assert len(strips) == 2 * headline.FRAMES
    shown = [int(np.median(axes.images[0].get_array())) for axes in strips]
    for place, grey in ((0, 40), (headline.FRAMES, 45)):
        assert all(abs(value - grey) <= 3 for value in shown[place : place + headline.FRAMES])
    said = texts(figure)
    assert {"GRPO", "SRPO", "SFT:\nfailure", "SRPO:\nsuccess", "0.0 s", "1.9 s"} <= said
    assert "“put 4”, initial state 40" in said
    with mpl.rc_context(style.RC):
        check_readable(figure)
