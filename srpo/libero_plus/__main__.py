"""LIBERO-Plus: fetch its tasks and assets, merge a sweep's shards, picture tasks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from srpo.errors import run_command
from srpo.libero_plus.data import PlusData, PlusSources
from srpo.libero_plus.tasks import read_tasks
from srpo.results import ResultError

# Each command imports what it needs: fetching takes no simulator, merging no torch.


def fetch(arguments: argparse.Namespace) -> None:
    from srpo.libero_plus.download import fetch

    tasks = fetch(arguments.out, arguments.data)
    print(f"{arguments.out}: {len(tasks):,} LIBERO-Plus tasks")


def fetch_assets(arguments: argparse.Namespace) -> None:
    from srpo.envs.libero import asset_folder
    from srpo.libero_plus.assets import fetch_assets

    tasks, data = read_tasks(arguments.tasks), PlusData(arguments.data)
    missing = fetch_assets(arguments.out, arguments.archive, tasks, data, asset_folder())
    for name, number in sorted(missing.items()):
        print(f"{name} is not there: {number} tasks need it")
    if missing:
        raise ValueError(f"{arguments.out} is incomplete: {len(missing)} files are missing")
    print(f"{arguments.out}: all that {len(tasks):,} tasks need is there; set plus.assets to it")


def merge(arguments: argparse.Namespace) -> None:
    from srpo.libero_plus.sweep import merge_shards

    merge_shards(arguments.config, arguments.tasks, arguments.shards, arguments.out)


def show(arguments: argparse.Namespace) -> None:
    from srpo.libero_plus.gallery import show

    show(arguments.name, arguments.out, PlusSources(arguments.data, arguments.assets))


def gallery(arguments: argparse.Namespace) -> None:
    from srpo.libero_plus.gallery import contact_sheet

    contact_sheet(arguments.out, PlusSources(arguments.data, arguments.assets))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="srpo libero-plus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help)
        command.set_defaults(run=run)
        return command

    command = add("fetch", fetch, "write the official task list (10,030 tasks) and its data")
    command.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    command.add_argument("--data", type=Path, required=True, metavar="FILE.zip")
    command = add("fetch-assets", fetch_assets, "download, unpack and check the asset pack (6.4 GB)")
    command.add_argument("--tasks", type=Path, required=True, help="task list that `fetch` wrote")
    command.add_argument("--data", type=Path, required=True, help="data that `fetch` wrote")
    command.add_argument("--archive", type=Path, help="an existing assets.zip (default: download it)")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    command = add("merge", merge, "merge a sweep's shards, and check that none is missing")
    command.add_argument("shards", nargs="+", type=Path)
    command.add_argument("--config", type=Path, required=True, help="resolved configuration of the sweep")
    command.add_argument("--tasks", type=Path, required=True, help="task list that `fetch` wrote")
    command.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    command = add("show", show, "picture a task beside its base task")
    command.add_argument("name", help="official task name")
    command.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    sheet = add("gallery", gallery, "picture three tasks of each dimension on one sheet")
    sheet.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png or .jpg")
    for picture in (command, sheet):
        picture.add_argument("--data", type=Path, metavar="FILE.zip", help="file that `fetch` wrote")
        picture.add_argument("--assets", type=Path, metavar="FOLDER", help="official asset pack")
    return parser


def main() -> None:
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except (RuntimeError, ValueError, ResultError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    run_command(main)
