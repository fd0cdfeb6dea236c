"""The wall of `shells.Shell`, upright in the middle of the grid: its true distances, and slices of it that moved."""

import functools

import numpy as np
from runtime.shells import BASE, FRAME, LENGTH, Shell

from m2s_runtime.grid import CENTRE, GRID, SPACING

PIXELS = np.arange(GRID[0]) - CENTRE


def world(x, y, h):
    """Where a point x, y off the axis and h below the base lies."""
    return np.stack(np.broadcast_arrays(x, y, h), -1) @ FRAME.T + BASE


@functools.cache
def distances() -> np.ndarray:
    """(128, 128, 64) mm: Euclidean distance to the surface of the wall, negative inside."""
    from skimage.measure import marching_cubes

    from m2s_runtime.mesh_distance import grid_distance

    # Smooth implicit function of the same ellipsoids: its zero set is the surface, its values are no distances.
    shell = Shell()
    x, y, z = np.meshgrid(PIXELS, PIXELS, heights(), indexing="ij")
    angle = np.arctan2(y, x)
    outer = np.sqrt((np.hypot(x, y) / (34 * (1 + shell.bulge * np.cos(angle)))) ** 2 + (z / LENGTH) ** 2) - 1
    inner = np.sqrt(np.hypot(x, y - 2) ** 2 / 25**2 + (z / (LENGTH - 9)) ** 2) - 1
    field = np.maximum(np.maximum(34 * outer, -25 * inner), -z)
    vertices, faces, _, _ = marching_cubes(np.pad(field, 1, constant_values=10), 0.0)
    far = grid_distance((vertices - 1) * SPACING, faces.astype(np.int32), GRID, SPACING, 1)
    return np.where(field < 0, -far, far).astype(np.float32)


def heights() -> np.ndarray:
    """Depth below the base of each plane of the grid, mm."""
    return (np.arange(GRID[2]) - (GRID[2] - 1) / 2) * SPACING[2] + LENGTH / 2


def slices(shifts: np.ndarray, step_mm: float = 10.0) -> np.ndarray:
    """(128, 128, 12) bool: the wall in the planes of the slices, each seen `shifts` mm (12, 2) off its place."""
    depth = (np.arange(12) - 5.5) * step_mm + LENGTH / 2
    planes = [world(PIXELS[:, None] - sx, PIXELS[None] - sy, h) for (sx, sy), h in zip(shifts, depth, strict=True)]
    return np.stack([Shell().labels(plane) == 2 for plane in planes], -1)
