"""Table T2: success on LIBERO-Plus for each perturbation dimension, every variant against the baseline."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from srpo.analysis import comparisons, style, text, typeset
from srpo.analysis.drawn import Drawn
from srpo.analysis.published import read_published
from srpo.analysis.stats import NO_PAIRS, Estimate, combine
from srpo.config import DIMENSIONS, STYLES, PlusStage
from srpo.config.sheets import SheetRow, baseline, labels
from srpo.libero_plus import tasks as plus_tasks
from srpo.libero_plus.sweep import EPISODE, expected_shards
from srpo.results import ResultError
from srpo.results.coverage import load_episodes, read_config

TOTALS = ("macro", "micro")
UNAVAILABLE = "unavailable"
"""Note of a dimension whose every task asked for cannot run here."""
LABELS: dict[str, str] = {
    **{dimension: text.PERTURBATION_LABELS[dimension] for dimension in DIMENSIONS},
    "macro": "Total (macro)",
    "micro": "Total (micro)",
    **{style: text.PERTURBATION_LABELS[style] for style in STYLES},
}
"""Columns: LIBERO-Plus's dimensions, its totals, and our own styles, which are in no total."""
COLUMNS = [
    *("source", "variant", "label", "dimension", "rate", "low", "high"),
    *("successes", "episodes", "infra_errors", "seeds", "tasks", "benchmark_tasks"),
    *("missing", "unavailable", "asked"),
    *("difference", "difference_low", "difference_high", "pairs", "p_value", "note"),
]
INTEGERS = [
    *("successes", "episodes", "infra_errors", "seeds", "tasks", "benchmark_tasks"),
    *("missing", "unavailable", "asked", "pairs"),
]


def make(
    episodes: Sequence[Path],
    tasks: Path,
    sheet: Sequence[SheetRow],
    published: Path,
    allow_incomplete: bool,
) -> Drawn:
    """The table of the sweeps in these files of episodes, with LIBERO-Plus's list of tasks."""
    rows, missing, shards = load_sweeps(episodes, tasks, labels(sheet), allow_incomplete)
    table = estimate(rows, missing, sheet, read_published(published, "T2"), shards)
    return Drawn(
        table,
        lambda: draw(table),
        layout(
            table,
            text.protocol_note(rows) + text.overlap_note(episodes, labels(sheet)),
            baseline(sheet).name,
        ),
        missing=text.lacking_episodes(rows, missing, labels(sheet)),
    )


def load_sweeps(
    paths: Sequence[Path], tasks: Path, variants: Collection[str], allow_incomplete: bool
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame | None]:
    """Episodes on LIBERO-Plus, the expected ones that are missing, and the shards (None: all run whole).

    Episodes that were not run because a shard's comparison was decided are among the missing ones, whether or
    not such are allowed. Where shards may stop early, all expected episodes are given with their shard
    (`expected_shards`), less the unavailable ones.
    """
    try:
        listed = plus_tasks.read_tasks(tasks)
    except (OSError, ValueError) as error:
        raise ResultError(str(error)) from None
    shards = expected_shards([read_config(path, PlusStage) for path in paths], listed)
    episodes, missing = load_episodes(paths, "libero_plus", variants, shards[EPISODE], allow_incomplete)
    stopped = episodes["status"] == "stopped"
    missing = pd.concat([missing, episodes.loc[stopped, EPISODE]], ignore_index=True)
    episodes = episodes[~stopped]
    if not shards["stops_early"].any():
        return episodes, missing, None
    if (shards.groupby(["suite", "perturbation_task"])["shard"].nunique() > 1).any():
        raise ResultError(
            "sweeps of one suite have other tasks in their shards, and shards may stop early: use one "
            "plus.shard_size and one plus.per_dimension"
        )
    unavailable = episodes.loc[episodes["status"] == "unavailable", EPISODE]
    shards = shards.merge(unavailable, how="left", on=EPISODE, indicator=True)
    return episodes, missing, shards[shards["_merge"] == "left_only"].drop(columns="_merge")


def benchmark_sizes(suites: Sequence[str]) -> dict[str, int]:
    """Tasks that LIBERO-Plus has in these suites, by dimension."""
    return {
        dimension: sum(counts[dimension] for suite in suites for counts in plus_tasks.COUNTS[suite].values())
        for dimension in DIMENSIONS
    }


def estimate(
    episodes: pd.DataFrame,
    missing: pd.DataFrame,
    sheet: Sequence[SheetRow],
    published: pd.DataFrame,
    shards: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The tidy table: a row for each variant or published model, and dimension or total. Rates are fractions.

    Suites and seeds are pooled, and episodes of several seeds on one task are one cluster of a rate's
    interval. Totals are over the dimensions that ran: `macro` is their unweighted mean (the SRPO paper's),
    `micro` weighs them by LIBERO-Plus' number of tasks (the leaderboard's); a total's difference, interval
    and p are of that very mean. Tasks that are unavailable here are counted apart (`unavailable`) and are in
    no rate: a dimension of which some are has the rate of the others, and says so. A dimension that did not
    run has no rate. Our styles have rows of their own and are in no total. `best` marks our highest rate of a
    dimension or total where its difference to the second leaves no doubt.

    Args:
        shards: where sweeps may stop early, the episodes that were to run, and their shards (`load_sweeps`).
            `asked` is their number. Rates and differences of such sweeps are the mean of their shards,
            weighed by these tasks, and intervals and p hold whenever the shards stop.
    """
    looked, parts = pd.DataFrame(columns=["variant", "perturbation"]), None
    if shards is not None:
        looked = shards[shards["stops_early"]]
        parts = shards[["suite", "perturbation", "perturbation_task", "shard"]].drop_duplicates()
    may_stop = set(looked["variant"])
    sizes = benchmark_sizes(sorted(set(episodes["suite"])))
    unavailable = episodes[episodes["status"] == "unavailable"]
    episodes = episodes[episodes["status"] != "unavailable"]
    ran = [dimension for dimension in DIMENSIONS if dimension in set(episodes["perturbation"])]
    rows: list[dict[str, Any]] = []
    for name, label in labels(sheet).items():
        lacking = {
            column: frame.loc[frame["variant"] == name, "perturbation"]
            for column, frame in (("missing", missing), ("unavailable", unavailable))
        }
        first = baseline(sheet).name
        compared = parts if may_stop & {first, name} else None
        group = _variant_rows(episodes, first, name, sizes, lacking, compared, name in may_stop)
        asked = _asked(looked[looked["variant"] == name])
        rows += [
            {"source": "ours", "variant": name, "label": label, "asked": asked.get(row["dimension"]), **row}
            for row in group
        ]
    table = pd.DataFrame([*rows, *_published_rows(published, ran)], columns=COLUMNS)
    nothing = episodes.iloc[:0]  # sweeps may stop before any episode of a dimension
    of = {key: group for key, group in episodes.groupby(["perturbation", "variant"])}

    def difference(dimension: str, second: str, first: str) -> Estimate:
        within = ran if dimension in TOTALS else [dimension]
        pair = [pd.concat([of.get((d, name), nothing) for d in within]) for name in (second, first)]
        weights = sizes if dimension == "micro" else None
        if parts is not None and may_stop & {first, second}:
            here = parts[parts["perturbation"].isin(within)]
            return comparisons.compare_at_any_time(*pair, shards=here, weights=weights).estimate
        return comparisons.compare(*pair, by="perturbation", weights=weights).estimate

    ours = table[table["source"] == "ours"]
    best = comparisons.clearly_best(ours, ["dimension"], "variant", "rate", difference)
    return table.astype(dict.fromkeys(INTEGERS, "Int64")).assign(best=table.index.isin(best))


def _asked(looked: pd.DataFrame) -> dict[str, int]:
    """Episodes that a variant's sweeps were to run, by dimension and in total; empty if none could stop."""
    asked = {str(dimension): len(rows) for dimension, rows in looked.groupby("perturbation")}
    total = sum(number for dimension, number in asked.items() if dimension in DIMENSIONS)
    return asked | dict.fromkeys(TOTALS, total) if asked else {}


def _variant_rows(
    episodes: pd.DataFrame,
    first: str,
    name: str,
    sizes: Mapping[str, int],
    lacking: Mapping[str, pd.Series],
    shards: pd.DataFrame | None,
    stops: bool,
) -> Iterator[dict[str, Any]]:
    """A variant's rows: every dimension, then the totals.

    Args:
        episodes: those that ran, of all variants.
        first, name: the baseline and the variant.
        lacking: `missing` and `unavailable` → the perturbations of such episodes of the variant.
        shards: where the variant or the baseline may have stopped early, the tasks and their shards.
        stops: the variant may have.
    """

    def measured(dimensions: Collection[str], weights: Mapping[str, int] | None = None) -> dict[str, Any]:
        here = episodes[episodes["perturbation"].isin(list(dimensions))]
        rows, before = (here[here["variant"] == variant] for variant in (name, first))
        pairs, at_any_time = NO_PAIRS, {}
        parts = None if shards is None else shards[shards["perturbation"].isin(list(dimensions))]
        if stops:
            at_any_time = comparisons.columns_of(comparisons.rate_at_any_time(rows, parts, weights))
        if name != first and parts is not None:
            pairs = comparisons.compare_at_any_time(before, rows, shards=parts, weights=weights)
        elif name != first:
            pairs = comparisons.compare(before, rows, by="perturbation", weights=weights)
        return {
            **comparisons.rate_columns(rows),
            **at_any_time,
            "tasks": rows["perturbation_task"].nunique(),
            **comparisons.comparison_columns(pairs),
        }

    tested = set(episodes["perturbation"])
    rates: list[Estimate] = []
    for dimension in DIMENSIONS + STYLES:
        without = int((lacking["unavailable"] == dimension).sum())
        counted = {"dimension": dimension, "unavailable": without}
        if dimension not in tested:
            yield {**counted, "note": UNAVAILABLE if without else text.NOT_RUN}
            continue
        row = measured([dimension])
        if dimension in DIMENSIONS:
            rates.append(Estimate(row["rate"], row["low"], row["high"]))
        yield {
            **counted,
            **row,
            "benchmark_tasks": sizes.get(dimension),
            "missing": int((lacking["missing"] == dimension).sum()),
            "note": f"without {without} unavailable tasks" if without else "",
        }
    ran = [dimension for dimension in DIMENSIONS if dimension in tested]
    its_own = set(episodes.loc[episodes["variant"] == name, "perturbation"])
    none = [dimension for dimension in ran if stops and dimension not in its_own]
    stopped = f"; stopped before any of {', '.join(none)}" if none else ""
    before = set(episodes.loc[episodes["variant"] == first, "perturbation"])
    for total in TOTALS:
        weights = sizes if total == "micro" else None
        each = None if weights is None else [float(weights[dimension]) for dimension in ran]
        row = measured(ran, weights)
        if not stops:
            row |= comparisons.columns_of(combine(rates, each))
            if not (its_own & before).issuperset(ran):
                row |= comparisons.comparison_columns(NO_PAIRS)
        yield {
            "dimension": total,
            **row,
            "benchmark_tasks": sum(sizes[dimension] for dimension in ran),
            "missing": len(lacking["missing"]),
            "unavailable": int(lacking["unavailable"].isin(DIMENSIONS).sum()),
            "note": f"over {len(ran) - len(none)} of {len(DIMENSIONS)} dimensions{stopped}",
        }


def _published_rows(published: pd.DataFrame, ran: Sequence[str]) -> list[dict[str, Any]]:
    """Published models with a value for at least one dimension that ran, or, if all ran, with a total.

    A printed total is macro or micro as its note says. Over fewer dimensions than seven there is no printed
    total: macro is then the mean of the printed values of the same dimensions, and micro stays empty.
    """
    rows = []
    for (model, inputs), values in published.groupby(["model", "inputs"], sort=False):
        printed = dict(zip(values["column"], values["value"], strict=True))
        rates: dict[str, float] = {dimension: printed.get(dimension, np.nan) for dimension in DIMENSIONS}
        if len(ran) == len(DIMENSIONS):
            totals = _printed_totals(values[values["column"] == "total"])
        else:
            totals = {"macro": float(np.mean([rates[dimension] for dimension in ran])), "micro": np.nan}
        rates |= totals
        if np.isnan([rates[dimension] for dimension in (*ran, *TOTALS)]).all():
            continue
        for dimension, rate in rates.items():
            rows.append(
                {
                    "source": "published",
                    "variant": f"{model} ({inputs})" if inputs else model,
                    "label": f"{model} ({inputs})" if str(inputs).startswith("trained") else model,
                    "dimension": dimension,
                    "rate": rate,
                    "note": ", ".join(sorted(set(values["source"]))),
                }
            )
    return rows


def _printed_totals(total: pd.DataFrame) -> dict[str, float]:
    """Read "a macro average; micro is 57.3" and its like; a total of unknown kind is left out."""
    result = dict.fromkeys(TOTALS, np.nan)
    for value, note in zip(total["value"], total["note"], strict=True):
        for kind in re.findall(r"a (macro|micro) average", note):
            result[kind] = value
        for kind, other in re.findall(r"(macro|micro) is ([\d.]+)", note):
            result[kind] = float(other) / 100
    return result


STYLE_NOTE = (
    "Columns (style): our own light, background and distractors on LIBERO's own assets, no part of "
    "LIBERO-Plus and in no total."
)
_EMPTY: Mapping[str, Any] = {"source": "published", "rate": np.nan, "label": "", "best": False}


def _columns(table: pd.DataFrame) -> list[str]:
    """The columns to show: our styles only where they ran."""
    shown = set(table.loc[(table["source"] == "ours") & table["rate"].notna(), "dimension"])
    return [dimension for dimension in LABELS if dimension not in STYLES or dimension in shown]


def _text(row: Mapping[str, Any]) -> list[str]:
    if row["source"] == "published":
        return [text.percent(row["rate"])]
    if row["note"] in (text.NOT_RUN, UNAVAILABLE):
        return [row["note"]]
    if np.isnan(row["rate"]):
        return ["–"]
    return [
        text.percent(row["rate"]),
        f"[{text.percent(row['low'])},{text.percent(row['high'])}]",
        f"{row['successes']}/{row['episodes']}",
        *([f"({row['unavailable']} unavailable)"] if row["unavailable"] else []),
    ]


def _difference(row: Mapping[str, Any]) -> list[str]:
    if np.isnan(row["difference"]):
        return [""]
    low, high = (text.percent(row[f"difference_{side}"]) for side in ("low", "high"))
    return [text.percent(row["difference"], sign=True), f"[{low},{high}]", text.p_text(row["p_value"])]


def layout(table: pd.DataFrame, protocol: str, first: str) -> typeset.Table:
    """Per variant its success, then its paired difference to the baseline `first`; published rows below a
    rule."""
    cells = comparisons.cells(table, "source", "variant", "dimension")
    models = list(dict.fromkeys((source, variant) for source, variant, _ in cells))
    columns = _columns(table)
    ours, published = [], []
    for model in models:
        row = [cells.get((*model, dimension), _EMPTY) for dimension in columns]
        if model[0] == "published":
            label = row[0]["label"].replace(" (", "\n(").split("\n")  # what it was trained on goes below
            published.append(typeset.Row(label, [_text(cell) for cell in row]))
            continue
        seeds = cells[*model, "micro"]["seeds"]
        name = [row[0]["label"], *([f"{seeds} seeds"] if seeds > 1 else [])]
        best = frozenset(place for place, cell in enumerate(row) if cell["best"])
        ours.append(typeset.Row(name, [_text(cell) for cell in row], best))
        if model != ("ours", first):
            subtracted = f"− {cells['ours', first, 'macro']['label']}"
            ours.append(typeset.Row([subtracted], [_difference(cell) for cell in row]))
    totals = table[(table["source"] == "ours") & (table["dimension"] == "micro")]
    without = int(totals["unavailable"].max())
    notes = [
        f"Beneath the rate, its 95% interval and successes/episodes. {text.RATES} "
        f"Differences in percentage points, with interval and two-sided p. {text.DIFFERENCES} "
        "Totals: (macro), the mean of the dimensions; (micro), weighted by LIBERO-Plus' number of tasks. "
        f"Our totals are {totals['note'].iloc[0]}. {text.BOLD} "
        "Published rows: other code and protocols, so not a like-for-like comparison.",
        *([STYLE_NOTE] if set(columns) & set(STYLES) else []),
        *(
            [f"{without} tasks are unavailable without LIBERO-Plus' asset pack; no rate has them."]
            if without
            else []
        ),
        *_stopping_notes(totals),
        *text.infra_errors_note(int(totals["infra_errors"].sum())),
    ]
    groups = [typeset.Group("", ours), typeset.Group("Published, as printed elsewhere", published)]
    heads = [LABELS[dimension].removeprefix("Total ") for dimension in columns]
    caption = f"Success on LIBERO-Plus in percent, by what is perturbed; greedy decoding. {protocol}"
    return typeset.Table(caption, "Model", heads, groups, notes)


def _stopping_notes(totals: pd.DataFrame) -> list[str]:
    """What a reader must know of sweeps that may have stopped early, from our rows of a total."""
    looked = totals.dropna(subset=["asked"])
    if looked.empty:
        return []
    cells = comparisons.cells(looked, "variant").values()
    each = "; ".join(f"{row['label']}, {_stopping(row)}" for row in cells)
    return [
        f"Sweeps whose shards end once their comparison with SFT is decided: {each}. Rate and difference are "
        "the mean of the shards, weighed by the tasks that they were to run. Intervals and p hold whenever "
        "shards end, and are wider; where one stopped, both are, on average, too far from SFT's."
    ]


def _stopping(row: Mapping[str, Any]) -> str:
    ran = row["episodes"] + row["infra_errors"]
    return f"{ran} of {row['asked']} episodes" if ran < row["asked"] else f"all {ran} episodes"


def draw(table: pd.DataFrame) -> Figure:
    """Grouped dots: one group a dimension, in it one line a variant and one for all published values."""
    cells = comparisons.cells(table, "source", "variant", "dimension")
    models = list(dict.fromkeys((source, variant) for source, variant, _ in cells))
    ours = [variant for source, variant in models if source == "ours"]
    published = [variant for source, variant in models if source == "published"]
    columns = _columns(table)
    markers = dict(zip(published, itertools.cycle("osD^v<>phX*d"), strict=False))
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    y = 0.0  # of the next line; lines lie one apart, downwards
    ticks = []
    for dimension in columns:
        top = y
        ran = [v for v in ours if not np.isnan(cells["ours", v, dimension]["rate"])]
        for variant in ran:
            row = cells["ours", variant, dimension]
            style.dot(axes, y, (100 * row["rate"], 100 * row["low"], 100 * row["high"]), style.look(variant))
            axes.text(107, y, f"{row['successes']}/{row['episodes']}", va="center", fontsize=5.5)
            y -= 1
        if not ran:
            axes.text(107, y, cells["ours", ours[0], dimension]["note"], va="center", fontsize=5.5)
        rates = {v: cells["published", v, dimension]["rate"] for v in published if dimension not in STYLES}
        shown = {variant: rate for variant, rate in rates.items() if not np.isnan(rate)}
        for variant, rate in shown.items():
            style.published_dot(axes, y, 100 * rate, markers[variant])
        if shown or not ran:
            y -= 1
        ticks.append((top + y + 1) / 2)
        last = dimension == columns[-1]
        before_totals = dimension in (DIMENSIONS[-1], TOTALS[-1])
        if not last:
            axes.axhline(y + 0.1, color="#999999" if before_totals else "#E5E5E5", linewidth=0.6, zorder=0)
            y -= 0.8
    some = cells["ours", ours[0], "macro"]["note"].removeprefix("over ")
    partly = some != f"{len(DIMENSIONS)} of {len(DIMENSIONS)} dimensions"
    labels = [f"{LABELS[d]}\n{some}" if partly and d in TOTALS else LABELS[d] for d in columns]
    axes.set_yticks(ticks, labels)
    axes.set(xlim=(-3, 103), ylim=(y + 0.2, 0.8), xlabel="success (%)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    handles = []
    for source, variant in models:
        colour, marker = style.look(variant) if source == "ours" else (style.PUBLISHED, markers[variant])
        label = cells[source, variant, "macro"]["label"] + (" (published)" if source == "published" else "")
        handles.append(style.legend_marker(colour, marker, label, hollow=source == "published"))
    figure.legend(handles=handles, loc="outside lower center", ncols=1, fontsize=6.5)
    figure.set_size_inches(3.6, 0.6 + 0.14 * (len(handles) - y))
    return figure
