"""The Slurm profile, by dry runs: what would be submitted, and that jobs are packed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from srpo.analysis.drawings import DRAWINGS
from support.workflow import ROOT, seconds, snakemake

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
    """And only training takes all of a node's GPUs, and not those of two nodes."""
    preset = tmp_path / "eight.yaml"
    preset.write_text((ROOT / "tests/example.yaml").read_text().replace("gpus: 0", "gpus: 8"))
    site = ["--resources", "in_turn=1", "runtime=1440", "mem_mb=90000", "--attempt", "3", "--cores", "100"]
    profile = ["--profile", str(ROOT / "slurm"), "--configfile", str(preset), "-n"]
    found = requests(snakemake(tmp_path, *profile, *site))
    minutes = {"demos": 720, "evaluate": 480, "plus_shard": 110}
    for rule in ("demos", "sft", "world_model", "train", "evaluate", "plus_shard", "trajectories", "score"):
        wanted = found[rule]
        assert wanted["runtime"] == minutes.get(rule, 1440), rule
        assert wanted["mem_mb"] == (40000 if rule == "demos" else 90000), rule
        assert wanted.get("gpu", 0) == {"train": 8, "demos": 0}.get(rule, 1), rule
        assert wanted.get("nodes") == (None if rule == "demos" else 1), rule


def test_local_rules_are_those_that_take_seconds() -> None:
    marked = set()
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        rules = re.findall(r"^ *rule ?(\w*):(.*?)(?=^ *rule|\Z)", file.read_text(), re.MULTILINE | re.DOTALL)
        marked |= {name or file.stem for name, body in rules if "localrule: True" in body}
    # `drawings` are a rule each; `all` has nothing to run, `generated` is no stage.
    assert marked == LOCAL - DRAWN - {"all"} | {"drawings", "generated"}
