"""The page while a preset runs on the cluster: in Chromium, with what Slurm says of its jobs."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_faults import PATIENCE, RUNS, Workflow, workflow  # noqa: F401

from srpo import ROOT
from support.browser import HEADLESS, needs_chromium, serving
from support.slurm_cluster import Cluster, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1800),
    needs_chromium,
]


def shown(address: str, folder: Path) -> str:
    """The page as text: what a browser has made of it."""
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [*HEADLESS, profile, "--dump-dom", address], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    without_titles = re.sub(r"<title>[^<]*</title>", "", done.stdout)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without_titles)))


def test_the_page_follows_a_preset_on_the_cluster(
    cluster: Cluster,
    workflow: Workflow,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    profile = tmp_path_factory.mktemp("chromium")
    workflow.hold_all()
    workflow.start()
    workflow.wait(workflow.all_held, "four trainings at work")
    cancelled = RUNS[0]
    job = workflow.attempts(cancelled)[0]
    cluster.do("scancel", job)
    variant, _, seed = RUNS[-1].rpartition("-")
    metrics = workflow.folder / f"scratch/example/runs/libero_goal/{variant}/{seed}/policy/metrics.csv"
    shutil.copy(ROOT / "results/reference/smoke/runs/libero_spatial/srpo/seed0/metrics.csv", metrics)
    workflow.wait_for_attempt(2, cancelled)
    with serving(workflow.folder, "preset.yaml") as address:
        text = shown(address, profile)
        assert "example: 4 of 12 jobs done" in text  # demonstrations, world model, SFT, its evaluation
        assert "Snakemake runs, its log was written" in text
        assert "train · 4 · · ·" in text  # failed, running, queued, waiting, done
        assert "evaluate · · · 4 1" in text
        assert "train/libero_goal/grpo/seed0 , try 1," in text and "its next try is on its way" in text
        assert f"SLURM-job '{job}' failed, SLURM status is: 'CANCELLED'." in text
        (log,) = (workflow.folder / ".snakemake/slurm_logs").rglob(f"{job}.log")
        assert " ".join(log.read_text().split("\n")[-2].split()) in text  # the end of what Slurm kept of it
        for run in RUNS:
            (workflow.hold / run).unlink()
        workflow.finish()
        wait_until(lambda: "example: 12 of 12 jobs done" in shown(address, profile), "the end", PATIENCE)
    ledger = (workflow.folder / "results/example/tables/ledger.csv").read_text().splitlines()
    tries = [line.split(",")[:5] for line in ledger if line.startswith("train/libero_goal/grpo/seed0")]
    assert tries == [
        ["train/libero_goal/grpo/seed0", "train", "grpo", "1", "failed"],
        ["train/libero_goal/grpo/seed0", "train", "grpo", "2", "done"],
    ]
