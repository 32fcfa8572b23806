"""What became of the workflow's jobs, try by try, from the logs that Snakemake keeps in `.snakemake/log/`."""

from __future__ import annotations

import os
import platform
import re
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

import psutil

_STAMP = re.compile(r"\[(\w{3} \w{3} +\d+ [\d:]{8} \d{4})\]")
_RULE = re.compile(r"(?:local)?rule (\w+):$")
_ERROR = re.compile(r"Error in rule \w+:$")
_GROUP = re.compile(r"\[[^]]+\] Group job (.+) \(jobs in ")
_FINISHED = re.compile(r"Finished jobid: (\d+) ")
_SUBMITTED = re.compile(r"Job (\S+) has been submitted with SLURM jobid (\d+) \(log: (.+)\)\.$")
_IDLE = re.compile(
    r"^None$|^Error in group .*$| *(Detailed failure reason unavailable|For further error details).*"
)
"""Parts of Snakemake's messages that say nothing about a failure."""
_HOST = re.compile(r"  Host: (.+)")


@dataclass(frozen=True)
class Try:
    """One try at a job of the workflow.

    rule        e.g. `plus_shard`
    job         e.g. `train/libero_goal/grpo/seed0`: its log is `results/<preset>/logs/<job>.log`
    preset      the folder below `results/`
    cores, gpus what it asked for
    started     s since the epoch: when Snakemake started or submitted it
    ended       when Snakemake noticed its end; None: it has not
    state       `lost`: Snakemake ended first, without telling what became of it
    message     why it failed, in Snakemake's words
    slurm       number of its Slurm job; None: it runs beside Snakemake
    slurm_log   what Slurm and the Snakemake inside the job print; kept where the job failed
    """

    rule: str
    job: str
    preset: str
    cores: int
    gpus: int
    started: float
    ended: float | None = None
    state: Literal["open", "done", "failed", "lost"] = "open"
    message: str = ""
    slurm: str | None = None
    slurm_log: Path | None = None


@dataclass(frozen=True)
class Log:
    """One run of Snakemake.

    host      where it ran
    complete  it came to its end and said so
    """

    tries: Sequence[Try]
    host: str
    complete: bool


def parse(lines: Iterable[str]) -> Log:
    """Read the log of one run of Snakemake, which may still be growing."""
    reader = _Reader()
    for line in _without_quoted_logs(lines):
        reader.read(line)
    reader.read("")
    return Log(tuple(reader.tries), reader.host, reader.complete)


def _without_quoted_logs(lines: Iterable[str]) -> Iterator[str]:
    """Leave out what jobs printed: with `show-failed-logs` Snakemake quotes it between two rulers."""
    lines = iter(lines)
    for line in lines:
        yield line
        if line.lstrip().startswith("Logfile ") and line.rstrip().endswith(":"):
            ruler = next(lines, "")
            for quoted in lines:
                if quoted == ruler:
                    break


@dataclass
class _Reader:
    """Line by line. A head is a line whose fields (`key: value`) follow it, further indented."""

    tries: list[Try] = field(default_factory=list)
    host: str = ""
    complete: bool = False
    now: float = 0.0
    head: re.Match[str] | None = None
    indent: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    """Members of a failed group."""
    newest: dict[str, int] = field(default_factory=dict)
    """Snakemake's number of a job → its newest try."""
    group: list[str] | None = None
    """Members of the group that is being read."""
    groups: dict[str, deque[list[str]]] = field(default_factory=lambda: defaultdict(deque))
    """Name of a group → the members of those of its submissions that have no Slurm number yet."""

    def read(self, line: str) -> None:
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if self.head and indent > self.indent:
            key, _, value = text.partition(": ")
            if indent == self.indent + 4:
                self.fields.setdefault(key, value)
            elif key == "jobid":
                self.failed.append(value)
            return
        self._finish_head()
        if not indent:
            self.group = None
        if group := _GROUP.match(text):
            self.group = []
            self.groups[group[1]].append(self.group)
        if stamp := _STAMP.match(text):
            self.now = time.mktime(time.strptime(stamp[1]))
        if head := _RULE.match(text) or _ERROR.match(text) or (not indent and _STAMP.fullmatch(text)):
            self.head, self.indent = head, indent
        elif finished := _FINISHED.match(text):
            self._end(finished[1], "done")
        elif submitted := _SUBMITTED.match(text):
            self._submit(*submitted.groups())
        elif host := _HOST.match(line.rstrip()):
            self.host = host[1]
        elif text.startswith("Complete log(s):"):
            self.complete = True

    def _finish_head(self) -> None:
        head, fields, failed = self.head, self.fields, self.failed
        self.head, self.fields, self.failed = None, {}, []
        if head is None:
            return
        if head.re is _RULE:
            self._start(head[1], fields)
        elif head.re is _ERROR:
            failed = [fields.get("jobid", "")]
        message = _IDLE.sub("", fields.get("message", ""))
        for number in failed:
            self._end(number, "failed", message)

    def _start(self, rule: str, fields: dict[str, str]) -> None:
        parts = PurePosixPath(fields.get("log", "")).parts
        if len(parts) < 4 or parts[0] != "results" or parts[2] != "logs" or "jobid" not in fields:
            return
        resources = dict(item.partition("=")[::2] for item in fields.get("resources", "").split(", "))
        gpus, nodes = (resources.get(name, default) for name, default in (("gpu", "0"), ("nodes", "1")))
        self.newest[fields["jobid"]] = len(self.tries)
        self.tries.append(
            Try(
                rule,
                str(PurePosixPath(*parts[3:]).with_suffix("")),
                parts[1],
                int(fields.get("threads", "1")) * (int(nodes) if nodes.isdecimal() else 1),
                int(gpus) if gpus.isdecimal() else 0,
                self.now,
            )
        )
        if self.group is not None:
            self.group.append(fields["jobid"])

    def _submit(self, number: str, slurm: str, log: str) -> None:
        """A job or a group has got its number of Slurm."""
        members = [number]
        if number not in self.newest:
            # A group is called by a number that stands nowhere else; the folder of its log has its name. Of
            # two submissions of one group the first is taken: both are of one rule, suite and variant.
            folder = Path(log).parent.name
            for name, waiting in self.groups.items():
                if waiting and any(
                    folder == f"group_{name}_{self.tries[self.newest[one]].rule}"
                    for one in waiting[0]
                    if one in self.newest
                ):
                    members = waiting.popleft()
                    break
        for member in members:
            self._change(member, slurm=slurm, slurm_log=Path(log))

    def _end(self, number: str, state: Literal["done", "failed"], message: str = "") -> None:
        if number in self.newest and self.tries[self.newest[number]].state == "open":
            self._change(number, state=state, ended=self.now, message=message)

    def _change(self, number: str, **changes: object) -> None:
        if number in self.newest:
            place = self.newest[number]
            self.tries[place] = replace(self.tries[place], **changes)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _read(path: Path, size: int, changed: int) -> Log:
    with path.open(encoding="utf-8", errors="replace") as lines:
        return parse(line.rstrip("\n") for line in lines)


def is_running(path: Path, log: Log) -> bool:
    """Whether Snakemake is still at work; on another host that means: it has not said that it has ended."""
    if log.complete or log.host != platform.node():
        return not log.complete
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.uids().real == os.getuid() and any(
                Path(file.path) == path.resolve() for file in process.open_files()
            ):
                return True
    return False


@dataclass(frozen=True)
class History:
    """All tries that Snakemake's logs know of a preset, in their order.

    running  whether a Snakemake is at work on it; None: there is no log
    written  when the newest log was last written, s since the epoch; 0: there is none
    """

    tries: Sequence[Try]
    running: bool | None = None
    written: float = 0.0


def history(preset: str, here: Path) -> History:
    """Read the logs in `<here>/.snakemake/log/`."""
    found: list[Try] = []
    running, written = None, 0.0
    for path in sorted((here / ".snakemake/log").glob("*.snakemake.log")):
        status = path.stat()
        log = _read(path, status.st_size, status.st_mtime_ns)
        tries = [one for one in log.tries if one.preset == preset]
        if not tries:
            continue
        running, written = is_running(path, log), status.st_mtime
        if not running:
            tries = [
                replace(one, state="lost", ended=written) if one.state == "open" else one for one in tries
            ]
        found += tries
    return History(found, running, written)
