"""A preset at one moment, for `srpo status --watch` and `--serve`: jobs, failures, curves, hours.

Everything is read from files that are there anyway (`results/`, `scratch/`, `.snakemake/`) and from Slurm.
"""

from __future__ import annotations

import csv
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from srpo.analysis.typeset import Table
from srpo.cluster import ledger, status
from srpo.cluster.accounting import Queued, queue
from srpo.cluster.estimate import Held, held
from srpo.cluster.jobs import Job
from srpo.cluster.ledger import Entry, hours
from srpo.cluster.resources import REQUESTS, scratch_path
from srpo.cluster.tries import History, Try, history
from srpo.config import TrainStage
from srpo.config.plan import Plan

State = Literal["failed", "running", "queued", "waiting", "done"]
STATES: dict[State, str] = {
    "failed": "its last try failed, and there is no other yet",
    "running": "at work",
    "queued": "waits in Slurm's queue",
    "waiting": "not submitted yet",
    "done": "its results are there",
}
INTERVAL = 10
"""Seconds between two looks."""
ACCOUNTING_INTERVAL = 60
"""Seconds between two questions to Slurm's accounting, which all users of a cluster share."""
MOST_FAILURES = 12
TAIL_LINES, TAIL_BYTES = 25, 20_000
"""Of a log's end."""


@dataclass(frozen=True)
class Failure:
    """A job whose newest finished try failed.

    number  of that try
    ended   s since the epoch
    message why, in Snakemake's words
    tail    the end of its log
    again   its next try is in the queue or at work
    """

    job: str
    number: int
    ended: float
    message: str
    tail: Sequence[str]
    again: bool


@dataclass(frozen=True)
class Curve:
    """A training's share of successful rollouts so far: (RL step, share) each."""

    suite: str
    variant: str
    seed: int
    steps: int
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Snapshot:
    """A preset at one moment.

    taken       s since the epoch
    states      stage → number of its jobs in each state
    running     of each stage that has begun and is not done: how far it is, in words
    reasons     why jobs wait in Slurm's queue, in Slurm's words → how many
    spent, planned, lost   hours by stage: so far; in all; of tries that failed, so far
    snakemake   what Snakemake does, in words; `alive`: whether that is well
    """

    preset: str
    on_gpus: bool
    taken: float
    states: Mapping[str, Mapping[State, int]]
    failures: Sequence[Failure]
    running: Sequence[str]
    reasons: Mapping[str, int]
    curves: Sequence[Curve]
    spent: Mapping[str, Held]
    lost: Mapping[str, Held]
    planned: Mapping[str, Held]
    hours: Table
    snakemake: str
    alive: bool

    def count(self, state: State) -> int:
        return sum(counts[state] for counts in self.states.values())

    @property
    def jobs(self) -> int:
        return sum(sum(counts.values()) for counts in self.states.values())


class Watcher:
    """Takes snapshots of one preset in one folder; what is slow to ask for is kept a while."""

    def __init__(self, planned: Plan, here: Path) -> None:
        self.planned, self.here = planned, here
        self.jobs, self.why_not = ledger.planned_jobs(planned)
        self._entries: list[Entry] = []
        self._entries_until = 0.0

    def look(self) -> Snapshot:
        """The state now."""
        preset = self.planned.preset
        past, waiting = history(preset.name, self.here), queue()
        now = time.time()
        if now >= self._entries_until:
            self._entries = ledger.entries(self.jobs, past, preset.name, preset.parallel, self.here)
            self._entries_until = now + ACCOUNTING_INTERVAL
        newest = {one.job: one for one in past.tries}
        found = {job: state_of(job, newest.get(job.name), waiting, self._results) for job in self.jobs}
        pending = {number for number, job in waiting.items() if job.state == "PENDING"}
        numbers = pending & {one.slurm for one in newest.values() if one.slurm is not None}
        stages = [stage for stage in REQUESTS if any(job.rule == stage for job in self.jobs)]
        counts: dict[str, dict[State, int]] = {}
        for stage in stages:
            mine = Counter(state for job, state in found.items() if job.rule == stage)
            counts[stage] = {state: mine[state] for state in STATES}
        words, alive = snakemake(past, now, all(state == "done" for state in found.values()))
        by_stage = {stage: [entry for entry in self._entries if entry.stage == stage] for stage in stages}
        return Snapshot(
            preset.name,
            preset.parallel.on_gpus,
            now,
            counts,
            list(self._failures(past)),
            list(self._running()),
            Counter(waiting[number].reason for number in sorted(numbers)),
            list(self._curves()),
            {stage: ledger.total(mine) for stage, mine in by_stage.items()},
            {stage: ledger.total(e for e in mine if e.failed) for stage, mine in by_stage.items()},
            {
                stage: held((job for job in self.jobs if job.rule == stage), preset.parallel)
                for stage in stages
            },
            ledger.table(self._entries, self.jobs, preset.parallel, self.why_not),
            words,
            alive,
        )

    @property
    def _results(self) -> Path:
        return self.here / "results" / self.planned.preset.name

    def _failures(self, past: History) -> Iterator[Failure]:
        """The newest first; those that are tried again last."""
        by_job: dict[str, list[Try]] = {}
        for one in past.tries:
            by_job.setdefault(one.job, []).append(one)
        failures = []
        folders = (self._results / "logs", self.here / ".snakemake/slurm_logs")
        for job, tries in by_job.items():
            last = next((one for one in reversed(tries) if one.state != "open"), None)
            if last is None or last.state != "failed":
                continue
            again = tries[-1].state == "open"
            logs = [self._results / f"logs/{job}.log", *([last.slurm_log] if last.slurm_log else [])]
            # The job's own log is written anew by its next try.
            ends = [tail(log, folders) for log in (logs[1:] if again else logs)]
            end = next((lines for lines in ends if lines), [])
            number = tries.index(last) + 1
            failures.append(Failure(plain(job), number, last.ended or 0.0, plain(last.message), end, again))
        yield from sorted(failures, key=lambda failure: (failure.again, -failure.ended))[:MOST_FAILURES]

    def _running(self) -> Iterator[str]:
        for folder, stage in self.planned.stages.items():
            now = status.progress(folder, stage, self.here)
            if now.state == "started":
                yield status.line(folder, now).removeprefix("started").strip()

    def _curves(self) -> Iterator[Curve]:
        for folder, stage in self.planned.stages.items():
            if isinstance(stage, TrainStage):
                results = f"results/{stage.preset}/{folder}"
                files = (f"{results}/metrics.csv", f"{scratch_path(f'{results}/policy')}/metrics.csv")
                points = next((found for file in files if (found := _points(self.here / file))), [])
                yield Curve(stage.suite, stage.variant, stage.seed, stage.train.steps, points)


def state_of(job: Job, newest: Try | None, waiting: Mapping[str, Queued], results: Path) -> State:
    """Of one job: from its results, its newest try, and Slurm's queue."""
    if newest is not None and newest.slurm is not None and newest.slurm in waiting:
        return "queued" if waiting[newest.slurm].state == "PENDING" else "running"
    done = (results / job.output).exists()
    if newest is not None and newest.state == "open" and not (done and newest.slurm):
        # Slurm does not know it: it has just ended, or Slurm does not answer.
        return "queued" if newest.slurm and ledger.started(newest) is None else "running"
    if done:  # which Snakemake may notice minutes later
        return "done"
    return "failed" if newest is not None and newest.state == "failed" else "waiting"


def snakemake(past: History, now: float, finished: bool) -> tuple[str, bool]:
    """What Snakemake does, in words, and whether that is well."""
    if past.running is None:
        return "Snakemake has not run here", finished
    ago = status.duration(now - past.written)
    if past.running:
        return f"Snakemake runs, its log was written {ago} ago", True
    return f"Snakemake does not run, its log was written {ago} ago", finished


def tail(log: Path, folders: Sequence[Path]) -> list[str]:
    """The last lines of a log below one of some folders, as plain text; none of any other file."""
    try:
        if not any(log.resolve().is_relative_to(folder.resolve()) for folder in folders):
            return []
        with log.open("rb") as handle:
            handle.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = handle.read().decode(errors="replace")
    except OSError:
        return []
    return [plain(line) for line in text.rstrip().split("\n")[-TAIL_LINES:]] if text.strip() else []


def plain(text: str) -> str:
    """Text without what steers a terminal; of a progress bar, which overwrites its line, the last state."""
    last = text.rstrip("\r").rpartition("\r")[2]
    return "".join(c if c.isprintable() else " " if c == "\t" else "�" for c in last)


def _points(file: Path) -> list[tuple[int, float]]:
    """Steps and success of a `metrics.csv`; without the line that is being written."""
    try:
        rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError):
        return []
    points = []
    for row in rows:
        try:
            points.append((int(row["step"]), float(row["success_rate"])))
        except (KeyError, TypeError, ValueError):  # a step without episodes has no rate
            continue
    return points


# ----------------------------------------------------------------------------------------------- the terminal


def lines(now: Snapshot) -> Iterator[str]:
    """A snapshot as text, the most important first."""
    clock = time.strftime("%H:%M:%S", time.localtime(now.taken))
    yield f"{now.preset}: {now.count('done')} of {now.jobs} jobs done, {clock}. {now.snakemake}."
    for failure in now.failures:
        how = "is tried again" if failure.again else "FAILED"
        when = status.duration(now.taken - failure.ended)
        yield ""
        yield f"{how}: {failure.job}, try {failure.number}, {when} ago: {failure.message}"
        if not failure.again:
            yield from (f"  | {line}" for line in failure.tail[-8:])
    yield ""
    heads = ("core-hours", "planned", *(("GPU-hours", "planned") if now.on_gpus else ()))
    yield f"{'stage':14}" + "".join(f"{name:>9}" for name in STATES) + "".join(f"{n:>12}" for n in heads)
    for stage, counts in now.states.items():
        spent, planned = now.spent[stage], now.planned[stage]
        cells = [hours(spent.core), hours(planned.core)]
        cells += [hours(spent.gpu), hours(planned.gpu)] if now.on_gpus else []
        yield (
            f"{stage:14}"
            + "".join(f"{counts[state] or '·':>9}" for state in STATES)
            + "".join(f"{cell:>12}" for cell in cells)
        )
    if now.reasons:
        yield ""
        yield "in the queue: " + ", ".join(f"{number} {reason}" for reason, number in now.reasons.items())
    if now.running:
        yield ""
        yield from now.running
    yield ""
    for curve in now.curves:
        if curve.points:
            step, rate = curve.points[-1]
            name = f"{curve.suite}/{curve.variant}/seed{curve.seed}"
            yield f"{name:34} {spark(curve.points)} {rate:.0%} at step {step} of {curve.steps}"


def spark(points: Sequence[tuple[int, float]], width: int = 40) -> str:
    """Shares as a line of blocks, the newest at most."""
    return "".join(" ▁▂▃▄▅▆▇█"[round(8 * rate)] for _, rate in points[-width:])


def watch(watcher: Watcher) -> None:
    """Show the state on the terminal until Ctrl-C; once, where there is no terminal."""
    if not sys.stdout.isatty():
        print("\n".join(lines(watcher.look())))
        return
    try:
        while True:
            shown = list(lines(watcher.look()))
            columns, rows = shutil.get_terminal_size()
            fitted = [line[:columns] for line in shown[: rows - 1]]
            print("\x1b[H\x1b[2J" + "\n".join(fitted), end="", flush=True)
            time.sleep(INTERVAL)
    except KeyboardInterrupt:
        print()
