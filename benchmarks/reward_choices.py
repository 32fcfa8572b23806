"""Which choice of the reward moves advantages, and by how much.

    python benchmarks/reward_choices.py --config CONFIG --policy FOLDER --scratch FOLDER --out FILE.csv
        --effects FILE.csv [--world-models pixel vjepa2-tiny=CHECKPOINT] [--steps 2]

CONFIG, FOLDER and the rollouts are those of `failure_order.py`. The rollouts are rewarded anew under every
combination of choices of docs/method.md, with the paper's shaping and base.yaml's range of success rates in
every one. An advantage is what the update sees: 0 in a group that it leaves out. Correlations (Spearman) and
shares are means over steps. Rows of --out, one a combination:

    world_model          what embeds
    filter, scope, distance, references   as in the settings `reward`
    with_paper           correlation of the advantages with those of the paper's choices
    with_config          the same with CONFIG's own choices, range of success rates included
    groups_with_signal   share of the groups that the update learns from
    failures_rewarded    share of the failures that earn anything
    with_goal            correlation of failures' rewards with minus the metres to the goal at their end,
                         among the failures of a task
    rollouts, failures, groups, tasks, steps   counts

Rows of --effects, one a pair of values of a choice:

    choice, one, other   two values of a choice
    mean, least          correlation of the advantages of two combinations that differ in this alone, over all
                         such pairs of combinations: 1 if the choice changes no order
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from failure_order import named_world_models, rollouts
from numpy.typing import NDArray

from srpo.analysis.tables.t3_truth import rank_correlation
from srpo.config import TrainStage, load_stage, read_yaml
from srpo.config.resolve import CONFIGS
from srpo.rl import collect, score
from srpo.runtime.files import write_with
from srpo.world_models import WorldModel

CHOICES = {
    "filter": ("after", "before", "none"),
    "scope": ("batch", "rank", "group"),
    "distance": ("squared", "l2"),
    "references": ("dbscan", "mean", "medoid", "nearest"),
}
PAPER = ("after", "batch", "squared", "dbscan")
SIIRL = ("before", "rank", "l2", "dbscan")

Combination = tuple[str, ...]
"""A value for each of `CHOICES`."""
Advantages = list[NDArray[np.float64]]
"""Of each step's episodes."""


def chosen(config: TrainStage, combination: Combination) -> TrainStage:
    """The run's configuration with these choices, the paper's shaping and base.yaml's success rates."""
    base = read_yaml(CONFIGS / "base.yaml")
    reward = {"shaping": "paper", **dict(zip(CHOICES, combination, strict=True))}
    train = {"keep_success": tuple(base["train"]["keep_success"])}
    return config.model_copy(
        update={
            "reward": config.reward.model_copy(update=reward),
            "train": config.train.model_copy(update=train),
        }
    )


def learned(scores: score.BatchScores) -> NDArray[np.float64]:
    """Advantages (N,) as the update sees them."""
    return np.where(scores.kept, scores.advantages, 0.0)


def correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's; 1 of advantages that are all 0 in both, 0 if they are so in one."""
    if not one.any() and not other.any():
        return 1.0
    return float(np.nan_to_num(rank_correlation(one, -other)))


def with_goal(batch: collect.Batch, rewards: NDArray[np.float64]) -> float:
    """Correlation of rewards (N,) with minus the distance to the goal among a task's failures: the mean over
    tasks, weighted by their failures; NaN where no task has two."""
    left = np.array([outcome.distance_to_goal for outcome in batch.outcomes])
    failed = [~batch.success & (batch.tasks == task) for task in np.unique(batch.tasks)]
    ranked = [members for members in failed if members.sum() > 1]
    if not ranked:
        return float("nan")
    values = [rank_correlation(rewards[members], left[members]) for members in ranked]
    return float(np.average(values, weights=[members.sum() for members in ranked]))


def measure(
    config: TrainStage, encoder: WorldModel, batches: list[collect.Batch]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both tables, without the world model's name."""
    whole = chosen(config, PAPER)
    embeddings = [score.embed_batch(whole, batch, encoder, Accelerator(cpu=True)) for batch in batches]

    def scored(settings: TrainStage) -> list[score.BatchScores]:
        return [score.score_batch(settings, *each) for each in zip(batches, embeddings, strict=True)]

    scores = {combination: scored(chosen(config, combination)) for combination in product(*CHOICES.values())}
    advantages = {combination: list(map(learned, each)) for combination, each in scores.items()}
    own = list(map(learned, scored(config)))

    rows = []
    for combination, each in scores.items():
        steps = list(zip(batches, each, strict=True))
        rows.append(
            {
                **dict(zip(CHOICES, combination, strict=True)),
                "with_paper": agreement(advantages[combination], advantages[PAPER]),
                "with_config": agreement(advantages[combination], own),
                "groups_with_signal": np.mean(
                    [
                        batch.count_groups(one.kept & one.signal) / len(np.unique(batch.groups))
                        for batch, one in steps
                    ]
                ),
                "failures_rewarded": np.mean(
                    [(one.shaped.rewards[~batch.success] > 0).mean() for batch, one in steps]
                ),
                "with_goal": np.nanmean([with_goal(batch, one.shaped.rewards) for batch, one in steps]),
                "rollouts": sum(len(batch.outcomes) for batch in batches),
                "failures": sum(int((~batch.success).sum()) for batch in batches),
                "groups": sum(len(np.unique(batch.groups)) for batch in batches),
                "tasks": len(config.tasks),
                "steps": len(batches),
            }
        )
    return rows, list(effects(advantages))


def agreement(one: Advantages, other: Advantages) -> float:
    """Mean correlation over steps."""
    return float(np.mean(list(map(correlation, one, other))))


def effects(advantages: Mapping[Combination, Advantages]) -> Iterator[dict[str, Any]]:
    """Rows of --effects."""
    for place, (choice, values) in enumerate(CHOICES.items()):
        for one, other in combinations(values, 2):
            pairs = [
                agreement(each, advantages[(*name[:place], other, *name[place + 1 :])])
                for name, each in advantages.items()
                if name[place] == one
            ]
            yield {"choice": choice, "one": one, "other": other, "mean": np.mean(pairs), "least": min(pairs)}


def neighbours(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that differ from the paper's choices in one at most, and siiRL's."""
    names = table[list(CHOICES)].to_numpy()
    near = (names != np.array(PAPER)).sum(axis=1) <= 1
    return table[near | (names == np.array(SIIRL)).all(axis=1)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of an SRPO run")
    parser.add_argument("--policy", type=Path, required=True, help="the policy whose rollouts are rewarded")
    parser.add_argument("--scratch", type=Path, required=True, help="folder that keeps the rollouts")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write: a row a combination")
    parser.add_argument("--effects", type=Path, required=True, help="CSV to write: a row a pair of values")
    parser.add_argument(
        "--world-models",
        nargs="+",
        default=["pixel", "efficientnet-lite"],
        metavar="NAME[=CHECKPOINT]",
        help="of configs/world_models (default: pixel efficientnet-lite)",
    )
    parser.add_argument("--steps", type=int, default=2, help="of the run (default: 2)")
    parser.add_argument("--workers", type=int, default=2, help="simulation processes (default: 2)")
    arguments = parser.parse_args()
    config = load_stage(arguments.config, TrainStage)
    if config.world_model is None:
        raise SystemExit(f"{arguments.config}: has no world model: give the configuration of an SRPO run")
    if config.reward.references not in CHOICES["references"]:
        raise SystemExit(
            f"{arguments.config}: reward.references `{config.reward.references}` is of other embeddings: "
            f"must be one of {', '.join(CHOICES['references'])}"
        )
    torch.set_num_threads(1)
    batches = rollouts(config, arguments.policy, arguments.scratch, arguments.steps, arguments.workers)
    batches = [batch for batch in batches if not batch.success.all()]
    if not batches:
        raise SystemExit("every rollout succeeded: there is no failure to reward; take another policy")
    tables: dict[Path, list[dict[str, Any]]] = {arguments.out: [], arguments.effects: []}
    for name, encoder in named_world_models(arguments.world_models, config.world_model.frames):
        for found, rows in zip(tables.values(), measure(config, encoder, batches), strict=True):
            found += [{"world_model": name, **row} for row in rows]
    frames = {path: pd.DataFrame(rows).round(4) for path, rows in tables.items()}
    for path, frame in frames.items():
        write_with(path, lambda temporary, frame=frame: frame.to_csv(temporary, index=False))
    shown = neighbours(frames[arguments.out]), frames[arguments.effects]
    print(*(frame.to_string(index=False, float_format="{:.2f}".format) for frame in shown), sep="\n\n")


if __name__ == "__main__":
    main()
