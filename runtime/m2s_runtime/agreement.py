"""How well a reconstruction agrees with the slices it came from: both in the planes in which they were acquired."""

from typing import Any

import numpy as np
import numpy.typing as npt

from m2s_runtime.grid import GRID, IN_PLANE, SLICES, SPACING

Floats = npt.NDArray[np.float32]


def sections(sdg: Floats, step_mm: float) -> Floats:
    """Cut a signed distance grid in the planes of the canonical slices.

    Args:
        sdg: (128, 128, 64) mm on the grid of 1 x 1 x 2 mm.
        step_mm: effective distance between the slices.

    Returns:
        (128, 128, 12) mm, linear between two planes of the grid; the middle of the stack is that of the grid. A slice
        beyond the grid, which cannot hold wall, gets the outermost plane.
    """
    wanted = (GRID[2] - 1) / 2 + (np.arange(SLICES) - (SLICES - 1) / 2) * step_mm / SPACING[2]
    weights = np.maximum(0, 1 - abs(np.arange(GRID[2])[:, None] - wanted.clip(0, GRID[2] - 1)))
    return sdg @ weights.astype(np.float32)


def realigned(distances: Floats, shifts: Floats) -> Floats:
    """Move each slice back: corrected(p) = slice(p + shift), bilinear, as graph `sr` does it.

    Args:
        distances: (128, 128, 12) mm from `slices.signed_distance`.
        shifts: (12, 2) mm.

    Returns:
        (128, 128, 12) mm; what comes from beyond the plane is no wall.
    """
    fill = distances.max()
    along_x, along_y = (_hats(shifts[:, axis]) for axis in (0, 1))
    moved = along_x @ np.moveaxis(distances - fill, 2, 0) @ along_y.swapaxes(1, 2) + fill
    return np.moveaxis(moved, 0, 2)


def agreement(distances: Floats, shifts: Floats, cut: Floats) -> Floats:
    """Dice of each re-aligned slice with the reconstruction in its plane.

    Args:
        distances: (128, 128, 12) mm, of the slices as they were acquired.
        shifts: (12, 2) mm that the reconstruction was made with.
        cut: (128, 128, 12) mm, its `sections`.

    Returns:
        (12,) float32, 0 where the reconstruction misses the slice, NaN where the slice holds no wall.
    """
    found = np.full(SLICES, np.nan, np.float32)
    held = np.flatnonzero((distances < 0).any(axis=(0, 1)))
    seen, rebuilt = realigned(distances[:, :, held], shifts[held]) < 0, cut[:, :, held] < 0
    found[held] = 2 * _areas(seen & rebuilt) / np.maximum(_areas(seen) + _areas(rebuilt), 1)
    return found


def _hats(shift: Floats) -> Floats:
    """(12,) mm to (12, 128, 128): for each pixel of the result the weights of the source pixels."""
    pixels = np.arange(IN_PLANE, dtype=np.float32)
    return np.maximum(0, 1 - abs(pixels[:, None] + shift[:, None, None] - pixels))


def _areas(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.signedinteger[Any]]:
    return np.count_nonzero(masks, axis=(0, 1))
