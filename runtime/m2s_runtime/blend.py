"""The weighted mean of the distances that the diffusion draws and of those it was given, lightly smoothed.

Both estimate one surface, and err differently: a latent cannot hold every detail of a wall, least of all of one unlike
those of training, and the C-SDG has the steps of voxels. The paper takes the drawn distances alone: a share of 0.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.grid import SPACING

if TYPE_CHECKING:
    from m2s_runtime.manifest import Manifest

Floats = NDArray[np.float32]

NEIGHBOUR: Final = (0.25, 0.25, 0.0625)
"""Weight of either neighbour along x, y and z."""
SMOOTHED_MM: Final = (2 * NEIGHBOUR[0]) ** 0.5 * SPACING[0]
"""Standard deviation of that, along every axis: 0.71 mm."""


@dataclass(frozen=True)
class Blend:
    """How much of the C-SDG goes into the surface.

    Attributes:
        share: of the C-SDG, 0 to 1; with 0 nothing is done, not even smoothed.
        clamp_mm: distances of the C-SDG are clipped to ± this, as those of the networks are.
    """

    share: float = 0.0
    clamp_mm: float = 10.0

    @classmethod
    def of(cls, manifest: "Manifest") -> "Blend":
        """What a bundle says."""
        return cls(manifest.csdg_share, manifest.sdg_clamp_mm)

    def mixed(self, sdg: Floats, csdg: Floats) -> Floats:
        """The same as `into`, in an array of its own; with a share of 0 it is `sdg` itself."""
        if not self.share:
            return sdg
        mixed = sdg.copy()
        self.into(mixed, csdg, np.empty_like(sdg))
        return mixed

    def into(self, sdg: Any, csdg: Any, scratch: Any) -> None:  # noqa: ANN401 - of NumPy or CuPy
        """Blend in place; nothing is allocated, so that a GPU can record it.

        Args:
            sdg: (N, 1, X, Y, Z) float32 mm, what was drawn; overwritten.
            csdg: (1 or N, 1, X, Y, Z) float32 mm.
            scratch: an array like `sdg`, overwritten.
        """
        if not self.share:
            return
        scratch[...] = csdg
        scratch.clip(-self.clamp_mm, self.clamp_mm, out=scratch)
        scratch *= self.share
        sdg *= 1 - self.share
        sdg += scratch
        for axis, weight in zip((2, 3, 4), NEIGHBOUR, strict=True):
            _smooth(sdg, scratch, axis, weight)


AS_DRAWN: Final = Blend()
"""The paper's: the drawn distances as they are."""


def _smooth(field: Any, scratch: Any, axis: int, weight: float) -> None:  # noqa: ANN401
    """Average with the two neighbours along an axis; the border repeats itself beyond its end."""
    scratch[...] = field
    scratch *= weight
    field *= 1 - 2 * weight
    ends = ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None)))
    for into, source in (*ends, (slice(0, 1),) * 2, (slice(-1, None),) * 2):
        part = field[_along(axis, into)]
        part += scratch[_along(axis, source)]


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, part)
