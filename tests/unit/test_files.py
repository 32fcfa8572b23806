"""Writes leave the old file, the new file, or nothing."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srpo.errors import InputError
from srpo.runtime.files import ABANDONED, atomic_directory, atomic_file, clear_scratch, write_json, write_text


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "rows.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and entries(tmp_path) == {"rows.txt"}


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "policy"
    for content in ("old", "new"):
        with atomic_directory(target) as temporary:
            (temporary / "weights").write_text(content)
    assert (target / "weights").read_text() == "new"
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:
        (temporary / "weights").write_text("half")
        raise RuntimeError
    assert (target / "weights").read_text() == "new" and entries(tmp_path) == {"policy"}


def test_what_a_killed_process_left_of_a_folder_is_removed_some_day(tmp_path: Path) -> None:
    for name, age in (("dead", 1.1 * ABANDONED), ("alive", 60)):
        left = tmp_path / f".policy.node.{name}.tmp"
        left.mkdir()
        os.utime(left, (time.time() - age,) * 2)
    with atomic_directory(tmp_path / "policy"):
        pass
    assert entries(tmp_path) == {"policy", ".policy.node.alive.tmp"}


def test_scratch_is_cleared_of_what_this_program_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, doomed = tmp_path / "scratch", tmp_path / ".scratch.removed"
    for left in (".run.json.node.7.tmp", "run.json"):  # killed in writing the marker; another run's state
        write_text(scratch / left, "")
        doomed.mkdir()  # killed in clearing
        clear_scratch(scratch, "run.json")
        assert entries(tmp_path) == set()
    doomed.mkdir()
    clear_scratch(scratch, "run.json")
    assert entries(tmp_path) == set()
    (tmp_path / "thesis.tex").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"has files that are not this program's \(it has no run\.json\)"):
        clear_scratch(Path(), "run.json")


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    assert (tmp_path / "a" / "b.json").read_text() == '{\n  "x": 1\n}\n'


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path) -> None:
    """The kernel refuses to let the file grow, as on a full disk or over a quota."""
    target = tmp_path / "rows.txt"
    write_text(target, "old")
    code = (
        "from pathlib import Path; from srpo.runtime.files import write_text; "
        f"write_text(Path({str(target)!r}), 'x' * 10**6)"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    done = subprocess.run(
        [sys.executable, "-B", "-c", code], preexec_fn=limit, capture_output=True, text=True
    )
    assert done.returncode != 0 and "File too large" in done.stderr
    assert target.read_text() == "old" and entries(tmp_path) == {"rows.txt"}
