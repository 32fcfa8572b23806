"""Reinforcement learning: SRPO, and GRPO, which is SRPO with a 0/1 reward. One loop, online or offline.

srpo train --config CONFIG --policy FOLDER [--world-model FOLDER] [--demos FOLDER]
    --out FOLDER --scratch FOLDER

A step collects episodes (`srpo.rl.collect`), and branches along them where the settings ask for these
(`srpo.rl.branching`), scores them (`srpo.rl.score`), updates the policy (`srpo.rl.update`) and logs it all
(`srpo.rl.metrics`).

With `train.overlap` the policy that acts is a copy which is one update behind (`srpo.rl.overlap`). While
step k is scored and updates the policy, the copy, as it was before that update, rolls out for step k + 1.
When both are done it runs what step k + 1 has in further rounds and branches, gets the new weights, and is
evaluated with them. The checkpoint of step k comes last: by then all episodes of step k + 1 are stored, and a
resumed run reads them, for the weights that acted are gone. (One that could not be run, or whose file is
damaged, is run again by newer weights.)

Offline (`train.offline`) the initial policy's episodes are collected and scored once, and every step is a
pass over them by advantage-weighted regression, as in the real-robot part of the SRPO paper, by whole
episodes or by steps.

With several processes (`accelerate launch`, docs/hpc.md) each keeps the images of every n-th episode of a
step, whichever of them ran it. What scoring needs of an episode is gathered, so that every process sees the
whole batch; gradients are averaged. Under FSDP each process holds a shard of the policy that learns and a
full copy that acts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srpo import optim
from srpo.config import TrainStage, load_stage
from srpo.demos import file_name
from srpo.envs.libero import libero_record, load_task
from srpo.errors import FinalExit, run_command
from srpo.policies.checkpoints import load_policy, save_policy
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.results.rows import write_rows
from srpo.results.schemas import REWARDS, RL_METRICS, TASK_METRICS
from srpo.rewards.references import EarlierSuccesses
from srpo.rl.branching import run_branches
from srpo.rl.collect import Batch, Collector, collect_batch, evaluation_specs
from srpo.rl.metrics import (
    PhaseTimer,
    StepRecord,
    metrics_row,
    print_step,
    reward_rows,
    run_warnings,
    settings_warnings,
    task_rows,
)
from srpo.rl.overlap import RolloutsAhead
from srpo.rl.score import (
    BatchScores,
    distances_to_goal,
    embed_batch,
    embed_experts,
    embed_prefixes,
    remember_successes,
    score_batch,
    score_moments,
    score_steps,
    whole_episodes,
)
from srpo.rl.tracking import make_accelerator, scalars, start_trackers
from srpo.rl.update import Learner, update_policy
from srpo.rollouts.episode_store import EpisodeStore
from srpo.rollouts.policy_runner import PolicyRunner, require_most_ran
from srpo.runtime.arguments import positive
from srpo.runtime.checkpoint import Checkpoints
from srpo.runtime.distributed import is_sharded, require_full_training, shard, sync_weights
from srpo.runtime.locks import lock_held
from srpo.runtime.manifest import fingerprint, sha256, write_manifest
from srpo.runtime.peers import ALONE, Peers, joined_peers
from srpo.runtime.preemption import preemptible
from srpo.runtime.progress import progress_bar
from srpo.world_models import load_world_model
from srpo.world_models.cache import EmbeddingCache


@dataclass(frozen=True)
class Folders:
    """Where a run reads and writes.

    policy       checkpoint of the initial policy
    out          results
    scratch      resumable state
    world_model  checkpoint of a pretrained world model, if the configuration needs one
    demos        demonstrations, for the references `fixed_expert`
    """

    policy: Path
    out: Path
    scratch: Path
    world_model: Path | None = None
    demos: Path | None = None


class Trainer:
    """One training run, from its initial policy or its last checkpoint to its results."""

    def __init__(self, config: TrainStage, folders: Folders, workers: int, peers: Peers = ALONE) -> None:
        """Load everything the run needs.

        Args:
            workers: simulation processes of each process.
            peers: the processes of the run, which share its rollouts.

        Raises:
            SystemExit: the configuration needs something that is missing.
        """
        self.config, self.folders, self.workers, self.peers = config, folders, workers, peers
        self.online = config.train.offline is None
        self.libero = libero_record(config.suite)
        self.accelerator = make_accelerator(config.train.trackers, folders.out)
        if peers.size != self.accelerator.num_processes:
            raise FinalExit(
                f"WORLD_SIZE says {peers.size} processes, and accelerate found "
                f"{self.accelerator.num_processes}: start each with RANK and LOCAL_RANK, as docs/hpc.md says"
            )
        self.learner = self.load_learner()
        self.world_model = None
        if config.world_model is not None:
            self.world_model = load_world_model(config.world_model, folders.world_model)
        demonstrations = self.demonstration_files()
        self.experts = None
        if self.world_model is not None and demonstrations:
            self.experts = embed_experts(config, self.world_model, demonstrations)
        self.inputs = {"policy": sha256(folders.policy)}
        if source := self.world_model_folder():
            self.inputs["world_model"] = sha256(source)
        self.inputs |= {file.name: sha256(file) for file in demonstrations}

        # What changes no result does not make it another run.
        neutral = {"trackers", "microbatch", "checkpoint_every", "keep_checkpoints"}
        settings = config.model_dump_json(exclude={"train": neutral})
        identity = fingerprint(settings, *self.inputs.values(), version("mujoco"))
        self.checkpoints = Checkpoints.shared(
            folders.scratch, identity, self.accelerator, config.train.keep_checkpoints
        )
        self.store = EpisodeStore(folders.scratch)
        self.collector: Collector | None = None
        self.actor: OpenVLAOFT | None = None
        self.ahead: RolloutsAhead | None = None
        self.done = 0
        self.logs: dict[str, list[dict[str, Any]]] = {"metrics": [], "tasks": [], "rewards": []}
        self.earlier: EarlierSuccesses = {}
        self.resume()
        start_trackers(self.accelerator, config, identity[:16], self.done)

    def load_learner(self) -> Learner:
        """The initial policy ready for training, its optimiser, and the reference of the KL penalty."""
        train = self.config.train
        sharded = is_sharded(self.accelerator)

        def spread(policy: OpenVLAOFT) -> None:
            require_full_training(policy.settings)
            policy.make_trainable(train.freeze_vision)
            shard(policy, self.accelerator)

        policy = load_policy(
            self.folders.policy, self.accelerator.device, prepare=spread if sharded else None
        )
        policy.statistics(self.config.suite)  # an error, if there are none
        # One mode throughout: sampling and learning must see the same network. It has no dropout to lose.
        policy.eval()
        if not sharded:
            torch.manual_seed(self.config.seed)  # adapters start at random
            policy.make_trainable(train.freeze_vision)
        optimiser = optim.adamw(policy, train.learning_rate, train.weight_decay, train.betas)
        reference = self.load_frozen(policy) if train.kl > 0 else None
        return Learner(policy, reference, optimiser, self.accelerator)

    def load_frozen(self, policy: OpenVLAOFT) -> OpenVLAOFT:
        """The initial policy without gradients: unsharded, in the precision of `policy`'s passes."""
        mixed = is_sharded(self.accelerator) and self.accelerator.mixed_precision == "bf16"
        settings = policy.settings.model_copy(update={"dtype": "bfloat16"} if mixed else {})
        return load_policy(self.folders.policy, self.accelerator.device, settings).requires_grad_(False)

    def demonstration_files(self) -> list[Path]:
        """One file for each task under the references `fixed_expert`; none under any other."""
        if self.config.world_model is None or self.config.reward.references != "fixed_expert":
            return []
        if self.folders.demos is None:
            raise FinalExit("reward.references `fixed_expert` needs the demonstrations: --demos FOLDER")
        tasks = [load_task(self.config.suite, task).name for task in self.config.tasks]
        return [self.folders.demos / file_name(task) for task in tasks]

    def world_model_folder(self) -> Path | None:
        """The folder with the world model's weights; None where none is given and the settings name none."""
        model = self.config.world_model
        if self.folders.world_model is not None or model is None or model.checkpoint is None:
            return self.folders.world_model
        named = Path(model.checkpoint)  # else a name on the hub, whose files its cache knows by their hashes
        return named if named.is_dir() else None

    def resume(self) -> None:
        """Restore the last checkpoint, if there is one."""
        restored = self.checkpoints.restore(self.learner.policy, self.learner.optimiser)
        if restored is not None:
            self.done, progress = restored
            self.logs = progress["logs"]
            self.earlier = {
                int(task): np.array(rows, np.float32) for task, rows in progress["earlier"].items()
            }
        if self.accelerator.is_main_process:
            if self.done:
                print(f"resuming after step {self.done}", flush=True)
            for line in settings_warnings(self.config):
                print(f"warning: {line}", flush=True)

    def train(self) -> None:
        """Run the steps that are left, then write the results."""
        batch: Batch | None = None
        scores: BatchScores | None = None
        upcoming: Batch | None = None
        try:
            for step in self.remaining_steps():
                timer = PhaseTimer()
                if batch is None or self.online:
                    with timer("rollout"):
                        batch, upcoming = upcoming or self.collect(step), None
                    self.roll_ahead(step + 1)
                    with timer("encode"):
                        scores = self.score(batch)
                assert batch is not None and scores is not None
                with timer("update"):
                    update_metrics = self.update(batch, scores, step)
                if self.online:
                    batch = replace(batch, episodes={})  # pictures, that would last through the next rollouts
                if self.ahead is not None:
                    with timer("rollout"):
                        upcoming = self.collect(step + 1)
                with timer("update"):
                    self.renew_actor()
                with timer("evaluate"):
                    evaluation = self.evaluate(step)
                rate, lag = self.learning_rate(step), min(self.config.train.overlap, step - 1)
                seconds = timer.seconds
                own = self.online or step == 1
                self.log(StepRecord(step, batch, scores, update_metrics, rate, evaluation, seconds, lag, own))
                if self.at_target:
                    if self.accelerator.is_main_process:
                        print(f"target {self.config.train.target:.1%} reached: stopping", flush=True)
                    break
                self.save(step)
        finally:
            self.stop_rollouts()
            self.checkpoints.wait()  # while the scratch folder is this run's
        self.finish()

    def remaining_steps(self) -> Iterable[int]:
        """The steps to run, with a progress bar; none after the last checkpoint or at `train.target`."""
        total = self.config.train.steps
        first = total + 1 if self.at_target else self.done + 1
        steps = range(first, total + 1)
        return progress_bar(
            self.accelerator.is_main_process, steps, initial=self.done, total=total, desc="rl"
        )

    def collect(self, step: int) -> Batch:
        """The step's episodes, and what branches found along them.

        Offline they are those of step 1, of the initial policy, even in a resumed run.
        """
        collector, ahead = self.start_rollouts(), None
        if self.ahead is not None:
            ahead, self.ahead = self.ahead.result(), None
        batch = collect_batch(self.config, step if self.online else 1, collector, ahead)
        batch = run_branches(self.config, step, batch, collector)
        if not self.online:
            self.stop_rollouts()
        return batch

    def roll_ahead(self, step: int) -> None:
        """With `train.overlap`, begin the rollouts of a step that is still to come, if there is one."""
        if self.config.train.overlap and step <= self.config.train.steps:
            self.ahead = RolloutsAhead(self.config, step, self.start_rollouts(), self.accelerator.device)

    def start_rollouts(self) -> Collector:
        """Start the simulators and load the policy that acts, unless that is done."""
        if self.collector is None:
            policy = self.learner.policy
            copied = is_sharded(self.accelerator) or not self.online or self.config.train.overlap
            self.actor = self.load_frozen(policy) if copied else policy
            if self.config.train.overlap and policy.settings.lora is not None:
                self.actor.make_trainable(self.config.train.freeze_vision)  # adapters, as the policy's
                self.actor.requires_grad_(False)
            if self.online:
                self.renew_actor()
            runner = PolicyRunner(
                self.config.suite, self.config.protocol, self.actor, self.workers, peers=self.peers
            )
            self.collector = Collector(runner, self.store, self.accelerator, self.peers)
        return self.collector

    def stop_rollouts(self) -> None:
        """End the simulators and release the memory of the policy that acts."""
        if self.ahead is not None:
            self.ahead.stop()
        if self.collector is not None:
            self.collector.runner.close()
        self.ahead = self.collector = self.actor = None

    def score(self, batch: Batch) -> BatchScores:
        """Rewards and advantages of the whole batch, the same in every process."""
        embeddings = prefixes = None
        if self.world_model is not None and self.config.train.by_step:
            # They are many, and a resumed run wants them again.
            cache = EmbeddingCache(self.world_model, self.folders.scratch / "embeddings")
            prefixes = embed_prefixes(batch, cache)
            embeddings = whole_episodes(batch, prefixes)
        elif self.world_model is not None:
            embeddings = embed_batch(self.config, batch, self.world_model, self.accelerator)
        elif self.config.reward.references == "simulator":
            embeddings = distances_to_goal(batch)
        scores = score_batch(self.config, batch, embeddings, self.experts, self.earlier)
        if prefixes is not None and embeddings is not None:
            scores = score_steps(self.config, batch, scores, prefixes, embeddings, self.experts)
        if self.config.train.branching is not None:
            scores = score_moments(batch, scores)
        self.earlier = remember_successes(self.config, batch, scores, embeddings, self.earlier)
        return scores

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 1."""
        train = self.config.train
        return optim.learning_rate(step - 1, train.steps, train.learning_rate, train.warmup, train.schedule)

    def update(self, batch: Batch, scores: BatchScores, step: int) -> dict[str, float | None]:
        """Update the policy at the step's learning rate; an error of the rollouts ahead ends it."""
        optim.set_learning_rate(self.learner.optimiser, self.learning_rate(step))
        watch = self.ahead.check if self.ahead is not None else lambda: None
        return update_policy(self.config, self.learner, batch, scores, step, watch)

    def renew_actor(self) -> None:
        """Give the policy that acts the weights of the policy that learns."""
        if self.actor is not None:
            sync_weights(self.actor, self.learner.policy)

    def evaluate(self, step: int) -> Batch:
        """Greedy episodes on test states, in the steps in which they are due."""
        every = self.config.train.evaluate_every
        if not every or step % every:
            return Batch()
        specs = evaluation_specs(self.config)
        batch = self.start_rollouts().run_round(step, specs, f"evaluation {step}")
        require_most_ran(len(batch.outcomes), batch.errors, f"evaluation in step {step}")
        return batch

    def log(self, record: StepRecord) -> None:
        """Keep the step's rows, and show them."""
        row, tasks = metrics_row(record), task_rows(record)
        self.logs["metrics"].append(row)
        self.logs["tasks"].extend(tasks)
        if self.online or record.step == 1:  # offline the episodes are the same in every step
            self.logs["rewards"].extend(reward_rows(record))
        self.accelerator.log(scalars(row, tasks), step=record.step)
        if self.accelerator.is_main_process:
            print_step(row, record.scores)

    @property
    def at_target(self) -> bool:
        """Whether the last step's evaluation reached `train.target`."""
        target, metrics = self.config.train.target, self.logs["metrics"]
        rate = metrics[-1]["evaluation_success_rate"] if metrics else None
        return target is not None and rate is not None and rate >= target

    def save(self, step: int) -> None:
        """Write a checkpoint if one is due; episodes up to the last one written are no longer needed."""
        train = self.config.train
        if step % train.checkpoint_every or step == train.steps:
            return
        self.save_checkpoint(step)
        if self.accelerator.is_main_process:
            write_rows(self.folders.scratch / "metrics.csv", self.logs["metrics"], RL_METRICS)
            if self.online:
                # No checkpoint has the weights that acted for the step after it: its episodes stay with it.
                following = {done + 1 for done in self.checkpoints.written} if train.overlap else ()
                self.store.clear(self.checkpoints.newest, but=following)

    def save_checkpoint(self, step: int) -> None:
        """Everything that a resumed run continues from. All processes call, and each writes its part."""
        earlier = {task: rows.tolist() for task, rows in self.earlier.items()}
        progress = {"logs": self.logs, "earlier": earlier}
        self.checkpoints.save(step, self.learner.policy, self.learner.optimiser, progress)

    def finish(self) -> None:
        """Write a last checkpoint, then the results."""
        out, policy, writer = self.folders.out, self.learner.policy, self.accelerator.is_main_process
        last = self.logs["metrics"][-1]["step"]
        if last > self.done:
            self.save_checkpoint(last)
            self.checkpoints.wait()  # for what the run goes on from if the policy cannot be written
        save_policy(policy, out / "policy", writer)
        if writer:
            for line in run_warnings(self.logs["metrics"], self.logs["tasks"], self.config.tasks):
                print(f"warning: {line}", flush=True)
            write_rows(out / "metrics.csv", self.logs["metrics"], RL_METRICS)
            write_rows(out / "tasks.csv", self.logs["tasks"], TASK_METRICS)
            write_rows(out / "rewards.parquet", self.logs["rewards"], REWARDS)
            write_manifest(
                out / "manifest.json",
                self.config,
                inputs=self.inputs,
                policy=sha256(out / "policy"),
                libero=self.libero,
                workers=self.workers,
                processes=self.accelerator.num_processes,
            )
            self.checkpoints.mark_finished()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def main() -> None:
    """The command line of training, online and offline."""
    parser = argparse.ArgumentParser(
        description="Reinforcement learning with SRPO or GRPO, online or offline."
    )
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of the run")
    parser.add_argument("--policy", type=Path, required=True, help="policy checkpoint to start from")
    parser.add_argument("--world-model", type=Path, help="checkpoint folder of a pretrained world model")
    parser.add_argument("--demos", type=Path, help="demonstrations, for the references `fixed_expert`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for resumable state")
    parser.add_argument(
        "--workers", type=positive, default=2, help="simulation processes of each process (default: 2)"
    )
    arguments = parser.parse_args()
    config = load_stage(arguments.config, TrainStage)
    folders = Folders(
        arguments.policy, arguments.out, arguments.scratch, arguments.world_model, arguments.demos
    )
    with preemptible(), lock_held(arguments.scratch), joined_peers() as peers:
        Trainer(config, folders, arguments.workers, peers).train()


if __name__ == "__main__":
    run_command(main)
