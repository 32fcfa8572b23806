"""Where the time of one SRPO step goes: simulate, render, policy, encode, update.

    python benchmarks/step.py --out FILE.csv [--episodes N] [--node NAME]

The `smoke` preset's SRPO, on one core and the GPU if there is one, with a policy and a V-JEPA
2 of random weights, which take as long as trained ones. Random policies seldom succeed, so every other
episode is labelled a success to give the update something to learn from.

An existing file keeps its rows of other nodes; the figure beside it has a bar for each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rollout import tiny_policy
from tqdm import tqdm
from transformers import VJEPA2Model

from srpo import optim
from srpo.config import TrainStage
from srpo.config.resolve import Resolver, load_preset
from srpo.envs.gl import choose_backend
from srpo.envs.libero import LiberoEnv
from srpo.episode import Episode, EpisodeSpec
from srpo.rl import collect, score, update
from srpo.rollouts.worker import Answer, images_shape, run_episode
from srpo.runtime.files import write_with
from srpo.world_models import load_world_model
from srpo.world_models.pretraining.jepa import architecture
from srpo.world_models.pretraining.pretrain import write_model

SUITE, VARIANT = "libero_spatial", "srpo"  # the suite is that of the preset
PARTS = {"simulate": "#0072b2", "render": "#56b4e9", "policy": "#009e73", "other": "0.7", "encode": "#e69f00",
         "reward": "#cc79a7", "update": "#d55e00"}  # fmt: skip
"""In the order of a step, with their colours; `other` is the rest of a rollout."""


class Clock:
    """Seconds spent in some functions, calls of each other included.

    Wall time if the process waits for a GPU; else processor time, so that other programs do not count.
    """

    def __init__(self, wall: bool) -> None:
        self._now = time.perf_counter if wall else time.process_time
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = self._now()
            result = function(*arguments, **options)
            self.seconds[name] += self._now() - started
            return result

        return call


def roll_out(config: TrainStage, specs: list[EpisodeSpec], policy: Any, clock: Clock) -> list[Episode]:
    """Episodes one after the other in this process."""
    envs: dict[int, LiberoEnv] = {}
    episodes = []
    for spec in tqdm(specs, desc="episodes"):
        if spec.task_id not in envs:
            envs[spec.task_id] = env = LiberoEnv(SUITE, spec.task_id, config.protocol)
            env.reset(spec.init_state)
            env.render()  # loads the scene, once a process
            env.step = clock.timed("simulate", env.step)  # type: ignore[method-assign]
            env.render = clock.timed("render", env.render)  # type: ignore[method-assign]
        env = envs[spec.task_id]
        images = np.zeros(images_shape(config.protocol, spec.frames), np.uint8)
        generator = torch.Generator().manual_seed(spec.seed)

        def act(query: int, proprio: NDArray[np.float32]) -> Answer:
            image, instructions = images[query][None], [env.task.language]  # noqa: B023
            inputs = policy.prepare_inputs(SUITE, image, instructions, proprio[None])
            tokens, log_probs = policy.act(inputs, spec.temperature, [generator])  # noqa: B023
            return Answer(policy.actions(SUITE, tokens)[0], tokens[0], log_probs[0])

        ask = clock.timed("policy", act)
        episodes.append(clock.timed("rollout", run_episode)(env, spec, None, images, ask))
    return episodes


def measure(count: int, node: str | None) -> pd.DataFrame:
    """One row per part: node, part, seconds, share, episodes, control_steps."""
    preset, source = load_preset("smoke")
    config = Resolver(preset, source).stage("train", SUITE, VARIANT, 0)
    assert isinstance(config, TrainStage) and config.world_model and config.world_model.pretraining
    torch.set_num_threads(1)
    accelerator = Accelerator()
    on_gpu = accelerator.device.type == "cuda"
    policy = tiny_policy(SUITE).to(accelerator.device)
    clock = Clock(wall=on_gpu or choose_backend() != "osmesa")
    specs = collect.episode_specs(config, 1, collect.sample_prompts(config, 1))[:count]
    episodes = roll_out(config, specs, policy, clock)
    batch = collect.Batch(
        tuple(
            replace(collect.Outcome.of(e, k, config.train.group_size), success=k % 2 == 0)
            for k, e in enumerate(episodes)
        ),
        dict(enumerate(episodes)),
    )
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = VJEPA2Model(architecture(config.world_model, config.world_model.pretraining))
        write_model(Path(folder) / "model", model)
        world_model = load_world_model(config.world_model, Path(folder) / "model")
    embeddings = clock.timed("encode", score.embed_batch)(config, batch, world_model, accelerator)
    scores = clock.timed("reward", score.score_batch)(config, batch, embeddings)
    train = config.train
    policy.make_trainable(train.freeze_vision)
    optimiser = optim.adamw(policy, train.learning_rate, train.weight_decay, train.betas)
    learner = update.Learner(policy, None, optimiser, accelerator)
    logged = clock.timed("update", update.update_policy)(config, learner, batch, scores, 1)
    assert logged["loss"] is not None, "there was nothing to learn from"
    inside = sum(clock.seconds[name] for name in ("simulate", "render", "policy"))
    clock.seconds["other"] = clock.seconds.pop("rollout") - inside
    if node is None:
        node = f"one core, {torch.cuda.get_device_name()}" if on_gpu else "one core"
    table = pd.DataFrame({"node": node, "part": list(PARTS), "seconds": [clock.seconds[p] for p in PARTS]})
    table["share"] = table["seconds"] / table["seconds"].sum()
    return table.assign(episodes=len(episodes), control_steps=sum(e.steps for e in episodes))


def draw(table: pd.DataFrame, path: Path) -> None:
    """Milliseconds a control step, stacked by part, a bar a node."""
    from matplotlib.figure import Figure

    milliseconds = 1e3 * table["seconds"] / table["control_steps"]
    wide = table.assign(ms=milliseconds).pivot(index="node", columns="part", values="ms")
    figure = Figure(figsize=(6, 0.9 + 0.45 * len(wide)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(wide))
    for part, colour in PARTS.items():
        bars = axes.barh(wide.index, wide[part], 0.6, left, color=colour, label=part)
        left += wide[part].to_numpy()
        shares = wide[part] / wide.sum(axis=1)
        axes.bar_label(
            bars, [f"{s:.0%}" if s > 0.03 else "" for s in shares], label_type="center", fontsize=6
        )
    axes.set_xlabel("milliseconds a control step")
    figure.legend(
        *axes.get_legend_handles_labels(), frameon=False, fontsize=7, ncols=7, loc="outside upper center"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of an SRPO step goes, on one core.")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write; the figure stands beside it")
    parser.add_argument("--episodes", type=int, default=24, help="episodes of the step (default: 24)")
    parser.add_argument("--node", help="what to call this machine (default: by its GPU)")
    arguments = parser.parse_args()
    table = measure(arguments.episodes, arguments.node)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    if arguments.out.exists():
        others = pd.read_csv(arguments.out)
        table = pd.concat([others[others["node"] != table["node"].iloc[0]], table])
    write_with(arguments.out, lambda temporary: table.to_csv(temporary, index=False))
    draw(table, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
