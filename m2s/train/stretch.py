"""Hearts stretched in plane, exact in their moments: new shapes from a store of known ones, at no cost.

A linear map of the plane is w -> a w + b conj(w). It takes the moments of one order to moments of the same order, all
of which are kept, so that a stretched heart needs no image.
"""

from collections.abc import Iterator
from math import comb
from typing import Final

import numpy as np

from m2s.data.shapes import Complexes, Doubles, SliceShapes
from m2s.nets.slice_moments import MOMENTS

LOG_SIZE: Final = 0.06
"""Standard deviation of the logarithm of the size."""
DILATATION: Final = 0.04
"""Standard deviation of b over a: one axis grows by it, the other shrinks."""

_INDEX: Final = {powers: k for k, powers in enumerate(MOMENTS)}


def stretched(shapes: SliceShapes, rng: np.random.Generator) -> SliceShapes:
    """Each heart larger or smaller, and longer along x or y; the same in all its slices."""
    size = np.exp(LOG_SIZE * rng.standard_normal((len(shapes), 1)))
    return stretched_by(shapes, size, size * DILATATION * rng.standard_normal((len(shapes), 1)))


def stretched_by(shapes: SliceShapes, a: Doubles, b: Doubles) -> SliceShapes:
    """Every vector w of heart n becomes a w + b conj(w), with `a` and `b` (N, 1), |b| < a."""
    area = a**2 - b**2
    wall, pool = (a * w + b * w.conj() for w in (shapes.wall, shapes.pool))
    moments = np.stack([_moment(shapes.moments, p, q, a, b) for p, q in MOMENTS], -1)
    return SliceShapes(wall, pool, area * shapes.area, area * shapes.pool_area, moments)


def _moment(moments: Complexes, p: int, q: int, a: Doubles, b: Doubles) -> Complexes:
    """Mean of (a w + b conj(w))^p (a conj(w) + b w)^q over each wall, (N, 12)."""
    total = np.zeros(moments.shape[:2], np.complex128)
    for weight, (k, conjugated) in _terms(p, q, a, b):
        source = moments[..., k]
        total += weight * (source.conj() if conjugated else source)
    return total


def _terms(p: int, q: int, a: Doubles, b: Doubles) -> Iterator[tuple[Doubles, tuple[int, bool]]]:
    """What each moment of the same order counts, and which it is."""
    for j in range(p + 1):
        for k in range(q + 1):
            powers = (p - j + k, q - k + j)
            conjugated = powers not in _INDEX
            weight = comb(p, j) * comb(q, k) * a ** (p - j + q - k) * b ** (j + k)
            yield weight, (_INDEX[(powers[1], powers[0]) if conjugated else powers], conjugated)
