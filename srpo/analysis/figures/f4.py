"""Figure F4: exploration: end-effector positions of two variants, in space and in three projections.

Both variants are shown on the same tasks and initial states, an episode each. How much they visit is compared
by the voxels that as many positions of either would occupy (`srpo.analysis.exploration`), and tested by
swapping the two variants' episodes of a state at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from numpy.typing import NDArray

from srpo.analysis import exploration, style, text
from srpo.analysis.drawn import Drawn
from srpo.config import EvaluateStage
from srpo.config.sheets import SheetRow, labels
from srpo.results import ResultError
from srpo.results.coverage import may_stop_early, read_config, require_alike, require_known
from srpo.results.rows import read_rows
from srpo.results.schemas import PATHS

PLANES = (("y", "x"), ("x", "z"), ("y", "z"))
NAMES = {"x": "x, depth (m)", "y": "y, across (m)", "z": "z, height (m)"}
CELL = 0.01
"""Side of a density cell in metres."""
LINES = 60
"""Most paths drawn in space: more are a tangle."""
SWAPS = 1_000


def make(paths: Sequence[Path], sheet: Sequence[SheetRow], allow_incomplete: bool) -> Drawn:
    """The figure from the paths.parquet of two runs of one suite."""
    positions, alone = read_paths(paths, labels(sheet))
    if alone and not (allow_incomplete or may_stop_early(paths)):
        raise ResultError(f"incomplete: {alone} episodes were run by one of the two variants only")
    table = measure(positions, labels(sheet))
    return Drawn(
        table,
        lambda: draw(table, positions),
        missing=text.lacking([], "episodes that one variant lacks", alone),
    )


def read_paths(paths: Sequence[Path], variants: Mapping[str, str]) -> tuple[pd.DataFrame, int]:
    """Positions of two variants on the (task, state) that both ran; also how many only one of them ran.

    Raises:
        ResultError: not two variants of one suite, several seeds of one, or nothing in common.
    """
    require_alike([read_config(path, EvaluateStage) for path in paths])
    positions = pd.concat([read_rows(path, PATHS) for path in paths], ignore_index=True)
    require_known(positions["variant"], variants)
    ran = [variant for variant in variants if variant in set(positions["variant"])]
    if len(ran) != 2 or positions["suite"].nunique() != 1:
        raise ResultError(f"needs paths of two variants in one suite, not of {ran}")
    if (positions.groupby("variant")["seed"].nunique() > 1).any():
        raise ResultError("needs one seed a variant: episodes are compared one to one")
    episodes = positions.groupby(["task_id", "init_state"])["variant"].nunique()
    both = episodes[episodes == 2].index
    if both.empty:
        raise ResultError("the two variants have no task and state in common")
    shared = positions[positions.set_index(["task_id", "init_state"]).index.isin(both)]
    order = pd.Categorical(shared["variant"], ran, ordered=True)
    shared = shared.assign(variant=order).sort_values(["variant", "task_id", "init_state", "step"])
    return shared.reset_index(drop=True), len(episodes) - len(both)


def measure(positions: pd.DataFrame, labels: Mapping[str, str], seed: int = 0) -> pd.DataFrame:
    """The tidy table, a row a variant: what `srpo.analysis.exploration` measures.

    `voxels_at_equal_positions` takes as many positions of both as the shorter one has; `p_value` (two-sided)
    is of its difference when the two variants' episodes of a (task, state) are swapped at random.
    """
    variants = list(positions["variant"].cat.categories)
    of = {name: _episodes(positions[positions["variant"] == name]) for name in variants}
    fewest = min(sum(map(len, paths)) for paths in of.values())
    p_value = swap_test(of[variants[0]], of[variants[1]], np.random.default_rng(seed))
    rows = []
    for name in variants:
        group = positions[positions["variant"] == name]
        per_episode = group.groupby(["task_id", "init_state"])["success"].first()
        rows.append(
            {
                "suite": group["suite"].iloc[0],
                "variant": name,
                "label": labels[name],
                "seed": group["seed"].iloc[0],
                "episodes": len(of[name]),
                "successes": int(per_episode.sum()),
                "positions": len(group),
                "occupied_voxels": exploration.occupied_voxels(of[name]),
                "equal_positions": fewest,
                "voxels_at_equal_positions": exploration.expected_voxels(of[name], fewest),
                "entropy_bits": exploration.occupancy_entropy(of[name]),
                "hull_litres": 1000 * exploration.hull_volume(of[name]),
                "edge_m": exploration.EDGE,
                "p_value": p_value,
            }
        )
    return pd.DataFrame(rows)


def _episodes(rows: pd.DataFrame) -> list[NDArray[np.float64]]:
    groups = rows.groupby(["task_id", "init_state"], sort=True)
    return [path[["x", "y", "z"]].to_numpy() for _, path in groups]


def swap_test(
    first: Sequence[NDArray[np.float64]],
    second: Sequence[NDArray[np.float64]],
    rng: np.random.Generator,
    swaps: int = SWAPS,
) -> float:
    """Two-sided p of no difference in voxels at equal positions, between paths that belong together in pairs.

    If the variant made no difference, each pair could as well have come the other way round.
    """
    # Floats multiply faster; the counts are exact in them.
    table = exploration.voxel_table([*first, *second]).astype(np.float64)
    one, other = table[: len(first)], table[len(first) :]
    ones, others = one.sum(axis=0), other.sum(axis=0)
    moved = other - one  # what a swap moves from the second variant to the first

    def difference(turned: NDArray[np.bool_]) -> float:
        move = turned @ moved
        counts = (ones + move).astype(np.int64), (others - move).astype(np.int64)
        positions = int(min(count.sum() for count in counts))
        return exploration.rarefied(counts[1], positions) - exploration.rarefied(counts[0], positions)

    observed = abs(difference(np.zeros(len(first), dtype=bool)))
    turns = rng.random((swaps, len(first))) < 0.5
    extreme = sum(abs(difference(turned)) >= observed - 1e-9 for turned in turns)
    return (extreme + 1) / (swaps + 1)  # the observed order is one of the possible ones


def draw(table: pd.DataFrame, positions: pd.DataFrame) -> Figure:
    """A row a variant: paths in space, then the density of positions in three planes, all to one scale."""
    limits = {}
    for axis in "xyz":
        values = positions[axis]
        limits[axis] = (float(np.floor(values.min() * 20) / 20), float(np.ceil(values.max() * 20) / 20))
    widths = [limits[plane[0]][1] - limits[plane[0]][0] for plane in PLANES]
    counts = {
        (name, plane): _density(positions[positions["variant"] == name], plane, limits)
        for name in table["variant"]
        for plane in PLANES
    }
    norm = LogNorm(1, max(2, *(int(count.max()) for count in counts.values())))
    figure = Figure(figsize=(style.FULL_WIDTH, 1.8 * len(table)), layout="constrained")
    rows = figure.subfigures(len(table), 1, squeeze=False)[:, 0]
    for row, facts in zip(rows, table.to_dict("records"), strict=True):
        name = facts["variant"]
        colour, _ = style.look(name)
        row.suptitle(
            f"{facts['label']}: {facts['successes']}/{facts['episodes']} solved, "
            f"{facts['voxels_at_equal_positions']:,.0f} voxels of {100 * facts['edge_m']:.0f} cm "
            f"in {facts['equal_positions']:,} positions",
            color=colour,
            fontsize=8,
        )
        grid = row.add_gridspec(1, 4, width_ratios=[0.8 * max(widths), *widths])
        _space(
            row.add_subplot(grid[0], projection="3d"), positions[positions["variant"] == name], limits, colour
        )
        panels = [row.add_subplot(grid[column + 1]) for column in range(len(PLANES))]
        for axes, plane in zip(panels, PLANES, strict=True):
            edges = [*limits[plane[0]], *limits[plane[1]]]
            seen = np.ma.masked_equal(counts[name, plane].T, 0)
            picture = axes.imshow(
                seen,
                norm=norm,
                cmap=style.DENSITY,
                origin="lower",
                extent=tuple(edges),
                interpolation="nearest",
            )
            axes.set(xlabel=NAMES[plane[0]], ylabel=NAMES[plane[1]])
            axes.grid(visible=False)  # it would lie over the picture
            axes.xaxis.set_major_locator(MultipleLocator(0.2))
            axes.yaxis.set_major_locator(MultipleLocator(0.2))
        row.colorbar(picture, ax=panels, label="positions a cell", shrink=0.7, pad=0.01)
    return figure


def _density(
    rows: pd.DataFrame, plane: tuple[str, str], limits: dict[str, tuple[float, float]]
) -> NDArray[np.float64]:
    sides = [np.arange(*limits[axis], CELL) for axis in plane]
    edges = [np.append(side, side[-1] + CELL) for side in sides]
    return np.histogram2d(rows[plane[0]], rows[plane[1]], edges)[0]


def _space(axes: Any, rows: pd.DataFrame, limits: dict[str, tuple[float, float]], colour: str) -> None:
    paths = _episodes(rows)
    for path in paths[:: -(-len(paths) // LINES)]:
        axes.plot(*path.T, color=colour, linewidth=0.4, alpha=0.6)
    axes.set(xlim=limits["x"], ylim=limits["y"], zlim=limits["z"])
    axes.set_box_aspect([high - low for low, high in limits.values()], zoom=1.15)
    axes.tick_params(labelsize=4.5, pad=-4)
    for axis, letter in ((axes.xaxis, "x"), (axes.yaxis, "y"), (axes.zaxis, "z")):
        axis.set_major_locator(MultipleLocator(0.2))
        axis.set_label_text(letter, fontsize=6)
        axis.labelpad = -14 if letter == "z" else -12  # its label would lie on the next panel's
