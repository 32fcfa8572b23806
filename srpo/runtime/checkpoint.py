"""Resumable training state in a scratch folder: written whole or not at all, verified before use."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from srpo.episode import Episode, EpisodeSpec
from srpo.runtime.distributed import gather_full, shard_like
from srpo.runtime.files import atomic_directory, atomic_file, write_json
from srpo.runtime.manifest import sha256

PREEMPTED = 75
"""Exit code of a run that a signal stopped: run it again and it goes on (sysexits.h: EX_TEMPFAIL)."""


def fingerprint(*parts: str) -> str:
    """One hash of everything that decides a run (settings, hashes of its inputs)."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def code() -> str:
    """A hash of this package's source."""
    return fingerprint(*(sha256(file) for file in sorted(Path(__file__).parents[1].rglob("*.py"))))


class Checkpoints:
    """The checkpoints of one run, in `scratch/checkpoint-<step>` folders.

    A scratch folder belongs to one run: if its fingerprint is another's (changed settings, other inputs),
    what is in it is discarded, and a line says so. The newest `keep` checkpoints are kept: should one turn
    out damaged, the one before it serves. Of a distributed run's processes only one is the `writer`; the
    others leave the folder as it is.

    Of a finished run the last checkpoint stays, for its outputs may be asked for again: a job whose Snakemake
    was killed can finish before the job in its place starts. It serves the code that finished the run alone.
    """

    def __init__(self, scratch: Path, run: str, keep: int = 2, writer: bool = True) -> None:
        self._folder = scratch
        self._keep = keep
        self._writer = writer
        if not writer:
            return
        self._note = scratch / "run.json"
        self._run = {"run": run}
        finished = self._run | {"finished_by": code()}
        found = json.loads(self._note.read_text()) if self._note.exists() else None
        if found == finished:
            print(
                f"{scratch}: this run is finished; its results are written again from its last checkpoint "
                "(to train anew, remove the folder)",
                flush=True,
            )
        elif scratch.exists() and found != self._run:
            print(
                f"{scratch}: holds another run's state (settings, inputs, or the code since it was finished, "
                "changed); starting anew",
                flush=True,
            )
            shutil.rmtree(scratch)
        if not scratch.exists():
            write_json(self._note, self._run)

    def save(
        self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, progress: dict[str, Any]
    ) -> None:
        """Keep what is trained of the model, the optimiser and `progress` (JSON) after `step`.

        Generators need no keeping: every random draw of a run is seeded by (seed, step). Of a distributed
        run's processes all call, since weights may be spread over them; the writer writes.
        """
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        weights, moments = (gather_full(tree, self._writer) for tree in (trained, optimiser.state_dict()))
        if not self._writer:
            return
        with atomic_directory(self._folder / f"checkpoint-{step:08d}") as folder:
            save_file({name: p.contiguous() for name, p in weights.items()}, folder / "model.safetensors")
            torch.save(moments, folder / "optimiser.pt")
            write_json(folder / "progress.json", progress)
            hashes = {file.name: sha256(file) for file in folder.iterdir()}
            write_json(folder / "hashes.json", hashes)
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old)

    def resume(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, dict[str, Any]] | None:
        """Restore the newest checkpoint that is whole.

        Returns its step and progress, or None if there is none to resume from.
        """
        for folder in reversed(self._all()):
            if not self._is_whole(folder):
                print(f"{folder}: incomplete or damaged; trying the one before", flush=True)
                continue
            trained = load_file(folder / "model.safetensors")
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.requires_grad:
                        parameter.copy_(shard_like(trained.pop(name), parameter))
            if trained:
                raise ValueError(f"{folder}: weights of another model: {sorted(trained)[:5]}")
            # Mapped, not read: the processes of a machine share its pages.
            state = torch.load(folder / "optimiser.pt", map_location="cpu", weights_only=True, mmap=True)
            parameters = (parameter for group in optimiser.param_groups for parameter in group["params"])
            for number, parameter in enumerate(parameters):
                moments = state["state"].get(number, {})
                moments.update({name: shard_like(value, parameter) for name, value in moments.items()})
            optimiser.load_state_dict(state)
            return int(folder.name.rsplit("-", 1)[1]), json.loads((folder / "progress.json").read_text())
        return None

    def finish(self) -> None:
        """Remove all but the newest checkpoint: the run is finished and its outputs are in place."""
        write_json(self._note, self._run | {"finished_by": code()})
        for path in set(self._folder.iterdir()) - {self._note, self._all()[-1]}:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("checkpoint-*") if path.is_dir())

    @staticmethod
    def _is_whole(folder: Path) -> bool:
        try:
            hashes = json.loads((folder / "hashes.json").read_text())
            return bool(hashes) and all(sha256(folder / name) == value for name, value in hashes.items())
        except (OSError, ValueError):
            return False


class EpisodeStore:
    """Finished episodes of the steps that no checkpoint holds yet, in `scratch/episodes/step-<step>`.

    An episode is decided by its spec and the policy's weights, so a step that is resumed need not run it
    again. Every episode is written as soon as it ends: a run may be killed without warning. The processes of
    a distributed run share the folder.
    """

    def __init__(self, scratch: Path) -> None:
        self._folder = scratch / "episodes"

    def get(self, step: int, spec: EpisodeSpec) -> Episode | None:
        """The episode, if it was kept; one that is damaged is as good as none."""
        path = self._path(step, spec)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:  # the archive's checksums are verified
                values = {name: stored[name] for name in stored.files}
            assert EpisodeSpec(**json.loads(str(values.pop("spec")))) == spec
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

    def add(self, step: int, episode: Episode) -> None:
        """Keep an episode that was run in `step`."""
        values = {field.name: getattr(episode, field.name) for field in fields(episode)}
        values["spec"] = json.dumps(asdict(episode.spec))
        with atomic_file(self._path(step, episode.spec)) as temporary, temporary.open("wb") as handle:
            np.savez(handle, **values)

    def clear(self, step: int) -> None:
        """Forget the episodes of all steps up to `step`: a checkpoint holds what was learnt from them."""
        for folder in self._folder.glob("step-*"):
            if int(folder.name.rpartition("-")[2]) <= step:
                shutil.rmtree(folder, ignore_errors=True)

    def _path(self, step: int, spec: EpisodeSpec) -> Path:
        return self._folder / f"step-{step:08d}" / f"{fingerprint(json.dumps(asdict(spec)))[:32]}.npz"


class Preempted(SystemExit):
    """SIGTERM or SIGUSR1: the machine is wanted for something else, or the time limit is near."""


@contextmanager
def preemptible() -> Iterator[None]:
    """Within this block SIGTERM and SIGUSR1 raise `Preempted`, which ends the program with code 75.

    There is nothing left to save then: checkpoints are written after steps, episodes as they end.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in handlers:  # once: cleaning up must not be interrupted by a second signal
            signal.signal(each, signal.SIG_IGN)
        print(f"{signal.Signals(number).name}: stopping; the same command goes on from here", flush=True)
        raise Preempted(PREEMPTED)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    for number in handlers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
