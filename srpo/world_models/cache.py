"""Embeddings cached in files, so that an interrupted or repeated scoring encodes nothing twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from srpo.runtime.files import write_with
from srpo.world_models.base import Embedding, Frames, WorldModel


class EmbeddingCache:
    """A world model whose prefix embeddings are cached in `folder`, one file for each episode.

    A file's name is a hash of the frames, the prefixes and the world model's fingerprint, so a file of other
    weights, settings or frames is never read, and the folder may be shared or deleted at any time. A world
    model without a fingerprint (pixels) is faster than reading files, and is not cached.
    """

    def __init__(self, world_model: WorldModel, folder: Path) -> None:
        self.world_model = world_model
        self.folder = folder
        self._fingerprint = world_model.fingerprint()

    def embed_prefixes(self, frames: Frames, ends: Iterable[int]) -> Embedding:
        """As `WorldModel.embed_prefixes`."""
        ends = [int(end) for end in ends]
        if self._fingerprint is None:
            return self.world_model.embed_prefixes(frames, ends)
        digest = hashlib.sha256(repr((self._fingerprint, frames.shape, frames.dtype.str, ends)).encode())
        digest.update(frames.tobytes())
        path = self.folder / f"{digest.hexdigest()}.npy"
        if path.is_file():
            embeddings: Embedding = np.load(path, allow_pickle=False)
        else:
            embeddings = self.world_model.embed_prefixes(frames, ends)
            write_with(path, lambda temporary: _save(temporary, embeddings))
        return embeddings


def _save(path: Path, embeddings: Embedding) -> None:
    with path.open("wb") as handle:  # a handle, because NumPy would add .npy to the temporary name
        np.save(handle, embeddings, allow_pickle=False)
