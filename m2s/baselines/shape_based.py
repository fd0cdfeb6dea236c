"""The classical line: slices moved onto a track through their centroids, then shape-based interpolation, no learning.

Shape-based interpolation (Raya and Udupa, IEEE Trans Med Imaging 9(1), 1990) blends the signed distances of
neighbouring slices instead of the slices themselves.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s_runtime.grid import PLANES, UPSAMPLING
from m2s_runtime.slices import centre_shifts, pool_features, signed_distance, wall_slices

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]

_CLIP_MM: Final = 30.0
"""Beyond half of any cavity, so that the blend of two slices is never of clipped distances near the wall."""


@dataclass(frozen=True)
class ShapeBased:
    """What the classical line returns."""

    mask: BoolArray
    """(128, 128, 60)."""
    shifts: FloatArray
    """(12, 2) mm, the motion it took each slice to have: corrected(p) = slice(p + shift)."""


def track_shifts(slices: BoolArray, degree: int) -> FloatArray:
    """Offset of each slice's wall centroid from a polynomial track along the stack.

    Args:
        slices: (128, 128, 12) masks.
        degree: 0 for one point, 1 for a straight line; lower where too few slices hold wall.

    Returns:
        (12, 2) mm; zero for slices without wall.
    """
    wall = np.flatnonzero(wall_slices(slices))
    shifts = np.zeros((slices.shape[2], 2), np.float32)
    if not wall.size:
        return shifts
    centroids = np.array([np.argwhere(slices[:, :, s]).mean(axis=0) for s in wall])
    powers = np.vander(wall - wall.mean(), min(degree, len(wall) - 1) + 1)
    shifts[wall] = centroids - powers @ np.linalg.lstsq(powers, centroids, rcond=None)[0]
    return shifts


def interpolate_distances(distance: FloatArray, wall: BoolArray) -> BoolArray:
    """Blend in-plane signed distances linearly along z and take the inside.

    Beyond the first and the last wall slice the nearest one is repeated to the end of its block: how the wall goes on
    is not known, and an empty slice has no distance to blend with.

    Args:
        distance: (X, Y, 12) mm, negative inside.
        wall: (12,) slices that hold wall.

    Returns:
        (X, Y, 60) mask; slice k is the centre plane 5k + 2 of its block.
    """
    known = np.flatnonzero(wall)
    mask = np.zeros((*distance.shape[:2], PLANES), np.bool_)
    if not known.size:
        return mask
    for plane in range(UPSAMPLING * int(known[0]), UPSAMPLING * int(known[-1]) + UPSAMPLING):
        at = np.interp((plane - UPSAMPLING // 2) / UPSAMPLING, known, np.arange(len(known)))
        below = int(at)
        above = min(below + 1, len(known) - 1)
        weight = np.float32(at - below)
        mask[:, :, plane] = (1 - weight) * distance[:, :, known[below]] + weight * distance[:, :, known[above]] < 0
    return mask


def shape_based(slices: BoolArray, *, degree: int = 1, centred: bool = True, corrected: bool = True) -> ShapeBased:
    """Re-align a stack by its centroids and interpolate between the slices.

    Args:
        slices: (128, 128, 12) masks.
        degree: of the track that the centroids are put on, see `track_shifts`.
        centred: whether the pool centroid then goes to the centre of the grid (`centre_shifts`), where the truth is.
        corrected: False leaves the slices where they are and only interpolates.
    """
    shifts = track_shifts(slices, degree) if corrected else np.zeros((slices.shape[2], 2), np.float32)
    wall = wall_slices(slices)
    if centred:
        shifts = np.where(wall[:, None], centre_shifts(shifts, pool_features(slices)), 0).astype(np.float32)
    distance = signed_distance(slices, _CLIP_MM)
    for s in np.flatnonzero(wall):
        distance[:, :, s] = ndimage.shift(distance[:, :, s], -shifts[s], order=1, mode="nearest")
    return ShapeBased(interpolate_distances(distance, wall), shifts)
