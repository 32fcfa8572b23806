"""The jobs of a preset and what each has to do: episodes, operations, bytes. Without torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from srpo.cluster import operations
from srpo.cluster.resources import GROUPS, sweep_size
from srpo.config import (
    DemosStage,
    EvaluateStage,
    PlusStage,
    Policy,
    Protocol,
    RewardBenchmarkStage,
    SftStage,
    Stage,
    TrainStage,
    ValuesStage,
    WorldModel,
    WorldModelStage,
)
from srpo.config.plan import Plan
from srpo.episode import CHUNK
from srpo.libero_plus.tasks import shards


class Flop(NamedTuple):
    """Floating-point operations of a job: of acting, of encoding for rewards, of learning."""

    act: int = 0
    encode: int = 0
    learn: int = 0


class Durations(NamedTuple):
    """Seconds of a job's parts."""

    simulate: float = 0.0
    act: float = 0.0
    encode: float = 0.0
    learn: float = 0.0

    @property
    def total(self) -> float:
        """Wall clock at best.

        Simulators and policy work at the same time on different episodes, without a barrier
        (`srpo/rollouts/pool.py`), so the slower of the two decides. Rewards need all episodes of a step, and
        learning needs the rewards.
        """
        return max(self.simulate, self.act) + self.encode + self.learn


class Job(NamedTuple):
    """One job of a rule.

    folder     of its stage (and part), below `results/<preset>/`
    after      folders of the jobs that it waits for
    flop       operations of policy and world model
    disk       bytes, of results and of a training's scratch folder
    durations  wall clock by part, s; of zeros where it is not yet estimated
    """

    rule: str
    folder: str
    after: tuple[str, ...] = ()
    episodes: int = 0
    flop: Flop = Flop()
    disk: int = 0
    durations: Durations = Durations()

    @property
    def seconds(self) -> float:
        """Wall clock, at best."""
        return self.durations.total

    @property
    def name(self) -> str:
        """What its log and benchmark are called in the workflow, e.g. `train/libero_goal/grpo/seed0`."""
        kind, *rest = self.folder.split("/")
        if kind != "runs":
            return "/".join([self.rule, *rest])
        if self.rule == "plus_shard":
            return "/".join(["plus", *rest[:3], f"shard-{rest[4]}"])
        return "/".join([self.rule, *rest[:3]])

    @property
    def output(self) -> str:
        """The first file or folder that it writes, below `results/<preset>/`."""
        folder, _, index = self.folder.rpartition("/")
        return {
            "demos": f"{self.folder}/data",
            "world_model": f"{self.folder}/checkpoint",
            "evaluate": f"{self.folder}/episodes.parquet",
            "plus_shard": f"{folder}/shard-{index}.parquet",
            "trajectories": f"{self.folder}/trajectories",
            "score": f"{self.folder}.parquet",
            "values": f"{self.folder}/values.parquet",
        }.get(self.rule, f"{self.folder}/policy")


class Kept(NamedTuple):
    """What a run leaves of its policy on disk, bytes.

    weights     in its folder of results
    checkpoint  the last one, in scratch: weights and moments as they are trained
    """

    weights: int
    checkpoint: int


def jobs_of(
    plan: Plan, folder: str, stage: Stage | WorldModelStage, kept: Kept | None = None
) -> Iterator[Job]:
    """A stage's jobs, without their durations. `kept`: of each policy (None: not counted)."""
    weights, checkpoint = kept or (0, 0)
    if isinstance(stage, WorldModelStage):
        yield Job("world_model", folder)
        return
    policy, sft = policy_of(plan, stage), plan.sft_of(stage.suite).folder
    if isinstance(stage, DemosStage):
        yield Job("demos", folder, episodes=stage.demos.per_task * len(stage.tasks))
    elif isinstance(stage, SftStage):
        after: tuple[str, ...] = (f"demos/{stage.suite}",) if stage.sft.updates else ()
        learn = stage.sft.updates * stage.sft.batch_size * operations.learning(policy)
        disk = weights + (checkpoint if stage.sft.updates else 0)
        yield Job("sft", folder, after, flop=Flop(learn=learn), disk=disk)
    elif isinstance(stage, TrainStage):
        after = (sft, *pretraining_of(plan, stage.world_model))
        disk = weights + checkpoint + scratch_bytes(stage)
        yield Job("train", folder, after, training_episodes(stage), training_flop(stage, policy), disk)
    elif isinstance(stage, EvaluateStage):
        episodes = len(stage.tasks) * stage.evaluate.episodes_per_task
        flop = acting_flop(stage, policy, episodes)
        compared: tuple[str, ...] = (f"{sft}/evaluation",) if stage.stops_early else ()
        yield Job("evaluate", folder, (folder.removesuffix("/evaluation"), *compared), episodes, flop)
    elif isinstance(stage, PlusStage):
        total, size = sweep_size(stage), stage.plus.shard_size
        for index in range(shards(total, size)):
            episodes = min(size, total - index * size)
            flop = acting_flop(stage, policy, episodes)
            compared = (f"{sft}/plus/{index}",) if stage.stops_early else ()
            after = folder.removesuffix("/plus"), *compared
            yield Job("plus_shard", f"{folder}/{index}", after, episodes, flop)
    elif isinstance(stage, RewardBenchmarkStage):
        settings = stage.reward_benchmark
        flop = acting_flop(stage, policy, settings.max_episodes)
        yield Job("trajectories", folder, (sft,), settings.max_episodes, flop)
        videos = (settings.successes + settings.failures) * settings.prefixes
        for model in stage.world_models:
            flop = Flop(encode=videos * (operations.encoding(model) or 0))
            yield Job("score", f"{folder}/{model.name}", (folder, *pretraining_of(plan, model)), flop=flop)
    elif isinstance(stage, ValuesStage):
        episodes = branches_of(stage)
        flop = acting_flop(stage, policy, episodes)
        yield Job("values", folder, (f"reward_benchmark/{stage.suite}",), episodes, flop)


def all_jobs(plan: Plan) -> list[Job]:
    """The jobs of all stages, without their durations and what stays of policies on disk."""
    return [job for folder, stage in plan.stages.items() for job in jobs_of(plan, folder, stage)]


def branches_of(stage: ValuesStage) -> int:
    """Branches from all trajectories that are asked for."""
    trajectories = stage.reward_benchmark.successes + stage.reward_benchmark.failures
    return trajectories * stage.values.points * stage.values.branches


def pretraining_of(plan: Plan, model: WorldModel | None) -> tuple[str, ...]:
    """The folder of the stage that pretrains a world model, if the preset has one."""
    folder = f"world_models/{model.name}" if model else ""
    return (folder,) if folder in plan.stages else ()


def policy_of(plan: Plan, stage: Stage) -> Policy:
    """The policy of a suite's stages: that of its SFT."""
    sft = plan.stages[plan.sft_of(stage.suite).folder]
    assert isinstance(sft, SftStage)
    return sft.policy


def queries(protocol: Protocol) -> int:
    """Policy queries of an episode that lasts as long as it may."""
    return math.ceil(protocol.max_steps / CHUNK)


def acting_flop(stage: Stage, policy: Policy, episodes: int) -> Flop:
    """Of episodes of a finished policy, which keeps its adapters beside its weights."""
    return Flop(act=episodes * queries(stage.protocol) * operations.policy_forward(policy).total)


def training_flop(stage: TrainStage, policy: Policy) -> Flop:
    """Of a training in which every group is learned from, and all episodes are encoded."""
    train, episode_queries = stage.train, queries(stage.protocol)
    rollouts = train.prompts * train.group_size
    forward = operations.policy_forward(policy).total  # adapters stand beside the weights
    learning = operations.learning(policy) + forward * (train.kl > 0)
    encoding = 0 if stage.world_model is None else operations.encoding(stage.world_model) or 0
    if train.by_step:
        encoding *= episode_queries + 1  # the episode up to each query, and all of it
    return Flop(
        training_episodes(stage) * episode_queries * forward,
        rollouts * (train.steps if train.offline is None else 1) * encoding,
        rollouts * train.steps * train.epochs * episode_queries * learning,
    )


def training_episodes(stage: TrainStage) -> int:
    """Episodes of a training, further rounds of dynamic sampling excepted. Two branches count as one.

    Branches start evenly spread over a rollout, and have half of it left on average.
    """
    train = stage.train
    rollouts = train.prompts * train.group_size
    if train.offline is not None:
        return rollouts  # collected once; the steps are passes over them
    if train.branching is not None:
        rollouts += math.ceil(rollouts * train.branching.points * train.branching.branches / 2)
    evaluations = train.steps // train.evaluate_every if train.evaluate_every else 0
    return train.steps * rollouts + evaluations * len(stage.tasks) * train.evaluate_states


def scratch_bytes(stage: TrainStage) -> int:
    """Pictures that a training keeps until its next checkpoint: for the policy and for the world model.

    With `train.overlap` those of a step more, and of one for each older checkpoint.
    """
    train = stage.train
    frames = 0 if stage.world_model is None else stage.world_model.frames
    pictures = queries(stage.protocol) + frames
    steps = train.checkpoint_every + (train.keep_checkpoints if train.overlap else 0)
    episodes = train.prompts * train.group_size * steps
    return episodes * pictures * 3 * stage.protocol.image_size**2


def uncounted(plan: Plan) -> list[str]:
    """World models whose operations are not counted: pretrained here, or of an unknown architecture."""
    used: dict[str, WorldModel] = {}
    for stage in plan.stages.values():
        models = (*getattr(stage, "world_models", ()), getattr(stage, "world_model", None))
        used |= {model.name: model for model in models if model is not None}
    return [f"pretraining of {name}" for name, model in used.items() if model.pretraining] + [
        f"encoding by {name}" for name, model in used.items() if operations.encoding(model) is None
    ]


def submissions(jobs: Iterable[Job], group_sizes: Mapping[str, int]) -> int:
    """How often `sbatch` is called.

    Args:
        group_sizes: jobs that share a submission, by the `GROUPS` of their rules (default: 1).
    """
    members: dict[tuple[str, str], int] = defaultdict(int)
    for job in jobs:
        group = GROUPS.get(job.rule, job.folder)
        members[group, group.format_map(_wildcards(job.folder))] += 1
    return sum(math.ceil(number / group_sizes.get(group, 1)) for (group, _), number in members.items())


def _wildcards(folder: str) -> dict[str, str]:
    """Of a job below `runs/<suite>/<variant>/<seed>/`."""
    return dict(zip(("suite", "any_variant", "seed"), folder.split("/")[1:], strict=False))
