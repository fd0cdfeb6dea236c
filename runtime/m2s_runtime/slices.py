"""What the networks are told about a stack of slices: signed distances, the pool of each slice, centred shifts.

A stack is (128, 128, 12), axes (x, y, z), 1 mm pixels, index 0 at the base. Shifts are (..., 12, 2) mm along x and y
with `corrected(p) = slice(p + shift)`, so a point seen at c lies at c - shift once its slice is moved back.
"""

from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s_runtime.grid import CENTRE

try:
    from m2s_runtime import _voxels as _native
except ImportError:
    _native = None

_IN_PLANE = np.array([[[0, 0, 0]] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0]] * 3])
"""Neighbours along the last two of three axes: what `ndimage.label` joins plane by plane."""

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]


Operand: TypeAlias = Any
"""An array of the same library, a number or an index: NumPy, CuPy and torch share no type for it."""


class Array(Protocol):
    """What `centre_shifts` and its kin ask of an array: the operators that the three libraries spell alike."""

    def __getitem__(self, key: Operand, /) -> Operand: ...
    def __add__(self, other: Operand, /) -> Operand: ...
    def __sub__(self, other: Operand, /) -> Operand: ...
    def __mul__(self, other: Operand, /) -> Operand: ...
    def sum(self, axis: Operand, /) -> Operand: ...  # noqa: D102


A = TypeVar("A", bound=Array)


def wall_slices(masks: BoolArray) -> BoolArray:
    """Tell which slices hold any wall: (X, Y, S) bool to (S,) bool."""
    return np.asarray(masks.any(axis=(0, 1)))


def bounding_box(plane: BoolArray, margin: int = 0) -> tuple[slice, slice]:
    """The smallest box that holds every set pixel of (X, Y) bool, grown by `margin` and cut to the plane."""
    rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
    return (
        slice(max(int(rows[0]) - margin, 0), int(rows[-1]) + margin + 1),
        slice(max(int(columns[0]) - margin, 0), int(columns[-1]) + margin + 1),
    )


def divided(plane: BoolArray) -> npt.NDArray[np.int32]:
    """The parts into which the set pixels of (X, Y) divide the rest: 1 outside, 2 and on the holes; 0 where set.

    One pass, where filling by dilation would take a step for each pixel of a spiral.
    """
    parts = np.zeros(np.add(plane.shape, 2), np.int32)
    # One pixel of background all round joins everything outside into the part labelled 1.
    ndimage.label(np.pad(~plane, 1, constant_values=True), output=parts)
    return parts[1:-1, 1:-1]


def signed_distance(masks: BoolArray, clip_mm: float) -> FloatArray:
    """In-plane signed distance to the wall's boundary, negative inside the wall.

    The boundary runs midway between the centres of neighbouring pixels, so the first pixel on either side is at 0.5 mm.

    Args:
        masks: (X, Y, S) bool, 1 mm pixels.
        clip_mm: largest absolute distance returned, mm.

    Returns:
        (X, Y, S) float32 mm within ±`clip_mm`; a slice without wall is `+clip_mm` throughout.
    """
    distance = np.full(masks.shape, clip_mm, np.float32)
    if _native is not None:
        x, y, z = masks.shape
        _native.signed_distances(np.ascontiguousarray(masks, np.bool_), distance, (x, y, z), clip_mm)
        return distance
    for s in np.flatnonzero(wall_slices(masks)):
        # Beyond this margin every distance is clipped, so the transform need not see it.
        box = bounding_box(masks[:, :, s], int(np.ceil(clip_mm)) + 1)
        distance[(*box, s)] = np.clip(_plane_distance(masks[(*box, s)]), -clip_mm, clip_mm)
    return distance


def pool_features(masks: BoolArray) -> FloatArray:
    """Where the cavity of each slice is and how large: the largest hole that the wall leaves.

    Args:
        masks: (X, Y, S) bool, 1 mm pixels.

    Returns:
        (S, 3) float32: x and y of the centroid in voxels, area in mm². Where the ring is open the area is 0 and the
        centroid is that of the wall; without wall it is the grid's centre.
    """
    features = np.full((masks.shape[2], 3), (CENTRE, CENTRE, 0), np.float32)
    held = np.flatnonzero(wall_slices(masks))
    if not len(held):
        return features
    rows, columns = bounding_box(np.asarray(masks.any(axis=2)))
    wall = np.ascontiguousarray(np.moveaxis(masks[rows, columns][:, :, held], 2, 0))
    regions, areas, holes = _largest_holes(wall)
    # Where the ring is open the wall itself, which is 0 in `regions`.
    pool = regions == holes[:, None, None]
    size = np.count_nonzero(pool, axis=(1, 2))
    for axis, side in ((1, rows), (2, columns)):
        along = np.count_nonzero(pool, axis=3 - axis) @ np.arange(pool.shape[axis])
        features[held, axis - 1] = along / size + side.start
    features[held, 2] = areas[holes]
    return features


def pool_weights(pool: A) -> A:
    """Weight of each slice in a mean over the stack, (..., S, 3) to (..., S, 1), not normalised.

    The pool's area; when no slice of a stack closes, 1 for each slice that holds wall (those whose centroid is off
    the grid's centre; when there is none of these either, 1 for every slice).
    """
    area = pool[..., 2:3]
    off_centre = abs(pool[..., :2] - CENTRE).sum(-1)[..., None] > 0
    ones = area * 0.0 + 1.0
    return _or_else(_or_else(area, ones * off_centre), ones)


def pool_centre(masks: BoolArray) -> npt.NDArray[np.float64]:
    """Mean pool centroid (x, y) in voxels of a stack (X, Y, S), each slice counted by `pool_weights`."""
    pool = pool_features(masks).astype(np.float64)
    return _weighted_mean(pool[:, :2], pool)


def centre_shifts(shifts: A, pool: A) -> A:
    """Add the one vector that puts the mean pool centroid of the re-aligned stack at the grid's centre.

    Closed form: mean over slices, weighted by `pool_weights`, of (centroid - shift) becomes (63.5, 63.5).

    Args:
        shifts: (..., 12, 2) mm; NumPy, CuPy or torch.
        pool: (..., 12, 3) from `pool_features`, same array library.

    Returns:
        (..., 12, 2) mm.
    """
    return shifts + (_weighted_mean(pool[..., :2] - shifts, pool) - CENTRE)[..., None, :]


def common_shift(shifts: A, pool: A) -> A:
    """Mean shift over the slices weighted by `pool_weights`, (..., 12, 2) mm to (..., 2) mm.

    No image can tell this part from a patient lying elsewhere; the placement adds it back.
    """
    return _weighted_mean(shifts, pool)


def _weighted_mean(values: A, pool: A) -> A:
    weights = pool_weights(pool)
    return (values * weights).sum(-2) / weights.sum(-2)


def _or_else(weights: A, fallback: A) -> A:
    """`fallback` in the stacks whose weights sum to zero (they are all zero there), else `weights`."""
    none = weights.sum(-2)[..., None, :] <= 0
    return weights + fallback * none


def _plane_distance(plane: BoolArray) -> npt.NDArray[np.float64]:
    """Signed distance of one plane with wall; what lies beyond its border is no wall."""
    inside = _to_background(np.pad(plane, 1))[1:-1, 1:-1]
    return np.where(plane, 0.5 - inside, _to_background(~plane) - 0.5)


def _to_background(plane: BoolArray) -> npt.NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(plane))


def divided_planes(wall: BoolArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The parts into which the set pixels divide the rest of each plane of (S, X, Y), as `divided` does for one.

    Returns:
        (S, X, Y) numbers that ascend with the planes, 0 where set, and (S,) the number of what is outside in each.
    """
    parts = np.zeros(np.add(wall.shape, (0, 2, 2)), np.int32)
    # One pixel of background all round joins everything outside, which comes first in its plane.
    rest = np.ones(parts.shape, np.bool_)
    np.logical_not(wall, out=rest[:, 1:-1, 1:-1])
    ndimage.label(rest, _IN_PLANE, output=parts)
    return parts[:, 1:-1, 1:-1], parts[:, 0, 0]


def _largest_holes(
    wall: BoolArray,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The parts of `divided_planes`.

    Returns:
        Them, how many pixels each has (the wall and what is outside none), and (S,) the number of the largest hole of
        each plane, 0 where it has none.
    """
    parts, first = divided_planes(wall)
    areas = np.bincount(parts.ravel(), minlength=int(first[-1]) + 1)
    areas[0] = areas[first] = 0
    ends = [*first[1:].tolist(), len(areas)]
    largest = np.array([low + areas[low:end].argmax() for low, end in zip(first.tolist(), ends, strict=True)])
    return parts, areas, np.where(areas[largest] > 0, largest, 0)
