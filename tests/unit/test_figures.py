"""Figures: the right marks at the right places, whole files, one look a variant."""

from __future__ import annotations

import json
import re
import zlib
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from srpo.analysis import exploration, style
from srpo.analysis.comparisons import cells
from srpo.analysis.figures import f1, f2, f4, f5
from srpo.analysis.figures.videos import FPS, HEADER, SIDE, beside
from srpo.analysis.published import read_published
from srpo.analysis.tables import t1, t2, t3, t3_distributions
from srpo.config.sheets import labels, read_sheet
from srpo.results import ResultError
from srpo.results.coverage import load_metrics
from srpo.results.rows import read_rows, write_rows
from srpo.results.schemas import BENCHMARK, EPISODES, PATHS, RL_METRICS
from srpo.rewards.metrics import JS_BINS
from support.drawing import (
    PUBLISHED,
    ROOT,
    SHEET,
    check_latex,
    check_readable,
    plus_runs,
    run,
    t1_of,
    t2_of,
    tex_of,
    texts,
    write_sheet,
    written,
)
from support.synthetic_results import curves_of, libero_run, paths_of, reward_benchmark, rl_run


@pytest.fixture(autouse=True)
def _style() -> object:
    with mpl.rc_context(style.RC):
        yield


def markers(axes: Axes, colour: str) -> list[tuple[float, float]]:
    """Centres of the single markers of a colour (hollow ones by their edge)."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if len(line.get_xdata()) == 1 and line.get_markeredgecolor() == colour
    ]


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
        "Goal\n2 of 10 tasks",
        "Long\n2 of 10 tasks",
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
    table = t3.estimate(scores, read_published(PUBLISHED, "T3"))
    figure = t3.draw(table)
    assert [axes.get_title() for axes in figure.axes] == 2 * [f"{metric} ↑" for metric in t3.METRICS]
    for place in (0, 5):  # the paper's definitions, and ours beneath
        assert len(markers(figure.axes[place], style.look("pixel")[0])) == 1
        assert markers(figure.axes[place + 2], style.look("pixel")[0]) == []  # no failures, no MMD
    published = [round(x, 3) for x, _ in markers(figure.axes[4], style.PUBLISHED)]
    assert published == [2.1, 18.111, 188.799, 169.5]
    assert markers(figure.axes[9], style.PUBLISHED) == []  # nothing published stands beside ours
    assert {"pixel (14 + 0)", "imagebind", "–"} <= texts(figure)
    check_readable(figure)


def test_t3_distributions_figure(tmp_path: Path) -> None:
    scores, _ = t3.read_scores(
        reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.3, "vjepa2-tiny": 0.8}, failures=0), False
    )
    table = t3_distributions.estimate(scores)
    figure = t3_distributions.draw(table)
    assert {"pixel\n(14 + 0)", "vjepa2-tiny\n(14 + 0)", "SC", "Mono", "failures (second)"} <= texts(figure)
    assert figure.get_figwidth() == style.COLUMN_WIDTH
    for axes in figure.axes:  # one histogram each: there are no failures, which is not a bar of height 0
        (drawn,) = axes.collections
        assert not axes.lines
        assert tuple(drawn.get_facecolor()[0][:3]) in [
            mpl.colors.to_rgb(style.look(n)[0]) for n in ("pixel", "vjepa2-tiny")
        ]
        x, y = drawn.get_paths()[0].vertices.T
        area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
        assert area / ((x.max() - x.min()) / JS_BINS) == pytest.approx(100)
    check_readable(figure)


CURVES = {"grpo": [0.1, 0.2, 0.3], "srpo": [0.1, 0.4, 0.8]}


def test_f2_estimates(tmp_path: Path) -> None:
    sheet = dict.fromkeys(CURVES, "label")
    one = [rl_run(tmp_path, "libero_goal", variant, rates) for variant, rates in CURVES.items()]
    metrics, missing = load_metrics(one, sheet, allow_incomplete=False)
    table = f2.estimate(metrics, sheet)
    assert missing == 0
    assert set(table["band"]) == {"wilson"}
    assert (table["low"] <= table["rate"]).all()
    assert len(table) == 6
    many = one + [rl_run(tmp_path, "libero_goal", v, r, seed=1) for v, r in CURVES.items()]
    table = f2.estimate(load_metrics(many, sheet, allow_incomplete=False)[0], sheet)
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
    with pytest.raises(ResultError, match="incomplete: no run of srpo on libero_goal"):
        load_metrics(paths[:1], sheet, allow_incomplete=False)
    with pytest.raises(ResultError, match="an RL step stands twice"):
        load_metrics([*paths, paths[0]], sheet, allow_incomplete=False)
    for path, policy in zip(paths, "ab", strict=True):
        path.with_name("manifest.json").write_text(json.dumps({"inputs": {"policy": policy}}))
    with pytest.raises(ResultError, match=r"grpo.* and .*srpo.* started from different policies"):
        load_metrics(paths, sheet, allow_incomplete=False)
    paths[0].with_name("manifest.json").unlink()  # an older run, which does not say what it started from
    rows = read_rows(paths[1], RL_METRICS).to_dict("records")
    write_rows(paths[1], rows[:2], RL_METRICS)
    with pytest.raises(ResultError, match=r"1 of 6 rows are missing, the first: .*variant=srpo"):
        load_metrics(paths, sheet, allow_incomplete=False)
    assert load_metrics(paths, sheet, allow_incomplete=True)[1] == 1


@pytest.mark.parametrize("steps", [1, 3, 60])
def test_f2_figure(steps: int, tmp_path: Path) -> None:
    sheet = {"grpo": "GRPO", "srpo": "SRPO"}
    suites = ("libero_object", "libero_10")
    paths = [rl_run(tmp_path, s, v, [r] * steps) for s in suites for v, r in (("grpo", 0.0), ("srpo", 1.0))]
    figure = f2.draw(f2.estimate(load_metrics(paths, sheet, allow_incomplete=False)[0], sheet))
    assert [axes.get_title() for axes in figure.axes] == ["Object", "Long", "", ""]
    for axes, unit in zip(figure.axes, (1, 1, 3200, 3200), strict=True):
        curves = {line.get_color(): list(line.get_ydata()) for line in axes.lines}
        assert curves == {style.look("grpo")[0]: [0.0] * steps, style.look("srpo")[0]: [100.0] * steps}
        assert list(axes.lines[0].get_xdata()) == [unit * step for step in range(1, steps + 1)]
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert {"GRPO", "SRPO", "RL step", "control steps", "success of rollouts (%)"} <= texts(figure)
    check_readable(figure)


def test_f2_command_line_writes_whole_files(tmp_path: Path) -> None:
    sheet = write_sheet(tmp_path / "f2.tsv", {"grpo": "GRPO", "srpo": "SRPO"})
    paths = [rl_run(tmp_path, "libero_goal", variant, rates) for variant, rates in CURVES.items()]
    run("f2", tmp_path / "out", "--sheet", sheet, "--metrics", *paths)
    assert written(tmp_path / "out") == {
        *("f2.csv", "f2.png", "f2.pdf", "f2.tex", "f2.html", "f2-efficiency.csv")
    }
    tex = (tmp_path / "out/tables/f2.tex").read_text()
    check_latex(tex)
    assert "at most 300 (Goal) steps, exact rendering at 128 pixels, MuJoCo 3.3.7." in tex
    picture = np.asarray(Image.open(tmp_path / "out/figures/f2.png").convert("RGB"))
    for variant in CURVES:
        colour = np.array(mpl.colors.to_rgb(style.look(variant)[0])) * 255
        assert (np.abs(picture - colour).max(axis=2) < 3).sum() > 50, f"{variant} is not in the picture"
    pdf = (tmp_path / "out/figures/f2.pdf").read_bytes()
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
    run("f2", tmp_path / "out", *arguments)
    rows = read_rows(paths[1], RL_METRICS).to_dict("records")
    write_rows(paths[1], rows[:2], RL_METRICS)
    run("f2", tmp_path / "out", *arguments)
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


def lightness(colour: str) -> float:
    """L* of CIE 1976 (0 black, 100 white): how light a colour's grey looks, by sRGB's transfer curve."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(colour)
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return 116 * luminance ** (1 / 3) - 16 if luminance > 216 / 24389 else luminance * 24389 / 27


def test_what_stands_in_one_picture_is_told_apart_in_grey() -> None:
    """By its marker, or by 20 points of lightness: a fifth of the way from black to white."""
    together = [
        [style.look(name) for name in labels(read_sheet(sheet))]
        for sheet in (ROOT / "configs/experiments").rglob("*.tsv")
    ]
    together += [
        [style.look(name) for name in names]
        for names in (
            ["pixel", "vjepa2-tiny"],
            ["pixel", "vjepa2-vitl", "vjepa2-vitg", "dinov2", "clip", "siglip"],
        )
    ]
    assert len(together) > 8
    for looks in together:
        for (colour, marker), (other, its) in combinations(looks, 2):
            assert marker != its or abs(lightness(colour) - lightness(other)) >= 20, looks
    for colour, _ in map(style.look, ("sft", "grpo", "srpo")):  # on white, and not as faint as the grid
        assert lightness(colour) < 75
    assert lightness("#777777") == pytest.approx(50.03, abs=0.01)  # the middle grey of colour charts


def test_every_variant_of_the_project_has_its_own_look() -> None:
    for folder in ("variants", "world_models"):
        names = [path.stem for path in (ROOT / "configs" / folder).glob("*.yaml")]
        looks = {name: style.look(name) for name in names}
        # The tiny and the full SRPO never meet: they share a colour, not a marker.
        assert len(set(looks.values())) == len(names), looks
    assert style.look("pixel") == style.look("srpo-pixel")
    assert style.look("never-heard-of") == style.look("never-heard-of")


# ----------------------------------------------------------------------------------- F1, F3, F4, F5, videos


def test_efficiency_by_hand(tmp_path: Path) -> None:
    """Three steps at 0, then at 1: reached when a window of three is full of ones, or two thirds of it."""
    sheet = {"grpo": "GRPO", "srpo": "SRPO"}
    paths = [rl_run(tmp_path, "libero_goal", "grpo", [0.0] * 8)]
    paths += [
        rl_run(tmp_path, "libero_goal", "srpo", [0.0] * (3 + s) + [1.0] * (5 - s), seed=s) for s in (0, 1, 2)
    ]
    table = f2.efficiency(load_metrics(paths, sheet, allow_incomplete=False)[0], sheet)
    rows = cells(table.fillna({"level": -1}), "variant", "level", "unit")
    half, most = rows["srpo", 0.5, "RL steps"], rows["srpo", 0.9, "episodes"]
    assert (half["value"], half["low"], half["high"], half["arrived"]) == (6, 5, 7, 3)
    assert (most["value"], most["low"], most["high"], most["censored"]) == (7 * 32, 6 * 32, 8 * 32, False)
    assert rows["srpo", 0.5, "simulated seconds"]["value"] == 6 * 32 * 100 / 20
    # Between steps 1 and 8: half a step's climb and five, four or three whole steps of seven.
    assert rows["srpo", -1, "RL steps"]["value"] == pytest.approx((4.5 + 3.5 + 2.5) / 3 / 7)
    never = rows["grpo", 0.5, "RL steps"]
    assert (never["value"], never["censored"], never["arrived"]) == (8, True, 0)
    tex = tex_of(f2, table)
    assert r"\textgreater{}8" in tex and "3 seeds, 768 rollouts" in tex
    # Three seeds at 4.5, 3.5 and 2.5 of 7 against one at 0: an interval needs two of either.
    assert not table["best"].any()
    paths += [rl_run(tmp_path, "libero_goal", "grpo", [0.0] * 8, seed=1)]
    table = f2.efficiency(load_metrics(paths, sheet, allow_incomplete=False)[0], sheet)
    assert set(table.loc[table["best"], "variant"]) == {"srpo"}
    assert set(table.loc[table["best"], "quantity"]) == {"area"}
    assert tex_of(f2, table).count(r"\textbf") == 1


ABLATED: dict[str, dict[str, object]] = {
    "srpo": {},
    "srpo-pixel": {"model": "clip"},
    "srpo-alpha-0": {"alpha": 0.0},
    "srpo-mean": {"references": "mean"},
    "srpo-both": {"alpha": 0.3, "references": "mean"},
}


def ablations(root: Path) -> tuple[list[Path], Path]:
    paths = []
    for variant, changes in ABLATED.items():
        rl_run(root, "libero_goal", variant, [0.2, 0.5], **changes)  # type: ignore[arg-type]
        paths.append(libero_run(root, "libero_goal", variant, 0.7))
    return paths, write_sheet(root / "sheet.tsv", {variant: variant.upper() for variant in ABLATED})


def test_f3_shows_runs_that_differ_in_the_world_model_alone(tmp_path: Path) -> None:
    paths, sheet = ablations(tmp_path)
    metrics = [path.parents[1] / "metrics.csv" for path in paths]
    run("f3", tmp_path / "out", "--sheet", sheet, "--metrics", *metrics)
    table = pd.read_csv(tmp_path / "out/tables/f3.csv")
    assert dict(zip(table["variant"], table["label"], strict=True)) == {"srpo": "pixel", "srpo-pixel": "clip"}
    with pytest.raises(ResultError, match="incomplete: no run of srpo on libero_goal"):
        run("f3", tmp_path / "out", "--sheet", sheet, "--metrics", *metrics[1:])
    with pytest.raises(ResultError, match="no run of srpo, the baseline"):
        run("f3", tmp_path / "out", "--sheet", sheet, "--allow-incomplete", "--metrics", *metrics[1:])


def test_f5_shows_alpha_and_references_apart(tmp_path: Path) -> None:
    paths, sheet = ablations(tmp_path)
    run("f5", tmp_path / "out", "--sheet", sheet, "--episodes", *paths)
    table = pd.read_csv(tmp_path / "out/tables/f5.csv")
    shown = {
        panel: dict(zip(own["variant"], own["alpha"], strict=True)) for panel, own in table.groupby("panel")
    }
    assert shown == {
        "alpha": {"srpo": 0.8, "srpo-alpha-0": 0.0},
        "references": {"srpo": 0.8, "srpo-mean": 0.8},
    }
    rows = read_rows(paths[2], EPISODES)
    own = table[table["variant"] == "srpo-alpha-0"].iloc[0]
    assert own["successes"] == (rows["status"] == "success").sum()
    figure = f5.draw(table)
    assert {"mean of the successes", f"{own['successes']}/20"} <= texts(figure)
    left, right = figure.axes
    assert [x for x, _ in markers(left, style.look("srpo-alpha-0")[0])] == [0]
    assert markers(right, style.look("srpo-mean")[0])[0][1] == -1
    check_readable(figure)


def test_f5_puts_runs_without_a_progress_reward_at_zero(tmp_path: Path) -> None:
    """GRPO's failures earn what SRPO's would under α = 0; it differs in all else that goes with that."""
    rl_run(tmp_path, "libero_goal", "srpo", [0.2], eps_relative=False)
    rl_run(tmp_path, "libero_goal", "grpo", [0.2])
    paths = [libero_run(tmp_path, "libero_goal", variant, 0.7) for variant in ("srpo", "grpo")]
    sheet = write_sheet(tmp_path / "sheet.tsv", {"srpo": "SRPO", "grpo": "GRPO"})
    run("f5", tmp_path / "out", "--sheet", sheet, "--episodes", *paths)
    table = pd.read_csv(tmp_path / "out/tables/f5.csv")
    assert table[["panel", "variant", "alpha", "references"]].to_numpy().tolist() == [
        ["alpha", "srpo", 0.8, "DBSCAN, eps 0.5"],
        ["alpha", "grpo", 0.0, "nothing"],
        ["references", "srpo", 0.8, "DBSCAN, eps 0.5"],
    ]
    figure = f5.draw(table)
    grpo = table[table["variant"] == "grpo"].iloc[0]
    assert f"GRPO {grpo['successes']}/20" in texts(figure)
    assert [x for x, _ in markers(figure.axes[0], style.look("grpo")[0])] == [0]


def test_f1_chooses_and_shows_the_trajectorys_own_frames(tmp_path: Path) -> None:
    scores = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.3, "vjepa2-tiny": 0.8})
    curves, films = curves_of(scores)
    run("f1", tmp_path / "out", "--curves", *curves, "--trajectories", films)
    table = pd.read_csv(tmp_path / "out/tables/f1.csv")
    frame = read_rows(scores[0], BENCHMARK)
    won = frame[frame["success"] & (frame["task_id"] == 0)].sort_values(["steps", "trajectory"])
    lost = frame[~frame["success"] & (frame["task_id"] == 0)]
    expected = [won["trajectory"].iloc[(len(won) - 1) // 2], lost["trajectory"].iloc[0]]
    assert list(dict.fromkeys(table["trajectory"])) == expected
    strips = f1.read_strips([films], table)
    assert {number: int(strip[0, -1, 0, 0]) for (_, number), strip in strips.items()} == {
        n: n for n in expected
    }
    figure = f1.draw(table, strips)
    assert {"Goal, task 0: failure, 300 steps", "pixel", "vjepa2-tiny"} <= texts(figure)
    drawn = [
        line
        for axes in figure.findobj(Axes)
        for line in axes.lines
        if line.get_color() == style.look("pixel")[0]
    ]
    own = table[(table["representation"] == "pixel") & (table["trajectory"] == expected[0])]
    assert list(drawn[0].get_ydata()) == list(own["progress"])


def test_f1_refuses(tmp_path: Path) -> None:
    curves, films = curves_of(reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.3, "vjepa2-tiny": 0.8}))
    with pytest.raises(ResultError, match=r"incomplete: no curves of \[\('libero_goal', 'vjepa2-tiny'\)\]"):
        run("f1", tmp_path / "out", "--curves", curves[0], "--trajectories", films)
    with pytest.raises(ResultError, match=r"trajectories\.h5: no such file"):
        run("f1", tmp_path / "out", "--curves", *curves, "--trajectories", curves[0])


def two_paths(root: Path, states: int = 10) -> list[Path]:
    return [
        paths_of(libero_run(root, "libero_spatial", v, 0.5, states=states), reach)
        for v, reach in (("sft", 0.1), ("srpo", 0.2))
    ]


def test_f4_measures_and_draws_both_variants(tmp_path: Path) -> None:
    paths, sheet = two_paths(tmp_path), {"sft": "SFT", "srpo": "SRPO"}
    positions, alone = f4.read_paths(paths, sheet)
    table = f4.measure(positions, sheet)
    assert alone == 0
    own = read_rows(paths[1], PATHS)
    episodes = [e[["x", "y", "z"]].to_numpy() for _, e in own.groupby(["task_id", "init_state"])]
    row = table[table["variant"] == "srpo"].iloc[0]
    assert (row["episodes"], row["positions"], row["seed"]) == (20, len(own), 0)
    assert row["occupied_voxels"] == exploration.occupied_voxels(episodes)
    assert row["voxels_at_equal_positions"] > table["voxels_at_equal_positions"][0]
    assert row["p_value"] < 0.01
    figure = f4.draw(table, positions)
    assert {"y, across (m)", "z, height (m)", "positions a cell"} <= texts(figure)
    pictures = [image.get_array() for axes in figure.findobj(Axes) for image in axes.images]
    assert [int(picture.sum()) for picture in pictures] == [table["positions"][0]] * 3 + [
        row["positions"]
    ] * 3


def test_f4_compares_like_with_like(tmp_path: Path) -> None:
    paths, sheet = two_paths(tmp_path), {"sft": "SFT", "srpo": "SRPO"}
    with pytest.raises(ResultError, match="paths of two variants in one suite, not of \\['sft'\\]"):
        f4.read_paths(paths[:1], sheet)
    rows = read_rows(paths[1], PATHS)
    write_rows(paths[1], rows[rows["init_state"] != 3].to_dict("records"), PATHS)
    positions, alone = f4.read_paths(paths, sheet)
    assert alone == 2 and 3 not in set(positions["init_state"])
    with pytest.raises(ResultError, match="2 episodes were run by one of the two"):
        run("f4", tmp_path / "out", "--sheet", write_sheet(tmp_path / "t1.tsv", sheet), "--paths", *paths)


def test_f4_shows_what_both_ran_where_an_evaluation_stopped_early(tmp_path: Path) -> None:
    paths = [
        paths_of(libero_run(tmp_path, "libero_goal", variant, 0.5, states=10, stopped_at=stopped), 0.1)
        for variant, stopped in (("sft", None), ("srpo", 5))
    ]
    sheet = {"sft": "SFT", "srpo": "SRPO"}
    assert f4.read_paths(paths, sheet)[1] == 10
    arguments = ("--sheet", write_sheet(tmp_path / "t1.tsv", sheet), "--paths", *paths)
    run("f4", tmp_path / "out", *arguments)
    table = pd.read_csv(tmp_path / "out/tables/f4.csv")
    assert list(table["episodes"]) == [10, 10]


def test_the_swap_test_seldom_finds_a_difference_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(60):
        first, second = ([rng.normal(0, 0.1, (12, 3)) for _ in range(8)] for _ in range(2))
        p_values.append(f4.swap_test(first, second, rng, swaps=99))
    # Voxels are few whole numbers, so ties make it careful: at most a share of α, but for chance.
    for alpha in (0.05, 0.1, 0.3):
        assert np.mean(np.array(p_values) <= alpha) < alpha + 2.5 * np.sqrt(alpha * (1 - alpha) / 60)
    assert 0 < min(p_values) < 0.3


def test_a_voxel_table_adds_up_to_the_counts() -> None:
    rng = np.random.default_rng(0)
    paths = [rng.normal(0, 0.05, (n, 3)) for n in (5, 9, 30)]
    table = exploration.voxel_table(paths)
    assert list(table.sum(axis=1)) == [5, 9, 30]
    assert list(np.sort(table.sum(axis=0))) == list(exploration.voxel_counts(paths))
    assert exploration.rarefied(table.sum(axis=0), 7) == exploration.expected_voxels(paths, 7)


def test_mmd_draws_agree_with_resampling_trajectories() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.beta(5, 2, 60), rng.beta(2, 4, 40)
    ours = t3.mmd_draws(first, second, np.random.default_rng(1))
    draws = [t3.maximum_mean_discrepancy(rng.choice(first, 60), rng.choice(second, 40)) for _ in range(1_000)]
    percents = [2.5, 50, 97.5]
    assert np.percentile(ours, percents) == pytest.approx(np.percentile(draws, percents), abs=0.04)
    assert not t3.mmd_draws(np.ones(3), np.ones(4), rng).any()


def test_episodes_side_by_side_keep_their_own_time() -> None:
    """Two videos, of one and of two seconds, whose pictures say which frame they are."""
    videos = [(np.stack([np.full((16, 16, 3), 10 * k, np.uint8) for k in range(n)]), 10.0) for n in (10, 20)]
    film = beside(videos, ["SFT: failure", "SRPO: success"])
    assert film.shape == (20, HEADER + SIDE, 2 * SIDE, 3)
    middle = HEADER + SIDE // 2
    left, right = film[:, middle, SIDE // 2, 0], film[:, middle, SIDE + SIDE // 2, 0]
    assert list(right) == [10 * k for k in range(20)]
    assert list(left) == [10 * min(k, 9) for k in range(20)]  # its last frame stays
    assert film[0, :HEADER].min() < 100  # something is written above
    assert FPS == 10
