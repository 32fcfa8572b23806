"""How well a step's rollouts tell a policy which way to change, with noise on its tokens or on its residual.

    python benchmarks/gradients.py --config CONFIG --policy FOLDER --scratch FOLDER [--steps 6]

CONFIG is a run's resolved config.yaml of GRPO, FOLDER the SFT policy that it starts from. The same policy
takes several independent steps' rollouts in each way, and the policy gradient of each step is set beside the
others': their cosine is 1 where a step's rollouts tell everything, and 0 where they tell nothing.

    tokens, all weights     tokens sampled at temperature 1; the gradient of all weights
    tokens, residual        the same rollouts; the gradient of the residual alone
    residual, residual      greedy, with noise on the residual, drawn once a rollout
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

from srpo import collect, score, update
from srpo.checkpoint import EpisodeStore
from srpo.config import TrainStage, load_stage
from srpo.files import write_with
from srpo.policies.openvla_oft import OpenVLAOFT, load_policy
from srpo.rollout import Rollouts

TEMPERATURE = 1.0
"""Of the tokens, where they carry the noise."""


def gradient(config: TrainStage, policy: OpenVLAOFT, batch: collect.Batch) -> torch.Tensor:
    """The gradient of a step's objective, on policy, of what the policy trains: (parameters,).

    Zeros where all groups that count succeeded or failed throughout.
    """
    scores = score.score(config, batch, None)
    own = batch.own(scores.kept & scores.signal)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if not own:
        return torch.cat([torch.zeros(parameter.numel()) for parameter in trained])
    choices = update.gather_choices(config, policy, list(own.values()), scores.advantages[list(own)])
    policy.zero_grad()
    # The rewards' share alone: on policy the KL penalty has no gradient, and entropy knows no outcome.
    train = config.train.model_copy(update={"kl": 0.0, "entropy": 0.0})
    update.accumulate(train, policy, None, Accelerator(cpu=True), choices, float(choices.valid.sum()))
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])


def agreement(gradients: Sequence[torch.Tensor]) -> tuple[float, float]:
    """The mean cosine of pairs of steps, and its standard error, by leaving out one step at a time."""

    def mean(chosen: Sequence[torch.Tensor]) -> float:
        pairs = combinations(chosen, 2)
        return float(np.mean([torch.nn.functional.cosine_similarity(a, b, dim=0).item() for a, b in pairs]))

    count = len(gradients)
    left_out = [mean([g for k, g in enumerate(gradients) if k != out]) for out in range(count)]
    return mean(gradients), float(np.sqrt((count - 1) * np.var(left_out)))


def measure(config: TrainStage, policy: OpenVLAOFT, scratch: Path, steps: int, workers: int) -> pd.DataFrame:
    sampled = config.model_copy(
        update={
            "train": config.train.model_copy(update={"temperature": TEMPERATURE, "residual_noise": 0.0}),
        }
    )
    rows = []
    for noise, own in (("tokens", sampled), ("residual", config)):
        found: dict[str, list[torch.Tensor]] = {"all weights": [], "residual": []}
        successes = episodes = 0
        with Rollouts(own.suite, own.protocol, policy, workers) as rollouts:
            runner = collect.Runner(rollouts, EpisodeStore(scratch / noise), Accelerator(cpu=True))
            for step in range(1, steps + 1):
                batch = collect.collect(own, step, runner)
                successes, episodes = successes + int(batch.success.sum()), episodes + len(batch.success)
                for trained in found if noise == "tokens" else ["residual"]:
                    policy.requires_grad_(trained == "all weights")
                    policy.residual.requires_grad_(trained == "residual")
                    found[trained].append(gradient(own, policy, batch))
        for trained, gradients in found.items():
            if gradients:
                cosine, error = agreement(gradients)
                rows.append([noise, trained, cosine, error, steps, episodes, successes])
    columns = ["noise on", "gradient of", "cosine", "standard_error", "steps", "episodes", "successes"]
    return pd.DataFrame(rows, columns=columns)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cosine of independent steps' policy gradients.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of a GRPO run")
    parser.add_argument("--policy", type=Path, required=True, help="SFT policy with a residual")
    parser.add_argument("--scratch", type=Path, required=True, help="folder that keeps the rollouts")
    parser.add_argument("--steps", type=int, default=6, help="independent steps (default: 6)")
    parser.add_argument("--workers", type=int, default=2, help="simulation processes (default: 2)")
    parser.add_argument("--out", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    config = load_stage(arguments.config, TrainStage)
    if config.train.residual_noise == 0 or config.world_model is not None:
        raise SystemExit(f"{arguments.config}: not a GRPO run with train.residual_noise")
    torch.set_num_threads(1)
    table = measure(
        config, load_policy(arguments.policy), arguments.scratch, arguments.steps, arguments.workers
    )
    print(table.to_string(index=False, float_format="{:.3f}".format))
    if arguments.out:
        write_with(arguments.out, lambda temporary: table.to_csv(temporary, index=False))


if __name__ == "__main__":
    main()
