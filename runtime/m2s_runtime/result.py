"""What a reconstruction holds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2s_runtime.base_limit import Ended
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
        sdg: (128, 128, 64) float32 mm, negative inside; the mean of the samples.
        affine: (4, 4) grid voxel index to world mm, as placed.
        flags: what a reader of the result should know beyond `Canonical.flags`, see `flags`.
        seconds: time of each stage.
        spread: (V,) float32 mm, see `sampling.vertex_spread`; None when there is a single sample.
        agreement: (12,) float32, see `agreement.agreement`: Dice of each re-aligned slice with the reconstruction in
            its plane, NaN where the slice holds no wall; of the wall as the networks end it.
        sample_volumes_ml: volume of the wall in each posterior sample; empty when there is a single one.
        expected_dice: see `expected_dice.DiceModel`; None without one, and of stacks outside the training.
        ended: what a `--base-limit` took away; None without one.
    """

    mesh: Mesh
    shifts: Floats
    common_shift: Floats
    probability: Floats
    sdg: Floats
    affine: Affine
    flags: tuple[str, ...]
    seconds: dict[str, float]
    spread: Floats | None
    agreement: Floats
    sample_volumes_ml: tuple[float, ...] = ()
    expected_dice: float | None = None
    ended: Ended | None = None


@dataclass(frozen=True)
class Pass:
    """What one set of shifts leads to.

    Attributes:
        shifts: (1, 12, 2) float32 mm, centred.
        probability: (128, 128, 64) float32 of wall, on the grid.
        sdgs: (N, 128, 128, 64) float32 mm, the samples.
        sdg: (128, 128, 64) float32 mm, their mean, closed at the apex.
        cut: (128, 128, 12) float32 mm, sections of the mean in the planes of the slices, before it is closed.
        agreement: as in `Reconstruction`.
        capped: whether `apex.close_apex` had anything to close.
    """

    shifts: Floats
    probability: Floats
    sdgs: Floats
    sdg: Floats
    cut: Floats
    agreement: Floats
    capped: bool
