"""Validation figures shared by the stages: surface errors of a grid, and a picture of its contours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s.metrics import SampledSurface, dice, surface_distance
from m2s_runtime.grid import SPACING
from m2s_runtime.surface import extract_surface

LEAST_DICE: Final = 0.5
Floats = npt.NDArray[np.float32]


def surface_figures(found: Floats, truth: Floats) -> dict[str, float]:
    """Dice and ASSD (mm) of a signed distance grid against the true one, both (128, 128, 64) mm.

    What is no heart yet, as untrained networks give it, counts as 50 mm off: its surface fills the grid, and distances
    to it would take minutes and mean nothing.
    """
    overlap = dice(found < 0, truth < 0)
    if overlap < LEAST_DICE:
        return {"dice": overlap, "assd": 50.0}
    surface, target = (extract_surface(g, np.diag([*SPACING, 1.0])) for g in (found, truth))
    distance = surface_distance(SampledSurface.of(surface, "prediction"), SampledSurface.of(target, "truth"))
    return {"dice": overlap, "assd": distance.assd}


def contours(path: Path, grids: Mapping[str, Floats]) -> None:
    """Writes a picture: zero contours of named grids in the middle cuts along x and along z."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 5))
    for k, (name, grid) in enumerate(grids.items()):
        middle = [n // 2 for n in grid.shape]
        colour = f"C{k}"
        axes[0].contour(grid[:, :, middle[2]].T, [0], colors=colour, extent=(0, grid.shape[0], 0, grid.shape[1]))
        extent = (0, grid.shape[0], 0, grid.shape[2] * SPACING[2])
        axes[1].contour(grid[:, middle[1], :].T, [0], colors=colour, extent=extent)
        axes[0].plot([], [], colour, label=name)
    axes[0].legend()
    for axis in axes:
        axis.set_aspect("equal")
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)
