"""The canonical grid: the one place for its numbers.

Axes are (x, y, z) in index space, z along the stack, index 0 at the base. Voxel i has its
centre at i times the spacing.
"""

from typing import Final

SLICES: Final = 12
"""Acquired slices that a stack holds at most."""

UPSAMPLING: Final = 5
"""High-resolution planes per acquired slice; slice k is the centre plane 5k + 2 of its block."""

PLANES: Final = SLICES * UPSAMPLING
"""Planes that the super-resolution network returns, `step / 5` mm apart."""

IN_PLANE: Final = 128
"""Pixels along x and along y, 1 mm each."""

MASK_GRID: Final = (IN_PLANE, IN_PLANE, PLANES)
"""Shape of super-resolved masks."""

PADDING: Final = 2
"""Planes added on either side of the 60 so that every stride of the networks divides the depth."""

GRID: Final = (IN_PLANE, IN_PLANE, PLANES + 2 * PADDING)
"""Shape of signed distance grids."""

SPACING: Final = (1.0, 1.0, 2.0)
"""Millimetres between the voxels of `GRID`."""

CENTRE: Final = (IN_PLANE - 1) / 2
"""Where the pool centroid goes, in x and in y: the middle, so that flips and quarter turns of an array are exact."""

NOMINAL_STEP: Final = UPSAMPLING * SPACING[2]
"""Slice step in millimetres at which the 60 planes fall on the grid without resampling."""

MAX_WALL_MM: Final = 126.0
"""Longest wall that fits the grid: twice the reach of its farther end slice from the middle of the 12 slices."""

MIN_SLICES: Final = 3
"""Fewest slices holding wall that can be reconstructed."""
