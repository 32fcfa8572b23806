"""What reinforcement learning changed, in a few sentences with counts: the first lines of the report.

Of the training rollouts of each variant, those of about the first third of its RL steps beside those of as
many at the end; of the episodes on held-out states, greedy and sampled ones, the SFT policy's beside the
trained one's. A rate "rose" where the 95% interval of the difference is above 0 (Newcombe's, from Wilson's
intervals), all seeds of a suite together: it speaks of these policies. The rollouts of a group are one
cluster, and so are the episodes on one held-out state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from srpo.analysis import comparisons
from srpo.analysis.drawn import Drawn
from srpo.analysis.stats import Estimate, clustered_wilson, direction, rate_difference
from srpo.analysis.text import SUITE_LABELS, percent
from srpo.config import EvaluateStage, TrainStage
from srpo.config.sheets import SheetRow, baseline, labels
from srpo.results.coverage import load_evaluations, load_metrics, read_config, require_together
from srpo.results.rows import read_rows
from srpo.results.schemas import REWARDS

TRAINING = "training rollouts"
GREEDY, SAMPLED = "greedy episodes on held-out states", "sampled episodes on held-out states"
VERDICTS = {True: "rose", False: "fell", None: "undecided"}


def make(
    metrics: Sequence[Path],
    sheet: Sequence[SheetRow],
    episodes: Sequence[Path],
    t1_sheet: Sequence[SheetRow],
    allow_incomplete: bool,
    sampled: Sequence[Path] = (),
) -> Drawn:
    """The sentences on the training curves in `metrics` and the evaluations in `episodes` and `sampled`."""
    require_together((metrics, TrainStage), ([*episodes, *sampled], EvaluateStage))
    _, missing_steps = load_metrics(metrics, labels(sheet), allow_incomplete)
    groups = pd.concat([load_groups(path) for path in metrics], ignore_index=True)
    evaluations, missing_episodes = {}, 0
    for what, paths in ((GREEDY, episodes), (SAMPLED, sampled)):
        if paths:
            evaluations[what], missing = load_evaluations(
                paths, labels(t1_sheet), allow_incomplete, what == SAMPLED
            )
            missing_episodes += len(missing)
    table = estimate(groups, labels(sheet), evaluations, t1_sheet)
    lines = [*sentences(table)]
    if missing_steps or missing_episodes:
        lines.append(f"Incomplete: {missing_steps} RL steps and {missing_episodes} episodes are missing.")
    return Drawn(table, text="".join(f"{line}\n" for line in lines))


def load_groups(metrics: Path) -> pd.DataFrame:
    """The groups of a training run, from the rewards.parquet beside its metrics: suite, variant, step, and of
    a group's rollouts how many there are (episodes) and how many succeeded (successes)."""
    config = read_config(metrics, TrainStage)
    rewards = read_rows(metrics.with_name("rewards.parquet"), REWARDS)
    success = rewards["success"].astype(int).groupby([rewards["step"], rewards["group"]])
    groups = success.agg(successes="sum", episodes="size").reset_index()
    return groups.assign(suite=config.suite, variant=config.variant)


def estimate(
    groups: pd.DataFrame,
    curves: Mapping[str, str],
    evaluations: Mapping[str, pd.DataFrame],
    sheet: Sequence[SheetRow],
) -> pd.DataFrame:
    """The tidy table, one row a (suite, variant, what): counts and rates before and after.

    Args:
        groups: of `load_groups`, of the variants in `curves` (name → label).
        evaluations: by what they are, episodes of the variants in `sheet`, whose baseline is what all others
            start from.
    """
    rows: list[dict[str, Any]] = []
    for suite, variant in groups[["suite", "variant"]].drop_duplicates().to_numpy():
        here = groups[(groups["suite"] == suite) & (groups["variant"] == variant)]
        last = int(here["step"].max())
        if last == 1:
            continue  # nothing to compare
        third = max(1, round(last / 3))
        parts = here[here["step"] <= third], here[here["step"] > last - third]
        when = _steps(1, third), _steps(last - third + 1, last)
        before, after = map(_rate, parts)
        identity = {"suite": suite, "variant": variant, "label": curves[variant], "what": TRAINING}
        rows.append(identity | _before_and_after(before, after, when))
    for what, episodes in evaluations.items():
        for suite, here in episodes.groupby("suite", sort=False):
            of = {name: here[here["variant"] == name] for name in labels(sheet)}
            counted = {name: (comparisons.counts(one), comparisons.rate(one)) for name, one in of.items()}
            before = counted.pop(baseline(sheet).name)
            for name, after in counted.items():
                if not (before[0]["episodes"] and after[0]["episodes"]):
                    continue  # an evaluation is missing
                identity = {"suite": suite, "variant": name, "label": labels(sheet)[name], "what": what}
                rows.append(identity | _before_and_after(before, after, ("after SFT", "after RL")))
    return pd.DataFrame(rows)


def _rate(groups: pd.DataFrame) -> tuple[dict[str, int], Estimate]:
    """Counts and success rate of the rollouts of some groups."""
    clusters = groups["successes"].to_numpy(np.int64), groups["episodes"].to_numpy(np.int64)
    successes, episodes = (int(number.sum()) for number in clusters)
    return {"successes": successes, "episodes": episodes}, clustered_wilson(*clusters)


def _steps(first: int, last: int) -> str:
    return f"in RL step {first}" if first == last else f"in RL steps {first}–{last}"


def _before_and_after(
    before: tuple[Mapping[str, int], Estimate],
    after: tuple[Mapping[str, int], Estimate],
    when: tuple[str, str],
) -> dict[str, Any]:
    """Columns of the counts and rates before and after, of when that was, and whether the rate rose."""
    columns: dict[str, Any] = {}
    for end, (count, rate), moment in zip(("before", "after"), (before, after), when, strict=True):
        columns |= {f"{name}_{end}": count[name] for name in ("successes", "episodes")}
        columns |= {f"when_{end}": moment, **comparisons.columns_of(rate, end, f"{end}_")}
    change = rate_difference(before[1], after[1])
    return (
        columns
        | comparisons.columns_of(change, "change", "change_")
        | {"verdict": VERDICTS[direction(change)]}
    )


def sentences(table: pd.DataFrame) -> Iterator[str]:
    """A line a row."""
    for row in table.to_dict("records"):
        before, after = (
            f"{percent(row[end])}% ({row[f'successes_{end}']} of {row[f'episodes_{end}']}) "
            + row[f"when_{end}"]
            for end in ("before", "after")
        )
        where = f"{row['label']}, {SUITE_LABELS[row['suite']]}: success of {row['what']}"
        verb = {"rose": "rose from", "fell": "fell from", "undecided": "went, within its noise, from"}
        low, high = (percent(row[f"change_{end}"], sign=True) for end in ("low", "high"))
        change = f"{percent(row['change'], sign=True)} points [{low} to {high}]"
        yield f"{where} {verb[row['verdict']]} {before} to {after}: {change}."
