"""From a signed distance grid to a closed triangle mesh in millimetres, and what can be said about a mesh."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from m2s_runtime.errors import BadAffine, EmptyWall, NotFinite

try:
    from m2s_runtime import _surface as _native
except ImportError:
    _native = None

Points = npt.NDArray[np.float64]
Faces = npt.NDArray[np.int32]
Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_OUTSIDE_MM: Final = 10.0
"""Distance given to the voxels around the grid, so that a wall which meets the border gets a lid half a voxel out."""


_LEAST_MM: Final = np.float32(1e-3)
"""Distances nearer to zero count as this: corners of a triangle then never fall together in single-precision files."""

Tables = Literal["lewiner", "lorensen"]


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles; seen from outside their corners run counter-clockwise.

    Attributes:
        vertices: (V, 3) float64 mm.
        faces: (F, 3) int32, indices of vertices.
    """

    vertices: Points
    faces: Faces

    @cached_property
    def topology(self) -> "Topology":
        """What `topology` says of it, found once."""
        return topology(self)

    @cached_property
    def volume(self) -> float:
        """What `signed_volume` says of it, found once."""
        return signed_volume(self)


@dataclass(frozen=True)
class Topology:
    """Shape of a mesh without its measures.

    Attributes:
        closed: every directed edge occurs once, and so does its opposite.
        components: pieces that share no edge.
        genus: handles over all pieces; None for a mesh that is not closed.
    """

    closed: bool
    components: int
    genus: int | None


def extract_surface(sdg: Field, affine: npt.ArrayLike) -> Mesh:
    """Zero level set of a signed distance grid: its largest piece, closed, with outward winding.

    Args:
        sdg: (X, Y, Z) float32 mm, negative inside.
        affine: (4, 4) from voxel index to world mm; it may mirror.

    Returns:
        The mesh in world mm; its signed volume is positive.

    Raises:
        NotFinite: the grid holds NaN or infinity.
        EmptyWall: no voxel is inside.
        BadAffine: the affine is not finite or squeezes space flat.
    """
    to_world = np.asarray(affine, np.float64)
    if not np.isfinite(to_world).all() or np.linalg.det(to_world[:3, :3]) == 0:
        raise BadAffine("the grid cannot be placed in the world: its affine is not finite or not invertible")
    if not np.isfinite(sdg).all():
        raise NotFinite("the decoder returned distances that are not finite")
    inside = sdg < 0
    box = around(inside)
    near, inside = sdg[box], inside[box]
    clear = np.where(inside, np.minimum(near, -_LEAST_MM), np.maximum(near, _LEAST_MM))
    vertices, faces = contour(clear, inside, 0.0, _OUTSIDE_MM, "lorensen")
    vertices = vertices + [side.start for side in box]
    mesh = _largest_piece(Mesh(vertices @ to_world[:3, :3].T + to_world[:3, 3], faces))
    if mesh.volume < 0:
        return Mesh(mesh.vertices, np.ascontiguousarray(mesh.faces[:, ::-1]))
    return mesh


def around(inside: Mask, margin: int = 1) -> tuple[slice, slice, slice]:
    """The smallest box that holds every set voxel of (X, Y, Z) bool, grown by `margin` and cut to the grid.

    Raises:
        EmptyWall: none is set.
    """
    x, y, z = (slice(max(first - margin, 0), last + margin + 1) for first, last in _extent(inside))
    return x, y, z


def contour(field: Field, inside: Mask, level: float, outside: float, tables: Tables) -> tuple[Points, Faces]:
    """Marching cubes (scikit-image) with one voxel of padding, closed at the border of the grid.

    Args:
        field: (X, Y, Z) float32.
        inside: (X, Y, Z) bool, the voxels on the inner side of `level`.
        level: value on the surface.
        outside: value of the voxels around the grid, on the outer side of `level`.
        tables: both put the same vertices on the edges of cells. `lewiner` follows the trilinear interpolant, but
            leaves holes where corner values tie; `lorensen` always closes, and separates what only touches.

    Returns:
        (V, 3) float64 in voxel indices of `field` and (F, 3) int32; the winding is scikit-image's. The native code
        gives the very same arrays as scikit-image, which takes its place where it could not be built.

    Raises:
        EmptyWall: `inside` is empty.
    """
    extent = _extent(inside)
    lids = [(int(first == 0), int(last == size - 1)) for (first, last), size in zip(extent, field.shape, strict=True)]
    near = np.pad(field[around(inside)], lids, constant_values=outside)
    start = [first - 1 for first, _ in extent]
    # Values decide the ambiguous cells of these tables, other than in a mask.
    if _native is None or (tables == "lewiner" and not ((near == 0) | (near == 1)).all()):
        return _scikit_contour(near, level, start, tables)
    shape, origin = (near.shape[0], near.shape[1], near.shape[2]), (start[0], start[1], start[2])
    points, triangles = _native.contour(near.astype(np.float32, copy=False), shape, level, tables == "lewiner", origin)
    return np.frombuffer(points).reshape(-1, 3), np.frombuffer(triangles, np.int32).reshape(-1, 3)


def _extent(inside: Mask) -> list[tuple[int, int]]:
    """First and last index of a set voxel along each axis."""
    plan = np.asarray(inside.any(axis=2))
    sides = [np.flatnonzero(used) for used in (plan.any(axis=1), plan.any(axis=0), inside.any(axis=(0, 1)))]
    if not len(sides[0]):
        raise EmptyWall.after_networks()
    return [(int(side[0]), int(side[-1])) for side in sides]


def _scikit_contour(field: Field, level: float, start: list[int], tables: Tables) -> tuple[Points, Faces]:
    from skimage.measure import marching_cubes  # slow to import

    vertices, faces, _, _ = marching_cubes(field, level, method=tables)
    return vertices.astype(np.float64) + start, faces.astype(np.int32)


def signed_volume(mesh: Mesh) -> float:
    """Enclosed volume in mm³, positive when the winding is outward; meaningful for closed meshes only."""
    # About the centroid, for otherwise a mesh far from the origin cancels away its digits.
    x, y, z = np.ascontiguousarray((mesh.vertices - mesh.vertices.mean(axis=0)).T)
    a, b, c = np.ascontiguousarray(mesh.faces.T)
    ax, ay, az, bx, by, bz = x[a], y[a], z[a], x[b], y[b], z[b]
    cross = x[c] * (ay * bz - az * by), y[c] * (az * bx - ax * bz), z[c] * (ax * by - ay * bx)
    return float(sum(part.sum() for part in cross) / 6)


def surface_area(mesh: Mesh) -> float:
    """Area in mm²."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def topology(mesh: Mesh) -> Topology:
    """Closedness, pieces and handles.

    A vertex where two sheets touch is counted once for each sheet, so genus = components - (V - E + F) / 2 is whole.
    """
    if _native is not None:
        closed, fans, pieces = _native.topology(np.ascontiguousarray(mesh.faces, np.int32), len(mesh.vertices))
        if not closed:
            return Topology(False, _piece_count(mesh), None)
        return Topology(True, pieces, pieces - (fans - len(mesh.faces) * 3 // 2 + len(mesh.faces)) // 2)
    return _scipy_topology(mesh)


def _scipy_topology(mesh: Mesh) -> Topology:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    faces = mesh.faces.astype(np.int64)
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    vertex_count = len(mesh.vertices)
    forward, backward = start * vertex_count + end, end * vertex_count + start
    order, opposite = np.argsort(forward), np.argsort(backward)
    closed = (
        len(faces) > 0
        and bool((start != end).all())
        and bool((forward[order] == backward[opposite]).all())
        and bool((np.diff(forward[order]) > 0).all())
    )
    if not closed:
        return Topology(False, _piece_count(mesh), None)
    # Half-edge h = 3f + i starts at corner h and ends at the next corner of its face; its twin runs the other way.
    twin = np.empty(len(order), np.int64)
    twin[order] = opposite
    half = np.arange(len(order))
    following = half - half % 3 + (half + 1) % 3
    ones = np.ones(len(half), np.int8)
    fans = connected_components(coo_array((ones, (half, following[twin])), shape=(len(half),) * 2), directed=False)[0]
    pieces = connected_components(coo_array((ones, (half // 3, twin // 3)), shape=(len(faces),) * 2), directed=False)[0]
    euler = int(fans) - len(half) // 2 + len(faces)
    return Topology(True, int(pieces), int(pieces) - euler // 2)


def _labels(mesh: Mesh) -> npt.NDArray[np.int32]:
    """(V,) number of the piece that each vertex belongs to, in the order of their first vertices."""
    if _native is not None:
        found = _native.labels(np.ascontiguousarray(mesh.faces, np.int32), len(mesh.vertices))
        return np.frombuffer(found, np.int32)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    start, end = mesh.faces[:, :2].ravel(), mesh.faces[:, 1:].ravel()
    size = len(mesh.vertices)
    links = coo_array((np.ones(len(start), np.int8), (start, end)), shape=(size, size))
    return connected_components(links, directed=False)[1]


def _piece_count(mesh: Mesh) -> int:
    return len(np.unique(_labels(mesh)[mesh.faces[:, 0]]))


def _largest_piece(mesh: Mesh) -> Mesh:
    """The piece with most triangles, its vertices renumbered."""
    labels = _labels(mesh)
    if not labels.any():
        return mesh
    kept = labels == np.bincount(labels[mesh.faces[:, 0]]).argmax()
    number = np.cumsum(kept, dtype=np.int32) - 1
    return Mesh(mesh.vertices[kept], number[mesh.faces[kept[mesh.faces[:, 0]]]])
