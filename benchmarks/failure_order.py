"""Which representation ranks the failed rollouts of a training step by how near they came to the goal.

    python benchmarks/failure_order.py --config CONFIG --policy FOLDER --scratch FOLDER --out FILE.csv
        [--world-models pixel efficientnet-lite vjepa2-tiny=CHECKPOINT] [--steps 2]

CONFIG is the resolved config.yaml of an SRPO run, FOLDER the policy whose rollouts are ranked: those of the
run's first steps. A failure's reward falls with the distance of its embedding to the step's successes, as in
training, and is compared with the metres that the simulator says are left to the goal at its end. Rows:

    world_model  what embeds
    clip         `whole`: the run's frames; `last quarter`: the last quarter of these, each several times;
                 `matched prefix`: the policy's images up to the length of the median success
    references   `mean` of the successes, or the `nearest` of them
    in_order     share of pairs of failures of a group that the reward puts in the right order
    correlation  of the reward with minus the distance to the goal over a step's failures (Spearman)
    pairs, failures, successes, episodes   counts; the measures are means over steps, weighted by these
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from tqdm import tqdm

from srpo.analysis.tables.t3_truth import concordance, rank_correlation
from srpo.config import TrainStage, load_stage, read_yaml
from srpo.config import WorldModel as WorldModelConfig
from srpo.config.resolve import CONFIGS
from srpo.policies.checkpoints import load_policy
from srpo.rewards.references import find_references
from srpo.rl import collect, score
from srpo.rollouts.episode_store import EpisodeStore
from srpo.rollouts.policy_runner import PolicyRunner
from srpo.runtime.files import write_with
from srpo.world_models import WorldModel, load_world_model

REFERENCES = ("mean", "nearest")


def rollouts(
    config: TrainStage, policy: Path, scratch: Path, steps: int, workers: int
) -> list[collect.Batch]:
    """The episodes of the run's first steps, without updates between them; kept in `scratch`."""
    with PolicyRunner(config.suite, config.protocol, load_policy(policy), workers) as runner:
        collector = collect.Collector(runner, EpisodeStore(scratch), Accelerator(cpu=True))
        return [collect.collect_batch(config, step, collector) for step in range(1, steps + 1)]


def named_world_models(words: Iterable[str], frames: int) -> Iterator[tuple[str, WorldModel]]:
    """The world models of `configs/world_models` that NAME or NAME=CHECKPOINT mean, with so many frames."""
    for word in words:
        name, _, checkpoint = word.partition("=")
        settings = read_yaml(CONFIGS / "world_models" / f"{name}.yaml")["world_model"]
        model = WorldModelConfig.model_validate({"name": name, **settings, "frames": frames})
        yield name, load_world_model(model, Path(checkpoint) if checkpoint else None)


def clips(batch: collect.Batch, frames: int) -> dict[str, list[NDArray[np.uint8]]]:
    """Kind of clip → each episode's, uint8 (T, H, W, 3)."""
    whole = [episode.frames for episode in batch.episodes.values()]
    return {
        "whole": whole,
        "last quarter": [video[-max(1, frames // 4) :] for video in whole],
        "matched prefix": list(score.matched_prefixes(batch)),
    }


def measure(
    config: TrainStage, name: str, encoder: WorldModel, batches: list[collect.Batch]
) -> Iterator[dict[str, object]]:
    """A row for each kind of clip and references of each step that has a success and failures to rank."""
    for batch in tqdm(batches, desc=name, unit="step"):
        success = batch.success
        if not success.any() or (~success).sum() < 2:
            continue
        left = np.array([outcome.distance_to_goal for outcome in batch.outcomes])
        for clip, videos in clips(batch, encoder.frames).items():
            embeddings = encoder.embed_many(videos).astype(float)
            for references in REFERENCES:
                reward = config.reward.model_copy(update={"references": references})
                centres = find_references(embeddings[success], reward).centres
                rewards = -cdist(embeddings, centres).min(axis=1)
                pairs = [
                    concordance(rewards[group], left[group])
                    for number in np.unique(batch.groups)
                    if (group := ~success & (batch.groups == number)).sum() > 1
                ]
                right, number = np.sum(pairs, axis=0)
                yield {
                    "world_model": name,
                    "clip": clip,
                    "references": references,
                    "right": right,
                    "pairs": number,
                    "correlation": rank_correlation(rewards[~success], left[~success]),
                    "failures": int((~success).sum()),
                    "successes": int(success.sum()),
                    "episodes": len(success),
                }


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each world model, kind of clip, and references, over steps."""
    rows = rows.assign(correlation=rows["correlation"] * rows["failures"])
    table = rows.groupby(["world_model", "clip", "references"], sort=False).sum().reset_index()
    table["correlation"] /= table["failures"]
    table.insert(3, "in_order", table.pop("right") / table["pairs"])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of an SRPO run")
    parser.add_argument("--policy", type=Path, required=True, help="the policy whose rollouts are ranked")
    parser.add_argument("--scratch", type=Path, required=True, help="folder that keeps the rollouts")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
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
    torch.set_num_threads(1)
    batches = rollouts(config, arguments.policy, arguments.scratch, arguments.steps, arguments.workers)
    rows: list[dict[str, object]] = []
    for name, encoder in named_world_models(arguments.world_models, config.world_model.frames):
        rows += measure(config, name, encoder, batches)
    if not rows:
        raise SystemExit("no step has a success and failures to rank: raise --steps, or take another policy")
    table = summary(pd.DataFrame(rows))
    write_with(arguments.out, lambda temporary: table.to_csv(temporary, index=False))
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
