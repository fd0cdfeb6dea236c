"""What a slice tells of its own shape in numbers that do not move with it: complex moments of the wall.

With w = ((x - cx) + i (y - cy)) / R about the slice's wall centroid, the moment (a, b) is the mean of w^a conj(w)^b
over the wall. A turn of the heart by an angle multiplies it by exp(i (a - b) angle), a mirror conjugates it, so
augmentation by any turn is exact and costs nothing, and a network can be averaged over the symmetries of the square.
"""

from functools import cache
from math import comb
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2s.nets.blocks import full_precision
from m2s_runtime.grid import CENTRE

ORDER: Final = 6
"""Highest power of the distance from the centroid."""
MOMENTS: Final = tuple((b + m, b) for m in range(ORDER + 1) for b in range(ORDER) if 2 <= 2 * b + m <= ORDER)
"""(a, b) of each moment; (1, 0) is missing because it vanishes about the centroid."""
SCALE_MM: Final = 4.0
"""About the rms of the motion laws, so that networks see and return numbers near one."""
RADIUS_MM: Final = 25.0
"""About the radius of a wall."""
_AREA: Final = 1500.0

TURNS: Final = tuple(a - b for a, b in MOMENTS)
"""Order of every moment: how many times its phase turns when the heart turns once."""
ANGULAR: Final = (1, 1, 0, 0, 0, *TURNS)
"""The same of every quantity of `slice_features`: two vectors, two areas, held, the moments."""
FEATURES: Final = sum(2 if m else 1 for m in ANGULAR)

Doubles = npt.NDArray[np.float64]


def wall_centroids(slices: Tensor) -> tuple[Tensor, Tensor]:
    """Centroid (B, 12, 2) in mm and area (B, 12) in mm^2 of the wall, from signed distances (B, 1, X, Y, 12).

    A pixel counts by the part of it that lies inside (the distance clipped to half a pixel); an empty slice sits at
    the centre with area zero.
    """
    inside = _inside(slices)
    x = _coordinates(slices)
    area = inside.sum((2, 3))
    safe = area.clamp(min=1.0)
    cx = (inside.sum(3) * x).sum(2) / safe
    cy = (inside.sum(2) * x).sum(2) / safe
    return torch.stack([cx, cy], -1) + CENTRE, area


def wall_moments(slices: Tensor, centroid: Tensor, area: Tensor) -> Tensor:
    """(B, 12, 2, M) real and imaginary parts of the M moments of `MOMENTS`; zero where a slice is empty.

    Args:
        slices: (B, 1, X, Y, 12) in-plane signed distances in mm.
        centroid: (B, 12, 2) mm and
        area: (B, 12) mm^2 from `wall_centroids`.
    """
    at = (_coordinates(slices) - (centroid - CENTRE)[..., None]) / RADIUS_MM
    powers = [torch.ones_like(at)]
    for _ in range(ORDER):
        powers.append(powers[-1] * at)
    table = torch.stack(powers, -2)
    with full_precision(slices):
        sums = table[:, :, 0] @ _inside(slices) @ table[:, :, 1].transpose(-1, -2)
        mean = sums.flatten(2) / area.clamp(min=1.0)[..., None]
        return (mean @ _BINOMIALS.to(mean)).unflatten(-1, (2, len(MOMENTS)))


def slice_features(centroid: Tensor, area: Tensor, pool: Tensor, moments: Tensor) -> Tensor:
    """(B, 12, `FEATURES`), all near one: wall centroid, pool centroid against it, areas, held, moments.

    Complex quantities come as real and imaginary part, in the order of `ANGULAR`.

    Args:
        centroid: (B, 12, 2) mm of the wall.
        area: (B, 12) mm^2 of the wall, 0 where a slice is empty.
        pool: (B, 12, 3) from `m2s_runtime.slices.pool_features`.
        moments: (B, 12, 2, M) from `wall_moments`.
    """
    held = (area > 0).to(centroid.dtype)[..., None]
    shape = torch.cat([centroid - CENTRE, (pool[..., :2] - centroid) * held], -1) / SCALE_MM
    sizes = torch.cat([area[..., None] / _AREA, pool[..., 2:] / _AREA, held], -1)
    parts = [moments[..., :1, k] if m == 0 else moments[..., :, k] for k, m in enumerate(TURNS)]
    return torch.cat([shape, sizes, *parts], -1)


def turned(angle: float, *, mirrored: bool = False) -> Doubles:
    """Matrix (`FEATURES`, `FEATURES`) whose product `features @ matrix` is the features of the turned heart.

    The heart is mirrored first (y to -y), then turned anticlockwise by `angle` in radians.
    """
    out, at = np.zeros((FEATURES, FEATURES)), 0
    for m in ANGULAR:
        if m == 0:
            out[at, at] = 1.0
            at += 1
            continue
        c, s = np.cos(m * angle), np.sin(m * angle)
        flip = -1.0 if mirrored else 1.0
        out[at : at + 2, at : at + 2] = [[c, s], [-flip * s, flip * c]]
        at += 2
    return out


@cache
def square_group() -> tuple[Tensor, Tensor]:
    """The eight symmetries of the square: on features (8, F, F) and, inverted, on vectors (8, 2, 2), for `v @ m`."""
    members = [(k * np.pi / 2, mirrored) for mirrored in (False, True) for k in range(4)]
    forward = np.stack([turned(angle, mirrored=mirrored) for angle, mirrored in members])
    # The first two features are a vector; the inverse of an orthogonal matrix is its transpose.
    back = forward[:, :2, :2].transpose(0, 2, 1)
    return torch.from_numpy(forward.round(12)).float(), torch.from_numpy(back.round(12).copy()).float()


def _inside(slices: Tensor) -> Tensor:
    return (0.5 - slices[:, 0]).clamp(0, 1).permute(0, 3, 1, 2)


def _coordinates(slices: Tensor) -> Tensor:
    return torch.arange(slices.shape[2], device=slices.device, dtype=slices.dtype) - CENTRE


def _binomials() -> Tensor:
    """(7 * 7, 2 M): from sums of x^p y^q to real and imaginary parts of (x + i y)^a (x - i y)^b."""
    table = np.zeros((ORDER + 1, ORDER + 1, len(MOMENTS)), np.complex128)
    for k, (a, b) in enumerate(MOMENTS):
        for j in range(a + 1):
            for i in range(b + 1):
                table[a - j + b - i, j + i, k] += comb(a, j) * comb(b, i) * 1j**j * (-1j) ** i
    flat = table.reshape(-1, len(MOMENTS))
    return torch.from_numpy(np.concatenate([flat.real, flat.imag], -1)).float()


# Made once here: a graph exporter that came upon it while tracing would try to translate complex numbers.
_BINOMIALS: Final = _binomials()
