"""Ends a reconstructed wall near its most basal slice, for stacks that were planned on the base itself.

A stack seldom begins where the wall ends: the networks continue the wall above its first slice by what they learnt,
half a slice step on average. Who planned the first slice on the plane of the valves knows better.
"""

import numpy as np
import numpy.typing as npt

from m2s_runtime.grid import GRID, SLICES, SPACING
from m2s_runtime.placement import Canonical
from m2s_runtime.slices import wall_slices

Floats = npt.NDArray[np.float32]


def limit_base(sdgs: Floats, canonical: Canonical, limit_mm: float) -> Floats:
    """Cut distances in a plane parallel to the slices.

    Args:
        sdgs: (N, 128, 128, 64) mm, negative inside, base at index 0.
        canonical: the stack they were made of.
        limit_mm: how far beyond the most basal slice that holds wall, as acquired, the wall may reach, from 0 on.

    Returns:
        (N, 128, 128, 64) mm: those of what lies below the plane.
    """
    first = int(np.flatnonzero(wall_slices(canonical.masks))[0])
    place = canonical.placement
    plane_mm = (first - (SLICES - 1) / 2) * place.step_mm - place.left_out_mm - limit_mm
    heights = (np.arange(GRID[2]) - (GRID[2] - 1) / 2) * SPACING[2]
    return np.maximum(sdgs, (plane_mm - heights).astype(np.float32))
