"""Pictures of LIBERO-Plus's tasks beside their base tasks."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from srpo.config import STYLES, Protocol
from srpo.envs.libero import LiberoEnv
from srpo.libero_plus.data import PlusSources, plus_data
from srpo.libero_plus.perturbation import Perturbation, UnavailableTask
from srpo.libero_plus.tasks import INIT_STATE, PlusTask, parse
from srpo.runtime.files import atomic_file

SIDE = 256
"""Side of a picture, pixels."""
STOVE = "put_the_bowl_on_the_stove"
DRESSING = "pick_up_the_salad_dressing_and_place_it_in_the_basket"
PLAIN = "_view_0_0_100_0_0_initstate"
EXAMPLES = (
    *(f"{STOVE}_view_{view}_initstate_0" for view in ("30_0_100_0_0", "0_0_120_0_0", "24_15_100_0_0")),
    *(f"{STOVE}{PLAIN}_{posture}" for posture in (62, 252, 492)),
    *(f"{STOVE}_language_{rewrite}{PLAIN}_0" for rewrite in (10, 27, 41)),
    *(f"{STOVE}{PLAIN}_0_noise_{noise}" for noise in (6, 37, 46)),
    *(f"{STOVE}_{layout}" for layout in ("moved_level2_sample1", "moved_level5_sample1", "add_14")),
    *(f"{DRESSING}_{background}" for background in ("tb_12", "tb_1", "table_1")),
    *(f"{STOVE}_light_{light}" for light in (11, 15, 24)),
    *(f"{STOVE}_{style}_{number}" for style in STYLES for number in (0, 1, 2)),
)
"""Tasks of the contact sheet, three of a dimension."""


def first_pictures(name: str, sources: PlusSources) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """First pictures of the base task and of a LIBERO-Plus task, uint8 (SIDE, SIDE, 3) each.

    Raises:
        ValueError: the name is not a LIBERO-Plus task's, or the task cannot run here (`UnavailableTask`).
    """
    perturbation = Perturbation.from_task(name, sources)
    protocol = Protocol(
        profile="official", max_steps=1, settle_steps=10, env_seed=0, image_size=SIDE, render="exact",
        textures="linear",
    )  # fmt: skip
    base = LiberoEnv(perturbation.task.suite, perturbation.task.task_id, protocol)
    base.reset(INIT_STATE)
    original = base.render()
    env = perturbation.environment(base)
    with perturbation.apply(env):
        perturbation.reset(env)
        return original, perturbation.corrupt(env.render(), np.random.default_rng(0))


def show(name: str, out: Path, sources: PlusSources) -> None:
    """Write a PNG of the base task's first picture (left) and the LIBERO-Plus task's (right)."""
    both = np.concatenate(first_pictures(name, sources), axis=1)
    with atomic_file(out) as temporary:
        matplotlib.image.imsave(temporary, both, format="png")


def contact_sheet(out: Path, sources: PlusSources) -> None:
    """Write one picture with three tasks of each dimension beside their base task.

    A task that cannot run here is a grey field that says so.
    """
    rows = [EXAMPLES[k : k + 3] for k in range(0, len(EXAMPLES), 3)]
    figure = Figure(figsize=(8.4, 2.35 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 4, squeeze=False)
    for axes, names in zip(grid, rows, strict=True):
        for axis, task in zip(axes[1:], map(parse, names), strict=True):
            try:
                original, picture = first_pictures(task.name, sources)
                axes[0].imshow(original)
                axes[0].set_title("as it is", fontsize=6.5)
                axis.imshow(picture)
            except UnavailableTask:
                axis.imshow(np.full((SIDE, SIDE, 3), 200, np.uint8))
                middle, text = SIDE / 2, "unavailable without\nthe asset pack"
                axis.text(middle, middle, text, ha="center", va="center", fontsize=8)
            axis.set_title(_caption(task, sources), fontsize=6.5)
        axes[0].text(-0.05, 0.5, task.dimension, rotation=90, transform=axes[0].transAxes, va="center",
                     ha="right", fontsize=9)  # fmt: skip
        for axis in axes:
            axis.set_axis_off()
    with atomic_file(out) as temporary:
        figure.savefig(temporary, format=out.suffix[1:], dpi=80)


def _caption(task: PlusTask, sources: PlusSources) -> str:
    """A language task's instruction, in lines; another's parameters that differ from the base task's."""
    if task.dimension == "language" and sources.data is not None:
        return textwrap.fill(plus_data(sources.data).language(task.name), 38)
    changed = (item for item in task.parameters.items() if item[1] != 0 or item[0] == "style")
    return ", ".join(f"{key} {value}" for key, value in changed)
