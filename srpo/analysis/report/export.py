"""Copy what tables and figures are drawn from out of a finished preset: small enough to ship, of no machine.

srpo export results/smoke --out results/reference/smoke

The copy is laid out like the preset's folder, and `srpo.analysis.redraw` draws everything from it. It holds
the rows and each run's config.yaml; of LIBERO-Plus's list, the tasks asked for; of the trajectories, the
frames that F1 shows; of a manifest, what it says of code and versions. Videos are not in it, nor why an
episode could not be run but for the kind of error: such texts name folders. A table or figure that lacks rows
is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import h5py
import pandas as pd

from srpo.analysis import f1, t2
from srpo.analysis.compare import MACHINE
from srpo.analysis.redraw import available
from srpo.config import PlusStage
from srpo.libero_plus.tasks import read_tasks, write_tasks
from srpo.results.rows import EPISODES, ResultError, read_config, read_rows, run, write_rows
from srpo.runtime.files import atomic_directory, write_json

KEPT = (*MACHINE, "cores", "written")
"""What is left of a manifest."""


def copy_rows(path: Path, target: Path) -> None:
    """Copy a file of rows, with its manifest and the configurations beside it and (for F5) above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.name == EPISODES.name:
        rows = [{str(k): v for k, v in row.items()} for row in read_rows(path, EPISODES).to_dict("records")]
        for row in rows:
            row["video"] = None
            row["error"] = row["error"].split(":")[0] if isinstance(row["error"], str) else None
        write_rows(target, rows, EPISODES)
    else:
        shutil.copyfile(path, target)
    for place in ("config.yaml", "../config.yaml", "rewards.parquet"):  # the last: beside metrics.csv
        if (path.parent / place).is_file():
            shutil.copyfile(path.parent / place, target.parent / place)
    copy_manifest(path.with_name("manifest.json"), target)
    copy_manifest(path.with_suffix(".manifest.json"), target)


def copy_manifest(path: Path, beside: Path) -> None:
    if path.is_file():
        facts = json.loads(path.read_text(encoding="utf-8"))
        write_json(beside.with_name(path.name), {key: facts[key] for key in KEPT if key in facts})


def copy_tasks(episodes: Sequence[Path], tasks: Path, target: Path) -> None:
    """Of LIBERO-Plus's list, the tasks that these runs ask for: `sample` takes all of them again."""
    listed = read_tasks(tasks)
    expected = t2.expected_episodes([read_config(path, PlusStage) for path in episodes], listed)
    asked = set(expected["perturbation_task"])
    write_tasks(target, [task for task in listed if task.name in asked])


def copy_frames(path: Path, chosen: pd.DataFrame, target: Path) -> None:
    """Of a suite's trajectories.h5, the frames that F1 shows of its chosen trajectories (`kept`)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_manifest(path.with_name("manifest.json"), target)
    with h5py.File(path, "r") as source, h5py.File(target, "w") as small:
        suite, frames = str(source.attrs["suite"]), source["frames"]
        strips = f1.read_strips([path], chosen[chosen["suite"] == suite])
        shape = (f1.STRIP, *frames.shape[2:])
        small.attrs["suite"] = suite
        small.attrs["kept"] = sorted(number for _, number in strips)
        # Trajectories of the others are not written, and take no space.
        part = small.create_dataset(
            "frames", (len(frames), *shape), "uint8", chunks=(1, *shape), compression="gzip"
        )
        for (_, number), strip in strips.items():
            part[number] = strip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="srpo export", description=__doc__)
    parser.add_argument("folder", type=Path, help="a finished preset, e.g. results/smoke")
    parser.add_argument("--preset", help="name or path of the preset; default: the folder's name")
    parser.add_argument("--out", type=Path, required=True, help="folder to make, or to make anew")
    arguments = parser.parse_args(argv)
    shown = dict(available(arguments.folder, arguments.preset))
    if not shown:
        raise ResultError(f"{arguments.folder}: nothing can be drawn from it")
    paths = {path for drawing in shown.values() for path in drawing.files()}
    with atomic_directory(arguments.out) as out:
        for path in sorted(paths):
            if path.suffix in (".parquet", ".csv") and path.parent.name != "libero_plus":
                copy_rows(path, out / path.relative_to(arguments.folder))
        if "t2" in shown:
            given = shown["t2"].inputs
            copy_tasks(given["--episodes"], given["--tasks"][0], out / "libero_plus" / "tasks.csv")
        if "f1" in shown:
            given = shown["f1"].inputs
            curves, _ = f1.read_curves(given["--curves"], allow_incomplete=False)
            for path in given["--trajectories"]:
                copy_frames(path, f1.choose(curves), out / path.relative_to(arguments.folder))
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
