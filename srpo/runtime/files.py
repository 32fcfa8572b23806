"""Writing files so that a kill at any moment leaves the old file, the new file, or nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from srpo.errors import FULL, InputError

ABANDONED = 2 * 24 * 3600
"""Seconds after which a temporary folder is taken for that of a process that was killed, on whatever node."""

SNAKEMAKES = ".snakemake_timestamp"
"""The empty file that Snakemake adds to a folder which a job wrote; it is no part of the result."""


def _temporary(path: Path) -> Path:
    # Unique to a process and host, so that a job started twice by accident cannot mix two writes.
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")


def claim_scratch(folder: Path, settings: str) -> bool:
    """Make a folder that of a run with these settings, its file settings.json. Tells whether another run's
    state was deleted for that.

    Raises InputError as `clear_scratch` does.
    """
    marker = folder / "settings.json"
    if marker.is_file() and marker.read_text(encoding="utf-8") == settings:
        return False
    held = clear_scratch(folder, marker.name)
    write_text(marker, settings)
    return held


def clear_scratch(folder: Path, marker: str) -> bool:
    """Delete a folder of another run's state, which has a file `marker`. Tells whether it was there.

    Raises:
        InputError: it has files, and no marker: somebody else's.
    """
    folder = folder.absolute()
    # Renamed first: a kill in between leaves no half of it that has lost its marker.
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    if not folder.exists():
        return False
    begun = (path.name.startswith(f".{marker}.") for path in folder.iterdir())  # killed in writing the marker
    if not (folder / marker).is_file() and not all(begun):
        raise InputError(
            f"{folder} has files that are not this program's (it has no {marker}), and what is in a scratch "
            "folder may be deleted: give another, or a new one"
        )
    folder.replace(doomed)
    shutil.rmtree(doomed)
    return True


class DiskFullError(InputError):
    """A disk, or a quota, has no room for what is written to it. Later it may have."""

    passing = True


@contextmanager
def full_disk_told(folder: Path, needed: int) -> Iterator[None]:
    """Tell where the disk is full, and what is needed there, if that ends this block.

    Args:
        needed: bytes of all that is written to the folder.

    Raises:
        DiskFullError: in place of what writing raises.
    """
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        raise DiskFullError(
            f"{folder}: no room left on its disk, or in its quota: {needed / 1e6:,.1f} MB are to be written, "
            f"{free / 1e6:,.1f} MB are free. Make room and start again: a training goes on from its last "
            "checkpoint"
        ) from None


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    # safetensors and tokenizers raise errors of their own, with Rust's text.
    return any(f"(os error {number})" in str(error) for number in FULL)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    On an exception (a full disk, say) the temporary file is removed and `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)  # writing does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it replaces `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.tmp*"):
        with suppress(FileNotFoundError):  # its process has just renamed it
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        old = path.with_name(f"{temporary.name}.old")
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically with any function that takes the path to write to."""
    with atomic_file(path) as temporary:
        write(temporary)
