"""Resampling of acquired slices to 1 mm pixels about the middle of the pool."""

import numpy as np
import numpy.typing as npt

from m2s_runtime.edge_distance import edge_distance
from m2s_runtime.errors import WallOutOfRange
from m2s_runtime.grid import CENTRE, IN_PLANE, SLICES
from m2s_runtime.slices import BoolArray, bounding_box, pool_centre, wall_slices

Vector = npt.NDArray[np.float64]

FAR_MM = float(IN_PLANE)
"""Distance to the wall that stands for "none near" where there is nothing to sample."""


def resample(stack: BoolArray, spacing: Vector, start: int) -> tuple[BoolArray, Vector]:
    """Resample slices in-plane to 1 mm so that the mean pool centroid falls on the grid's centre.

    Args:
        stack: (X, Y, n) bool, base first.
        spacing: (2,) mm.
        start: canonical index of the first slice.

    Returns:
        (128, 128, 12) bool, and the in-plane source index (2,) that lies at the grid's centre.

    Raises:
        WallOutOfRange: some of the wall lies more than 64 mm from the centre along x or y.
    """
    corner, box = _cropped(stack)
    distances = np.stack([_edge_distance(box[:, :, s], spacing) for s in range(box.shape[2])])
    middle = pool_centre(box[:, :, wall_slices(box)])
    _check_width(box, middle, spacing)
    planes = _sample(distances, middle, spacing) < 0
    # Thresholding moves the centroid by a few hundredths of a millimetre; two further looks remove most of it.
    for _ in range(2):
        if planes.any():
            middle = middle + (pool_centre(planes[:, :, wall_slices(planes)]) - CENTRE) / spacing
            planes = _sample(distances, middle, spacing) < 0
    masks = np.zeros((IN_PLANE, IN_PLANE, SLICES), np.bool_)
    masks[:, :, start : start + planes.shape[2]] = planes
    return masks, middle + corner


def sample_nearest(stack: BoolArray, middle: Vector, spacing: Vector, start: int) -> BoolArray:
    """Slices of another structure at the nearest pixels of the grid that `resample` found.

    Args:
        stack: (X, Y, n) bool, base first.
        middle: (2,) source index that lies at the grid's centre.
        spacing: (2,) mm.
        start: canonical index of the first slice.

    Returns:
        (128, 128, 12) bool.
    """
    sides = [np.rint(middle[a] + (np.arange(IN_PLANE) - CENTRE) / spacing[a]).astype(np.int64) for a in (0, 1)]
    within = [np.flatnonzero((side >= 0) & (side < size)) for side, size in zip(sides, stack.shape, strict=False)]
    masks = np.zeros((IN_PLANE, IN_PLANE, SLICES), np.bool_)
    found = stack[np.ix_(sides[0][within[0]], sides[1][within[1]])]
    masks[np.ix_(*within, np.arange(start, start + stack.shape[2]))] = found
    return masks


def _cropped(stack: BoolArray) -> tuple[Vector, BoolArray]:
    """Cut the in-plane box that holds the wall, two empty pixels round it; its corner in source indices comes along."""
    rows, columns = bounding_box(np.asarray(stack.any(axis=2)))
    box = np.pad(stack[rows, columns], ((2, 2), (2, 2), (0, 0)))
    return np.array([rows.start, columns.start], np.float64) - 2, box


def _edge_distance(plane: BoolArray, spacing: Vector) -> Vector:
    """Distance to the nearest pixel of the other kind, negative inside: linear sampling puts the edge midway."""
    if not plane.any():
        return np.full(plane.shape, FAR_MM)
    return edge_distance(plane, spacing)


def _sample(distances: Vector, middle: Vector, spacing: Vector) -> Vector:
    """Bilinear samples at 1 mm about `middle`: (n, X, Y) mm to (128, 128, n) mm, `FAR_MM` beyond the box."""
    sampled = distances - FAR_MM
    for axis in (1, 2):
        at = middle[axis - 1] + (np.arange(IN_PLANE) - CENTRE) / spacing[axis - 1]
        sampled = _between(sampled, at, axis)
    return np.moveaxis(sampled + FAR_MM, 0, 2)


def _between(values: Vector, at: Vector, axis: int) -> Vector:
    """Linear samples of (n, X, Y) at indices along one axis, 0 beyond the array."""
    size = values.shape[axis]
    beside = [np.floor(at), np.floor(at) + 1]
    parts = [np.where((index >= 0) & (index < size), 1 - abs(at - index), 0) for index in beside]
    low, high = (
        np.take(values, index.clip(0, size - 1).astype(np.intp), axis) * np.moveaxis(part[:, None, None], 0, axis)
        for index, part in zip(beside, parts, strict=True)
    )
    return low + high


def _check_width(box: BoolArray, middle: Vector, spacing: Vector) -> None:
    points = np.argwhere(box.any(axis=2))
    reach = float(abs((points - middle) * spacing).max())
    if reach > IN_PLANE / 2:
        raise WallOutOfRange(
            f"the wall reaches {reach:.0f} mm from the middle of its cavity and {IN_PLANE // 2} fit: check the pixel"
            " spacing in the header, and erase stray voxels of the wall label far from the heart"
        )
