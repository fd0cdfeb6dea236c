"""Exact distances from points to a triangle mesh, wherever the points lie.

The kernel of the runtime answers for the voxels of a grid only; metrics ask at points of the other surface.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from m2s_runtime.surface import Mesh

Array = npt.NDArray[np.float64]

_POINTS_AT_ONCE: Final = 2000
"""Bounds the memory for point-triangle pairs to some tens of megabytes."""

_PIECES: Final = 20_000
"""Triangles of the mean size that a long one is measured against before it is cut."""


def triangle_areas(triangles: Array) -> Array:
    """Area of each of the (T, 3, 3) triangles, in squared units of the corners."""
    edges = triangles[:, 1:] - triangles[:, :1]
    return np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) / 2


def sample_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> Array:
    """Draw points uniformly by area.

    Args:
        mesh: closed or open triangle mesh, mm.
        count: points wanted.
        rng: source of randomness.

    Returns:
        (count, 3) float64, mm.

    Raises:
        ValueError: if the mesh has no area.
    """
    triangles = mesh.vertices[mesh.faces]
    cumulative = np.cumsum(triangle_areas(triangles))
    if len(cumulative) == 0 or not cumulative[-1] > 0:
        raise ValueError("a mesh without area cannot be sampled")
    chosen = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    root, across = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    a, b, c = (triangles[np.minimum(chosen, len(triangles) - 1), corner] for corner in range(3))
    return (1 - root) * a + root * (1 - across) * b + root * across * c


def _segment_squared(points: Array, start: Array, end: Array) -> Array:
    along = end - start
    length = np.einsum("ij,ij->i", along, along)
    offset = points - start
    where = np.einsum("ij,ij->i", offset, along) / np.where(length > 0, length, 1)
    gap = offset - np.clip(where, 0, 1)[:, None] * along
    return np.einsum("ij,ij->i", gap, gap)


def point_triangle_squared(points: Array, triangles: Array) -> Array:
    """Squared distance of each point to the triangle of the same row.

    The foot of the perpendicular counts where it falls inside, else the nearest of the three edges; a triangle without
    area is its edges.

    Args:
        points: (N, 3) mm.
        triangles: (N, 3, 3) mm, corner by corner.

    Returns:
        (N,) mm².
    """
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    ab, ac, ap = b - a, c - a, points - a
    normal = np.cross(ab, ac)
    size = np.einsum("ij,ij->i", normal, normal)
    safe = np.where(size > 0, size, 1)
    toward_b = np.einsum("ij,ij->i", np.cross(ap, ac), normal) / safe
    toward_c = np.einsum("ij,ij->i", np.cross(ab, ap), normal) / safe
    inside = (size > 0) & (toward_b >= 0) & (toward_c >= 0) & (toward_b + toward_c <= 1)
    plane = np.einsum("ij,ij->i", ap, normal) ** 2 / safe
    edges = np.minimum(_segment_squared(points, a, b), _segment_squared(points, b, c))
    return np.where(inside, plane, np.minimum(edges, _segment_squared(points, c, a)))


def _cut_long(triangles: Array, longest: float) -> Array:
    """Bisect triangles until no edge exceeds `longest`; the surface stays the same set of points."""
    done: list[Array] = []
    while len(triangles):
        edges = np.linalg.norm(np.roll(triangles, -1, axis=1) - triangles, axis=2)
        long = edges.max(axis=1) > longest
        done.append(triangles[~long])
        triangles, first = triangles[long], edges[long].argmax(axis=1)
        rows = np.arange(len(triangles))
        a, b, c = (triangles[rows, (first + corner) % 3] for corner in range(3))
        middle = (a + b) / 2
        triangles = np.concatenate([np.stack([a, middle, c], 1), np.stack([middle, b, c], 1)])
    return np.concatenate(done)


@dataclass(frozen=True)
class TriangleIndex:
    """A mesh prepared for distance queries.

    A triangle reaches at most `reach` from its centroid, so the nearest one has its centroid within (distance to any
    triangle) + `reach`: that ball around the point holds every candidate and the answer is exact.
    """

    triangles: Array
    tree: KDTree
    reach: float

    @classmethod
    def of(cls, mesh: Mesh) -> "TriangleIndex":
        """Index a mesh; long triangles (a flat cap) are cut, or `reach` would take in the whole mesh."""
        corners = mesh.vertices[mesh.faces]
        longest = 2 * float(np.sqrt(triangle_areas(corners).sum() / _PIECES))
        triangles = _cut_long(corners, longest) if longest > 0 else corners
        centroids = triangles.mean(axis=1)
        reach = float(np.linalg.norm(triangles - centroids[:, None], axis=2).max())
        return cls(triangles, KDTree(centroids), reach)

    def distance(self, points: Array) -> Array:
        """Distance in mm of each of the (N, 3) points to the surface, (N,) float64."""
        starts = range(0, len(points), _POINTS_AT_ONCE)
        return np.concatenate([self._distance(points[i : i + _POINTS_AT_ONCE]) for i in starts])

    def _distance(self, points: Array) -> Array:
        nearest = np.asarray(self.tree.query(points)[1], dtype=np.intp)
        bound = np.sqrt(point_triangle_squared(points, self.triangles[nearest]))
        # A hair more, so that rounding never leaves the list of a point empty.
        found = self.tree.query_ball_point(points, bound * (1 + 1e-9) + self.reach * (1 + 1e-9), return_sorted=False)
        counts = np.array([len(row) for row in found])
        candidates = np.concatenate([np.asarray(row, dtype=np.intp) for row in found])
        squared = point_triangle_squared(np.repeat(points, counts, axis=0), self.triangles[candidates])
        return np.sqrt(np.minimum.reduceat(squared, np.concatenate([[0], np.cumsum(counts)[:-1]])))
