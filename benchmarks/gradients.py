"""The signal-to-noise ratio of the policy gradient of a step's rollouts.

    python benchmarks/gradients.py --config CONFIG --policy FOLDER --scratch FOLDER [--temperatures 1 1.6]

CONFIG is the resolved config.yaml of a GRPO run, FOLDER the SFT policy that it starts from. The policy makes
the rollouts of several independent steps at each temperature, and the policy gradients of these steps are
compared: their cosine is 1 without noise, and 0 without signal. The mean gradient of m steps has a
signal-to-noise ratio of 1 at m = (1 − cosine) / cosine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from srpo.config import TrainStage, load_stage
from srpo.policies.checkpoints import load_policy
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.rl import collect, score, update
from srpo.rollouts.episode_store import EpisodeStore
from srpo.rollouts.policy_runner import PolicyRunner
from srpo.runtime.files import write_with

PARTS = {
    "all weights": "",
    "vision": ("vision_backbone.", "projector."),
    "language model": ("language_model.", "placeholders"),
    "output matrix": "language_model.lm_head",
}
"""Part of the network → prefixes of its parameters' names."""


def gradient(config: TrainStage, policy: OpenVLAOFT, batch: collect.Batch) -> dict[str, torch.Tensor]:
    """The on-policy gradient of a step's objective: part of the network → (parameters,).

    Zeros if every kept group succeeded or failed throughout.
    """
    scores = score.score_batch(config, batch, None)
    episodes = batch.local_episodes(scores.kept & scores.signal)
    policy.zero_grad()
    if episodes:
        queries = update.episode_queries(episodes.values(), scores.advantages[list(episodes)])
        # The rewards' gradient alone: the KL penalty has none on policy, entropy's does not depend on them.
        train = config.train.model_copy(update={"kl": 0.0, "entropy": 0.0})
        rewards_only = config.model_copy(update={"train": train})
        tokens = float(sum(e.valid.sum() for e in episodes.values()))
        optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)  # never steps
        learner = update.Learner(policy, None, optimiser, Accelerator(cpu=True))
        update.accumulate_gradients(rewards_only, learner, queries, tokens)
    return {
        part: torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                for name, p in policy.named_parameters()
                if name.startswith(prefixes)
            ]
        )
        for part, prefixes in PARTS.items()
    }


def agreement(gradients: Sequence[torch.Tensor]) -> tuple[float, float]:
    """The mean cosine of pairs of steps, and its jackknife standard error."""

    def mean(chosen: Sequence[torch.Tensor]) -> float:
        pairs = combinations(chosen, 2)
        return float(np.mean([torch.nn.functional.cosine_similarity(a, b, dim=0).item() for a, b in pairs]))

    count = len(gradients)
    left_out = [mean([g for k, g in enumerate(gradients) if k != out]) for out in range(count)]
    return mean(gradients), float(np.sqrt((count - 1) * np.var(left_out)))


def measure(
    config: TrainStage,
    policy: OpenVLAOFT,
    scratch: Path,
    temperatures: Sequence[float],
    steps: int,
    workers: int,
) -> pd.DataFrame:
    rows = []
    policy.requires_grad_(True)
    for temperature in temperatures:
        train = config.train.model_copy(update={"temperature": temperature})
        tempered = config.model_copy(update={"train": train})
        gradients: dict[str, list[torch.Tensor]] = {part: [] for part in PARTS}
        successes = episodes = 0
        with PolicyRunner(config.suite, config.protocol, policy, workers) as runner:
            store = EpisodeStore(scratch / f"{temperature}")
            collector = collect.Collector(runner, store, Accelerator(cpu=True))
            for step in range(1, steps + 1):
                batch = collect.collect_batch(tempered, step, collector)
                successes, episodes = successes + int(batch.success.sum()), episodes + len(batch.success)
                for part, one in gradient(tempered, policy, batch).items():
                    gradients[part].append(one)
        for part, of_steps in gradients.items():
            rows.append([temperature, part, *agreement(of_steps), steps, episodes, successes])
    columns = ["temperature", "gradient of", "cosine", "standard_error", "steps", "episodes", "successes"]
    return pd.DataFrame(rows, columns=columns)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cosine of independent steps' policy gradients.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of a GRPO run")
    parser.add_argument("--policy", type=Path, required=True, help="the SFT policy that it starts from")
    parser.add_argument("--scratch", type=Path, required=True, help="folder that keeps the rollouts")
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[1.0], help="of the action tokens (default: 1)"
    )
    parser.add_argument("--steps", type=int, default=6, help="independent steps (default: 6)")
    parser.add_argument("--workers", type=int, default=2, help="simulation processes (default: 2)")
    parser.add_argument("--out", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    config = load_stage(arguments.config, TrainStage)
    if config.world_model is not None:
        raise SystemExit(f"{arguments.config}: has a world model: give the configuration of a GRPO run")
    torch.set_num_threads(1)
    table = measure(
        config,
        load_policy(arguments.policy),
        arguments.scratch,
        arguments.temperatures,
        arguments.steps,
        arguments.workers,
    )
    print(table.to_string(index=False, float_format="{:.3f}".format))
    if arguments.out:
        write_with(arguments.out, lambda temporary: table.to_csv(temporary, index=False))


if __name__ == "__main__":
    main()
