"""How much of the workspace a policy visits (SRPO, arXiv 2511.15605, its figure of end-effector positions).

Pure functions of end-effector paths, float (steps + 1, 3) in metres each, as `srpo.episode.Episode.path` has
them. Every measure grows with the number of positions seen, so two policies are compared on as many episodes
of the same tasks and states, and by `expected_voxels` where those differ in length. All raise ValueError on
positions that are not finite, not three-dimensional, or not there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError
from scipy.special import gammaln

EDGE = 0.02
"""Side of a voxel in metres. Ours: the paper shows positions and names no measure of them."""

Path = NDArray[np.floating]


def voxel_counts(paths: Sequence[Path], edge: float = EDGE) -> NDArray[np.int64]:
    """Positions in each voxel that holds any: int64 (V,), V ≥ 1, sorted.

    Voxels are cubes of side `edge` metres, [k·edge, (k + 1)·edge) along each axis, so the same for all paths.
    """
    if not (np.isfinite(edge) and edge > 0):
        raise ValueError(f"a voxel's edge must be positive, not {edge}")
    voxels = np.floor(_positions(paths) / edge).astype(np.int64)
    return np.sort(np.unique(voxels, axis=0, return_counts=True)[1])


def voxel_table(paths: Sequence[Path], edge: float = EDGE) -> NDArray[np.int64]:
    """Positions of each path in each voxel that any path was in: int64 (len(paths), V)."""
    voxels = np.floor(_positions(paths) / edge).astype(np.int64)
    number = np.unique(voxels, axis=0, return_inverse=True)[1].ravel()
    table = np.zeros((len(paths), number.max() + 1), np.int64)
    np.add.at(table, (np.repeat(np.arange(len(paths)), [len(path) for path in paths]), number), 1)
    return table


def occupied_voxels(paths: Sequence[Path], edge: float = EDGE) -> int:
    """Voxels that the end effector was in at the end of some control step."""
    return len(voxel_counts(paths, edge))


def expected_voxels(paths: Sequence[Path], positions: int, edge: float = EDGE) -> float:
    """Voxels that so many positions drawn from the paths, without replacement, would occupy on average.

    Σ_v 1 − C(N − n_v, m)/C(N, m) over voxels with n_v of the N positions, m drawn: rarefaction (Hurlbert,
    "The nonconcept of species diversity", Ecology 1971). It makes paths of different lengths comparable.

    Raises:
        ValueError: there are fewer positions than that.
    """
    return rarefied(voxel_counts(paths, edge), positions)


def rarefied(counts: NDArray[np.integer], positions: int) -> float:
    """`expected_voxels` from the positions in each voxel, int (V,); voxels of none count for nothing."""
    counts = counts[counts > 0]
    total = int(counts.sum())
    if not 1 <= positions <= total:
        raise ValueError(f"cannot draw {positions} positions of {total}")
    left = total - counts
    # log C(N − n, m) − log C(N, m), −∞ where fewer than m positions lie outside the voxel.
    ratio = np.full(len(counts), -np.inf)
    enough = left >= positions
    ratio[enough] = (
        gammaln(left[enough] + 1)
        - gammaln(left[enough] - positions + 1)
        - gammaln(total + 1)
        + gammaln(total - positions + 1)
    )
    return float(-np.expm1(ratio).sum())


def occupancy_entropy(paths: Sequence[Path], edge: float = EDGE) -> float:
    """Shannon entropy, in bits, of the share of positions in each voxel: −Σ p·log2 p.

    0 in a single voxel, log2 V when all V voxels are visited equally often.
    """
    counts = voxel_counts(paths, edge)
    share = counts / counts.sum()
    return float(max(-(share * np.log2(share)).sum(), 0.0))


def hull_volume(paths: Sequence[Path]) -> float:
    """Volume of the convex hull of all positions, in cubic metres; 0 if they lie in a plane.

    It measures reach: unlike the other measures it counts what lies between visited places too, and one stray
    position can decide it.
    """
    positions = np.unique(_positions(paths), axis=0)
    try:
        return float(ConvexHull(positions).volume)
    except QhullError:  # fewer than four positions, or all in a plane
        return 0.0


def _positions(paths: Sequence[Path]) -> NDArray[np.float64]:
    for number, path in enumerate(paths):
        if path.ndim != 2 or path.shape[1] != 3:
            raise ValueError(f"path {number} must have shape (steps + 1, 3), not {path.shape}")
        if not np.isfinite(path).all():
            raise ValueError(f"path {number} must be finite")
    if not sum(map(len, paths)):
        raise ValueError("there are no positions")
    return np.concatenate(paths).astype(np.float64)
