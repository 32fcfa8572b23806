"""Rows of finished episodes in files, from which an interrupted run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srpo.runtime.files import write_json, write_text
from srpo.runtime.peers import ALONE, Peers

Row = dict[str, Any]


class Journal:
    """The rows so far, one JSON line each, flushed to disk as they come; an incomplete last line is dropped.

    Rows of another run (settings or policy changed) are discarded. Episodes that could not be run are not
    resumed, so that they are run again. The journal stays after the run: if the output is asked for again
    (another job of its group failed, say), it is written from here.

    Of several processes each has a file of its own, since not every file system lets many append to one. The
    first process reads them all when a run begins, and makes them one.

    rows  that this process knows: those from before the run, its own, and all others after `share`
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        peers: Peers = ALONE,
        usable: Callable[[Row], bool] = lambda row: True,
    ) -> None:
        """Read the rows from before the run. All processes must call.

        Args:
            usable: rows for which it does not hold are run again.
        """
        self._peers = peers
        self._file = folder / ("rows.jsonl" if peers.is_first else f"rows-{peers.rank}.jsonl")
        # The others begin when the first has cleared up.
        self.rows: list[Row] = peers.gather(self._resume(folder, run, usable) if peers.is_first else [])
        self._shared = len(self.rows)

    def _resume(self, folder: Path, run: str, usable: Callable[[Row], bool]) -> list[Row]:
        marker, files = folder / "run.json", sorted(folder.glob("rows*.jsonl"))
        if marker.exists() and json.loads(marker.read_text()).get("run") != run:
            print(
                f"{folder}: holds another run's rows (settings or policy changed); starting anew", flush=True
            )
            for file in files:
                file.unlink()
            files = []
        rows = []
        # A line is there twice if this was interrupted below.
        for line in dict.fromkeys(line for file in files for line in file.read_text().splitlines()):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row["status"] != "infra_error" and usable(row):
                rows.append(row)
        if files:
            write_text(self._file, "".join(json.dumps(row) + "\n" for row in rows))
        for file in files:
            if file != self._file:
                file.unlink()
        write_json(marker, {"run": run, "resumed": len(rows)})
        return rows

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self._file.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def share(self) -> None:
        """Make the rows of each process known to all, in the same order. All must call."""
        self.rows[self._shared :] = self._peers.gather(self.rows[self._shared :])
        self._shared = len(self.rows)
