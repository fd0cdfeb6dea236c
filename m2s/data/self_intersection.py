"""Counts the pairs of triangles of a mesh that pass through one another, with exact signs.

Whether an edge pierces a triangle is a matter of five orientation signs. They are computed in double precision; where
the value is within its own rounding error (Shewchuk's bound) it is computed again in rational numbers.
"""

from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s_runtime.surface import Mesh

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_EPSILON: Final = float(np.finfo(np.float64).eps) / 2
_BOUND: Final = (7 + 56 * _EPSILON) * _EPSILON
"""Rounding error of the determinant below, in units of the sum of its terms' magnitudes (Shewchuk 1997)."""
_MOST_CELLS: Final = 64
"""Cells along the longest side of the search grid."""


def self_intersections(mesh: Mesh) -> int:
    """Number of pairs of triangles of which one has an edge that pierces the other.

    Triangles that share a corner or an edge are tested like all others: what they share does not count, the rest does.
    A corner that just touches another triangle, and triangles that overlap in one plane, do not count.

    Args:
        mesh: finite vertices.

    Returns:
        0 for a mesh that is embedded.
    """
    corners = mesh.vertices[mesh.faces]
    one, other = _neighbours(corners)
    found = _pierced(corners[one], corners[other]) | _pierced(corners[other], corners[one])
    return int(np.count_nonzero(found))


def orientation(a: Floats, b: Floats, c: Floats, d: Floats) -> npt.NDArray[np.int8]:
    """Exact signs of the determinant |a - d, b - d, c - d|, row by row: (N, 3) four times to (N,) of -1, 0 and 1."""
    p, q, r = a - d, b - d, c - d
    determinant, magnitude = np.zeros(len(d)), np.zeros(len(d))
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        first, second = q[:, j] * r[:, k], q[:, k] * r[:, j]
        determinant += p[:, i] * (first - second)
        magnitude += np.abs(p[:, i]) * (np.abs(first) + np.abs(second))
    sign = np.sign(determinant).astype(np.int8)
    for n in np.flatnonzero((np.abs(determinant) <= _BOUND * magnitude) & (magnitude > 0)):
        sign[n] = _exact(a[n], b[n], c[n], d[n])
    return sign


def _exact(*points: Floats) -> int:
    a, b, c, d = ([Fraction(float(x)) for x in point] for point in points)
    p, q, r = ([x - y for x, y in zip(point, d, strict=True)] for point in (a, b, c))
    terms = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    determinant = sum((p[i] * (q[j] * r[k] - q[k] * r[j]) for i, j, k in terms), Fraction(0))
    return (determinant > 0) - (determinant < 0)


def _pierced(edges_of: Floats, triangles: Floats) -> npt.NDArray[np.bool_]:
    """Whether an edge of the one triangle pierces the other: (N, 3, 3) twice to (N,)."""
    found = np.zeros(len(triangles), np.bool_)
    a, b, c = (triangles[:, k] for k in range(3))
    side = [orientation(a, b, c, edges_of[:, k]) for k in range(3)]
    for k in range(3):
        pair = np.flatnonzero(side[k] * side[(k + 1) % 3] < 0)
        start, end, triangle = edges_of[pair, k], edges_of[pair, (k + 1) % 3], triangles[pair]
        turns = [orientation(start, end, triangle[:, i], triangle[:, (i + 1) % 3]) for i in range(3)]
        found[pair] |= (np.min(turns, axis=0) >= 0) | (np.max(turns, axis=0) <= 0)
    return found


def _neighbours(corners: Floats) -> tuple[Ints, Ints]:
    """Pairs of triangles whose bounding boxes meet, each once."""
    low, high = corners.min(axis=1), corners.max(axis=1)
    # Cells of about the size of a triangle; the outer bound keeps one stretched triangle from filling millions.
    size = max(float(np.median(np.ptp(corners, axis=1).max(axis=1))), float(np.ptp(low, axis=0).max()) / _MOST_CELLS)
    first, last = ((x - low.min(axis=0)) // max(size, 1e-12) for x in (low, high))
    cell, triangle = _occupied(first.astype(np.int64), last.astype(np.int64))
    order = np.argsort(cell, kind="stable")
    one, other = _pairs_within(cell[order], triangle[order])
    pairs = np.unique(np.minimum(one, other) * len(corners) + np.maximum(one, other))
    one, other = pairs // len(corners), pairs % len(corners)
    meet = ((low[one] <= high[other]) & (low[other] <= high[one])).all(axis=1)
    return one[meet], other[meet]


def _occupied(first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Number of every cell that a bounding box meets, and the triangle it belongs to."""
    count = last - first + 1
    number = count.prod(axis=1)
    triangle = np.repeat(np.arange(len(first)), number)
    nth = np.arange(len(triangle)) - np.repeat(np.cumsum(number) - number, number)
    y, z = count[triangle, 1], count[triangle, 2]
    place = first[triangle] + np.stack([nth // (y * z), nth // z % y, nth % z], axis=1)
    _, cells_y, cells_z = last.max(axis=0) + 1
    return (place[:, 0] * cells_y + place[:, 1]) * cells_z + place[:, 2], triangle


def _pairs_within(cell: Ints, triangle: Ints) -> tuple[Ints, Ints]:
    """All pairs of triangles in the same cell; `cell` is sorted."""
    end = np.searchsorted(cell, cell, side="right")
    following = end - np.arange(len(cell)) - 1
    one = np.repeat(np.arange(len(cell)), following)
    other = one + 1 + np.arange(len(one)) - np.repeat(np.cumsum(following) - following, following)
    return triangle[one], triangle[other]
