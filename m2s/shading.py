"""Triangles painted on paper: shaded by their normals, from far to near, without a graphics card."""

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from m2s_runtime.surface import Mesh

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Doubles = npt.NDArray[np.float64]

_LIGHT: Final = np.array([-0.3, 0.5, 0.8]) / np.linalg.norm([-0.3, 0.5, 0.8])
_AMBIENT: Final = 0.45
ELEVATION_DEG: Final = 20.0


def project(vertices: Doubles, elevation_deg: float = ELEVATION_DEG) -> Doubles:
    """Seen from the side and above, the base (low z) on top: (V, 3) mm to right, up and towards the viewer."""
    c, s = np.cos(np.radians(elevation_deg)), np.sin(np.radians(elevation_deg))
    return vertices @ np.array([[0.0, -1.0, 0.0], [-s, 0.0, -c], [c, 0.0, -s]]).T


def paint(panel: "Axes", mesh: Mesh, colours: npt.ArrayLike, *, elevation_deg: float = ELEVATION_DEG) -> None:
    """Paint a mesh into a panel, equal scales, no axes; in a vector file as an image, for there are many triangles.

    Args:
        panel: to paint into.
        mesh: mm, the long axis along z. Of a closed one only what faces the viewer is painted, of an open one both
            sides.
        colours: (F, 3) or one colour, red, green and blue from 0 to 1.
        elevation_deg: how far from above.
    """
    from matplotlib.collections import PolyCollection

    corners = project(mesh.vertices, elevation_deg)[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    order = np.argsort(corners[:, :, 2].mean(axis=1))
    if mesh.topology.closed:
        order = order[normals[order, 2] > 0]
    else:
        normals *= np.where(normals[:, 2:] < 0, -1.0, 1.0)
    light = _AMBIENT + (1 - _AMBIENT) * np.clip(normals[order] @ _LIGHT, 0, 1)
    shown = np.clip(light[:, None] * np.broadcast_to(colours, (len(corners), 3))[order], 0, 1)
    # Lines of a triangle's own colour close the hairlines that antialiasing leaves between neighbours.
    panel.add_collection(
        PolyCollection(list(corners[order, :, :2]), facecolors=shown, edgecolors=shown, linewidths=0.2, rasterized=True)
    )
    panel.autoscale_view()
    panel.set(aspect="equal")
    panel.axis("off")
