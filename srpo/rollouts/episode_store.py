"""Finished episodes in files: for an RL step that was interrupted, and from one process to another."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Collection, Iterable
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
    of a distributed run share the folder, from which one reads what another has run for it.
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

    def stored(self, step: int, specs: Iterable[EpisodeSpec]) -> set[EpisodeSpec]:
        """Those of some episodes of which there is a file."""
        folder = self._folder_of(step)
        # Listed, not asked for one by one: on NFS, a node remembers for a while what it did not find.
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return {spec for spec in specs if self._path(step, spec).name in names}

    def wait_for(self, step: int, specs: Collection[EpisodeSpec]) -> list[Episode]:
        """Episodes that other processes have stored, which another node may see a little later.

        Raises SystemExit if one cannot be read.
        """
        end = time.monotonic() + VISIBLE_SECONDS
        while len(self.stored(step, specs)) < len(specs) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        episodes = []
        for spec in specs:
            episode = self.get(step, spec)
            if episode is None:
                raise SystemExit(
                    f"error: {self._path(step, spec)}: another process has written this episode, and this "
                    "one cannot read it; the folder must be on a file system that all nodes share"
                )
            episodes.append(episode)
        return episodes

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

    def _folder_of(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _path(self, step: int, spec: EpisodeSpec) -> Path:
        return self._folder_of(step) / f"{fingerprint(_text(spec))[:32]}.npz"


def _text(spec: EpisodeSpec) -> str:
    """A spec as JSON, with the hash of the state that a branch starts from."""
    return json.dumps(asdict(spec), default=lambda state: hashlib.sha256(state).hexdigest())
