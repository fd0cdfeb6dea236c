"""How rough a surface is: its mean absolute curvature.

The area of a triangle mesh shrinks fastest when vertex i moves along the gradient of the area, whose length is
2 |H| A_i, with H the mean curvature there and A_i the vertex's share of the area (Meyer et al. 2003, "Discrete
differential-geometry operators for triangulated 2-manifolds", equation 8). In the area-weighted mean of |H| the A_i
cancel, so that slivers, which every marching-cubes surface has, divide nothing.
"""

import numpy as np
import numpy.typing as npt

from m2s_runtime.surface import Mesh, surface_area

Array = npt.NDArray[np.float64]


def area_gradient(mesh: Mesh) -> Array:
    """Gradient of the surface area by each vertex, (V, 3) mm; twice the mean curvature vector times the area."""
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    size = np.linalg.norm(normals, axis=1, keepdims=True)
    units = normals / np.where(size > 0, size, 1)
    gradient = np.zeros_like(mesh.vertices)
    for corner in range(3):
        opposite = corners[:, (corner + 2) % 3] - corners[:, (corner + 1) % 3]
        np.add.at(gradient, mesh.faces[:, corner], np.cross(units, opposite) / 2)
    return gradient


def mean_absolute_curvature(mesh: Mesh) -> float:
    """Area-weighted mean of |H| over a surface, 1/mm; H is the mean of the two principal curvatures (1/r on a sphere).

    Raises:
        ValueError: if the mesh has no area.
    """
    area = surface_area(mesh)
    if not area > 0:
        raise ValueError("a mesh without area has no curvature")
    return float(np.linalg.norm(area_gradient(mesh), axis=1).sum() / 2 / area)
