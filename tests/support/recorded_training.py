"""Train on episodes that need no simulator: python recorded_training.py FOLDER [OPTION ...].

FOLDER has a config.yaml. The trainer is the real one. Its rollouts are synthetic, and always of the initial
policy, so that they are the same in every run. Its optimiser is plain gradient descent, because AdamW
amplifies rounding errors.

    live     the policy in training acts, and AdamW optimises
    descent  with `live`: plain gradient descent none the less, and the tokens are the initial policy's, for a
             rounding error may make another token of one that was sampled, and everything after it differ
    uneven   the last process runs no episodes
    full     the last process finds a full disk at its fourth episode
    sharded  under FSDP
    killed   afterwards once more, into FOLDER/killed, and the last process killed in the third step's update
    resumed  that again, and nothing else
    saving   the last process is killed half-way through its part of the second step's checkpoint
"""

import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srpo.config import TrainStage, load_stage
from srpo.envs.libero import load_task
from srpo.episode import CHUNK, Episode, EpisodeSpec, FailedRun
from srpo.errors import run_command
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.rl import trainer
from srpo.runtime import checkpoint, distributed
from srpo.runtime.manifest import sha256
from srpo.runtime.peers import ALONE, Peers, joined_peers
from support import sharding
from support.policies import SUITE, small_policy


def episode(
    spec: EpisodeSpec, success: bool, steps: int, policy: OpenVLAOFT, sampler: OpenVLAOFT | None = None
) -> Episode:
    """An episode with random images, whose tokens `sampler` sampled, or the policy where none is given."""
    rng = np.random.default_rng(spec.seed)
    queries = -(-steps // CHUNK)
    images = rng.integers(0, 256, (queries, 16, 16, 3), dtype=np.uint8)
    proprio = rng.normal(size=(queries, 8)).astype(np.float32)
    instructions = [load_task(spec.suite, spec.task_id).language] * queries
    generators = [torch.Generator().manual_seed(k) for k in range(queries)]
    inputs = policy.prepare_inputs(SUITE, images, instructions, proprio)
    tokens, log_probs = (sampler or policy).act(inputs, 1.0, generators)
    if sampler is not None:
        with torch.inference_mode():
            log_probs = policy.log_probs(inputs, torch.from_numpy(tokens), 1.0)[0].numpy()
    valid = np.repeat(np.arange(queries * CHUNK) < steps, 7).reshape(queries, 56)
    frames = rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    path = np.zeros((steps + 1, 3), np.float32)
    distance_to_goal = np.linspace(1, 0 if success else 0.3, steps + 1, dtype=np.float32)
    states = np.arange(2.0 * queries).reshape(queries, 2) if spec.states else np.zeros((0, 0))
    return Episode(
        *(spec, success, steps, images, proprio, tokens, log_probs, valid, frames, path, distance_to_goal),
        wall_seconds=0.1,
        states=states,
    )


class RecordedRollouts:
    """In place of `PolicyRunner`. One episode in 16 cannot be run, two in five succeed."""

    uneven = full = False
    sampler: OpenVLAOFT | None = None

    def __init__(self, *_: object, peers: Peers = ALONE) -> None:
        self._policy, self._peers = small_policy(), peers

    def run(
        self, specs: Sequence[EpisodeSpec], others: Sequence[EpisodeSpec] = ()
    ) -> Iterator[Episode | FailedRun]:
        self._peers.start_round()
        for number, spec in enumerate(() if self.uneven and is_last() else [*specs, *others]):
            if self.full and is_last() and number == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "scratch/episodes")
            if not self._peers.claim(spec):
                continue
            if spec.seed % 16 == 3:
                yield FailedRun(spec, "made up")
            else:
                yield episode(spec, spec.seed % 5 < 2, 9 + spec.seed % 17, self._policy, self.sampler)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


class LiveRollouts(RecordedRollouts):
    def __init__(
        self, suite: str, protocol: object, policy: OpenVLAOFT, workers: int, peers: Peers = ALONE
    ) -> None:
        self._policy, self._peers = policy, peers


def descent(parameters: object, lr: float, weight_decay: float, **_: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)  # type: ignore[arg-type]


UPDATE = trainer.Trainer.update


def is_last() -> bool:
    process, processes = distributed.place()
    return process == processes - 1


def killed(run: trainer.Trainer, *rest: Any) -> dict[str, float | None]:
    """An update, but the third does not return."""
    if len(run.logs["metrics"]) == 2 and is_last():
        os.kill(os.getpid(), signal.SIGKILL)
    return UPDATE(run, *rest)


def killed_saving(file: Path) -> str:
    """The hash of a file, but not of one of the second checkpoint, which is then without its marker."""
    if file.parent.name == "checkpoint-00000002" and is_last():
        os.kill(os.getpid(), signal.SIGKILL)
    return sha256(file)


def main() -> None:
    folder, how = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    trainer.PolicyRunner = LiveRollouts if "live" in how else RecordedRollouts  # type: ignore[assignment, misc]
    if "live" not in how or "descent" in how:
        torch.optim.AdamW = descent  # type: ignore[assignment, misc]
    if "descent" in how:
        RecordedRollouts.sampler = small_policy()
    RecordedRollouts.uneven, RecordedRollouts.full = "uneven" in how, "full" in how
    if "sharded" in how:
        distributed.Accelerator = sharding.ShardingAccelerator  # type: ignore[misc]
        trainer.shard = sharding.shard  # type: ignore[assignment]
    config = load_stage(folder / "config.yaml", TrainStage)

    def train(out: Path, scratch: Path) -> None:
        folders = trainer.Folders(folder / "initial", out, scratch)
        trainer.Trainer(config, folders, workers=1, peers=peers).train()

    with joined_peers() as peers:
        if "resumed" not in how:
            train(folder / "out", folder / "scratch")
        if "killed" in how:
            trainer.Trainer.update = killed  # type: ignore[method-assign]
        if "saving" in how:
            checkpoint.sha256 = killed_saving
        if {"killed", "resumed"} & set(how):
            train(folder / "killed/out", folder / "killed/scratch")
    if "sharded" in how:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_command(main)
