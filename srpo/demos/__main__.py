"""Record demonstrations with the scripted expert, or import LIBERO's own files or LeRobot's format."""

from __future__ import annotations

import argparse
from pathlib import Path

from srpo.config import DemosStage, load_stage
from srpo.demos.lerobot import import_dataset, is_dataset
from srpo.demos.official import import_all
from srpo.demos.record import record_all
from srpo.errors import run_command
from srpo.runtime.arguments import new_folder, positive
from srpo.runtime.locks import lock_held


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="srpo demos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved configuration of the stage (YAML)"
    )
    parser.add_argument(
        "--out", type=new_folder, required=True, help="folder to make, one HDF5 file per task"
    )
    parser.add_argument(
        "--scratch", type=Path, required=True, help="folder of finished demonstrations until all are done"
    )
    parser.add_argument("--workers", type=positive, default=1, help="processes that record (default: 1)")
    arguments = parser.parse_args()
    config = load_stage(arguments.config, DemosStage)
    if config.demos.source == "expert":
        with lock_held(arguments.scratch):
            record_all(config, arguments.out, arguments.scratch, arguments.workers)
    elif is_dataset(Path(config.demos.source).expanduser()):
        import_dataset(config, arguments.out)
    else:
        import_all(config, arguments.out)


if __name__ == "__main__":
    run_command(main)
