"""What training changed, in sentences: counts by hand, and what is called a rise."""

from pathlib import Path

import pandas as pd
import pytest
from synthetic_results import libero_run, rl_run

from srpo.analysis import gains


def arguments(root: Path, curve: list[float], rates: dict[str, float]) -> list[str]:
    curves, results = root / "curves.tsv", root / "results.tsv"
    curves.write_text("variant\tlabel\ngrpo\tGRPO\n")
    results.write_text("variant\tlabel\nsft\tSFT\ngrpo\tGRPO\n")
    metrics = rl_run(root / "runs", "libero_goal", "grpo", curve)
    episodes = [
        libero_run(root / "runs", "libero_goal", variant, rate, states=20) for variant, rate in rates.items()
    ]
    given = ["--sheet", curves, "--metrics", metrics, "--pair", results, "--episodes", *episodes]
    return [str(part) for part in (*given, "--csv", root / "gains.csv", "--text", root / "gains.txt")]


def test_the_first_third_stands_beside_the_last(tmp_path: Path) -> None:
    gains.main(arguments(tmp_path, [0.1, 0.2, 0.5, 0.5, 0.8, 0.9], {"sft": 0.25, "grpo": 0.25}))
    training, held_out = (tmp_path / "gains.txt").read_text().splitlines()
    table = pd.read_csv(tmp_path / "gains.csv")
    steps = pd.read_csv(next(tmp_path.rglob("metrics.csv")))
    each = int(steps["episodes"][0])
    before, after = int(steps["successes"][:2].sum()), int(steps["successes"][4:].sum())
    assert table["episodes_before"][0] == 2 * each and 0 < before < after
    assert training == (
        f"GRPO, Goal: success of training rollouts rose from {50 * before / each:.1f}% ({before} of "
        f"{2 * each}) in the first third of the RL steps to {50 * after / each:.1f}% ({after} of {2 * each}) "
        "in the last third."
    )
    assert table["verdict"].tolist() == ["rose", "undecided"]
    assert "held-out states went, within its noise, from" in held_out and "after SFT to" in held_out


@pytest.mark.parametrize(
    ("start", "end", "verdict"), [(0.1, 0.9, "rose"), (0.9, 0.1, "fell"), (0.5, 0.55, "undecided")]
)
def test_a_rise_is_beyond_both_intervals(tmp_path: Path, start: float, end: float, verdict: str) -> None:
    gains.main(arguments(tmp_path, [start, start, end], {"sft": start, "grpo": end}))
    table = pd.read_csv(tmp_path / "gains.csv")
    assert (table["verdict"] == verdict).all() and table["what"].tolist() == [gains.TRAINING, gains.HELD_OUT]
    apart = table["before_high"] < table["after_low"]
    assert apart.all() == (verdict == "rose")
