"""Videos of two variants side by side on the same task and initial state, and a page that plays them all."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from srpo.analysis.comparisons import cells
from srpo.analysis.drawn import Drawn
from srpo.config import EvaluateStage
from srpo.config.sheets import SheetRow, labels
from srpo.results import ResultError
from srpo.results.coverage import read_config, require_known
from srpo.results.rows import read_rows
from srpo.results.schemas import EPISODES
from srpo.runtime.files import write_text
from srpo.runtime.videos import read_video, write_video

SIDE, HEADER = 240, 24
"""Pixels of a picture, and of the line above it."""
FPS = 10.0


def make(episodes: Sequence[Path], sheet: Sequence[SheetRow], allow_incomplete: bool) -> Drawn:
    """A folder of videos for each suite, from evaluations with their videos.

    Shown are the tasks and states that all runs of a suite have filmed; `allow_incomplete` changes nothing.
    """
    runs: dict[str, list[pd.DataFrame]] = {}
    for path in episodes:
        rows = filmed(path)
        require_known(rows["variant"], labels(sheet))
        runs.setdefault(read_config(path, EvaluateStage).suite, []).append(rows)
    return Drawn(folders={suite: partial(write_pairs, rows, labels(sheet)) for suite, rows in runs.items()})


def write_pairs(runs: Sequence[pd.DataFrame], labels: Mapping[str, str], folder: Path) -> None:
    """Write a video for each task and state that all `runs` have filmed, and `all.html`."""
    keys = ["suite", "task_id", "init_state"]
    of_run = [cells(group, *keys) for group in runs]
    shared = sorted(set.intersection(*map(set, of_run)))
    if not shared:
        raise ResultError("no task and state was filmed in all of the runs")
    for suite, task, state in shared:
        rows = [group[suite, task, state] for group in of_run]
        missing = [str(row["file"]) for row in rows if not row["file"].is_file()]
        if missing:
            raise ResultError(f"{missing[0]}: no such file, though its episodes name it")
        captions = [f"{labels[row['variant']]}: {row['status']}" for row in rows]
        video = beside([read_video(row["file"]) for row in rows], captions)
        write_video(folder / f"{suite}-task{task}-state{state}.mp4", video, FPS)
    write_text(folder / "all.html", page(sorted(folder.glob("*.mp4"))))


def beside(videos: Sequence[tuple[NDArray[np.uint8], float]], captions: Sequence[str]) -> NDArray[np.uint8]:
    """Videos next to one another at `FPS`, each under its caption: uint8 (F, HEADER + SIDE, N·SIDE, 3).

    Each runs at its own true speed; one that has ended shows its last frame until the longest has, too.

    Args:
        videos: frames uint8 (F, H, W, 3) and how many there are a second.
    """
    count = max(int(np.ceil(len(frames) / fps * FPS)) for frames, fps in videos)
    columns = []
    for (frames, fps), caption in zip(videos, captions, strict=True):
        moments = np.minimum((np.arange(count) / FPS * fps).round().astype(int), len(frames) - 1)
        header = Image.new("RGB", (SIDE, HEADER), "white")
        font = ImageFont.load_default(13)
        ImageDraw.Draw(header).text((SIDE / 2, HEADER / 2), caption, "black", font, "mm")
        pictures = [
            np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            for frame in frames
        ]
        column = [np.concatenate([np.asarray(header), pictures[moment]]) for moment in moments]
        columns.append(np.stack(column))
    return np.concatenate(columns, axis=2)


def filmed(path: Path) -> pd.DataFrame:
    """The episodes of a file that have a video, with its path in `file`."""
    episodes = read_rows(path, EPISODES)
    episodes = episodes[episodes["video"].notna()]
    return episodes.assign(file=[path.parent / video for video in episodes["video"]])


def page(videos: Sequence[Path]) -> str:
    """A page of HTML that holds the videos themselves, each under its file's name: it needs nothing else."""
    shown = [
        f'<figure><figcaption>{html.escape(path.stem)}</figcaption><video controls loop muted width="480"'
        f' src="data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"></video></figure>'
        for path in videos
    ]
    style = "body { font: 13px sans-serif; } figure { display: inline-block; margin: .7em; }"
    head = f'<meta charset="utf-8">\n<title>Episodes side by side</title>\n<style>{style}</style>'
    return "\n".join(['<!DOCTYPE html>\n<html lang="en">', head, *shown, "</html>\n"])
