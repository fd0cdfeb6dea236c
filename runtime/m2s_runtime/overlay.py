"""The reconstruction cut where the slices were acquired, and moved as they were: it overlays the original image."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s_runtime.base_limit import BaseLimit
from m2s_runtime.shifts_file import SliceShifts

Vectors = npt.NDArray[np.float64]

_OUTSIDE_MM = 10.0


def overlay(
    sdg: npt.NDArray[np.floating[Any]], affine: Vectors, shifts: SliceShifts, limit: BaseLimit | None = None
) -> npt.NDArray[np.uint8]:
    """The wall on the grid of the source file, in every slice where that slice was seen.

    Args:
        sdg: (128, 128, 64) mm, negative inside, not yet ended at the `limit`: a slice may lie in its very plane.
        affine: (4, 4) its voxel index to world mm, as placed.
        shifts: of the same reconstruction.
        limit: where the wall ends.

    Returns:
        uint8 of the source's shape: 1 where the centre of a voxel lies in the wall, else 0.
    """
    to_grid = np.linalg.inv(affine) @ np.array(shifts.affine)
    moves = np.nan_to_num(shifts.moves) @ np.linalg.inv(affine)[:3, :3].T
    labels = np.zeros(shifts.shape, np.uint8)
    for s, move in enumerate(moves):
        where = [slice(None)] * 3
        where[shifts.slice_axis] = slice(s, s + 1)
        voxels = np.moveaxis(np.indices(labels[*where].shape), 0, -1)
        voxels[..., shifts.slice_axis] = s
        points = voxels @ to_grid[:3, :3].T + to_grid[:3, 3] + move
        distance = ndimage.map_coordinates(
            sdg, np.moveaxis(points, -1, 0), np.float64, order=1, mode="constant", cval=_OUTSIDE_MM
        )
        labels[*where] = (distance < 0) & (limit is None or limit.holds(points[..., 2]))
    return labels
