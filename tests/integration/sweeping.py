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
import torch
import yaml
from pydantic import BaseModel

from srpo.config import Encoder, LanguageModel, Policy, Protocol
from srpo.envs.libero import load_task
from srpo.policies.openvla_oft import OpenVLAOFT, create_policy
from srpo.policies.processing import make_tokenizer

SUITE: Literal["libero_goal"] = "libero_goal"
STOVE, BOWL = 7, 8
PROTOCOL = Protocol(
    profile="held_out", max_steps=30, settle_steps=10, env_seed=0, image_size=64, render="fast"
)
SWEEP = np.array([-0.49, 0.66, -0.85, 0.0, 0.0, 0.68, 1.0])
SPREAD = np.array([0.25, 0.25, 0.25, 0.0, 0.0, 0.3, 0.0])
SETTINGS = Policy(
    name="sweeping",
    checkpoint=None,
    revision=None,
    image_size=32,
    crop_area=0.9,
    proprio=True,
    learned_placeholders=True,
    encoders=(
        Encoder(
            patch_size=8,
            hidden_size=32,
            depth=1,
            heads=2,
            mlp_ratio=2.0,
            registers=0,
            cls_token=False,
            layer_scale=False,
            read_block=-1,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
    ),
    llm=LanguageModel(
        hidden_size=32,
        intermediate_size=64,
        layers=2,
        heads=2,
        vocab_size=640,
        padding=0,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
    ),
)


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
