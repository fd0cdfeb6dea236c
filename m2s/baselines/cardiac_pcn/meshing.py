"""From a cloud of points to triangles: screened Poisson (Kazhdan and Hoppe, 2013) by PyMeshLab; nothing follows."""

from importlib import import_module
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m2s_runtime.engines.base import first_line
from m2s_runtime.errors import EmptyWall, EngineError
from m2s_runtime.surface import Mesh

INSTALL: Final = 'pip install "mask2surface[pcn]"'

_DEPTH: Final = 7
"""Of the octree: cells of about 1 mm, where the points lie 1.4 mm apart."""
_NEIGHBOURS: Final = 16
"""Points that a normal is taken from."""


def poisson_mesh(points: npt.NDArray[np.float64], outward: npt.NDArray[np.float64]) -> Mesh:
    """Estimate normals, turn them outwards, and reconstruct by screened Poisson at depth 7.

    Left to neighbours alone the directions of the normals are a coin's toss on so thin a wall. What still gives sheets
    and holes, such as points that leave the rim of the base open, is left as it comes.

    Args:
        points: (N, 3) mm.
        outward: (N, 3) of any length, roughly out of the wall.

    Returns:
        The mesh in mm, closed or not.

    Raises:
        EngineError: PyMeshLab cannot be loaded.
        EmptyWall: no triangle came of it.
    """
    meshlab = load_meshlab()
    scene = meshlab.MeshSet()
    scene.add_mesh(meshlab.Mesh(vertex_matrix=points))
    scene.compute_normal_for_point_clouds(k=_NEIGHBOURS)
    normals = scene.current_mesh().vertex_normal_matrix()
    normals = np.where((normals * outward).sum(axis=1, keepdims=True) < 0, -normals, normals)
    scene.clear()
    scene.add_mesh(meshlab.Mesh(vertex_matrix=points, v_normals_matrix=normals))
    # One thread: sums in another order would give another mesh.
    scene.generate_surface_reconstruction_screened_poisson(depth=_DEPTH, threads=1)
    found = scene.current_mesh()
    if not found.face_number():
        raise EmptyWall("screened Poisson made no surface of the completed points: check the mask")
    faces = np.ascontiguousarray(found.face_matrix(), np.int32)
    return Mesh(np.ascontiguousarray(found.vertex_matrix(), np.float64), faces)


def load_meshlab() -> Any:  # noqa: ANN401 - without types
    """Import PyMeshLab.

    Raises:
        EngineError: it is not installed, or a library that it needs is not.
    """
    try:
        return import_module("pymeshlab")
    except (ImportError, OSError) as error:
        raise EngineError(
            f"CardiacPCN makes its mesh with PyMeshLab, which cannot be loaded ({first_line(error)}); run `{INSTALL}`, "
            "and on Linux install libgl1 and libopengl0 of the system"
        ) from error
