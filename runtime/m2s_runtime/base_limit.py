"""Ends a reconstructed wall near its most basal slice, for stacks that were planned on the base itself.

A stack seldom begins where the wall ends: the networks continue the wall above its first slice by what they learnt.
Who planned the first slice on the plane of the valves knows better.
"""

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from m2s_runtime.grid import GRID, SPACING
from m2s_runtime.placement import Placement

Floats = npt.NDArray[np.float32]

_ROUNDING: Final = 1e-6
"""Grid planes: a slice that lies in the plane itself still holds wall."""


@dataclass(frozen=True)
class BaseLimit:
    """A plane parallel to the slices, basal of which there is no wall.

    Attributes:
        level: grid index along z, in general no whole number.
    """

    level: float

    @classmethod
    def of(cls, placement: Placement, limit_mm: float) -> Self:
        """`limit_mm`, from 0 on, beyond the most basal slice that holds wall, as acquired."""
        return cls((GRID[2] - 1) / 2 - (placement.base_mm + limit_mm) / SPACING[2])

    def end(self, sdgs: Floats) -> Floats:
        """Distances (..., 128, 128, 64) mm, negative inside, of what lies apical of the plane."""
        beyond = (self.level - np.arange(GRID[2])) * SPACING[2]
        return np.maximum(sdgs, beyond.astype(np.float32))

    def holds(self, levels: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
        """Whether there may be wall at grid indices along z."""
        return levels >= self.level - _ROUNDING


@dataclass(frozen=True)
class Ended:
    """What a limit did to a wall.

    Attributes:
        limit: the plane.
        whole: (128, 128, 64) mm, the distances before.
    """

    limit: BaseLimit
    whole: Floats
