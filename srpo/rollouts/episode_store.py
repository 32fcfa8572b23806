"""Finished episodes in files, so that an interrupted RL step does not run them again."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Collection
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from srpo.episode import Episode, EpisodeSpec
from srpo.runtime.files import atomic_file
from srpo.runtime.manifest import fingerprint

VISIBLE_SECONDS = 120.0
"""How long a file may take to be seen by other nodes: NFS remembers for a minute what was not there."""
POLL_SECONDS = 0.2


class EpisodeStore:
    """Finished episodes of the steps that no checkpoint holds yet, in `scratch/episodes/step-<step>`.

    An episode is determined by its spec and the policy's weights, so a resumed step need not run it again.
    Every episode is written as soon as it ends, because a run may be killed without warning. The processes
    of a distributed run share the folder.
    """

    def __init__(self, scratch: Path) -> None:
        self._folder = scratch / "episodes"

    def get(self, step: int, spec: EpisodeSpec) -> Episode | None:
        """The stored episode; None if there is none or its file is damaged."""
        path = self._path(step, spec)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:  # the archive's checksums are verified
                values = {name: stored[name] for name in stored.files}
            assert str(values.pop("spec")) == _text(spec)
            scalars = {name: values.pop(name).item() for name in ("success", "steps", "wall_seconds")}
            return Episode(spec=spec, **scalars, **values)
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            AssertionError,
            zipfile.BadZipFile,
        ) as error:
            print(f"{path}: damaged ({error}); running that episode again", flush=True)
            return None

    def has(self, step: int, spec: EpisodeSpec) -> bool:
        """Whether there is a file of the episode."""
        return self._path(step, spec).exists()

    def wait_for(self, step: int, spec: EpisodeSpec) -> Episode:
        """An episode that another process has stored, which another node may see a little later.

        Raises SystemExit if it cannot be read.
        """
        path, end = self._path(step, spec), time.monotonic() + VISIBLE_SECONDS
        while not _is_listed(path) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        episode = self.get(step, spec)
        if episode is None:
            raise SystemExit(
                f"error: {path}: another process has written this episode, and this one cannot read it; the "
                "folder must be on a file system that all nodes share"
            )
        return episode

    def add(self, step: int, episode: Episode) -> None:
        """Store an episode that was run in `step`."""
        values = {field.name: getattr(episode, field.name) for field in fields(episode)}
        values["spec"] = _text(episode.spec)
        with atomic_file(self._path(step, episode.spec)) as temporary, temporary.open("wb") as handle:
            np.savez(handle, **values)

    def clear(self, step: int, but: Collection[int] = ()) -> None:
        """Remove the episodes of all steps up to `step` `but` some: a checkpoint contains their updates."""
        for folder in self._folder.glob("step-*"):
            number = int(folder.name.rpartition("-")[2])
            if number <= step and number not in but:
                shutil.rmtree(folder, ignore_errors=True)

    def _path(self, step: int, spec: EpisodeSpec) -> Path:
        return self._folder / f"step-{step:08d}" / f"{fingerprint(_text(spec))[:32]}.npz"


def _is_listed(path: Path) -> bool:
    """Whether a file is there, without asking for it: on NFS, a node remembers what it did not find."""
    try:
        return path in path.parent.iterdir()
    except FileNotFoundError:
        return False


def _text(spec: EpisodeSpec) -> str:
    """A spec as JSON, with the hash of the state that a branch starts from."""
    return json.dumps(asdict(spec), default=lambda state: hashlib.sha256(state).hexdigest())
