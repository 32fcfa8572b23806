"""Reinforcement learning: SRPO, and GRPO, which is SRPO with a 0/1 reward. One loop.

srpo train --config CONFIG --policy FOLDER [--world-model FOLDER] [--demos FOLDER]
    --out FOLDER --scratch FOLDER

A step runs episodes (`srpo.rl.collect`), says what they are worth (`srpo.rl.score`), learns from them
(`srpo.rl.update`) and tells about it (`srpo.rl.metrics`).

With several processes (`accelerate launch`, docs/hpc.md) each runs every n-th episode of a step and holds its
pictures; what is needed of an episode to score it is gathered, so that each process sees the whole batch, and
gradients are averaged. Under FSDP each holds a part of the policy that learns and a copy of it that acts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from srpo.config import TrainStage, load_stage
from srpo.demos import file_name
from srpo.envs.libero import load_task
from srpo.policies.openvla_oft import OpenVLAOFT, load_policy, save_policy
from srpo.results.rows import write_rows
from srpo.results.schemas import REWARDS, RL_METRICS, TASK_METRICS
from srpo.rl.collect import Batch, Collector, collect, evaluation_specs
from srpo.rl.metrics import metrics_row, report, reward_rows, run_warnings, settings_warnings, task_rows
from srpo.rl.score import Experts, Scores, distances_to_goal, embed, embed_experts, score
from srpo.rl.tracking import make_accelerator, scalars, start_trackers
from srpo.rl.update import learning_rate, make_optimiser, update
from srpo.rollouts.policy_runner import PolicyRunner
from srpo.runtime.checkpoint import Checkpoints, EpisodeStore, fingerprint, preemptible
from srpo.runtime.distributed import is_sharded, require_whole_weights, sync_weights
from srpo.runtime.locks import lock_held
from srpo.runtime.manifest import sha256, write_manifest
from srpo.world_models import WorldModel, load_world_model


@dataclass
class Trainer:
    """A training run between two checkpoints: what it learns with, and what it has logged."""

    config: TrainStage
    accelerator: Accelerator
    policy: OpenVLAOFT
    reference: OpenVLAOFT | None
    world_model: WorldModel | None
    experts: Experts | None
    optimiser: torch.optim.Optimizer
    checkpoints: Checkpoints
    scratch: Path
    inputs: dict[str, str]
    done: int = 0
    logs: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"metrics": [], "tasks": [], "rewards": []}
    )

    @property
    def at_target(self) -> bool:
        """Whether the last step's evaluation was as good as wanted."""
        target, metrics = self.config.train.target, self.logs["metrics"]
        rate = metrics[-1]["evaluation_success_rate"] if metrics else None
        return target is not None and rate is not None and rate >= target

    @property
    def complete(self) -> bool:
        """Whether it was resumed from a checkpoint of its end: only the results are to be written."""
        return self.at_target or self.done == self.config.train.steps

    @property
    def steps(self) -> Iterable[int]:
        """Steps that are left, with a progress bar."""
        total = self.config.train.steps
        show = None if self.accelerator.is_main_process else True
        return tqdm(range(self.done + 1, total + 1), initial=self.done, total=total, desc="rl", disable=show)

    def score(self, batch: Batch) -> Scores:
        """Rewards and advantages of the whole batch, the same in every process."""
        embeddings = None
        if self.world_model is not None:
            embeddings = embed(self.config, batch, self.world_model, self.accelerator)
        elif self.config.reward.references == "simulator":
            embeddings = distances_to_goal(batch)
        return score(self.config, batch, embeddings, self.experts)

    def update(self, batch: Batch, scores: Scores, step: int) -> dict[str, float | None]:
        """Learn from a batch at the step's learning rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.config.train, step)
        return update(
            self.config,
            self.policy,
            self.reference,
            self.optimiser,
            self.accelerator,
            batch,
            scores,
            step,
        )

    def log(
        self,
        step: int,
        batch: Batch,
        scores: Scores,
        learnt: dict[str, float | None],
        evaluation: Batch,
        clock: Sequence[float],
    ) -> None:
        """Keep and show the step's figures."""
        rate = learning_rate(self.config.train, step)
        row = metrics_row(step, batch, scores, learnt, rate, evaluation, clock)
        tasks = task_rows(step, batch, scores)
        self.logs["metrics"].append(row)
        self.logs["tasks"].extend(tasks)
        self.accelerator.log(scalars(row, tasks), step=step)
        if self.accelerator.is_main_process:
            report(row, scores)

    def save(self, step: int) -> bool:
        """Write a checkpoint, where one is due and by one process; tell whether it did."""
        train, writer = self.config.train, self.accelerator.is_main_process
        due = step % train.checkpoint_every == 0 and step < train.steps
        if due:
            self.checkpoints.save(step, self.policy, self.optimiser, self.logs)
            if writer:
                write_rows(self.scratch / "metrics.csv", self.logs["metrics"], RL_METRICS)
        return due and writer

    def finish(self, out: Path, workers: int) -> None:
        """Write a last checkpoint, then the results."""
        last = self.logs["metrics"][-1]["step"]
        if last > self.done:
            self.checkpoints.save(last, self.policy, self.optimiser, self.logs)
        save_policy(self.policy, out / "policy", self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            for line in run_warnings(self.logs["metrics"], self.logs["tasks"]):
                print(f"warning: {line}", flush=True)
            write_rows(out / "metrics.csv", self.logs["metrics"], RL_METRICS)
            write_rows(out / "tasks.csv", self.logs["tasks"], TASK_METRICS)
            write_rows(out / "rewards.parquet", self.logs["rewards"], REWARDS)
            write_manifest(
                out / "manifest.json",
                self.config,
                inputs=self.inputs,
                policy=sha256(out / "policy"),
                workers=workers,
                processes=self.accelerator.num_processes,
            )
            self.checkpoints.finish()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def begin(
    config: TrainStage,
    initial: Path,
    world_model_folder: Path | None,
    demos: Path | None,
    out: Path,
    scratch: Path,
) -> Trainer:
    """Load everything: from the last checkpoint if there is one, else from the initial policy."""
    accelerator = make_accelerator(config.train.trackers, out)
    policy = load_policy(initial, accelerator.device)
    # Dropout-free in both modes; one mode, so that sampling and learning see the same network.
    policy.eval()
    torch.manual_seed(config.seed)  # adapters start at random
    policy.make_trainable(config.train.freeze_vision)
    optimiser = make_optimiser(policy, config.train)
    if is_sharded(accelerator):
        require_whole_weights(policy.settings)
        accelerator.prepare(policy, optimiser)  # changes both in place
    reference = load_frozen(initial, policy, accelerator) if config.train.kl > 0 else None
    world_model = None
    if config.world_model is not None:
        world_model = load_world_model(config.world_model, world_model_folder)
    inputs = {"policy": sha256(initial)}
    if world_model_folder is not None:
        inputs["world_model"] = sha256(world_model_folder)
    experts = None
    if world_model is not None and config.reward.references == "fixed_expert":
        if demos is None:
            raise SystemExit("reward.references `fixed_expert` needs the demonstrations: --demos FOLDER")
        files = [demos / file_name(load_task(config.suite, task).name) for task in config.tasks]
        experts = embed_experts(config, world_model, files)
        inputs |= {file.name: sha256(file) for file in files}
    # Trackers look on: another choice of them does not make it another run.
    settings = config.model_dump_json(exclude={"train": {"trackers"}})
    identity = fingerprint(settings, *inputs.values())
    with accelerator.main_process_first():
        checkpoints = Checkpoints(
            scratch, identity, config.train.keep_checkpoints, writer=accelerator.is_main_process
        )
    run = Trainer(
        config, accelerator, policy, reference, world_model, experts, optimiser, checkpoints, scratch, inputs
    )
    if (resumed := checkpoints.resume(policy, optimiser)) is not None:
        run.done, run.logs = resumed
    if len(found := set(gather_object([run.done]))) > 1:
        raise SystemExit(
            f"{scratch}: processes see checkpoints of different steps {sorted(found)}; start again"
        )
    if accelerator.is_main_process:
        if run.done:
            print(f"resuming after step {run.done}", flush=True)
        for line in settings_warnings(config):
            print(f"warning: {line}", flush=True)
    start_trackers(accelerator, config, identity[:16], run.done)
    return run


def load_frozen(initial: Path, policy: OpenVLAOFT, accelerator: Accelerator) -> OpenVLAOFT:
    """The initial policy, not to be trained: whole in each process, in the precision of `policy`'s passes."""
    mixed = is_sharded(accelerator) and accelerator.mixed_precision == "bf16"
    settings = policy.settings.model_copy(update={"dtype": "bfloat16"} if mixed else {})
    return load_policy(initial, accelerator.device, settings).requires_grad_(False)


def train(
    config: TrainStage,
    initial: Path,
    world_model_folder: Path | None,
    out: Path,
    scratch: Path,
    workers: int,
    demos: Path | None = None,
) -> None:
    """Train from the last checkpoint, or from the initial policy, to the finished one in `out`."""
    run = begin(config, initial, world_model_folder, demos, out, scratch)
    if run.complete:
        run.finish(out, workers)
        return
    store = EpisodeStore(scratch)
    sharded = is_sharded(run.accelerator)
    actor = load_frozen(initial, run.policy, run.accelerator) if sharded else run.policy
    sync_weights(actor, run.policy)
    with PolicyRunner(config.suite, config.protocol, actor, workers) as rollouts:
        runner = Collector(rollouts, store, run.accelerator)
        for step in run.steps:
            clock = [time.perf_counter()]
            batch = collect(config, step, runner)
            clock.append(time.perf_counter())
            scores = run.score(batch)
            clock.append(time.perf_counter())
            learnt = run.update(batch, scores, step)
            sync_weights(actor, run.policy)
            clock.append(time.perf_counter())
            evaluation = Batch()
            if config.train.evaluate_every and step % config.train.evaluate_every == 0:
                evaluation = runner.roll_out(evaluation_specs(config), step, 0, 1, f"evaluation {step}")
            clock.append(time.perf_counter())
            run.log(step, batch, scores, learnt, evaluation, clock)
            run.logs["rewards"].extend(reward_rows(step, batch, scores))
            if run.at_target:
                if run.accelerator.is_main_process:
                    print(f"target {config.train.target:.1%} reached: stopping", flush=True)
                break
            if run.save(step):
                store.clear(step)
    run.finish(out, workers)


def main() -> None:
    """The command line of training, online and offline."""
    parser = argparse.ArgumentParser(description="Reinforcement learning with SRPO (or GRPO).")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of the run")
    parser.add_argument("--policy", type=Path, required=True, help="policy checkpoint to start from")
    parser.add_argument("--world-model", type=Path, help="checkpoint folder of a pretrained world model")
    parser.add_argument("--demos", type=Path, help="demonstrations, for the references `fixed_expert`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for resumable state")
    parser.add_argument("--workers", type=int, default=2, help="simulation processes (default: 2)")
    arguments = parser.parse_args()
    config = load_stage(arguments.config, TrainStage)
    if config.train.offline is not None:
        from srpo.rl import offline  # which imports this module

        run = offline.train
    else:
        run = train
    with preemptible(), lock_held(arguments.scratch):
        run(
            config,
            arguments.policy,
            arguments.world_model,
            arguments.out,
            arguments.scratch,
            arguments.workers,
            arguments.demos,
        )


if __name__ == "__main__":
    main()
