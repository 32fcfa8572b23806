"""The picture to show first: training curves, and below them an episode before and after training.

python -m srpo.analysis.headline --sheet F2.tsv --metrics METRICS.csv ... --pair T1.tsv
    --episodes EPISODES.parquet ... --figure STEM

Of the filmed episodes it shows the first task on which the baseline failed and the trained policy succeeded,
from the same initial state; without one, the first that was filmed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srpo.analysis import f2, style, tables
from srpo.analysis.videos import filmed
from srpo.results.rows import ResultError, run
from srpo.runtime.videos import read_video

FRAMES = 7
"""Of an episode, evenly spaced from its first picture to its last."""


def choose(paths: Sequence[Path], sheet: Mapping[str, str]) -> pd.DataFrame:
    """A row each of the baseline and the trained policy (the sheet's first and last variant) on one state.

    Raises:
        ResultError: no task and state was filmed of both.
    """
    episodes = pd.concat([filmed(path) for path in paths], ignore_index=True)
    first, last = next(iter(sheet)), list(sheet)[-1]
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
    for own, index in zip(axes, chosen, strict=True):
        own.imshow(frames[index])
        own.set(xticks=[], yticks=[])
        own.set_title(f"{index / fps:.1f} s", fontsize=6, pad=2)
        own.grid(False)
        for spine in own.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel(caption, fontsize=7)


def draw(curves: pd.DataFrame, pair: pd.DataFrame, sheet: Mapping[str, str]) -> Figure:
    """The picture, from F2's tidy table and the two chosen episodes."""
    figure = Figure(figsize=(style.FULL_WIDTH, 4.6), layout="constrained")
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=(1.15, 1))).tolist()
    suites = list(dict.fromkeys(curves["suite"]))
    panels = above.subplots(1, len(suites), sharey=True, squeeze=False)[0]
    for axes, suite in zip(panels, suites, strict=True):
        f2.panel(axes, curves, suite, "step", "RL step")
        axes.set_title(tables.SUITE_LABELS[suite])
    panels[0].set_ylabel("success of rollouts (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    above.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    rows = below.subplots(len(pair), FRAMES)
    for axes, episode in zip(rows, pair.to_dict("records"), strict=True):
        strip(axes, Path(episode["file"]), f"{sheet[episode['variant']]}:\n{episode['status']}")
    task = str(pair["task"].iloc[0]).lower().replace("_", " ")
    below.suptitle(f"“{task}”, initial state {pair['init_state'].iloc[0]}", fontsize=7.5)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m srpo.analysis.headline", description=__doc__)
    parser.add_argument("--sheet", type=Path, required=True, help="variants and labels of the curves (TSV)")
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="metrics.csv of every run")
    parser.add_argument("--pair", type=Path, required=True, help="T1's variants and labels (TSV)")
    parser.add_argument(
        "--episodes", type=Path, nargs="+", required=True, help="episodes.parquet of runs, with their videos"
    )
    parser.add_argument("--figure", type=Path, required=True, help="stem of the .png and .pdf to write")
    arguments = parser.parse_args(argv)
    sheet, pair = tables.read_sheet(arguments.sheet), tables.read_sheet(arguments.pair)
    metrics, _ = f2.read_metrics(arguments.metrics, sheet, allow_incomplete=False)
    with mpl.rc_context(style.RC):
        figure = draw(f2.estimate(metrics, sheet), choose(arguments.episodes, pair), pair)
        style.save(figure, arguments.figure)


if __name__ == "__main__":
    run(main)
