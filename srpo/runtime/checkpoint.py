"""Resumable training state in a scratch folder: written by all processes, in the background; verified.

A checkpoint is a folder of safetensors files, a part for each process, in the format of
`torch.distributed.checkpoint`, which reads what any number of processes wrote into any other number. A part's
marker, `part-<process>-of-<processes>.json`, has the hashes of its files and is written after them. The
folder is a checkpoint once all its markers are there.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from srpo.runtime.distributed import gather_values, local_part, nbytes, place
from srpo.runtime.files import atomic_file, clear_scratch, full_disk_told, write_json, write_text
from srpo.runtime.manifest import fingerprint, sha256

PACKAGE = Path(__file__).resolve().parents[1]
Part = dict[str, tuple[torch.Tensor, list[int]]]
"""Of a checkpoint, what one process writes: pieces of tensors, and where they start in the whole ones."""


def source_fingerprint() -> str:
    """A hash of this package's source code."""
    return fingerprint(*(sha256(file) for file in sorted(PACKAGE.rglob("*.py"))))


class Checkpoints:
    """The checkpoints of one run, in `scratch/checkpoint-<step>` folders.

    A scratch folder belongs to one run, whose fingerprint is in its `run.json`. The state of another run
    (changed settings, other inputs) is discarded with a message. The newest `keep` whole checkpoints are
    kept: if one turns out damaged, the one before it serves. Of a distributed run's processes each writes its
    part of the checkpoints, and only the `writer`, the first, anything else.

    The last checkpoint of a finished run stays, since its outputs may be asked for again: a job whose
    Snakemake was killed can finish before the job that replaces it starts. It serves only the same code.
    """

    def __init__(self, scratch: Path, run: str, keep: int = 2, writer: bool = True) -> None:
        self._folder = scratch
        self._keep = keep
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
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
        elif marked != self._run and clear_scratch(scratch, self._marker.name):
            print(
                f"{scratch}: held another run's state (settings, inputs, or the code since it was finished, "
                "changed); starting anew",
                flush=True,
            )
        if not scratch.exists():
            write_json(self._marker, self._run)
        for folder in scratch.glob("checkpoint-*"):
            if not _is_complete(folder):  # of a run that was killed in a save, or found the disk full
                shutil.rmtree(folder)

    @classmethod
    def shared(cls, scratch: Path, run: str, accelerator: Accelerator, keep: int = 2) -> Checkpoints:
        """Those of a distributed run: its main process writes, and looks at the folder before the others."""
        with accelerator.main_process_first():
            return cls(scratch, run, keep, writer=accelerator.is_main_process)

    def save(
        self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, progress: dict[str, Any]
    ) -> None:
        """Write the model's trained weights, the optimiser's moments and `progress` (JSON) after `step`.

        All processes of a distributed run must call. Each copies its part to host memory, and a thread writes
        it: the checkpoint is there when all have, and `wait` waits for this process's part. Raises what went
        wrong in writing the one before, which this one waits for: DiskFullError, if there was no room.

        Random generators are not needed: every random draw of a run is seeded by (seed, step). Neither are
        the optimiser's settings, which follow from the run's and from the step.
        """
        self.wait()
        folder = self._folder / f"checkpoint-{step:08d}"
        state = _training_state(model, optimiser)
        if self._writer:
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        gather_values(None)  # nobody writes before that
        process, processes = place()
        name = f"part-{process:05d}-of-{processes:05d}"
        text = json.dumps(progress) if self._writer else ""  # as it is now
        self._writing = self._thread.submit(self._write, folder, name, _own_part(state), text, nbytes(state))

    def wait(self) -> None:
        """Wait until this process's part of the last checkpoint is written. Raises what went wrong."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, folder: Path, name: str, part: Part, progress: str, needed: int) -> None:
        # In a thread, in which processes do nothing together: their group may be ended meanwhile. Flushing
        # even a small file to a busy disk can take seconds, for which training does not wait.
        offsets = {key: {SAVED_OFFSETS_KEY: offset} for key, (_, offset) in part.items()}
        tensors = {key: tensor for key, (tensor, _) in part.items()}
        metadata = {"format": "pt", CUSTOM_METADATA_KEY: json.dumps(offsets)}
        files = [f"{name}.safetensors", *(["progress.json"] if self._writer else [])]
        with full_disk_told(folder, needed):
            if self._writer:
                write_text(folder / "progress.json", progress)
            with atomic_file(folder / files[0]) as temporary:
                save_file(tensors, temporary, metadata=metadata)
            write_json(folder / f"{name}.json", {file: sha256(folder / file) for file in files})
        if self._writer:
            for old in self._complete()[: -self._keep]:  # this one counts if the others have written theirs
                shutil.rmtree(old)

    def restore(
        self, model: nn.Module, optimiser: torch.optim.Optimizer
    ) -> tuple[int, dict[str, Any]] | None:
        """Load the newest undamaged checkpoint into model and optimiser; all processes must call.

        Each process verifies some of the parts, and reads what it needs of all.

        Returns its step and progress, or None if there is none.

        Raises:
            SystemExit: the processes see different checkpoints.
        """
        found = [folder.name for folder in self._complete()]
        if any(other != found for other in gather_values(found)):
            raise SystemExit(f"{self._folder}: processes see different checkpoints; start again")
        for name in reversed(found):
            folder = self._folder / name
            if not all(gather_values(_is_intact(folder))):
                if self._writer:
                    print(f"{folder}: damaged; trying the one before", flush=True)
                continue
            _read(folder, model, optimiser)
            return _step(folder), json.loads((folder / "progress.json").read_text())
        return None

    @property
    def newest(self) -> int:
        """The step of the newest checkpoint that is written; 0 without one."""
        return max(self.written, default=0)

    @property
    def written(self) -> list[int]:
        """The steps of all checkpoints that are written."""
        return [_step(folder) for folder in self._complete()]

    def mark_finished(self) -> None:
        """Mark the run as finished and remove all but its newest checkpoint; its outputs are in place.

        For the writer, when all processes have waited for their parts of it.
        """
        write_json(self._marker, self._run | {"finished_by": source_fingerprint()})
        for path in set(self._folder.iterdir()) - {self._marker, *self._complete()[-1:]}:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _complete(self) -> list[Path]:
        """The folders of which all processes have written their parts, by step."""
        return sorted(folder for folder in self._folder.glob("checkpoint-*") if _is_complete(folder))


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _markers(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("part-*.json"))
    except FileNotFoundError:  # removed meanwhile
        return []


def _is_complete(folder: Path) -> bool:
    markers = _markers(folder)
    return bool(markers) and len(markers) == int(markers[0].stem.rpartition("-")[2])


def _is_intact(folder: Path) -> bool:
    """Whether the parts that this process verifies are what was written."""
    process, processes = place()
    try:
        for marker in _markers(folder)[process::processes]:
            hashes = json.loads(marker.read_text())
            if not hashes or any(sha256(folder / name) != value for name, value in hashes.items()):
                return False
    except (OSError, ValueError):
        return False
    return True


def _training_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Trained weights and their moments by name: `model/<parameter>`, `<moment>/<parameter>`."""
    trained: dict[torch.Tensor, str] = {
        parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    state = {f"model/{name}": parameter.detach() for parameter, name in trained.items()}
    for parameter, moments in optimiser.state.items():
        state |= {f"{moment}/{trained[parameter]}": value for moment, value in moments.items()}
    return state


def _own_part(state: Mapping[str, torch.Tensor]) -> Part:
    """Copies in host memory of what this process writes, and where that starts in the whole tensors.

    It is this process's shard of each sharded tensor, and every n-th of the others, which all processes hold.
    """
    process, processes = place()
    part: Part = {}
    # By name: the order in which an optimiser holds its moments may be another one in each process.
    for number, (name, tensor) in enumerate(sorted(state.items())):
        sharded = isinstance(tensor, DTensor)
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.numel() and (sharded or number % processes == process):
            start = [extent.start for extent in local_part(tensor)]
            part[name] = local.to("cpu", copy=True).contiguous(), start
    return part


def _read(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Read a checkpoint of any number of processes: each reads its shard, or all, of each tensor.

    Raises ValueError if it is of another model.
    """
    reader = dcp.HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    state: dict[str, torch.Tensor] = {}
    for key, described in stored.items():
        assert isinstance(described, TensorStorageMetadata)
        kind, name = key.split("/", 1)
        parameter = trained.get(name)
        if parameter is None:
            raise ValueError(f"{folder}: weights of another model: {name}")
        if kind == "model":
            state[key] = parameter.detach()  # read in place
        elif described.size == parameter.shape:
            state[key] = torch.zeros_like(parameter, requires_grad=False)
        else:  # of the whole tensor: the number of updates
            state[key] = torch.zeros(described.size, dtype=described.properties.dtype)
    if lacking := [name for name in trained if f"model/{name}" not in state]:
        raise ValueError(f"{folder}: weights of another model: {lacking[:5]} are missing")
    kinds = sorted({key.split("/", 1)[0] for key in state} - {"model"})
    held = {name: [kind for kind in kinds if f"{kind}/{name}" in state] for name in trained}
    if partial := [name for name in trained if held[name] not in ([], kinds)]:
        raise ValueError(f"{folder}: of {partial[:5]} some moments are missing")
    with warnings.catch_warnings():
        # Every process knows what it reads, so they need not plan together, of which torch warns.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(state, storage_reader=reader, no_dist=True)
    names = {parameter: name for name, parameter in trained.items()}
    ordered = [names[parameter] for group in optimiser.param_groups for parameter in group["params"]]
    moments = {
        number: {kind: state[f"{kind}/{name}"] for kind in held[name]} for number, name in enumerate(ordered)
    }
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
