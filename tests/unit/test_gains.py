"""What training changed, in sentences: counts by hand, and what is called a rise."""

from pathlib import Path

import pandas as pd
import pytest

from srpo.analysis.tables import gains
from srpo.results import ResultError
from srpo.results.rows import read_episodes, read_rows, write_rows
from srpo.results.schemas import REWARDS
from support.drawing import run, write_sheet
from support.synthetic_results import libero_run, rl_run


def draw(root: Path, curve: list[float], rates: dict[str, float]) -> tuple[pd.DataFrame, list[str]]:
    """The table and the sentences of one curve and of evaluations of some rates."""
    curves = write_sheet(root / "curves.tsv", {"grpo": "GRPO"})
    results = write_sheet(root / "results.tsv", {"sft": "SFT", "grpo": "GRPO"})
    metrics = rl_run(root / "runs", "libero_goal", "grpo", curve)
    episodes = [
        libero_run(root / "runs", "libero_goal", variant, rate, states=20) for variant, rate in rates.items()
    ]
    files = ["--sheet", curves, "--metrics", metrics, "--t1-sheet", results, "--episodes", *episodes]
    run("gains", root, *files)
    return pd.read_csv(root / "tables/gains.csv"), (root / "tables/gains.txt").read_text().splitlines()


def test_the_first_third_stands_beside_the_last(tmp_path: Path) -> None:
    rates = {"sft": 0.25, "grpo": 0.25}
    table, (training, held_out) = draw(tmp_path, [0.1, 0.2, 0.5, 0.5, 0.8, 0.9], rates)
    steps = pd.read_csv(next(tmp_path.rglob("metrics.csv")))
    each = int(steps["episodes"][0])
    before, after = int(steps["successes"][:2].sum()), int(steps["successes"][4:].sum())
    assert table["episodes_before"][0] == 2 * each and 0 < before < after
    start, interval = training.split("[")
    assert start == (
        f"GRPO, Goal: success of training rollouts rose from {50 * before / each:.1f}% ({before} of "
        f"{2 * each}) in RL steps 1–2 to {50 * after / each:.1f}% ({after} of {2 * each}) "
        f"in RL steps 5–6: +{50 * (after - before) / each:.1f} points "
    )
    assert interval.endswith("].") and table["change_low"][0] > 0
    assert table["verdict"].tolist() == ["rose", "undecided"]
    assert (
        "greedy episodes on held-out states went, within its noise, from" in held_out
        and "after SFT to" in held_out
    )


def test_rollouts_of_a_group_are_no_independent_ones(tmp_path: Path) -> None:
    """Groups that end alike are worth one rollout each: their rise may be within the noise."""
    widths = []
    for spread in (True, False):
        metrics = rl_run(tmp_path / str(spread), "libero_goal", "grpo", [0.25, 0.75])
        rewards = read_rows(metrics.with_name("rewards.parquet"), REWARDS)
        numbers = rewards.groupby("step").cumcount()
        solved = rewards["step"].map({1: 8, 2: 24})  # of 32
        order = numbers if spread else 8 * (numbers % 4) + numbers // 4
        rewards["success"] = order < solved
        write_rows(metrics.with_name("rewards.parquet"), rewards.to_dict("records"), REWARDS)
        (row,) = gains.estimate(gains.load_groups(metrics), {"grpo": "GRPO"}, {}, ()).to_dict("records")
        assert (row["successes_before"], row["episodes_before"], row["successes_after"]) == (8, 32, 24)
        widths.append((row["change_low"], row["verdict"]))
    assert widths[0][0] > 0 > widths[1][0] and [verdict for _, verdict in widths] == ["rose", "undecided"]


def test_what_was_not_evaluated_has_no_sentence(tmp_path: Path) -> None:
    curves = write_sheet(tmp_path / "curves.tsv", {"grpo": "GRPO"})
    results = write_sheet(tmp_path / "results.tsv", {"sft": "SFT", "grpo": "GRPO"})
    metrics = rl_run(tmp_path / "runs", "libero_goal", "grpo", [0.5, 0.5])
    episodes = libero_run(tmp_path / "runs", "libero_goal", "sft", 0.5, states=20)
    files = ["--sheet", curves, "--metrics", metrics, "--t1-sheet", results, "--episodes", episodes]
    run("gains", tmp_path, *files, "--allow-incomplete")
    (line,) = (tmp_path / "tables/gains.txt").read_text().splitlines()
    assert "training rollouts" in line


def test_one_rl_step_has_nothing_to_stand_beside(tmp_path: Path) -> None:
    table, sentences = draw(tmp_path, [0.5], {"sft": 0.25, "grpo": 0.25})
    assert table["what"].tolist() == [gains.GREEDY] and len(sentences) == 1


@pytest.mark.parametrize(
    ("start", "end", "verdict"), [(0.1, 0.9, "rose"), (0.9, 0.1, "fell"), (0.5, 0.55, "undecided")]
)
def test_a_rise_is_beyond_its_interval(tmp_path: Path, start: float, end: float, verdict: str) -> None:
    table, _ = draw(tmp_path, [start, start, end], {"sft": start, "grpo": end})
    assert (table["verdict"] == verdict).all() and table["what"].tolist() == [gains.TRAINING, gains.GREEDY]
    assert (table["change_low"] > 0).all() == (verdict == "rose")


def test_sampled_episodes_have_a_sentence_of_their_own(tmp_path: Path) -> None:
    curves = write_sheet(tmp_path / "curves.tsv", {"grpo": "GRPO"})
    results = write_sheet(tmp_path / "results.tsv", {"sft": "SFT", "grpo": "GRPO"})
    metrics = rl_run(tmp_path / "runs", "libero_goal", "grpo", [0.5, 0.5])
    episodes = [
        libero_run(tmp_path / "runs", "libero_goal", variant, rate, states=20, sampled=3)
        for variant, rate in (("sft", 0.1), ("grpo", 0.9))
    ]
    sampled = [path.with_name("sampled.parquet") for path in episodes]
    files = ["--sheet", curves, "--metrics", metrics, "--t1-sheet", results]
    run("gains", tmp_path, *files, "--episodes", *episodes, "--sampled", *sampled)
    table = pd.read_csv(tmp_path / "tables/gains.csv")
    assert table["what"].tolist() == [gains.TRAINING, gains.GREEDY, gains.SAMPLED]
    assert table["episodes_before"][2] == 3 * table["episodes_before"][1] == 120
    counted = [int((pd.read_parquet(path)["status"] == "success").sum()) for path in sampled]
    assert table[["successes_before", "successes_after"]].iloc[2].tolist() == counted
    assert table["verdict"][2] == "rose"


def test_greedy_and_sampled_episodes_do_not_mix(tmp_path: Path) -> None:
    episodes = libero_run(tmp_path, "libero_goal", "sft", 0.5, sampled=1)
    with pytest.raises(ResultError, match="greedy and sampled episodes stand apart"):
        read_episodes([episodes, episodes.with_name("sampled.parquet")])
