"""GPU- and core-hours that a preset has held so far, by stage, variant and try, beside the planned ones.

srpo ledger [NAME | PRESET.yaml] [--out results/<preset>]

It only reads: Snakemake's logs in `.snakemake/log/` for the tries, and for their hours Slurm's accounting, or
where there is none a job's `benchmark` file and Snakemake's logs. With --out the table is also written there,
as `tables/ledger.csv` (a row a try) and `tables/ledger.html`.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from srpo.analysis.typeset import Group, Row, Table, to_html
from srpo.cluster.accounting import Use, uses
from srpo.cluster.estimate import Held, estimate, held, read_throughput
from srpo.cluster.jobs import Job, all_jobs
from srpo.cluster.plan import THROUGHPUT
from srpo.cluster.resources import REQUESTS, cores_of, gpus_of
from srpo.cluster.speeds import choose_speeds
from srpo.cluster.tries import History, Try, history
from srpo.config import ConfigError, Parallel
from srpo.config.plan import Plan, plan
from srpo.config.resolve import load_preset
from srpo.errors import run_command
from srpo.runtime.files import write_text

Source = Literal["accounting", "benchmark", "log", "unknown"]
SOURCES: dict[Source, str] = {
    "accounting": "Slurm's accounting",
    "benchmark": "benchmark files",
    "log": "the times in Snakemake's logs",
    "unknown": "not known, and left out of the sums",
}
"""Where the seconds of a try are from."""
_COMPLETED = "COMPLETED"


@dataclass(frozen=True)
class Entry:
    """One try at a job, and what it held.

    job     e.g. `train/libero_goal/grpo/seed0`
    stage   the workflow's rule
    state   `done`, `running`, `failed`, `lost`, or Slurm's word for how it ended
    seconds None: not known. Jobs that share a submission to Slurm have equal parts of its time
    source  of the seconds
    slurm   number of its Slurm job
    number  of the try at this job, from 1
    """

    job: str
    stage: str
    state: str
    cores: int
    gpus: int
    seconds: float | None
    source: Source
    slurm: str | None = None
    number: int = 1

    @property
    def variant(self) -> str:
        """The row of the sheets that it belongs to; '' for what runs share."""
        parts = self.job.split("/")
        return parts[2] if self.stage in ("sft", "train", "evaluate", "plus_shard") else ""

    @property
    def held(self) -> Held:
        """Hours; 0 where they are not known."""
        hours = (self.seconds or 0.0) / 3600
        return Held(hours * self.gpus, hours * self.cores)

    @property
    def failed(self) -> bool:
        return self.state not in ("done", "running")


def entries(jobs: Sequence[Job], past: History, preset: str, parallel: Parallel, here: Path) -> list[Entry]:
    """Every try that has held something, in the order of their jobs in the plan."""
    tries = [one for one in past.tries if one.rule in REQUESTS]
    used = uses(one.slurm for one in tries if one.slurm is not None)
    members = Counter(one.slurm for one in tries)
    by_job: dict[str, list[Try]] = defaultdict(list)
    for one in tries:
        by_job[one.job].append(one)
    found: list[Entry] = []
    for job in jobs:
        file = here / f"results/{preset}/benchmarks/{job.name}.tsv"
        rows: list[Entry] = []
        for one in by_job.get(job.name, ()):
            if one.slurm is not None and one.slurm in used:
                rows += _accounted(one, used[one.slurm], members[one.slurm])
            elif one.slurm is None or not _waits(one):
                rows.append(_timed(one, file))
        seconds = benchmark(file)
        if seconds is not None and job.name not in by_job:  # no log knows it: they were removed
            asked = (cores_of(job.rule, parallel), gpus_of(job.rule, parallel))
            rows.append(Entry(job.name, job.rule, "done", *asked, seconds, "benchmark"))
        found += [replace(row, number=number) for number, row in enumerate(rows, 1)]
    return found


def _waits(one: Try) -> bool:
    """Whether a job is still in Slurm's queue, or left it without having been started."""
    return one.state != "done" and started(one) is None


def started(one: Try) -> float | None:
    """When a try's process started, s since the epoch; None: it has not, or that is not known."""
    if one.slurm is None:
        return one.started
    try:
        assert one.slurm_log is not None
        text = one.slurm_log.read_text(encoding="utf-8", errors="replace")[:2000]
    except OSError:  # removed: the job ended well
        return None
    head = text.partition("  Date: ")[2][:19]  # of the Snakemake inside the job
    try:
        return time.mktime(time.strptime(head, "%Y-%m-%d %H:%M:%S"))
    except ValueError:
        return None


def _accounted(one: Try, used: Sequence[Use], members: int) -> Iterator[Entry]:
    """A try as Slurm accounts for it: an entry for every start of its job."""
    for place, use in enumerate(used):
        last = place == len(used) - 1
        state = {_COMPLETED: "done", "RUNNING": "running", "COMPLETING": "running"}.get(use.state, use.state)
        if last and one.state == "failed" and state == "done":
            state = "failed"  # as Snakemake sees it: an output is missing
        if use.state == "PENDING" or (not use.seconds and state != "done"):
            continue
        seconds = use.seconds / members
        yield Entry(one.job, one.rule, state, use.cores, use.gpus, seconds, "accounting", one.slurm)


def _timed(one: Try, file: Path) -> Entry:
    """A try without accounting."""
    state = "running" if one.state == "open" else one.state
    seconds = benchmark(file, since=one.started) if one.state == "done" else None
    source: Source = "benchmark"
    if seconds is None and (start := started(one)) is not None:
        seconds, source = max(0.0, (one.ended or time.time()) - start), "log"
    elif seconds is None:
        source = "unknown"
    return Entry(one.job, one.rule, state, one.cores, one.gpus, seconds, source, one.slurm)


def benchmark(file: Path, since: float = 0.0) -> float | None:
    """The seconds in a job's benchmark file; None where there is none, or it is of an earlier try."""
    try:
        if file.stat().st_mtime < since:
            return None
        row = next(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")), delimiter="\t"))
        return float(row["s"])
    except (OSError, StopIteration, KeyError, ValueError):
        return None


def planned_jobs(planned: Plan) -> tuple[list[Job], str]:
    """The preset's jobs with what `srpo plan` says they take, and why it says nothing, or ''."""
    gpu = choose_speeds() if planned.preset.parallel.on_gpus else None
    try:
        return estimate(planned, read_throughput(THROUGHPUT, None, gpu)), ""
    except ConfigError as error:
        return all_jobs(planned), str(error)


def total(some: Iterable[Entry]) -> Held:
    """The hours of some tries."""
    hours = [entry.held for entry in some]
    return Held(sum(one.gpu for one in hours), sum(one.core for one in hours))


# -------------------------------------------------------------------------------------------------- the table


def hours(value: float) -> str:
    """Hours with two digits that count."""
    if value >= 10:
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.1f}"
    return f"{value:.2g}" if value >= 0.001 or not value else "< 0.001"


def table(found: Sequence[Entry], jobs: Sequence[Job], parallel: Parallel, why_not: str = "") -> Table:
    """By stage, variant and try, with what was planned for each stage."""
    groups = []
    for stage in REQUESTS:
        mine = [entry for entry in found if entry.stage == stage]
        if mine:
            foreseen = held((job for job in jobs if job.rule == stage), parallel)
            groups.append(
                Group(_heading(stage, mine, foreseen, parallel.on_gpus, why_not), list(_rows(mine)))
            )
    groups.append(
        Group(
            _heading("in all", found, held(jobs, parallel), parallel.on_gpus, why_not),
            [_row("all", "", found)],
        )
    )
    notes = ["Held: from start to end, whether busy or not; failed tries are among them."]
    kinds = Counter(entry.source for entry in found)
    notes += [f"Times of {kinds[source]} tries: {text}." for source, text in SOURCES.items() if kinds[source]]
    if why_not:
        notes.append(f"Nothing is planned: {why_not}.")
    else:
        notes.append(
            "Planned: srpo plan, at the speeds that ship with it, for all of the preset"
            + ("." if parallel.on_gpus else "; on CPUs a lower bound, which has simulation alone.")
        )
    columns = (
        "try",
        "tries",
        "of these failed",
        "core-hours",
        "of failed tries",
        "GPU-hours",
        "of failed tries",
    )
    return Table("Hours for which cores and GPUs were held", "stage, variant", columns, groups, notes)


def _heading(name: str, mine: Sequence[Entry], foreseen: Held, on_gpus: bool, why_not: str) -> str:
    spent = total(mine)

    def against(spent: float, planned: float, unit: str) -> str:
        return f"{hours(spent)} {unit}" + ("" if why_not else f" of {hours(planned)} planned")

    parts = [against(spent.core, foreseen.core, "core-hours")]
    if on_gpus:
        parts.append(against(spent.gpu, foreseen.gpu, "GPU-hours"))
    return f"{name}: {', '.join(parts)}"


def _rows(mine: Sequence[Entry]) -> Iterator[Row]:
    by: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    for entry in mine:
        by[entry.variant, entry.number].append(entry)
    for variant, number in sorted(by):
        yield _row(variant or "–", str(number), by[variant, number])


def _row(label: str, number: str, some: Sequence[Entry]) -> Row:
    bad = [entry for entry in some if entry.failed]
    spent, wasted = total(some), total(bad)
    values = (spent.core, wasted.core, spent.gpu, wasted.gpu)
    cells = [number, str(len(some)), str(len(bad)), *map(hours, values)]
    return Row((label,), [(cell,) for cell in cells])


def to_text(shown: Table) -> str:
    """The table in plain columns."""
    width = max(16, *(len(row.label[0]) + 2 for group in shown.groups for row in group.rows))
    widths = [max(8, len(name) + 2) for name in shown.columns]
    lines = [
        f"{shown.corner:{width}}" + "".join(f"{n:>{w}}" for n, w in zip(shown.columns, widths, strict=True))
    ]
    for group in shown.groups:
        lines += ["", group.heading]
        for row in group.rows:
            cells = (cell[0] for cell in row.cells)
            lines.append(
                f"  {row.label[0]:{width - 2}}"
                + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
            )
    return "\n".join([*lines, "", *shown.notes])


FIELDS = ("job", "stage", "variant", "try", "state", "cores", "gpus", "seconds", "core_hours", "gpu_hours")


def to_csv(found: Iterable[Entry]) -> str:
    """A row a try. `seconds` is empty where it is not known; `source` tells where it is from."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*FIELDS, "source", "slurm_job"])
    for entry in found:
        seconds = "" if entry.seconds is None else f"{entry.seconds:.1f}"
        spent = [f"{value:.4f}" for value in (entry.held.core, entry.held.gpu)]
        kind = [entry.job, entry.stage, entry.variant, entry.number, entry.state, entry.cores, entry.gpus]
        writer.writerow([*kind, seconds, *spent, entry.source, entry.slurm or ""])
    return out.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="srpo ledger", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", nargs="?", default="smoke", help="name or path of a preset")
    parser.add_argument("--out", type=Path, help="folder for tables/ledger.csv and tables/ledger.html")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, as for Snakemake"
    )
    arguments = parser.parse_args(argv)
    planned = plan(*load_preset(arguments.preset), overrides=arguments.set)
    preset = planned.preset
    jobs, why_not = planned_jobs(planned)
    found = entries(jobs, history(preset.name, Path.cwd()), preset.name, preset.parallel, Path.cwd())
    shown = table(found, jobs, preset.parallel, why_not)
    if arguments.out is not None:
        write_text(arguments.out / "tables/ledger.html", to_html(shown))
        write_text(arguments.out / "tables/ledger.csv", to_csv(found))
    print(to_text(shown))


if __name__ == "__main__":
    run_command(main)
