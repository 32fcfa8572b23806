"""Stands in for a training: as long, as resumable, as lockable, and quick. Other stages are made at once.

slurm_stage.py LOG [accelerate launch ... --module] srpo COMMAND ARGUMENTS...    (workflow/shell.sh: `logged`)

A step appends a line `step,job` to `<scratch>/steps` and takes a quarter of a second. After the fifth step it
waits while `$HOLD/<variant>-<seed>` exists. The result is the list of steps. It stays in the scratch folder,
as a training's last checkpoint does.
"""

import os
import runpy
import sys
import time
from itertools import pairwise
from pathlib import Path

from srpo.runtime.locks import lock_held

STEPS, HELD = 12, 5
STAND_IN = Path(__file__).with_name("stage_stand_in.py")


def train(out: Path, scratch: Path, hold: Path) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    file = scratch / "steps"
    done = len(file.read_text().splitlines()) if file.exists() else 0
    job = os.environ["SLURM_JOB_ID"]
    with (scratch.parent / "attempts").open("a") as attempts:
        attempts.write(f"{job}\n")
    with (scratch.parent / "given").open("a") as given:
        given.write(f"{os.environ['CUDA_VISIBLE_DEVICES']} {os.environ['OMP_NUM_THREADS']}\n")
    for step in range(done + 1, STEPS + 1):
        while step > HELD and hold.exists():
            time.sleep(0.05)
        time.sleep(0.25)
        with file.open("a") as handle:
            handle.write(f"{step},{job}\n")
    runpy.run_path(str(STAND_IN))  # makes all files, and the log
    (out / "metrics.csv").write_text(file.read_text())


if __name__ == "__main__":
    options = dict(pairwise(sys.argv[1:]))
    if options.get("srpo") == "train":
        out, scratch = Path(options["--out"]), Path(options["--scratch"])
        with lock_held(scratch):
            train(out, scratch, Path(os.environ["HOLD"]) / f"{out.parent.name}-{out.name}")
    else:
        runpy.run_path(str(STAND_IN))
