"""The typed configuration: what every setting is, and how one run's settings are put together.

This module imports nothing heavy (no torch, no simulator): the workflow parses it in every job.

A *stage* (demonstrations, world model, SFT, RL, evaluation, ...) is configured by one frozen model that
holds only the sections the stage reads, so that a change in one section reruns only the stages that use it.
`srpo.config.resolve` layers the YAML files and resolves them into these models.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

Model = TypeVar("Model", bound=BaseModel)


def _number(value: object) -> object:
    """YAML reads `5e-6` as a string; accept it where a number is meant."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


_Lenient = BeforeValidator(_number)
Number = Annotated[float, Field(allow_inf_nan=False), _Lenient]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), _Lenient]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), _Lenient]
Fraction = Annotated[float, Field(ge=0, le=1), _Lenient]
UnitFraction = Annotated[float, Field(gt=0, le=1), _Lenient]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
TaskIds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]

Suite = Literal["libero_spatial", "libero_object", "libero_goal", "libero_10"]
SUITES: tuple[Suite, ...] = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
TASKS_PER_SUITE = 10
Profile = Literal["official", "held_out", "held_out_20"]
PROFILES: dict[Profile, tuple[range, range]] = {
    "official": (range(50), range(50)),
    "held_out": (range(40), range(40, 50)),
    "held_out_20": (range(30), range(30, 50)),
}
"""Which of a task's 50 initial states training may use, and which evaluation uses."""


class Section(BaseModel):
    """A group of settings: unknown keys and wrong types are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Protocol(Section):
    """How episodes are run. Recorded with every result; a table never mixes two protocols."""

    profile: Profile
    """`official`: train and test on all 50 initial states (as the published stacks do).
    `held_out`: train on states 0–39, test on states 40–49.
    `held_out_20`: train on states 0–29, test on states 30–49: narrower intervals where tasks are few."""
    max_steps: PositiveInt
    """Control steps after which an episode has failed; settling steps are not counted."""
    settle_steps: NonNegativeInt
    """Steps of `[0, 0, 0, 0, 0, 0, -1]` after the initial state is set."""
    env_seed: NonNegativeInt
    """Seed of the simulator's own reset: it places fixtures and objects that initial states leave open."""
    image_size: PositiveInt
    """Side in pixels of the rendered agent-view picture."""
    render: Literal["exact", "near", "fast"]
    """`exact`: the stock picture, pixel for pixel. `near`: meshes decimated to what a pixel shows, a slightly
    different picture. `fast`: coarser meshes, no multisampling, no reflections."""
    batch: PositiveInt | None = None
    """Most observations that the policy answers at once. The last bits of its logits depend on how many it
    sees together; 1 pins them. null: 1 on a CPU, where batches gain little, 64 on a GPU."""

    def train_states(self) -> range:
        """Initial states that training may use."""
        return PROFILES[self.profile][0]

    def test_states(self) -> range:
        """Initial states that evaluation uses."""
        return PROFILES[self.profile][1]


class Demos(Section):
    """Demonstrations for supervised fine-tuning, one robomimic/LIBERO HDF5 file a task."""

    source: str
    """`expert`: record them with the scripted expert. Otherwise a folder with LIBERO's own HDF5 files."""
    per_task: PositiveInt
    """Demonstrations a task."""
    noise: NonNegative
    """Standard deviation of the noise on executed (not on labelled) actions; full action is 1."""
    seed: NonNegativeInt
    """Seed of the noise and of what else the expert draws."""


class Encoder(Section):
    """One vision transformer of the policy (a fused policy has two)."""

    patch_size: PositiveInt
    """Side of a patch in pixels."""
    hidden_size: PositiveInt
    """Width; a multiple of `heads`."""
    depth: PositiveInt
    """Blocks."""
    heads: PositiveInt
    """Attention heads."""
    mlp_ratio: Positive
    """Width of a block's MLP over `hidden_size`."""
    registers: NonNegativeInt
    """Register tokens (DINOv2 has 4, SigLIP none)."""
    cls_token: bool
    """A class token before the patches (DINOv2 has one, SigLIP none)."""
    layer_scale: bool
    """A learned factor a channel on each residual branch, as DINOv2 has."""
    read_block: int
    """The block whose output is used: -1 the last, -2 the second to last."""
    mean: Annotated[tuple[Number, Number, Number], Field(strict=False)]
    """Mean of the input's channels, subtracted from pictures in [0, 1]."""
    std: Annotated[tuple[Number, Number, Number], Field(strict=False)]
    """Standard deviation of the input's channels, divided by."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Encoder:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        return self


class LanguageModel(Section):
    """The Llama of the policy."""

    hidden_size: PositiveInt
    """Width; an even multiple of `heads`."""
    intermediate_size: PositiveInt
    """Width of the MLP."""
    layers: PositiveInt
    """Blocks."""
    heads: PositiveInt
    """Attention heads."""
    vocab_size: PositiveInt
    """Token ids before padding; the last 256 are the actions."""
    padding: NonNegativeInt
    """Rows that pad the embedding (64 in OpenVLA)."""
    rope_theta: Positive
    """Base of the rotary embeddings' wavelengths."""
    rms_norm_eps: Positive
    """Added to the mean square in RMSNorm."""

    @model_validator(mode="after")
    def _heads_divide(self) -> LanguageModel:
        if self.hidden_size % (2 * self.heads):  # rotary embeddings turn pairs of a head's numbers
            raise ValueError(f"hidden_size {self.hidden_size} is not an even multiple of heads {self.heads}")
        if self.vocab_size <= 256:
            raise ValueError(f"vocab_size {self.vocab_size} leaves no room beside the 256 action tokens")
        return self


class Lora(Section):
    """Low-rank adapters on every linear layer but the output, trained in place of the weights."""

    rank: PositiveInt
    """Rank of an adapter."""
    alpha: Positive
    """An adapter's product is scaled by this over `rank`."""


class Policy(Section):
    """An OpenVLA-OFT policy with discrete action tokens."""

    name: str
    """The file's name; recorded with every episode."""
    checkpoint: str | None
    """Start from these weights (a folder or a hub id); none: random weights. `{suite}` becomes
    libero-spatial, libero-object, libero-goal or libero10."""
    revision: str | None
    """Revision on the hub; none: the newest."""
    image_size: PositiveInt
    """Side of the policy's input picture, after the crop."""
    crop_area: UnitFraction
    """Share of the picture's area kept by the centre crop."""
    jpeg: bool = False
    """Send the picture through a JPEG round trip first, as OpenVLA-OFT's evaluation does."""
    proprio: bool
    """Feed end-effector pose and gripper (8 numbers) as one token, as OpenVLA-OFT's proprio variant does."""
    learned_placeholders: bool
    """Give each action position an input embedding of its own instead of zeros. With zeros the positions
    differ only through rotary embeddings, which costs a shallow model its first two layers."""
    encoders: Annotated[tuple[Encoder, ...], Field(strict=False, min_length=1, max_length=2)]
    """One vision transformer, or two whose features are concatenated (OpenVLA: DINOv2 and SigLIP)."""
    llm: LanguageModel
    """The language model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights in memory. With bfloat16 only adapters (`lora`) can be trained."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping its activations."""
    lora: Lora | None = None
    """Train adapters only; saved policies have them beside the weights."""

    @model_validator(mode="after")
    def _patches_divide(self) -> Policy:
        for encoder in self.encoders:
            if self.image_size % encoder.patch_size:
                raise ValueError(
                    f"image_size {self.image_size} is not a multiple of patch_size {encoder.patch_size}"
                )
        return self


class Sft(Section):
    """Supervised fine-tuning on demonstrations."""

    updates: NonNegativeInt
    """Optimiser steps; 0 takes the policy's checkpoint as it is."""
    batch_size: PositiveInt
    """Samples of one update."""
    learning_rate: Positive
    """Its highest value."""
    weight_decay: NonNegative
    """AdamW's."""
    warmup: Fraction
    """Share of the updates over which the learning rate rises; then it falls along a cosine."""
    label_smoothing: NonNegative
    """Width, in bins, of the Gaussian over neighbouring bins that replaces a one-hot target; 0 is one-hot."""
    auxiliary: NonNegative
    """Weight of a regression of the robot's proprioception from the picture alone, during SFT only."""
    stride: PositiveInt
    """Use every n-th step of a demonstration as a sample."""
    grad_clip: Positive
    """Largest norm of the gradient."""
    checkpoint_every: PositiveInt
    """Updates between resumable checkpoints."""


class Pretraining(Section):
    """How a small V-JEPA 2 is pretrained on play data."""

    scenes: TaskIds
    """libero_90 tasks whose scenes are played in; they are never evaluated."""
    episodes: PositiveInt
    """Play episodes a scene."""
    steps: PositiveInt
    """Control steps of a play episode."""
    updates: PositiveInt
    """Optimiser steps."""
    batch_size: PositiveInt
    """Clips of one update."""
    learning_rate: Positive
    """AdamW's."""
    ema: Fraction
    """Decay of the target encoder's moving average."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1), _Lenient]
    """Share of the patches that the predictor must fill in."""
    hidden_size: PositiveInt
    """Width of the encoder."""
    depth: PositiveInt
    """Blocks of the encoder."""
    heads: PositiveInt
    """Attention heads of the encoder."""
    patch_size: PositiveInt
    """Side of a patch in pixels."""
    predictor_hidden_size: PositiveInt
    """Width of the predictor."""
    predictor_depth: PositiveInt
    """Blocks of the predictor."""
    predictor_heads: PositiveInt
    """Attention heads of the predictor."""
    seed: NonNegativeInt
    """Seed of play, weights and masks."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Pretraining:
        for size, heads in (("hidden_size", "heads"), ("predictor_hidden_size", "predictor_heads")):
            if getattr(self, size) % getattr(self, heads):
                raise ValueError(
                    f"{size} {getattr(self, size)} is not a multiple of {heads} {getattr(self, heads)}"
                )
        return self


class WorldModel(Section):
    """A representation: frames of an episode to one vector."""

    name: str
    """The file's name."""
    kind: Literal["pixel", "efficientnet-lite", "image", "vjepa2"]
    """`pixel`: downsampled frames. `image`: the mean over frames of a picture encoder's embedding (DINOv2,
    CLIP or SigLIP). `efficientnet-lite`: the same with EfficientNet-Lite0, whose ImageNet weights are
    installed with this project. `vjepa2`: a V-JEPA 2 encoder of whole clips."""
    checkpoint: str | None
    """A folder or hub id of an `image` encoder or V-JEPA 2; none: the workflow pretrains a small V-JEPA 2
    (`pretraining`)."""
    revision: str | None
    """Revision on the hub; none: the newest."""
    frames: PositiveInt
    """Frames taken evenly over the whole episode."""
    image_size: PositiveInt
    """Side of the encoder's input, after the resize and centre crop of its kind (V-JEPA 2, DINOv2 and
    EfficientNet-Lite0: the short side to 256/224 of it)."""
    pooling: Literal["mean", "grid"] | None
    """For `vjepa2` alone. `mean`: over all patch tokens, as the paper does. `grid`: over each cell of a 4 × 4
    grid at each time step, side by side, which keeps when and where."""
    dtype: Literal["float32", "float16", "bfloat16"]
    """Precision of the encoder."""
    pretraining: Pretraining | None
    """How the workflow pretrains it, if it has no `checkpoint`."""

    @model_validator(mode="after")
    def _complete(self) -> WorldModel:
        if self.kind == "vjepa2" and (self.checkpoint is None) == (self.pretraining is None):
            raise ValueError("a vjepa2 world model needs either `checkpoint` or `pretraining`")
        if self.kind == "image" and (self.checkpoint is None or self.pretraining is not None):
            raise ValueError("an image world model needs `checkpoint`, and no `pretraining`")
        if self.kind == "efficientnet-lite":
            if (self.checkpoint, self.revision, self.pretraining) != (None, None, None):
                raise ValueError(
                    "an efficientnet-lite world model has its own weights: `checkpoint`, `revision` and "
                    "`pretraining` must be null"
                )
            if self.image_size != 224:
                raise ValueError(f"image_size must be 224 for efficientnet-lite, not {self.image_size}")
        if (self.kind == "vjepa2") != (self.pooling is not None):
            raise ValueError("`pooling` is for vjepa2 world models, and null for every other kind")
        if self.kind == "vjepa2" and self.frames % 2:
            raise ValueError(f"frames {self.frames} must be even: V-JEPA 2 takes them in pairs")
        if self.pretraining and self.image_size % self.pretraining.patch_size:
            patch_size = self.pretraining.patch_size
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {patch_size}")
        return self


class Reward(Section):
    """How failed trajectories are rewarded; successes always get 1."""

    shaping: Literal["paper", "siirl", "linear", "none"]
    """`paper`: α·sigmoid(−z). `siirl`: 0.6·sigmoid(10·(0.5 − m)). `linear`: α·(1 − m). `none`: 0, which is
    GRPO. z is the standardised distance to the nearest reference, m the min-max normalised one."""
    alpha: Fraction
    """Largest reward of a failure, for `paper` and `linear`."""
    scope: Literal["task", "group"]
    """Among which failures distances are normalised: all of the task's in the batch, or the group's alone."""
    references: Literal["dbscan", "mean", "medoid", "matched_prefix", "fixed_expert", "simulator"]
    """What failures are compared with. Of the batch's successes: the centres of their DBSCAN clusters, their
    mean, or their medoid. `matched_prefix`: their mean, and every episode is seen only as long as the median
    success takes, in the pictures that the policy saw, so that what a failure does in the time it has left
    until it is cut off does not count. `fixed_expert`: the expert's demonstrations, whatever the batch holds.
    `simulator`: no pictures, but the distance to the goal that a failure ended at, which the simulator knows
    and no method may see: the upper bound of a progress reward."""
    eps: Positive
    """DBSCAN's neighbourhood radius on standardised embeddings."""
    eps_relative: bool
    """Measure `eps` in units of the median pairwise distance of the successes."""
    min_samples: PositiveInt
    """Successes within `eps` that make a cluster."""

    @model_validator(mode="after")
    def _failures_earn_less(self) -> Reward:
        if self.shaping == "linear" and self.alpha == 1:
            raise ValueError("shaping `linear` with alpha 1 pays the nearest failure like a success")
        return self


class Offline(Section):
    """Advantage-weighted fine-tuning on a fixed set of rollouts."""

    beta: Positive
    """A rollout weighs exp(advantage / `beta`): the smaller, the more the best rollouts count."""
    max_weight: Annotated[float, Field(ge=1, allow_inf_nan=False), _Lenient]
    """Largest weight of a rollout."""


class Train(Section):
    """Reinforcement learning (SRPO, or GRPO when the reward's shaping is `none`)."""

    steps: PositiveInt
    """RL steps (rounds of rollouts and an update); offline, passes over the fixed set of rollouts."""
    prompts: PositiveInt
    """Groups a step: one (task, initial state) each."""
    group_size: Annotated[int, Field(ge=2)]
    """PolicyRunner a group."""
    temperature: Positive
    """Sampling temperature of the action tokens."""
    keep_success: Annotated[tuple[Fraction, Fraction], Field(strict=False)]
    """Groups whose success rate lies outside this range are left out of the update (dynamic sampling)."""
    resample: NonNegativeInt
    """Further rounds of rollouts a step at most, each with as many new groups as were left out so far."""
    learning_rate: Positive
    """AdamW's. With a `schedule`, its highest value."""
    warmup: Fraction
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["constant", "cosine"]
    """The learning rate after the warm-up: constant, or a cosine that ends at zero."""
    weight_decay: NonNegative
    """AdamW's."""
    deviation: Literal["group", "batch"]
    """What advantages are divided by: the standard deviation of each group's rewards (GRPO), or that of all
    groups' rewards of the step around their groups' means, so that a group of failures, whose rewards differ
    little, counts less than one with a success."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)]
    """Decay rates of AdamW's running means of the gradient and of its square."""
    freeze_vision: bool
    """Train neither the vision encoders nor their projector."""
    minibatch: PositiveInt
    """Groups of one optimiser step; must divide `prompts`."""
    microbatch: PositiveInt
    """Policy queries in one forward pass; changes memory, not the result."""
    epochs: PositiveInt
    """Passes over a step's rollouts."""
    clip_low: Positive
    """Lower clip of the probability ratio: 1 − this."""
    clip_high: Positive
    """Upper clip of the probability ratio: 1 + this."""
    kl: NonNegative
    """Weight of the k3 estimate of KL(policy ‖ SFT policy)."""
    entropy: NonNegative
    """Weight of an entropy bonus."""
    grad_clip: Positive
    """Largest norm of the gradient."""
    offline: Offline | None
    """Learn from a fixed set of the SFT policy's rollouts, by advantage-weighted regression; none: online."""
    evaluate_every: NonNegativeInt
    """RL steps between greedy evaluations on test states; 0: none."""
    evaluate_states: PositiveInt
    """Test states a task of such an evaluation, taken in order."""
    target: Fraction | None
    """Stop as soon as such an evaluation's success rate reaches this; none: never. F2 wants all steps."""
    checkpoint_every: PositiveInt
    """RL steps between resumable checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=2)]
    """Newest checkpoints that are kept: should one turn out damaged, the one before it serves."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], Field(strict=False)]
    """Where each step's metrics are logged besides metrics.csv; `wandb` and `trackio` must be installed."""

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if self.prompts % self.minibatch:
            raise ValueError(f"prompts {self.prompts} is not a multiple of minibatch {self.minibatch}")
        if self.keep_success[0] > self.keep_success[1]:
            raise ValueError(f"keep_success {list(self.keep_success)} must rise")
        low, high = self.keep_success
        if not any(low <= count / self.group_size <= high for count in range(self.group_size + 1)):
            raise ValueError(
                f"keep_success [{low}, {high}] leaves out every group of group_size {self.group_size}"
            )
        if max(self.betas) == 1:
            raise ValueError(f"betas {list(self.betas)} must be below 1")
        if self.target is not None and not self.evaluate_every:
            raise ValueError("target needs evaluate_every: without evaluation it is never reached")
        if self.offline is not None and self.evaluate_every:
            raise ValueError("evaluate_every must be 0 offline: no simulator is in that loop")
        return self


class Evaluate(Section):
    """Greedy evaluation on LIBERO's test states."""

    states: PositiveInt
    """Test states a task, taken in order."""


class Plus(Section):
    """LIBERO-Plus robustness sweep."""

    dimensions: Annotated[
        tuple[Literal["camera", "robot", "language", "noise", "layout", "background", "light"], ...],
        Field(strict=False, min_length=1),
    ]
    """Perturbations to run. Tasks that cannot run here become rows with status `unavailable` and a reason."""
    per_dimension: PositiveInt | None
    """A seeded sample of this many tasks a dimension, spread over the base tasks; none: all of them."""
    robot_start: Literal["official", "true_start"]
    """Robot tasks: `official`: as upstream runs them, the initial state puts the arm back and only the
    controller keeps the start posture, so the arm drifts; `true_start`: the arm begins in the posture."""
    leaked_prompt: bool
    """Outside Language: prompt with the file's name in words, which tells the perturbation, as upstream's
    `task.language` does; false: the base task's instruction."""
    assets: str | None
    """Folder of LIBERO-Plus's asset pack (`srpo libero-plus fetch-assets`); none: LIBERO's own assets, on
    which light, most backgrounds and added distractors are unavailable."""
    styles: NonNegativeInt
    """plus_style tasks a dimension: light, background and distractors in our own declared ranges, on LIBERO's
    own assets. They have columns of their own and are in no total of LIBERO-Plus. 0: none."""
    shard_size: PositiveInt
    """Tasks of one job."""
    seed: NonNegativeInt
    """Seed of that sample, and of perturbations that draw."""


class RewardBenchmark(Section):
    """Progress-reward benchmark: labelled trajectories, scored under several representations."""

    successes: PositiveInt
    """Successful trajectories to collect, a suite."""
    failures: PositiveInt
    """Failed trajectories to collect, a suite."""
    max_episodes: PositiveInt
    """Stop collecting after this many rollouts, with however many successes and failures there are."""
    temperature: Positive
    """Sampling temperature of the rollouts."""
    prefixes: Annotated[int, Field(ge=3)]
    """Points along a trajectory at which progress is measured."""
    seed: NonNegativeInt
    """Seed of the rollouts."""


class Stage(Section):
    """What every stage's resolved file holds."""

    preset: str
    suite: Suite
    tasks: TaskIds
    protocol: Protocol

    @model_validator(mode="after")
    def _tasks_exist(self) -> Stage:
        missing = [task for task in self.tasks if task >= TASKS_PER_SUITE]
        if missing:
            raise ValueError(f"{self.suite} has tasks 0–{TASKS_PER_SUITE - 1}, not {missing}")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks {list(self.tasks)} repeat")
        return self


class DemosStage(Stage):
    demos: Demos


class WorldModelStage(Section):
    """World models are shared by all suites."""

    preset: str
    protocol: Protocol
    world_model: WorldModel


class SftStage(Stage):
    variant: str
    seed: NonNegativeInt
    policy: Policy
    sft: Sft

    @model_validator(mode="after")
    def _has_weights(self) -> SftStage:
        if self.sft.updates == 0 and self.policy.checkpoint is None:
            raise ValueError("sft.updates 0 takes policy.checkpoint as it is, and there is none")
        return self


class TrainStage(Stage):
    variant: str
    seed: NonNegativeInt
    world_model: WorldModel | None
    """None for GRPO, whose reward needs no representation, and for the references `simulator`."""
    reward: Reward
    train: Train

    @model_validator(mode="after")
    def _reward_has_representation(self) -> TrainStage:
        unseen = self.reward.shaping == "none" or self.reward.references == "simulator"
        if unseen != (self.world_model is None):
            raise ValueError(
                "reward.shaping `none` and reward.references `simulator` go without a world_model, every "
                "other reward with one"
            )
        return self

    @model_validator(mode="after")
    def _prompts_exist(self) -> TrainStage:
        states = len(self.protocol.train_states())
        if self.train.prompts > len(self.tasks) * states:
            raise ValueError(
                f"train.prompts {self.train.prompts}: {len(self.tasks)} tasks × {states} states are fewer"
            )
        tests = len(self.protocol.test_states())
        if self.train.evaluate_states > tests:
            raise ValueError(
                f"train.evaluate_states {self.train.evaluate_states}: {self.protocol.profile} has {tests} "
                "test states"
            )
        return self


class EvaluateStage(Stage):
    variant: str
    seed: NonNegativeInt
    evaluate: Evaluate

    @model_validator(mode="after")
    def _states_exist(self) -> EvaluateStage:
        available = len(self.protocol.test_states())
        if self.evaluate.states > available:
            raise ValueError(
                f"evaluate.states {self.evaluate.states}: {self.protocol.profile} has {available} test states"
            )
        return self


class PlusStage(Stage):
    variant: str
    seed: NonNegativeInt
    plus: Plus


class RewardBenchmarkStage(Stage):
    reward_benchmark: RewardBenchmark
    world_models: Annotated[tuple[WorldModel, ...], Field(strict=False, min_length=1)]


STAGES: dict[str, type[Stage] | type[WorldModelStage]] = {
    "demos": DemosStage,
    "world_model": WorldModelStage,
    "sft": SftStage,
    "train": TrainStage,
    "evaluate": EvaluateStage,
    "plus": PlusStage,
    "reward_benchmark": RewardBenchmarkStage,
}


class Settings(Section):
    """What the YAML layers may say: every section, whichever stage reads it."""

    protocol: Protocol
    demos: Demos
    policy: Policy
    sft: Sft
    world_model: WorldModel
    reward: Reward
    train: Train
    evaluate: Evaluate
    plus: Plus
    reward_benchmark: RewardBenchmark


class Table(Section):
    """A table or figure of runs."""

    sheet: str
    """`configs/experiments/<sheet>.tsv`: its variants, one a row, with their labels."""
    suites: Annotated[tuple[Suite, ...], Field(strict=False, min_length=1)] | None = None
    """Show these suites; none: all of the preset."""


class Preset(Section):
    """What one call of the workflow computes: `snakemake --configfile configs/presets/<name>.yaml`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """Results stand in `results/<name>/`."""
    suites: Annotated[tuple[Suite, ...], Field(strict=False, min_length=1)]
    """LIBERO suites to run."""
    tasks: Literal["all"] | dict[Suite, TaskIds]
    """`all`, or the task ids of each suite."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(strict=False, min_length=1)]
    """Seeds of the RL runs; SFT is run once a suite, with the first."""
    policy: str
    """`configs/policies/<policy>.yaml`."""
    gpus: NonNegativeInt
    """GPUs that a job which runs the policy asks the scheduler for."""
    world_models: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """`configs/world_models/<name>.yaml` compared by the reward benchmark (T3); none: no T3."""
    tables: dict[Literal["t1", "t2", "f2", "ablations"], Table]
    """Tables and figures to make, and the runs each of them shows; runs are shared."""
    settings: dict[str, Any] = {}
    """Settings that differ from the layers below, as in `configs/base.yaml`."""
    suite_settings: dict[Suite, dict[str, Any]] = {}
    """Settings of single suites, over those above."""

    @model_validator(mode="after")
    def _complete(self) -> Preset:
        for name in ("suites", "seeds", "world_models"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} {list(values)} repeat")
        if self.tasks != "all" and set(self.tasks) != set(self.suites):
            raise ValueError(f"tasks must name the suites {list(self.suites)}, not {list(self.tasks)}")
        for suite in self.suite_settings:
            if suite not in self.suites:
                raise ValueError(f"suite_settings names {suite}, which suites does not have")
        for name, table in self.tables.items():
            outside = set(table.suites or ()) - set(self.suites)
            if outside:
                raise ValueError(f"tables: {name} shows {sorted(outside)}, which suites does not have")
        return self

    def task_ids(self, suite: Suite) -> tuple[int, ...]:
        """Task ids of a suite that this preset runs."""
        return tuple(range(TASKS_PER_SUITE)) if self.tasks == "all" else self.tasks[suite]


# Loading, and errors that a reader of YAML can act on.


class ConfigError(ValueError):
    """A configuration is wrong. The message names file, key, what is wrong and the nearest valid name."""


def did_you_mean(wrong: object, names: Iterable[str]) -> str:
    """` (did you mean ...?)` for the nearest of `names`, or all of them when none is near."""
    names = sorted(names)
    near = difflib.get_close_matches(str(wrong), names, n=1, cutoff=0.5)
    return f" (did you mean `{near[0]}`?)" if near else f" (valid: {', '.join(names)})"


def section_of(annotation: object) -> type[BaseModel] | None:
    """The model inside an annotation such as `Train`, `WorldModel | None` or `tuple[Encoder, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)


def _model_at(model: type[BaseModel], location: Iterable[int | str]) -> type[BaseModel] | None:
    found: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, str) and found is not None:
            field = found.model_fields.get(part)
            found = section_of(field.annotation) if field else None
    return found


def problems(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Translate pydantic's errors: (dotted key, what is wrong and the nearest valid name)."""
    items = error.errors(include_url=False)
    for item in items:
        location = item["loc"]
        if item["type"] == "too_short" and any(
            other["loc"][: len(location)] == location != other["loc"] for other in items
        ):
            continue  # a list is short only because its elements are wrong
        key = ".".join(map(str, location))
        if item["type"] == "extra_forbidden":
            section = _model_at(model, location[:-1])
            hint = did_you_mean(location[-1], section.model_fields) if section else ""
            yield key, f"unknown key{hint}"
        elif item["type"] == "literal_error":
            valid = re.findall(r"'([^']*)'", item["ctx"]["expected"])
            yield key, f"{item['input']!r} is not valid{did_you_mean(item['input'], valid)}"
        elif item["type"] == "missing":
            yield key, "is missing"
        elif item["type"] == "value_error":
            yield key, str(item["ctx"]["error"])
        else:
            yield key, f"{item['msg']}, not {item['input']!r}"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping (an empty file is an empty one).

    Raises ConfigError when the file is missing, is not YAML, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {values!r}, not `key: value` lines")
    return values


def validate(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """`values` as a `model`; ConfigError, a line a problem, when they are not one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [
            ": ".join(part for part in (source, key, what) if part) for key, what in problems(error, model)
        ]
        raise ConfigError("\n".join(lines)) from None


def load_stage(path: Path, stage: type[Model]) -> Model:
    """Read the resolved `config.yaml` of a stage, e.g. `load_stage(path, TrainStage)`."""
    return validate(stage, read_yaml(path), str(path))


if __name__ == "__main__":
    from srpo.config.docs import main

    main()
