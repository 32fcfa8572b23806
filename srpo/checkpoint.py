"""Resumable training state in a scratch folder: written whole or not at all, verified before use."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from srpo.files import atomic_directory, write_json
from srpo.manifest import sha256

KEEP = 2
"""Checkpoints kept: if the newest turns out broken, the one before it serves."""


def fingerprint(*parts: str) -> str:
    """One hash of everything that decides a run (settings, hashes of its inputs)."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one run, in `scratch/checkpoint-<step>` folders.

    A scratch folder belongs to one run: if its fingerprint is another's (changed settings, other inputs),
    what is in it is discarded, and a line says so.
    """

    def __init__(self, scratch: Path, run: str) -> None:
        self._folder = scratch
        note = scratch / "run.json"
        if scratch.exists() and (not note.exists() or json.loads(note.read_text()).get("run") != run):
            print(
                f"{scratch}: holds another run's state (settings or inputs changed); starting anew",
                flush=True,
            )
            shutil.rmtree(scratch)
        scratch.mkdir(parents=True, exist_ok=True)
        write_json(note, {"run": run})

    def save(
        self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, progress: dict[str, Any]
    ) -> None:
        """Keep model, optimiser and `progress` (JSON) after `step`.

        Generators need no keeping: every random draw of a run is seeded by (seed, step).
        """
        with atomic_directory(self._folder / f"checkpoint-{step:08d}") as folder:
            save_file(
                {name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors"
            )
            torch.save(optimiser.state_dict(), folder / "optimiser.pt")
            write_json(folder / "progress.json", progress)
            hashes = {file.name: sha256(file) for file in folder.iterdir()}
            write_json(folder / "hashes.json", hashes)
        for old in self._all()[:-KEEP]:
            shutil.rmtree(old)

    def resume(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, dict[str, Any]] | None:
        """Restore the newest checkpoint that is whole.

        Returns its step and progress, or None if there is none to resume from.
        """
        for folder in reversed(self._all()):
            if not self._is_whole(folder):
                print(f"{folder}: incomplete or damaged; trying the one before", flush=True)
                continue
            model.load_state_dict(load_file(folder / "model.safetensors"))
            optimiser.load_state_dict(torch.load(folder / "optimiser.pt", weights_only=True))
            return int(folder.name.rsplit("-", 1)[1]), json.loads((folder / "progress.json").read_text())
        return None

    def clear(self) -> None:
        """Remove everything: the run is finished and its outputs are in place."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("checkpoint-*") if path.is_dir())

    @staticmethod
    def _is_whole(folder: Path) -> bool:
        try:
            hashes = json.loads((folder / "hashes.json").read_text())
            return bool(hashes) and all(sha256(folder / name) == value for name, value in hashes.items())
        except (OSError, ValueError):
            return False
