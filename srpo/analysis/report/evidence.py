"""docs/evidence.md: whether the claims that users come for hold in a preset, in numbers.

srpo evidence results/reference/mini [--page docs/evidence.md]

Writes the page's parts of this preset, between the lines `<!-- PRESET: PART -->` and `<!-- end -->`; what is
written around them, and other presets' parts, stay. Every number is computed here from the rows in the folder
(`srpo export` copied them, or the workflow made them), by the functions that the tables of the same names
use.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srpo.analysis import comparisons
from srpo.analysis.figures import f2
from srpo.analysis.report.claims import (
    Evidence,
    areas,
    claims,
    part_of,
    points_text,
    rate,
    rate_text,
    read,
)
from srpo.analysis.stats import NAN, Estimate
from srpo.analysis.tables import t3_truth
from srpo.analysis.text import SUITE_LABELS, p_text, percent
from srpo.analysis.typeset import to_markdown
from srpo.config.plan import plan
from srpo.config.resolve import load_preset
from srpo.config.stages import SFT
from srpo.errors import run_command
from srpo.results import ResultError
from srpo.runtime.files import write_text

LEVELS = (0.5, 0.8)
"""Success rates for which the page says how long they took to reach."""


def verdict(evidence: Evidence) -> str:
    """What did not hold, what these runs cannot tell, what held, and of which variants runs are missing."""
    judged = claims(evidence)
    parts = []
    for holds, heading in ((False, "Did not hold"), (None, "Not decided by these runs"), (True, "Held")):
        lines = [f"- {claim.text}: {claim.numbers}" for claim in judged if claim.holds is holds]
        parts.append("\n".join([f"**{heading}:**", "", *(lines or ["- nothing"])]))
    if partial := [evidence.variants[name] for name in evidence.trained if name not in evidence.complete]:
        parts.append(f"Not judged, for not all of their runs are there: {'; '.join(partial)}.")
    return "\n\n".join(parts)


def held_out(evidence: Evidence) -> str:
    """Greedy success on held-out states: a row a task, a suite, and all; a column a variant."""
    return _successes(evidence, evidence.episodes)


def sampled(evidence: Evidence) -> str:
    """The same of sampled episodes."""
    return _successes(evidence, evidence.sampled)


def _successes(evidence: Evidence, episodes: pd.DataFrame) -> str:
    variants = [variant for variant in evidence.variants if variant in set(episodes["variant"])]
    rows = []
    for suite in evidence.suites:
        here = episodes[episodes["suite"] == suite]
        for task, group in here.groupby("task_id"):
            name = str(group["task"].iloc[0]).lower().replace("_", " ")
            counts = [comparisons.counts(group[group["variant"] == variant]) for variant in variants]
            rows.append([f"{SUITE_LABELS[suite]} {task}: {name}", *map(_count_text, counts)])
        rates = [_rate(evidence, here, variant, suite) for variant in variants]
        rows.append([f"**{SUITE_LABELS[suite]}**", *map(rate_text, rates)])
    if len(evidence.suites) > 1:
        rates = [_rate(evidence, episodes, variant) for variant in variants]
        rows.append(["**mean over tasks**", *map(rate_text, rates)])
    return to_markdown(["", *(evidence.variants[variant] for variant in variants)], rows)


def _count_text(count: Mapping[str, int]) -> str:
    return f"{count['successes']}/{count['episodes']}" if count["episodes"] else "–"


def _rate(evidence: Evidence, episodes: pd.DataFrame, variant: str, suite: str | None = None) -> Estimate:
    """A variant's mean over tasks, in one suite or in all; nothing where a run is missing."""
    if not evidence.has_all(episodes, variant, suite):
        return Estimate(NAN, NAN, NAN)
    return rate(part_of(episodes, variant, suite))


def differences(evidence: Evidence) -> str:
    """Differences on the same tasks and states, a row a pair of variants, a column a suite and all."""
    pairs = [(SFT, variant) for variant in evidence.trained]
    return _differences(evidence, [*pairs, *_between(evidence)], evidence.episodes)


def sampled_differences(evidence: Evidence) -> str:
    """The same of sampled episodes, between trained variants."""
    return _differences(evidence, _between(evidence), evidence.sampled)


def _between(evidence: Evidence) -> list[tuple[str, str]]:
    return [(evidence.grpo, variant) for variant in evidence.others] + evidence.beside_srpo


def _differences(evidence: Evidence, pairs: Sequence[tuple[str, str]], episodes: pd.DataFrame) -> str:
    columns = [*evidence.suites, *([None] if len(evidence.suites) > 1 else [])]
    rows = []
    there = set(episodes["variant"])
    for first, second in (pair for pair in pairs if set(pair) <= there):
        each = [evidence.compare(first, second, suite, rows=episodes) for suite in columns]
        cells = [
            f"{points_text(one.estimate)}, {p_text(one.p_value)}, {one.pairs} pairs" if one.pairs else "–"
            for one in each
        ]
        rows.append([f"{evidence.variants[second]} − {evidence.variants[first]}", *cells])
    return to_markdown(["", *("all" if suite is None else SUITE_LABELS[suite] for suite in columns)], rows)


def efficiency(evidence: Evidence) -> str:
    """How fast each variant learns: areas, their differences to GRPO's, and episodes to the levels."""
    trained = {variant: evidence.variants[variant] for variant in evidence.trained}
    speed = f2.efficiency(evidence.metrics, trained)
    rows = []
    for suite in evidence.suites:
        for variant, label in trained.items():
            group = areas(evidence, variant, suite)
            if not group:
                continue
            here = speed[(speed["suite"] == suite) & (speed["variant"] == variant)]
            cells = []
            for level in LEVELS:
                row = here[(here["level"] == level) & (here["unit"] == "episodes")].iloc[0]
                sign = ">" if row["censored"] else ""
                cells.append(f"{sign}{row['value']:,.0f} ({row['arrived']} of {row['seeds']} seeds)")
            rows.append(
                [SUITE_LABELS[suite], label, _seeds(group), *_above(evidence, variant, suite), *cells]
            )
    for variant, label in trained.items():
        each = [areas(evidence, variant, suite) for suite in evidence.suites]
        if len(each) > 1 and evidence.has_all(evidence.metrics, variant):
            mean = float(np.mean([np.mean(one) for one in each]))
            rows.append(["**mean**", label, percent(mean), *_above(evidence, variant), *[""] * len(LEVELS)])
    levels = [f"episodes to {100 * level:.0f}%" for level in LEVELS]
    less = [f"− {trained[other]}" for other in (evidence.grpo, evidence.srpo)]
    return to_markdown(["", "", "area (each seed, %)", *less, *levels], rows)


def _above(evidence: Evidence, variant: str, suite: str | None = None) -> Iterator[str]:
    """How far a variant's area is above GRPO's and SRPO's."""
    for other in (evidence.grpo, evidence.srpo):
        if variant in (other, evidence.grpo):
            yield "–"
        else:
            yield points_text(evidence.compare_areas(other, variant, suite).estimate)


def _seeds(values: Sequence[float]) -> str:
    return f"{percent(float(np.mean(values)))} ({', '.join(percent(value) for value in values)})"


def signal(evidence: Evidence) -> str:
    """Groups that teach nothing, by outcome alone and with the variant's own reward."""
    rows = []
    for suite in evidence.suites:
        for variant in evidence.trained:
            group = evidence.training(variant, suite)
            if group.empty:
                continue
            early = group[group["step"] <= max(1, group["step"].max() / 4)]
            cells = []
            for part in (early, group):
                total = int(part["groups"].sum())
                for column in ("groups_without_signal_outcome", "groups_without_signal"):
                    cells.append(f"{percent(part[column].sum() / total)}% of {total}")
            rows.append([SUITE_LABELS[suite], evidence.variants[variant], *cells])
    columns = [
        f"{steps}: by {what}" for steps in ("first quarter", "all steps") for what in ("outcome", "reward")
    ]
    return to_markdown(["", "", *columns], rows)


def failure_rewards(evidence: Evidence) -> str:
    """How far rewards for failures change the advantages: where they can, and by how much they do."""
    rows = []
    for suite in evidence.suites:
        for variant in evidence.others:
            group = part_of(evidence.rewards, variant, suite)
            if group.empty:
                continue
            groups = group.groupby(["seed", "step", "group"])["success"]
            succeeded, lost = groups.mean(), groups.transform("max") == 0
            advantage = group["advantage"].to_numpy(dtype=float)
            by_outcome = advantages_by_outcome(group)
            alike = np.corrcoef(advantage, by_outcome)[0, 1]
            rows.append(
                [
                    SUITE_LABELS[suite],
                    evidence.variants[variant],
                    *(percent(share) for share in (1 - group["success"].mean(), (succeeded == 0).mean())),
                    percent(np.sum(advantage[lost] ** 2) / np.sum(advantage**2)),
                    f"{alike:.2f}",
                ]
            )
    columns = [
        "rollouts that failed (%)",
        "groups that failed throughout (%)",
        "their share of the squared advantages (%)",
        "correlation of advantages with GRPO's for the same rollouts",
    ]
    return to_markdown(["", "", *columns], rows)


def advantages_by_outcome(rewards: pd.DataFrame) -> NDArray[np.float64]:
    """The advantages (N,) that GRPO would have given to the rollouts of some runs.

    `srpo.rl.advantages.group_advantages` of their outcomes; the analysis does without torch.
    """
    success = rewards["success"].astype(float)
    groups = success.groupby([rewards[key] for key in ("suite", "variant", "seed", "step", "group")])
    centred = (success - groups.transform("mean")).to_numpy()
    deviation = groups.transform("std").to_numpy()
    return np.divide(centred, deviation + 1e-6, out=np.zeros(len(rewards)), where=deviation > 0)


def truth(evidence: Evidence) -> str:
    """The table T3 against the truth: a value, its interval, the number of trajectories."""
    shown = t3_truth.layout(evidence.truth, "")
    rows = [row for group in shown.groups for row in group.rows]
    cells = ([*row.label, *(" ".join(cell) for cell in row.cells)] for row in rows)
    return to_markdown([shown.corner, *shown.columns], cells)


def seeds(evidence: Evidence) -> str:
    """Every run: success of rollouts in the first and last three steps, the area, success on held-out
    states."""
    rows = []
    for suite in evidence.suites:
        for variant in evidence.trained:
            greedy, runs = evidence.of(variant, suite), evidence.training(variant, suite).groupby("seed")
            for (seed, group), area in zip(runs, areas(evidence, variant, suite), strict=True):
                count, drawn = (
                    comparisons.counts(episodes[episodes["seed"] == seed])
                    for episodes in (greedy, part_of(evidence.sampled, variant, suite))
                )
                ends = [part["successes"].sum() / part["episodes"].sum() for part in (group[:3], group[-3:])]
                rows.append(
                    [
                        SUITE_LABELS[suite],
                        evidence.variants[variant],
                        str(seed),
                        *(percent(end) for end in ends),
                        percent(area),
                        f"{group['episodes_so_far'].max():,}",
                        _count_text(count),
                        _count_text(drawn),
                    ]
                )
    columns = ["first 3 steps (%)", "last 3 steps (%)", "area (%)", "rollouts", "greedy, held-out", "sampled"]
    return to_markdown(["", "", "seed", *columns], rows)


PARTS = {
    "verdict": verdict,
    "held-out": held_out,
    "held-out-sampled": sampled,
    "differences": differences,
    "differences-sampled": sampled_differences,
    "efficiency": efficiency,
    "signal": signal,
    "failure-rewards": failure_rewards,
    "truth": truth,
    "seeds": seeds,
}


def fill(page: str, preset: str, evidence: Evidence, source: str) -> str:
    """The page with a preset's parts written anew. Raises ResultError if it has none, or one nobody knows."""
    written = []

    def replaced(match: re.Match[str]) -> str:
        name = match["part"]
        if name not in PARTS:
            raise ResultError(f"{source}: there is no part {name!r}; there are {', '.join(PARTS)}")
        written.append(name)
        return f"<!-- {preset}: {name} -->\n{PARTS[name](evidence)}\n<!-- end -->"

    pattern = rf"<!-- {re.escape(preset)}: (?P<part>[\w-]+) -->\n.*?<!-- end -->"
    text = re.sub(pattern, replaced, page, flags=re.DOTALL)
    if not written:
        raise ResultError(f"{source}: has no lines `<!-- {preset}: PART -->` and `<!-- end -->`")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="srpo evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="rows of a preset, e.g. results/reference/mini")
    parser.add_argument("--preset", help="name or path of the preset; default: the folder's name")
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    parser.add_argument("--allow-incomplete", action="store_true", help="go without missing runs, and say so")
    arguments = parser.parse_args(argv)
    planned = plan(*load_preset(arguments.preset or arguments.folder.name))
    try:
        page = arguments.page.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultError(
            f"{arguments.page}: {error.strerror}: a page with the parts' lines is needed"
        ) from None
    evidence = read(arguments.folder, planned, arguments.allow_incomplete)
    write_text(arguments.page, fill(page, planned.preset.name, evidence, str(arguments.page)))


if __name__ == "__main__":
    run_command(main)
