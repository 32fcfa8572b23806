"""`srpo status --serve` in a real browser, beside a finished preset."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest

from support.browser import browser, needs_chromium, serving


@needs_chromium
def test_the_page_shows_a_finished_preset_and_follows_its_files(finished: Path, tmp_path: Path) -> None:
    """It asks nobody but its own server, and looks again by itself."""
    results = finished / "results/example"
    policy = results / "runs/libero_goal/srpo/seed0/policy"
    with serving(finished, "example.yaml") as address, browser(tmp_path) as opened:
        opened.open(address)
        jobs = opened.run("document.querySelectorAll('tbody')[0].rows.length")
        assert opened.run("document.querySelector('h1').textContent") == "example: 23 of 23 jobs done"
        assert jobs == 8  # stages
        assert opened.run("document.title") == "example: 23 of 23 done"
        assert opened.run("getComputedStyle(document.querySelector('.now')).color") == "rgb(85, 85, 85)"
        assert opened.run("document.querySelector('.bar rect').getAttribute('width')") == "100.000"
        opened.run("document.querySelector('details').open = true")
        policy.rename(tmp_path / "policy")
        try:
            time.sleep(5)  # the server keeps what it has for so long
            opened.run("refresh().then(() => true)")
        finally:
            (tmp_path / "policy").rename(policy)
        assert opened.run("document.querySelector('h1').textContent") == "example: 22 of 23 jobs done"
        assert opened.run("document.querySelector('.now').className") == "now bad"  # nobody works on it
        assert opened.run("document.querySelector('details').open") is True
        assert opened.errors() == []
        assert [asked for asked in opened.requests() if not asked.startswith(address)] == []
        opened.run("fetch = () => Promise.reject(new Error('gone')); true")
        opened.run("refresh().then(() => true)")
        assert "what stands below is old" in opened.run("document.querySelector('.now').textContent")


def test_the_ledger_of_a_finished_preset_has_every_job_once(finished: Path) -> None:
    with (finished / "results/example/tables/ledger.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    counts = {stage: sum(row["stage"] == stage for row in rows) for stage in {row["stage"] for row in rows}}
    expected = {"demos": 1, "world_model": 1, "sft": 1, "train": 2, "evaluate": 3, "plus_shard": 12}
    assert counts == {**expected, "trajectories": 1, "score": 2}
    assert {(row["try"], row["state"], row["source"]) for row in rows} == {("1", "done", "benchmark")}
    for row in rows:
        assert float(row["core_hours"]) == pytest.approx(
            int(row["cores"]) * float(row["seconds"]) / 3600, abs=1e-4
        )
        assert int(row["cores"]) <= 2  # what Snakemake gave it, not what the rule asks for
