"""Branches along a step's rollouts, which measure the policy's chance of success (`train.branching`)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
from accelerate.utils import gather_object

from srpo.config import TrainStage
from srpo.episode import EpisodeSpec, Start
from srpo.rl.advantages import success_of_others
from srpo.rl.collect import Batch, Collector, Moment, Outcome, kept_groups
from srpo.rollouts.policy_runner import require_most_ran


def chosen_queries(queries: int, points: int) -> list[int]:
    """The numbers of `points` queries that part an episode of so many evenly: fewer where it has fewer.

    The first query is none of them: an episode's group has more that start there.
    """
    parts = {queries * point // (points + 1) for point in range(1, points + 1)}
    return sorted(parts - {0})


def run_branches(config: TrainStage, step: int, batch: Batch, collector: Collector) -> Batch:
    """The batch with its moments, after running branches from each of them; as it is without branching.

    The acting policy must still be that of the batch. Groups that the update leaves out have no moments, nor
    has an episode that is alone in its group, whose value at the start is not known.

    Raises SystemExit if too few branches could be run.
    """
    branching = config.train.branching
    if branching is None:
        return batch
    comparable = np.isfinite(success_of_others(batch.success, batch.groups))
    local = batch.local_episodes(kept_groups(config, batch) & comparable)
    # Every process learns of all of them.
    starts = gather_object(
        [
            (k, Start(query, episode.states[query].tobytes()))
            for k, episode in local.items()
            for query in chosen_queries(len(episode.states), branching.points)
        ]
    )
    starts = sorted(starts, key=lambda each: (each[0], each[1].query))
    specs = [
        branch_spec(config, step, batch.outcomes[k], start, branch)
        for k, start in starts
        for branch in range(branching.branches)
    ]
    ran = collector.run_round(step, specs, f"step {step}, branches", group_size=branching.branches)
    require_most_ran(len(ran.outcomes), ran.errors, f"step {step}, branches")
    ended: dict[int, list[Outcome]] = defaultdict(list)
    for outcome in ran.outcomes:
        ended[outcome.group].append(outcome)
    moments = [
        Moment(
            batch.outcomes[k].number,
            start.query,
            branches=len(ended[group]),
            successes=sum(outcome.success for outcome in ended[group]),
            steps=sum(outcome.steps for outcome in ended[group]),
        )
        for group, (k, start) in enumerate(starts)
    ]
    return replace(
        batch,
        errors=batch.errors + ran.errors,
        simulated=batch.simulated + ran.simulated,
        seconds=batch.seconds + ran.seconds,
        moments=tuple(moments),
    )


def branch_spec(config: TrainStage, step: int, rollout: Outcome, start: Start, branch: int) -> EpisodeSpec:
    """A rollout's `branch`-th continuation from one of its queries, with its own seed."""
    key = [config.seed, step, rollout.number, start.query, branch]
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return replace(rollout.spec, seed=seed, states=False, start=start)
