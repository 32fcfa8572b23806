"""The pixel baseline: small images instead of features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from srpo.config import WorldModel as WorldModelConfig
from srpo.world_models.base import Embedding, Frames, WorldModel, require_frames

BATCH_SIZE = 16


def area_weights(source: int, target: int) -> NDArray[np.float32]:
    """Matrix (target, source) that averages `source` pixels over `target` equal intervals; rows sum to 1.

    Entry (i, j) is the share of target pixel i, the interval [i, i + 1)·source/target, that source pixel j
    covers.
    """
    scale = source / target
    low = np.arange(target)[:, None] * scale
    pixel = np.arange(source)[None, :]
    overlap = np.minimum(low + scale, pixel + 1) - np.maximum(low, pixel)
    return (np.clip(overlap, 0, None) / scale).astype(np.float32)


class PixelWorldModel(WorldModel):
    """RGB frames averaged over areas to `image_size`² pixels and concatenated: D = frames · image_size² · 3.

    The image is not cropped, values are in [0, 1]. Colour is kept, because it distinguishes LIBERO's objects
    at this size.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        dimension = config.frames * config.image_size**2 * 3
        super().__init__(config.frames, config.frame_selection, dimension, BATCH_SIZE)
        self.image_size = config.image_size

    def encode(self, videos: Sequence[Frames]) -> Embedding:
        return np.stack([self._encode(video).ravel() for video in videos])

    def _embed_prefixes(self, frames: Frames, ends: Sequence[int]) -> Embedding:
        # A frame is as small in every prefix, so each is averaged once.
        require_frames(frames)
        used, places = np.unique([self.indices(end + 1) for end in ends], return_inverse=True)
        small = self._encode(frames[used])
        return np.stack([small[rows].ravel() for rows in places.reshape(len(ends), -1)])

    def _encode(self, video: Frames) -> Embedding:
        """Frames uint8 (T, H, W, 3), small: float32 (T, image_size, image_size, 3)."""
        rows = area_weights(video.shape[1], self.image_size)
        columns = area_weights(video.shape[2], self.image_size)
        small = np.einsum("ih,thwc,jw->tijc", rows, video.astype(np.float32) / 255, columns, optimize=True)
        return np.ascontiguousarray(small, dtype=np.float32)
