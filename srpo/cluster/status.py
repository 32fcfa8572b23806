"""How far a preset's stages are: runs, success so far, speed and expected end.

srpo status [NAME | PRESET.yaml]                         once, in lines
srpo status [...] --watch                                    again and again, with jobs, failures and hours
srpo status [...] --serve                                    the same as a page on this machine

It only reads the current folder's `results/`, `scratch/` and `.snakemake/`, and Slurm's queue, so it can be
called at any time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from srpo.analysis.stats import wilson
from srpo.analysis.text import percent
from srpo.cluster.jobs import branches_of
from srpo.cluster.queue import stuck_jobs
from srpo.cluster.resources import scratch_path, sweep_size
from srpo.config import (
    DemosStage,
    EvaluateStage,
    PlusStage,
    RewardBenchmarkStage,
    SftStage,
    Stage,
    TrainStage,
    ValuesStage,
    WorldModelStage,
)
from srpo.config.plan import plan
from srpo.config.resolve import load_preset
from srpo.errors import run_command


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    state        waiting, started or done
    done, total  of what `unit` names; total None: not counted
    successes    of `episodes` so far, 0 of 0 where there are none
    rate         units a second of the current attempt; None: not known
    changed      seconds since anything was written; None: nothing yet
    """

    state: Literal["waiting", "started", "done"]
    unit: str = ""
    done: int = 0
    total: int | None = None
    successes: int = 0
    episodes: int = 0
    rate: float | None = None
    changed: float | None = None


def outputs(folder: str, stage: Stage | WorldModelStage) -> list[str]:
    """The files below `results/<preset>/` that exist once a stage is done."""
    if isinstance(stage, DemosStage):
        return [f"{folder}/data"]
    if isinstance(stage, WorldModelStage):
        return [f"{folder}/checkpoint"]
    if isinstance(stage, SftStage | TrainStage):
        return [f"{folder}/policy", f"{folder}/metrics.csv"]
    if isinstance(stage, EvaluateStage | PlusStage):
        return [f"{folder}/episodes.parquet"]
    if isinstance(stage, RewardBenchmarkStage):
        return [f"{folder}/{model.name}.parquet" for model in stage.world_models]
    if isinstance(stage, ValuesStage):
        return [f"{folder}/values.parquet"]
    return [folder]


def progress(folder: str, stage: Stage | WorldModelStage, here: Path) -> Progress:
    """How far one stage is, from the files it has written below `here`."""
    results = Path("results", stage.preset)
    files = [results / name for name in outputs(folder, stage)]
    if all((here / file).exists() for file in files):
        return Progress("done")
    scratch = here / scratch_path(str(files[0]))
    if isinstance(stage, EvaluateStage):
        return _evaluation([scratch], len(stage.tasks) * stage.evaluate.episodes_per_task, 0)
    if isinstance(stage, ValuesStage):
        return _evaluation([scratch], branches_of(stage), 0)
    if isinstance(stage, PlusStage):
        total, shards = sweep_size(stage), results / folder / "shard-*.parquet"
        done = {path.stem for path in here.glob(str(shards))}  # their rows stay in scratch
        at_work = [path for path in sorted(here.glob(scratch_path(str(shards)))) if path.name not in done]
        return _evaluation(at_work, total, min(total, len(done) * stage.plus.shard_size))
    if isinstance(stage, TrainStage):
        return _training(scratch / "metrics.csv", stage.train.steps)
    scratch = here / scratch_path(str(results / folder))
    written = [path.stat().st_mtime for path in scratch.rglob("*") if path.is_file()]
    if not written:
        return Progress("waiting")
    return Progress("started", changed=time.time() - max(written))


def _evaluation(folders: Sequence[Path], total: int, finished: int) -> Progress:
    """Of an evaluation that keeps a row an episode in each of its scratch folders, a file a process."""
    statuses: list[str] = []
    rate, newest = 0.0, 0.0
    for folder in folders:
        journals = list(folder.glob("rows*.jsonl"))
        if not journals:
            continue
        lines = [line for path in journals for line in path.read_text(encoding="utf-8").splitlines()]
        statuses += [row["status"] for row in map(_row, lines) if row]
        written, marker = max(path.stat().st_mtime for path in journals), folder / "run.json"
        if marker.is_file() and (seconds := written - marker.stat().st_mtime) > 0:  # since the attempt began
            resumed = json.loads(marker.read_text(encoding="utf-8")).get("resumed", 0)
            rate += max(0, len(lines) - resumed) / seconds
        newest = max(newest, written)
    if not newest:
        return Progress("started" if finished else "waiting", "episodes", finished, total)
    return Progress(
        "started",
        "episodes",
        finished + len(statuses),
        total,
        statuses.count("success"),
        len(statuses) - statuses.count("infra_error"),
        rate or None,
        time.time() - newest,
    )


def _row(line: str) -> dict[str, str] | None:
    try:
        row: dict[str, str] = json.loads(line)
    except ValueError:  # the last line, while it is being written
        return None
    return row


def _training(file: Path, steps: int) -> Progress:
    """Of a training that has written `metrics.csv` into its scratch folder."""
    if not file.is_file() or (metrics := pd.read_csv(file)).empty:
        return Progress("waiting", "RL steps", 0, steps)
    last = metrics.iloc[-1]
    return Progress(
        "started",
        "RL steps",
        int(last["step"]),
        steps,
        int(last["successes"]),
        int(last["episodes"]),
        1 / float(metrics["seconds_total"].tail(5).mean()),
        time.time() - file.stat().st_mtime,
    )


def line(folder: str, now: Progress) -> str:
    """One stage as a line of text."""
    parts = [f"{now.state:8} {folder}"]
    if now.state != "done" and now.total is not None:
        parts.append(f"{now.done}/{now.total} {now.unit}")
    if now.episodes:
        rate = wilson(now.successes, now.episodes)
        of = " in the last step" if now.unit == "RL steps" else ""
        parts.append(
            f"{percent(rate.value)}% [{percent(rate.low)}, {percent(rate.high)}] success "
            f"({now.successes}/{now.episodes}{of})"
        )
    if now.rate and now.total is not None:
        left = (now.total - now.done) / now.rate
        parts.append(f"{now.rate:.2g} {now.unit}/s, {duration(left)} left")
    if now.changed is not None:
        parts.append(f"last written {duration(now.changed)} ago")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as text: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def report(preset_name: str, here: Path, overrides: Sequence[str] = ()) -> Iterator[str]:
    """The lines of the whole preset: a summary, jobs that Slurm will never start, then the stages, those in
    progress first."""
    preset, source = load_preset(preset_name)
    stages = plan(preset, source, overrides=overrides).stages
    now = {folder: progress(folder, stage, here) for folder, stage in stages.items()}
    states = [p.state for p in now.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "started", "waiting"))
    yield f"{preset.name}: {len(stages)} stages, {counts}"
    yield from map(str, stuck_jobs(here))
    for state in ("started", "done", "waiting"):
        yield from (line(folder, p) for folder, p in now.items() if p.state == state)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="srpo status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", nargs="?", default="smoke", help="name or path of a preset")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="look again every ten seconds, until Ctrl-C")
    how.add_argument("--serve", action="store_true", help="a page that looks again every ten seconds")
    parser.add_argument("--port", type=int, default=8765, help="of --serve, at 127.0.0.1 (0: any free one)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, as for Snakemake"
    )
    arguments = parser.parse_args(argv)
    if arguments.watch or arguments.serve:
        from srpo.cluster import page, watch  # they read this module

        watcher = watch.Watcher(plan(*load_preset(arguments.preset), overrides=arguments.set), Path.cwd())
        if arguments.serve:
            page.serve(watcher, arguments.port)
        else:
            watch.watch(watcher)
        return
    print("\n".join(report(arguments.preset, Path.cwd(), arguments.set)))


if __name__ == "__main__":
    run_command(main)
