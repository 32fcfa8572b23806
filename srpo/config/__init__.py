"""The typed configuration: what every setting is, and how one run's settings are put together.

This package imports nothing heavy (no torch, no simulator): the workflow parses it in every job.

A *stage* (demonstrations, world model, SFT, RL, evaluation, ...) is configured by one frozen model that
holds only the sections the stage reads, so that a change in one section reruns only the stages that use it.

    fields, protocol, demos, policy, ...   the sections, a module each or for a few related ones
    stages, parallel, preset               what the sections are put together to
    loading                                YAML → models, with errors that name file, key and fix
    layers, sheets, resolve, plan          the files of `configs/` → every stage of a preset's runs
    docs                                   what is generated from all this
"""

from srpo.config.demos import Demos
from srpo.config.evaluate import DIMENSIONS, STYLES, Dimension, Evaluate, Plus, RewardBenchmark, Values
from srpo.config.fields import SUITES, TASKS_PER_SUITE, Section, Suite
from srpo.config.loading import ConfigError, did_you_mean, load_stage, read_yaml, validate
from srpo.config.parallel import Layout, Parallel
from srpo.config.policy import Encoder, LanguageModel, Lora, Policy
from srpo.config.preset import Preset, Table
from srpo.config.protocol import CONTROL_HZ, PROFILES, Profile, Protocol
from srpo.config.reward import Reward
from srpo.config.sft import Sft
from srpo.config.stages import (
    STAGES,
    DemosStage,
    EvaluateStage,
    PlusStage,
    RewardBenchmarkStage,
    RunStage,
    Settings,
    SftStage,
    Stage,
    TrainStage,
    ValuesStage,
    WorldModelStage,
)
from srpo.config.train import Aggregate, Branching, Offline, Train
from srpo.config.world_model import FrameSelection, Pretraining, WorldModel

__all__ = [
    "CONTROL_HZ",
    "DIMENSIONS",
    "PROFILES",
    "STAGES",
    "STYLES",
    "SUITES",
    "TASKS_PER_SUITE",
    "Aggregate",
    "Branching",
    "ConfigError",
    "Demos",
    "DemosStage",
    "Dimension",
    "Encoder",
    "Evaluate",
    "EvaluateStage",
    "FrameSelection",
    "LanguageModel",
    "Layout",
    "Lora",
    "Offline",
    "Parallel",
    "Plus",
    "PlusStage",
    "Policy",
    "Preset",
    "Pretraining",
    "Profile",
    "Protocol",
    "Reward",
    "RewardBenchmark",
    "RewardBenchmarkStage",
    "RunStage",
    "Section",
    "Settings",
    "Sft",
    "SftStage",
    "Stage",
    "Suite",
    "Table",
    "Train",
    "TrainStage",
    "Values",
    "ValuesStage",
    "WorldModel",
    "WorldModelStage",
    "did_you_mean",
    "load_stage",
    "read_yaml",
    "validate",
]
