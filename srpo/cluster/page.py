"""`srpo status --serve`: a preset's state as a page for the browsers of this machine.

Nothing comes from elsewhere, and nothing can be changed or fetched through it: there is one page, its style
and its script. Its address has a word that only the terminal shows: whoever has an account on a head node can
open its ports.
"""

from __future__ import annotations

import html
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from srpo.analysis.typeset import html_table
from srpo.cluster.estimate import Held
from srpo.cluster.ledger import hours
from srpo.cluster.status import duration
from srpo.cluster.watch import INTERVAL, STATES, Curve, Failure, Snapshot, State, Watcher
from srpo.errors import InputError

COLOURS: dict[State, str] = {
    "failed": "#c0261c",
    "running": "#1769aa",
    "queued": "#e0a100",
    "waiting": "#d5d8dc",
    "done": "#3a8f4d",
}
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of variants in the curves: Okabe and Ito's colours, which colour-blind people tell apart."""

STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 70rem;
  margin: 1.2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 1.8rem 0 .5rem; }
.now { margin: .2rem 0 .7rem; color: #555; }
.bad { color: #a31910; font-weight: 600; }
svg { display: block; }
svg text { font: 12px system-ui, sans-serif; fill: #444; }
.bar { width: 100%; height: 1.1rem; border-radius: 3px; }
td .bar { height: .8rem; min-width: 9rem; }
.key { margin: .3rem 0; }
.key span { margin-right: 1.2rem; white-space: nowrap; }
.key svg { display: inline-block; margin-right: .35rem; }
.panels { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: .5rem 0 0; }
figcaption { color: #555; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .2rem .7rem; text-align: right; font-weight: normal; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: #555; border-bottom: 1px solid #999; }
tbody th[colspan] { padding-top: .6rem; }
tfoot td, tfoot th { border-top: 1px solid #999; }
caption { text-align: left; color: #555; }
.none { color: #aaa; }
.failure { border-left: 4px solid #c0261c; background: #fdf3f2; padding: .5rem .8rem; margin: .5rem 0; }
.again { border-color: #e0a100; background: #fdf9ee; }
pre { font: 12.5px/1.4 ui-monospace, monospace; margin: .4rem 0 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
summary { cursor: pointer; color: #555; }
"""

SCRIPT = f"""\
"use strict";
async function refresh() {{
  try {{
    const answer = await fetch(location.href);
    if (!answer.ok) throw new Error(answer.statusText);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const old of document.querySelectorAll("details[open]")) {{
      const same = page.getElementById(old.id);
      if (same) same.open = true;
    }}
    document.title = page.title;
    document.querySelector("main").replaceWith(page.querySelector("main"));
  }} catch (error) {{
    const now = document.querySelector(".now");
    now.classList.add("bad");
    now.textContent = "No answer from srpo status --serve: what stands below is old.";
  }}
}}
setInterval(refresh, {INTERVAL * 1000});
"""


def render(now: Snapshot) -> str:
    """The whole page. All text from files is escaped here."""
    failed = now.count("failed")
    title = f"{now.preset}: {now.count('done')} of {now.jobs} done" + (f", {failed} failed" if failed else "")
    parts = [*_head(now), *_failures(now), *_stages(now), *_running(now), *_curves(now.curves), *_hours(now)]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{html.escape(title)}</title>",
            '<link rel="stylesheet" href="page.css">\n<script src="page.js" defer></script>',
            "<main>",
            *parts,
            "</main>\n</html>\n",
        ]
    )


def _head(now: Snapshot) -> Iterator[str]:
    clock = time.strftime("%A %H:%M:%S", time.localtime(now.taken))
    words = ", ".join(
        f"{now.count(state)} {state}" for state in STATES if state != "done" and now.count(state)
    )
    kind = "now" if now.alive else "now bad"
    yield f"<h1>{html.escape(now.preset)}: {now.count('done')} of {now.jobs} jobs done</h1>"
    yield f'<p class="{kind}">{html.escape("; ".join(filter(None, (words, now.snakemake, clock))))}</p>'
    yield _bar([(state, now.count(state)) for state in ("done", "running", "queued", "failed", "waiting")])


def _bar(counts: Sequence[tuple[State, int]]) -> str:
    """Numbers of jobs as parts of a line, with a legend that screen readers and the pointer find."""
    total, left, parts = sum(number for _, number in counts) or 1, 0.0, []
    for state, number in counts:
        width = 100 * number / total
        if number:
            title = f"<title>{number} {state}: {html.escape(STATES[state])}</title>"
            size = f'x="{left:.3f}" width="{width:.3f}" height="10"'
            parts.append(f'<rect {size} fill="{COLOURS[state]}">{title}</rect>')
        left += width
    return f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none">{"".join(parts)}</svg>'


def _failures(now: Snapshot) -> Iterator[str]:
    if not now.failures:
        return
    yield "<h2>What failed</h2>"
    for failure in now.failures:
        yield _failure(failure, now.taken)


def _failure(failure: Failure, taken: float) -> str:
    what = "its next try is on its way" if failure.again else "no further try so far"
    said = f"{failure.message} " if failure.message else ""
    name, ago = html.escape(failure.job), duration(taken - failure.ended)
    opened = "" if failure.again else " open"
    end = html.escape("\n".join(failure.tail)) or "(its log is empty)"
    return (
        f'<div class="failure{" again" if failure.again else ""}"><b>{name}</b>, try {failure.number}, '
        f"{ago} ago; {what}<br>{html.escape(said)}\n"
        f'<details id="log {name}"{opened}><summary>end of its log</summary><pre>{end}</pre></details></div>'
    )


def _stages(now: Snapshot) -> Iterator[str]:
    heads = "".join(
        f'<th scope="col" title="{html.escape(text)}">{name}</th>' for name, text in STATES.items()
    )
    yield '<h2>Jobs</h2>\n<div class="scroll"><table>'
    yield f'<thead><tr><th scope="col">stage</th><th></th>{heads}</tr></thead><tbody>'
    for stage, counts in now.states.items():
        bar = _bar([(state, counts[state]) for state in ("done", "running", "queued", "failed", "waiting")])
        cells = "".join(
            f"<td>{counts[state]}</td>" if counts[state] else '<td class="none">·</td>' for state in STATES
        )
        yield f'<tr><th scope="row">{html.escape(stage)}</th><td>{bar}</td>{cells}</tr>'
    yield "</tbody></table></div>"
    if now.reasons:
        words = ", ".join(f"{number} {reason}" for reason, number in now.reasons.items())
        yield f"<p>Why jobs wait in Slurm's queue: {html.escape(words)}</p>"


def _running(now: Snapshot) -> Iterator[str]:
    if now.running:
        yield "<h2>At work</h2>\n<pre>" + html.escape("\n".join(now.running)) + "</pre>"


def _hours(now: Snapshot) -> Iterator[str]:
    units = ["core", *(["gpu"] if now.on_gpus else [])]
    labels = {"core": "core-hours", "gpu": "GPU-hours"}
    heads = "".join(
        f'<th scope="col">{labels[unit]}</th><th scope="col">of failed tries</th><th scope="col">planned</th>'
        for unit in units
    )
    yield '<h2>Hours held</h2>\n<div class="scroll"><table>'
    yield f'<thead><tr><th scope="col">stage</th>{heads}</tr></thead><tbody>'

    def row(name: str, *held: Held) -> str:
        cells = "".join(f"<td>{hours(getattr(one, unit))}</td>" for unit in units for one in held)
        return f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'

    for stage in now.states:
        yield row(stage, now.spent[stage], now.lost[stage], now.planned[stage])
    sums = [Held(*map(sum, zip(*kind.values(), strict=True))) for kind in (now.spent, now.lost, now.planned)]
    yield f"</tbody><tfoot>{row('in all', *sums)}</tfoot></table></div>"
    yield '<details id="ledger"><summary>by variant and try</summary><div class="scroll">'
    yield f"{html_table(now.hours)}</div></details>"


# ---------------------------------------------------------------------------------------------------- curves

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 460, 240, 40, 10, 34


def _curves(curves: Sequence[Curve]) -> Iterator[str]:
    """Success of training rollouts over RL steps: a panel a suite, a colour a variant, a line a seed."""
    if not any(curve.points for curve in curves):
        return
    variants = list(dict.fromkeys(curve.variant for curve in curves))
    colours = {variant: LINES[place % len(LINES)] for place, variant in enumerate(variants)}
    chip = '<svg width="18" height="10"><path d="M0 5H18" stroke="{}" stroke-width="3"/></svg>'
    key = "".join(f"<span>{chip.format(colours[v])}{html.escape(v)}</span>" for v in variants)
    yield f'<h2>Training: success of rollouts over RL steps, a line a seed</h2>\n<p class="key">{key}</p>'
    yield '<div class="panels">'
    for suite in dict.fromkeys(curve.suite for curve in curves):
        mine = [curve for curve in curves if curve.suite == suite]
        yield f"<figure><figcaption>{html.escape(suite)}</figcaption>{_panel(mine, colours)}</figure>"
    yield "</div>"


def _panel(curves: Sequence[Curve], colours: dict[str, str]) -> str:
    steps = max(curve.steps for curve in curves)

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 12) * step / steps

    def y(rate: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - rate)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img">']
    for percent in (0, 25, 50, 75, 100):
        line = y(percent / 100)
        parts.append(f'<path d="M{_LEFT} {line:.1f}H{_WIDTH - 12}" stroke="#e3e5e8"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{line + 4:.1f}" text-anchor="end">{percent}%</text>')
    for step in range(0, steps + 1, max(1, round(steps / 5))):
        parts.append(f'<text x="{x(step):.1f}" y="{_HEIGHT - 17}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{x(steps / 2):.1f}" y="{_HEIGHT - 2}" text-anchor="middle">RL step</text>')
    for curve in curves:
        if not curve.points:
            continue
        places = [f"{x(step):.1f},{y(rate):.1f}" for step, rate in curve.points]
        step, rate = curve.points[-1]
        told = html.escape(f"{curve.variant}, seed {curve.seed}: {rate:.0%} at step {step} of {curve.steps}")
        colour = colours[curve.variant]
        at = places[-1].split(",")
        parts.append(
            f'<g><title>{told}</title><polyline points="{" ".join(places)}" fill="none" stroke="{colour}" '
            f'stroke-width="2" stroke-linejoin="round"/><circle cx="{at[0]}" cy="{at[1]}" r="3.5" '
            f'fill="{colour}"/></g>'
        )
    return "".join([*parts, "</svg>"])


# ---------------------------------------------------------------------------------------------------- server

HEADERS = {
    # The browser itself refuses what is not of this page, should something slip through the escaping.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Answers at 127.0.0.1 with the page, its style and its script, and with 404 to everything else.

    word     the first part of every address
    address  of the page
    """

    daemon_threads = True

    def __init__(self, watcher: Watcher, port: int) -> None:
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "ports are 0 to 65535"
            raise InputError(
                f"--port {port}: {reason}: give another one, or 0 for any that is free"
            ) from None
        self.word = secrets.token_urlsafe(9)
        self.address = f"http://127.0.0.1:{self.server_port}/{self.word}/"
        self._watcher, self._lock = watcher, threading.Lock()
        self._page, self._until = "", 0.0

    def page(self) -> str:
        """The page, at most half an interval old: several browsers cost no more than one."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._page = render(self._watcher.look())
                self._until = time.monotonic() + INTERVAL / 2
            return self._page


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        root = f"/{self.server.word}/"
        name = self.path[len(root) :]
        if not secrets.compare_digest(self.path[: len(root)].encode(), root.encode()):
            self.send_error(HTTPStatus.NOT_FOUND)
        elif name == "":
            self._answer("text/html", self.server.page())
        elif name == "page.css":
            self._answer("text/css", STYLE)
        elif name == "page.js":
            self._answer("text/javascript", SCRIPT)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(HTTPStatus.OK)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not a line for every look."""


def serve(watcher: Watcher, port: int) -> None:
    """Serve the page until Ctrl-C. Raises InputError: the port cannot be used."""
    with Server(watcher, port) as server:
        print(f"{server.address} (Ctrl-C ends it)", flush=True)
        print(
            f"from elsewhere: ssh -L {server.server_port}:127.0.0.1:{server.server_port} THIS-MACHINE",
            flush=True,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
