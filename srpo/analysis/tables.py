"""What the tables have in common: sheets, published values, counting, comparing, writing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from srpo.analysis import style
from srpo.analysis.io import (
    Column,
    ResultError,
    Schema,
    missing_rows,
    protocol_record,
    read_episodes,
    read_rows,
)
from srpo.analysis.stats import (
    Estimate,
    PairedDifference,
    hierarchical,
    interquartile_mean,
    paired_difference,
    probability_of_improvement,
)
from srpo.files import write_text, write_with

SUITE_LABELS = {
    "libero_spatial": "Spatial",
    "libero_object": "Object",
    "libero_goal": "Goal",
    "libero_10": "Long",
}
NOT_RUN = "not run"

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
    ran = set(zip(expected["variant"], expected["suite"], strict=True))
    absent = [(v, s) for v in sheet for s in sorted(set(expected["suite"])) if (v, s) not in ran]
    if absent and not incomplete:
        raise ResultError(f"incomplete: no episodes of {', '.join(f'{v} on {s}' for v, s in absent)}")
    return episodes, missing_rows(episodes, expected, incomplete)


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


def over_runs(baseline: pd.DataFrame, method: pd.DataFrame) -> dict[str, float]:
    """What a method's training runs say together, on tasks that all of them ran: columns of a tidy row.

    `runs_low` and `runs_high` bound the success rate by a bootstrap of seeds and of episodes within each task
    (Wilson's interval of the pooled episodes takes those of one policy for independent of its seed). `iqm` is
    the interquartile mean over runs and tasks, `improvement` the chance that a run beats one of the baseline
    on a task. NaN for one seed, or where a run lacks a task.
    """
    nothing = dict.fromkeys(("runs_low", "runs_high", "iqm", "improvement"), np.nan)
    successes, episodes = _by_run(method)
    if len(successes) < 2 or (episodes == 0).any():
        return nothing
    rate = hierarchical(successes, episodes, np.random.default_rng(0))
    found = nothing | {"runs_low": rate.low, "runs_high": rate.high}
    found["iqm"] = interquartile_mean(successes / episodes)
    first, ran = _by_run(baseline)
    if ran.shape[1:] == episodes.shape[1:] and (ran > 0).all():
        found["improvement"] = probability_of_improvement(successes / episodes, first / ran)
    return found


def _by_run(episodes: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
    caps = [f"{cap} ({SUITE_LABELS[s]})" for s, cap in zip(first["suite"], first["max_steps"], strict=True)]
    record = protocol_record(episodes["protocol"].iloc[0])
    return (
        f"Protocol: {record['profile']} initial states, at most {', '.join(caps)} steps, "
        f"{record['render']} rendering at {record['image_size']} pixels, MuJoCo {record['mujoco']}."
    )


def count_of(things: str, number: int) -> str:
    """ "3 episodes"; nothing of none."""
    return f"{number} {things}" if number else ""


def coverage_notes(infra_errors: int, missing: int) -> list[str]:
    """What the counts leave out; nothing if nothing."""
    notes = []
    if infra_errors:
        notes.append(f"{infra_errors} episodes could not be run (infrastructure errors); no count has them.")
    if missing:
        notes.append(f"Incomplete: {missing} expected episodes are missing.")
    return notes


# ------------------------------------------------------------------------------------------------------- CLI


def parser(module: str, description: str | None, tex: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that every table and figure has."""
    result = argparse.ArgumentParser(prog=f"python -m srpo.analysis.{module}", description=description)
    result.add_argument("--csv", type=Path, required=True, help="tidy table to write")
    if tex:
        result.add_argument("--published", type=Path, required=True, help="published values (CSV)")
        result.add_argument("--tex", type=Path, required=True, help="LaTeX table to write")
    result.add_argument("--figure", type=Path, required=True, help="stem of the .png and .pdf to write")
    result.add_argument("--allow-incomplete", action="store_true", help="go without missing rows, and say so")
    return result


def write(
    arguments: argparse.Namespace,
    table: pd.DataFrame,
    draw: Callable[[pd.DataFrame], Figure],
    missing: str,
    tex: str | None = None,
) -> None:
    """Write the tidy CSV, the LaTeX table if there is one, and the figure drawn from the tidy table.

    `missing` says what an incomplete figure is without; empty for a complete one.
    """
    with mpl.rc_context(style.RC):
        figure = draw(table)
        if missing:
            figure.suptitle(f"incomplete: without {missing}", fontsize=7)
        style.save(figure, arguments.figure)
    if tex is not None:
        write_text(arguments.tex, tex)
    write_with(arguments.csv, lambda temporary: table.to_csv(temporary, index=False))
