"""Supervised fine-tuning on demonstrations: the policy that reinforcement learning starts from.

srpo sft --config CONFIG --demos FOLDER [--checkpoint FOLDER] --out FOLDER --scratch FOLDER
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from srpo import optim
from srpo.config import Policy, Sft, SftStage, load_stage
from srpo.demos import Demonstration, file_name, read_demonstrations
from srpo.envs.libero import libero_record, load_task  # only names and files; nothing is simulated
from srpo.episode import ACTION_DIM, CHUNK, PROPRIO_DIM, TOKENS
from srpo.errors import FinalExit, run_command
from srpo.policies import action_tokens
from srpo.policies.augmentation import augment
from srpo.policies.checkpoints import create_policy, load_policy, save_policy
from srpo.policies.openvla_oft import Inputs, OpenVLAOFT
from srpo.policies.prompts import make_tokenizer
from srpo.policies.weights import CheckpointError, spread_tensors
from srpo.results.rows import write_rows
from srpo.results.schemas import SFT_METRICS
from srpo.runtime.checkpoint import Checkpoints
from srpo.runtime.distributed import (
    full_tensor,
    is_sharded,
    make_accelerator,
    require_full_training,
    shard,
)
from srpo.runtime.hub import RECORD, verify
from srpo.runtime.locks import lock_held
from srpo.runtime.manifest import fingerprint, sha256, write_manifest
from srpo.runtime.peers import is_first_process

LOG_EVERY = 20
"""Updates averaged into one row of metrics.csv."""
BETAS = (0.9, 0.98)
"""Of AdamW."""


# Samples.


@dataclass(frozen=True)
class Samples:
    """Training data: S moments of demonstrations.

    images        uint8 (S, H, W, 3)
    proprio       float32 (S, 8)
    instructions  S strings
    targets       int64 (S, 56) action tokens of the chunk that follows
    """

    images: NDArray[np.uint8]
    proprio: NDArray[np.float32]
    instructions: list[str]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.instructions)


def chunk_at(actions: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """The 8 actions from `step` on, float32 (8, 7); after the end the arm rests and the gripper stays."""
    chunk = actions[step : step + CHUNK]
    rest = np.zeros((CHUNK - len(chunk), ACTION_DIM), np.float32)
    rest[:, action_tokens.GRIPPER] = actions[-1, action_tokens.GRIPPER]
    return np.concatenate([chunk, rest])


def build_samples(demonstrations: list[Demonstration], stride: int, statistics: dict[str, Any]) -> Samples:
    """Every `stride`-th moment of every demonstration; actions normalised by `statistics` and tokenised."""
    moments = [(d, step) for d in demonstrations for step in range(0, len(d.actions), stride)]
    chunks = np.stack([chunk_at(d.actions, step) for d, step in moments])
    targets = action_tokens.encode(action_tokens.normalise(action_tokens.from_libero(chunks), statistics))
    return Samples(
        np.stack([d.images[step] for d, step in moments]),
        np.stack([d.proprio[step] for d, step in moments]),
        [d.language for d, _ in moments],
        targets.reshape(-1, TOKENS),
    )


# Model.


def soft_targets(width: float) -> torch.Tensor:
    """Target distributions float32 (256, 256): row k is a Gaussian of `width` bins around token k.

    Neighbouring bins are nearly the same action; width 0 gives one-hot rows.
    """
    if width == 0:
        return torch.eye(action_tokens.BINS)
    bins = torch.arange(action_tokens.BINS, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((bins[:, None] - bins) / width) ** 2)
    return weights / weights.sum(1, keepdim=True)


class PolicyWithHead(nn.Module):
    """The policy and, if configured, a linear head that predicts proprioception from the image alone.

    The head makes the vision features represent the hand's position; it is not part of the saved policy.
    """

    def __init__(self, policy: OpenVLAOFT, sft: Sft) -> None:
        super().__init__()
        self.policy = policy
        self.auxiliary = sft.auxiliary
        setting = policy.settings
        patches = (setting.image_size // setting.encoders[0].patch_size) ** 2
        width = patches * setting.llm.hidden_size
        self.proprio_head = nn.Linear(width, PROPRIO_DIM) if sft.auxiliary else None
        self.soft_targets = soft_targets(sft.label_smoothing)
        self.centres = torch.from_numpy(action_tokens.decode(np.arange(action_tokens.BINS))).float()

    def forward(
        self, inputs: Inputs, targets: torch.Tensor, proprio: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, cross entropy, and the mean error of the expected position, in normalised units.

        Args:
            targets: int64 (N, 56) action tokens.
            proprio: float32 (N, 8) normalised proprioception, for the head.
        """
        patches = self.policy.encode_images(inputs.pixels)
        log_p = torch.log_softmax(self.policy(inputs, patches), dim=-1)
        cross_entropy = -(self.soft_targets.to(log_p.device)[targets] * log_p).sum(-1).mean()
        loss = cross_entropy
        if self.proprio_head is not None:
            assert proprio is not None
            predicted = self.proprio_head(patches.flatten(1)).float()
            loss = cross_entropy + self.auxiliary * F.smooth_l1_loss(predicted, proprio)
        with torch.no_grad():
            centres = self.centres.to(log_p.device)
            expected = (log_p.exp() * centres).sum(-1)
            error = (expected - centres[targets]).abs().view(-1, CHUNK, ACTION_DIM)[..., :3].mean()
        return loss, cross_entropy, error


def trainable(policy: OpenVLAOFT, sft: Sft) -> PolicyWithHead:
    """A policy made trainable, with its head; head and adapters are drawn at random (seed torch first)."""
    model = PolicyWithHead(policy, sft)
    policy.make_trainable()
    return model


def load_checkpoint(
    settings: Policy,
    fetched: Path | None,
    device: torch.device | str = "cpu",
    prepare: Callable[[OpenVLAOFT], None] | None = None,
    as_stored: bool = False,
) -> OpenVLAOFT:
    """The policy's checkpoint: `fetched` if the workflow downloaded it, else the folder it names.

    Args:
        prepare, as_stored: as `load_policy` has them.

    Raises CheckpointError or FetchError when it cannot be used.
    """
    checkpoint = settings.checkpoint
    assert checkpoint is not None
    if fetched is not None:
        verify(fetched)
    elif not Path(checkpoint).is_dir():
        raise CheckpointError(
            f"policy.checkpoint {checkpoint} is not a folder here; download it where there is internet (srpo "
            f"download --checkpoint {checkpoint} --out FOLDER) and give --checkpoint FOLDER"
        )
    return load_policy(fetched or Path(checkpoint), device, settings, prepare, as_stored)


def checkpoint_hash(config: SftStage, fetched: Path | None) -> dict[str, str]:
    """`checkpoint` → the hash of what SFT starts from; empty without a checkpoint."""
    if config.policy.checkpoint is None:
        return {}
    # A fetched folder's record has its revision and the hashes that its files are verified by.
    return {"checkpoint": sha256(fetched / RECORD if fetched else Path(config.policy.checkpoint))}


def load_model(settings: Policy, sft: Sft, fetched: Path | None, accelerator: Accelerator) -> PolicyWithHead:
    """The policy's checkpoint, trainable; under FSDP each process reads its part.

    Raises CheckpointError or FetchError when it cannot be used.
    """
    if not is_sharded(accelerator):
        policy = load_checkpoint(settings, fetched, accelerator.device)
        return trainable(policy, sft).to(accelerator.device)
    models = []

    def spread(policy: OpenVLAOFT) -> None:
        models.append(trainable(policy, sft))
        shard(models[0], accelerator)

    load_checkpoint(settings, fetched, accelerator.device, spread)
    return models[0]


def create_model(
    settings: Policy,
    sft: Sft,
    tokenizer: PreTrainedTokenizerFast,
    statistics: dict[str, Any],
    accelerator: Accelerator,
) -> PolicyWithHead:
    """A trainable policy with random weights; under FSDP the first process draws them for all."""

    def create() -> PolicyWithHead:
        return trainable(create_policy(settings, tokenizer, statistics), sft)

    if not is_sharded(accelerator):
        return create().to(accelerator.device)
    drawn = create().state_dict() if accelerator.is_main_process else {}
    with torch.device("meta"):
        policy = create_policy(settings, tokenizer, statistics)
    model = trainable(policy, sft)
    shard(model, accelerator)
    spread_tensors(model, drawn, accelerator.device)
    return model


def initial_model(
    config: SftStage, demonstrations: list[Demonstration], fetched: Path | None, accelerator: Accelerator
) -> PolicyWithHead:
    """The configured checkpoint, or a policy with random weights; trainable, with statistics of the suite."""
    actions = action_tokens.from_libero(np.concatenate([d.actions for d in demonstrations]))
    proprio = np.concatenate([d.proprio for d in demonstrations])
    statistics: dict[str, Any] = {
        config.suite: {
            "action": action_tokens.action_statistics(actions),
            "proprio": action_tokens.proprio_statistics(proprio),
        }
    }
    torch.manual_seed(config.seed)
    if config.policy.checkpoint is not None:
        model = load_model(config.policy, config.sft, fetched, accelerator)
        saved = model.policy.config
        # A checkpoint without statistics of the suite gets those of the demonstrations.
        if not {config.suite, f"{config.suite}_no_noops"} & set(saved.norm_stats or {}):
            saved.norm_stats = (saved.norm_stats or {}) | statistics
        return model
    vocabulary = config.policy.llm.vocab_size - action_tokens.BINS
    tokenizer = make_tokenizer({d.language for d in demonstrations}, vocabulary)
    return create_model(config.policy, config.sft, tokenizer, statistics, accelerator)


# Training.


class FineTuner:
    """One SFT run, from its initial policy or its last checkpoint to its results."""

    def __init__(self, config: SftStage, demos: Path, scratch: Path, checkpoint: Path | None) -> None:
        """Load everything the run needs. Raises SystemExit for a batch that processes cannot share."""
        self.config, sft = config, config.sft
        files = [demos / file_name(_task_name(config, task)) for task in config.tasks]
        demonstrations = [d for file in files for d in read_demonstrations(file)]
        self.inputs = {file.name: sha256(file) for file in files} | checkpoint_hash(config, checkpoint)

        self.accelerator = make_accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
        processes, self.device = self.accelerator.num_processes, self.accelerator.device
        if is_sharded(self.accelerator):
            require_full_training(config.policy)
        if sft.batch_size % processes:
            raise FinalExit(f"sft.batch_size {sft.batch_size} is not a multiple of the {processes} processes")
        self.model = initial_model(config, demonstrations, checkpoint, self.accelerator)
        self.policy = self.model.policy
        self.statistics = self.policy.statistics(config.suite)
        if sft.auxiliary:
            try:
                action_tokens.require_statistics(self.statistics.get("proprio"), PROPRIO_DIM)
            except ValueError as error:
                raise CheckpointError(
                    f"sft.auxiliary needs the policy's statistics of proprioception: {error}; set it to 0"
                ) from None
        self.samples = build_samples(demonstrations, sft.stride, self.statistics["action"])
        optimiser = optim.adamw(self.model, sft.learning_rate, sft.weight_decay, BETAS)
        self.wrapped_model, self.optimiser = self.model, optimiser
        if not is_sharded(self.accelerator):  # FSDP's wrappers are in place
            self.wrapped_model, self.optimiser = self.accelerator.prepare(self.model, optimiser)

        identity = fingerprint(config.model_dump_json(), *self.inputs.values())
        self.checkpoints = Checkpoints.shared(scratch, identity, self.accelerator)
        self.done, self.seconds = 0, 0.0
        self.rows: list[dict[str, Any]] = []
        self.window: list[list[float]] = []
        """Loss, cross entropy and position error of the updates since the last row."""
        if (restored := self.checkpoints.restore(self.model, self.optimiser)) is not None:
            self.done, progress = restored
            self.rows = progress["rows"]
            self.window = progress.get("window", [])  # older versions saved only where it was empty
            self.seconds = progress["seconds"]
            self.accelerator.print(f"resuming after update {self.done}", flush=True)
        trained = sum(p.numel() for p in self.policy.parameters() if p.requires_grad)
        self.accelerator.print(
            f"{len(demonstrations)} demonstrations, {len(self.samples)} samples, {trained / 1e6:.2f} M of "
            f"{sum(p.numel() for p in self.policy.parameters()) / 1e6:.2f} M policy parameters trained, "
            f"{config.policy.image_size} px, on {processes} × {self.device.type}",
            flush=True,
        )

    def train(self, out: Path) -> None:
        """Run the updates that are left, then write the results to `out`."""
        sft = self.config.sft
        started = time.perf_counter() - self.seconds
        self.wrapped_model.train()
        left = range(self.done, sft.updates)
        for update in tqdm(left, initial=self.done, total=sft.updates, desc="sft", disable=None):
            rate = optim.learning_rate(
                update, sft.updates, sft.learning_rate, sft.warmup, decay_after=sft.decay_after
            )
            self.window.append(self.update(update, rate))
            self.done, self.seconds = update + 1, time.perf_counter() - started
            last = self.done == sft.updates
            if self.done % LOG_EVERY == 0 or last:
                self.log(rate)
            if last or self.done % sft.checkpoint_every == 0:
                progress = {"rows": self.rows, "window": self.window, "seconds": self.seconds}
                self.checkpoints.save(self.done, self.model, self.optimiser, progress)
        self.checkpoints.wait()  # for what the run goes on from if the policy cannot be written
        self.finish(out)

    def update(self, update: int, rate: float) -> list[float]:
        """One update. Returns loss, cross entropy and position error, averaged over processes.

        Raises SystemExit, in all processes, if the loss or the gradient is not finite.
        """
        config, samples, accelerator = self.config, self.samples, self.accelerator
        # Seeded by (seed, update): the same batches whether or not the run was interrupted.
        rng = np.random.default_rng([config.seed, update])
        size = config.sft.batch_size
        batch = rng.choice(len(samples), size, replace=len(samples) < size)
        places = range(accelerator.process_index, size, accelerator.num_processes)
        batch = batch[places]
        pixels = self.pixels(samples.images[batch], [[config.seed, update, place] for place in places])
        instructions = [samples.instructions[k] for k in batch]
        inputs = self.policy.build_inputs(config.suite, pixels, instructions, samples.proprio[batch])
        targets = torch.from_numpy(samples.targets[batch]).to(self.device)
        proprio = None
        if config.sft.auxiliary:
            normalised = action_tokens.normalise(samples.proprio[batch], self.statistics["proprio"])
            proprio = torch.from_numpy(normalised).float().to(self.device)
        with accelerator.autocast():
            loss, cross_entropy, error = self.wrapped_model(inputs.to(self.device), targets, proprio)
        optim.set_learning_rate(self.optimiser, rate)
        self.optimiser.zero_grad()
        accelerator.backward(loss)
        norm = full_tensor(accelerator.clip_grad_norm_(self.wrapped_model.parameters(), config.sft.grad_clip))
        means: list[float] = accelerator.reduce(
            torch.stack([loss.detach(), cross_entropy.detach(), error]), "mean"
        ).tolist()
        optim.require_finite(f"update {update + 1}", means[0], float(norm))
        self.optimiser.step()
        return means

    def pixels(self, images: NDArray[np.uint8], seeds: list[list[int]]) -> NDArray[np.uint8]:
        """Pictures (N, H, H, 3) as the policy's (N, size, size, 3), augmented if set, each by its seed."""
        transform = self.policy.image_transform
        if not self.config.sft.image_augmentation:
            return np.stack([transform(image) for image in images])
        return np.stack(
            [
                augment(transform.resized(image), transform.crop_area, np.random.default_rng(seed))
                for image, seed in zip(images, seeds, strict=True)
            ]
        )

    def log(self, rate: float) -> None:
        """Add a row of metrics.csv, the means of the updates since the last one, and show it."""
        loss, cross_entropy, error = np.mean(self.window, axis=0).tolist()
        self.window = []
        self.rows.append(
            {
                "update": self.done,
                "loss": loss,
                "cross_entropy": cross_entropy,
                "position_error": error,
                "learning_rate": rate,
                "seconds": self.seconds,
            }
        )
        self.accelerator.print(
            f"update {self.done}: cross entropy {cross_entropy:.3f}, position error {error:.3f}, "
            f"{self.seconds:.0f} s",
            flush=True,
        )

    def finish(self, out: Path) -> None:
        """Write the results, and end the group of processes."""
        writer = self.accelerator.is_main_process
        write_results(self.config, self.policy, out, self.rows, self.inputs, writer)
        if writer:
            self.checkpoints.mark_finished()
        self.accelerator.wait_for_everyone()
        # The wrapper for several processes must be freed before their group: freed last, it joins gloo's
        # threads while it holds the GIL, and deadlocks if one of them needs the GIL to free a tensor.
        del self.wrapped_model
        self.accelerator.free_memory()
        self.accelerator.end_training()


def train(config: SftStage, demos: Path, out: Path, scratch: Path, checkpoint: Path | None = None) -> None:
    """Run SFT from its last checkpoint, or from the start, to the finished policy in `out`.

    Args:
        checkpoint: the folder with the downloaded `policy.checkpoint`, if that is on the hub.
    """
    if config.sft.updates:
        FineTuner(config, demos, scratch, checkpoint).train(out)
        return
    if config.policy.checkpoint is None:
        raise FinalExit("sft.updates is 0 and the policy has no checkpoint: there is nothing to start from")
    if not is_first_process():
        return  # nothing is to be shared
    policy = load_checkpoint(config.policy, checkpoint, as_stored=True)
    policy.statistics(config.suite)  # an error, if there are none
    write_results(config, policy, out, inputs=checkpoint_hash(config, checkpoint))


def _task_name(config: SftStage, task_id: int) -> str:
    return load_task(config.suite, task_id).name


def write_results(
    config: SftStage,
    policy: OpenVLAOFT,
    out: Path,
    rows: list[dict[str, Any]] | None = None,
    inputs: dict[str, str] | None = None,
    writer: bool = True,
) -> None:
    """Write policy, metrics.csv and manifest.json; all processes must call, the `writer` writes."""
    save_policy(policy.eval(), out / "policy", writer)
    if not writer:
        return
    write_rows(out / "metrics.csv", rows or [], SFT_METRICS)
    write_manifest(
        out / "manifest.json",
        config,
        inputs=inputs or {},
        parameters=sum(p.numel() for p in policy.parameters()),
        policy=sha256(out / "policy"),
        libero=libero_record(config.suite),
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Supervised fine-tuning on demonstrations.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of the run")
    parser.add_argument("--demos", type=Path, required=True, help="folder of the suite's HDF5 files")
    parser.add_argument("--checkpoint", type=Path, help="folder of the policy's downloaded checkpoint")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for policy/, metrics.csv, manifest.json"
    )
    parser.add_argument("--scratch", type=Path, required=True, help="folder for resumable state")
    arguments = parser.parse_args()
    config = load_stage(arguments.config, SftStage)
    with lock_held(arguments.scratch):
        train(config, arguments.demos, arguments.out, arguments.scratch, arguments.checkpoint)


if __name__ == "__main__":
    run_command(main)
