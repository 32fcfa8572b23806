"""What training changed, in sentences: counts by hand, and what is called a rise."""

from pathlib import Path

import pandas as pd
import pytest

from srpo.analysis.tables import gains
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
    table, _ = draw(tmp_path, [start, start, end], {"sft": start, "grpo": end})
    assert (table["verdict"] == verdict).all() and table["what"].tolist() == [gains.TRAINING, gains.HELD_OUT]
    apart = table["before_high"] < table["after_low"]
    assert apart.all() == (verdict == "rose")
