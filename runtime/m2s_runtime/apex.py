"""Closes a reconstructed wall that is still a ring where it ends: stacks often stop above the apex.

A left ventricle has no hole at its apex. Where slices are missing there the networks mostly close the wall
themselves; where they do not, the cavity would run out through the end and the surface would be a tube.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s_runtime.slices import BoolArray, divided, signed_distance
from m2s_runtime.surface import around

try:
    from m2s_runtime import _voxels as _native
except ImportError:
    _native = None

Floats = npt.NDArray[np.float32]

CAP_PLANES: Final = 2
"""Planes that a cap is thick: 4 mm, a thin apex."""
CRUMB_MM2: Final = 12
"""Pieces of a plane up to this size are no anatomy: pinholes in the wall are closed, crumbs of wall dropped. Where a
wall thins out both make handles."""
_CLIP_MM: Final = 10.0
_EDGE_MM: Final = 0.5
"""Distance of a voxel that goes over to its neighbours' side."""


def close_apex(sdg: Floats) -> tuple[Floats, bool]:
    """Fills the cavity in the last planes in which it is enclosed, if the next plane does not cover it.

    Args:
        sdg: (128, 128, 64) float32 mm, negative inside, apex at high z.

    Returns:
        The distances, changed only in crumbs, pinholes and the `CAP_PLANES` planes of the cap, and whether there was
        a cavity to close.
    """
    inside = sdg < 0
    if not inside.any():
        return sdg, False
    # So far from the wall that what is cut off from the background is too large for a pinhole all the same.
    box = around(inside, CRUMB_MM2 + 1)
    near, closed = sdg[box], sdg
    filled = _turned_over(near, ~inside[box], -_EDGE_MM)
    mended = _turned_over(filled, filled < 0, _EDGE_MM)
    if mended is not near:
        closed = sdg.copy()
        closed[box] = mended
    wall = closed < 0
    last = _last_enclosed(wall)
    if last is None:
        return closed, False
    below = wall[:, :, last + 1] if last + 1 < wall.shape[2] else np.zeros_like(wall[:, :, 0])
    if not (_hole(wall[:, :, last]) & ~below).any():
        return closed, False
    closed = closed.copy()
    for plane in range(max(last - CAP_PLANES + 1, 0), last + 1):
        hole = _hole(wall[:, :, plane])
        cap = signed_distance((wall[:, :, plane] | hole)[:, :, None], _CLIP_MM)[:, :, 0]
        closed[:, :, plane] = np.where(hole, np.minimum(closed[:, :, plane], cap), closed[:, :, plane])
    return closed, True


def _turned_over(sdg: Floats, side: BoolArray, distance: float) -> Floats:
    """Puts small pieces of one side, plane by plane, on the other."""
    small = _small(side)
    return np.where(small, np.float32(distance), sdg) if small.any() else sdg


def _small(side: BoolArray) -> BoolArray:
    """The pixels of (X, Y, Z) whose piece in their plane has at most `CRUMB_MM2` of them."""
    if _native is not None:
        crumbs, (x, y, z) = np.zeros(side.shape, np.bool_), side.shape
        _native.crumbs(np.ascontiguousarray(side), crumbs, (x, y, z), True, CRUMB_MM2)
        return crumbs
    in_plane = np.zeros((3, 3, 3), np.bool_)
    in_plane[:, :, 1] = ndimage.generate_binary_structure(2, 1)
    pieces = np.zeros(side.shape, np.int32)
    ndimage.label(side, in_plane, output=pieces)
    small = np.bincount(pieces.ravel()) <= CRUMB_MM2
    small[0] = False
    return small[pieces]


def _last_enclosed(wall: BoolArray) -> int | None:
    """The plane nearest the apex in which the wall encloses a cavity."""
    for plane in np.flatnonzero(wall.any(axis=(0, 1)))[::-1]:
        if _hole(wall[:, :, plane]).any():
            return int(plane)
    return None


def _hole(plane: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return divided(plane) > 1
