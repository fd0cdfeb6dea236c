"""The cavity that a reconstructed wall encloses: where it begins and ends along the stack, and what it holds.

All of it is in the grid of the signed distances, in which the short-axis planes are the planes of constant z.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s_runtime.grid import SPACING
from m2s_runtime.slices import BoolArray
from m2s_runtime.surface import around

Floats = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float64]

SECTORS: Final = 72
"""Of 5 degrees each; the rim is looked up in every one."""

_PINHOLE: Final = 0.5
"""The cavity is wide at its base: a hole with less than this share of the next one's area is a flaw of the rim."""

_IN_PLANE: Final = np.pad(ndimage.generate_binary_structure(2, 1)[:, :, None], ((0, 0), (0, 0), (1, 1)))


@dataclass(frozen=True, eq=False)
class Cavity:
    """What a wall encloses, plane by plane; levels are z indices of the grid, which need not be whole.

    Attributes:
        holes: (128, 128, 64) bool, the largest hole of every plane of the run.
        areas: (64,) mm² of each.
        centres: (64, 2) centroid of each in voxels; beyond the run that of the nearest plane.
        first: the most basal plane of the run.
        last: the most apical one.
        base: level of the base plane, see `base_level`.
    """

    holes: BoolArray
    areas: Vectors
    centres: Vectors
    first: int
    last: int
    base: float

    @property
    def volume_ml(self) -> float:
        """From the base plane down; between it and the first plane the cavity is continued straight on."""
        above = (self.first - 0.5 - self.base) * self.areas[self.first]
        return float(self.areas.sum() + above) * SPACING[2] / 1000

    @property
    def open_mm(self) -> float:
        """How far below the base plane the wall is first closed all round."""
        return max(self.first - self.base, 0.0) * SPACING[2]

    @property
    def cut_off(self) -> float:
        """Area of the most apical plane over that of the largest one: small where the cavity tapers to its end."""
        return float(self.areas[self.last] / self.areas.max())


def find_cavity(sdg: Floats, vertices: Vectors) -> Cavity | None:
    """Look for the cavity of a reconstruction; None where the wall closes in no plane.

    Args:
        sdg: (128, 128, 64) float32 mm, negative inside, apex at high z.
        vertices: (V, 3) of its surface, in voxels.
    """
    holes, areas = _largest_holes(sdg < 0)
    run = _run_about(areas)
    if run is None:
        return None
    first, last = run
    holes[:, :, :first] = holes[:, :, last + 1 :] = False
    areas[:first] = areas[last + 1 :] = 0
    centres = _centroids(holes, first, last)
    return Cavity(holes, areas, centres, first, last, base_level(vertices, centres[first], first))


def base_level(vertices: Vectors, centre: Vectors, first: int) -> float:
    """Level of the base plane: median over the circumference of the most basal level that the wall reaches.

    Half of the rim is higher and half is lower, as in the rule that a slice belongs to the ventricle when wall
    surrounds at least half of the blood in it (SCMR 2020).

    Args:
        vertices: (V, 3) of the surface, in voxels.
        centre: (2,) of the cavity in plane `first`, in voxels.
        first: the most basal plane in which the wall is closed all round, so that every sector has a rim above it.
    """
    x, y, z = vertices[vertices[:, 2] <= first].T
    angle = np.arctan2((y - centre[1]) * SPACING[1], (x - centre[0]) * SPACING[0])
    sector = ((angle / (2 * np.pi) + 0.5) * SECTORS).astype(np.int64) % SECTORS
    highest = np.full(SECTORS, float(first))
    np.minimum.at(highest, sector, z)
    return float(np.median(highest))


def _largest_holes(wall: BoolArray) -> tuple[BoolArray, Vectors]:
    """The largest hole of every plane along z, and its area in mm²."""
    found, areas = np.zeros(wall.shape, np.bool_), np.zeros(wall.shape[2])
    box = around(wall, 0)
    # One pixel of background all round joins what is outside into one part a plane.
    clear = np.pad(~wall[box], ((1, 1), (1, 1), (0, 0)), constant_values=True)
    parts: npt.NDArray[np.int32] = np.zeros(clear.shape, np.int32)
    ndimage.label(clear, _IN_PLANE, output=parts)
    sizes = np.bincount(parts.ravel())
    sizes[parts[0, 0]] = sizes[0] = 0
    plane = np.zeros(len(sizes), np.int64)
    plane[parts] = np.arange(clear.shape[2])
    by_size = np.argsort(sizes)[np.count_nonzero(sizes == 0) :]
    largest = np.zeros(clear.shape[2], np.int32)
    largest[plane[by_size]] = by_size  # of several the last, which is the largest
    found[box] = (parts[1:-1, 1:-1] == largest) & (largest > 0)
    areas[box[2]] = sizes[largest] * float(np.prod(SPACING[:2]))
    return found, areas


def _run_about(areas: Vectors) -> tuple[int, int] | None:
    """First and last of the neighbouring planes with a hole about the one with the largest."""
    if not areas.any():
        return None
    middle = int(areas.argmax())
    empty = np.flatnonzero(areas == 0)
    before, after = empty[empty < middle], empty[empty > middle]
    first = int(before[-1]) + 1 if len(before) else 0
    while first < middle and areas[first] < _PINHOLE * areas[first + 1]:
        first += 1
    return first, (int(after[0]) - 1 if len(after) else len(areas) - 1)


def _centroids(holes: BoolArray, first: int, last: int) -> Vectors:
    inside = holes[:, :, first : last + 1]
    centres = np.empty((holes.shape[2], 2))
    for axis in (0, 1):
        along = np.count_nonzero(inside, axis=1 - axis)
        centres[first : last + 1, axis] = np.arange(len(along)) @ along / along.sum(axis=0)
    centres[:first], centres[last + 1 :] = centres[first], centres[last]
    return centres
