"""Compare two result folders: which rows are the same, what differs beyond noise, settings, versions.

srpo compare results/smoke /elsewhere/results/smoke
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from statsmodels.stats.multitest import multipletests

from srpo.analysis import comparisons
from srpo.analysis.report.validate import result_files
from srpo.analysis.stats import ALPHA
from srpo.analysis.text import p_text, percent
from srpo.config import read_yaml
from srpo.errors import run_command
from srpo.results import ResultError
from srpo.results.rows import check_episodes, read_rows
from srpo.results.schemas import EPISODES, IDENTITY

NOT_REPEATED = ("second", "memory", "video")
"""In the names of columns that differ between equal runs, and of the one that an export leaves empty."""

MACHINE = (
    *("git_revision", "packages", "python", "gpus", "gl_backend", "gl_renderer", "processor"),
    "blas_kernels",
)
"""What a manifest says of the code and the machine."""


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    inner = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items()]
    return {key: value for part in inner for key, value in part.items()}


def changes(first: Any, second: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted key → its value in either, of those that differ; `absent` where there is none."""
    one, other = flat(first), flat(second)
    both = {key: (one.get(key, "absent"), other.get(key, "absent")) for key in {**one, **other}}
    return {key: pair for key, pair in both.items() if pair[0] != pair[1]}


def settings(folder: Path) -> dict[str, Any]:
    """Every resolved config.yaml below a folder, by its path there."""
    files = sorted(folder.rglob("config.yaml"))
    return {str(f.relative_to(folder)): read_yaml(f) for f in files}


def versions(folder: Path) -> dict[str, str]:
    """What the manifests below a folder say of code and machine: dotted key → its values, sorted."""
    values: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for key, value in flat({name: manifest.get(name) for name in MACHINE}).items():
            values.setdefault(key, set()).add(str(value))
    return {key: ", ".join(sorted(texts)) for key, texts in values.items()}


def episodes(folder: Path) -> pd.DataFrame:
    """All evaluated episodes below a folder; those of LIBERO-Plus once, not again from their shards."""
    files = [p for p, schema in result_files(folder) if schema is EPISODES and p.name == "episodes.parquet"]
    if not files:
        return pd.DataFrame(columns=list(EPISODES.columns))
    rows = pd.concat([read_rows(path, EPISODES) for path in files], ignore_index=True)
    for _, group in rows.groupby("benchmark"):
        check_episodes(group)
    return rows


def differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Success in the second folder minus in the first on shared episodes, by benchmark, suite and variant.

    `beyond_noise`: its p, adjusted by Holm's method for there being several, is below 5%.
    """
    keys = [*IDENTITY]
    shared = first.merge(second, on=keys, suffixes=("_first", "_second"))
    ran = ["success", "failure"]
    both = shared[shared["status_first"].isin(ran) & shared["status_second"].isin(ran)]
    rows: list[dict[str, Any]] = []
    for (benchmark, suite, variant), group in both.groupby(["benchmark", "suite", "variant"]):
        sides = [
            group.rename(columns={f"{name}_{side}": name for name in ("status", "perturbation")})
            for side in ("first", "second")
        ]
        rates = [float((side["status"] == "success").mean()) for side in sides]
        result = comparisons.compare(*sides)
        rows.append({"benchmark": benchmark, "suite": suite, "variant": variant, "episodes": len(group)})
        rows[-1] |= {"changed": int((group["status_first"] != group["status_second"]).sum())}
        rows[-1] |= {"first": rates[0], "second": rates[1]}
        rows[-1] |= {"low": result.estimate.low, "high": result.estimate.high, "p_value": result.p_value}
    table = pd.DataFrame(rows)
    if len(table):
        table["beyond_noise"] = multipletests(table["p_value"], alpha=ALPHA, method="holm")[0]
    return table


def repeated(first: Path, second: Path) -> list[str]:
    """How many files of rows are the same in both folders (times and memory aside); how the others differ."""
    lines = []
    both = [(p, schema) for p, schema in result_files(first) if (second / p.relative_to(first)).is_file()]
    for path, schema in both:
        file = path.relative_to(first)
        names = [name for name in schema.columns if not any(part in name for part in NOT_REPEATED)]
        try:
            one, other = (read_rows(folder / file, schema)[names] for folder in (first, second))
        except ResultError as error:  # of an older version, say; the others can still be compared
            lines.append(f"  {error}")
            continue
        common = min(len(one), len(other))
        counts = f"{len(one)} rows" if len(one) == len(other) else f"{len(one)} and {len(other)} rows"
        differ = ~(one[:common].eq(other[:common]) | (one[:common].isna() & other[:common].isna()))
        columns = differ.columns[differ.any()]
        if len(columns):
            row = int(differ.any(axis=1).to_numpy().argmax())
            what = f"the first that differs is row {row + 1}; columns that differ: {', '.join(columns)}"
        elif len(one) != len(other):
            what = "no row that both have differs"
        else:
            continue
        lines.append(f"  {file}: {counts}, {what}")
    same = len(both) - len(lines)
    return [f"rows: {len(both)} files in both, {same} of them the same but for times and memory", *lines]


def report(first: Path, second: Path) -> list[str]:
    """The comparison in lines of text."""
    lines = repeated(first, second)
    one, other = episodes(first), episodes(second)
    shared = one.merge(other[IDENTITY], on=IDENTITY)
    lines.append(
        f"episodes: {len(one)} and {len(other)}, {len(shared)} of them the same task, state and seed"
    )
    for row in differences(one, other).to_dict("records"):
        verdict = "beyond noise" if row["beyond_noise"] else "within noise"
        lines.append(
            f"  {row['benchmark']} {row['suite']} {row['variant']}: {percent(row['first'])} → "
            f"{percent(row['second'])}% of {row['episodes']}, {row['changed']} ended otherwise, difference "
            f"[{percent(row['low'], True)}, {percent(row['high'], True)}], {p_text(row['p_value'])}, "
            f"{verdict}"
        )
    before, after = settings(first), settings(second)
    both = [name for name in before if name in after]
    for title, pair in {
        "settings": ({name: before[name] for name in both}, {name: after[name] for name in both}),
        "versions": (versions(first), versions(second)),
    }.items():
        # One line for a difference that many files share.
        files: dict[str, list[str]] = {}
        for key, (old, new) in changes(*pair).items():
            file, _, setting = key.rpartition("config.yaml.") if title == "settings" else ("", "", key)
            files.setdefault(f"{setting}: {old} → {new}", []).append(file)
        lines.append(f"{title}: {len(files)} differences")
        lines += [f"  {what}" + (f" (in {len(n)} files)" if len(n) > 1 else "") for what, n in files.items()]
    for folder, names in ((first, before), (second, after)):
        lines += [f"settings in {folder} alone: {name}" for name in names if name not in both]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="srpo compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="results of a preset")
    parser.add_argument("second", type=Path, help="results to set beside them")
    arguments = parser.parse_args(argv)
    for folder in (arguments.first, arguments.second):
        if not folder.is_dir():
            raise ResultError(f"{folder}: no such folder")
    print("\n".join(report(arguments.first, arguments.second)))


if __name__ == "__main__":
    run_command(main)
