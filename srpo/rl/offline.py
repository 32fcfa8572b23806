"""Offline SRPO: fixed rollouts, scored once by the same rewards, then advantage-weighted fine-tuning.

srpo train --config CONFIG --policy FOLDER [--world-model FOLDER] [--demos FOLDER]
    --out FOLDER --scratch FOLDER

No simulator is in the loop, as in the real-robot part of the SRPO paper, which uses advantage-weighted
regression. The set is `train.prompts` groups of the initial policy; `train.steps` are passes over it.
"""

from __future__ import annotations

import time
from pathlib import Path

from srpo.config import TrainStage
from srpo.rl.collect import Batch, Collector, collect
from srpo.rl.metrics import reward_rows
from srpo.rl.trainer import begin, load_frozen
from srpo.rollouts.policy_runner import PolicyRunner
from srpo.runtime.checkpoint import EpisodeStore


def train(
    config: TrainStage,
    initial: Path,
    world_model_folder: Path | None,
    out: Path,
    scratch: Path,
    workers: int,
    demos: Path | None = None,
) -> None:
    """Collect, score, and fine-tune from the last checkpoint, or from the start, to the policy in `out`."""
    assert config.train.offline is not None
    run = begin(config, initial, world_model_folder, demos, out, scratch)
    if run.complete:
        run.finish(out, workers)
        return
    clock = [time.perf_counter()]
    # The rollouts are the initial policy's, even where a resumed one has gone on from it. They stay in the
    # store until the run is finished, so that nothing is run twice.
    actor = load_frozen(initial, run.policy, run.accelerator)
    with PolicyRunner(config.suite, config.protocol, actor, workers) as rollouts:
        batch = collect(config, 1, Collector(rollouts, EpisodeStore(scratch), run.accelerator))
    del actor
    clock.append(time.perf_counter())
    scores = run.score(batch)
    clock.append(time.perf_counter())
    if not run.logs["rewards"]:
        run.logs["rewards"] = reward_rows(1, batch, scores)
    for step in run.steps:
        learnt = run.update(batch, scores, step)
        clock.append(time.perf_counter())
        run.log(step, batch, scores, learnt, Batch(), [*clock, clock[-1]])
        run.save(step)
        clock = [clock[-1]] * 3  # later passes neither roll out nor encode
    run.finish(out, workers)
