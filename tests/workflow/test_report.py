"""The report in a real browser: it opens offline, its figures and videos load, and nothing is fetched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from srpo.analysis import typeset
from srpo.analysis.figures import videos
from srpo.runtime.files import write_text
from srpo.runtime.videos import write_video
from support.browser import browser, needs_chromium

LOAD_ALL = """
(async () => {
  const load = entry => new Promise((resolve, reject) => {
    const kind = entry.mime_type.split("/")[0];
    if (kind !== "image" && kind !== "video") {
      fetch(entry.data_uri).then(answer => answer.text()).then(text => resolve({kind, size: text.length}));
      return;
    }
    const element = document.createElement(kind === "image" ? "img" : "video");
    element.onload = () => resolve({kind, size: element.naturalWidth});
    element.onloadeddata = () => resolve({kind, size: element.videoWidth, seconds: element.duration});
    element.onerror = () => reject(new Error("does not load"));
    element.src = entry.data_uri;
  });
  const found = {};
  for (const [path, entry] of Object.entries(results))
    found[path] = await load(entry).catch(error => ({kind: entry.mime_type, size: 0, why: String(error)}));
  return found;
})()
"""
"""For every result in the page: its kind and size (0: it does not load)."""


@needs_chromium
@pytest.mark.timeout(240)
def test_the_report_opens_offline_and_all_of_it_loads(report: Path, tmp_path: Path) -> None:
    assert report.stat().st_size < 30e6
    with browser(tmp_path) as page:
        page.open(report)
        words = page.run("document.body.innerText").upper().split()
        found = page.run(LOAD_ALL)
        assert words[words.index("RESULTS") :][:5] == [
            *("RESULTS", "CONFIGURATIONS", "FIGURES", "TABLES", "VIDEOS")  # the menu
        ]
        assert [path for path, what in found.items() if not what["size"]] == []
        kinds = {
            kind: sum(what["kind"] == kind for what in found.values()) for kind in ("image", "video", "text")
        }
        assert kinds == {"image": 10, "video": 1, "text": 12 + 6 + 12 + 1}  # CSV, tables, configs, all videos
        seconds = [what["seconds"] for what in found.values() if "seconds" in what]
        assert seconds == pytest.approx([0.5], abs=0.05)
        assert page.errors() == []
        assert page.requests() == []


@needs_chromium
@pytest.mark.timeout(240)
def test_a_table_is_a_page_of_its_own(tmp_path: Path) -> None:
    """As the report shows it, in a frame; whatever a label holds is text."""
    hostile = '<img src="http://127.0.0.1:9/x.png"><script>console.error("ran")</script>'
    rows = [typeset.Row([hostile], [["97.5", "[90,99]"]], frozenset({0})), typeset.Row(["SFT"], [["8.0"]])]
    table = typeset.Table("Success in %.", "Model", ["Goal"], [typeset.Group("ours", rows)], ["A note."])
    write_text(tmp_path / "table.html", typeset.to_html(table))
    (tmp_path / "frame.html").write_text("<body><iframe src='table.html'></iframe></body>")
    with browser(tmp_path) as page:
        page.open(tmp_path / "frame.html")
        assert page.errors() == [] and page.requests() == []
    with browser(tmp_path) as page:
        page.open(tmp_path / "table.html")
        assert page.run("document.body.innerText").startswith("Success in %.\nModel\tGoal\nours\n<img")
        assert page.run("getComputedStyle(document.querySelector('b')).fontWeight") == "700"
        assert page.run("document.querySelectorAll('tbody tr').length") == 3
        assert page.errors() == [] and page.requests() == []


@needs_chromium
@pytest.mark.timeout(240)
def test_videos_play_in_a_page(tmp_path: Path) -> None:
    for number in (1, 2):
        write_video(tmp_path / f"task{number}.mp4", np.full((5 * number, 32, 32, 3), 90, np.uint8), 10)
    write_text(tmp_path / "all.html", videos.page(sorted(tmp_path.glob("*.mp4"))))
    with browser(tmp_path) as page:
        page.open(tmp_path / "all.html")
        seconds = page.run(
            "Promise.all([...document.querySelectorAll('video')].map(video => new Promise((done, fail) => {"
            " video.oncanplaythrough = () => done(video.duration); video.onerror = fail; video.load() })))"
        )
        assert seconds == pytest.approx([0.5, 1.0], abs=0.05)
        assert page.run("document.body.innerText").split() == ["task1", "task2"]
        assert page.errors() == [] and page.requests() == []


@needs_chromium
@pytest.mark.timeout(240)
def test_the_browser_reports_errors(tmp_path: Path) -> None:
    """So that the tests above can fail: a broken picture, a console error and a request are all noticed."""
    page = tmp_path / "page.html"
    page.write_text(
        "<body><script>"
        "var results = {'a.png': {mime_type: 'image/png', data_uri: 'data:image/png;base64,AA'}};"
        "console.error('an error');</script><img src='http://127.0.0.1:9/x.png'></body>"
    )
    with browser(tmp_path) as opened:
        opened.open(page)
        assert opened.run(LOAD_ALL)["a.png"]["size"] == 0
        assert any("an error" in error for error in opened.errors())
        assert opened.requests() == ["http://127.0.0.1:9/x.png"]
