"""Copy what tables and figures are drawn from out of a finished preset: small enough to ship, of no machine.

srpo export results/smoke --out results/reference/smoke

The copy is laid out like the preset's folder, and `srpo draw all` draws everything from it. It holds
the rows and each run's config.yaml; of LIBERO-Plus's list, the tasks asked for; of the trajectories, the
frames that F1 and F6 show; of a manifest, what it says of code, versions and inputs; small SFT policies, for
on another kind of processor SFT makes another policy. Videos are not in it, nor why an episode could not be
run but for the kind of error: such texts name folders. The rows of a table or figure that lacks some are left
out, and said so, unless `--allow-incomplete` is given.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import h5py
import pandas as pd

from srpo.analysis.draw import available
from srpo.analysis.figures import f1, f6
from srpo.analysis.report.compare import MACHINE
from srpo.analysis.report.validate import SAMPLED
from srpo.analysis.tables.t3_truth import shared
from srpo.analysis.values import read_values
from srpo.config import PlusStage
from srpo.config.stages import SFT
from srpo.errors import run_command
from srpo.libero_plus.sweep import expected_episodes
from srpo.libero_plus.tasks import read_tasks, write_tasks
from srpo.results import ResultError
from srpo.results.coverage import load_benchmark, read_config
from srpo.results.rows import read_rows, write_rows
from srpo.results.schemas import CURVES, EPISODES
from srpo.runtime.arguments import new_folder
from srpo.runtime.files import SNAKEMAKES, atomic_directory, write_json

KEPT = (*MACHINE, "cores", "written", "inputs", "policy")
"""What is left of a manifest."""
SMALL = 10_000_000
"""Bytes of an SFT policy that is copied. The tiny policy has 5 million."""


def copy_rows(path: Path, target: Path) -> None:
    """Copy a file of rows, with its manifest and the configurations beside it and (for F5) above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.name in (EPISODES.name, SAMPLED):
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


def copy_policy(folder: Path, target: Path) -> None:
    """Copy a policy, if it is small."""
    if sum(path.stat().st_size for path in folder.iterdir()) <= SMALL:
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns(SNAKEMAKES))


def copy_tasks(episodes: Sequence[Path], tasks: Path, target: Path) -> None:
    """Of LIBERO-Plus's list, the tasks that these runs ask for: `sample` takes all of them again."""
    listed = read_tasks(tasks)
    expected = expected_episodes([read_config(path, PlusStage) for path in episodes], listed)
    asked = set(expected["perturbation_task"])
    write_tasks(target, [task for task in listed if task.name in asked])


def copy_frames(folder: Path, chosen: pd.DataFrame, target: Path) -> None:
    """Of a suite's folder of trajectories, the frames that figures show of the chosen ones (`kept`)."""
    target.mkdir(parents=True, exist_ok=True)
    copy_manifest(folder / "manifest.json", target / "manifest.json")
    path = folder / "trajectories.h5"
    with h5py.File(path, "r") as source, h5py.File(target / path.name, "w") as small:
        suite, frames = str(source.attrs["suite"]), source["frames"]
        strips = f1.read_strips([folder], chosen[chosen["suite"] == suite])
        shape = (f1.STRIP, *frames.shape[2:])
        small.attrs["suite"] = suite
        small.attrs["kept"] = sorted(number for _, number in strips)
        # Trajectories of the others are not written, and take no space.
        part = small.create_dataset(
            "frames", (len(frames), *shape), "uint8", chunks=(1, *shape), compression="gzip"
        )
        for (_, number), strip in strips.items():
            part[number] = strip


def export(folder: Path, preset: str | None, out: Path, allow_incomplete: bool = False) -> None:
    """Copy what can be drawn from a preset's folder. Raises ResultError where that is nothing."""
    sources = list(available(folder, preset, allow_incomplete))
    if not sources:
        raise ResultError(f"{folder}: nothing can be drawn from it")
    rows = {
        path
        for source in sources
        for item in source.drawing.inputs
        for path in source.files[item.option]
        if item.root == "preset" and path.is_file()
    }
    evaluated = {path.with_name(SAMPLED) for path in rows if path.parent.name == "evaluation"}
    rows |= {path for path in evaluated if path.is_file()}  # tables show those of some runs alone
    files = {source.drawing.name: source.files for source in sources}
    with atomic_directory(out) as copy:
        for path in sorted(rows):
            copy_rows(path, copy / path.relative_to(folder))
        for path in sorted(folder.glob(f"runs/*/{SFT}/seed*/policy")):
            copy_policy(path, copy / path.relative_to(folder))
        if "t2" in files:
            copy_tasks(files["t2"]["episodes"], files["t2"]["tasks"][0], copy / "libero_plus" / "tasks.csv")
        if "f1" in files:
            curves, _ = load_benchmark(files["f1"]["curves"], CURVES, "curves", allow_incomplete)
            chosen = f1.choose(curves)
            if "f6" in files:
                lost = f6.choose(shared(curves), read_values(files["f6"]["values"]))
                chosen = pd.concat([chosen, lost])
            for path in files["f1"]["trajectories"]:
                copy_frames(path, chosen, copy / path.relative_to(folder))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="srpo export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="results of a preset, e.g. results/smoke")
    parser.add_argument("--preset", help="name or path of the preset; default: the folder's name")
    parser.add_argument("--out", type=new_folder, required=True, help="folder to make")
    parser.add_argument(
        "--allow-incomplete", action="store_true", help="of an unfinished preset, what is there"
    )
    arguments = parser.parse_args(argv)
    export(arguments.folder, arguments.preset, arguments.out, arguments.allow_incomplete)
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(main)
