"""Condition of the diffusion: the coarse signed distance grid of the super-resolved wall (paper, equation 2)."""

import numpy as np
import numpy.typing as npt

from m2s_runtime import grid
from m2s_runtime.errors import NotFinite
from m2s_runtime.mesh_distance import bound_kernel, grid_distance, vertex_distance, warn_once
from m2s_runtime.surface import contour

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def to_grid(probability: Volume, step_mm: float) -> Volume:
    """Put the planes of the super-resolved wall onto the planes of the grid.

    Args:
        probability: (128, 128, 60) float32, planes `step_mm / 5` apart.
        step_mm: effective distance between the acquired slices.

    Returns:
        (128, 128, 64) float32, planes 2 mm apart. The middles of both stacks coincide; between two planes it is linear,
        beyond the outermost it falls to zero over one plane. At 10 mm plane p becomes plane p + 2, unchanged.

    Raises:
        NotFinite: the network returned NaN or infinity.
    """
    if not np.isfinite(probability).all():
        raise NotFinite("the super-resolution network returned values that are not finite")
    return np.ascontiguousarray(probability @ plane_weights(step_mm))


def plane_weights(step_mm: float) -> npt.NDArray[np.float32]:
    """(60, 64) float32: the part that each plane of the network has in each plane of the grid."""
    planes = np.arange(grid.PLANES)
    wanted = _middle(grid.PLANES) + (np.arange(grid.GRID[2]) - _middle(grid.GRID[2])) * grid.NOMINAL_STEP / step_mm
    return np.maximum(0, 1 - np.abs(planes[:, None] - wanted)).astype(np.float32)


def coarse_sdg(mask: Mask, threads: int = 1, *, exact: bool = False) -> Volume:
    """Signed distance to the marching-cubes surface of a mask: C(x) = sign(x) * min over the surface of |x - y|.

    The surface is that of scikit-image's Lewiner tables at level 0.5 of the mask with one empty voxel around it;
    which tables are used shifts single voxels by up to 0.25 mm, so training and inference must share this function.

    Args:
        mask: (128, 128, 64) bool, the wall on the grid of 1 x 1 x 2 mm.
        threads: for the distances; the result does not depend on it.
        exact: where the native kernel is missing: exact distances by libigl, rather than those to the nearest vertex.

    Returns:
        (128, 128, 64) float32 mm, negative exactly where the mask is set.

    Raises:
        EmptyWall: no voxel is set.
        EngineError: distances must be exact, and neither the native kernel nor libigl is there.
    """
    vertices, faces = contour(mask.astype(np.float32), mask, 0.5, 0.0, "lewiner")
    if bound_kernel(exact=exact) == "scipy":
        warn_once()
        distance = vertex_distance(vertices, grid.GRID, grid.SPACING)
    else:
        distance = grid_distance(vertices * grid.SPACING, faces, grid.GRID, grid.SPACING, threads)
    return np.where(mask, -distance, distance)


def _middle(planes: int) -> float:
    return (planes - 1) / 2
