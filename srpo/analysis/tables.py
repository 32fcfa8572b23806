"""What the tables have in common: sheets, published values, counting, comparing, writing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from srpo.analysis import style
from srpo.analysis.stats import (
    Estimate,
    PairedDifference,
    hierarchical,
    interquartile_mean,
    paired_difference,
    probability_of_improvement,
)
from srpo.analysis.typeset import Table, to_html, to_latex
from srpo.config import EvaluateStage, RewardBenchmarkStage, TrainStage
from srpo.results.rows import (
    Column,
    ResultError,
    Schema,
    missing_rows,
    protocol_record,
    read_config,
    read_episodes,
    read_mujoco,
    read_rows,
)
from srpo.runtime.files import write_text, write_with

SUITE_LABELS = {
    "libero_spatial": "Spatial",
    "libero_object": "Object",
    "libero_goal": "Goal",
    "libero_10": "Long",
}
NOT_RUN = "not run"
BOLD = (
    "Bold: our highest, where the 95% interval of its difference to our second highest, paired by task and "
    "initial state, lies above 0; that speaks of these policies, not of other training seeds."
)

PUBLISHED = Schema(
    "published.csv",
    "a value that somebody published",
    {
        "table": Column("str", "which of our tables it stands beside", values=("T1", "T2", "T3")),
        "model": Column("str", "the model, as its authors call it"),
        "inputs": Column("str", "its inputs or setting", True),
        "column": Column("str", "the table's column"),
        "value": Column("float", "the value as printed"),
        "unit": Column("str", "`percent`, or null for a plain number", True),
        "source": Column("str", "where it is printed"),
        "note": Column("str", "what to know about it", True),
    },
)


def read_published(path: Path, table: str) -> pd.DataFrame:
    """Published values of one table; percentages become fractions, null text becomes ''."""
    published = read_rows(path, PUBLISHED)
    published = published[published["table"] == table].fillna({"inputs": "", "note": "", "unit": ""})
    published.loc[published["unit"] == "percent", "value"] /= 100
    return published.drop(columns=["table", "unit"])


def read_sheet(path: Path) -> dict[str, str]:
    """Variant → label, in the sheet's order; the first is the baseline of every comparison."""
    try:
        sheet = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, comment="#")
    except (FileNotFoundError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ResultError(f"{path}: not a sheet: {error}") from None
    if list(sheet.columns) != ["variant", "label"]:
        raise ResultError(f"{path}: columns are {list(sheet.columns)}, must be ['variant', 'label']")
    if sheet.empty or sheet["variant"].duplicated().any() or (sheet == "").any(axis=None):
        raise ResultError(f"{path}: needs at least one row, every variant once, no empty field")
    return dict(zip(sheet["variant"], sheet["label"], strict=True))


def load_episodes(
    paths: Iterable[Path], benchmark: str, sheet: Mapping[str, str], expected: pd.DataFrame, incomplete: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Episodes of one benchmark, and the expected ones that are missing.

    Raises `ResultError` for episodes that must not stand together, for another benchmark's, for variants that
    the sheet lacks, and, unless `incomplete`, for missing episodes and variants.
    """
    episodes = read_episodes(list(paths))
    others = sorted(set(episodes["benchmark"]) - {benchmark})
    if others:
        raise ResultError(f"column benchmark: {others} in a table of {benchmark}")
    require_known(episodes["variant"], sheet)
    require_runs(zip(expected["variant"], expected["suite"], strict=True), sheet, incomplete)
    return episodes, missing_rows(episodes, expected, incomplete)


def require_runs(ran: Iterable[tuple[str, str]], sheet: Iterable[str], incomplete: bool) -> list[str]:
    """The runs of a sheet that are not there, as "srpo on libero_goal"; refused unless `incomplete`.

    Args:
        ran: (variant, suite) of the runs that are there.
    """
    found = set(ran)
    suites = sorted({suite for _, suite in found})
    absent = [f"{variant} on {s}" for variant in sheet for s in suites if (variant, s) not in found]
    if absent and not incomplete:
        raise ResultError(f"incomplete: no run of {', '.join(absent)}")
    return absent


def require_alike(configs: Sequence[TrainStage | EvaluateStage | RewardBenchmarkStage]) -> None:
    """Refuse runs of several presets or protocols: only suites may differ, in their step limit."""
    presets = {config.preset for config in configs}
    shared = {config.protocol.model_copy(update={"max_steps": 1}) for config in configs}
    protocols = {(config.suite, config.protocol) for config in configs}
    several = len(shared) > 1 or len(protocols) > len({suite for suite, _ in protocols})
    if len(presets) > 1 or several:
        raise ResultError(
            f"the runs belong to {'several presets' if len(presets) > 1 else 'several protocols'}, not to one"
        )


def require_known(variants: Iterable[str], sheet: Mapping[str, str]) -> None:
    unknown = sorted(set(variants) - set(sheet))
    if unknown:
        raise ResultError(f"variants {unknown} are not in the sheet, which has {list(sheet)}")


def counts(episodes: pd.DataFrame) -> dict[str, int]:
    """Successes, episodes that ran, infrastructure errors (in neither of the two), and seeds."""
    infra = episodes["status"] == "infra_error"
    return {
        "successes": int((episodes["status"] == "success").sum()),
        "episodes": int((~infra).sum()),
        "infra_errors": int(infra.sum()),
        "seeds": int(episodes["seed"].nunique()),
    }


def columns_of(estimate: Estimate, name: str = "rate", prefix: str = "") -> dict[str, float]:
    """Flatten an estimate into a tidy row: the value under `name`, its interval under `low` and `high`."""
    return {name: estimate.value, f"{prefix}low": estimate.low, f"{prefix}high": estimate.high}


def compare(baseline: pd.DataFrame, method: pd.DataFrame) -> PairedDifference:
    """Paired difference of two variants' episodes on the tasks and states that both ran."""
    keys = ["suite", "task_id", "init_state", "perturbation_task"]

    def rates(episodes: pd.DataFrame) -> pd.Series:
        ran = episodes[episodes["status"] != "infra_error"]
        return (ran["status"] == "success").groupby([ran[key] for key in keys], dropna=False).mean()

    pairs = pd.concat([rates(baseline), rates(method)], axis=1, join="inner", keys=["baseline", "method"])
    return paired_difference(pairs["baseline"].to_numpy(float), pairs["method"].to_numpy(float))


def clearly_best(
    own: pd.DataFrame, kind: Sequence[str], name: str, value: str, difference: Callable[..., Estimate]
) -> pd.Index:
    """The rows of a tidy table that are the highest of their kind beyond doubt: their index.

    Args:
        own: rows of ours; those without a value take no part.
        kind: columns; rows that agree in them are compared.
        name, value: the column that says whose row it is, and the column compared.
        difference: called with the kind, then the second's name and the first's: the first's value minus the
            second's. Beyond doubt is a 95% interval above 0; one that is NaN is not.
    """
    found = []
    for key, rows in own.dropna(subset=[value]).groupby(list(kind)):
        rows = rows.sort_values(value, ascending=False)
        if len(rows) > 1 and difference(*key, rows[name].iloc[1], rows[name].iloc[0]).low > 0:
            found.append(rows.index[0])
    return pd.Index(found)


def over_runs(baseline: pd.DataFrame, method: pd.DataFrame) -> dict[str, float]:
    """What a method's training runs say together, on tasks that all of them ran: columns of a tidy row.

    `runs_low` and `runs_high` bound the success rate by a bootstrap of seeds and of episodes within each task
    (Wilson's interval of the pooled episodes takes those of one policy for independent of its seed). `iqm` is
    the interquartile mean over runs and tasks, `improvement` the chance that a run beats one of the baseline
    on a task. NaN for one seed, or where a run lacks a task.
    """
    nothing = dict.fromkeys(("runs_low", "runs_high", "iqm", "improvement"), np.nan)
    successes, episodes = by_run(method)
    if len(successes) < 2 or (episodes == 0).any():
        return nothing
    rate = hierarchical(successes, episodes, np.random.default_rng(0))
    found = nothing | {"runs_low": rate.low, "runs_high": rate.high}
    found["iqm"] = interquartile_mean(successes / episodes)
    first, ran = by_run(baseline)
    if ran.shape[1:] == episodes.shape[1:] and (ran > 0).all():
        found["improvement"] = probability_of_improvement(successes / episodes, first / ran)
    return found


def by_run(episodes: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Successes and episodes that ran, int64 (seeds, tasks) each."""
    ran = episodes[episodes["status"] != "infra_error"]
    success = (ran["status"] == "success").groupby([ran["seed"], ran["task_id"]])
    sums, sizes = (getattr(success, name)().unstack(fill_value=0) for name in ("sum", "size"))
    return sums.to_numpy(np.int64), sizes.to_numpy(np.int64)


def comparison_columns(result: PairedDifference) -> dict[str, Any]:
    """Flatten a paired difference into a tidy row."""
    return {
        **columns_of(result.estimate, "difference", "difference_"),
        "pairs": result.pairs,
        "p_value": result.p_value,
        "test": result.test,
    }


def cells(table: pd.DataFrame, *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of a tidy table by the values of some columns."""
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    return {tuple(row[key] for key in keys): row for row in rows}


# ------------------------------------------------------------------------------------------------------ text


def percent(value: float, sign: bool = False) -> str:
    """A fraction in percent with one decimal; – if there is none."""
    if np.isnan(value):
        return "–"
    return f"{100 * value:{'+' if sign else ''}.1f}".replace("-", "−")


def p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def protocol_note(episodes: pd.DataFrame) -> str:
    """One line on how the episodes were run."""
    first = episodes.drop_duplicates("suite")
    caps = dict(zip(first["suite"], first["max_steps"], strict=True))
    return _protocol(protocol_record(episodes["protocol"].iloc[0]), caps)


def configured_protocol(
    configs: Sequence[TrainStage | RewardBenchmarkStage], manifests: Iterable[Path]
) -> str:
    """The same for rollouts, whose rows do not record it: from their configurations and manifests."""
    record = configs[0].protocol.model_dump() | {"mujoco": read_mujoco(manifests)}
    return _protocol(record, {config.suite: config.protocol.max_steps for config in configs})


def benchmark_protocol(scored: Sequence[Path]) -> str:
    """The same for the trajectories behind files of the reward benchmark."""
    configs = [read_config(path, RewardBenchmarkStage) for path in scored]
    manifests = {path.parent / "trajectories" / "manifest.json" for path in scored}
    return configured_protocol(configs, sorted(manifests))


def _protocol(record: Mapping[str, Any], caps: Mapping[str, int]) -> str:
    most = ", ".join(f"{cap} ({SUITE_LABELS[suite]})" for suite, cap in caps.items())
    return (
        f"Protocol: {record['profile']} initial states, at most {most} steps, "
        f"{record['render']} rendering at {record['image_size']} pixels, MuJoCo {record['mujoco']}."
    )


def lacking(absent: Sequence[str], things: str, number: int) -> str:
    """ "srpo on libero_goal, 3 episodes": runs that are not there, and rows of others; empty if none."""
    return ", ".join([*absent, *([f"{number} {things}"] if number else [])])


def lacking_episodes(episodes: pd.DataFrame, missing: pd.DataFrame, sheet: Mapping[str, str]) -> str:
    """The same for what `load_episodes` gave."""
    absent = require_runs(zip(episodes["variant"], episodes["suite"], strict=True), sheet, incomplete=True)
    return lacking(absent, "episodes", len(missing))


def coverage_notes(infra_errors: int, missing: int) -> list[str]:
    """What the counts leave out; nothing if nothing."""
    notes = []
    if infra_errors:
        notes.append(f"{infra_errors} episodes could not be run (infrastructure errors); no count has them.")
    if missing:
        notes.append(f"Incomplete: {missing} expected episodes are missing.")
    return notes


# ------------------------------------------------------------------------------------------------------- CLI


def parser(module: str, description: str | None, table: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that every figure and, with `table`, every table has."""
    result = argparse.ArgumentParser(prog=f"python -m srpo.analysis.{module}", description=description)
    result.add_argument("--csv", type=Path, required=True, help="tidy table to write")
    if table:
        result.add_argument("--published", type=Path, required=True, help="published values (CSV)")
        add_typeset(result)
    result.add_argument("--figure", type=Path, required=True, help="stem of the .png and .pdf to write")
    result.add_argument("--allow-incomplete", action="store_true", help="go without missing rows, and say so")
    return result


def add_typeset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tex", type=Path, required=True, help="table to write in LaTeX")
    parser.add_argument("--html", type=Path, required=True, help="the same as a page")


def write(
    arguments: argparse.Namespace,
    table: pd.DataFrame,
    draw: Callable[[pd.DataFrame], Figure],
    missing: str,
    shown: Table | None = None,
) -> None:
    """Write the tidy CSV, what it shows in LaTeX and HTML if it does, and the figure drawn from it.

    `missing` says what an incomplete figure is without; empty for a complete one.
    """
    with mpl.rc_context(style.RC):
        figure = draw(table)
        if missing:
            figure.suptitle(f"incomplete: without {missing}", fontsize=7)
        style.save(figure, arguments.figure)
    if shown is not None:
        write_text(arguments.tex, to_latex(shown))
        write_text(arguments.html, to_html(shown))
    write_with(arguments.csv, lambda temporary: table.to_csv(temporary, index=False))
