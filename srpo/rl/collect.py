"""The episodes of an RL step: which ones are run, and running them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from srpo.config import FrameSelection, TrainStage
from srpo.episode import CHUNK, Episode, EpisodeSpec, FailedRun
from srpo.rl.advantages import keep_groups
from srpo.rollouts.episode_store import EpisodeStore
from srpo.rollouts.policy_runner import PolicyRunner, require_most_ran
from srpo.runtime.peers import ALONE, Peers
from srpo.runtime.progress import progress_bar

# Which episodes.


def sample_prompts(config: TrainStage, step: int) -> list[tuple[int, int]]:
    """The (task, initial state) of each group of a step, a function of (seed, step).

    Tasks alternate, so that a step has equally many groups of each where that is possible. A task goes
    through all of its states in a random order, then through all of them in another.
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
    """Prompts of a step's further round `extra` (from 1), in place of groups that dynamic sampling dropped.

    A function of (seed, step, round).

    Tasks alternate here too, in a random order, since a round may have fewer groups than there are tasks.
    States are random.
    """
    rng = np.random.default_rng([config.seed, step, extra])
    order = rng.permutation(config.tasks)
    states = list(config.protocol.train_states())
    return [(int(order[k % len(order)]), int(rng.choice(states))) for k in range(count)]


def episode_specs(
    config: TrainStage, step: int, prompts: Iterable[tuple[int, int]], first_group: int = 0
) -> list[EpisodeSpec]:
    """The rollouts of some prompts, group after group, each with its own seed."""
    frames = 0
    selection: FrameSelection = "even"
    if config.train.by_step:
        frames = 1  # the last, after the images that the policy saw
    elif config.world_model is not None and config.reward.references != "matched_prefix":
        # `matched_prefix` takes the images that the policy saw.
        frames, selection = config.world_model.frames, config.world_model.frame_selection
    specs = []
    for group, (task, state) in enumerate(prompts, first_group):
        for member in range(config.train.group_size):
            seed = int(np.random.SeedSequence([config.seed, step, group, member]).generate_state(1)[0])
            specs.append(
                EpisodeSpec(
                    config.suite,
                    task,
                    state,
                    seed,
                    config.train.temperature,
                    frames,
                    frame_selection=selection,
                    states=config.train.branching is not None,
                )
            )
    return specs


def evaluation_specs(config: TrainStage) -> list[EpisodeSpec]:
    """Greedy episodes of every task from its first test states, as `srpo.evaluate` runs them."""
    states = list(config.protocol.test_states())[: config.train.evaluate_states]
    return [EpisodeSpec(config.suite, task, state, state, 0.0) for task in config.tasks for state in states]


# Running them.


@dataclass(frozen=True)
class Outcome:
    """What every process knows of an episode that ran; the episode itself is in the process whose own it is.

    number            of the episode in its step, over all processes
    tokens            action tokens within the episode: those that count in the loss
    distance_to_goal  metres to the goal at the episode's end
    """

    number: int
    group: int
    spec: EpisodeSpec
    success: bool
    steps: int
    tokens: int
    distance_to_goal: float

    @property
    def queries(self) -> int:
        """Of the policy, each for a chunk."""
        return -(-self.steps // CHUNK)

    @classmethod
    def of(cls, episode: Episode, number: int, group_size: int) -> Outcome:
        return cls(
            number,
            number // group_size,
            episode.spec,
            episode.success,
            episode.steps,
            tokens=int(episode.valid.sum()),
            distance_to_goal=float(episode.distance_to_goal[-1]),
        )


@dataclass(frozen=True)
class Moment:
    """A policy query of an episode, and how the branches that went on from there ended.

    number     of the episode in its step
    query      its number in the episode, from 0
    branches   that ran
    successes  of these
    steps      control steps of these
    """

    number: int
    query: int
    branches: int
    successes: int
    steps: int


@dataclass(frozen=True)
class Batch:
    """The N episodes of a step that ran, in the order of their specs.

    outcomes   of all processes
    episodes   this process's own: number → episode, by rising number
    errors     episodes and branches that could not be run, of all processes
    simulated  episodes and branches that were run now, not before a restart, of all processes
    rounds     of rollouts
    seconds    that these and the branches took, in the process that took longest
    moments    of all processes' episodes, by rising number and query; none without `train.branching`
    """

    outcomes: tuple[Outcome, ...] = ()
    episodes: Mapping[int, Episode] = field(default_factory=dict)
    errors: int = 0
    simulated: int = 0
    rounds: int = 0
    seconds: float = 0.0
    moments: tuple[Moment, ...] = ()

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

    def local_episodes(self, members: NDArray[np.bool_]) -> dict[int, Episode]:
        """Those of `members`, bool (N,), that are this process's own: index in `outcomes` → episode."""
        return {
            int(k): self.episodes[number]
            for k in np.flatnonzero(members)
            if (number := self.outcomes[k].number) in self.episodes
        }

    def count_groups(self, members: NDArray[np.bool_]) -> int:
        """How many groups have an episode among `members`, bool (N,)."""
        return len(np.unique(self.groups[members]))

    def __add__(self, other: Batch) -> Batch:
        return Batch(
            self.outcomes + other.outcomes,
            {**self.episodes, **other.episodes},
            self.errors + other.errors,
            self.simulated + other.simulated,
            self.rounds + other.rounds,
            self.seconds + other.seconds,
            self.moments + other.moments,
        )


@dataclass(frozen=True)
class Share:
    """What one process has of a round, before all have met.

    step        of the round
    group_size  of its groups
    episodes    its own that are here: number → episode
    lacking     its own that are not: number → spec
    for_others  numbers of the others' episodes that it ran, which are stored
    errors      episodes that could not be run
    simulated   episodes that were run now, not before a restart
    seconds     that it took
    """

    step: int
    group_size: int
    episodes: Mapping[int, Episode]
    lacking: Mapping[int, EpisodeSpec]
    for_others: Sequence[int]
    errors: int
    simulated: int
    seconds: float


WRITTEN_BEHIND = 2
"""Episodes that may wait to be written to the store while others are rolled out."""


@dataclass(frozen=True)
class Collector:
    """Runs episodes in all processes, each with its own simulators; stored ones are not run again.

    Every n-th episode of a round is a process's own: it keeps their images and learns from them. So every
    process has about as many of each group, and of each mini-batch, as any other, and what is computed does
    not depend on which of them simulates fastest. Whoever has simulators free runs the others' too; these
    change hands through the store.
    """

    runner: PolicyRunner
    store: EpisodeStore
    accelerator: Accelerator
    peers: Peers = ALONE

    def run_round(
        self, step: int, specs: Sequence[EpisodeSpec], label: str, group_size: int = 1, first_group: int = 0
    ) -> Batch:
        """Run some episodes, group after group, in all processes."""
        return self.gather(self.run_share(step, specs, label, group_size, first_group))

    def run_share(
        self, step: int, specs: Sequence[EpisodeSpec], label: str, group_size: int = 1, first_group: int = 0
    ) -> Share:
        """Run some episodes until none is left that no process has begun; others need not call at once.

        Episodes that could not be run are left out and counted as errors, never as failures. Of branches and
        greedy episodes only how they ended matters: their images are not kept.
        """
        started = time.perf_counter()
        world_size, rank = self.accelerator.num_processes, self.accelerator.process_index
        numbers = {spec: number for number, spec in enumerate(specs, first_group * group_size)}
        own = {number: spec for spec, number in numbers.items() if number % world_size == rank}
        stored = {number: self.store.get(step, spec) for number, spec in own.items()}
        episodes = {number: episode for number, episode in stored.items() if episode is not None}
        missing = [spec for number, spec in own.items() if number not in episodes]
        others = [spec for spec, number in numbers.items() if number not in own]
        if others:
            elsewhere = self.store.stored(step, others)
            others = [spec for spec in others if spec not in elsewhere]
        for_others, errors, simulated = [], 0, 0
        total = len(missing) if world_size == 1 else None  # others may run some
        first = self.accelerator.is_main_process
        # Flushing an episode to a disk takes a tenth of a second, in which no query would be answered.
        writing: deque[Future[None]] = deque()
        with (
            ThreadPoolExecutor(max_workers=1) as writer,
            progress_bar(first, total=total, desc=label, unit="episode", leave=False) as bar,
        ):
            for result in self.runner.run(missing, others):
                number = numbers[result.spec]
                if isinstance(result, FailedRun):
                    print(f"infrastructure error: {result.spec}: {result.error}", flush=True)
                    errors += 1
                else:
                    learns = result.spec.start is None and result.spec.temperature > 0
                    episode = result if learns else _without_images(result)
                    writing.append(writer.submit(self.store.add, step, episode))
                    if len(writing) > WRITTEN_BEHIND:
                        writing.popleft().result()
                    simulated += 1
                    if number in own:
                        episodes[number] = episode
                    else:
                        for_others.append(number)
                bar.update()
            for each in writing:
                each.result()
        lacking = {number: spec for number, spec in own.items() if number not in episodes}
        seconds = time.perf_counter() - started
        return Share(step, group_size, episodes, lacking, for_others, errors, simulated, seconds)

    def gather(self, share: Share) -> Batch:
        """The round of which each process ran a share; all must call."""
        # By the peers' store, where a process that waits sees that another has failed, or a signal.
        counts = self.peers.gather([[share.errors, share.simulated, share.seconds, share.for_others]])
        errors, simulated, seconds, for_others = zip(*counts, strict=True)
        ran = {number for numbers in for_others for number in numbers}
        given = {number: spec for number, spec in share.lacking.items() if number in ran}
        fetched = dict(zip(given, self.store.wait_for(share.step, given.values()), strict=True))
        # By number, not in the order in which they ended: batched results must not depend on that.
        episodes = dict(sorted({**share.episodes, **fetched}.items()))
        local = [Outcome.of(episode, number, share.group_size) for number, episode in episodes.items()]
        outcomes = sorted(gather_object(local), key=lambda outcome: outcome.number)
        return Batch(tuple(outcomes), episodes, sum(errors), sum(simulated), 1, max(seconds))


def _without_images(episode: Episode) -> Episode:
    # Copies: a view would keep all images in memory.
    return replace(episode, images=episode.images[:0].copy(), frames=episode.frames[:0].copy())


def collect_batch(config: TrainStage, step: int, collector: Collector, ahead: Share | None = None) -> Batch:
    """A step's episodes: its groups, and further rounds for as many as dynamic sampling leaves out.

    DAPO (arXiv 2503.14476, section 3.2) samples until the batch is full; here `resample` bounds the rounds.

    Args:
        ahead: this process's share of the first round, if that has run already.

    Raises SystemExit if too few episodes could be run.
    """
    train = config.train
    prompts, label, groups, batch = sample_prompts(config, step), f"step {step}", 0, Batch()
    share = ahead
    for extra in range(1, train.resample + 2):
        if share is None:
            specs = episode_specs(config, step, prompts, groups)
            share = collector.run_share(step, specs, label, train.group_size, first_group=groups)
        batch, share = batch + collector.gather(share), None
        groups += len(prompts)
        missing = train.prompts - batch.count_groups(kept_groups(config, batch))
        if missing == 0:
            break
        prompts, label = further_prompts(config, step, extra, missing), f"step {step}, further round {extra}"
    require_most_ran(len(batch.outcomes), batch.errors, f"step {step}")
    return batch


def kept_groups(config: TrainStage, batch: Batch) -> NDArray[np.bool_]:
    """For each episode, whether dynamic sampling keeps its group: bool (N,)."""
    if config.reward.filter == "none":
        return np.ones(len(batch.outcomes), bool)
    success, groups = torch.from_numpy(batch.success), torch.from_numpy(batch.groups)
    return keep_groups(success, groups, *config.train.keep_success).numpy()
