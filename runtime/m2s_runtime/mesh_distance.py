"""Unsigned distance from the voxels of a grid to a triangle mesh.

The compiled kernel is exact. Where it could not be built (no C compiler at installation) libigl takes its place, or,
for the surfaces of masks, SciPy's distance to the nearest vertex, which is not exact and says so once.
"""

import functools
import importlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from m2s_runtime.errors import BadMesh, EngineError, NotFinite

try:
    from m2s_runtime import _mesh_distance as _native
except ImportError:
    _native = None

Points = npt.NDArray[np.float64]
Faces = npt.NDArray[np.int32]
Distances = npt.NDArray[np.float32]
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

KERNEL: Final[Literal["native", "scipy"]] = "scipy" if _native is None else "native"
"""What measures distances where nobody insists on exact ones; see `bound_kernel`."""

_SLAB: Final = 8
"""Planes along x handed to a thread at a time: few enough to balance, enough for boxes that share their vertices."""

_FARTHEST_MM: Final = 1e9
"""Coordinates beyond this are no anatomy."""


def grid_distance(
    vertices: npt.ArrayLike, faces: npt.ArrayLike, shape: Shape, spacing: Spacing, threads: int = 1
) -> Distances:
    """Distance from the centre of each voxel to the nearest point of a triangle mesh.

    Args:
        vertices: (V, 3) mm, in the frame where voxel i of an axis is centred at i times its spacing.
        faces: (F, 3) vertex indices, at least one face; the mesh may be open, the winding does not matter.
        shape: (X, Y, Z) of the grid.
        spacing: mm between voxels, per axis.
        threads: how many work at once; the result does not depend on it.

    Returns:
        (X, Y, Z) float32 mm, unsigned; the only error is that of single precision (below 1e-5 mm on a grid of 128 mm).

    Raises:
        EngineError: neither the native kernel nor libigl is there.
        BadMesh: no face, arrays of another shape, or a face that names a vertex which does not exist.
        NotFinite: a vertex is NaN, infinite or beyond 1e9 mm.
    """
    points, index = _checked(vertices, faces)
    native = _native
    if native is None:
        return _igl_distance(points, index, shape, spacing)
    # Around the middle of the grid single precision resolves twice as finely as in its corner.
    middle = (np.array(shape) - 1) * np.array(spacing) / 2
    mesh = native.grow((points - middle).astype(np.float32), index, float(middle.max()))
    out = np.empty(shape, np.float32)

    def fill(first: int) -> None:
        slab = out[first : first + _SLAB]
        origin = (first * spacing[0] - float(middle[0]), -float(middle[1]), -float(middle[2]))
        native.fill(mesh, slab, (len(slab), shape[1], shape[2]), origin, spacing)

    starts = range(0, shape[0], _SLAB)
    if threads <= 1:
        for first in starts:
            fill(first)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, starts))
    return out


def bound_kernel(*, exact: bool) -> str:
    """What measures the C-SDG, for the record: `native`, `scipy` (to the nearest vertex) or `libigl`.

    Args:
        exact: whether distances must be exact even where the native kernel is missing.

    Raises:
        EngineError: they must, and libigl is missing too.
    """
    if KERNEL == "native" or not exact:
        return KERNEL
    _igl()
    return "libigl"


def _checked(vertices: npt.ArrayLike, faces: npt.ArrayLike) -> tuple[Points, Faces]:
    points, index = np.asarray(vertices, np.float64), np.asarray(faces)
    if points.ndim != 2 or points.shape[1] != 3 or index.ndim != 2 or index.shape[1] != 3:
        raise BadMesh(f"vertices must be (V, 3) and faces (F, 3), not {points.shape} and {index.shape}")
    if not len(index):
        raise BadMesh("the mesh has no face to measure a distance to")
    if not (np.abs(points) < _FARTHEST_MM).all():
        raise NotFinite("a vertex of the mesh is NaN, infinite or further away than any scanner is wide")
    if index.min() < 0 or index.max() >= len(points):
        raise BadMesh(f"a face names a vertex outside the {len(points)} of the mesh")
    return points, np.ascontiguousarray(index, np.int32)


def _igl_distance(points: Points, faces: Faces, shape: Shape, spacing: Spacing) -> Distances:
    """Exact as well, in ten times the time; double precision."""
    axes = (np.arange(n, dtype=np.float64) * s for n, s in zip(shape, spacing, strict=True))
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    squared: Points = _igl().point_mesh_squared_distance(centres, points, faces.astype(np.int64))[0]
    return np.sqrt(squared).astype(np.float32).reshape(shape)


def _igl() -> Any:  # noqa: ANN401 - a module without types
    try:
        return importlib.import_module("igl")
    except ImportError:
        raise EngineError(
            "the compiled distance kernel is missing, and so is libigl, which takes its place where distances must be"
            " exact: pip install libigl, or install a C compiler and reinstall mask2surface"
        ) from None


def vertex_distance(vertices: npt.ArrayLike, shape: Shape, spacing: Spacing) -> Distances:
    """Distance from the centre of each voxel to the nearest vertex of the surface of a mask, without native code.

    Args:
        vertices: (V, 3) in voxel indices, whole and half ones, as marching cubes of a mask gives them.
        shape: (X, Y, Z) of the grid.
        spacing: mm between voxels, per axis.

    Returns:
        (X, Y, Z) float32 mm, unsigned, never below the distance to the surface. On the canonical grid it is 0.3 mm
        above it at most, 0.01 mm in the mean.
    """
    from scipy import ndimage

    # On a grid twice as fine, with a border for what lies half a voxel outside.
    free = np.ones([2 * n + 1 for n in shape], np.bool_)
    free[tuple(np.rint(2 * np.asarray(vertices)).astype(np.intp).T + 1)] = False
    found = np.asarray(ndimage.distance_transform_edt(free, sampling=np.array(spacing) / 2))
    return found[1::2, 1::2, 1::2].astype(np.float32)


@functools.cache
def warn_once() -> None:
    """Say that distances to vertices take the place of those to the surface."""
    warnings.warn(
        "the compiled distance kernel is missing, so distances to the surface are taken to its vertices, up to 0.3 mm"
        " too far: install a C compiler and reinstall mask2surface, or add --exact (pip install libigl; takes longer)",
        RuntimeWarning,
        stacklevel=3,
    )
