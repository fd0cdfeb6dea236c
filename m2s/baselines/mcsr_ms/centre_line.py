"""The long axis as MCSR-MS has it: centroids of slices, and a cubic Hermite spline through a few control points.

As in the published code, a centroid is that of pool and wall together (of an open ring the wall's, since it has no
pool), the curve's parameter runs from 0 at the first slice that holds wall to 1 at the last, and the tangent at a knot
is the mean of the two secants that meet there, at either end the one secant. The curve so is linear in its knots.
"""

from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicHermiteSpline

from m2s.baselines.labels import BACKGROUND, Labels

Doubles = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SCALE: Final = 64.0
"""Voxels that a network's answer of 1 stands for: half of the grid."""


@lru_cache(maxsize=512)
def hermite_matrix(knots: tuple[float, ...], at: tuple[float, ...]) -> Doubles:
    """(len(at), len(knots)): from values at ascending knots to the spline's values; one knot is a constant."""
    if len(knots) == 1:
        return np.ones((len(at), 1))
    values = np.eye(len(knots))
    secants = np.diff(values, axis=0) / np.diff(knots)[:, None]
    tangents = np.concatenate([secants[:1], (secants[1:] + secants[:-1]) / 2, secants[-1:]])
    return np.asarray(CubicHermiteSpline(knots, values, tangents)(at), np.float64)


def centroids(labels: Labels) -> tuple[Doubles, BoolArray]:
    """Centroids (S, 2) in voxels of what is no background in each slice of (X, Y, S), and (S,) which hold any."""
    inside = labels != BACKGROUND
    area = np.count_nonzero(inside, axis=(0, 1))
    sums = [np.count_nonzero(inside, axis=1 - axis).T @ np.arange(inside.shape[axis]) for axis in (0, 1)]
    return np.stack(sums, -1) / np.maximum(area, 1)[:, None], area > 0


def control_points(centres: Doubles, known: BoolArray, held: BoolArray, count: int) -> Doubles:
    """What a network learns: where the true centre line lies at equal parts of its length, from its first point.

    Args:
        centres: (S, 2) true centroids in voxels, and
        known: (S,) where there are any; between them and beyond, the curve goes through interpolated ones.
        held: (S,) slices that the network sees wall in.
        count: of the points, the first among them.

    Returns:
        (count - 1, 2) in units of `SCALE`.
    """
    index = np.flatnonzero(held)
    at = np.flatnonzero(known)
    line = np.stack([np.interp(index, at, centres[at, axis]) for axis in (0, 1)], -1)
    points = hermite_matrix(_parameters(index), _equal(count)) @ line
    return (points[1:] - points[0]) / SCALE


def line_shifts(centres: Doubles, held: BoolArray, points: Doubles) -> Doubles:
    """How far each slice lies off the centre line, (S, 2) voxels, but for one vector that all slices share.

    A slice without wall moves with the nearest that has some, as the slices below the last do in the published code.

    Args:
        centres: (S, 2) centroids found, voxels.
        held: (S,) slices that hold wall, at least one.
        points: (count - 1, 2) from `control_points`, or a network's estimate of them.
    """
    index = np.flatnonzero(held)
    relative = np.concatenate([np.zeros((1, 2)), points]) * SCALE
    shifts = centres[index] - hermite_matrix(_equal(len(relative)), _parameters(index)) @ relative
    nearest = np.abs(np.arange(len(held))[:, None] - index).argmin(axis=1)
    return shifts[nearest] - shifts[0]


def _equal(count: int) -> tuple[float, ...]:
    return tuple(np.linspace(0, 1, count).tolist())


def _parameters(index: npt.NDArray[np.intp]) -> tuple[float, ...]:
    """Of the slices that hold wall: in proportion to their place, so that a missing one leaves a gap."""
    return tuple(((index - index[0]) / max(int(index[-1] - index[0]), 1)).tolist())
