"""How far pixels or voxels are from the other kind: two Euclidean distance transforms, no surface between them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage


def edge_distance(
    inside: npt.NDArray[np.bool_], spacing: Sequence[float] | npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Distance to the nearest centre of the other kind, negative inside.

    Two neighbours across the edge are a whole pixel from each other's centre, so zero lies midway between them and the
    distance changes by two pixels there instead of one.

    Args:
        inside: of any shape, neither empty nor full.
        spacing: mm along each axis.

    Returns:
        The same shape, mm.
    """
    outside = np.asarray(ndimage.distance_transform_edt(~inside, sampling=spacing))
    return outside - np.asarray(ndimage.distance_transform_edt(inside, sampling=spacing))
