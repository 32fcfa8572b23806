"""Names, numbers and notes as tables and figures print them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from srpo.config import DIMENSIONS, STYLES, RewardBenchmarkStage, TrainStage
from srpo.results.coverage import absent_runs, overlapping, read_config, read_mujoco
from srpo.results.rows import protocol_record

SUITE_LABELS = {
    "libero_spatial": "Spatial",
    "libero_object": "Object",
    "libero_goal": "Goal",
    "libero_10": "Long",
}
PERTURBATION_LABELS: dict[str, str] = {
    **{dimension: dimension.capitalize() for dimension in DIMENSIONS},
    **{style: f"{style.removeprefix('style_').capitalize()} (style)" for style in STYLES},
}
"""LIBERO-Plus's dimensions, and our own styles."""
NOT_RUN = "not run"
RATES = (
    "It is Wilson's, with episodes of several seeds on one task and initial state as one cluster, and speaks "
    "of these policies; averages are combined by MOVER."
)
DIFFERENCES = (
    "Both are of one bootstrap: training runs are drawn anew, then the tasks and initial states that both "
    "variants tried. Of a variant with one run it says nothing about other training seeds; of one with few "
    "runs it is rough."
)
BOLD = (
    "Bold: our highest, where the 95% interval of its difference to our second highest lies above 0, with "
    "runs and the tasks and states that both tried drawn anew; of one run it says nothing about other seeds."
)


def percent(value: float, sign: bool = False) -> str:
    """A fraction in percent with one decimal; – if there is none."""
    if np.isnan(value):
        return "–"
    return f"{100 * value:{'+' if sign else ''}z.1f}".replace("-", "−")


def p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


# --------------------------------------------------------------------------------------------------- protocol


def protocol_note(episodes: pd.DataFrame) -> str:
    """One line on how the episodes were run."""
    first = episodes.drop_duplicates("suite")
    caps = dict(zip(first["suite"], first["max_steps"], strict=True))
    return _protocol(protocol_record(episodes["protocol"].iloc[0]), caps)


def configured_protocol(
    configs: Sequence[TrainStage | RewardBenchmarkStage], manifests: Iterable[Path]
) -> str:
    """The same for rollouts, whose rows do not record it: from their configurations and manifests."""
    record = configs[0].protocol.model_dump() | {"mujoco": read_mujoco(manifests)}
    return _protocol(record, {config.suite: config.protocol.max_steps for config in configs})


def benchmark_protocol(scored: Sequence[Path]) -> str:
    """The same for the trajectories behind files of the reward benchmark."""
    configs = [read_config(path, RewardBenchmarkStage) for path in scored]
    manifests = {path.parent / "trajectories" / "manifest.json" for path in scored}
    return configured_protocol(configs, sorted(manifests))


def _protocol(record: Mapping[str, Any], caps: Mapping[str, int]) -> str:
    linear = "linear textures, " if record["textures"] == "linear" else ""
    most = ", ".join(f"{cap} ({SUITE_LABELS[suite]})" for suite, cap in caps.items())
    return (
        f"Protocol: {record['profile']} initial states, at most {most} steps, "
        f"{record['render']} rendering at {record['image_size']} pixels, {linear}MuJoCo {record['mujoco']}."
    )


def overlap_note(results: Iterable[Path], names: Mapping[str, str]) -> str:
    """After a space, a sentence on which variants (name → label) learnt one update off policy; or nothing."""
    variants = overlapping(results)
    labels = ", ".join(label for name, label in names.items() if name in variants)
    return f" Rolled out beside updates, one update off policy: {labels}." if labels else ""


# -------------------------------------------------------------------------------------------- what is missing


def lacking(absent: Sequence[str], things: str, number: int) -> str:
    """ "srpo on libero_goal, 3 episodes": runs that are not there, and rows of others; empty if none."""
    return ", ".join([*absent, *([f"{number} {things}"] if number else [])])


def lacking_episodes(episodes: pd.DataFrame, missing: pd.DataFrame, variants: Iterable[str]) -> str:
    """The same for what `load_episodes` gave."""
    absent = absent_runs(zip(episodes["variant"], episodes["suite"], strict=True), variants)
    return lacking(absent, "episodes", len(missing))


def infra_errors_note(number: int) -> list[str]:
    """What the counts leave out; nothing if nothing."""
    return [f"{number} episodes could not be run (infrastructure errors); no count has them."] * (number > 0)
