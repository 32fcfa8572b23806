"""A very small random policy that turns on the stove in some episodes.

Untrained, its action tokens are nearly uniform, so its actions are spread over the range of its action
statistics. That range is set around a steady sweep towards the knob of libero_goal's stove: some episodes of
task 7 succeed within 30 steps and others do not, as reinforcement learning needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import yaml
from pydantic import BaseModel

from srpo.config import Protocol
from srpo.envs.libero import load_task
from srpo.policies.checkpoints import create_policy
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.policies.prompts import make_tokenizer
from support.policies import ENCODER, LLM, small_settings
from support.stages import PIXEL, training_stage

SUITE: Literal["libero_goal"] = "libero_goal"
STOVE, BOWL = 7, 8
PROTOCOL = Protocol(
    profile="held_out", max_steps=30, settle_steps=10, env_seed=0, image_size=64, render="fast"
)
SWEEP = np.array([-0.49, 0.66, -0.85, 0.0, 0.0, 0.68, 1.0])
SPREAD = np.array([0.25, 0.25, 0.25, 0.0, 0.0, 0.3, 0.0])
SETTINGS = small_settings(
    name="sweeping",
    image_size=32,
    crop_area=0.9,
    encoders=(
        ENCODER.model_copy(update={"hidden_size": 32, "depth": 1, "mean": (0.5,) * 3, "std": (0.5,) * 3}),
    ),
    llm=LLM.model_copy(update={"hidden_size": 32, "intermediate_size": 64, "padding": 0}),
)
TRAINING = training_stage(
    {
        "prompts": 2, "group_size": 2, "learning_rate": 1e-3, "minibatch": 1, "microbatch": 5, "kl": 0.01,
        "grad_clip": 1.0, "evaluate_every": 2, "evaluate_states": 1, "trackers": ("tensorboard",),
    },
    {"shaping": "siirl"},
).model_copy(
    update={
        "tasks": (STOVE,),
        "protocol": PROTOCOL,
        "variant": "srpo-pixel",
        "world_model": PIXEL.model_copy(update={"frames": 8, "image_size": 8}),
    }
)  # fmt: skip
"""Three RL steps of two groups."""


def sweeping_policy() -> OpenVLAOFT:
    """The policy, always with the same weights."""
    statistics: dict[str, Any] = {
        SUITE: {
            "action": {
                "q01": (SWEEP - SPREAD).tolist(),
                "q99": (SWEEP + SPREAD).tolist(),
                "mask": [True] * 7,
            },
            "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8},
        }
    }
    instructions = [load_task(SUITE, task).language for task in (STOVE, BOWL)]
    torch.manual_seed(0)
    return create_policy(SETTINGS, make_tokenizer(instructions, 384), statistics).eval()


def write_config(path: Path, stage: BaseModel) -> Path:
    """Write a resolved stage as command lines read it."""
    path.write_text(yaml.safe_dump(json.loads(stage.model_dump_json())))
    return path


def without_times(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a result file without the columns that differ between equal runs."""
    return rows[[name for name in rows if "second" not in str(name) and "memory" not in str(name)]]
