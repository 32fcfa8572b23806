"""Figures: the right marks at the right places, whole files, one look a variant."""

from __future__ import annotations

import re
import zlib
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from synthetic_results import libero_run, reward_benchmark, rl_run
from test_tables import PUBLISHED, REPOSITORY, SHEET, plus_runs, run, t1_of, t2_of, write_sheet

from srpo.analysis import f2, style, t1, t2, t3, tables
from srpo.analysis.io import RL_METRICS, ResultError, read_rows, write_rows


@pytest.fixture(autouse=True)
def _style() -> object:
    with mpl.rc_context(style.RC):
        yield


def texts(figure: Figure) -> set[str]:
    FigureCanvasAgg(figure).draw()
    return {text.get_text() for text in figure.findobj(mpl.text.Text)}


def markers(axes: Axes, colour: str) -> list[tuple[float, float]]:
    """Centres of the single markers of a colour (hollow ones by their edge)."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if len(line.get_xdata()) == 1 and line.get_markeredgecolor() == colour
    ]


def check_readable(figure: Figure) -> None:
    """The tick labels of an axis do not overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels if label.get_text()]
            for one, other in pairwise(boxes):
                assert not one.overlaps(other), [label.get_text() for label in labels]


def test_t1_figure(tmp_path: Path) -> None:
    table = t1_of(
        [
            libero_run(tmp_path, s, v, r)
            for s in ("libero_goal", "libero_10")
            for v, r in (("sft", 0.0), ("srpo", 1.0))
        ]
    )
    figure = t1.draw(table)
    goal, long, average = figure.axes
    assert [axes.get_title() for axes in figure.axes] == [
        "Goal\n(2 of 10 tasks)",
        "Long\n(2 of 10 tasks)",
        "Average",
    ]
    assert markers(goal, style.look("sft")[0]) == [(0, 0)]
    assert markers(long, style.look("srpo")[0]) == [(100, -1)]
    published = table[(table["source"] == "published") & (table["suite"] == "libero_goal")]
    assert [x for x, _ in markers(goal, style.PUBLISHED)] == pytest.approx(list(100 * published["rate"]))
    assert max(y for _, y in markers(goal, style.PUBLISHED)) < -1  # below ours
    assert {"SFT", "SRPO", "0/20", "20/20", "40/40", "OpenVLA*-One"} <= texts(figure)
    check_readable(figure)
    assert [x for x, _ in markers(average, style.look("srpo")[0])] == [100]


def test_t2_figure(tmp_path: Path) -> None:
    tasks, paths = plus_runs(
        tmp_path, {"sft": {"camera": 0, "noise": 0.5}, "srpo": {"camera": 1, "noise": 0.5}}
    )
    figure = t2.draw(t2_of(tasks, paths))
    (axes,) = figure.axes
    words = texts(figure)
    assert {"Camera", "Layout", "Total (macro)\n2 of 7 dimensions", "not run", "0/12", "12/12"} <= words
    assert (
        len(markers(axes, style.look("srpo")[0])) == 4
    )  # two dimensions and two totals, nothing at 0 for the rest
    assert markers(axes, style.look("srpo")[0])[0][0] == 100
    check_readable(figure)


def test_t3_figure(tmp_path: Path) -> None:
    scores, _ = t3.read_scores(
        reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.3, "vjepa2-tiny": 0.8}, failures=0), False
    )
    table = t3.estimate(scores, tables.read_published(PUBLISHED, "T3"))
    figure = t3.draw(table)
    assert [axes.get_title() for axes in figure.axes] == [f"{metric} ↑" for metric in t3.METRICS]
    assert len(markers(figure.axes[0], style.look("pixel")[0])) == 1
    assert markers(figure.axes[2], style.look("pixel")[0]) == []  # no failures, no MMD
    assert [round(x, 3) for x, _ in markers(figure.axes[4], style.PUBLISHED)] == [2.1, 18.111, 188.799]
    assert {"pixel (14 + 0)", "imagebind", "–"} <= texts(figure)
    check_readable(figure)


CURVES = {"grpo": [0.1, 0.2, 0.3], "srpo": [0.1, 0.4, 0.8]}


def test_f2_estimates(tmp_path: Path) -> None:
    sheet = dict.fromkeys(CURVES, "label")
    one = [rl_run(tmp_path, "libero_goal", variant, rates) for variant, rates in CURVES.items()]
    metrics, missing = f2.read_metrics(one, sheet, allow_incomplete=False)
    table = f2.estimate(metrics, sheet)
    assert missing == 0
    assert set(table["band"]) == {"wilson"}
    assert (table["low"] <= table["rate"]).all()
    assert len(table) == 6
    many = one + [rl_run(tmp_path, "libero_goal", v, r, seed=1) for v, r in CURVES.items()]
    table = f2.estimate(f2.read_metrics(many, sheet, allow_incomplete=False)[0], sheet)
    rates = [read_rows(path, RL_METRICS)["success_rate"][2] for path in (many[1], many[3])]
    last = table[(table["variant"] == "srpo") & (table["step"] == 3)].iloc[0]
    assert (last["low"], last["high"], last["band"], last["episodes"]) == (
        min(rates),
        max(rates),
        "seed range",
        64,
    )
    assert last["rate"] == pytest.approx(np.mean(rates))


def test_f2_refuses(tmp_path: Path) -> None:
    sheet = dict.fromkeys(CURVES, "label")
    paths = [rl_run(tmp_path, "libero_goal", variant, rates) for variant, rates in CURVES.items()]
    with pytest.raises(ResultError, match=r"incomplete: no run of \[\('libero_goal', 'srpo'\)\]"):
        f2.read_metrics(paths[:1], sheet, allow_incomplete=False)
    with pytest.raises(ResultError, match="an RL step stands twice"):
        f2.read_metrics([*paths, paths[0]], sheet, allow_incomplete=False)
    rows = read_rows(paths[1], RL_METRICS).to_dict("records")
    write_rows(paths[1], rows[:2], RL_METRICS)
    with pytest.raises(ResultError, match=r"1 of 6 rows are missing, the first: .*variant=srpo"):
        f2.read_metrics(paths, sheet, allow_incomplete=False)
    assert f2.read_metrics(paths, sheet, allow_incomplete=True)[1] == 1


@pytest.mark.parametrize("steps", [1, 3, 60])
def test_f2_figure(steps: int, tmp_path: Path) -> None:
    sheet = {"grpo": "GRPO", "srpo": "SRPO"}
    suites = ("libero_object", "libero_10")
    paths = [rl_run(tmp_path, s, v, [r] * steps) for s in suites for v, r in (("grpo", 0.0), ("srpo", 1.0))]
    figure = f2.draw(f2.estimate(f2.read_metrics(paths, sheet, allow_incomplete=False)[0], sheet))
    assert [axes.get_title() for axes in figure.axes] == ["Object", "Long"]
    for axes in figure.axes:
        curves = {line.get_color(): list(line.get_ydata()) for line in axes.lines}
        assert curves == {style.look("grpo")[0]: [0.0] * steps, style.look("srpo")[0]: [100.0] * steps}
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert {"GRPO", "SRPO", "RL step", "success of rollouts (%)"} <= texts(figure)
    check_readable(figure)


def test_f2_command_line_writes_whole_files(tmp_path: Path) -> None:
    sheet = write_sheet(tmp_path / "f2.tsv", {"grpo": "GRPO", "srpo": "SRPO"})
    paths = [rl_run(tmp_path, "libero_goal", variant, rates) for variant, rates in CURVES.items()]
    run(f2, tmp_path / "out" / "f2", "--sheet", sheet, "--metrics", *paths)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"f2.csv", "f2.png", "f2.pdf"}
    picture = np.asarray(Image.open(tmp_path / "out" / "f2.png").convert("RGB"))
    for variant in CURVES:
        colour = np.array(mpl.colors.to_rgb(style.look(variant)[0])) * 255
        assert (np.abs(picture - colour).max(axis=2) < 3).sum() > 50, f"{variant} is not in the picture"
    pdf = (tmp_path / "out" / "f2.pdf").read_bytes()
    assert pdf.rstrip().endswith(b"%%EOF")
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.S)
    pages = b"".join(zlib.decompress(s) for s in streams if s[:1] == b"x")
    assert len(re.findall(rb"\] TJ", pages)) > 10  # text stays text


def test_an_incomplete_figure_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, stem: saved.append(figure))
    sheet = write_sheet(tmp_path / "f2.tsv", {"grpo": "GRPO", "srpo": "SRPO"})
    paths = [rl_run(tmp_path, "libero_goal", variant, rates) for variant, rates in CURVES.items()]
    arguments = ("--sheet", sheet, "--allow-incomplete", "--metrics", *paths)
    run(f2, tmp_path / "f2", *arguments)
    rows = read_rows(paths[1], RL_METRICS).to_dict("records")
    write_rows(paths[1], rows[:2], RL_METRICS)
    run(f2, tmp_path / "f2", *arguments)
    said = ["incomplete: without 1 RL steps" in texts(figure) for figure in saved]
    assert said == [False, True]


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    table = t1_of([libero_run(tmp_path, "libero_goal", variant, 0.5) for variant in SHEET])
    for name in ("a", "b"):
        style.save(t1.draw(table), tmp_path / name)
    for suffix in (".png", ".pdf"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_figures_are_drawn_from_the_tidy_table_alone(tmp_path: Path) -> None:
    table = t1_of([libero_run(tmp_path, "libero_goal", variant, 0.5) for variant in SHEET])
    table.to_csv(tmp_path / "t1.csv", index=False)
    assert texts(t1.draw(pd.read_csv(tmp_path / "t1.csv", dtype=table.dtypes.to_dict()))) == texts(
        t1.draw(table)
    )


def test_every_variant_of_the_project_has_its_own_look() -> None:
    for folder in ("variants", "world_models"):
        names = [path.stem for path in (REPOSITORY / "configs" / folder).glob("*.yaml")]
        looks = {name: style.look(name) for name in names}
        # The tiny and the full SRPO never meet: they share a colour, not a marker.
        assert len(set(looks.values())) == len(names), looks
    assert style.look("pixel") == style.look("srpo-pixel")
    assert style.look("never-heard-of") == style.look("never-heard-of")
