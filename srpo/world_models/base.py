"""The interface of world models: a frozen map from an episode's frames to a vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from srpo.config import FrameSelection

Frames = NDArray[np.uint8]
"""Images of one episode, uint8 (T, H, W, 3), in the official orientation."""
Embedding = NDArray[np.float32]


def select_frames(length: int, count: int, selection: FrameSelection = "even") -> NDArray[np.int64]:
    """Indices (count,) of frames spread evenly over an episode of `length` frames.

    `even`: index i is i·(length − 1)/(count − 1) rounded half up, in integers, so that every platform picks
    the same frames; first and last are included. A shorter episode repeats frames. A single frame is the
    last one.

    `siirl` (siiRL, `siirl/utils/embodied/video_emb.py`): the same rounded down, where the product's rounding
    in float64 counts too; a shorter episode starts again from its first frame, as often as needed. A single
    frame is the first one.

    `end`: as `even`, over the episode's last quarter, which begins at its frame ⌊3·(length − 1)/4⌋.
    """
    if length < 1 or count < 1:
        raise ValueError(f"cannot select {count} frames of an episode of {length}")
    if selection == "siirl":
        if length < count:
            return np.arange(count, dtype=np.int64) % length
        return np.linspace(0, length - 1, count).astype(np.int64)
    first = 3 * (length - 1) // 4 if selection == "end" else 0
    if count == 1:
        return np.array([length - 1])
    gaps = count - 1
    return first + (2 * np.arange(count, dtype=np.int64) * (length - 1 - first) + gaps) // (2 * gaps)


def require_frames(frames: Frames) -> None:
    """Raise ValueError if `frames` are not uint8 (T, H, W, 3), T, H and W at least 1."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")


class WorldModel(ABC):
    """A frozen representation of episodes. It selects and batches frames; subclasses encode batches."""

    def __init__(self, frames: int, selection: FrameSelection, dimension: int, batch_size: int) -> None:
        self.frames = frames
        """Frames taken of an episode."""
        self.selection = selection
        """How, as in `select_frames`."""
        self.dimension = dimension
        """D, the length of an embedding."""
        self.batch_size = batch_size
        """Episodes encoded at once: it bounds the memory and does not change the result."""

    @abstractmethod
    def encode(self, videos: Sequence[Frames]) -> Embedding:
        """Embeddings (N, D) of N ≤ `batch_size` videos, uint8 (frames, H, W, 3) each."""

    def fingerprint(self) -> str | None:
        """A hash of everything an embedding depends on besides the frames; None if embedding is so fast that
        caching is not worth it."""
        return None

    def embed(self, frames: Frames) -> Embedding:
        """Embedding (D,) of an episode, uint8 (T, H, W, 3)."""
        return self.embed_many([frames])[0]

    def embed_many(self, episodes: Iterable[Frames]) -> Embedding:
        """Embeddings (N, D) of N episodes, uint8 (T_i, H_i, W_i, 3) each. A generator is consumed lazily.

        Embeddings that are not finite are returned as they are: `srpo.rewards.progress` leaves those episodes
        out. Raises ValueError on frames of another shape or type.
        """
        return self.embed_clips(self._select(episode) for episode in episodes)

    def embed_clips(self, clips: Iterable[Frames]) -> Embedding:
        """`embed_many` of episodes of which the frames are selected already: uint8 (frames, H, W, 3) each."""
        remaining = iter(clips)
        batches = [np.empty((0, self.dimension), np.float32)]
        while batch := list(islice(remaining, self.batch_size)):
            batches.append(self.encode(batch))
        return np.concatenate(batches)

    def embed_prefixes(self, frames: Frames, ends: Iterable[int]) -> Embedding:
        """Embeddings (P, D) of the prefixes o_0…o_t of an episode, one for each t in `ends`."""
        ends = list(ends)
        outside = [end for end in ends if not 0 <= end < len(frames)]
        if outside:
            raise ValueError(f"prefixes end at {outside}, but the episode has frames 0–{len(frames) - 1}")
        return self._embed_prefixes(frames, ends)

    def _embed_prefixes(self, frames: Frames, ends: Sequence[int]) -> Embedding:
        """`embed_prefixes` of ends that are within the episode."""
        return self.embed_many(frames[: end + 1] for end in ends)

    def _select(self, episode: Frames) -> Frames:
        require_frames(episode)
        return episode[self.indices(len(episode))]

    def indices(self, length: int) -> NDArray[np.int64]:
        """Indices (frames,) of the frames taken of an episode of `length` frames."""
        return select_frames(length, self.frames, self.selection)
