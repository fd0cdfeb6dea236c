"""Ground truth on the grid: from a closed mesh to its voxels and to its signed distances."""

import numpy as np
import numpy.typing as npt

from m2s_runtime.errors import BadMesh, NotFinite
from m2s_runtime.grid import GRID, SPACING
from m2s_runtime.mesh_distance import grid_distance

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def voxelise(
    vertices: npt.ArrayLike, faces: npt.ArrayLike, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> npt.NDArray[np.bool_]:
    """Voxels whose centre lies inside a closed mesh, by parity of crossings along z.

    A column counts as crossing a triangle when an in-plane ray from it crosses an odd number of the triangle's edges.
    Both triangles at an edge compute that crossing from the same numbers, so every column of a closed mesh is crossed
    an even number of times, whatever the rounding and even where it runs through an edge or a vertex.

    Args:
        vertices: (V, 3) mm, voxel i of an axis centred at i times its spacing.
        faces: (F, 3) vertex indices; the winding does not matter.
        shape: (X, Y, Z) of the result; what lies outside it is cut off.
        spacing: mm between voxels, per axis.

    Returns:
        (X, Y, Z) bool. A centre on the surface goes to one side only: solids that share a wall never claim it twice.

    Raises:
        NotFinite: a vertex is NaN or infinite.
        BadMesh: the mesh is open, or a face names a vertex that does not exist.
    """
    corners = _corners(vertices, faces) / np.asarray(spacing, np.float64)
    triangle, column_x, column_y = _candidates(corners, shape)
    candidate = corners[triangle]
    hit = _covers(candidate, column_x, column_y)
    candidate, column_x, column_y = candidate[hit], column_x[hit], column_y[hit]
    height = _height(candidate, column_x, column_y)
    # The first centre at or above the crossing is where the column changes sides; the extra layer takes those above.
    layer = np.clip(np.ceil(height), 0, shape[2]).astype(np.int64)
    extended = (shape[0], shape[1], shape[2] + 1)
    flat = np.ravel_multi_index((column_x, column_y, layer), extended)
    flips = (np.bincount(flat, minlength=int(np.prod(extended))) & 1).astype(np.bool_).reshape(extended)
    inside = np.logical_xor.accumulate(flips, axis=2)
    if inside[:, :, -1].any():
        raise BadMesh("the mesh is open, so it has no inside: close it before it is voxelised")
    return np.ascontiguousarray(inside[:, :, :-1])


def _corners(vertices: npt.ArrayLike, faces: npt.ArrayLike) -> Floats:
    """(F, 3, 3) corner positions, checked."""
    points, index = np.asarray(vertices, np.float64), np.asarray(faces)
    if points.ndim != 2 or points.shape[1] != 3 or index.ndim != 2 or index.shape[1] != 3:
        raise BadMesh(f"vertices must be (V, 3) and faces (F, 3), not {points.shape} and {index.shape}")
    if not np.isfinite(points).all():
        raise NotFinite("a vertex of the mesh is NaN or infinite")
    if index.size and (index.min() < 0 or index.max() >= len(points)):
        raise BadMesh(f"a face names vertex {index.max()} (or a negative one) of {len(points)}")
    return points[index]


def _candidates(corners: Floats, shape: tuple[int, int, int]) -> tuple[Ints, Ints, Ints]:
    """Triangle, x and y of every column inside the in-plane bounding box of a triangle."""
    limit = np.array(shape[:2]) - 1
    low, high = corners[:, :, :2].min(axis=1), corners[:, :, :2].max(axis=1)
    first = np.ceil(np.clip(low, 0, limit + 1)).astype(np.int64)
    last = np.floor(np.clip(high, -1, limit)).astype(np.int64)
    count = np.maximum(last - first + 1, 0)
    number = count[:, 0] * count[:, 1]
    triangle = np.repeat(np.arange(len(corners)), number)
    nth = np.arange(len(triangle)) - np.repeat(np.cumsum(number) - number, number)
    row, column = np.divmod(nth, count[triangle, 1])
    return triangle, first[triangle, 0] + row, first[triangle, 1] + column


def _covers(corners: Floats, x: Ints, y: Ints) -> npt.NDArray[np.bool_]:
    """Whether column (x, y) crosses its triangle, by the half-open rule: (N, 3, 3), (N,), (N,) -> (N,)."""
    inside = np.zeros(len(corners), np.bool_)
    for here, there in ((0, 1), (1, 2), (2, 0)):
        a, b = corners[:, here, :2], corners[:, there, :2]
        straddling = np.flatnonzero((a[:, 1] <= y) != (b[:, 1] <= y))
        a, b = a[straddling], b[straddling]
        # Lower end first: the neighbour, which runs along this edge the other way, then gets the same number.
        upward = (a[:, 1] < b[:, 1])[:, None]
        low, high = np.where(upward, a, b), np.where(upward, b, a)
        crossing = low[:, 0] + (y[straddling] - low[:, 1]) * (high[:, 0] - low[:, 0]) / (high[:, 1] - low[:, 1])
        # Rounding must not carry the crossing out of the edge: the column may be no candidate of the neighbour then.
        crossing = np.clip(crossing, np.minimum(a[:, 0], b[:, 0]), np.maximum(a[:, 0], b[:, 0]))
        inside[straddling] ^= crossing > x[straddling]
    return inside


def _height(corners: Floats, x: Ints, y: Ints) -> Floats:
    """Where column (x, y) crosses its triangle, in planes; kept within the triangle when it stands upright."""
    origin = corners[:, 0]
    u, v = corners[:, 1] - origin, corners[:, 2] - origin
    dx, dy = x - origin[:, 0], y - origin[:, 1]
    area = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    upright = area == 0
    area = np.where(upright, 1.0, area)
    along_u = (dx * v[:, 1] - dy * v[:, 0]) / area
    along_v = (u[:, 0] * dy - u[:, 1] * dx) / area
    height = origin[:, 2] + np.where(upright, 0.0, along_u * u[:, 2] + along_v * v[:, 2])
    return np.clip(height, corners[:, :, 2].min(axis=1), corners[:, :, 2].max(axis=1))


def signed_distance_grid(vertices: npt.ArrayLike, faces: npt.ArrayLike, threads: int = 1) -> npt.NDArray[np.float32]:
    """Signed distances from the voxels of the grid to a closed surface (the paper's SDG).

    Args:
        vertices: (V, 3) mm in the frame of the grid: voxel i has its centre at i times the spacing.
        faces: (F, 3) vertex indices.
        threads: for the distances.

    Returns:
        (128, 128, 64) float32 mm, negative inside.

    Raises:
        BadMesh: the mesh is open or malformed.
        NotFinite: a vertex is NaN or infinite.
    """
    inside = voxelise(vertices, faces, GRID, SPACING)
    distance = grid_distance(vertices, faces, GRID, SPACING, threads)
    return np.where(inside, -distance, distance)
