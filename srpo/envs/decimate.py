"""Fewer triangles for the same picture: error-bounded simplification of a render model's meshes.

LIBERO's meshes are scans: a scene has 240–400 thousand triangles, drawn at 128 or 256 pixels. Edges are
collapsed in the order of their quadric error (Garland and Heckbert, "Surface Simplification Using Quadric
Error Metrics", SIGGRAPH 1997) until no collapse is within a tolerance in metres. A collapse moves a vertex
onto its neighbour, so every corner of the result is a corner of the original, with its normal and texture
coordinates: MuJoCo's compiled arrays need no new vertices, only fewer faces.
"""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SMALL = 150
"""Meshes of fewer faces are left unchanged."""
MARGIN = 1e-7
"""Corners nearer than this (metres, texture units) are one vertex."""
PASSES = (1 / 256, 1 / 64, 1 / 16, 1 / 4, 1 / 4, 1.0, 1.0, 1.0)
"""Fractions of the squared tolerance allowed in each pass over the vertices: cheap collapses come first."""
MIN_TURN_COSINE = 0.5
"""Cosine of the largest angle (60°) by which a face may turn in one collapse."""


class _Mesh(NamedTuple):
    """A mesh while it is simplified in place; corner j of face f has number 3 f + j.

    points      float64 (V, 3)    vertices
    faces       int64 (F, 3)      vertex of each corner
    corners     int64 (F, 3)      original corner whose normal and texture coordinates each corner takes
    charts      int64 (F,)        texture chart of each face
    texels      int64 (3 F,)      place of each original corner in the texture, or its vertex, as a number
    directions  float64 (3 F, 3)  unit normal of each original corner
    alive       bool (F,)         which faces are left
    head        int64 (V,)        first corner at each vertex, -1 if there is none
    following   int64 (3 F,)      next corner at the same vertex, -1 at the end
    """

    points: NDArray[np.float64]
    faces: NDArray[np.int64]
    corners: NDArray[np.int64]
    charts: NDArray[np.int64]
    texels: NDArray[np.int64]
    directions: NDArray[np.float64]
    alive: NDArray[np.bool_]
    head: NDArray[np.int64]
    following: NDArray[np.int64]


def decimate(
    points: NDArray[np.float64],
    faces: NDArray[np.int64],
    charts: NDArray[np.int64],
    normals: NDArray[np.float64],
    tolerance: float,
    shade: float,
    texels: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Collapse edges of a triangle mesh as long as neither its surface nor its shading changes visibly.

    A face never leaves its chart: a vertex moves only onto one that each of its faces' charts has too, so
    that seams of the texture do not open. A chart may also meet itself, as a sleeve's does: with `texels`, no
    face gets across such a seam either, and seams keep their course as open borders do.

    Args:
        points: float64 (V, 3), metres; coincident corners must already be one vertex.
        faces: int64 (F, 3), vertex numbers.
        charts: int64 (F,), texture chart of each face (all equal for a mesh without texture).
        normals: float64 (F, 3, 3), unit normal at each corner.
        tolerance: largest root mean square distance (m) of a vertex to the planes that it replaces.
        shade: largest decrease in one collapse of the cosine between a corner's normal and its face. Without
            a bound (2) a flat panel loses its inner vertices, and the normals of its edges shade all of it.
        texels: int64 (F, 3), the same number where corners at one vertex have one place in the texture. None:
            all corners at a vertex are taken to have one.

    Returns:
        int64 (F', 3) remaining faces, as vertex numbers, and as numbers 3 f + j of the original corners
        whose normal and texture coordinates they take.
    """
    mesh = _Mesh(
        points=np.ascontiguousarray(points),
        faces=np.ascontiguousarray(faces).copy(),
        corners=np.arange(3 * len(faces)).reshape(-1, 3),
        charts=charts,
        texels=np.ascontiguousarray(faces if texels is None else texels).reshape(-1),
        directions=np.ascontiguousarray(normals).reshape(-1, 3),
        alive=np.ones(len(faces), np.bool_),
        head=np.full(len(points), -1),
        following=np.full(3 * len(faces), -1),
    )
    _collapse(mesh, tolerance**2, shade, np.array(PASSES))
    return mesh.faces[mesh.alive], mesh.corners[mesh.alive]


@numba.njit(cache=True)
def _normal(points, a, b, c):  # type: ignore[no-untyped-def]
    """Twice the area times the unit normal of a triangle."""
    return np.cross(points[b] - points[a], points[c] - points[a])


@numba.njit(cache=True)
def _add_plane(quadric, normal, point, weight):  # type: ignore[no-untyped-def]
    """Add the upper triangle of a plane's quadric, and its weight, to a vertex's 11 numbers."""
    plane = (normal[0], normal[1], normal[2], -np.dot(normal, point))
    k = 0
    for i in range(4):
        for j in range(i, 4):
            quadric[k] += weight * plane[i] * plane[j]
            k += 1
    quadric[10] += weight


@numba.njit(cache=True)
def _error(first, second, p):  # type: ignore[no-untyped-def]
    """Weighted mean squared distance of a point to the planes of two vertices."""
    q = first + second
    squared = (
        q[0] * p[0] * p[0] + 2 * q[1] * p[0] * p[1] + 2 * q[2] * p[0] * p[2] + 2 * q[3] * p[0]
        + q[4] * p[1] * p[1] + 2 * q[5] * p[1] * p[2] + 2 * q[6] * p[1]
        + q[7] * p[2] * p[2] + 2 * q[8] * p[2] + q[9]
    )  # fmt: skip
    return max(squared, 0.0) / max(q[10], 1e-30)


@numba.njit(cache=True)
def _collapse(mesh, bound, shade, passes):  # type: ignore[no-untyped-def]
    """Simplify a mesh in place; `bound` is the squared tolerance."""
    vertices, count = len(mesh.points), len(mesh.faces)
    quadrics = np.zeros((vertices, 11))
    for f in range(count):
        a, b, c = mesh.faces[f]
        normal = _normal(mesh.points, a, b, c)
        area = np.sqrt(np.dot(normal, normal))
        if a == b or b == c or c == a or area == 0:
            mesh.alive[f] = False
            continue
        for j in range(3):
            v = mesh.faces[f, j]
            _add_plane(quadrics[v], normal / area, mesh.points[v], area)
            mesh.following[3 * f + j] = mesh.head[v]
            mesh.head[v] = 3 * f + j
    _hold_borders(mesh, quadrics)
    for fraction in passes:
        for u in range(vertices):
            best, target = fraction * bound, -1
            at = mesh.head[u]
            while at >= 0:
                f = at // 3
                if mesh.alive[f]:
                    for step in range(1, 3):
                        v = mesh.faces[f, (at + step - 3 * f) % 3]
                        error = _error(quadrics[u], quadrics[v], mesh.points[v])
                        if error < best and _allowed(mesh, shade, u, v):
                            best, target = error, v
                at = mesh.following[at]
            if target >= 0:
                _move(mesh, u, target)
                quadrics[target] += quadrics[u]


@numba.njit(cache=True)
def _hold_borders(mesh, quadrics):  # type: ignore[no-untyped-def]
    """Add planes perpendicular to the faces at open borders, and at seams, so that these do not recede."""
    for f in range(len(mesh.faces)):
        if not mesh.alive[f]:
            continue
        for j in range(3):
            u, v = mesh.faces[f, j], mesh.faces[f, (j + 1) % 3]
            shared = 0
            at = mesh.head[u]
            while at >= 0:
                g = at // 3
                if mesh.texels[at] == mesh.texels[3 * f + j]:
                    for k in range(3):
                        shared += mesh.texels[3 * g + k] == mesh.texels[3 * f + (j + 1) % 3]
                at = mesh.following[at]
            if shared == 1:
                edge = mesh.points[v] - mesh.points[u]
                normal = _normal(mesh.points, mesh.faces[f, 0], mesh.faces[f, 1], mesh.faces[f, 2])
                across = np.cross(edge, normal)
                length = np.sqrt(np.dot(across, across))
                if length > 0:
                    for end in (u, v):
                        _add_plane(quadrics[end], across / length, mesh.points[end], np.dot(edge, edge))


@numba.njit(cache=True)
def _texel(mesh, u, v, f, j):  # type: ignore[no-untyped-def]
    """The place in the texture at v for corner j of face f when u, where it is, moves there.

    That of the faces at the edge that have u's place as f has it; -1: there are none, or they differ, for a
    seam that ends at u runs along the edge.
    """
    here, found = mesh.texels[mesh.corners[f, j]], -1
    at = mesh.head[u]
    while at >= 0:
        g, i = at // 3, at % 3
        if mesh.alive[g] and mesh.texels[mesh.corners[g, i]] == here:
            for k in range(3):
                if mesh.faces[g, k] == v:
                    there = mesh.texels[mesh.corners[g, k]]
                    if found >= 0 and there != found:
                        return -1
                    found = there
        at = mesh.following[at]
    return found


@numba.njit(cache=True)
def _best_corner(mesh, u, v, f, j, normal):  # type: ignore[no-untyped-def]
    """The original corner at v for corner j of face f when u moves there: of those in its chart and at its
    place in the texture, the one whose normal is nearest to the face's (-1: none), and the cosine."""
    best, fit = -1, -2.0
    texel = _texel(mesh, u, v, f, j)
    at = mesh.head[v]
    while at >= 0:
        g = at // 3
        corner = mesh.corners[g, at - 3 * g]
        if mesh.alive[g] and mesh.charts[g] == mesh.charts[f] and mesh.texels[corner] == texel:
            cosine = np.dot(mesh.directions[corner], normal)
            if cosine > fit:
                best, fit = corner, cosine
        at = mesh.following[at]
    return best, fit


@numba.njit(cache=True)
def _allowed(mesh, shade, u, v):  # type: ignore[no-untyped-def]
    """Whether u may move onto v: no face turns over, leaves its chart or is shaded differently."""
    at = mesh.head[u]
    while at >= 0:
        f, j = at // 3, at % 3
        b, c = mesh.faces[f, (j + 1) % 3], mesh.faces[f, (j + 2) % 3]
        if mesh.alive[f] and b != v and c != v:
            before, after = _normal(mesh.points, u, b, c), _normal(mesh.points, v, b, c)
            area_before, area_after = np.sqrt(np.dot(before, before)), np.sqrt(np.dot(after, after))
            if np.dot(before, after) <= MIN_TURN_COSINE * area_before * area_after:
                return False
            corner, fit = _best_corner(mesh, u, v, f, j, after / area_after)
            direction = mesh.directions[mesh.corners[f, j]]
            if corner < 0 or fit < np.dot(direction, before / area_before) - shade:
                return False
        at = mesh.following[at]
    return True


@numba.njit(cache=True)
def _move(mesh, u, v):  # type: ignore[no-untyped-def]
    """Move u onto v."""
    last, number = -1, 0
    at = mesh.head[u]
    while at >= 0:
        last = at
        number += 1
        at = mesh.following[at]
    chosen = np.empty(number, np.int64)  # first for all, since each looks at the others' places
    at, number = mesh.head[u], 0
    while at >= 0:
        f, j = at // 3, at % 3
        b, c = mesh.faces[f, (j + 1) % 3], mesh.faces[f, (j + 2) % 3]
        chosen[number] = mesh.corners[f, j]
        if mesh.alive[f] and b != v and c != v:
            normal = _normal(mesh.points, v, b, c)
            unit = normal / np.sqrt(np.dot(normal, normal))
            chosen[number] = _best_corner(mesh, u, v, f, j, unit)[0]
        number += 1
        at = mesh.following[at]
    at, number = mesh.head[u], 0
    while at >= 0:
        f, j = at // 3, at % 3
        mesh.corners[f, j] = chosen[number]
        number += 1
        mesh.alive[f] = mesh.alive[f] and mesh.faces[f, (j + 1) % 3] != v and mesh.faces[f, (j + 2) % 3] != v
        mesh.faces[f, j] = v
        at = mesh.following[at]
    mesh.following[last] = mesh.head[v]
    mesh.head[v] = mesh.head[u]
    mesh.head[u] = -1


def decimate_meshes(
    model: mujoco.MjModel, meshes: set[int], tolerance: float, shade: float, seams: bool
) -> None:
    """Decimate some meshes of a compiled model in place: fewer faces, the same vertices.

    Only for a model for rendering: collisions would differ.
    """
    for mesh in meshes:
        if model.mesh_facenum[mesh] >= SMALL:
            _decimate_mesh(model, mesh, tolerance, shade, seams)


def _decimate_mesh(model: mujoco.MjModel, mesh: int, tolerance: float, shade: float, seams: bool) -> None:
    start, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    part = slice(start, start + count)
    arrays = [array[part] for array in (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord)]
    positions, normals, coordinates = (array.reshape(-1).copy() for array in arrays)
    points = model.mesh_vert[int(model.mesh_vertadr[mesh]) :][positions].astype(np.float64)
    directions = model.mesh_normal[int(model.mesh_normaladr[mesh]) :][normals].astype(np.float64)
    first, vertex = _weld(points)
    charts, texels = np.zeros(count, np.int64), None
    if model.mesh_texcoordadr[mesh] >= 0:
        texture = model.mesh_texcoord[int(model.mesh_texcoordadr[mesh]) :][coordinates]
        places = _weld(np.concatenate([points, texture], axis=1))[1].reshape(-1, 3)
        charts, texels = _charts(places), places if seams else None
    _, corners = decimate(
        points[first], vertex.reshape(-1, 3), charts, directions.reshape(-1, 3, 3), tolerance, shade, texels
    )
    if len(corners) == 0:
        return
    for array, values in zip(arrays, (positions, normals, coordinates), strict=True):
        array[: len(corners)] = values[corners]
    model.mesh_facenum[mesh] = len(corners)


def _weld(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Merge equal rows: the first row of each vertex (V,), and the vertex of each row (N,)."""
    keys = np.round(values / MARGIN).astype(np.int64)
    order = np.lexsort(keys.T[::-1])  # a seventh of the time of np.unique on rows
    ranked = keys[order]
    starts = np.append(True, (ranked[1:] != ranked[:-1]).any(axis=1))
    vertex = np.empty(len(keys), np.int64)
    vertex[order] = np.cumsum(starts) - 1
    return order[starts], vertex


def _charts(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the connected component of each face (F,)."""
    ends = np.concatenate([faces[:, :2], faces[:, 1:]])
    size = int(faces.max()) + 1
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (size, size))
    return connected_components(graph, directed=False)[1][faces[:, 0]].astype(np.int64)
