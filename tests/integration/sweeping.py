"""A very small random policy that now and then turns on the stove.

Untrained, its action tokens are near uniform, so its actions are spread over the range of its action
statistics. That range is set around a steady sweep towards the knob of libero_goal's stove: some episodes of
task 7 succeed within 30 steps and others do not, which is what there is to learn from.
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

from srpo.config import Encoder, LanguageModel, Policy, Protocol, Reward, Train, TrainStage, WorldModel
from srpo.envs.libero import load_task
from srpo.policies.checkpoints import create_policy
from srpo.policies.openvla_oft import OpenVLAOFT
from srpo.policies.prompts import make_tokenizer

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
TRAINING = TrainStage(
    preset="test",
    suite=SUITE,
    tasks=(STOVE,),
    protocol=PROTOCOL,
    variant="srpo-pixel",
    seed=5,
    world_model=WorldModel(
        name="pixel",
        kind="pixel",
        checkpoint=None,
        revision=None,
        frames=8,
        image_size=8,
        pooling=None,
        dtype="float32",
        pretraining=None,
    ),
    reward=Reward(
        shaping="siirl",
        alpha=0.8,
        scope="task",
        references="mean",
        eps=0.5,
        eps_relative=False,
        min_samples=2,
    ),
    train=Train(
        steps=3,
        prompts=2,
        group_size=2,
        temperature=1.0,
        keep_success=(0.0, 1.0),
        resample=0,
        learning_rate=1e-3,
        warmup=0.0,
        schedule="constant",
        weight_decay=0.0,
        deviation="group",
        betas=(0.9, 0.999),
        freeze_vision=False,
        minibatch=1,
        microbatch=5,
        epochs=1,
        clip_low=0.2,
        clip_high=0.28,
        kl=0.01,
        entropy=0.0,
        grad_clip=1.0,
        offline=None,
        evaluate_every=2,
        evaluate_states=1,
        target=None,
        checkpoint_every=1,
        keep_checkpoints=2,
        trackers=("tensorboard",),
    ),
)
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
    """A resolved stage as the command line reads it."""
    path.write_text(yaml.safe_dump(json.loads(stage.model_dump_json())))
    return path


def without_times(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a result file without the columns that differ between equal runs."""
    return rows[[name for name in rows if "second" not in str(name) and "memory" not in str(name)]]
