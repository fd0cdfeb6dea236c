"""Nearest-neighbour interpolation: every slice repeated through its block, shifts left as they are."""

import numpy as np
import numpy.typing as npt

from m2s_runtime.grid import UPSAMPLING


def nearest_neighbour(slices: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Fill plane z with slice z // 5.

    Args:
        slices: (X, Y, 12) masks, slice k the centre of its block of five planes.

    Returns:
        (X, Y, 60) mask.
    """
    return np.repeat(slices, UPSAMPLING, axis=2)
