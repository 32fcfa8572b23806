"""The schemas of the result files: each column's type, meaning and allowed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from srpo.config import DIMENSIONS, PROFILES, STYLES


@dataclass(frozen=True)
class Column:
    """One column: its type, what it means, and which values it may hold."""

    kind: Literal["str", "int", "float", "bool"]
    meaning: str
    optional: bool = False
    """May be null (empty in a CSV)."""
    values: tuple[str, ...] = ()
    """The values allowed; empty: any."""


@dataclass(frozen=True)
class Schema:
    """The columns of one kind of file, in order."""

    name: str
    row: str
    """What one row is."""
    columns: Mapping[str, Column]
    added: Mapping[str, Any] = field(default_factory=dict)
    """Columns that files of older versions lack, and what they are read as there."""
    remedy: str = ""
    """What makes such a file again where an older one cannot be read."""

    def arrow(self) -> pa.Schema:
        """The same as a pyarrow schema: utf8, int64, float64, bool."""
        types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
        return pa.schema([pa.field(n, types[c.kind], nullable=c.optional) for n, c in self.columns.items()])


EPISODES = Schema(
    "episodes.parquet",
    "an evaluated episode; LIBERO and LIBERO-Plus share the schema",
    {
        "preset": Column("str", "preset of the run"),
        "suite": Column("str", "LIBERO suite, e.g. `libero_spatial`"),
        "task_id": Column(
            "int", "number of the task in its suite, from 0; for LIBERO-Plus that of the base task"
        ),
        "task": Column("str", "LIBERO's name of the (base) task"),
        "init_state": Column("int", "number of the initial state, from 0"),
        "seed": Column("int", "seed of the run that made the policy"),
        "episode_seed": Column("int", "seed of the episode: action sampling and random perturbations"),
        "temperature": Column("float", "sampling temperature; 0 is greedy decoding"),
        "policy": Column("str", "name of the policy's configuration, e.g. `tiny`"),
        "variant": Column("str", "the run's name in its sheet (`configs/experiments/`), e.g. `sft`, `grpo`"),
        "benchmark": Column(
            "str", "which benchmark the episode belongs to", values=("libero", "libero_plus")
        ),
        "perturbation": Column(
            "str", "LIBERO-Plus dimension, or ours (`style_…`); null for LIBERO", True, DIMENSIONS + STYLES
        ),
        "perturbation_task": Column(
            "str", "LIBERO-Plus' official task name, or ours (`…_style_…`); null for LIBERO", True
        ),
        "perturbation_parameters": Column(
            "str", "the perturbation's parameters, as JSON; null for LIBERO", True
        ),
        "status": Column(
            "str",
            "how it ended; `infra_error` is an episode that could not be run, `unavailable` one that cannot "
            "run here (its assets are not there), `stopped` one that was not run, for the comparison was "
            "decided (`stop_early`): none is a failed one",
            values=("success", "failure", "infra_error", "unavailable", "stopped"),
        ),
        "error": Column("str", "why it could not be, or was not, run; null where it was", True),
        "steps": Column("int", "control steps taken, settling steps not counted"),
        "max_steps": Column("int", "control steps after which the episode has failed"),
        "profile": Column("str", "protocol profile", values=tuple(PROFILES)),
        "protocol": Column("str", "the whole protocol and MuJoCo's version (`mujoco`), as JSON"),
        "wall_seconds": Column("float", "seconds the episode took"),
        "video": Column("str", "path of its video from the folder of this file, if there is one", True),
    },
    added={"temperature": 0.0},
)

RL_METRICS = Schema(
    "metrics.csv (RL)",
    "an RL step (offline: a pass over the fixed set of rollouts); steps count from 1, each once",
    {
        "step": Column("int", "RL step, from 1"),
        "episodes": Column("int", "rollouts that finished (infrastructure errors are not among them)"),
        "successes": Column("int", "successful rollouts"),
        "success_rate": Column("float", "successes / episodes; null without episodes", True),
        "infra_errors": Column("int", "rollouts, and branches, that could not be run"),
        "rounds": Column("int", "rounds of rollouts: 1, and those that made up for groups left out"),
        "policy_lag": Column(
            "int",
            "updates that the policy which rolled out lacked: 1 from step 2 on with `train.overlap`",
        ),
        "groups": Column("int", "groups of which a rollout finished"),
        "groups_kept": Column(
            "int", "groups left by dynamic sampling; the update learns from those whose rewards differ"
        ),
        "filtered_advantage": Column(
            "float",
            "share of the squared advantages, with rewards before any filter, in groups that dynamic "
            "sampling leaves out; null: all advantages are 0",
            True,
        ),
        "groups_without_signal": Column(
            "int",
            "groups whose (shaped) rewards, or values by branching, are equal, or that were left out before "
            "rewards",
        ),
        "groups_without_signal_outcome": Column("int", "groups whose 0/1 outcomes are all equal"),
        "clusters": Column("int", "DBSCAN clusters of the successes, summed over tasks"),
        "fallbacks": Column("int", "tasks where no cluster was found and the mean of the successes was used"),
        "unshaped_tasks": Column(
            "int",
            "tasks without a shaped failure: rewards are by the outcome alone, or there was no reference or "
            "no failure",
        ),
        "compared_with_earlier": Column("int", "failures compared with successes of earlier steps"),
        "failure_reward_mean": Column("float", "mean reward of the failures; null without failures", True),
        "reward_histogram": Column("str", "rewards in ten equal bins from 0 to 1, as a JSON list of counts"),
        "distance_mean": Column(
            "float", "mean distance of failures to the nearest reference; null: none", True
        ),
        "distance_min": Column("float", "smallest of these distances; null: none", True),
        "distance_max": Column("float", "largest of these distances; null: none", True),
        "loss": Column("float", "mean loss of the mini-batches; null: no update", True),
        "kl": Column("float", "mean k3 estimate of KL(policy ‖ SFT policy); null: not computed", True),
        "update_kl": Column(
            "float",
            "mean k3 estimate, a token, of KL(rollout policy ‖ policy) before each mini-batch's optimiser "
            "step: how far those before it went; null: no update",
            True,
        ),
        "clip_fraction": Column(
            "float",
            "share of tokens whose ratio (offline: weight) was clipped, each weighed as in the loss: by "
            "`train.aggregate` `trajectory` all rollouts count alike; null: no update",
            True,
        ),
        "entropy": Column(
            "float",
            "mean entropy of the action tokens, nats, weighed like `clip_fraction`; null: no update",
            True,
        ),
        "grad_norm": Column("float", "mean gradient norm before clipping; null: no update", True),
        "learning_rate": Column("float", "learning rate of the step"),
        "evaluation_episodes": Column("int", "greedy episodes on test states after the step"),
        "evaluation_success_rate": Column("float", "their success rate; null: no evaluation", True),
        "environment_steps": Column(
            "int",
            "control steps of the rollouts that finished, and of the branches: what the step cost; offline 0 "
            "after step 1, whose rollouts the others use",
        ),
        "branches": Column("int", "branches from moments of the rollouts that finished (`train.branching`)"),
        "branch_steps": Column("int", "control steps of these, of `environment_steps`"),
        "seconds_rollout": Column(
            "float",
            "seconds of rolling out; with `train.overlap` those in which the step did nothing else: for the "
            "next step's rollouts after its own update, and in a run's first step for its own",
        ),
        "seconds_encode": Column("float", "seconds of encoding videos and shaping rewards"),
        "seconds_update": Column("float", "seconds of the update"),
        "seconds_evaluate": Column("float", "seconds of the evaluation"),
        "seconds_total": Column(
            "float", "sum of these four, the step's time on the clock; writing a checkpoint is not in it"
        ),
        "episodes_per_second": Column(
            "float",
            "rollouts and branches run / the seconds that they took, beside an update or not; null where "
            "none was run in this step, or all before a restart",
            True,
        ),
        "memory_mb": Column(
            "float",
            "resident memory of the main process and its simulators at the step's end; null: not recorded",
            True,
        ),
        "gpu_memory_mb": Column("float", "most memory that torch had on its GPU so far; null: no GPU", True),
    },
    added={
        "rounds": 1,
        "policy_lag": 0,
        "filtered_advantage": None,
        "compared_with_earlier": 0,
        "reward_histogram": "[]",
        "distance_min": None,
        "distance_max": None,
        "update_kl": None,
        "branches": 0,
        "branch_steps": 0,
        "evaluation_episodes": 0,
        "evaluation_success_rate": None,
        "seconds_evaluate": 0.0,
        "episodes_per_second": None,
        "memory_mb": None,
        "gpu_memory_mb": None,
    },
)

TASK_METRICS = Schema(
    "tasks.csv",
    "a task in an RL step that had episodes of it",
    {
        "step": Column("int", "RL step, from 1"),
        "task_id": Column("int", "number of the task in its suite, from 0"),
        "episodes": Column("int", "rollouts that finished"),
        "successes": Column("int", "successful rollouts"),
        "success_rate": Column("float", "successes / episodes"),
        "invalid": Column("int", "rollouts whose embedding was broken: left out of the update"),
        "clusters": Column("int", "DBSCAN clusters of the successes"),
        "fallback": Column("bool", "whether no cluster was found and the mean of the successes was used"),
        "compared_with_earlier": Column("int", "failures compared with successes of earlier steps"),
        "unshaped": Column("str", "why failures were not shaped; null: they were", True),
        "distance_mean": Column(
            "float", "mean distance of failures to the nearest reference; null: none", True
        ),
        "failure_reward_mean": Column("float", "mean reward of the failures; null without failures", True),
    },
    added={"compared_with_earlier": 0},
)

SFT_METRICS = Schema(
    "metrics.csv (SFT)",
    "a logged update of supervised fine-tuning, with means over the updates since the row before",
    {
        "update": Column("int", "optimiser update"),
        "loss": Column("float", "mean total loss: cross-entropy, and the auxiliary loss by its weight"),
        "cross_entropy": Column("float", "mean cross-entropy of the action tokens, nats a token"),
        "position_error": Column(
            "float", "mean absolute error of the expected xyz actions, in normalised units (full range 2)"
        ),
        "learning_rate": Column("float", "learning rate of the update"),
        "seconds": Column("float", "seconds of training so far, interruptions left out"),
    },
)

DISTANCE_TO_GOAL = (
    "metres that the hand still had to go to the goal at the end, as the simulator knows it; 0: solved"
)

REWARDS = Schema(
    "rewards.parquet",
    "a rollout of RL training whose reward could be used, with what it was rewarded",
    {
        "step": Column("int", "RL step, from 1"),
        "group": Column("int", "number of the rollout's group within the step"),
        "suite": Column("str", "LIBERO suite"),
        "task_id": Column("int", "number of the task in its suite, from 0"),
        "init_state": Column("int", "number of the initial state, from 0"),
        "episode_seed": Column("int", "seed of the rollout's action sampling"),
        "success": Column("bool", "whether the task was solved"),
        "steps": Column("int", "control steps taken"),
        "distance_to_goal": Column("float", DISTANCE_TO_GOAL),
        "distance": Column(
            "float",
            "L2 distance of embeddings to the nearest reference (`simulator`: metres to the goal); "
            "null: success, or nothing to shape",
            True,
        ),
        "reward": Column("float", "reward, 0 to 1"),
        "advantage": Column(
            "float",
            "group-normalised reward; 0 in a group left out before rewards. Offline by steps, and by "
            "branching: mean over the episode's chunks",
        ),
        "kept": Column("bool", "whether dynamic sampling kept the group"),
    },
)

BENCHMARK = Schema(
    "reward benchmark",
    "a labelled trajectory scored under one representation",
    {
        "suite": Column("str", "LIBERO suite"),
        "task_id": Column("int", "number of the task in its suite, from 0"),
        "trajectory": Column("int", "number of the trajectory in its file of trajectories"),
        "success": Column("bool", "whether the trajectory solved its task"),
        "steps": Column("int", "control steps of the trajectory"),
        "representation": Column("str", "name of the world model, e.g. `pixel`"),
        "spearman": Column("float", "rank correlation of progress with time; null for failures", True),
        "monotonicity": Column(
            "float", "share of steps on which progress does not fall; null for failures", True
        ),
        "final_progress": Column(
            "float", "progress of the whole trajectory, 0 to 1; null: its embedding is broken", True
        ),
        "matched_progress": Column(
            "float",
            "as final_progress, but of a failure only as much as a success of its task takes (median steps): "
            "failures last until they are cut off, so their mere length would give them away",
            True,
        ),
        "paper_spearman": Column(
            "float",
            "as spearman, with progress towards the success's own whole embedding, as the paper defines it",
            True,
        ),
        "paper_monotonicity": Column(
            "float", "share of steps on which that progress rises; null for failures", True
        ),
        "paper_final_progress": Column(
            "float", "1 for a success, which is its own reference; as final_progress for a failure", True
        ),
    },
    added=dict.fromkeys(("paper_spearman", "paper_monotonicity", "paper_final_progress")),
    remedy="score the trajectories again: `snakemake --forcerun score`",
)

CURVES = Schema(
    "reward benchmark curves",
    "a point of a labelled trajectory's progress curve under one representation",
    {
        "suite": Column("str", "LIBERO suite"),
        "task_id": Column("int", "number of the task in its suite, from 0"),
        "trajectory": Column("int", "number of the trajectory in its file of trajectories"),
        "success": Column("bool", "whether the trajectory solved its task"),
        "representation": Column("str", "name of the world model, e.g. `pixel`"),
        "step": Column("int", "control steps seen: the prefix ends after this many"),
        "distance_to_goal": Column(
            "float", "metres that the hand still had to go to the goal after `step` control steps; 0: solved"
        ),
        "distance": Column(
            "float", "L2 distance of the prefix's embedding to the mean of the task's (other) successes"
        ),
        "progress": Column("float", "1 − distance / the curve's largest distance"),
    },
)

VALUES = Schema(
    "values.parquet",
    "a moment of a labelled trajectory, with how often the policy succeeded from there",
    {
        "suite": Column("str", "LIBERO suite"),
        "task_id": Column("int", "number of the task in its suite, from 0"),
        "trajectory": Column("int", "number of the trajectory in its file of trajectories"),
        "success": Column("bool", "whether the trajectory solved its task"),
        "step": Column("int", "control steps taken until that moment"),
        "branches": Column("int", "rollouts of the policy that went on from there, and ran"),
        "successes": Column("int", "those that solved the task within the steps left"),
        "environment_steps": Column("int", "control steps of these rollouts"),
    },
)

PATHS = Schema(
    "paths.parquet",
    "where the end effector was after a control step (0: at the start) of a greedy episode on LIBERO",
    {
        "suite": Column("str", "LIBERO suite"),
        "variant": Column("str", "the run's name in its sheet"),
        "seed": Column("int", "seed of the run that made the policy"),
        "task_id": Column("int", "number of the task in its suite, from 0"),
        "init_state": Column("int", "number of the initial state, from 0"),
        "success": Column("bool", "whether the episode solved its task"),
        "step": Column("int", "control steps taken"),
        "x": Column("float", "position along the table's depth, metres, away from the robot's base"),
        "y": Column("float", "position across the table, metres, to the robot's left"),
        "z": Column("float", "height, metres"),
    },
)

SCHEMAS = (EPISODES, PATHS, RL_METRICS, TASK_METRICS, SFT_METRICS, REWARDS, BENCHMARK, CURVES, VALUES)

IDENTITY = ["suite", "variant", "seed", "benchmark", "task_id", "init_state", "perturbation_task"]
"""What makes an episode the same episode."""
