"""Pages in a real browser, and the server of `srpo status --serve`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from srpo import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HEADLESS = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


class Browser:
    """A page in headless Chromium, spoken to by the DevTools protocol through two pipes."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = os.fdopen(commands, "wb"), os.fdopen(answers, "rb")
        self._number = 0
        self._rest = b""
        self.session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._answers.fileno(), 1 << 16)
            assert more, "the browser has gone"
            self._rest += more
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self.session}
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path | str) -> None:
        """Load a file or an address."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=page.as_uri() if isinstance(page, Path) else page)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def received(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]

    def errors(self) -> list[str]:
        """Console errors, uncaught exceptions, and errors that the browser itself logs."""
        calls = [str(p["args"]) for p in self.received("Runtime.consoleAPICalled") if p["type"] == "error"]
        thrown = [str(p["exceptionDetails"]) for p in self.received("Runtime.exceptionThrown")]
        entries = [
            p["entry"]["text"] for p in self.received("Log.entryAdded") if p["entry"]["level"] == "error"
        ]
        return calls + thrown + entries

    def requests(self) -> list[str]:
        """Addresses outside this machine's files that the page asked for."""
        asked = [parameters["request"]["url"] for parameters in self.received("Network.requestWillBeSent")]
        return [address for address in asked if not address.startswith(("file:", "data:", "blob:"))]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile is in a folder."""
    (child_in, commands), (answers, child_out) = os.pipe(), os.pipe()
    # Chromium reads from descriptor 3 and writes to descriptor 4.
    line = f'exec "$0" "$@" 3<&{child_in} 4>&{child_out}'
    process = subprocess.Popen(
        ["bash", "-c", line, *HEADLESS,
         f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe"],
        pass_fds=(child_in, child_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(child_in)
    os.close(child_out)
    try:
        yield Browser(commands, answers)
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(where: Path, preset: str) -> Iterator[str]:
    """The address of the page of a preset, as `srpo status --serve` prints it."""
    command = [sys.executable, "-P", "-m", "srpo", "status", preset, "--serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=where, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
    finally:
        process.terminate()
        process.wait(30)
