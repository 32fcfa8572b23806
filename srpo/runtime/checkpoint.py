"""Resumable training state in a scratch folder: written atomically, verified before use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from srpo.runtime.distributed import gather_full, shard_like
from srpo.runtime.files import atomic_directory, write_json
from srpo.runtime.manifest import fingerprint, sha256

PACKAGE = Path(__file__).resolve().parents[1]


def source_fingerprint() -> str:
    """A hash of this package's source code."""
    return fingerprint(*(sha256(file) for file in sorted(PACKAGE.rglob("*.py"))))


class Checkpoints:
    """The checkpoints of one run, in `scratch/checkpoint-<step>` folders.

    A scratch folder belongs to one run, whose fingerprint is in its `run.json`. The state of another run
    (changed settings, other inputs) is discarded with a message. The newest `keep` checkpoints are kept: if
    one turns out damaged, the one before it serves. Of a distributed run's processes only the `writer`
    changes the folder.

    The last checkpoint of a finished run stays, since its outputs may be asked for again: a job whose
    Snakemake was killed can finish before the job that replaces it starts. It serves only the same code.
    """

    def __init__(self, scratch: Path, run: str, keep: int = 2, writer: bool = True) -> None:
        self._folder = scratch
        self._keep = keep
        self._writer = writer
        if not writer:
            return
        self._marker = scratch / "run.json"
        self._run = {"run": run}
        finished = self._run | {"finished_by": source_fingerprint()}
        marked = json.loads(self._marker.read_text()) if self._marker.exists() else None
        if marked == finished:
            print(
                f"{scratch}: this run is finished; its results are written again from its last checkpoint "
                "(to train anew, remove the folder)",
                flush=True,
            )
        elif scratch.exists() and marked != self._run:
            print(
                f"{scratch}: holds another run's state (settings, inputs, or the code since it was finished, "
                "changed); starting anew",
                flush=True,
            )
            shutil.rmtree(scratch)
        if not scratch.exists():
            write_json(self._marker, self._run)

    @classmethod
    def shared(cls, scratch: Path, run: str, accelerator: Accelerator, keep: int = 2) -> Checkpoints:
        """Those of a distributed run: its main process writes, and looks at the folder before the others."""
        with accelerator.main_process_first():
            return cls(scratch, run, keep, writer=accelerator.is_main_process)

    def save(
        self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, progress: dict[str, Any]
    ) -> None:
        """Write the model's trained weights, the optimiser and `progress` (JSON) after `step`.

        Random generators are not needed: every random draw of a run is seeded by (seed, step). All processes
        of a distributed run must call, since weights may be sharded over them; the writer writes.
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

    def restore(
        self, model: nn.Module, optimiser: torch.optim.Optimizer
    ) -> tuple[int, dict[str, Any]] | None:
        """Load the newest undamaged checkpoint into model and optimiser.

        Returns its step and progress, or None if there is none.
        """
        for folder in reversed(self._all()):
            if not self._is_intact(folder):
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

    def mark_finished(self) -> None:
        """Mark the run as finished and remove all but its newest checkpoint; its outputs are in place."""
        write_json(self._marker, self._run | {"finished_by": source_fingerprint()})
        for path in set(self._folder.iterdir()) - {self._marker, self._all()[-1]}:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("checkpoint-*") if path.is_dir())

    @staticmethod
    def _is_intact(folder: Path) -> bool:
        try:
            hashes = json.loads((folder / "hashes.json").read_text())
            return bool(hashes) and all(sha256(folder / name) == value for name, value in hashes.items())
        except (OSError, ValueError):
            return False
