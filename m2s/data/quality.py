"""What the template is fitted to, and how well it fits."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s.data.sdg import voxelise
from m2s.data.self_intersection import self_intersections
from m2s.metrics import SampledSurface, dice, surface_distance
from m2s_runtime.grid import MASK_GRID, SPACING
from m2s_runtime.surface import Mesh, extract_surface, topology

Masks = npt.NDArray[np.bool_]

WORST_MEAN_MM: Final = 1.0
"""A fit that is farther from its mask than this on average is not used: half the distance between planes."""


@dataclass(frozen=True)
class Quality:
    """How a fitted template relates to the mask it was fitted to.

    Attributes:
        mean_mm: mean distance between fit and marching-cubes surface, both directions; the voxels' steps alone make
            0.15 to 0.2 mm of it.
        p95_mm: greater of the two directed 95th percentiles.
        dice: of the voxelised fit with the mask.
        self_intersections: pairs of triangles that pass through one another.
        closed: whether the mesh is closed.
        genus: handles; None when it is not closed.
    """

    mean_mm: float
    p95_mm: float
    dice: float
    self_intersections: int
    closed: bool
    genus: int | None

    @property
    def faults(self) -> str:
        """Why the fit should not be trained on, in words; empty when it may be."""
        found = (
            (f"{self.mean_mm:.1f} mm from the mask", self.mean_mm > WORST_MEAN_MM),
            (f"{self.self_intersections} self-intersections", self.self_intersections > 0),
            ("not closed, or with a handle", not self.closed or self.genus != 0),
        )
        return "; ".join(text for text, bad in found if bad)


def mask_surface(mask: Masks) -> Mesh:
    """Marching cubes of a mask at 0.5: its largest piece, closed, outward winding; specks and voids are left out.

    Args:
        mask: (X, Y, Z) bool, 1 x 1 x 2 mm.

    Returns:
        mm; voxel i has its centre at i times the spacing.

    Raises:
        EmptyWall: no voxel is set.
    """
    # One empty voxel around, so that a wall at the border ends half a voxel out like everywhere else.
    field = np.where(np.pad(mask, 1), np.float32(-1), np.float32(1))
    place = np.diag([*SPACING, 1.0])
    place[:3, 3] = [-s for s in SPACING]
    return extract_surface(field, place)


def measure(fit: Mesh, target: Mesh, mask: Masks) -> Quality:
    """Compare a fit with the surface that it was fitted to and with the mask of that.

    Args:
        fit: mm, in the frame of `target`.
        target: as `mask_surface` gives it.
        mask: (128, 128, 60) bool.

    Raises:
        NotFinite: a vertex is NaN or infinite.
        BadMesh: the fit is open.
    """
    voxels = voxelise(fit.vertices, fit.faces, MASK_GRID, SPACING)
    distance = surface_distance(SampledSurface.of(fit, "prediction"), SampledSurface.of(target, "truth"))
    shape = topology(fit)
    return Quality(
        mean_mm=distance.assd,
        p95_mm=distance.hd95,
        dice=dice(voxels, mask),
        self_intersections=self_intersections(fit),
        closed=shape.closed,
        genus=shape.genus,
    )
