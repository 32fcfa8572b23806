"""Table T1: success on LIBERO per suite and on average, ours with intervals, published rows beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from srpo.analysis import comparisons, style, text, typeset
from srpo.analysis.drawn import Drawn
from srpo.analysis.published import read_published
from srpo.analysis.stats import NO_PAIRS, Estimate, combine
from srpo.config import SUITES, TASKS_PER_SUITE
from srpo.config.sheets import SheetRow, baseline, labels
from srpo.results.coverage import load_evaluations, may_stop_early

AVERAGE = "average"
COLUMNS = [
    *("source", "variant", "label", "suite", "rate", "low", "high"),
    *("successes", "episodes", "infra_errors", "seeds", "tasks", "missing", "mean_over_tasks"),
    *("runs_low", "runs_high", "iqm", "improvement"),
    *("difference", "difference_low", "difference_high", "pairs", "p_value", "protocol", "note"),
]
INTEGERS = ["successes", "episodes", "infra_errors", "seeds", "tasks", "missing", "pairs"]


def make(
    episodes: Sequence[Path], sheet: Sequence[SheetRow], published: Path, allow_incomplete: bool
) -> Drawn:
    """The table of the evaluations in these files of episodes."""
    rows, missing = load_evaluations(episodes, labels(sheet), allow_incomplete)
    table = estimate(rows, missing, sheet, read_published(published, "T1"), may_stop_early(episodes))
    return Drawn(
        table,
        lambda: draw(table),
        layout(table, text.protocol_note(rows) + text.overlap_note(episodes, labels(sheet))),
        missing=text.lacking_episodes(rows, missing, labels(sheet)),
    )


def estimate(
    episodes: pd.DataFrame,
    missing: pd.DataFrame,
    sheet: Sequence[SheetRow],
    published: pd.DataFrame,
    asked: Mapping[tuple[str, str], int] | None = None,
) -> pd.DataFrame:
    """The tidy table, one row a (variant or published model, suite); rates are fractions of 1.

    Seeds are pooled, and their episodes on one task and state are one cluster of a rate's interval. The
    average is the unweighted mean over the suites that ran, for published rows over the same suites, and
    stands only where none is lacking. Differences are to the sheet's baseline (`comparisons.compare`). `best`
    marks our highest rate of a suite where its difference to the second leaves no doubt.

    Args:
        asked: (suite, variant) of evaluations that may have stopped early → the episodes that they asked for.
            Intervals and p of what they take part in hold whenever they stop.
    """
    asked = asked or {}
    suites: list[str] = [suite for suite in SUITES if suite in set(episodes["suite"])]
    of = {
        (suite, row.name): episodes[(episodes["suite"] == suite) & (episodes["variant"] == row.name)]
        for suite in suites
        for row in sheet
    }
    first = baseline(sheet).name
    rows: list[dict[str, Any]] = []
    for name, label in labels(sheet).items():
        identity = {"source": "ours", "variant": name, "label": label}
        lacking = missing[missing["variant"] == name]
        measured = []
        for suite in suites:
            stops = [(suite, each) in asked for each in (first, name)]
            row = _measured(of[suite, first], of[suite, name], name == first, *stops)
            row |= {"missing": int((lacking["suite"] == suite).sum())}
            row["note"] = _stopping(row, asked.get((suite, name), 0))
            row["protocol"] = episodes.loc[episodes["suite"] == suite, "protocol"].iloc[0]
            measured.append({**identity, "suite": suite, **row})
        average = _average(measured) | {"missing": len(lacking)}
        if any((suite, name) in asked for suite in suites):
            together = comparisons.rate_at_any_time(pd.concat([of[suite, name] for suite in suites]))
            average |= comparisons.columns_of(together)
        rows += [*measured, {**identity, **average}]
    table = pd.DataFrame([*rows, *_published_rows(published, suites)], columns=COLUMNS)

    def difference(suite: str, second: str, first: str) -> Estimate:
        within = suites if suite == AVERAGE else [suite]
        pair = [pd.concat([of[s, name] for s in within]) for name in (second, first)]
        if {(s, name) for s in within for name in (second, first)} & asked.keys():
            return comparisons.compare_at_any_time(*pair).estimate
        return comparisons.compare(*pair, by="suite").estimate

    ours = table[table["source"] == "ours"]
    best = comparisons.clearly_best(ours, ["suite"], "variant", "rate", difference)
    return table.assign(best=table.index.isin(best)).astype(dict.fromkeys(INTEGERS, "Int64"))


def _measured(
    first: pd.DataFrame, rows: pd.DataFrame, is_baseline: bool, first_stops: bool, stops: bool
) -> dict[str, Any]:
    """What the episodes of a variant in a suite say, beside those of the baseline (`first`).

    `first_stops`, `stops`: that evaluation may have stopped early. Its rate and what is compared with it have
    intervals that hold whenever it stops, and say nothing about other runs.
    """
    ran = rows[rows["status"] != "infra_error"]
    compare = comparisons.compare_at_any_time if first_stops or stops else comparisons.compare
    return {
        **comparisons.counts(rows),
        **comparisons.columns_of((comparisons.rate_at_any_time if stops else comparisons.rate)(rows)),
        "tasks": rows["task_id"].nunique(),
        "mean_over_tasks": (ran["status"] == "success").groupby(ran["task_id"]).mean().mean(),
        **({} if first_stops or stops else comparisons.over_runs(first, rows)),
        **comparisons.comparison_columns(NO_PAIRS if is_baseline else compare(first, rows)),
    }


def _stopping(row: Mapping[str, Any], asked: int) -> str:
    """How an evaluation that asked for so many episodes ended, if it may have stopped early."""
    if not asked:
        return ""
    ran = row["episodes"] + row["infra_errors"]
    return f"stopped after {ran} of {asked} episodes" if ran < asked else f"all {asked} episodes"


def _average(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The unweighted mean of a variant's suites, with the sums of their counts."""
    rates = [Estimate(row["rate"], row["low"], row["high"]) for row in measured]
    return {
        "suite": AVERAGE,
        **comparisons.columns_of(combine(rates)),
        **{key: sum(row[key] for row in measured) for key in ("successes", "episodes", "infra_errors")},
        "seeds": max(row["seeds"] for row in measured),
        "note": f"unweighted mean of {len(measured)} suites",
    }


def _published_rows(published: pd.DataFrame, suites: Sequence[str]) -> list[dict[str, Any]]:
    """Published models over the same suites; the printed average only where that is over all of them."""
    rows = []
    for (model, inputs), values in published.groupby(["model", "inputs"], sort=False):
        printed = dict(zip(values["column"], values["value"], strict=True))
        rates = [printed.get(_column(suite), np.nan) for suite in suites]
        all_suites = len(suites) == len(SUITES) and AVERAGE in printed
        average = printed[AVERAGE] if all_suites else float(np.mean(rates))
        if np.isnan([*rates, average]).all():
            continue
        rows += [
            {
                "source": "published",
                "variant": f"{model} ({inputs})" if inputs else model,
                "label": model,
                "suite": suite,
                "rate": rate,
                "note": ", ".join(sorted(set(values["source"]))),
            }
            for suite, rate in zip([*suites, AVERAGE], [*rates, average], strict=True)
        ]
    return rows


def _column(suite: str) -> str:
    """The suite's name in the file of published values."""
    return text.SUITE_LABELS[suite].lower()


def _columns(table: pd.DataFrame) -> dict[str, str]:
    """Suite → heading; the average only where it is one of several."""
    suites = [suite for suite in SUITES if suite in set(table["suite"])]
    return {s: text.SUITE_LABELS[s] for s in suites} | ({AVERAGE: "Average"} if len(suites) > 1 else {})


def _tasks(table: pd.DataFrame) -> dict[str, int]:
    """Suite → tasks evaluated, of the suites evaluated in part only."""
    most = table.groupby("suite")["tasks"].max().dropna()
    return {suite: int(most[suite]) for suite in SUITES if most.get(suite, TASKS_PER_SUITE) < TASKS_PER_SUITE}


def layout(table: pd.DataFrame, protocol: str) -> typeset.Table:
    """Ours above the rule (percent, interval, counts), published rows below it."""
    columns = _columns(table)
    cells = comparisons.cells(table, "source", "variant", "suite")
    rows: dict[str, list[typeset.Row]] = {"ours": [], "published": []}
    for source, variant in dict.fromkeys((source, variant) for source, variant, _ in cells):
        row = [cells[source, variant, suite] for suite in columns]
        label = [row[0]["label"]]
        if source == "ours" and (seeds := max(cell["seeds"] for cell in row)) > 1:
            label.append(f"{seeds} seeds")
        best = frozenset(place for place, cell in enumerate(row) if cell["best"])
        rows[source].append(typeset.Row(label, [_cell(cell) for cell in row], best))
    ours = table[(table["source"] == "ours") & (table["suite"] == AVERAGE)]
    notes = [
        f"Beneath the rate, its 95% interval and successes/episodes. {text.RATES} "
        f"Average: unweighted mean of the suites. {text.BOLD} Published rows: other code and protocols, so "
        "not a like-for-like comparison.",
        *(f"{columns[s]}: {n} of {TASKS_PER_SUITE} tasks only." for s, n in _tasks(table).items()),
        *_stopping_notes(table, columns),
        *text.infra_errors_note(int(ours["infra_errors"].sum())),
    ]
    groups = [
        typeset.Group("", rows["ours"]),
        typeset.Group("Published, as printed elsewhere", rows["published"]),
    ]
    caption = f"Success on LIBERO in percent, greedy decoding. {protocol}"
    return typeset.Table(caption, "Model", list(columns.values()), groups, notes)


def _stopping_notes(table: pd.DataFrame, columns: Mapping[str, str]) -> list[str]:
    """What a reader must know of evaluations that may have stopped early."""
    looked = table[(table["source"] == "ours") & (table["suite"] != AVERAGE) & (table["note"] != "")]
    if looked.empty:
        return []
    each = "; ".join(
        f"{row['label']}, {columns[row['suite']]}: {row['note']}" for row in looked.to_dict("records")
    )
    return [
        f"Evaluations that end once their comparison with SFT is decided: {each}. Their intervals and p hold "
        "whenever they end, and are wider; the rate and difference at which one stopped are, on average, too "
        "far from SFT's."
    ]


def _cell(row: Mapping[str, Any]) -> list[str]:
    if row["source"] == "published":
        return [text.percent(row["rate"])]
    if row["episodes"] == 0:
        return [text.NOT_RUN]
    if np.isnan(row["rate"]):
        return ["–"]
    return [
        text.percent(row["rate"]),
        f"[{text.percent(row['low'])},{text.percent(row['high'])}]",
        f"{row['successes']}/{row['episodes']}",
    ]


def draw(table: pd.DataFrame) -> Figure:
    """A dot plot: one panel a suite, one row a model; ours above the line, published hollow below it."""
    columns = _columns(table)
    few = _tasks(table)
    cells = comparisons.cells(table, "source", "variant", "suite")
    models = list(dict.fromkeys((source, variant) for source, variant, _ in cells))
    ours = sum(source == "ours" for source, _ in models)
    # Published rows stand closer together: they carry one number each.
    heights = [-float(i) if i < ours else -ours - 0.2 - 0.72 * (i - ours) for i in range(len(models))]
    size = (1.6 + 1.08 * len(columns), 0.8 - 0.2 * min(heights))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (suite, heading) in zip(panels, columns.items(), strict=True):
        for y, (source, variant) in zip(heights, models, strict=True):
            row = cells[source, variant, suite]
            if source == "published":
                style.published_dot(axes, y, 100 * row["rate"])
            elif np.isnan(row["rate"]):
                axes.text(
                    50,
                    y,
                    text.NOT_RUN if row["episodes"] == 0 else "–",
                    ha="center",
                    va="center",
                    fontsize=6,
                )
            else:
                estimate = (100 * row["rate"], 100 * row["low"], 100 * row["high"])
                style.dot(axes, y, estimate, style.look(variant))
                axes.text(109, y, f"{row['successes']}/{row['episodes']}", va="center", fontsize=5.5)
        if ours < len(models):
            axes.axhline((heights[ours - 1] + heights[ours]) / 2, color="#999999", linewidth=0.6)
        if suite in few:
            heading += f"\n{few[suite]} of {TASKS_PER_SUITE} tasks"
        axes.set(xlim=(-4, 104), xticks=[0, 50, 100], ylim=(min(heights) - 0.6, 0.7))
        axes.set_title(heading, fontsize=7)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(heights, [cells[*model, next(iter(columns))]["label"] for model in models])
    for label, (source, _) in zip(panels[0].get_yticklabels(), models, strict=True):
        label.set_color(style.PUBLISHED if source == "published" else "black")
    figure.supxlabel("success (%); hollow: published", fontsize=8)
    return figure
