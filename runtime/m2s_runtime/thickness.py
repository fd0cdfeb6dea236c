"""Wall thickness: from each point of one surface of the wall to the nearest point of the other.

Both ways are measured and count alike, so neither surface is preferred. The nearest distance of two parallel surfaces
is exact, it never exceeds what a ruler held across the wall reads, and unlike a ray along a normal it does not run off
where the wall bends or ends. Streamlines of Laplace's equation (Jones et al., Hum Brain Mapp 2000;11:12) agree with it
where the wall is smooth, and need a volume to be solved for.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m2s_runtime.cavity import Cavity
from m2s_runtime.grid import SPACING

Floats = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

CELL_MM: Final = 3.0
"""One vertex in each cube of this size is measured; its neighbours there follow to first order."""

_EVERY: Final = 2
"""Of the other surface every second vertex is looked up: 0.01 mm in the mean, a quarter of the time."""

_SCATTER: Final = 40503
"""Odd, and near the golden section of 2**16: multiples of it fall far apart."""

_BENT: Final = 0.25
"""Where distance to the point and to the plane through it differ by more than this share, the surface is no plane."""

_ON_GRID: Final = 1e-5
"""A vertex this near to a voxel centre lies on it: the way from world coordinates costs some of its digits."""


@dataclass(frozen=True, eq=False)
class Thickness:
    """What was measured at the vertices of a surface.

    Attributes:
        thickness: (V,) float32 mm; NaN at the rim, where the wall has but one side.
        areas: (V,) mm² of surface that each vertex measured stands for; how densely these lie depends on how the
            surface is turned to the grid.
        endo: indices of the vertices measured on the cavity's side.
        epi: those on the outside.
        apex: level of the most apical point of the cavity's side.
    """

    thickness: npt.NDArray[np.float32]
    areas: Vectors
    endo: Indices
    epi: Indices
    apex: float

    @property
    def mean(self) -> float:
        """Mean of both ways, mm."""
        sides = (self.endo, self.epi)
        return float(np.mean([np.average(self.thickness[side], weights=self.areas[side]) for side in sides]))

    @property
    def largest(self) -> float:
        """99th percentile over all points measured, mm."""
        return float(np.percentile(self.thickness[np.concatenate([self.endo, self.epi])], 99))


def wall_thickness(sdg: Floats, vertices: Vectors, faces: npt.NDArray[np.int32], cavity: Cavity) -> Thickness | None:
    """Measure the wall from one plane below the first that is closed all round; None where that leaves one side only.

    Args:
        sdg: (128, 128, 64) float32 mm, negative inside.
        vertices: (V, 3) of its surface, in voxels.
        faces: (F, 3) indices of these.
        cavity: what it encloses.
    """
    facing = _faces_cavity(vertices, cavity)
    measured = vertices[:, 2] >= cavity.first + 1
    inner, outer = np.flatnonzero(facing & measured), np.flatnonzero(~facing & measured)
    if not (len(inner) and len(outer)):
        return None
    points = vertices * SPACING
    thickness = np.full(len(vertices), np.nan, np.float32)
    areas = _areas(points, faces)
    endo, epi = (_across(sdg, points, *sides, thickness, areas) for sides in ((inner, outer), (outer, inner)))
    return Thickness(thickness, areas, endo, epi, float(vertices[inner, 2].max()))


def _areas(points: Vectors, faces: npt.NDArray[np.int32]) -> Vectors:
    """A third of the triangles about each vertex, (V,)."""
    a, b, c = (points.T[:, corner] for corner in faces.T)
    (ux, uy, uz), (vx, vy, vz) = b - a, c - a
    third = np.sqrt((uy * vz - uz * vy) ** 2 + (uz * vx - ux * vz) ** 2 + (ux * vy - uy * vx) ** 2) / 6
    return np.bincount(faces.T.ravel(), np.tile(third, 3), len(points)).astype(np.float64, copy=False)


def _faces_cavity(vertices: Vectors, cavity: Cavity) -> npt.NDArray[np.bool_]:
    """Whether a vertex, which lies on an edge of the grid between wall and no wall, borders on the cavity."""
    found = np.zeros(len(vertices), np.bool_)
    for end in (np.floor(vertices + _ON_GRID), np.ceil(vertices - _ON_GRID)):
        found |= cavity.holes[_within(end, cavity.holes.shape)]
    return found


def _across(
    sdg: Floats, points: Vectors, side: Indices, other: Indices, thickness: npt.NDArray[np.float32], areas: Vectors
) -> Indices:
    """Fill in the thickness at the points `side`; returns those that were measured, to which it adds their areas up."""
    from scipy.spatial import KDTree  # slow to import

    own = points[side]
    cells = ((own - own.min(axis=0)) / CELL_MM).astype(np.int64)
    size = cells.max(axis=0) + 1
    cell = (cells[:, 0] * size[1] + cells[:, 1]) * size[2] + cells[:, 2]
    number = np.full(int(size.prod()), -1)
    # The last of each cell stands for it; scattered, lest it lie on the same side in all of them.
    order = np.argsort(np.arange(len(own)) * _SCATTER % 2**16, kind="stable")
    number[cell[order]] = order
    chosen = number[number >= 0]
    number[number >= 0] = np.arange(len(chosen))
    across = points[other[::_EVERY]]
    # Neither balanced nor compact: quicker to build than either saves.
    tree = KDTree(across, leafsize=32, balanced_tree=False, compact_nodes=False)
    distance, nearest = tree.query(own[chosen])
    touched = across[nearest]
    # To the plane that touches the other surface there, for what is looked up lies a millimetre apart.
    normal = _normals(sdg, touched)
    of = number[cell]
    found = abs(np.einsum("ij,ij->i", own, normal[of]) - np.einsum("ij,ij->i", touched, normal)[of])
    reach = distance[of]
    thickness[side] = np.where(abs(found / reach - 1) < _BENT, found, reach)
    areas[side[chosen]] = np.bincount(of, areas[side])
    return side[chosen]


def _normals(sdg: Floats, points: Vectors) -> Vectors:
    """Unit normals (N, 3) of the surface at points (mm) of it, from differences between the voxels about them."""
    nearest = np.rint(points / SPACING).astype(np.int64)
    steps = np.eye(3, dtype=np.int64)
    normal = np.stack(
        [
            (sdg[_within(nearest + step, sdg.shape)] - sdg[_within(nearest - step, sdg.shape)]) / spacing
            for step, spacing in zip(steps, SPACING, strict=True)
        ],
        axis=1,
    )
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)


def _within(indices: npt.NDArray[Any], shape: tuple[int, ...]) -> tuple[Indices, ...]:
    """Indices (N, 3) for an array of that shape; those beyond its border are moved there."""
    return tuple(indices[:, a].astype(np.int64).clip(0, size - 1) for a, size in enumerate(shape))
