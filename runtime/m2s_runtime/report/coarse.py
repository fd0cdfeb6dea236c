"""A surface with fewer triangles: vertices that share a cell of a grid become one, at their mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Values = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.integer[Any]]

CELL_MM: Final = 2.5
MOST_POINTS: Final = 2**16 - 1
"""A corner of a triangle has to fit 16 bits."""


@dataclass(frozen=True, eq=False)
class Coarse:
    """A coarse surface for looking at; where two sheets share a cell it is no manifold.

    Attributes:
        points: (N, 3) mm.
        faces: (M, 3) indices of points, each face from its lowest index on, in their order.
        fields: name to (N,), the mean over the vertices that became one; NaN where none has a value.
    """

    points: Values
    faces: Indices
    fields: dict[str, Values]


def coarse(points: Floats, faces: npt.NDArray[np.int32], fields: Mapping[str, Floats]) -> Coarse:
    """Merge vertices (Rossignac and Borrel 1993, with the mean for the representative).

    Args:
        points: (V, 3) mm.
        faces: (F, 3) indices of points.
        fields: name to (V,) values at the points; NaN where there is none.
    """
    cell = CELL_MM
    number, count = _cells(points, cell)
    while len(count) > MOST_POINTS:
        cell *= 1.25
        number, count = _cells(points, cell)
    means = np.stack([np.bincount(number, points[:, axis]) / count for axis in range(3)], axis=1)
    return Coarse(means, _faces(number[faces]), {name: _mean(number, values) for name, values in fields.items()})


def _cells(points: Floats, cell: float) -> tuple[Indices, Indices]:
    """For each point the number of its cell, among those that hold any; and how many points each of these holds."""
    where = ((points - points.min(axis=0)) / np.float32(cell)).astype(np.int64)
    x, y, _ = where.max(axis=0) + 1
    key = (where[:, 2] * y + where[:, 1]) * x + where[:, 0]
    count = np.bincount(key)
    used = np.flatnonzero(count)
    number = np.empty(len(count), np.int32)
    number[used] = np.arange(len(used))
    return number[key], count[used]


def _faces(merged: Indices) -> Indices:
    """Those whose corners are still three, turned and sorted so that they pack well."""
    a, b, c = merged.T
    kept = merged[(a != b) & (b != c) & (c != a)]
    turn = (kept.argmin(axis=1)[:, None] + np.arange(3)) % 3
    turned = np.take_along_axis(kept, turn, axis=1)
    return turned[np.lexsort((turned[:, 1], turned[:, 0]))]


def _mean(number: Indices, values: Floats) -> Values:
    known = np.isfinite(values)
    size = int(number.max()) + 1
    total = np.bincount(number[known], values[known], size)
    count = np.bincount(number[known], minlength=size)
    return np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
