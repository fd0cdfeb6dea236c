"""What a reconstruction holds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2s_runtime.placement import Affine
from m2s_runtime.surface import Mesh

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reconstruction:
    """What becomes of a stack.

    Attributes:
        mesh: closed surface, world mm (RAS).
        shifts: (12, 2) float32 mm along x and y, centred; `corrected(p) = slice(p + shift)`.
        common_shift: (2,) mm, their area-weighted mean, which the placement adds back; near zero because `canonicalise`
            already centres the pool.
        probability: (128, 128, 64) float32 of wall after super-resolution, on the grid.
        sdg: (128, 128, 64) float32 mm, negative inside.
        affine: (4, 4) grid voxel index to world mm, as placed.
        flags: what a reader of the result should know beyond `Canonical.flags`.
        seconds: time of each stage.
    """

    mesh: Mesh
    shifts: Floats
    common_shift: Floats
    probability: Floats
    sdg: Floats
    affine: Affine
    flags: tuple[str, ...]
    seconds: dict[str, float]
