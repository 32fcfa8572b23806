"""Videos: what is written is H.264 that can be read again, and the same frames give the same bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from srpo.runtime.videos import read_video, write_video


def moving(frames: int = 12) -> np.ndarray:
    """A bright square that moves to the right, 4 pixels a frame, on a dark ground."""
    video = np.full((frames, 64, 96, 3), 30, np.uint8)
    for number in range(frames):
        video[number, 20:40, 4 * number : 4 * number + 20] = (250, 120, 20)
    return video


def test_a_video_shows_what_it_was_made_of(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving(), 6)
    frames, fps = read_video(tmp_path / "a.mp4")
    assert frames.shape == (12, 64, 96, 3)
    assert fps == pytest.approx(6)
    assert np.abs(frames.astype(int) - moving()).mean() < 6
    write_video(tmp_path / "b.mp4", moving(), 6)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4"}


def test_browsers_can_play_it(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving(), 6)
    told = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "a.mp4"],
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    assert "Video: h264" in told and "yuv420p" in told
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # it plays before all of it is there


@pytest.mark.parametrize(
    ("frames", "why"),
    [(moving()[:, :63], "even sides"), (moving()[0], "must be uint8"), (moving() / 255, "must be uint8")],
)
def test_what_cannot_be_a_video_is_refused(frames: np.ndarray, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        write_video(tmp_path / "a.mp4", frames, 6)
    assert not list(tmp_path.iterdir())
