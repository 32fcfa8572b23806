"""Which episodes a step of reinforcement learning takes, and running them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm import tqdm

from srpo.config import Train, TrainStage
from srpo.episode import Episode, EpisodeSpec, FailedRun
from srpo.rl.advantages import keep_groups
from srpo.rollouts.policy_runner import PolicyRunner
from srpo.runtime.checkpoint import EpisodeStore

# Which episodes.


def sample_prompts(config: TrainStage, step: int) -> list[tuple[int, int]]:
    """The (task, initial state) of each group of a step, decided by (seed, step).

    Tasks take turns, so that a step has as many groups of each as can be. A task goes through all of its
    states in an order that is drawn, then through all of them in another.
    """
    states, prompts = list(config.protocol.train_states()), []
    for number in range((step - 1) * config.train.prompts, step * config.train.prompts):
        before, turn = divmod(number, len(config.tasks))
        epoch, place = divmod(before, len(states))
        task = config.tasks[turn]
        order = np.random.default_rng([config.seed, task, epoch]).permutation(states)
        prompts.append((task, int(order[place])))
    return prompts


def further_prompts(config: TrainStage, step: int, extra: int, count: int) -> list[tuple[int, int]]:
    """Prompts of the `extra`-th further round (from 1) of a step, decided by (seed, step, round).

    Tasks take turns here, too, in an order that is drawn: a round may be shorter than there are tasks. States
    are drawn at random.
    """
    rng = np.random.default_rng([config.seed, step, extra])
    order = rng.permutation(config.tasks)
    states = list(config.protocol.train_states())
    return [(int(order[k % len(order)]), int(rng.choice(states))) for k in range(count)]


def episode_specs(
    config: TrainStage, step: int, prompts: Iterable[tuple[int, int]], first_group: int = 0
) -> list[EpisodeSpec]:
    """The rollouts of some prompts, group after group, each with a seed of its own."""
    # The references `matched_prefix` are made of the policy's own pictures.
    own_pictures = config.reward.references == "matched_prefix"
    frames = config.world_model.frames if config.world_model and not own_pictures else 0
    specs = []
    for group, (task, state) in enumerate(prompts, first_group):
        for member in range(config.train.group_size):
            seed = int(np.random.SeedSequence([config.seed, step, group, member]).generate_state(1)[0])
            specs.append(EpisodeSpec(config.suite, task, state, seed, config.train.temperature, frames))
    return specs


# Rolling out.


@dataclass(frozen=True)
class Outcome:
    """What every process knows of an episode that ran; the episode itself stays where it was run.

    number    of the episode in its step, over all processes
    tokens    action tokens within the episode: those that the loss counts
    distance_to_goal  metres to the goal at its end
    """

    number: int
    group: int
    spec: EpisodeSpec
    success: bool
    steps: int
    tokens: int
    distance_to_goal: float


@dataclass(frozen=True)
class Batch:
    """The episodes of a step that ran: N of them, in the order of their specs.

    outcomes   of all processes
    episodes   this process's own, by rising number
    errors     episodes that could not be run, of all processes
    simulated  episodes that were run now, not before a restart, of all processes
    """

    outcomes: tuple[Outcome, ...] = ()
    episodes: Mapping[int, Episode] = field(default_factory=dict)
    errors: int = 0
    simulated: int = 0
    rounds: int = 0

    @property
    def success(self) -> NDArray[np.bool_]:
        return np.array([outcome.success for outcome in self.outcomes], bool)

    @property
    def tasks(self) -> NDArray[np.int64]:
        return np.array([outcome.spec.task_id for outcome in self.outcomes], np.int64)

    @property
    def groups(self) -> NDArray[np.int64]:
        return np.array([outcome.group for outcome in self.outcomes], np.int64)

    @property
    def tokens(self) -> NDArray[np.int64]:
        return np.array([outcome.tokens for outcome in self.outcomes], np.int64)

    def own(self, members: NDArray[np.bool_]) -> dict[int, Episode]:
        """Those of `members`, bool (N,), that this process ran: index in `outcomes` → episode."""
        return {
            int(k): self.episodes[number]
            for k in np.flatnonzero(members)
            if (number := self.outcomes[k].number) in self.episodes
        }

    def __add__(self, other: Batch) -> Batch:
        return Batch(
            self.outcomes + other.outcomes,
            {**self.episodes, **other.episodes},
            self.errors + other.errors,
            self.simulated + other.simulated,
            self.rounds + other.rounds,
        )


@dataclass(frozen=True)
class Collector:
    """What it takes to run episodes: this process's rollouts, the episodes it has kept, its fellows."""

    rollouts: PolicyRunner
    store: EpisodeStore
    accelerator: Accelerator

    def roll_out(
        self, specs: Sequence[EpisodeSpec], step: int, first: int, group_size: int, name: str
    ) -> Batch:
        """Run a round's episodes, numbered from `first`; each process takes every n-th of them.

        So every process has about as many of each group, and of each mini-batch, as any other. Episodes that
        could not be run are set apart, never counted as failures.
        """
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        own = {number: spec for number, spec in enumerate(specs, first) if number % world == rank}
        found = {number: self.store.get(step, spec) for number, spec in own.items()}
        episodes = {number: episode for number, episode in found.items() if episode is not None}
        numbers = {spec: number for number, spec in own.items() if number not in episodes}
        errors = 0
        show = None if self.accelerator.is_main_process else True
        with tqdm(total=len(numbers), desc=name, unit="episode", leave=False, disable=show) as bar:
            for result in self.rollouts.run(list(numbers)):
                if isinstance(result, FailedRun):
                    print(f"infrastructure error: {result.spec}: {result.error}", flush=True)
                    errors += 1
                else:
                    self.store.add(step, result)
                    episodes[numbers[result.spec]] = result
                bar.update()
        # In their order, not that in which they ended: nothing computed in batches shall depend on it.
        episodes = dict(sorted(episodes.items()))
        outcomes = [
            Outcome(
                k,
                k // group_size,
                e.spec,
                e.success,
                e.steps,
                int(e.valid.sum()),
                float(e.distance_to_goal[-1]),
            )
            for k, e in episodes.items()
        ]
        everyone = sorted(gather_object(outcomes), key=lambda outcome: outcome.number)
        simulated = sum(gather_object([len(numbers) - errors]))
        return Batch(tuple(everyone), episodes, sum(gather_object([errors])), simulated, 1)


def collect(config: TrainStage, step: int, runner: Collector) -> Batch:
    """A step's episodes: its groups, and further rounds for as many as dynamic sampling leaves out.

    DAPO (arXiv 2503.14476, section 3.2) samples until the batch is full; here `resample` bounds the rounds.
    """
    train = config.train
    prompts, name, groups, batch = sample_prompts(config, step), f"step {step}", 0, Batch()
    for extra in range(1, train.resample + 2):
        specs = episode_specs(config, step, prompts, groups)
        batch += runner.roll_out(specs, step, groups * train.group_size, train.group_size, name)
        groups += len(prompts)
        missing = train.prompts - count_groups(batch, kept_groups(train, batch))
        if missing == 0:
            break
        prompts, name = further_prompts(config, step, extra, missing), f"step {step}, further round {extra}"
    if not batch.outcomes:
        raise SystemExit(f"step {step}: no episode could be run; see the errors above")
    return batch


def kept_groups(train: Train, batch: Batch) -> NDArray[np.bool_]:
    """For each episode, whether dynamic sampling keeps its group: bool (N,)."""
    success, groups = torch.from_numpy(batch.success), torch.from_numpy(batch.groups)
    return keep_groups(success, groups, *train.keep_success).numpy()


def count_groups(batch: Batch, members: NDArray[np.bool_]) -> int:
    """Groups that have one of these episodes: bool (N,)."""
    return len(np.unique(batch.groups[members]))


def evaluation_specs(config: TrainStage) -> list[EpisodeSpec]:
    """Greedy episodes of every task from its first test states, as `srpo.evaluate` runs them."""
    states = list(config.protocol.test_states())[: config.train.evaluate_states]
    return [EpisodeSpec(config.suite, task, state, state, 0.0) for task in config.tasks for state in states]
