"""Supervised fine-tuning on demonstrations: the policy that reinforcement learning starts from.

srpo sft --config CONFIG --demos FOLDER [--checkpoint FOLDER] --out FOLDER --scratch FOLDER
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm

from srpo.config import Sft, SftStage, load_stage
from srpo.demos import Demonstration, file_name, read_demonstrations
from srpo.episode import ACTION_DIM, CHUNK, PROPRIO_DIM, TOKENS
from srpo.policies import action_tokens
from srpo.policies.openvla_oft import (
    CheckpointError,
    Inputs,
    OpenVLAOFT,
    create_policy,
    load_policy,
    save_policy,
)
from srpo.policies.processing import make_tokenizer
from srpo.results.rows import write_rows
from srpo.results.schemas import SFT_METRICS
from srpo.runtime.checkpoint import Checkpoints, fingerprint
from srpo.runtime.distributed import is_sharded, make_accelerator, require_whole_weights
from srpo.runtime.hub import verify
from srpo.runtime.locks import lock_held
from srpo.runtime.manifest import sha256, write_manifest

LOG_EVERY = 20
"""Updates averaged into one row of metrics.csv."""


@dataclass(frozen=True)
class Samples:
    """What is learnt from: S moments of demonstrations.

    images    uint8 (S, H, W, 3)
    proprio   float32 (S, 8)
    words     S instructions
    targets   int64 (S, 56) action tokens of the chunk that follows
    """

    images: NDArray[np.uint8]
    proprio: NDArray[np.float32]
    words: list[str]
    targets: NDArray[np.int64]


def chunk_at(actions: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """The 8 actions from `step` on, float32 (8, 7); behind the end the arm rests and the gripper stays."""
    chunk = actions[step : step + CHUNK]
    rest = np.zeros((CHUNK - len(chunk), ACTION_DIM), np.float32)
    rest[:, action_tokens.GRIPPER] = actions[-1, action_tokens.GRIPPER]
    return np.concatenate([chunk, rest])


def build_samples(demonstrations: list[Demonstration], stride: int, statistics: dict[str, Any]) -> Samples:
    """Every `stride`-th moment of every demonstration; actions normalised by `statistics` and tokenised."""
    images, proprio, words, chunks = [], [], [], []
    for demonstration in demonstrations:
        for step in range(0, len(demonstration.actions), stride):
            images.append(demonstration.images[step])
            proprio.append(demonstration.proprio[step])
            words.append(demonstration.language)
            chunks.append(chunk_at(demonstration.actions, step))
    actions = action_tokens.from_libero(np.stack(chunks))
    targets = action_tokens.encode(action_tokens.normalise(actions, statistics))
    return Samples(np.stack(images), np.stack(proprio), words, targets.reshape(-1, TOKENS))


def soft_targets(width: float) -> torch.Tensor:
    """Target distributions float32 (256, 256): row k is a Gaussian of `width` bins around token k.

    Neighbouring bins are nearly the same action; width 0 gives one-hot rows.
    """
    if width == 0:
        return torch.eye(action_tokens.BINS)
    bins = torch.arange(action_tokens.BINS, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((bins[:, None] - bins) / width) ** 2)
    return weights / weights.sum(1, keepdim=True)


def learning_rate(update: int, updates: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the updates, then a cosine to zero; `update` counts from 0."""
    rising = max(1, round(warmup * updates))
    if update < rising:
        return peak * (update + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (update - rising) / max(1, updates - rising)))


def adamw(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """AdamW for what is trained of a model; on a GPU it is one kernel for many tensors."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = all(parameter.is_cuda for parameter in trained) or None
    return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, betas=betas, fused=fused)


class Learner(nn.Module):
    """The policy and, where configured, a linear head that reads proprioception from the picture alone.

    The head makes the vision features say where the hand is; it is not part of the saved policy.
    """

    def __init__(self, policy: OpenVLAOFT, sft: Sft) -> None:
        super().__init__()
        self.policy = policy
        self.auxiliary = sft.auxiliary
        setting = policy.settings
        patches = (setting.image_size // setting.encoders[0].patch_size) ** 2
        self.locate = nn.Linear(patches * setting.llm.hidden_size, PROPRIO_DIM) if sft.auxiliary else None
        self.smooth = soft_targets(sft.label_smoothing)
        self.centres = torch.from_numpy(action_tokens.decode(np.arange(action_tokens.BINS))).float()

    def forward(
        self, observed: Inputs, target: torch.Tensor, felt: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, cross entropy, and the mean error of the expected position, in normalised units.

        Args:
            target: int64 (N, 56) action tokens.
            felt: float32 (N, 8) normalised proprioception, for the head.
        """
        patches = self.policy.encode_images(observed.pixels)
        log_p = torch.log_softmax(self.policy(observed, patches), dim=-1)
        cross_entropy = -(self.smooth.to(log_p.device)[target] * log_p).sum(-1).mean()
        loss = cross_entropy
        if self.locate is not None:
            assert felt is not None
            seen = self.locate(patches.flatten(1)).float()
            loss = cross_entropy + self.auxiliary * F.smooth_l1_loss(seen, felt)
        with torch.no_grad():
            centres = self.centres.to(log_p.device)
            expected = (log_p.exp() * centres).sum(-1)
            error = (expected - centres[target]).abs().view(-1, CHUNK, ACTION_DIM)[..., :3].mean()
        return loss, cross_entropy, error


def _initial_policy(
    config: SftStage, demonstrations: list[Demonstration], fetched: Path | None, device: torch.device
) -> OpenVLAOFT:
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
        model = load_checkpoint(config, fetched, device)
        # A policy that never saw the suite gets the demonstrations' statistics.
        if not {config.suite, f"{config.suite}_no_noops"} & set(model.config.norm_stats or {}):
            model.config.norm_stats = (model.config.norm_stats or {}) | statistics
        return model
    words = config.policy.llm.vocab_size - action_tokens.BINS
    tokenizer = make_tokenizer({d.language for d in demonstrations}, words)
    return create_policy(config.policy, tokenizer, statistics)


def load_checkpoint(config: SftStage, fetched: Path | None, device: torch.device | str = "cpu") -> OpenVLAOFT:
    """The policy's checkpoint: `fetched` if the workflow brought it from the hub, else the folder it names.

    Raises CheckpointError or FetchError when it cannot be used.
    """
    checkpoint = config.policy.checkpoint
    assert checkpoint is not None
    if fetched is not None:
        verify(fetched)
    elif not Path(checkpoint).is_dir():
        raise CheckpointError(
            f"policy.checkpoint {checkpoint} is no folder here; fetch it where there is internet (python -m "
            f"srpo.runtime.hub --checkpoint {checkpoint} --out FOLDER) and give --checkpoint FOLDER"
        )
    return load_policy(fetched or Path(checkpoint), device, config.policy)


def train(config: SftStage, demos: Path, out: Path, scratch: Path, checkpoint: Path | None = None) -> None:
    """Run SFT from its last checkpoint, or from the start, to the finished policy in `out`.

    Args:
        checkpoint: the folder with the fetched `policy.checkpoint`, if that is on the hub.
    """
    sft = config.sft
    rows: list[dict[str, Any]] = []
    if sft.updates == 0:
        if config.policy.checkpoint is None:
            raise SystemExit(
                "sft.updates is 0 and the policy has no checkpoint: there is nothing to start from"
            )
        model = load_checkpoint(config, checkpoint)
        model.statistics(config.suite)  # an error, if there are none
        _finish(config, model, rows, out, {})
        return
    tasks = [_task_name(config, task) for task in config.tasks]
    files = [demos / file_name(task) for task in tasks]
    demonstrations = [d for file in files for d in read_demonstrations(file)]
    inputs = {file.name: sha256(file) for file in files}

    accelerator = make_accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    rank, processes = accelerator.process_index, accelerator.num_processes
    if is_sharded(accelerator):
        require_whole_weights(config.policy)
    if sft.batch_size % processes:
        raise SystemExit(f"sft.batch_size {sft.batch_size} is not a multiple of the {processes} processes")
    device = accelerator.device
    model = _initial_policy(config, demonstrations, checkpoint, device)
    whole = Learner(model, sft).to(device)
    model.make_trainable()
    statistics = model.statistics(config.suite)
    samples = build_samples(demonstrations, sft.stride, statistics["action"])
    optimiser = adamw(whole, sft.learning_rate, sft.weight_decay, betas=(0.9, 0.98))
    learner, optimiser = accelerator.prepare(whole, optimiser)
    identity = fingerprint(config.model_dump_json(), *inputs.values())
    with accelerator.main_process_first():
        checkpoints = Checkpoints(scratch, identity, writer=accelerator.is_main_process)
    done, spent = 0, 0.0
    if (resumed := checkpoints.resume(whole, optimiser)) is not None:
        done, progress = resumed
        rows, spent = progress["rows"], progress["seconds"]
        accelerator.print(f"resuming after update {done}", flush=True)

    accelerator.print(
        f"{len(demonstrations)} demonstrations, {len(samples.words)} samples, "
        f"{sum(p.numel() for p in whole.parameters() if p.requires_grad) / 1e6:.2f} M of "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters trained, "
        f"{config.policy.image_size} px, on {processes} × {device.type}",
        flush=True,
    )
    started = time.perf_counter() - spent
    window: list[tuple[float, ...]] = []
    learner.train()
    for update in tqdm(range(done, sft.updates), initial=done, total=sft.updates, desc="sft", disable=None):
        # Seeded by (seed, update): the same batches whether or not the run was interrupted.
        rng = np.random.default_rng([config.seed, update])
        batch = rng.choice(len(samples.words), sft.batch_size, replace=len(samples.words) < sft.batch_size)
        batch = batch[rank::processes]
        words = [samples.words[k] for k in batch]
        observed = model.prepare(config.suite, samples.images[batch], words, samples.proprio[batch])
        target = torch.from_numpy(samples.targets[batch]).to(device)
        felt = None
        if sft.auxiliary:
            normal = action_tokens.normalise(samples.proprio[batch], statistics["proprio"])
            felt = torch.from_numpy(normal).float().to(device)
        with accelerator.autocast():
            loss, cross_entropy, error = learner(observed.to(device), target, felt)
        rate = learning_rate(update, sft.updates, sft.learning_rate, sft.warmup)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(learner.parameters(), sft.grad_clip)
        optimiser.step()
        logged = accelerator.reduce(torch.stack([loss.detach(), cross_entropy.detach(), error]), "mean")
        window.append(tuple(logged.tolist()))
        finished = update + 1
        if finished % LOG_EVERY == 0 or finished == sft.updates:
            mean = np.mean(window, axis=0)
            window = []
            rows.append(
                {
                    "update": finished,
                    "loss": float(mean[0]),
                    "cross_entropy": float(mean[1]),
                    "position_error": float(mean[2]),
                    "learning_rate": rate,
                    "seconds": time.perf_counter() - started,
                }
            )
            accelerator.print("update {update}: cross entropy {cross_entropy:.3f}, position error "
                  "{position_error:.3f}, {seconds:.0f} s".format(**rows[-1]), flush=True)  # fmt: skip
        # Only where the window is empty, so that a resumed run logs the same rows.
        if finished == sft.updates or (finished % sft.checkpoint_every == 0 and not window):
            progress = {"rows": rows, "seconds": time.perf_counter() - started}
            checkpoints.save(finished, whole, optimiser, progress)
            accelerator.wait_for_everyone()
    _finish(config, model, rows, out, inputs, writer=accelerator.is_main_process)
    if accelerator.is_main_process:
        checkpoints.finish()
    accelerator.wait_for_everyone()
    # The wrapper for several processes must go before their group: dropped last, it ends gloo's threads with
    # Python's lock held, and waits for ever for one that wants that lock to drop a tensor.
    del learner
    accelerator.free_memory()
    accelerator.end_training()


def _task_name(config: SftStage, task_id: int) -> str:
    from srpo.envs.libero import load_task  # only names; nothing is simulated

    return load_task(config.suite, task_id).name


def _finish(
    config: SftStage,
    model: OpenVLAOFT,
    rows: list[dict[str, Any]],
    out: Path,
    inputs: dict[str, str],
    writer: bool = True,
) -> None:
    save_policy(model.eval(), out / "policy", writer)
    if not writer:
        return
    write_rows(out / "metrics.csv", rows, SFT_METRICS)
    parameters = sum(p.numel() for p in model.parameters())
    write_manifest(
        out / "manifest.json", config, inputs=inputs, parameters=parameters, policy=sha256(out / "policy")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Supervised fine-tuning on demonstrations.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of the run")
    parser.add_argument("--demos", type=Path, required=True, help="folder of the suite's HDF5 files")
    parser.add_argument(
        "--checkpoint", type=Path, help="folder of the policy's checkpoint, fetched from the hub"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for policy/, metrics.csv, manifest.json"
    )
    parser.add_argument("--scratch", type=Path, required=True, help="folder for resumable state")
    arguments = parser.parse_args()
    config = load_stage(arguments.config, SftStage)
    with lock_held(arguments.scratch):
        train(config, arguments.demos, arguments.out, arguments.scratch, arguments.checkpoint)


if __name__ == "__main__":
    main()
