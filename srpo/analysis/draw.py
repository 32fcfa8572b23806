"""Draw every table and figure of a preset again from its rows, without Snakemake and without simulating.

python -m srpo.analysis.redraw results/reference/smoke --out figures

The folder is laid out like `results/<preset>/`, but needs only the rows and each run's config.yaml (and, for
T2, `libero_plus/tasks.csv` in it or beside it): what `srpo.analysis.export` copies. What has no rows there is
left out, and said so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from srpo.analysis import f1, f2, f3, f4, f5, t1, t2, t2_curves, t3, t3_distributions, t3_truth
from srpo.config import ConfigError
from srpo.config.plan import Plan, plan
from srpo.config.resolve import CONFIGS, load_preset
from srpo.results.rows import ResultError

PUBLISHED = CONFIGS / "reference" / "published.csv"


@dataclass(frozen=True)
class Drawing:
    """A table or figure: its module's main, the rows it is drawn from, and what it writes beside the CSV."""

    main: Callable[[Sequence[str]], None]
    inputs: dict[str, list[Path]]
    """Option → files; all of them must be there."""
    sheet: Path | None = None
    published: bool = False
    typeset: bool = False
    efficiency: bool = False

    def files(self) -> list[Path]:
        return [path for paths in self.inputs.values() for path in paths]

    def missing(self) -> list[Path]:
        return [path for path in self.files() if not path.is_file()]


def drawings(found: Plan, folder: Path) -> dict[str, Drawing]:
    """Everything that a preset shows, by name, in the order of its tables."""

    def files(table: str, name: str) -> list[Path]:
        return [folder / run.folder / name for run in found.tables.get(table, ())]

    def sheet(table: str) -> Path:
        return CONFIGS / found.sheets[table]

    preset = found.preset
    own, shared = (where / "libero_plus" / "tasks.csv" for where in (folder, folder.parent))
    tasks = own if own.is_file() else shared
    benchmark = [folder / "reward_benchmark" / suite for suite in preset.suites]
    scored = [(where, name) for where in benchmark for name in preset.world_models]
    shown: dict[str, Drawing] = {}
    for table in ("t1", "ablations"):
        if table in found.tables:
            rows = {"--episodes": files(table, "evaluation/episodes.parquet")}
            shown[table] = Drawing(t1.main, rows, sheet(table), published=True, typeset=True)
    if "t2" in found.tables:
        rows = {
            "--episodes": files("t2", "plus/episodes.parquet"),
            "--tasks": [tasks],
        }
        shown["t2"] = Drawing(t2.main, rows, sheet("t2"), published=True, typeset=True)
        shown["t2_curves"] = Drawing(t2_curves.main, rows, sheet("t2"))
    if scored:
        rows = {"--scores": [where / f"{name}.parquet" for where, name in scored]}
        shown["t3"] = Drawing(t3.main, rows, published=True, typeset=True)
        shown["t3_distributions"] = Drawing(t3_distributions.main, rows)
        rows = {
            "--curves": [where / f"{name}-curves.parquet" for where, name in scored],
            "--trajectories": [where / "trajectories" / "trajectories.h5" for where in benchmark],
        }
        shown["f1"] = Drawing(f1.main, rows)
        rows = {"--curves": rows["--curves"], "--rewards": files("ablations", "rewards.parquet")}
        shown["t3_truth"] = Drawing(t3_truth.main, rows, typeset=True)
    if "f2" in found.tables:
        rows = {"--metrics": files("f2", "metrics.csv")}
        shown["f2"] = Drawing(f2.main, rows, sheet("f2"), typeset=True, efficiency=True)
    if "t1" in found.tables:
        first = [run for run in found.tables["t1"] if run[::2] == (preset.suites[0], preset.seeds[0])]
        pair = [folder / run.folder / "evaluation" / "paths.parquet" for run in (first[0], first[-1])]
        shown["f4"] = Drawing(f4.main, {"--paths": pair}, sheet("t1"))
    if "ablations" in found.tables:
        rows = {"--metrics": files("ablations", "metrics.csv")}
        shown["f3"] = Drawing(f3.main, rows, sheet("ablations"), typeset=True, efficiency=True)
        rows = {"--episodes": files("ablations", "evaluation/episodes.parquet")}
        shown["f5"] = Drawing(f5.main, rows, sheet("ablations"))
    return shown


def available(folder: Path, preset: str | None) -> Iterator[tuple[str, Drawing]]:
    """What a folder has all rows for, by name; what is left out is said. `preset` None: the folder's name."""
    try:
        found = plan(*load_preset(preset or folder.name))
    except ConfigError as error:
        sys.exit(f"error: {error}")
    for name, drawing in drawings(found, folder).items():
        if missing := drawing.missing():
            print(f"{name}: left out: {missing[0]} and {len(missing) - 1} more files are not there")
        else:
            yield name, drawing


def arguments_of(name: str, drawing: Drawing, out: Path) -> list[str]:
    """The command line of a drawing, without the module's name."""
    given = ["--csv", f"{out}/tables/{name}.csv", "--figure", f"{out}/figures/{name}"]
    if drawing.sheet:
        given += ["--sheet", str(drawing.sheet)]
    if drawing.published:
        given += ["--published", str(PUBLISHED)]
    if drawing.typeset:
        given += ["--tex", f"{out}/tables/{name}.tex", "--html", f"{out}/tables/{name}.html"]
    if drawing.efficiency:
        given += ["--efficiency", f"{out}/tables/{name}-efficiency.csv"]
    return given + [text for option, paths in drawing.inputs.items() for text in (option, *map(str, paths))]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m srpo.analysis.redraw", description=__doc__)
    parser.add_argument("folder", type=Path, help="rows of a preset, e.g. results/reference/smoke")
    parser.add_argument("--preset", help="name or path of the preset; default: the folder's name")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables/ and figures/")
    arguments = parser.parse_args(argv)
    drawn, failed = 0, 0
    for name, drawing in available(arguments.folder, arguments.preset):
        try:
            drawing.main(arguments_of(name, drawing, arguments.out))
        except ResultError as error:
            failed += 1
            print(f"{name}: {error}")
        else:
            drawn += 1
            print(f"{name}: {arguments.out}/figures/{name}.pdf")
    if failed or not drawn:
        sys.exit(f"error: {arguments.folder}: {drawn} drawn, {failed} refused")


if __name__ == "__main__":
    main()
