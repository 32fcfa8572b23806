"""The Slurm profile, by dry runs: what would be submitted, and that jobs are packed."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from srpo.analysis.drawings import DRAWINGS
from support.workflow import ROOT, run, seconds, snakemake

DRAWN = {drawing.name for drawing in DRAWINGS}
LOCAL = {"config", "plus", "plus_tasks", "checkpoint", "ledger", "all", *DRAWN}
"""Rules that run where Snakemake does: seconds of work, or in need of the internet."""


def submissions(output: str) -> Counter[str]:
    """Submitted jobs of a dry run, by rule; a group (its members are indented) is one submission."""
    single = re.findall(r"^rule (\w+):", output, re.MULTILINE)
    groups = re.findall(r"Group job ([a-z]+)_", output)
    return Counter([rule for rule in single if rule not in LOCAL] + groups)


def paper(where: Path, *arguments: str) -> str:
    preset = ROOT / "configs/presets/paper.yaml"
    return snakemake(where, "--profile", str(ROOT / "slurm"), "--configfile", str(preset), "-n", *arguments)


def test_the_paper_is_a_few_hundred_submissions(tmp_path: Path) -> None:
    start = seconds()
    output = paper(tmp_path)
    assert seconds() - start < 30
    found = submissions(output)
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}
    # Every job is submitted, alone or in a group, and those in groups are all shown.
    assert len(re.findall(r"^    rule evaluate:", output, re.MULTILINE)) == jobs["evaluate"]
    assert len(re.findall(r"^    rule plus_shard:", output, re.MULTILINE)) == jobs["plus_shard"]
    for rule in ("demos", "sft", "train", "trajectories", "score"):
        assert found.pop(rule) == jobs[rule]
    assert set(found) == {"evaluate", "plus"}
    assert found["evaluate"] < jobs["evaluate"] / 2 and found["plus"] < jobs["plus_shard"] / 3
    assert sum(submissions(output).values()) <= 300


def requests(output: str) -> dict[str, dict[str, int]]:
    """What a rule's first job asks for, by a dry run: its whole-numbered resources."""
    found: dict[str, dict[str, int]] = {}
    for rule, body in re.findall(r"^ *rule (\w+):\n((?: +\w+: .*\n)+)", output, re.MULTILINE):
        resources = re.findall(r"(\w+)=(\d+)\b", body.partition("resources:")[2])
        found.setdefault(rule, {name: int(value) for name, value in resources})
    return found


def test_a_site_caps_jobs_groups_and_later_attempts(tmp_path: Path) -> None:
    """And each rule asks for the GPUs and nodes of its entry in the preset's `parallel`."""
    preset = tmp_path / "eight.yaml"
    parallel = {"train": {"gpus": 8}, "sft": {"nodes": 2, "gpus": 4}, "evaluate": {"gpus": 1}}
    preset.write_text(f"{(ROOT / 'tests/example.yaml').read_text()}parallel: {json.dumps(parallel)}\n")
    site = ["--resources", "in_turn=1", "runtime=1440", "mem_mb=90000", "--attempt", "3", "--cores", "100"]
    profile = ["--profile", str(ROOT / "slurm"), "--configfile", str(preset), "-n"]
    found = requests(snakemake(tmp_path, *profile, *site))
    minutes = {"demos": 720, "evaluate": 480, "plus_shard": 110}
    for rule in ("demos", "sft", "world_model", "train", "evaluate", "plus_shard", "trajectories", "score"):
        wanted = found[rule]
        assert wanted["runtime"] == minutes.get(rule, 1440), rule
        assert wanted["mem_mb"] == (40000 if rule == "demos" else 90000), rule
        assert wanted.get("gpu", 0) == {"train": 8, "sft": 8, "demos": 0}.get(rule, 1), rule
        assert wanted["nodes"] == (2 if rule == "sft" else 1), rule
        # A task on each node, whatever its GPUs, where there are several.
        asked = (wanted.get("tasks"), wanted.get("tasks_per_gpu"))
        assert asked == ((2, 0) if rule == "sft" else (None, None)), rule


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (
            ["--set-threads", "train=16"],
            "set-threads: train: 16 cores for 8 GPUs leave each 2, with 4 simulators",
        ),
        (["--retries", "0"], ""),
        (
            ["--retries", "1", "--resources", "in_turn=1", "runtime=600"],
            "and 2 tries of at most 600 minutes are 0.8:",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_any_job(tmp_path: Path, site: list[str], message: str) -> None:
    """Too few cores for the simulators of a GPU, too few tries for the longest training."""
    profile = [
        "--profile",
        str(ROOT / "slurm"),
        "--configfile",
        str(ROOT / "configs/presets/paper.yaml"),
        "-n",
    ]
    target = "results/paper/runs/libero_10/srpo/seed0/policy"
    done = run(tmp_path, target, *profile, *site, snakefile=ROOT / "Snakefile")
    assert done.returncode == bool(message), done.stdout
    assert message in done.stdout


def test_local_rules_are_those_that_take_seconds() -> None:
    marked = set()
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        rules = re.findall(r"^ *rule ?(\w*):(.*?)(?=^ *rule|\Z)", file.read_text(), re.MULTILINE | re.DOTALL)
        marked |= {name or file.stem for name, body in rules if "localrule: True" in body}
    # `drawings` are a rule each; `all` has nothing to run, `generated` is no stage.
    assert marked == LOCAL - DRAWN - {"all"} | {"drawings", "generated"}
