"""docs/evidence.md: whether the claims that users come for hold in a finished preset, in numbers.

srpo evidence results/reference/mini [--page docs/evidence.md]

Writes the page's parts between the lines `<!-- NAME -->` and `<!-- end -->`; what is written around them
stays. Every number is computed here from the rows in the folders (`srpo export` copied them, or the workflow
made them), by the functions that the tables of the same names use.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
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
    """What did not hold, what these runs cannot tell, what held."""
    judged = claims(evidence)
    parts = []
    for holds, heading in ((False, "Did not hold"), (None, "Not decided by these runs"), (True, "Held")):
        lines = [f"- {claim.text}: {claim.numbers}" for claim in judged if claim.holds is holds]
        parts.append("\n".join([f"**{heading}:**", "", *(lines or ["- nothing"])]))
    return "\n\n".join(parts)


def held_out(evidence: Evidence) -> str:
    """Greedy success on held-out states: a row a task, a suite, and all; a column a variant."""
    rows = []
    for suite in evidence.suites:
        for task, group in evidence.episodes[evidence.episodes["suite"] == suite].groupby("task_id"):
            name = str(group["task"].iloc[0]).lower().replace("_", " ")
            counts = [comparisons.counts(group[group["variant"] == variant]) for variant in evidence.variants]
            cells = [f"{count['successes']}/{count['episodes']}" for count in counts]
            rows.append([f"{SUITE_LABELS[suite]} {task}: {name}", *cells])
        rates = [rate(evidence.of(variant, suite)) for variant in evidence.variants]
        rows.append([f"**{SUITE_LABELS[suite]}**", *map(rate_text, rates)])
    rows.append(
        ["**mean over tasks**", *(rate_text(rate(evidence.of(variant))) for variant in evidence.variants)]
    )
    return to_markdown(["", *evidence.variants.values()], rows)


def differences(evidence: Evidence) -> str:
    """Differences on the same tasks and states, a row a pair of variants, a column a suite and all."""
    pairs = [(SFT, variant) for variant in evidence.trained]
    pairs += [(evidence.grpo, variant) for variant in evidence.others]
    pairs += evidence.beside_srpo
    rows = []
    for first, second in pairs:
        each = [evidence.compare(first, second, suite) for suite in (*evidence.suites, None)]
        cells = [f"{points_text(one.estimate)}, {p_text(one.p_value)}, {one.pairs} pairs" for one in each]
        rows.append([f"{evidence.variants[second]} − {evidence.variants[first]}", *cells])
    return to_markdown(["", *(SUITE_LABELS[suite] for suite in evidence.suites), "all"], rows)


def efficiency(evidence: Evidence) -> str:
    """How fast each variant learns: areas, their differences to GRPO's, and episodes to the levels."""
    trained = {variant: evidence.variants[variant] for variant in evidence.trained}
    speed = f2.efficiency(evidence.metrics, trained)
    rows = []
    for suite in evidence.suites:
        for variant, label in trained.items():
            group = areas(evidence, variant, suite)
            against = evidence.compare_areas(evidence.grpo, variant, suite)
            here = speed[(speed["suite"] == suite) & (speed["variant"] == variant)]
            cells = []
            for level in LEVELS:
                row = here[(here["level"] == level) & (here["unit"] == "episodes")].iloc[0]
                sign = ">" if row["censored"] else ""
                cells.append(f"{sign}{row['value']:,.0f} ({row['arrived']} of {row['seeds']} seeds)")
            difference = "–" if variant == evidence.grpo else points_text(against.estimate)
            rows.append([SUITE_LABELS[suite], label, _seeds(group), difference, *cells])
    for variant, label in trained.items():
        mean = np.mean([np.mean(areas(evidence, variant, suite)) for suite in evidence.suites])
        against = evidence.compare_areas(evidence.grpo, variant)
        difference = "–" if variant == evidence.grpo else points_text(against.estimate)
        rows.append(["**mean**", label, percent(float(mean)), difference, *[""] * len(LEVELS)])
    levels = [f"episodes to {100 * level:.0f}%" for level in LEVELS]
    return to_markdown(["", "", "area (each seed, %)", f"− {trained[evidence.grpo]}", *levels], rows)


def _seeds(values: Sequence[float]) -> str:
    return f"{percent(float(np.mean(values)))} ({', '.join(percent(value) for value in values)})"


def signal(evidence: Evidence) -> str:
    """Groups that teach nothing, by outcome alone and with the variant's own reward."""
    rows = []
    for suite in evidence.suites:
        for variant in evidence.trained:
            group = evidence.training(variant, suite)
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
    """Every run: success of rollouts in the first and last three steps, the area, greedy success."""
    rows = []
    for suite in evidence.suites:
        for variant in evidence.trained:
            greedy, runs = evidence.of(variant, suite), evidence.training(variant, suite).groupby("seed")
            for (seed, group), area in zip(runs, areas(evidence, variant, suite), strict=True):
                count = comparisons.counts(greedy[greedy["seed"] == seed])
                ends = [part["successes"].sum() / part["episodes"].sum() for part in (group[:3], group[-3:])]
                rows.append(
                    [
                        SUITE_LABELS[suite],
                        evidence.variants[variant],
                        str(seed),
                        *(percent(end) for end in ends),
                        percent(area),
                        f"{group['episodes'].sum():,}",
                        f"{count['successes']}/{count['episodes']}",
                    ]
                )
    columns = ["first 3 steps (%)", "last 3 steps (%)", "area (%)", "rollouts", "greedy, held-out"]
    return to_markdown(["", "", "seed", *columns], rows)


PARTS = {
    "verdict": verdict,
    "held-out": held_out,
    "differences": differences,
    "efficiency": efficiency,
    "signal": signal,
    "failure-rewards": failure_rewards,
    "truth": truth,
    "seeds": seeds,
}


def fill(page: str, parts: Mapping[str, str], source: str) -> str:
    """The page with its parts written anew. Raises ResultError for a part that it lacks or nobody knows."""
    written = []

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in parts:
            raise ResultError(f"{source}: there is no part {name!r}; there are {', '.join(parts)}")
        written.append(name)
        return f"<!-- {name} -->\n{parts[name]}\n<!-- end -->"

    text = re.sub(r"<!-- (?P<name>[\w-]+) -->\n.*?<!-- end -->", replaced, page, flags=re.DOTALL)
    if absent := set(parts) - set(written):
        raise ResultError(f"{source}: has no lines `<!-- NAME -->` and `<!-- end -->` for {sorted(absent)}")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="srpo evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="rows of a preset, e.g. results/reference/mini")
    parser.add_argument("--preset", help="name or path of the preset; default: the folder's name")
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    arguments = parser.parse_args(argv)
    planned = plan(*load_preset(arguments.preset or arguments.folder.name))
    try:
        page = arguments.page.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultError(
            f"{arguments.page}: {error.strerror}: a page with the parts' lines is needed"
        ) from None
    evidence = read(arguments.folder, planned)
    parts = {name: part(evidence) for name, part in PARTS.items()}
    write_text(arguments.page, fill(page, parts, str(arguments.page)))


if __name__ == "__main__":
    run_command(main)
