"""Small videos that every browser plays (MP4, H.264, 4:2:0), by the FFmpeg of the package imageio-ffmpeg."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from srpo.runtime.files import write_with


def write_video(path: Path, frames: NDArray[np.uint8], fps: float) -> None:
    """Write frames, uint8 (F, H, W, 3) with even H and W, atomically as an MP4 of `fps` frames per second."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 with 4:2:0 needs even sides, not {width} × {height}")

    def write(temporary: Path) -> None:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=fps,
            codec="libx264",
            quality=None,
            macro_block_size=2,
            # Constant quality; the index first; no encoder name, so that equal frames give equal bytes.
            output_params=["-crf", "26", "-movflags", "+faststart", "-fflags", "+bitexact", "-f", "mp4"],
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()

    write_with(path, write)


def read_video(path: Path) -> tuple[NDArray[np.uint8], float]:
    """The frames, uint8 (F, H, W, 3), and frames per second. Raises OSError if the file is not a video."""
    reader = imageio_ffmpeg.read_frames(str(path))
    header = next(reader)
    width, height = header["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    return np.stack(frames), float(header["fps"])


def read_part(path: Path, frame: int, number: int, fps: float) -> NDArray[np.uint8]:
    """Up to `number` frames, uint8 (F, H, W, 3), from frame number `frame` of a video of constant rate.

    Raises OSError if the file is not a video.
    """
    # Half a frame before its time, for times are rounded; FFmpeg decodes from the key frame before it.
    seek = ["-ss", f"{(frame - 0.5) / fps:.6f}"] if frame else []
    reader = imageio_ffmpeg.read_frames(
        str(path),
        input_params=seek,
        output_params=["-frames:v", str(number), "-fps_mode", "passthrough"],
    )
    width, height = next(reader)["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    return np.stack(frames) if frames else np.empty((0, height, width, 3), np.uint8)
