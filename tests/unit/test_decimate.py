"""Decimation: fewer faces, while outlines, seams, surface and shading stay within their bounds."""

import numpy as np
import pytest

from srpo.envs.decimate import decimate


def grid(n: int, height: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A square of 1 m as n × n × 2 triangles, with bumps of up to `height` metres."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, n + 1), np.linspace(0, 1, n + 1), indexing="ij")
    points = np.stack([x, y, rng.uniform(-height, height, x.shape)], axis=-1).reshape(-1, 3)
    corner = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).ravel()
    lower = np.stack([corner, corner + n + 1, corner + n + 2], axis=1)
    upper = np.stack([corner, corner + n + 2, corner + 1], axis=1)
    return points, np.concatenate([lower, upper])


def sphere(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A closed sphere of radius 0.1 m."""
    turn, rise = np.meshgrid(np.arange(2 * n) * np.pi / n, np.arange(1, n) * np.pi / n, indexing="ij")
    ring = np.stack([np.cos(turn) * np.sin(rise), np.sin(turn) * np.sin(rise), np.cos(rise)], axis=-1)
    points = np.concatenate([ring.reshape(-1, 3), [[0, 0, 1], [0, 0, -1]]]) * 0.1
    number = np.arange(2 * n * (n - 1)).reshape(2 * n, n - 1)
    beside = np.roll(number, -1, axis=0)
    quads = np.stack([number[:, :-1], number[:, 1:], beside[:, 1:], beside[:, :-1]], axis=-1).reshape(-1, 4)
    top, bottom = np.full(2 * n, len(points) - 2), np.full(2 * n, len(points) - 1)
    faces = [
        quads[:, :3],
        quads[:, [0, 2, 3]],
        np.stack([top, number[:, 0], beside[:, 0]], axis=1),
        np.stack([bottom, beside[:, -1], number[:, -1]], axis=1),
    ]
    return points, np.concatenate(faces)


def face_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = points[faces].transpose(1, 0, 2)
    normals = np.cross(b - a, c - a)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def area(points: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = points[faces].transpose(1, 0, 2)
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def flat(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Corner normals of flat shading."""
    return np.repeat(face_normals(points, faces)[:, None], 3, axis=1)


def samples(points: np.ndarray, faces: np.ndarray, count: int) -> np.ndarray:
    """Random points of a surface."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet([1, 1, 1], count)
    a, b, c = points[faces].transpose(1, 0, 2)
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = rng.choice(len(faces), count, p=areas / areas.sum())
    return np.einsum("nk,nkd->nd", weights, points[faces[chosen]])


def test_a_flat_square_keeps_its_outline() -> None:
    points, faces = grid(12)
    kept, corners = decimate(points, faces, np.zeros(len(faces), int), flat(points, faces), 0.001, 2.0)
    assert len(kept) <= 8
    assert area(points, kept) == pytest.approx(1.0)
    assert {0, 12, 156, 168} <= set(kept.ravel().tolist()), "the four corners of the square"
    np.testing.assert_array_equal(faces.ravel()[corners], kept)
    np.testing.assert_allclose(face_normals(points, kept), np.broadcast_to([0, 0, 1], (len(kept), 3)))


@pytest.mark.parametrize("tolerance", [0.0003, 0.002])
def test_a_sphere_stays_within_the_tolerance(tolerance: float) -> None:
    points, faces = sphere(24)
    normals = points[faces] / 0.1
    kept, _ = decimate(points, faces, np.zeros(len(faces), int), normals, tolerance, 2.0)
    assert len(kept) < 0.8 * len(faces)
    radius = np.linalg.norm(samples(points, kept, 20000), axis=1)
    before = np.linalg.norm(samples(points, faces, 20000), axis=1)
    # The tolerance is a root mean square; the worst place is a few times that, beyond the polygon's own.
    assert before.min() - radius.min() < 4 * tolerance
    # Closed before, closed after: every edge has two faces.
    edges = np.sort(np.concatenate([kept[:, [0, 1]], kept[:, [1, 2]], kept[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    assert (np.einsum("nd,nd->n", face_normals(points, kept), points[kept].mean(axis=1)) > 0).all()


def test_more_tolerance_leaves_fewer_faces() -> None:
    points, faces = grid(30, height=0.002)
    charts, normals = np.zeros(len(faces), int), flat(points, faces)
    counts = [len(decimate(points, faces, charts, normals, t, 2.0)[0]) for t in (1e-6, 5e-4, 2e-3, 8e-3)]
    assert counts[0] == len(faces)
    assert counts == sorted(counts, reverse=True) and counts[3] < counts[2] < counts[1]


def test_charts_keep_their_area_and_meet_without_gaps() -> None:
    """A bumpy square whose two halves have different places in the texture."""
    points, faces = grid(20, height=0.0005)
    charts = (points[faces].mean(axis=1)[:, 0] > 0.5).astype(int)
    kept, corners = decimate(points, faces, charts, flat(points, faces), 0.003, 2.0)
    assert len(kept) < len(faces) / 4
    belongs = charts[corners // 3]
    assert (belongs == belongs[:, :1]).all(), "no face takes its texture from two charts"
    for chart in (0, 1):
        assert area(points, kept[belongs[:, 0] == chart]) == pytest.approx(0.5, abs=0.01)
        seam = points[kept[belongs[:, 0] == chart]].reshape(-1, 3)
        assert {0.0, 1.0} <= set(seam[np.isclose(seam[:, 0], 0.5), 1].tolist()), "the seam's ends are kept"


def test_shading_of_a_panel_with_rounded_normals_is_kept() -> None:
    """A flat panel whose rim has slanted normals: without its inner vertices all of it would be slanted."""
    points, faces = grid(10)
    normal = np.tile([0.0, 0.0, 1.0], (len(points), 1))
    rim = (points[:, :2] == 0).any(axis=1) | (points[:, :2] == 1).any(axis=1)
    normal[rim] += np.array([0.5, 0.5, 0]) * np.sign(points[rim] - 0.5)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)

    def mean_shading(shade: float) -> float:
        kept, corners = decimate(points, faces, np.zeros(len(faces), int), normal[faces], 0.001, shade)
        assert len(kept) < len(faces) / 2
        a, b, c = points[kept].transpose(1, 0, 2)
        areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        return float(np.average(normal[faces].reshape(-1, 3)[corners][..., 2].mean(axis=1), weights=areas))

    before = float(normal[faces][..., 2].mean())
    assert before - mean_shading(0.02) < 0.5 * (before - mean_shading(2.0))
    assert before - mean_shading(2.0) > 0.1


def sleeve(n: int, rings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tube of radius 0.05 m, and across its texture the turn of each corner, 0 to 1: one chart, which meets
    itself where the turn begins anew."""
    turn, height = np.meshgrid(np.arange(n), np.arange(rings + 1), indexing="ij")
    angle = 2 * np.pi * turn / n
    points = np.stack([0.05 * np.cos(angle), 0.05 * np.sin(angle), 0.02 * height], axis=-1).reshape(-1, 3)
    i, j = (index.ravel() for index in np.meshgrid(np.arange(n), np.arange(rings), indexing="ij"))
    below, above = i * (rings + 1) + j, (i + 1) % n * (rings + 1) + j
    faces = np.concatenate(
        [np.stack([below, above, above + 1], axis=1), np.stack([below, above + 1, below + 1], axis=1)]
    )
    turns = np.concatenate([np.stack([i, i + 1, i + 1], axis=1), np.stack([i, i + 1, i], axis=1)]) / n
    return points, faces, turns


def test_no_face_gets_across_a_seam_of_its_own_chart() -> None:
    points, faces, turns = sleeve(48, 12)
    normals = points[faces] * [1, 1, 0] / 0.05
    texels = np.where(turns == 1, faces + len(points), faces)  # the seam's vertices have two places

    def widest(texels: np.ndarray | None) -> tuple[float, int]:
        """Of the texture that a face takes across, at most; and how many faces are left."""
        charts = np.zeros(len(faces), int)
        kept, corners = decimate(points, faces, charts, normals, 0.0005, 0.2, texels)
        taken = turns.ravel()[corners]
        return float(np.ptp(taken, axis=1).max()), len(kept)

    (apart, left), (smeared, fewer) = widest(texels), widest(None)
    assert apart < 0.2 and left < len(faces) / 4
    assert smeared > 0.7 and fewer <= left
