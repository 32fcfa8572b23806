"""The workflow as a module of another one, in another folder."""

from __future__ import annotations

import re
import shutil
import subprocess
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


DEPLOYED = """
from snakemake.utils import min_version


min_version("6.10.0")


configfile: "config/config.yaml"


# declare https://github.com/owner/srpo as a module
module srpo:
    snakefile:
        github("owner/srpo", path="Snakefile", branch="main")
    config:
        config


# use all rules from https://github.com/owner/srpo
use rule * from srpo
"""
"""What snakedeploy 0.17 writes into `workflow/Snakefile`."""


def deploy(where: Path) -> Path:
    """What snakedeploy leaves in a folder, with the example preset in its config.yaml."""
    for folder in ("workflow", "config"):
        (where / folder).mkdir()
    (where / "workflow/Snakefile").write_text(DEPLOYED)
    shutil.copy(ROOT / "tests/example.yaml", where / "config/config.yaml")
    return where / "workflow/Snakefile"


def test_what_snakedeploy_writes_runs_with_the_clones_snakefile(importing: Path) -> None:
    """After the steps of docs/extending.md: the preset's own targets, under the rules' own names."""
    snakefile = deploy(importing)
    page = (ROOT / "docs/extending.md").read_text()
    substitution = re.search(r"sed -i '([^']*)' study/workflow/Snakefile", page)
    assert substitution is not None
    edit = substitution[1].replace("/path/to/srpo", str(ROOT))
    subprocess.run(["sed", "-i", edit, str(snakefile)], check=True)
    planned = job_counts(snakemake(importing, "--dry-run", snakefile=snakefile))
    assert planned["all"] == 1 and planned["train"] == 2


def test_a_snakefile_out_of_a_repository_is_refused(
    importing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake takes single files out of it: neither configs/ nor the Python code."""
    clone = tmp_path / "clone"
    copy_workflow(clone, "stage_stand_in.py")
    who = ("-c", "user.name=x", "-c", "user.email=x")
    for command in (("init", "-qb", "main"), ("add", "."), (*who, "commit", "-qm", "x")):
        subprocess.run(["git", *command], cwd=clone, check=True)
    for name, value in {
        "GIT_CONFIG_COUNT": "1",  # git takes the clone for GitHub
        "GIT_CONFIG_KEY_0": f"url.{clone.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/owner/srpo",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    done = run(importing, "--dry-run", snakefile=deploy(importing))
    assert done.returncode and "is no folder with srpo's configs/: clone srpo, and name" in done.stdout
    assert "Traceback" not in done.stdout


def test_only_its_own_rules_get_its_environment(importing: Path, tmp_path: Path) -> None:
    """Lint complains of the importing workflow's rule, which names no environment, and of no other."""
    output = run(importing, "--lint", snakefile=import_from(ROOT, importing)).stdout
    assert "Lints for rule mine" in output
    assert "Lints for rule srpo_" not in output
