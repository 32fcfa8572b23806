"""Videos of two variants side by side on the same task and initial state, and a page that plays them all.

python -m srpo.analysis.videos --sheet SHEET.tsv --episodes BASELINE.parquet METHOD.parquet --out FOLDER
"""

from __future__ import annotations

import argparse
import base64
import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from srpo.analysis import tables
from srpo.results.rows import EPISODES, ResultError, read_rows, run
from srpo.runtime.files import atomic_directory, write_text
from srpo.runtime.videos import read_video, write_video

SIDE, HEADER = 240, 24
"""Pixels of a picture, and of the line above it."""
FPS = 10.0


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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m srpo.analysis.videos", description=__doc__)
    parser.add_argument("--sheet", type=Path, required=True, help="variants and labels (TSV)")
    parser.add_argument(
        "--episodes",
        type=Path,
        nargs="+",
        required=True,
        help="episodes.parquet of the runs to set side by side",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make: a video a task, all.html")
    arguments = parser.parse_args(argv)
    sheet = tables.read_sheet(arguments.sheet)
    runs = [filmed(path) for path in arguments.episodes]
    for own in runs:
        tables.require_known(own["variant"], sheet)
    keys = ["suite", "task_id", "init_state"]
    sets = [tables.cells(own, *keys) for own in runs]
    shared = sorted(set.intersection(*map(set, sets)))
    if not shared:
        raise ResultError("no task and state was filmed in all of the runs")
    with atomic_directory(arguments.out) as temporary:
        for suite, task, state in shared:
            rows = [own[suite, task, state] for own in sets]
            missing = [str(row["file"]) for row in rows if not row["file"].is_file()]
            if missing:
                raise ResultError(f"{missing[0]}: no such file, though its episodes name it")
            captions = [f"{sheet[row['variant']]}: {row['status']}" for row in rows]
            video = beside([read_video(row["file"]) for row in rows], captions)
            write_video(temporary / f"{suite}-task{task}-state{state}.mp4", video, FPS)
        write_text(temporary / "all.html", page(sorted(temporary.glob("*.mp4"))))


if __name__ == "__main__":
    run(main)
