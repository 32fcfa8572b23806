"""The picture to show first: training curves, and below them an episode before and after training.

Of the filmed episodes it shows the first task on which the baseline failed and our method succeeded, from the
same initial state; without one, the first that was filmed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srpo.analysis import style, text
from srpo.analysis.drawn import Drawn
from srpo.analysis.figures.f2 import estimate, panel
from srpo.analysis.figures.videos import filmed
from srpo.config.sheets import SheetRow, baseline, labels, ours
from srpo.results import ResultError
from srpo.results.coverage import load_metrics
from srpo.runtime.videos import read_video

FRAMES = 7
"""Of an episode, evenly spaced from its first picture to its last."""


def make(
    metrics: Sequence[Path],
    sheet: Sequence[SheetRow],
    episodes: Sequence[Path],
    t1_sheet: Sequence[SheetRow],
    allow_incomplete: bool,
) -> Drawn:
    """The picture from the training curves in `metrics` and the evaluations in `episodes`, with videos."""
    steps, missing = load_metrics(metrics, labels(sheet), allow_incomplete)
    curves, pair = estimate(steps, labels(sheet)), choose(episodes, t1_sheet)
    return Drawn(
        figure=lambda: draw(curves, pair, labels(t1_sheet)),
        missing=text.lacking([], "RL steps", missing),
    )


def choose(paths: Sequence[Path], sheet: Sequence[SheetRow]) -> pd.DataFrame:
    """An episode each of the sheet's baseline and of our method, on one state.

    Raises:
        ResultError: no task and state was filmed of both.
    """
    episodes = pd.concat([filmed(path) for path in paths], ignore_index=True)
    first, last = baseline(sheet).name, ours(sheet).name
    keys = ["suite", "task_id", "init_state"]
    before, after = (episodes[episodes["variant"] == variant] for variant in (first, last))
    pairs = before.merge(after.drop_duplicates(keys), on=keys, suffixes=("", "_after"))
    if pairs.empty:
        raise ResultError(f"no task and state was filmed of both {first} and {last}")
    better = pairs[(pairs["status"] != "success") & (pairs["status_after"] == "success")]
    suite, task, state = (better if len(better) else pairs).iloc[0][keys]
    here = episodes[(episodes[keys] == [suite, task, state]).all(axis=1)]
    return pd.concat([here[here["variant"] == variant].head(1) for variant in (first, last)])


def strip(axes: Sequence[Axes], path: Path, caption: str) -> None:
    """A row of pictures of an episode, each under its time."""
    frames, fps = read_video(path)
    chosen = np.linspace(0, len(frames) - 1, len(axes)).round().astype(int)
    for picture, index in zip(axes, chosen, strict=True):
        picture.imshow(frames[index])
        picture.set(xticks=[], yticks=[])
        picture.set_title(f"{index / fps:.1f} s", fontsize=6, pad=2)
        picture.grid(False)
        for spine in picture.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel(caption, fontsize=7)


def draw(curves: pd.DataFrame, pair: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """The picture, from F2's tidy table and the two chosen episodes."""
    figure = Figure(figsize=(style.FULL_WIDTH, 4.6), layout="constrained")
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=(1.15, 1))).tolist()
    suites = list(dict.fromkeys(curves["suite"]))
    panels = above.subplots(1, len(suites), sharey=True, squeeze=False)[0]
    for axes, suite in zip(panels, suites, strict=True):
        panel(axes, curves, suite, "step", "RL step")
        axes.set_title(text.SUITE_LABELS[suite])
    panels[0].set_ylabel("success of rollouts (%)")
    handles, names = panels[0].get_legend_handles_labels()
    above.legend(handles, names, loc="outside lower center", ncols=len(names))
    rows = below.subplots(len(pair), FRAMES)
    for axes, episode in zip(rows, pair.to_dict("records"), strict=True):
        strip(axes, Path(episode["file"]), f"{labels[episode['variant']]}:\n{episode['status']}")
    task = str(pair["task"].iloc[0]).lower().replace("_", " ")
    below.suptitle(f"“{task}”, initial state {pair['init_state'].iloc[0]}", fontsize=7.5)
    return figure
