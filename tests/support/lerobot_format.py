"""Small data sets in LeRobot's format, written by its published layouts, without its library."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.spatial.transform import Rotation

FPS = 10
"""As most conversions of LIBERO say, whose control steps are 20 a second."""
LAYOUTS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True)
class Recorded:
    """An episode: instruction, uint8 pictures (T, H, H, 3), poses (T, 8), actions (T, 7)."""

    instruction: str
    pictures: np.ndarray
    poses: np.ndarray
    actions: np.ndarray


def moving(
    steps: int, seed: int = 0, instruction: str = "put the bowl on the plate", size: int = 32
) -> Recorded:
    """An episode whose hand goes where actions send it, and whose gripper closes half-way.

    Pictures are noise whose brightness rises by 3 a step.
    """
    rng = np.random.default_rng(seed)
    command = np.where(np.arange(steps) < steps // 2, -1.0, 1.0)
    motion = np.cumsum(rng.normal(0, 0.1, (steps, 6)), axis=0).clip(-0.9, 0.9)
    motion[:, 3:] = rng.normal(0, [0.02, 0.02, 0.2], (steps, 3)).clip(-0.9, 0.9)  # mostly about z
    went = np.vstack([np.zeros(6), np.cumsum(motion[:-1], axis=0)])
    turn = Rotation.from_rotvec([np.pi - 0.01, 0.01, 0])  # the hand points down
    orientations = []
    for step in motion:
        orientations.append(turn.as_rotvec())
        turn = Rotation.from_rotvec(0.08 * step[3:]) * turn
    # The fingers follow a step late, slowly at first.
    closing = np.maximum(np.arange(steps) - steps // 2, 0)
    opening = 0.04 - np.minimum(
        0.03, np.where(closing == 1, 0.0003, 0.002 * closing - 0.0017 * (closing > 0))
    )
    pictures = rng.integers(0, 256, (1, size, size, 3)).repeat(steps, axis=0)
    pictures = (pictures // 4 + 3 * np.arange(steps)[:, None, None, None]).astype(np.uint8)
    return Recorded(
        instruction,
        pictures,
        np.hstack([0.011 * went[:, :3], orientations, opening[:, None], -opening[:, None]]),
        np.hstack([motion, command[:, None]]),
    )


def write_dataset(
    folder: Path,
    episodes: list[Recorded],
    version: str,
    videos: bool,
    names: tuple[str, str, str] = ("observation.images.image", "observation.state", "action"),
) -> None:
    """Write episodes; in version 3.0 all of them in one file of rows and, if `videos`, one video."""
    camera, state, action = names
    size = episodes[0].pictures.shape[1]
    instructions = list(dict.fromkeys(episode.instruction for episode in episodes))
    three = version == "v3.0"
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    info = {
        "codebase_version": version,
        "robot_type": "panda",
        "total_episodes": len(episodes),
        "total_frames": sum(len(episode.actions) for episode in episodes),
        "total_tasks": len(instructions),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": f"data/{place}.parquet"
        if three
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": (
            f"videos/{{video_key}}/{place}.mp4"
            if three
            else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        )
        if videos
        else None,
        "features": {
            camera: {"dtype": "video" if videos else "image", "shape": [size, size, 3]},
            state: {"dtype": "float32", "shape": [8]},
            action: {"dtype": "float32", "shape": [7]},
            **{name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "index")},
        },
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    tables, rows, first = [], [], 0
    for index, episode in enumerate(episodes):
        length = len(episode.actions)
        columns: dict[str, Any] = {
            state: pa.array(list(episode.poses.astype(np.float32)), pa.list_(pa.float32(), 8)),
            action: pa.array(list(episode.actions.astype(np.float32)), pa.list_(pa.float32(), 7)),
            "timestamp": pa.array(np.arange(length) / FPS, pa.float32()),
            "frame_index": pa.array(range(length)),
            "episode_index": pa.array([index] * length),
            "index": pa.array(range(first, first + length)),
            "task_index": pa.array([instructions.index(episode.instruction)] * length),
        }
        if not videos:
            columns[camera] = pa.array(
                [{"bytes": _png(picture), "path": f"{k}.png"} for k, picture in enumerate(episode.pictures)],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            )
        tables.append(pa.table(columns))
        row = {"episode_index": index, "tasks": [episode.instruction], "length": length}
        if three:
            row |= {"data/chunk_index": 0, "data/file_index": 0}
            row |= {"dataset_from_index": first, "dataset_to_index": first + length}
            if videos:
                row |= {f"videos/{camera}/{name}": 0 for name in ("chunk_index", "file_index")}
                row |= {f"videos/{camera}/from_timestamp": first / FPS}
                row |= {f"videos/{camera}/to_timestamp": (first + length) / FPS}
        rows.append(row)
        first += length
    if three:
        _write(folder / "data/chunk-000/file-000.parquet", pa.concat_tables(tables))
        _write(folder / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
        if videos:
            pictures = np.concatenate([episode.pictures for episode in episodes])
            _video(folder / f"videos/{camera}/chunk-000/file-000.mp4", pictures)
        return
    (folder / "meta" / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for index, (episode, table) in enumerate(zip(episodes, tables, strict=True)):
        _write(folder / f"data/chunk-000/episode_{index:06d}.parquet", table)
        if videos:
            _video(folder / f"videos/chunk-000/{camera}/episode_{index:06d}.mp4", episode.pictures)


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _video(path: Path, pictures: np.ndarray) -> None:
    """H.264 with a key frame every second frame, as LeRobot's own encoder is set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        pictures.shape[2:0:-1],
        fps=FPS,
        codec="libx264",
        quality=None,
        macro_block_size=2,
        output_params=["-crf", "12", "-g", "2"],
    )
    writer.send(None)
    for picture in pictures:
        writer.send(np.ascontiguousarray(picture))
    writer.close()
