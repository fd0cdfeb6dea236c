"""Nearest-neighbour interpolation: every slice repeated through its block, shifts left as they are."""

import numpy as np
import numpy.typing as npt

from m2s_runtime.grid import UPSAMPLING
from m2s_runtime.slices import wall_slices


def nearest_neighbour(slices: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Fill plane z with slice z // 5, or where that is missing inside the stack, with the nearest that is not.

    Args:
        slices: (X, Y, 12) masks, slice k the centre of its block of five planes.

    Returns:
        (X, Y, 60) mask.
    """
    filled = np.repeat(slices, UPSAMPLING, axis=2)
    held = np.flatnonzero(wall_slices(slices))
    if len(held) and held[-1] - held[0] >= len(held):
        planes = np.arange(UPSAMPLING * held[0], UPSAMPLING * (held[-1] + 1))
        centres = UPSAMPLING * held + UPSAMPLING // 2
        filled[:, :, planes] = slices[:, :, held[abs(planes[:, None] - centres).argmin(axis=1)]]
    return filled
