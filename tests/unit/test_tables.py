"""Tables T1, T2, T3 from result files: what is counted, compared, refused and printed."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from srpo.analysis import comparisons, text, typeset
from srpo.analysis.figures import f2
from srpo.analysis.published import read_published
from srpo.analysis.sequential import confidence_limits
from srpo.analysis.stats import ALPHA, combine, wilson
from srpo.analysis.tables import t1, t2, t2_curves, t3, t3_distributions, t3_truth
from srpo.config import DIMENSIONS, SUITES, ConfigError
from srpo.config.sheets import read_sheet
from srpo.libero_plus import sweep
from srpo.libero_plus import tasks as plus_tasks
from srpo.results import ResultError
from srpo.results.coverage import load_episodes
from srpo.results.rows import read_episodes, read_rows, write_rows
from srpo.results.schemas import BENCHMARK, CURVES, EPISODES, REWARDS
from srpo.rewards.benchmark import SCORES
from srpo.rewards.metrics import (
    jensen_shannon_divergence,
    maximum_mean_discrepancy,
    standardised_mean_difference,
)
from support.drawing import (
    PUBLISHED,
    ROOT,
    SHEET,
    cell,
    check_latex,
    plus_runs,
    run,
    sheet_of,
    t1_of,
    t2_of,
    tex_of,
    write_sheet,
    written,
)
from support.synthetic_results import (
    MAX_STEPS,
    curves_of,
    episode_row,
    libero_run,
    plus_run,
    plus_tasks_file,
    reward_benchmark,
    rl_run,
)

PROTOCOL = (
    "Protocol: official initial states, at most 300 (Goal) steps, exact rendering at 128 pixels, "
    + "MuJoCo 3.3.7."
)


def test_tables_tell_whose_rollouts_ran_beside_updates(tmp_path: Path) -> None:
    """By the training beside each evaluation. A variant of which some runs did and others not is refused."""
    labels = {"sft": "SFT", "grpo": "GRPO", "srpo": "SRPO"}
    sheet = sheet_of(labels)
    curves = [rl_run(tmp_path, "libero_goal", name, [0.5, 0.6]) for name in ("grpo", "srpo")]
    paths = [libero_run(tmp_path, "libero_goal", name, 0.5) for name in labels]
    tasks, plus = plus_runs(tmp_path, {name: {"camera": 0.5, "noise": 0.5} for name in labels})

    def captions() -> list[str]:
        drawn = [
            t1.make(paths, sheet, PUBLISHED, False),
            t2.make(plus, tasks, sheet, PUBLISHED, False),
            f2.make(curves, sheet[1:], False),
        ]
        return [each.typeset.caption for each in drawn if each.typeset is not None]

    def overlap(seed: int) -> None:
        config = tmp_path / f"libero_goal/srpo/seed{seed}/config.yaml"
        settings = yaml.safe_load(config.read_text())
        settings["train"]["overlap"] = 1
        config.write_text(yaml.safe_dump(settings))

    assert not any("beside updates" in caption for caption in captions())
    overlap(0)
    told = "MuJoCo 3.3.7. Rolled out beside updates, one update off policy: SRPO."
    assert [caption.endswith(told) for caption in captions()] == [True] * 3

    curves += [rl_run(tmp_path, "libero_goal", name, [0.5, 0.6], seed=1) for name in ("grpo", "srpo")]
    paths += [libero_run(tmp_path, "libero_goal", name, 0.5, seed=1) for name in ("grpo", "srpo")]
    for draw in (
        lambda: t1.make(paths, sheet, PUBLISHED, False),
        lambda: f2.make(curves, sheet[1:], False),
    ):
        with pytest.raises(ResultError, match=r"runs of srpo were not trained alike: train\.overlap is 0 in"):
            draw()
    overlap(1)
    assert captions()


# -------------------------------------------------------------------------------------------------------- T1


def test_t1_counts_rates_and_average(tmp_path: Path) -> None:
    paths = [
        libero_run(tmp_path, s, v, r)
        for s in ("libero_goal", "libero_10")
        for v, r in (("sft", 0.2), ("srpo", 0.7))
    ]
    table = t1_of(paths)
    rates = []
    for path in paths:
        rows = read_rows(path, EPISODES)
        own = cell(table, variant=rows["variant"][0], suite=rows["suite"][0])
        successes = int((rows["status"] == "success").sum())
        assert (own["successes"], own["episodes"], own["seeds"], own["tasks"]) == (successes, 20, 1, 2)
        estimate = wilson(successes, 20)
        bounds = estimate.value, estimate.low, estimate.high
        assert (own["rate"], own["low"], own["high"]) == pytest.approx(bounds)
        rates.append(estimate.value)
    average = cell(table, variant="srpo", suite="average")
    assert average["rate"] == pytest.approx((rates[1] + rates[3]) / 2)
    assert average["episodes"] == 40
    # Published averages are over the same suites; one for four suites is not put beside one for two.
    one = cell(table, source="published", variant="OpenVLA*-One (T+I)", suite="average")
    assert one["rate"] == pytest.approx((0.596 + 0.173) / 2)
    assert one["label"] == "OpenVLA*-One"


def test_t1_published_averages_as_printed_over_all_suites(tmp_path: Path) -> None:
    table = t1_of([libero_run(tmp_path, s, v, 0.5, states=2) for s in SUITES for v in SHEET])
    assert cell(table, variant="OpenVLA*-One (T+I)", suite="average")["rate"] == pytest.approx(0.489)
    assert list(table["source"]) == sorted(table["source"])  # ours first, published below
    published = table[table["source"] == "published"]
    assert published["low"].isna().all()
    assert published["episodes"].isna().all()


def test_t1_infra_errors_are_no_failures(tmp_path: Path) -> None:
    paths = [libero_run(tmp_path, "libero_goal", v, 1.0, infra_errors=3) for v in SHEET]
    table = t1_of(paths)
    own = cell(table, variant="srpo", suite="libero_goal")
    assert (own["successes"], own["episodes"], own["infra_errors"], own["missing"]) == (17, 17, 3, 0)
    assert own["rate"] == own["mean_over_tasks"] == 1
    assert own["pairs"] == 17
    assert "6 episodes could not be run" in tex_of(t1, table)


def test_t1_shows_intervals_that_hold_whenever_an_evaluation_stopped(tmp_path: Path) -> None:
    """The rates and differences of what ran, with how much that was; nothing of it counts as a failure."""
    paths = [
        libero_run(tmp_path, "libero_goal", "sft", 0.1, states=30),
        libero_run(tmp_path, "libero_goal", "srpo", 0.9, states=30, stopped_at=10),
        libero_run(tmp_path, "libero_goal", "grpo", 0.2, states=30, stopped_at=30),
    ]
    table = t1_of(paths, labels={"sft": "SFT", "grpo": "GRPO", "srpo": "SRPO"})
    rows = {
        name: read_rows(path, EPISODES) for name, path in zip(("sft", "srpo", "grpo"), paths, strict=True)
    }
    ran = rows["srpo"][rows["srpo"]["status"] != "stopped"]
    stopped = cell(table, variant="srpo", suite="libero_goal")
    assert (stopped["episodes"], stopped["missing"], stopped["pairs"]) == (20, 40, 20)
    assert stopped["note"] == "stopped after 20 of 60 episodes"
    rate, difference = comparisons.rate_at_any_time(ran), comparisons.compare_at_any_time(rows["sft"], ran)
    assert (stopped["rate"], stopped["low"], stopped["high"]) == (rate.value, rate.low, rate.high)
    assert stopped["difference"] == difference.estimate.value
    assert (stopped["difference_low"], stopped["p_value"]) == (difference.estimate.low, difference.p_value)
    assert stopped["low"] < wilson(int(stopped["successes"]), 20).low  # wider
    assert np.isnan(stopped["runs_low"])
    whole = cell(table, variant="grpo", suite="libero_goal")
    assert (whole["note"], whole["missing"]) == ("all 60 episodes", 0)
    assert whole["difference_low"] == comparisons.compare_at_any_time(rows["sft"], rows["grpo"]).estimate.low
    own = cell(table, variant="sft", suite="libero_goal")
    assert own["note"] == "" and own["low"] == wilson(int(own["successes"]), 60).low
    tex = tex_of(t1, table)
    assert "SRPO, Goal: stopped after 20 of 60 episodes" in tex.replace("\n", " ")


def test_t1_a_baseline_that_stopped_has_one_interval_and_what_ran_whole_its_own(tmp_path: Path) -> None:
    paths = [
        libero_run(tmp_path, "libero_goal", "srpo", 0.7, states=30, stopped_at=10),
        libero_run(tmp_path, "libero_goal", "grpo", 0.7, states=30),
    ]
    table = t1_of(paths, labels={"srpo": "SRPO", "grpo": "GRPO"})
    ran = read_rows(paths[0], EPISODES)
    rate = comparisons.rate_at_any_time(ran[ran["status"] != "stopped"])
    for suite in ("libero_goal", "average"):
        stopped = cell(table, variant="srpo", suite=suite)
        assert (stopped["low"], stopped["high"]) == pytest.approx((rate.low, rate.high))
    whole = cell(table, variant="grpo", suite="libero_goal")
    assert whole["low"] == wilson(int(whole["successes"]), 60).low and whole["pairs"] == 20


def test_t1_pairs_are_the_same_task_and_state(tmp_path: Path) -> None:
    paths = [libero_run(tmp_path, "libero_goal", v, r) for v, r in (("sft", 0.2), ("srpo", 0.7))]
    keys = ["task_id", "init_state"]
    first, second = (read_rows(p, EPISODES).set_index(keys)["status"] == "success" for p in paths)
    write_rows(paths[1], read_rows(paths[1], EPISODES)[::-1].to_dict("records"), EPISODES)
    own = cell(t1_of(paths), variant="srpo", suite="libero_goal")
    gained, lost = int((~first & second).sum()), int((first & ~second).sum())
    assert own["difference"] == pytest.approx((gained - lost) / 20)
    # Bonett and Price's interval of so many gained and lost: a draw is a multiple of 1/22.
    shift, changed = (gained - lost) / 22, (gained + lost + 2) / 22
    assert own["difference_low"] == pytest.approx(shift - 1.96 * np.sqrt((changed - shift**2) / 22), abs=0.04)


def test_t1_pools_seeds(tmp_path: Path) -> None:
    paths = [libero_run(tmp_path, "libero_goal", "sft", 0.3)]
    paths += [libero_run(tmp_path, "libero_goal", "srpo", 0.7, seed=seed) for seed in (0, 1, 2)]
    table = t1_of(paths)
    own = cell(table, variant="srpo", suite="libero_goal")
    assert (own["episodes"], own["seeds"], own["pairs"]) == (60, 3, 20)
    assert "3 seeds" in tex_of(t1, table)


def test_seeds_that_end_alike_do_not_narrow_an_interval(tmp_path: Path) -> None:
    paths = [libero_run(tmp_path, "libero_goal", "sft", 0.3)]
    paths += [libero_run(tmp_path, "libero_goal", "srpo", 0.7, seed=seed) for seed in range(7)]
    for path in paths[1:]:
        solve(path, set(range(12)))
    own = cell(t1_of(paths), variant="srpo", suite="libero_goal")
    once = wilson(12, 20)
    assert (own["successes"], own["episodes"]) == (84, 140)
    assert (own["rate"], own["low"], own["high"]) == pytest.approx((once.value, once.low, once.high))


def test_t1_over_runs(tmp_path: Path) -> None:
    paths = [libero_run(tmp_path, "libero_goal", "sft", 0.3)]
    paths += [libero_run(tmp_path, "libero_goal", "srpo", r, seed=s) for s, r in enumerate((0.1, 0.5, 0.9))]
    table = t1_of(paths)
    own = cell(table, variant="srpo", suite="libero_goal")
    rates = [
        [(own["status"] == "success").mean() for _, own in read_rows(path, EPISODES).groupby("task_id")]
        for path in paths
    ]
    first, runs = np.array(rates[:1]), np.array(rates[1:])
    assert own["iqm"] == pytest.approx(np.sort(runs, axis=None)[1:-1].mean())
    wins = (runs[:, None] > first) + (runs[:, None] == first) / 2
    assert own["improvement"] == pytest.approx(wins.mean())
    # Seeds that differ this much leave far more open than their pooled episodes would say.
    assert own["runs_high"] - own["runs_low"] > 2 * (own["high"] - own["low"])
    assert own["runs_low"] < own["rate"] < own["runs_high"]
    assert np.isnan(cell(table, variant="sft", suite="libero_goal")["runs_low"])


def solve(path: Path, episodes: set[int]) -> None:
    """Rewrite a file of episodes: those of these numbers are successes, the others failures."""
    rows = read_rows(path, EPISODES)
    rows["status"] = ["success" if number in episodes else "failure" for number in range(len(rows))]
    write_rows(path, rows.to_dict("records"), EPISODES)


@pytest.mark.parametrize(
    ("method", "bold"),
    [
        (set(range(16)), True),  # six more, on top of the same ten: Wilson's intervals overlap, places decide
        (set(range(6, 20)), False),  # four more, but ten won for six lost
        (set(range(10)), False),  # a tie
    ],
)
def test_t1_prints_in_bold_only_what_the_pairs_support(method: set[int], bold: bool, tmp_path: Path) -> None:
    paths = [libero_run(tmp_path, s, v, 0.5) for s in ("libero_goal", "libero_10") for v in SHEET]
    for path, solved in zip(paths, (set(range(10)), method) * 2, strict=True):
        solve(path, solved)
    table = t1_of(paths)
    ours = table[table["source"] == "ours"].set_index(["variant", "suite"])
    assert ours.loc[("srpo", "libero_goal"), "low"] < ours.loc[("sft", "libero_goal"), "high"]
    best = table.loc[table["best"], ["source", "variant", "suite"]].to_numpy().tolist()
    columns = ("libero_goal", "libero_10", "average")
    assert best == ([["ours", "srpo", column] for column in columns] if bold else [])
    shown = t1.layout(table, "")
    assert typeset.to_latex(shown).count(r"\textbf{80.0}") == typeset.to_html(shown).count("<b>80.0</b>")
    assert typeset.to_latex(shown).count(r"\textbf") == typeset.to_html(shown).count("<b>") == 3 * bold


def test_nothing_is_in_bold_where_there_is_no_second(tmp_path: Path) -> None:
    path = libero_run(tmp_path, "libero_goal", "srpo", 1.0)
    table = t1_of([path], incomplete=True)  # the sheet's other variant did not run
    assert not table["best"].any()
    assert r"SFT & not run" in tex_of(t1, table)


def test_t1_refuses_and_allows_incomplete(tmp_path: Path) -> None:
    paths = [libero_run(tmp_path, "libero_goal", variant, 0.5) for variant in SHEET]
    rows = read_rows(paths[1], EPISODES).to_dict("records")
    write_rows(paths[1], rows[:-2], EPISODES)
    with pytest.raises(ResultError, match="incomplete: 2 of 40 rows are missing"):
        t1_of(paths)
    with pytest.raises(ResultError, match="incomplete: no run of srpo on libero_goal"):
        t1_of(paths[:1])
    table = t1_of(paths, incomplete=True)
    assert cell(table, variant="srpo", suite="libero_goal")["missing"] == 2
    assert cell(table, variant="sft", suite="libero_goal")["missing"] == 0
    alone = t1_of(paths[:1], incomplete=True)
    assert np.isnan(cell(alone, variant="srpo", suite="libero_goal")["rate"])
    assert r"SRPO & not run \\" in tex_of(t1, alone)


def test_t1_refuses_more_than_was_asked_for(tmp_path: Path) -> None:
    paths = [libero_run(tmp_path, "libero_goal", variant, 0.5) for variant in SHEET]
    rows = read_rows(paths[1], EPISODES).to_dict("records")
    extra = episode_row("libero_goal", variant="srpo", init_state=30)
    write_rows(paths[1], [*rows, extra], EPISODES)
    with pytest.raises(
        ResultError, match=r"1 rows that their config does not ask for, the first: .*init_state=30"
    ):
        t1_of(paths, incomplete=True)


def test_t1_refuses_unknown_variants_and_other_benchmarks(tmp_path: Path) -> None:
    paths = [libero_run(tmp_path, "libero_goal", variant, 0.5) for variant in (*SHEET, "grpo")]
    with pytest.raises(ResultError, match=r"variants \['grpo'\] are not in the sheet"):
        t1_of(paths)
    expected = pd.DataFrame({"suite": [], "variant": []})
    with pytest.raises(ResultError, match=r"column benchmark: \['libero'\] in a table of libero_plus"):
        load_episodes(paths[:2], "libero_plus", SHEET, expected, allow_incomplete=False)


def test_t1_command_line(tmp_path: Path) -> None:
    sheet = write_sheet(tmp_path / "t1.tsv", {"sft": "SFT", "srpo": "SRPO (50% & more)"})
    paths = [libero_run(tmp_path, "libero_goal", variant, 0.5) for variant in SHEET]
    run("t1", tmp_path / "out", "--sheet", sheet, "--episodes", *paths)
    assert written(tmp_path / "out") == {"t1.csv", "t1.tex", "t1.html", "t1.png", "t1.pdf"}
    drawn = tmp_path / "out" / "tables"
    assert len(pd.read_csv(drawn / "t1.csv").query("source == 'ours'")) == 4
    tex = (drawn / "t1.tex").read_text()
    check_latex(tex)
    assert r"SRPO (50\% \& more)" in tex
    assert "Goal: 2 of 10 tasks only." in tex
    caption = re.search(r"\\caption\{(.*)\}", tex)
    assert caption and caption[1] == f"Success on LIBERO in percent, greedy decoding. {PROTOCOL}"
    html = (drawn / "t1.html").read_text()
    assert "SRPO (50% &amp; more)" in html and "MuJoCo 3.3.7." in html


def test_a_refusal_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    sheet, path = write_sheet(tmp_path / "t1.tsv"), libero_run(tmp_path, "libero_goal", "sft", 0.5)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "srpo", "draw", "t1", "--sheet", sheet, "--episodes", path]
    command += ["--published", PUBLISHED, "--out", out]
    refused = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    assert (refused.returncode, refused.stderr) == (
        65,
        "error: incomplete: no run of srpo on libero_goal\n",
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name\tlabel\trole\tvariant\tset\n",
        "name,label,role,variant,set\nsft,SFT,baseline,sft,\n",
        "name\tlabel\trole\tvariant\tset\nsft\tA\tbaseline\tsft\nsft\tB\tours\tsft\n",
        "name\tlabel\trole\tvariant\tset\nsft\t\tbaseline\tsft\n",
    ],
)
def test_broken_sheets_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "sheet.tsv").write_text(text)
    path = libero_run(tmp_path, "libero_goal", "sft", 0.5)
    with pytest.raises(ConfigError, match=r"sheet\.tsv"):
        run("t1", tmp_path / "out", "--sheet", tmp_path / "sheet.tsv", "--episodes", path)


def test_the_projects_own_sheets_are_sound() -> None:
    sheets = sorted((ROOT / "configs" / "experiments").rglob("*.tsv"))
    assert sheets
    for path in sheets:
        assert read_sheet(path)


# -------------------------------------------------------------------------------------------------------- T2


def test_t2_dimensions_totals_and_what_did_not_run(tmp_path: Path) -> None:
    tasks, paths = plus_runs(
        tmp_path, {"sft": {"camera": 0, "noise": 0.5}, "srpo": {"camera": 1, "noise": 0.5}}
    )
    table = t2_of(tasks, paths)
    camera, noise, macro, micro = (
        cell(table, variant="srpo", dimension=d) for d in ("camera", "noise", "macro", "micro")
    )
    assert (camera["successes"], camera["episodes"], camera["difference"]) == (12, 12, 1)
    assert camera["p_value"] < 0.001
    assert macro["rate"] == pytest.approx((camera["rate"] + noise["rate"]) / 2)
    size = t2.benchmark_sizes(["libero_goal"])
    total_tasks = size["camera"] + size["noise"]
    assert micro["rate"] == pytest.approx(
        (camera["rate"] * size["camera"] + noise["rate"] * size["noise"]) / total_tasks
    )
    assert micro["benchmark_tasks"] == total_tasks
    assert macro["note"] == "over 2 of 7 dimensions"
    assert macro["difference"] == pytest.approx((1 + noise["difference"]) / 2)
    bounds = combine([wilson(12, 12), wilson(noise["successes"], 12)])
    assert (macro["low"], macro["high"]) == pytest.approx((bounds.low, bounds.high))
    for total in (macro, micro):  # interval and p are of the same mean
        assert total["difference_low"] > 0 and total["p_value"] < 0.05 and total["pairs"] == 24
    assert micro["difference"] == pytest.approx(
        (size["camera"] + noise["difference"] * size["noise"]) / total_tasks
    )
    for dimension in set(DIMENSIONS) - {"camera", "noise"}:
        absent = cell(table, variant="srpo", dimension=dimension)
        assert absent["note"] == "not run"
        assert pd.isna(absent["rate"])
        assert pd.isna(absent["episodes"])
    row = next(line for line in tex_of(t2, table).splitlines() if line.startswith("SRPO &"))
    assert row.count("not run") == 5
    one = cell(table, variant="OpenVLA*-One (zero-shot)", dimension="macro")
    assert one["rate"] == pytest.approx((0.032 + 0.064) / 2)


def test_t2_compares_no_total_of_other_dimensions(tmp_path: Path) -> None:
    tasks, paths = plus_runs(
        tmp_path, {"sft": {"camera": 0.5, "noise": 0.5}, "srpo": {"camera": 1, "noise": None}}
    )
    table = t2_of(tasks, paths)
    assert cell(table, variant="srpo", dimension="camera")["pairs"] == 12
    for total in ("macro", "micro"):
        row = cell(table, variant="srpo", dimension=total)
        assert pd.isna(row["rate"]) and pd.isna(row["difference"]) and pd.isna(row["p_value"])


def test_t2_prints_in_bold_only_what_the_pairs_support(tmp_path: Path) -> None:
    tasks, paths = plus_runs(
        tmp_path, {"sft": {"camera": 0, "noise": 0.5}, "srpo": {"camera": 1, "noise": 0.5}}
    )
    table = t2_of(tasks, paths)
    noise = [cell(table, variant=variant, dimension="noise") for variant in SHEET]
    # Twelve tasks of twelve are beyond doubt, and so are the totals that hold them; a few of noise's are not.
    assert 0 < abs(noise[0]["successes"] - noise[1]["successes"]) < 5
    best = table[table["best"]]
    assert set(best["variant"]) == {"srpo"} and set(best["dimension"]) == {"camera", "macro", "micro"}
    assert tex_of(t2, table).count(r"\textbf") == 3


def test_t2_shows_intervals_that_hold_whenever_a_shard_stopped(tmp_path: Path) -> None:
    tasks = plus_tasks_file(tmp_path / "tasks.csv", ("camera", "noise"))
    rates = {"sft": {"camera": 0.1, "noise": 0.1}, "srpo": {"camera": 1.0, "noise": 1.0}}
    stopped = {"sft": None, "srpo": 4}
    paths = [
        plus_run(tmp_path, "libero_goal", name, rates[name], tasks, stopped_at=stopped[name])
        for name in rates
    ]
    table = t2_of(tasks, paths)
    camera, macro, micro, sft = (
        cell(table, variant=variant, dimension=dimension)
        for variant, dimension in (
            ("srpo", "camera"),
            ("srpo", "macro"),
            ("srpo", "micro"),
            ("sft", "camera"),
        )
    )
    # Of 24 tasks: a shard has ten of the camera, one two of it and eight of noise, one four of noise.
    assert (camera["episodes"], camera["asked"], camera["missing"], camera["pairs"]) == (6, 12, 6, 6)
    assert (macro["episodes"], macro["asked"], macro["missing"]) == (12, 24, 12)
    ends = [confidence_limits(np.ones(ran), ALPHA / 2)[0] for ran in (4, 2)]
    assert (camera["rate"], camera["high"]) == (1, 1)
    assert camera["low"] == pytest.approx((10 * ends[0] + 2 * ends[1]) / 12)
    four = [confidence_limits(np.ones(ran), ALPHA / 4)[0] for ran in (4, 2, 2, 4)]
    each = np.dot([10, 2], four[:2]) / 12, np.dot([8, 4], four[2:]) / 12
    assert macro["low"] == pytest.approx(np.mean(each))
    sizes = t2.benchmark_sizes(["libero_goal"])
    assert micro["low"] == pytest.approx(np.average(each, weights=[sizes["camera"], sizes["noise"]]))
    assert pd.isna(sft["asked"]) and sft["low"] == pytest.approx(wilson(int(sft["successes"]), 12).low)
    text = tex_of(t2, table).replace("\n", " ")
    assert "SRPO, 12 of 24 episodes" in text
    whole = t2_of(tasks, [paths[0], plus_run(tmp_path, "libero_goal", "srpo", rates["srpo"], tasks)])
    assert whole["asked"].isna().all() and "shards" not in tex_of(t2, whole)


def test_t2_a_sweep_may_stop_before_any_task_of_a_dimension(tmp_path: Path) -> None:
    tasks = plus_tasks_file(tmp_path / "tasks.csv", ("camera", "noise"))
    rates = {"sft": {"camera": 0.1, "noise": 0.1}, "srpo": {"camera": 1.0, "noise": 1.0}}
    paths = [
        plus_run(tmp_path, "libero_goal", name, rate, tasks, stopped_at=4 if name == "srpo" else None)
        for name, rate in rates.items()
    ]
    rows = read_rows(paths[1], EPISODES)
    noise = rows["perturbation"] == "noise"
    rows.loc[noise, "status"], rows.loc[noise, "steps"] = "stopped", 0
    rows.loc[noise, "error"] = "decided"
    write_rows(paths[1], rows.to_dict("records"), EPISODES)
    table = t2_of(tasks, paths)
    macro, nothing = (cell(table, variant="srpo", dimension=name) for name in ("macro", "noise"))
    assert nothing["episodes"] == 0 and np.isnan(nothing["rate"])
    assert macro["note"] == "over 1 of 7 dimensions; stopped before any of noise"


def test_t2_a_totals_p_is_of_the_total(tmp_path: Path) -> None:
    """Camera all won, light all lost: the macro mean is at 0, micro weighs camera more."""
    tasks = plus_tasks_file(tmp_path / "tasks.csv", ("camera", "light"))
    rates = {"sft": {"camera": 0, "light": 1}, "srpo": {"camera": 1, "light": 0}}
    paths = [
        plus_run(tmp_path, "libero_goal", name, rate, tasks, seed=seed)
        for name, rate in rates.items()
        for seed in ((0, 1, 2) if name == "srpo" else (0,))
    ]
    table = t2_of(tasks, paths)
    camera, macro, micro = (cell(table, variant="srpo", dimension=d) for d in ("camera", "macro", "micro"))
    assert (camera["episodes"], camera["pairs"]) == (36, 12)
    assert camera["low"] == pytest.approx(wilson(12, 12).low)  # three seeds that agree are one
    assert macro["difference"] == pytest.approx(0) and macro["p_value"] > 0.5
    size = t2.benchmark_sizes(["libero_goal"])
    assert micro["difference"] == pytest.approx(
        (size["camera"] - size["light"]) / (size["camera"] + size["light"])
    )
    assert (micro["p_value"] < 0.05) == (micro["difference_low"] > 0)


def test_t2_unavailable_tasks_are_counted_apart_and_styles_in_no_total(tmp_path: Path) -> None:
    tasks = plus_tasks_file(tmp_path / "tasks.csv", ("camera", "light", "layout"))
    rates = {"camera": 1, "light": None, "layout": 1, "style_light": 0}
    rates |= {"style_background": 0, "style_distractors": 0}
    paths = [plus_run(tmp_path, "libero_goal", variant, rates, tasks) for variant in ("sft", "srpo")]
    rows = read_rows(paths[1], EPISODES)
    layout = rows.index[rows["perturbation"] == "layout"][:5]
    rows.loc[layout, ["status", "error"]] = ["unavailable", "needs the asset pack"]
    write_rows(paths[1], rows.to_dict("records"), EPISODES)
    table = t2_of(tasks, paths)

    light = cell(table, variant="srpo", dimension="light")
    assert (light["note"], light["unavailable"]) == ("unavailable", 12)
    assert pd.isna(light["rate"]) and pd.isna(light["episodes"])
    some = cell(table, variant="srpo", dimension="layout")
    assert (some["episodes"], some["unavailable"], some["pairs"]) == (7, 5, 7)
    assert (some["rate"], some["note"]) == (1, "without 5 unavailable tasks")
    for total in t2.TOTALS:
        whole = cell(table, variant="srpo", dimension=total)
        assert (whole["rate"], whole["note"]) == (1, "over 2 of 7 dimensions")
        assert (whole["episodes"], whole["unavailable"], whole["pairs"]) == (19, 17, 19)
    style = cell(table, variant="srpo", dimension="style_light")
    assert (style["rate"], style["episodes"]) == (0, 12)
    text = tex_of(t2, table)
    check_latex(text)
    assert "Light (style)" in text and "in no total" in text and "17 tasks are unavailable" in text
    t2.draw(table)
    without = tex_of(t2, table[~table["dimension"].str.startswith("style_")])
    assert "(style)" not in without


def test_t2_curves(tmp_path: Path) -> None:
    tasks = plus_tasks_file(tmp_path / "tasks.csv", ("camera", "robot", "noise", "light"))
    rates = {"camera": 1, "robot": 0, "noise": 0.5, "light": None}
    paths = [plus_run(tmp_path, "libero_goal", variant, rates, tasks) for variant in ("sft", "srpo")]
    episodes = read_episodes(paths)
    names = sorted(set(episodes["perturbation_task"]))
    table = t2_curves.estimate(episodes, SHEET, {name: 1 + k % 5 for k, name in enumerate(names)})
    camera = table[(table["variant"] == "sft") & (table["curve"] == "camera")]
    assert list(camera["value"]) == [15] and list(camera["rate"]) == [1]  # views of 1…6 degrees
    assert set(table.loc[table["curve"] == "robot", "value"]) == {0.1}
    noise = table[(table["variant"] == "srpo") & (table["curve"] == "noise")]
    assert noise["episodes"].sum() == 12 and noise["value"].is_monotonic_increasing
    own = episodes[(episodes["variant"] == "srpo") & (episodes["perturbation"] == "noise")]
    assert noise["successes"].sum() == (own["status"] == "success").sum()
    levels = table[(table["variant"] == "srpo") & (table["curve"] == "difficulty: noise")]
    assert levels["episodes"].sum() == 12 and set(levels["value"]) <= {1, 2, 3, 4, 5}
    assert not table["curve"].str.contains("light").any()  # unavailable, and without a scale
    sheet = write_sheet(tmp_path / "t2.tsv")
    run("t2_curves", tmp_path / "out", "--sheet", sheet, "--tasks", tasks, "--episodes", *paths)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_view_0_0_130_0_0_initstate_0", 0),
        ("_view_15_0_100_0_0_initstate_0", 15),
        ("_view_345_0_100_0_0_initstate_0", 15),
        ("_view_0_15_100_4_8_initstate_0", 15),
        ("_view_15_15_100_0_0_initstate_0", 30),  # 21 degrees
        ("_view_60_15_100_0_0_initstate_0", 75),  # 61 degrees
        ("_view_0_0_100_0_0_initstate_301", 0.4),
        ("_view_0_0_100_0_0_initstate_0_noise_37", 7),
        ("_moved_level4_sample1", 4),
        ("_add_4", None),
        ("_light_4", None),
    ],
)
def test_magnitudes(name: str, value: float | None) -> None:
    assert t2_curves.magnitude(plus_tasks.parse(f"turn_on_the_stove{name}")) == value


def test_classification_file(tmp_path: Path) -> None:
    file = tmp_path / "task_classification.json"
    file.write_text(
        '{"libero_goal": [{"id": 1, "name": "a_light_1", "category": "Light", "difficulty_level": 3},'
        ' {"id": 2, "name": "a_light_2", "category": "Light", "difficulty_level": null}]}'
    )
    assert t2_curves.read_classification(file) == {"a_light_1": 3}
    file.write_text('{"libero_goal": [{"id": 1}]}')
    assert t2_curves.read_classification(file) == {}
    file.write_text("[1]")
    with pytest.raises(ResultError, match=r"task_classification\.json: not LIBERO-Plus's"):
        t2_curves.read_classification(file)


def test_merging_a_sweep_asks_for_every_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = plus_tasks_file(tmp_path / "tasks.csv", ("camera", "light"))
    path = plus_run(tmp_path, "libero_goal", "sft", {"camera": 1, "light": None}, tasks)
    rows = read_rows(path, EPISODES).to_dict("records")
    first, second = tmp_path / "shard-0.parquet", tmp_path / "shard-1.parquet"
    write_rows(first, rows[:10], EPISODES)
    write_rows(second, rows[10:], EPISODES)
    config = path.parent / "config.yaml"
    sweep.merge_shards(config, tasks, [first, second], tmp_path / "whole.parquet")
    assert len(read_rows(tmp_path / "whole.parquet", EPISODES)) == 24
    assert capsys.readouterr().out == "camera: 12 success\nlight: 12 unavailable\n"
    with pytest.raises(ResultError, match="14 of 24 rows are missing"):
        sweep.merge_shards(config, tasks, [first], tmp_path / "part.parquet")
    assert not (tmp_path / "part.parquet").exists()
    with pytest.raises(ResultError, match="10 episodes stand twice"):
        sweep.merge_shards(config, tasks, [first, first, second], tmp_path / "part.parquet")


def test_t2_sizes_are_the_benchmarks() -> None:
    sizes = t2.benchmark_sizes(list(SUITES))
    assert [sizes[dimension] for dimension in ("camera", "robot", "language", "noise")] == [
        1599,
        1550,
        1537,
        1601,
    ]
    assert [sizes[dimension] for dimension in ("layout", "background", "light")] == [1525, 1076, 1142]
    assert sum(sizes.values()) == 10_030


def test_t2_published_totals_are_macro_or_micro_as_printed() -> None:
    rng = np.random.default_rng(0)
    episodes = pd.DataFrame(
        episode_row(
            benchmark="libero_plus",
            variant=variant,
            perturbation=dimension,
            perturbation_task=f"{dimension} {i}",
            status=rng.choice(["success", "failure"]),
        )
        for variant in SHEET
        for dimension in DIMENSIONS
        for i in range(5)
    )
    nothing = pd.DataFrame(columns=["variant", "perturbation"])
    table = t2.estimate(episodes, nothing, sheet_of(SHEET), read_published(PUBLISHED, "T2"))

    def totals(variant: str) -> list[float]:
        return [cell(table, variant=variant, dimension=total)["rate"] for total in t2.TOTALS]

    assert totals("OpenVLA*-One + online SRPO (zero-shot)") == pytest.approx([0.596, 0.573])
    assert totals("OpenVLA-OFT") == pytest.approx([np.nan, 0.696], nan_ok=True)
    assert totals("OpenVLA*-One (zero-shot)") == pytest.approx([0.194, np.nan], nan_ok=True)
    check_latex(tex_of(t2, table))


def test_t2_refuses_another_sample_of_tasks(tmp_path: Path) -> None:
    tasks, paths = plus_runs(tmp_path, {"sft": {"camera": 0}, "srpo": {"camera": 1}})
    rows = read_rows(paths[1], EPISODES).to_dict("records")
    write_rows(paths[1], rows[1:], EPISODES)
    with pytest.raises(ResultError, match="1 of 24 rows are missing"):
        t2_of(tasks, paths)
    assert cell(t2_of(tasks, paths, incomplete=True), variant="srpo", dimension="camera")["missing"] == 1
    rows[0]["perturbation_task"] = rows[0]["perturbation_task"].replace("_view_", "_view_9")
    write_rows(paths[1], rows, EPISODES)
    with pytest.raises(ResultError, match="config does not ask for"):
        t2_of(tasks, paths)


def test_t2_command_line(tmp_path: Path) -> None:
    tasks, paths = plus_runs(tmp_path, {"sft": {"camera": 0, "noise": 0}, "srpo": {"camera": 0, "noise": 0}})
    arguments = ["--sheet", write_sheet(tmp_path / "t2.tsv"), "--episodes", *paths]
    run("t2", tmp_path / "t2", *arguments, "--tasks", tasks)
    check_latex((tmp_path / "t2/tables/t2.tex").read_text())
    with pytest.raises(ResultError, match=r"absent\.csv"):
        run("t2", tmp_path / "no", *arguments, "--tasks", tmp_path / "absent.csv")


# -------------------------------------------------------------------------------------------------------- T3


def test_t3_metrics_counts_and_intervals(tmp_path: Path) -> None:
    paths = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.35, "vjepa2-tiny": 0.8})
    scores, missing = t3.read_scores(paths, allow_incomplete=False)
    assert missing == 0
    published = read_published(PUBLISHED, "T3")
    table = t3.estimate(scores, published)
    own = scores[scores["representation"] == "pixel"]
    successes, failures = own[own["success"]], own[~own["success"]]
    mine = {"representation": "pixel", "source": "ours", "definitions": "ours"}
    sc = cell(table, metric="SC", **mine)
    assert sc["value"] == pytest.approx(successes["spearman"].mean())
    assert (sc["successes"], sc["failures"]) == (14, 6)
    smd = cell(table, metric="SMD", **mine)
    expected = standardised_mean_difference(
        successes["final_progress"].to_numpy(), failures["final_progress"].to_numpy()
    )
    assert smd["value"] == expected
    assert smd["low"] < smd["value"] < smd["high"]
    matched = cell(table, metric="SMD, equal length", **mine)
    assert matched["value"] == standardised_mean_difference(
        successes["matched_progress"].to_numpy(), failures["matched_progress"].to_numpy()
    )
    # Lengths are the same under every representation, and counted once.
    length = cell(table, representation=t3.LENGTH, metric="SMD", source="control")
    assert (length["successes"], length["failures"]) == (14, 6)
    limit = failures["steps"].max()
    assert length["value"] == pytest.approx(
        standardised_mean_difference(
            *(1 - rows["steps"].to_numpy() / limit for rows in (successes, failures))
        )
    )
    pd.testing.assert_frame_equal(table, t3.estimate(scores, published))  # seeded
    assert cell(table, representation="pixel", metric="SMD", source="published")["value"] == 2.1
    assert set(table.loc[table["source"] == "published", "definitions"]) == {"paper"}
    check_latex(tex_of(t3, table))


def test_t3_by_the_papers_definitions_is_per_task_squared_and_natural(tmp_path: Path) -> None:
    paths = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.35, "vjepa2-tiny": 0.8})
    scores, _ = t3.read_scores(paths, allow_incomplete=False)
    table = t3.estimate(scores, read_published(PUBLISHED, "T3"))
    own = scores[scores["representation"] == "pixel"]
    tasks = [part for _, part in own.groupby("task_id")]
    assert len(tasks) == 2
    expected: dict[str, list[float]] = {"SC": [], "Mono": [], "MMD": [], "JS": [], "SMD": []}
    for part in tasks:
        won, lost = part[part["success"]], part[~part["success"]]
        pair = won["paper_final_progress"].to_numpy(float), lost["paper_final_progress"].to_numpy(float)
        expected["SC"].append(won["paper_spearman"].mean())
        expected["Mono"].append(won["paper_monotonicity"].mean())
        expected["MMD"].append(maximum_mean_discrepancy(*pair) ** 2)
        expected["JS"].append(jensen_shannon_divergence(*pair) * np.log(2))
        expected["SMD"].append(standardised_mean_difference(*pair))
    for metric, values in expected.items():
        row = cell(table, representation="pixel", source="ours", definitions="paper", metric=metric)
        assert row["value"] == pytest.approx(np.mean(values)), metric
        assert row["low"] <= row["value"] + 1e-9 and row["high"] >= row["value"] - 1e-9
    page = typeset.to_html(t3.layout(table, "Protocol."))
    assert "other definitions, ours" in Page(page).words["caption"][0]
    published = next(row for row in Page(page).rows if row and row[0] == ["imagebind"])
    assert [bool(words) for words in published[1:]] == [True] * 5 + [False] * 5


def test_t3_of_older_scores_has_none_of_the_papers_definitions(tmp_path: Path) -> None:
    path = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.35})[0]
    rows = pd.read_parquet(path)
    rows.drop(columns=[name for name in rows if name.startswith("paper_")]).to_parquet(path)
    table = t3.estimate(t3.read_scores([path], allow_incomplete=False)[0], read_published(PUBLISHED, "T3"))
    ours = table[table["source"] == "ours"].set_index(["definitions", "metric"])["value"]
    assert ours["paper"].isna().all() and ours["ours"].notna().all()
    t3.draw(table)
    check_latex(tex_of(t3, table))


def test_t3_prints_in_bold_only_what_the_same_trajectories_support(tmp_path: Path) -> None:
    paths = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.35, "vjepa2-tiny": 0.8}, successes=40)
    published = read_published(PUBLISHED, "T3")
    table = t3.estimate(t3.read_scores(paths, allow_incomplete=False)[0], published)
    best = table[table["best"] & (table["definitions"] == "ours")]  # the made-up scores are better by these
    assert set(best["representation"]) == {"vjepa2-tiny"}
    assert {"SC", "SMD", "MMD"} <= set(best["metric"])
    assert set(table.loc[table["best"], "source"]) == {"ours"}
    assert tex_of(t3, table).count(r"\textbf") == table["best"].sum()
    # The same numbers under both: whatever the intervals, their difference is none.
    rows = read_rows(paths[0], BENCHMARK).assign(representation="vjepa2-tiny")
    write_rows(paths[1], rows.to_dict("records"), BENCHMARK)
    table = t3.estimate(t3.read_scores(paths, allow_incomplete=False)[0], published)
    assert not table["best"].any()


def test_t3_compares_on_the_trajectories_that_both_scored(tmp_path: Path) -> None:
    """A broken embedding takes its trajectory out of the comparison, not the comparison apart."""
    paths = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.35, "vjepa2-tiny": 0.8}, successes=40)
    rows = read_rows(paths[0], BENCHMARK)
    broken = list(SCORES)
    rows.loc[0, broken] = np.nan
    write_rows(paths[0], rows.to_dict("records"), BENCHMARK)
    scores, _ = t3.read_scores(paths, allow_incomplete=False)
    table = t3.estimate(scores, read_published(PUBLISHED, "T3"))
    ours = {"source": "ours", "definitions": "ours"}
    assert cell(table, **ours, representation="pixel", metric="SC")["successes"] == 39
    assert cell(table, **ours, representation="vjepa2-tiny", metric="SMD")["best"]


def test_t3_distributions_are_the_trajectories_counted(tmp_path: Path) -> None:
    paths = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.35, "vjepa2-tiny": 0.8})
    scores, _ = t3.read_scores(paths, allow_incomplete=False)
    table = t3_distributions.estimate(scores)
    own = scores[(scores["representation"] == "pixel") & ~scores["success"]]
    counted = table[(table["representation"] == "pixel") & (table["outcome"] == "failure")]
    final = counted[counted["quantity"] == "final_progress"]
    third = final[final["low"].round(9) == 0.2].iloc[0]
    assert third["trajectories"] == own["final_progress"].between(0.2, 0.3, inclusive="left").sum() > 0
    sums = table.groupby(["representation", "quantity", "outcome"])["trajectories"].sum()
    assert sums["pixel", "final_progress"].to_dict() == {"success": 14, "failure": 6}
    assert sums["vjepa2-tiny", "spearman"].to_dict() == {"success": 14, "failure": 0}


def test_rank_correlation_with_the_truth() -> None:
    way = np.array([3.0, 2, 1, 0])
    assert t3_truth.rank_correlation(np.array([0.0, 0.1, 0.5, 0.6]), way) == pytest.approx(1)
    assert t3_truth.rank_correlation(np.array([0.6, 0.5, 0.1, 0.0]), way) == pytest.approx(-1)
    # Ranks 1, 2, 4, 3 against 1, 2, 3, 4: 1 − 6·2/(4·15).
    assert t3_truth.rank_correlation(np.array([0.0, 0.1, 0.6, 0.5]), way) == pytest.approx(0.8)
    assert t3_truth.rank_correlation(np.ones(4), way) == 0
    assert np.isnan(t3_truth.rank_correlation(way, np.ones(4)))


def test_concordance_is_of_pairs_whose_ways_differ() -> None:
    # Pairs (first, second): right order, tie of rewards, wrong order; the last two ways are equal.
    assert t3_truth.concordance(np.array([0.9, 0.2]), np.array([0.1, 0.5])) == (1, 1)
    assert t3_truth.concordance(np.array([0.2, 0.2]), np.array([0.1, 0.5])) == (0.5, 1)
    assert t3_truth.concordance(np.array([0.2, 0.9]), np.array([0.1, 0.5])) == (0, 1)
    assert t3_truth.concordance(np.array([0.9, 0.5, 0.2]), np.array([0.1, 0.5, 0.5])) == (2, 2)
    assert t3_truth.concordance(np.array([0.9]), np.array([0.1])) == (0, 0)


def failures(step: int, group: int, rewards: list[float], ways: list[float]) -> list[dict[str, Any]]:
    shared = {"step": step, "group": group, "suite": "libero_goal", "init_state": 0, "episode_seed": 0}
    shared |= {"steps": 9, "success": False, "advantage": 0.0, "kept": True, "task_id": 3}
    return [
        {**shared, "reward": reward, "distance": 1 - reward, "distance_to_goal": way}
        for reward, way in zip(rewards, ways, strict=True)
    ]


def test_training_is_measured_by_task_and_step_and_by_group() -> None:
    rows = failures(1, 0, [0.1, 0.2], [4, 3]) + failures(1, 1, [0.3, 0.4], [1, 2])
    rows += failures(2, 0, [0.1, 0.2, 0.3], [3, 2, 1])  # too few to be ranked
    success = {**failures(1, 0, [1.0], [0])[0], "success": True, "distance": None}
    found = t3_truth.of_run(pd.DataFrame([*rows, success]))
    total, weight, number = found["in training"]
    # One cell of four: rewards rise 1 2 3 4, ways 4 3 1 2.
    assert (total / weight, weight, number) == (pytest.approx(0.8), 4, 7)
    assert found["in groups"] == (1 + 0 + 3, 5, 7)


def test_t3_truth_reads_rewards_of_runs_that_shaped_them(tmp_path: Path) -> None:
    scores = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.35, "vjepa2-tiny": 0.8})
    curves, _ = curves_of(scores)
    rewards = []
    for variant in ("grpo", "srpo"):
        for seed in (0, 1):
            metrics = rl_run(tmp_path, "libero_goal", variant, [0.2, 0.5], seed=seed, model="vjepa2-tiny")
            rewards.append(metrics.with_name("rewards.parquet"))
            right = [0.1, 0.2, 0.3, 0.4] if seed else [0.4, 0.3, 0.2, 0.1]
            write_rows(rewards[-1], failures(1, 0, right, [4, 3, 2, 1]), REWARDS)
    out = tmp_path / "out"
    run("t3_truth", out, "--rewards", *rewards, "--curves", *curves)
    table = pd.read_csv(out / "tables/t3_truth.csv")
    assert set(table["representation"]) == {"pixel", "vjepa2-tiny"}
    flat = rl_run(tmp_path, "libero_goal", "srpo-alpha-0", [0.5], model="vjepa2-tiny", alpha=0.0)
    other = rl_run(tmp_path, "libero_goal", "srpo-nearest", [0.5], model="vjepa2-tiny", references="nearest")
    for metrics in (flat, other):
        rewards.append(metrics.with_name("rewards.parquet"))
        write_rows(rewards[-1], failures(1, 0, [0.4, 0.3, 0.2, 0.1], [4, 3, 2, 1]), REWARDS)
    run("t3_truth", out, "--rewards", *rewards, "--curves", *curves)
    table = pd.read_csv(out / "tables/t3_truth.csv")
    # Rewards without a height have no order; those made in another way stand apart.
    assert set(table["representation"]) == {"pixel", "vjepa2-tiny", "vjepa2-tiny, nearest"}
    own = cell(table, representation="vjepa2-tiny", measure="in groups")
    assert (own["value"], own["low"], own["high"], own["runs"]) == (0.5, 0, 1, 2)  # cut where shares end
    assert cell(table, representation="vjepa2-tiny", measure="along successes")["value"] > 0.9
    assert cell(table, representation="pixel", measure="along failures")["trajectories"] == 6
    # Three of each task, too few to be ranked.
    assert cell(table, representation="pixel", measure="between failures")["trajectories"] == 0
    check_latex((out / "tables/t3_truth.tex").read_text())


def test_t3_command_line(tmp_path: Path) -> None:
    paths = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.35, "vjepa2-tiny": 0.8})
    tables = tmp_path / "out/tables"
    run("t3", tmp_path / "out", "--scores", *paths)
    assert "MuJoCo of unknown version." in (tables / "t3.tex").read_text()
    manifest = paths[0].parent / "trajectories" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text('{"packages": {"mujoco": "3.3.7"}}')
    run("t3", tmp_path / "out", "--scores", *paths)
    check_latex((tables / "t3.tex").read_text())
    caption = (
        "official initial states, at most 300 (Goal) steps, exact rendering at 128 pixels, MuJoCo 3.3.7."
    )
    for suffix in (".tex", ".html"):
        assert caption in (tables / f"t3{suffix}").read_text()


def test_t3_without_failures(tmp_path: Path) -> None:
    scores, _ = t3.read_scores(reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.5}, failures=0), False)
    table = t3.estimate(scores, read_published(PUBLISHED, "T3").head(0))
    for definitions in (t3.PAPER, t3.OURS):
        own = {"source": "ours", "definitions": definitions}
        assert np.isnan(cell(table, metric="MMD", **own)["value"])
        assert not np.isnan(cell(table, metric="SC", **own)["value"])
    assert "--" in tex_of(t3, table)


def test_t3_refuses(tmp_path: Path) -> None:
    paths = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.4, "vjepa2-tiny": 0.8})
    with pytest.raises(ResultError, match=r"incomplete: no scores of \[\('libero_goal', 'vjepa2-tiny'\)\]"):
        t3.read_scores(paths[:1], allow_incomplete=False)
    scores, missing = t3.read_scores(paths[:1], allow_incomplete=True)
    assert set(scores["representation"]) == {"pixel"}
    assert missing == 1
    with pytest.raises(ResultError, match="twice under the same representation"):
        t3.read_scores([*paths, paths[0]], allow_incomplete=False)
    rows = read_rows(paths[1], BENCHMARK).to_dict("records")
    write_rows(paths[1], rows[:-1], BENCHMARK)
    with pytest.raises(ResultError, match="libero_goal: representations scored different trajectories"):
        t3.read_scores(paths, allow_incomplete=False)
    rows[0]["success"] = False
    write_rows(paths[1], rows, BENCHMARK)
    with pytest.raises(ResultError, match="disagree on a trajectory's outcome"):
        t3.read_scores(paths, allow_incomplete=False)


# ----------------------------------------------------------------------------------------------------- LaTeX


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50% & a_b #1 {x} $5", r"50\% \& a\_b \#1 \{x\} \$5"),
        ("a\\b~c^d", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"),
        ("p < 0.1", r"p \textless{} 0.1"),
        ("[−1]", "{[}$-$1]"),
        ("SRPO (α = 0.3)", r"SRPO ($\alpha$ = 0.3)"),
    ],
)
def test_latex_escaping(text: str, escaped: str) -> None:
    assert typeset.escape(text) == escaped


GROUPS = [
    typeset.Group("", [typeset.Row(["ours"], [["1", "[0, 2]"], ["–"]], frozenset({0}))]),
    typeset.Group("none", []),
    typeset.Group("Published", [typeset.Row(["theirs"], [["2"], ["3"]])]),
]


def test_latex_table() -> None:
    table = typeset.Table("Success in %.", "Model", ["A", "B"], GROUPS, ["100%."])
    tex = typeset.to_latex(table).replace(r"\textbf{1}", "1")
    check_latex(tex)
    assert r"\caption{Success in \%.}" in tex
    assert r"\toprule" + "\n" + r"Model & A & B \\" + "\n" + r"\midrule" + "\n" + r"ours & 1 & -- \\" in tex
    assert r" & {\scriptsize {[}0, 2]} &  \\" in tex
    assert tex.count(r"\midrule") == 2
    assert "none" not in tex


class Page(HTMLParser):
    """The words of a page, by the element that they stand in, and every attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[list[str]]] = []
        self.words: dict[str, list[str]] = {}
        self.attributes: set[str] = set()
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append([])

    def handle_endtag(self, tag: str) -> None:
        while self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not data.strip():
            return
        self.words.setdefault(self._open[-1], []).append(data)
        if set(self._open) & {"td", "th"}:
            self.rows[-1][-1].append(data)


def test_html_table() -> None:
    html = typeset.to_html(typeset.Table("Success in %.", "Model", ["A", "B"], GROUPS, ["100%."]))
    page = Page(html)
    assert page.rows == [
        [["Model"], ["A"], ["B"]],
        [["ours"], ["1", "[0, 2]"], ["–"]],
        [["Published"]],
        [["theirs"], ["2"], ["3"]],
    ]
    assert page.words["b"] == ["1"] and page.words["small"] == ["[0, 2]"]
    assert page.words["caption"] == page.words["title"] == ["Success in %."]
    assert page.words["p"] == ["100%."]
    assert page.attributes == {"lang", "charset", "scope", "colspan"}  # nothing that fetches or runs
    assert "url(" not in html and "@import" not in html


@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1))
def test_html_prints_text_as_it_stands(text: str) -> None:
    row = typeset.Row([text], [[text, text]], frozenset({0}))
    page = Page(typeset.to_html(typeset.Table(text, text, [text], [typeset.Group(text, [row])], [text])))
    assert page.rows == [[[text], [text]], [[text]], [[text], [text, text]]]
    assert page.words["caption"] == page.words["p"] == page.words["b"] == [text]


def test_percent() -> None:
    assert [text.percent(v) for v in (0, 0.125, 1, np.nan)] == ["0.0", "12.5", "100.0", "–"]
    assert [text.percent(v, sign=True) for v in (-0.05, 0.05)] == ["−5.0", "+5.0"]
    assert [text.p_text(p) for p in (1, 0.0312, 0.0004)] == ["p = 1.000", "p = 0.031", "p < 0.001"]


def test_every_suite_has_a_label() -> None:
    assert set(text.SUITE_LABELS) == set(SUITES) == set(MAX_STEPS)


def test_a_policy_without_two_successes_stops_no_table(tmp_path: Path) -> None:
    """Its suite has no scores and no curves; the tables say so beside those that have."""
    scored = reward_benchmark(tmp_path, "libero_goal", {"pixel": 0.35, "vjepa2-tiny": 0.8})
    curves, _ = curves_of(scored)
    without = reward_benchmark(tmp_path, "libero_10", {"pixel": 0.35, "vjepa2-tiny": 0.8}, successes=1)
    for path in without:
        rows = read_rows(path, BENCHMARK).to_dict("records")
        kept = ("suite", "task_id", "trajectory", "success", "representation", "steps")
        write_rows(path, [dict.fromkeys(row) | {name: row[name] for name in kept} for row in rows], BENCHMARK)
        empty = path.with_name(f"{path.stem}-curves.parquet")
        write_rows(empty, [], CURVES)
        curves.append(empty)
    note = "No scores on libero_10: a success is compared with others of its task, and no task has two"
    run("t3", tmp_path / "out", "--scores", *scored, *without)
    assert note in (tmp_path / "out/tables/t3.html").read_text()
    run("t3_truth", tmp_path / "out", "--curves", *curves)
    # And where there are no others, all cells are empty.
    for name, option, files in (
        ("t3", "--scores", without),
        ("t3_distributions", "--scores", without),
        ("t3_truth", "--curves", curves[2:]),
    ):
        run(name, tmp_path / "alone", option, *files)
    assert note in (tmp_path / "alone/tables/t3.html").read_text()
    assert pd.read_csv(tmp_path / "alone/tables/t3_truth.csv")["value"].isna().all()
