"""docs/evidence.md: whether the claims that users come for hold in a finished preset, in numbers.

srpo evidence results/reference/mini [--page docs/evidence.md]

Writes the page's parts between the lines `<!-- NAME -->` and `<!-- end -->`; what is written around them
stays. Every number is computed here from the rows in the folders (`srpo.analysis.export` copied them, or the
workflow made them), by the functions that the tables of the same names use.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srpo.analysis import f2, t1, t3_truth, tables
from srpo.analysis.f1 import read_curves
from srpo.analysis.redraw import Drawing, drawings
from srpo.analysis.stats import (
    Estimate,
    PairedDifference,
    area_under_curve,
    combine,
    hierarchical,
    mean_paired_difference,
    wilson,
)
from srpo.analysis.tables import SUITE_LABELS, p_text, percent
from srpo.config import ConfigError, EvaluateStage
from srpo.config.plan import Plan, plan
from srpo.config.resolve import CONFIGS, load_preset
from srpo.config.sheets import SFT
from srpo.results.rows import ResultError, read_config, run
from srpo.runtime.files import write_text

LEVELS = (0.5, 0.8)
"""Success rates whose reaching is told."""
GAIN = 0.6
"""The relative gain over SFT that is asked for; the paper's is 1.03 (48.9% to 99.2% on LIBERO)."""


@dataclass(frozen=True)
class Evidence:
    """Everything that is read. `variants`: variant → label, SFT first; `rewards`: every training rollout;
    `grpo`, `srpo`: who is compared; `ours`: SRPO changed by us, which the curves show beside the two."""

    found: Plan
    variants: Mapping[str, str]
    episodes: pd.DataFrame
    metrics: pd.DataFrame
    rewards: pd.DataFrame
    truth: pd.DataFrame
    grpo: str
    srpo: str
    ours: Sequence[str]

    @property
    def trained(self) -> list[str]:
        return [variant for variant in self.variants if variant != SFT]

    @property
    def beside_srpo(self) -> list[tuple[str, str]]:
        """(worse, better) as is claimed: SRPO above its ablations, and what is ours above SRPO."""
        rest = [variant for variant in self.others if variant != self.srpo]
        return [(self.srpo, v) if v in self.ours else (v, self.srpo) for v in rest]

    @property
    def others(self) -> list[str]:
        """Trained variants but GRPO, those of the training curves first."""
        return [variant for variant in self.trained if variant != self.grpo]

    def of(self, variant: str, suite: str | None = None) -> pd.DataFrame:
        """Greedy episodes of a variant."""
        return _part(self.episodes, variant, suite)

    def training(self, variant: str, suite: str | None = None) -> pd.DataFrame:
        """Metrics of a variant's runs, a row an RL step."""
        return _part(self.metrics, variant, suite)

    def compare(self, baseline: str, method: str, suite: str | None = None) -> PairedDifference:
        return tables.compare(self.of(baseline, suite), self.of(method, suite))


def _part(rows: pd.DataFrame, variant: str, suite: str | None) -> pd.DataFrame:
    own = rows[rows["variant"] == variant]
    return own if suite is None else own[own["suite"] == suite]


def read(folder: Path, found: Plan) -> Evidence:
    """Read a preset's rows. Raises ResultError for what is missing or does not belong together."""
    drawn = _complete(folder, found, ["t1", "ablations", "f2", "f3", "t3_truth"])
    sheets = {name: tables.read_sheet(CONFIGS / found.sheets[name]) for name in ("ablations", "f2", "t1")}
    variants = {SFT: sheets["t1"][SFT]} | _labels(sheets)

    def files(names: Iterable[str], option: str) -> list[Path]:
        return list(dict.fromkeys(path for name in names for path in drawn[name].inputs[option]))

    paths = files(("t1", "ablations"), "--episodes")
    expected = t1.expected_episodes([read_config(path, EvaluateStage) for path in paths])
    episodes, _ = tables.load_episodes(paths, "libero", variants, expected, incomplete=False)
    trained = {variant: label for variant, label in variants.items() if variant != SFT}
    metrics, _ = f2.read_metrics(files(("f2", "f3"), "--metrics"), trained, allow_incomplete=False)
    grpo, srpo = list(sheets["t1"])[-2:]
    ours = [variant for variant in sheets["f2"] if variant not in (grpo, srpo)]
    curves, _ = read_curves(drawn["t3_truth"].inputs["--curves"], allow_incomplete=False)
    rewards = t3_truth.read_rewards(drawn["t3_truth"].inputs["--rewards"])
    truth = t3_truth.estimate(curves, t3_truth.shaped_runs(rewards))
    return Evidence(found, variants, episodes, metrics, rewards, truth, grpo, srpo, ours)


def _complete(folder: Path, found: Plan, needed: Sequence[str]) -> dict[str, Drawing]:
    """A preset's drawings. Raises ResultError when one that is needed lacks rows."""
    drawn = drawings(found, folder)
    for name in needed:
        if name not in drawn:
            raise ResultError(f"{folder}: its preset has no {name}, which is a part of the evidence")
        if missing := drawn[name].missing():
            raise ResultError(f"{folder}: {missing[0]} and {len(missing) - 1} more files are not there")
    return drawn


def _labels(sheets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Trained variants by label: T1's, else what an ablation calls itself, as in "SRPO, pixels"."""
    found = {}
    for variant, label in sheets["ablations"].items():
        found[variant] = sheets["t1"].get(variant, f"{list(sheets['t1'].values())[-1]}, {label}")
    return {variant: found[variant] for variant in [*sheets["f2"], *found] if variant in found}


# Numbers.


def rate(own: pd.DataFrame) -> Estimate:
    """Success as the mean over tasks. Several seeds: seeds and episodes drawn anew (`stats.hierarchical`);
    one: Wilson's interval of each task, put together (`stats.combine`)."""
    successes, episodes = tables.by_run(own)
    if len(successes) > 1:
        return hierarchical(successes, episodes, np.random.default_rng(0))
    return combine([wilson(int(s), int(n)) for s, n in zip(successes[0], episodes[0], strict=True)])


def mean_over_tasks(evidence: Evidence, variant: str) -> Estimate:
    """The same over all tasks of all suites. A suite's runs are independent of another's."""
    suites = evidence.found.preset.suites
    parts = [evidence.of(variant, suite) for suite in suites]
    return combine([rate(own) for own in parts], [own["task_id"].nunique() for own in parts])


def areas(evidence: Evidence, variant: str, suite: str | None = None) -> list[float]:
    """Mean success of the training rollouts of each run, by suite and seed."""
    runs = evidence.training(variant, suite).groupby(["suite", "seed"])
    return [area_under_curve(one["step"].to_numpy(), one["success_rate"].to_numpy()) for _, one in runs]


@dataclass(frozen=True)
class Claim:
    """What somebody might expect, whether it holds (None: these runs cannot tell), and by how much."""

    text: str
    holds: bool | None
    numbers: str


def _decided(difference: Estimate) -> bool | None:
    """Whether a difference is above 0 beyond its interval (True), below it (False), or neither."""
    if difference.low > 0:
        return True
    return False if difference.high < 0 else None


def claims(evidence: Evidence) -> list[Claim]:
    """The claims, each judged."""
    label = evidence.variants
    srpo = evidence.srpo
    before, after = mean_over_tasks(evidence, SFT), mean_over_tasks(evidence, srpo)
    gain = after.value / before.value - 1 if before.value else np.inf
    apart = Estimate(after.value - before.value, after.low - before.high, after.high - before.low)
    found = [
        Claim(
            f"{label[srpo]} makes the SFT policy better on held-out states (intervals do not overlap)",
            _decided(apart),
            f"mean over tasks {_rate(before)} → {_rate(after)}",
        ),
        Claim(
            f"the relative gain is at least {percent(GAIN)}%",
            gain >= GAIN,
            f"{percent(gain, sign=True)}%",
        ),
    ]
    for variant in evidence.others:
        found += [
            _ends_higher(evidence, evidence.grpo, variant),
            _learns_faster(evidence, evidence.grpo, variant),
        ]
    for low, high in evidence.beside_srpo:
        found += [_ends_higher(evidence, low, high), _learns_faster(evidence, low, high)]
    for row in evidence.truth[evidence.truth["measure"] == "in groups"].to_dict("records"):
        right = Estimate(row["value"] - 0.5, row["low"] - 0.5, row["high"] - 0.5)
        found.append(
            Claim(
                f"rewards by {row['representation']} put more than half of the pairs of failures of a group "
                "in the right order",
                _decided(right),
                f"{percent(row['value'])}% [{percent(row['low'])}, {percent(row['high'])}] of the pairs",
            )
        )
    return found


def _ends_higher(evidence: Evidence, low: str, high: str) -> Claim:
    found = evidence.compare(low, high)
    return Claim(
        f"{evidence.variants[high]} ends higher than {evidence.variants[low]}",
        _decided(found.estimate),
        f"difference {_points(found.estimate)} ({found.pairs} pairs, {p_text(found.p_value)})",
    )


def _learns_faster(evidence: Evidence, low: str, high: str) -> Claim:
    slow, fast = areas(evidence, low), areas(evidence, high)
    faster = mean_paired_difference(slow, fast)
    return Claim(
        f"{evidence.variants[high]} learns faster than {evidence.variants[low]} "
        "(area under the training curve)",
        _decided(faster),
        f"difference {_points(faster)} over {len(fast)} pairs of runs",
    )


def _rate(value: Estimate) -> str:
    return f"{percent(value.value)}% [{percent(value.low)}, {percent(value.high)}]"


def _points(value: Estimate) -> str:
    """A difference of rates in percentage points."""
    ends = [percent(end, sign=True) for end in (value.low, value.high)]
    interval = "no interval" if np.isnan(value.low) else " to ".join(ends)
    return f"{percent(value.value, sign=True)} points [{interval}]"


# The page's parts.


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def verdict(evidence: Evidence) -> str:
    """What did not hold, what these runs cannot tell, what held."""
    groups: dict[str, list[Claim]] = {"Did not hold": [], "Not decided by these runs": [], "Held": []}
    for claim in claims(evidence):
        place = {False: "Did not hold", None: "Not decided by these runs", True: "Held"}[claim.holds]
        groups[place].append(claim)
    told = []
    for heading, own in groups.items():
        lines = [f"- {claim.text}: {claim.numbers}" for claim in own] or ["- nothing"]
        told.append("\n".join([f"**{heading}:**", "", *lines]))
    return "\n\n".join(told)


def held_out(evidence: Evidence) -> str:
    """Greedy success on held-out states: a row a task, a suite, and all; a column a variant."""
    suites = evidence.found.preset.suites
    rows = []
    for suite in suites:
        for task, own in evidence.episodes[evidence.episodes["suite"] == suite].groupby("task_id"):
            name = str(own["task"].iloc[0]).lower().replace("_", " ")
            counts = [tables.counts(own[own["variant"] == variant]) for variant in evidence.variants]
            cells = [f"{count['successes']}/{count['episodes']}" for count in counts]
            rows.append([f"{SUITE_LABELS[suite]} {task}: {name}", *cells])
        rates = [rate(evidence.of(variant, suite)) for variant in evidence.variants]
        rows.append([f"**{SUITE_LABELS[suite]}**", *map(_rate, rates)])
    rows.append(["**mean over tasks**", *(_rate(mean_over_tasks(evidence, v)) for v in evidence.variants)])
    return _table(["", *evidence.variants.values()], rows)


def differences(evidence: Evidence) -> str:
    """Paired differences, a row a pair of variants, a column a suite and all."""
    suites = evidence.found.preset.suites
    pairs = [(SFT, variant) for variant in evidence.trained]
    pairs += [(evidence.grpo, variant) for variant in evidence.others]
    pairs += evidence.beside_srpo
    rows = []
    for first, second in pairs:
        found = [evidence.compare(first, second, suite) for suite in (*suites, None)]
        cells = [f"{_points(one.estimate)}, {p_text(one.p_value)}, {one.pairs} pairs" for one in found]
        rows.append([f"{evidence.variants[second]} − {evidence.variants[first]}", *cells])
    return _table(["", *(SUITE_LABELS[suite] for suite in suites), "all"], rows)


def efficiency(evidence: Evidence) -> str:
    """How fast each variant learns: areas, their differences to GRPO's, and episodes to the levels."""
    trained = {variant: evidence.variants[variant] for variant in evidence.trained}
    speed = f2.efficiency(evidence.metrics, trained)
    rows = []
    for suite in evidence.found.preset.suites:
        for variant, label in trained.items():
            own = areas(evidence, variant, suite)
            against = mean_paired_difference(areas(evidence, evidence.grpo, suite), own)
            here = speed[(speed["suite"] == suite) & (speed["variant"] == variant)]
            cells = []
            for level in LEVELS:
                row = here[(here["level"] == level) & (here["unit"] == "episodes")].iloc[0]
                sign = ">" if row["censored"] else ""
                cells.append(f"{sign}{row['value']:,.0f} ({row['arrived']} of {row['seeds']} seeds)")
            difference = "–" if variant == evidence.grpo else _points(against)
            rows.append([SUITE_LABELS[suite], label, _seeds(own), difference, *cells])
    for variant, label in trained.items():
        own = areas(evidence, variant)
        against = mean_paired_difference(areas(evidence, evidence.grpo), own)
        difference = "–" if variant == evidence.grpo else _points(against)
        rows.append(["**mean**", label, percent(float(np.mean(own))), difference, *[""] * len(LEVELS)])
    levels = [f"episodes to {100 * level:.0f}%" for level in LEVELS]
    return _table(["", "", "area (each seed, %)", f"− {trained[evidence.grpo]}", *levels], rows)


def _seeds(values: Sequence[float]) -> str:
    return f"{percent(float(np.mean(values)))} ({', '.join(percent(value) for value in values)})"


def signal(evidence: Evidence) -> str:
    """Groups that teach nothing, by outcome alone and with the variant's own reward."""
    rows = []
    for suite in evidence.found.preset.suites:
        for variant in evidence.trained:
            own = evidence.training(variant, suite)
            early = own[own["step"] <= max(1, own["step"].max() / 4)]
            cells = []
            for part in (early, own):
                total = int(part["groups"].sum())
                for column in ("groups_without_signal_outcome", "groups_without_signal"):
                    cells.append(f"{percent(part[column].sum() / total)}% of {total}")
            rows.append([SUITE_LABELS[suite], evidence.variants[variant], *cells])
    columns = [
        f"{steps}: by {what}" for steps in ("first quarter", "all steps") for what in ("outcome", "reward")
    ]
    return _table(["", "", *columns], rows)


def taught(evidence: Evidence) -> str:
    """How far rewards for failures change what a rollout counts: where they can, and by how much they do."""
    rows = []
    for suite in evidence.found.preset.suites:
        for variant in evidence.others:
            own = _part(evidence.rewards, variant, suite)
            groups = own.groupby(["seed", "step", "group"])["success"]
            succeeded, lost = groups.mean(), groups.transform("max") == 0
            advantage = own["advantage"].to_numpy(dtype=float)
            by_outcome = _advantages_by_outcome(own)
            alike = np.corrcoef(advantage, by_outcome)[0, 1]
            rows.append(
                [
                    SUITE_LABELS[suite],
                    evidence.variants[variant],
                    *(percent(share) for share in (1 - own["success"].mean(), (succeeded == 0).mean())),
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
    return _table(["", "", *columns], rows)


def _advantages_by_outcome(rewards: pd.DataFrame) -> NDArray[np.float64]:
    """The advantages (N,) that GRPO would have given to the rollouts of some runs."""
    import torch  # only here, so that the analysis starts at once

    from srpo.rl.advantages import group_advantages

    groups = rewards.groupby(["suite", "variant", "seed", "step", "group"]).ngroup().to_numpy(copy=True)
    success = rewards["success"].to_numpy(dtype=float)
    return group_advantages(torch.from_numpy(success), torch.from_numpy(groups)).numpy()


def truth(evidence: Evidence) -> str:
    """The table T3 against the truth: a value, its interval, the number of trajectories."""
    shown = t3_truth.layout(evidence.truth, "")
    rows = [row for group in shown.groups for row in group.rows]
    cells = ([*row.label, *(" ".join(cell) for cell in row.cells)] for row in rows)
    return _table([shown.corner, *shown.columns], cells)


def seeds(evidence: Evidence) -> str:
    """Every run: success of rollouts in the first and last three steps, the area, greedy success."""
    rows = []
    for suite in evidence.found.preset.suites:
        for variant in evidence.trained:
            greedy, runs = evidence.of(variant, suite), evidence.training(variant, suite).groupby("seed")
            for (seed, own), area in zip(runs, areas(evidence, variant, suite), strict=True):
                count = tables.counts(greedy[greedy["seed"] == seed])
                ends = [part["successes"].sum() / part["episodes"].sum() for part in (own[:3], own[-3:])]
                rows.append(
                    [
                        SUITE_LABELS[suite],
                        evidence.variants[variant],
                        str(seed),
                        *(percent(end) for end in ends),
                        percent(area),
                        f"{own['episodes'].sum():,}",
                        f"{count['successes']}/{count['episodes']}",
                    ]
                )
    columns = ["first 3 steps (%)", "last 3 steps (%)", "area (%)", "rollouts", "greedy, held-out"]
    return _table(["", "", "seed", *columns], rows)


PARTS = {
    "verdict": verdict,
    "held-out": held_out,
    "differences": differences,
    "efficiency": efficiency,
    "signal": signal,
    "taught": taught,
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
    parser = argparse.ArgumentParser(prog="srpo evidence", description=__doc__)
    parser.add_argument("folder", type=Path, help="rows of a preset, e.g. results/reference/mini")
    parser.add_argument("--preset", help="name or path of the preset; default: the folder's name")
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    arguments = parser.parse_args(argv)
    try:
        found = plan(*load_preset(arguments.preset or arguments.folder.name))
    except ConfigError as error:
        raise ResultError(str(error)) from None
    try:
        page = arguments.page.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultError(
            f"{arguments.page}: {error.strerror}: a page with the parts' lines is needed"
        ) from None
    evidence = read(arguments.folder, found)
    parts = {name: part(evidence) for name, part in PARTS.items()}
    write_text(arguments.page, fill(page, parts, str(arguments.page)))


if __name__ == "__main__":
    run(main)
