"""The workflow as a module of another one, in another folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from support.workflow import ROOT, copy_workflow, job_counts, run, snakemake

IMPORTING = """
configfile: "mine.yaml"

module srpo:
    snakefile: {snakefile!r}
    config: config["srpo"]

use rule * from srpo as srpo_*

rule mine:
    default_target: True
    input: "results/example/demos/libero_goal/data"
    output: "mine.txt"
    shell: "ls {{input}} > {{output}}"
"""


def import_from(clone: Path, where: Path) -> Path:
    """Write a workflow that uses a clone's as a module, with the example preset."""
    (where / "Snakefile").write_text(IMPORTING.format(snakefile=str(clone / "Snakefile")))
    preset = yaml.safe_load((ROOT / "tests/example.yaml").read_text())
    (where / "mine.yaml").write_text(yaml.safe_dump({"srpo": preset}))
    return where / "Snakefile"


@pytest.fixture
def importing(tmp_path: Path) -> Path:
    """Another folder than the workflow's, which has no configs/."""
    folder = tmp_path / "another"
    folder.mkdir()
    return folder


def test_a_module_runs_in_another_folder(importing: Path, tmp_path: Path) -> None:
    """Its configs/, schemas and shell functions are its own; results are in the other folder."""
    clone = tmp_path / "clone"
    copy_workflow(clone, "stage_stand_in.py")
    snakefile = import_from(clone, importing)
    output = snakemake(importing, "--cores", "1", snakefile=snakefile)
    assert job_counts(output) == {"mine": 1, "srpo_config": 1, "srpo_demos": 1, "total": 3}
    assert (importing / "mine.txt").is_file()
    assert not (clone / "results").exists()


def test_only_its_own_rules_get_its_environment(importing: Path, tmp_path: Path) -> None:
    """Lint complains of the importing workflow's rule, which names no environment, and of no other."""
    output = run(importing, "--lint", snakefile=import_from(ROOT, importing)).stdout
    assert "Lints for rule mine" in output
    assert "Lints for rule srpo_" not in output
