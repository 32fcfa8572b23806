"""Rows of finished episodes in a file, from which an interrupted run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from srpo.runtime.files import write_json, write_text


class Journal:
    """The rows so far, one JSON line each, flushed to disk as they come; an incomplete last line is dropped.

    Rows of another run (settings or policy changed) are discarded. Episodes that could not be run are not
    resumed, so that they are run again. The journal stays after the run: if the output is asked for again
    (another job of its group failed, say), it is written from here.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._file = folder / "rows.jsonl"
        marker = folder / "run.json"
        if marker.exists() and json.loads(marker.read_text()).get("run") != run:
            print(
                f"{folder}: holds another run's rows (settings or policy changed); starting anew", flush=True
            )
            self._file.unlink(missing_ok=True)
        write_json(marker, {"run": run})
        self.rows: list[dict[str, Any]] = []
        if self._file.exists():
            for line in self._file.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if row["status"] != "infra_error":
                    self.rows.append(row)
            write_text(self._file, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self._file.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
