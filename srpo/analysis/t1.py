"""Table T1: success on LIBERO per suite and on average, ours with intervals, published rows beside them.

Every episode file has its run's resolved `config.yaml` beside it; coverage is checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from srpo.analysis import style, tables, typeset
from srpo.analysis.stats import Estimate, combine, wilson
from srpo.config import SUITES, TASKS_PER_SUITE, EvaluateStage
from srpo.results.rows import read_config, run

AVERAGE = "average"


def expected_episodes(configs: Sequence[EvaluateStage]) -> pd.DataFrame:
    """The episodes that the runs' configurations ask for: suite, variant, seed, task_id, init_state."""
    return pd.DataFrame(
        [
            (config.suite, config.variant, config.seed, task, state)
            for config in configs
            for task in config.tasks
            for state in config.protocol.test_states()[: config.evaluate.states]
        ],
        columns=["suite", "variant", "seed", "task_id", "init_state"],
    )


def estimate(
    episodes: pd.DataFrame, missing: pd.DataFrame, sheet: Mapping[str, str], published: pd.DataFrame
) -> pd.DataFrame:
    """The tidy table, one row a (variant or published model, suite); rates are fractions of 1.

    Seeds are pooled. The average is the unweighted mean over the suites that ran, for published rows over the
    same suites, and stands only where none is lacking. Differences are to the sheet's first variant, paired.
    `best` marks our highest rate of a suite where its paired difference to the second leaves no doubt.
    """
    suites = [suite for suite in SUITES if suite in set(episodes["suite"])]
    baseline = next(iter(sheet))
    rows = []
    for variant, label in sheet.items():
        of_suite = []
        for suite in suites:
            here = episodes[episodes["suite"] == suite]
            own = here[here["variant"] == variant]
            ran = own[own["status"] != "infra_error"]
            count = tables.counts(own)
            of_suite.append(count)
            first = here[here["variant"] == baseline]
            compared = own if variant != baseline else own.head(0)
            rows.append(
                {
                    "source": "ours",
                    "variant": variant,
                    "label": label,
                    "suite": suite,
                    **tables.columns_of(wilson(count["successes"], count["episodes"])),
                    **count,
                    "tasks": own["task_id"].nunique(),
                    "missing": int(((missing["variant"] == variant) & (missing["suite"] == suite)).sum()),
                    "mean_over_tasks": (ran["status"] == "success").groupby(ran["task_id"]).mean().mean(),
                    **tables.over_runs(first, own),
                    **tables.comparison_columns(tables.compare(first, compared)),
                    "protocol": here["protocol"].iloc[0],
                    "note": "",
                }
            )
        totals = {
            key: sum(count[key] for count in of_suite) for key in ("successes", "episodes", "infra_errors")
        }
        rows.append(
            {
                "source": "ours",
                "variant": variant,
                "label": label,
                "suite": AVERAGE,
                **tables.columns_of(combine([wilson(c["successes"], c["episodes"]) for c in of_suite])),
                **totals,
                "seeds": max(count["seeds"] for count in of_suite),
                "missing": int((missing["variant"] == variant).sum()),
                "note": f"unweighted mean of {len(suites)} suites",
            }
        )
    for (model, inputs), values in published.groupby(["model", "inputs"], sort=False):
        printed = dict(zip(values["column"], values["value"], strict=True))
        rates = [printed.get(_column(suite), np.nan) for suite in suites]
        all_suites = len(suites) == len(SUITES) and AVERAGE in printed
        average = printed[AVERAGE] if all_suites else float(np.mean(rates))
        for column, rate in zip([*suites, AVERAGE], [*rates, average], strict=True):
            rows.append(
                {
                    "source": "published",
                    "variant": f"{model} ({inputs})" if inputs else model,
                    "label": model,
                    "suite": column,
                    "rate": rate,
                    "note": ", ".join(sorted(set(values["source"]))),
                }
            )
    table = pd.DataFrame(rows)
    of = {key: own for key, own in episodes.groupby(["suite", "variant"])}

    def difference(suite: str, second: str, first: str) -> Estimate:
        within = suites if suite == AVERAGE else [suite]
        return combine([tables.compare(of[s, second], of[s, first]).estimate for s in within])

    ours = table[table["source"] == "ours"]
    table["best"] = table.index.isin(tables.clearly_best(ours, ["suite"], "variant", "rate", difference))
    integers = ["successes", "episodes", "infra_errors", "seeds", "tasks", "missing", "pairs"]
    return table.astype(dict.fromkeys(integers, "Int64"))


def _column(suite: str) -> str:
    """The suite's name in the file of published values."""
    return tables.SUITE_LABELS[suite].lower()


def _columns(table: pd.DataFrame) -> dict[str, str]:
    """Suite → heading; the average only where it is one of several."""
    suites = [suite for suite in SUITES if suite in set(table["suite"])]
    return {s: tables.SUITE_LABELS[s] for s in suites} | ({AVERAGE: "Average"} if len(suites) > 1 else {})


def _tasks(table: pd.DataFrame) -> dict[str, int]:
    """Suite → tasks evaluated, of the suites evaluated in part only."""
    most = table.groupby("suite")["tasks"].max().dropna()
    return {suite: int(most[suite]) for suite in SUITES if most.get(suite, TASKS_PER_SUITE) < TASKS_PER_SUITE}


def layout(table: pd.DataFrame, protocol: str) -> typeset.Table:
    """Ours above the rule (percent, interval, counts), published rows below it."""
    columns = _columns(table)
    cells = tables.cells(table, "source", "variant", "suite")
    rows: dict[str, list[typeset.Row]] = {"ours": [], "published": []}
    for source, variant in dict.fromkeys((source, variant) for source, variant, _ in cells):
        own = [cells[source, variant, suite] for suite in columns]
        label = [own[0]["label"]]
        if source == "ours" and max(cell["seeds"] for cell in own) > 1:
            label.append(f"{max(cell['seeds'] for cell in own)} seeds")
        best = frozenset(place for place, cell in enumerate(own) if cell["best"])
        rows[source].append(typeset.Row(label, [_cell(cell) for cell in own], best))
    ours = table[(table["source"] == "ours") & (table["suite"] == AVERAGE)]
    notes = [
        "Beneath the rate, its 95% interval (Wilson; averages combined by MOVER) and successes/episodes. "
        f"Average: unweighted mean of the suites. {tables.BOLD} Published rows: other code and protocols, so "
        "not a like-for-like comparison.",
        *(f"{columns[s]}: {n} of {TASKS_PER_SUITE} tasks only." for s, n in _tasks(table).items()),
        *tables.coverage_notes(int(ours["infra_errors"].sum()), int(ours["missing"].sum())),
    ]
    groups = [
        typeset.Group("", rows["ours"]),
        typeset.Group("Published, as printed elsewhere", rows["published"]),
    ]
    caption = f"Success on LIBERO in percent, greedy decoding. {protocol}"
    return typeset.Table(caption, "Model", list(columns.values()), groups, notes)


def _cell(row: Mapping[str, Any]) -> list[str]:
    if row["source"] == "published":
        return [tables.percent(row["rate"])]
    if row["episodes"] == 0:
        return [tables.NOT_RUN]
    if np.isnan(row["rate"]):
        return ["–"]
    return [
        tables.percent(row["rate"]),
        f"[{tables.percent(row['low'])},{tables.percent(row['high'])}]",
        f"{row['successes']}/{row['episodes']}",
    ]


def draw(table: pd.DataFrame) -> Figure:
    """A dot plot: one panel a suite, one row a model; ours above the line, published hollow below it."""
    columns = _columns(table)
    few = _tasks(table)
    cells = tables.cells(table, "source", "variant", "suite")
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
                    tables.NOT_RUN if row["episodes"] == 0 else "–",
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
            heading += f"\n({few[suite]} of {TASKS_PER_SUITE} tasks)"
        axes.set(xlim=(-4, 104), xticks=[0, 50, 100], ylim=(min(heights) - 0.6, 0.7), title=heading)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(heights, [cells[*model, next(iter(columns))]["label"] for model in models])
    for text, (source, _) in zip(panels[0].get_yticklabels(), models, strict=True):
        text.set_color(style.PUBLISHED if source == "published" else "black")
    figure.supxlabel("success (%); hollow: published", fontsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = tables.parser("t1", __doc__)
    parser.add_argument("--sheet", type=Path, required=True, help="variants and labels (TSV)")
    parser.add_argument(
        "--episodes", type=Path, nargs="+", required=True, help="episodes.parquet of every run"
    )
    arguments = parser.parse_args(argv)
    sheet = tables.read_sheet(arguments.sheet)
    expected = expected_episodes([read_config(path, EvaluateStage) for path in arguments.episodes])
    episodes, missing = tables.load_episodes(
        arguments.episodes, "libero", sheet, expected, arguments.allow_incomplete
    )
    table = estimate(episodes, missing, sheet, tables.read_published(arguments.published, "T1"))
    lacking = tables.lacking_episodes(episodes, missing, sheet)
    tables.write(arguments, table, draw, lacking, layout(table, tables.protocol_note(episodes)))


if __name__ == "__main__":
    run(main)
