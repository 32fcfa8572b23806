"""Draw a table or figure from its files, or all that a folder of results has the rows for.

    srpo draw t1 --sheet SHEET.tsv --published PUBLISHED.csv --episodes FILE ... --out results/smoke
    srpo draw all results/reference/smoke --out figures
    srpo draw list

Written are `tables/` and `figures/` in the folder `--out`. Drawing simulates nothing and needs no Snakemake.
The folder for `all` is laid out like `results/<preset>/`, but needs only the rows and each run's config.yaml
(and, for T2, `libero_plus/tasks.csv` in it or beside it): what `srpo export` copies. What has no rows there
is left out with a message, and so is what lacks some, unless `--allow-incomplete` is given: while a preset's
jobs run, it draws what is there, and every table and figure says that it is incomplete.

A drawing is an entry of `srpo.analysis.drawings`. Its module has a function

    make(OPTION=paths, ..., allow_incomplete: bool) -> Drawn

with an argument for each of the entry's inputs: a list of paths, one path, or the rows of a sheet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl

from srpo.analysis import style
from srpo.analysis.drawings import DRAWINGS, Drawing, Input, Root
from srpo.analysis.drawn import Drawn
from srpo.analysis.typeset import to_html, to_latex
from srpo.config.plan import Plan, plan
from srpo.config.resolve import CONFIGS, load_preset
from srpo.config.sheets import read_sheet
from srpo.errors import run_command
from srpo.results import ResultError
from srpo.runtime.files import atomic_directory, write_text, write_with

LETTERS = 16
"""Of a figure's heading, to an inch."""


def draw(
    drawing: Drawing,
    files: Mapping[str, Sequence[Path]],
    out: Path,
    allow_incomplete: bool = False,
    absent: int = 0,
) -> None:
    """Draw one table or figure and write all its forms below `out`.

    Raises:
        ResultError, ConfigError: its files cannot be used.
    """
    given = {
        item.option.replace("-", "_"): _value(item, files[item.option])
        for item in drawing.inputs
        if files.get(item.option)
    }
    make = import_module(f"srpo.analysis.{drawing.module}").make
    drawn = make(**given, allow_incomplete=allow_incomplete)
    write(without(drawn, absent) if absent else drawn, drawing.outputs, out)


def without(drawn: Drawn, absent: int) -> Drawn:
    """The same drawing, which says that so many files were not there."""
    files = f"{absent} file{'' if absent == 1 else 's'} of the preset"
    return replace(drawn, missing=", ".join(filter(None, (drawn.missing, files))))


def _value(item: Input, paths: Sequence[Path]) -> Any:
    """What `make` gets for an option."""
    if item.kind == "files":
        return list(paths)
    (path,) = paths
    return read_sheet(path) if item.kind == "sheet" else path


def write(drawn: Drawn, outputs: Mapping[str, str], out: Path) -> None:
    """Write a drawing: first the pictures, last the numbers, so that a refusal leaves no file."""
    if drawn.figure is not None:
        with mpl.rc_context(style.RC):
            figure = drawn.figure()
            if drawn.missing:
                lines = wrap(f"incomplete: without {drawn.missing}", int(LETTERS * figure.get_figwidth()))
                # Above the figure, whose layout need not leave room for it.
                figure.text(0.5, 1.01, "\n".join(lines), fontsize=7, ha="center", va="bottom")
            style.save(figure, (out / outputs["png"]).with_suffix(""))
    for suite, write_files in drawn.folders.items():
        with atomic_directory(out / outputs["folder"].format(suite=suite)) as folder:
            write_files(folder)
    if drawn.typeset is not None:
        notes = [f"Incomplete: without {drawn.missing}."] if drawn.missing else []
        table = replace(drawn.typeset, notes=[*drawn.typeset.notes, *notes])
        write_text(out / outputs["tex"], to_latex(table))
        write_text(out / outputs["html"], to_html(table))
    if drawn.text is not None:
        write_text(out / outputs["text"], drawn.text)
    for form, rows in (("efficiency", drawn.efficiency), ("csv", drawn.table)):
        if rows is not None:
            write_with(out / outputs[form], partial(rows.to_csv, index=False))


# All drawings of a folder.


@dataclass(frozen=True)
class Source:
    """A drawing and its files in a folder of results.

    absent  files that it goes without
    """

    drawing: Drawing
    files: Mapping[str, list[Path]]
    absent: int = 0

    def missing(self) -> list[Path]:
        """Files that are not there."""
        return [path for paths in self.files.values() for path in paths if not path.exists()]

    def present(self) -> Source | None:
        """The same of the files that are there; None if it has nothing of what it cannot do without."""
        files = {option: [path for path in paths if path.exists()] for option, paths in self.files.items()}
        if not all(files[item.option] for item in self.drawing.inputs if item.need == "always"):
            return None
        return replace(self, files=files, absent=len(self.missing()))


def not_there(missing: Sequence[Path]) -> str:
    """One or more missing files, as messages name them."""
    others = len(missing) - 1
    more = f" and {others} more {'file' if others == 1 else 'files'}" if others else ""
    return f"{missing[0]}{more} {'are' if others else 'is'} not there"


def find(drawing: Drawing, planned: Plan, folder: Path) -> Source:
    """A drawing's files in a folder laid out like `results/<preset>/`, whether they are there or not."""

    def place(root: Root, path: str) -> str:
        if root == "configs":
            return str(CONFIGS / path)
        shared = root == "results" and not (folder / path).exists()
        return str((folder.parent if shared else folder) / path)

    files = {
        option: [Path(path) for path in paths] for option, paths in drawing.files(planned, place).items()
    }
    for item in drawing.inputs:
        if item.need == "if present":
            files[item.option] = [path for path in files[item.option] if path.is_file()]
    return Source(drawing, files)


def available(folder: Path, preset: str | None, allow_incomplete: bool = False) -> Iterator[Source]:
    """What a folder has all files for; a message tells what is left out.

    Args:
        preset: name or path; None: the folder's name.
        allow_incomplete: also what it has some files of each kind for.
    """
    if not folder.is_dir():
        raise ResultError(f"{folder}: no such folder")
    if preset is None and not (CONFIGS / "presets" / f"{folder.name}.yaml").is_file():
        raise ResultError(f"{folder}: its name is no preset's: say whose results it has with --preset NAME")
    planned = plan(*load_preset(preset or folder.name))
    for drawing in DRAWINGS:
        if drawing.filmed or not drawing.shown(planned):
            continue
        source: Source | None = (whole := find(drawing, planned, folder))
        missing = whole.missing()
        if missing:
            source = whole.present() if allow_incomplete else None
            fate = "left out" if source is None else "incomplete"
            hint = "" if allow_incomplete else " (--allow-incomplete draws what is there)"
            print(f"{drawing.name}: {fate}: {not_there(missing)}{hint}")
        if source is not None:
            yield source


def draw_all(folder: Path, preset: str | None, out: Path, allow_incomplete: bool = False) -> None:
    """Draw what a folder has the rows for; SystemExit if a whole drawing is refused, or none is drawn."""
    drawn, refused = 0, 0
    for source in available(folder, preset, allow_incomplete):
        name = source.drawing.name
        try:
            draw(source.drawing, source.files, out, allow_incomplete, source.absent)
        except ResultError as error:
            refused += not source.absent
            print(f"{name}: {'left out: ' if source.absent else ''}{error}")
        else:
            drawn += 1
            print(f"{name}: {out / list(source.drawing.outputs.values())[-1]}")
    if refused or not drawn:
        sys.exit(f"error: {folder}: {drawn} drawn, {refused} refused")


# Command line.


def parser() -> argparse.ArgumentParser:
    """`all`, `list`, and a command for each drawing with an option for each of its inputs."""
    result = argparse.ArgumentParser(
        prog="srpo draw", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = result.add_subparsers(dest="name", required=True)
    everything = commands.add_parser("all", help="all that a folder of results has the rows for")
    everything.add_argument("folder", type=Path, help="rows of a preset, e.g. results/reference/smoke")
    everything.add_argument("--preset", help="name or path of the preset; default: the folder's name")
    everything.add_argument("--out", type=Path, required=True, help="folder for tables/ and figures/")
    everything.add_argument(
        "--allow-incomplete", action="store_true", help="also what it has some of the rows for, and say so"
    )
    commands.add_parser("list", help="the names of all tables and figures")
    for drawing in DRAWINGS:
        command = commands.add_parser(drawing.name, help=drawing.title)
        for item in drawing.inputs:
            required = item.need == "always"
            nargs = 1 if item.kind != "files" else "+" if required else "*"
            command.add_argument(
                f"--{item.option}", type=Path, nargs=nargs, required=required, default=[], help=item.file
            )
        command.add_argument("--out", type=Path, required=True, help="folder for tables/ and figures/")
        command.add_argument(
            "--allow-incomplete", action="store_true", help="go without missing rows, and say so"
        )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    if arguments.name == "list":
        print("\n".join(drawing.name for drawing in DRAWINGS))
    elif arguments.name == "all":
        draw_all(arguments.folder, arguments.preset, arguments.out, arguments.allow_incomplete)
    else:
        drawing = next(drawing for drawing in DRAWINGS if drawing.name == arguments.name)
        given = vars(arguments)
        files = {item.option: given[item.option.replace("-", "_")] for item in drawing.inputs}
        draw(drawing, files, arguments.out, arguments.allow_incomplete)


if __name__ == "__main__":
    run_command(main)
