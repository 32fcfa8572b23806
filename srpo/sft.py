"""Supervised fine-tuning on demonstrations: the policy that reinforcement learning starts from.

python -m srpo.sft --config CONFIG --demos FOLDER [--checkpoint FOLDER] --out FOLDER --scratch FOLDER
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
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm

from srpo.analysis.io import SFT_METRICS, write_rows
from srpo.checkpoint import Checkpoints, fingerprint
from srpo.config import SftStage, load_stage
from srpo.demos import Demonstration, file_name, read_demonstrations
from srpo.fetch import verify
from srpo.manifest import sha256, write_manifest
from srpo.policies import action_tokens
from srpo.policies.openvla_oft import CheckpointError, OpenVLAOFT, create_policy, load_policy, save_policy
from srpo.policies.processing import make_tokenizer
from srpo.types import ACTION_DIM, CHUNK, PROPRIO_DIM, TOKENS

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


class Learner(nn.Module):
    """The policy and, beside it, a linear head that reads proprioception from the picture alone.

    The head makes the vision features say where the hand is; it is not part of the saved policy.
    """

    def __init__(self, policy: OpenVLAOFT) -> None:
        super().__init__()
        self.policy = policy
        setting = policy.settings
        patches = (setting.image_size // setting.encoders[0].patch_size) ** 2
        self.locate = nn.Linear(patches * setting.llm.hidden_size, PROPRIO_DIM)


def _initial_policy(
    config: SftStage, demonstrations: list[Demonstration], fetched: Path | None
) -> OpenVLAOFT:
    if config.policy.checkpoint is not None:
        return load_checkpoint(config, fetched)
    actions = action_tokens.from_libero(np.concatenate([d.actions for d in demonstrations]))
    proprio = np.concatenate([d.proprio for d in demonstrations])
    statistics: dict[str, Any] = {
        config.suite: {
            "action": action_tokens.action_statistics(actions),
            "proprio": action_tokens.proprio_statistics(proprio),
        }
    }
    words = config.policy.llm.vocab_size - action_tokens.BINS
    tokenizer = make_tokenizer({d.language for d in demonstrations}, words)
    torch.manual_seed(config.seed)
    return create_policy(config.policy, tokenizer, statistics)


def load_checkpoint(config: SftStage, fetched: Path | None) -> OpenVLAOFT:
    """The policy's checkpoint: `fetched` if the workflow brought it from the hub, else the folder it names.

    Raises CheckpointError or FetchError when it cannot be used, also when it has no statistics of the suite.
    """
    checkpoint = config.policy.checkpoint
    assert checkpoint is not None
    if fetched is not None:
        verify(fetched)
    elif not Path(checkpoint).is_dir():
        raise CheckpointError(
            f"policy.checkpoint {checkpoint} is no folder here; fetch it where there is internet (python -m "
            f"srpo.fetch --checkpoint {checkpoint} --out FOLDER) and give --checkpoint FOLDER"
        )
    model = load_policy(fetched or Path(checkpoint), policy=config.policy)
    model.statistics(config.suite)
    return model


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
        _finish(config, model, rows, out, {})
        return
    tasks = [_task_name(config, task) for task in config.tasks]
    files = [demos / file_name(task) for task in tasks]
    demonstrations = [d for file in files for d in read_demonstrations(file)]
    inputs = {file.name: sha256(file) for file in files}

    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    learner = Learner(_initial_policy(config, demonstrations, checkpoint))
    model = learner.policy
    statistics = model.config.norm_stats[config.suite]["action"]
    samples = build_samples(demonstrations, sft.stride, statistics)
    optimiser = torch.optim.AdamW(
        learner.parameters(), lr=sft.learning_rate, weight_decay=sft.weight_decay, betas=(0.9, 0.98)
    )
    learner, optimiser = accelerator.prepare(learner, optimiser)
    checkpoints = Checkpoints(scratch, fingerprint(config.model_dump_json(), *inputs.values()))
    done, spent = 0, 0.0
    if (resumed := checkpoints.resume(learner, optimiser)) is not None:
        done, progress = resumed
        rows, spent = progress["rows"], progress["seconds"]
        print(f"resuming after update {done}", flush=True)

    device = accelerator.device
    smooth = soft_targets(sft.label_smoothing).to(device)
    centres = torch.tensor(
        action_tokens.decode(np.arange(action_tokens.BINS)), dtype=torch.float32, device=device
    )
    prepared = model.prepare(config.suite, samples.images[:1], samples.words[:1], samples.proprio[:1])
    print(
        f"{len(demonstrations)} demonstrations, {len(samples.words)} samples, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
        f"{prepared.pixels.shape[-1]} px, on {device}",
        flush=True,
    )
    started = time.perf_counter() - spent
    window: list[tuple[float, float, float]] = []
    learner.train()
    for update in tqdm(range(done, sft.updates), initial=done, total=sft.updates, desc="sft", disable=None):
        # Seeded by (seed, update): the same batches whether or not the run was interrupted.
        rng = np.random.default_rng([config.seed, update])
        batch = rng.choice(len(samples.words), sft.batch_size, replace=len(samples.words) < sft.batch_size)
        words = [samples.words[k] for k in batch]
        observed = model.prepare(config.suite, samples.images[batch], words, samples.proprio[batch]).to(
            device
        )
        target = torch.from_numpy(samples.targets[batch]).to(device)
        felt = action_tokens.normalise(
            samples.proprio[batch], model.config.norm_stats[config.suite]["proprio"]
        )
        with accelerator.autocast():
            patches = model.encode_images(observed.pixels)
            log_p = torch.log_softmax(model.action_logits(observed, patches), dim=-1)
            cross_entropy = -(smooth[target] * log_p).sum(-1).mean()
            seen = learner.locate(patches.flatten(1)).float()
            located = F.smooth_l1_loss(seen, torch.from_numpy(felt).float().to(device))
            loss = cross_entropy + sft.auxiliary * located
        rate = learning_rate(update, sft.updates, sft.learning_rate, sft.warmup)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(learner.parameters(), sft.grad_clip)
        optimiser.step()
        with torch.no_grad():
            expected = (log_p.exp() * centres).sum(-1)
            error = (expected - centres[target]).abs().view(-1, CHUNK, ACTION_DIM)[..., :3].mean()
        window.append((loss.item(), cross_entropy.item(), error.item()))
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
            print("update {update}: cross entropy {cross_entropy:.3f}, position error "
                  "{position_error:.3f}, {seconds:.0f} s".format(**rows[-1]), flush=True)  # fmt: skip
        # Only where the window is empty, so that a resumed run logs the same rows.
        if finished % sft.checkpoint_every == 0 and not window and finished < sft.updates:
            progress = {"rows": rows, "seconds": time.perf_counter() - started}
            checkpoints.save(finished, learner, optimiser, progress)
    _finish(config, accelerator.unwrap_model(learner).policy, rows, out, inputs)
    checkpoints.clear()


def _task_name(config: SftStage, task_id: int) -> str:
    from srpo.envs.libero import load_task  # only names; nothing is simulated

    return load_task(config.suite, task_id).name


def _finish(
    config: SftStage, model: OpenVLAOFT, rows: list[dict[str, Any]], out: Path, inputs: dict[str, str]
) -> None:
    save_policy(model.eval(), out / "policy")
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
    train(
        load_stage(arguments.config, SftStage),
        arguments.demos,
        arguments.out,
        arguments.scratch,
        arguments.checkpoint,
    )


if __name__ == "__main__":
    main()
