"""The residual network that MCSR-MS and MCSR-ETE read motion from; facts from the published code of MCSR-ETE.

Stem with kernel 2 and 8 filters, four residual blocks, in-plane pooling after the first three, 1x1x1 convolution to 16,
dropout 0.2, heads of 64 without bias; orthogonal weights. What goes in is one channel that holds the label as a number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from m2s.baselines.registry import Size
from m2s.nets.motion import ImageTrunk
from m2s_runtime.grid import SLICES


@dataclass(frozen=True)
class TrunkSize:
    """Widths of the residual blocks, of the 1x1x1 convolution before the heads, and of the heads."""

    channels: tuple[int, int, int, int]
    squeeze: int = 16
    hidden: int = 64


TRUNKS: Final[Mapping[Size, TrunkSize]] = {
    "published": TrunkSize((32, 64, 128, 256)),
    "cpu": TrunkSize((16, 32, 64, 64)),
    "tiny": TrunkSize((4, 4, 4, 4), squeeze=1, hidden=4),
}
"""`cpu` has the widths to which Mask2Surface (section 2.2) reduces them."""


class MotionTrunk(ImageTrunk):
    """Labels of a stack to a few numbers from each of several heads; MCSR-ETE has one head for each slice."""

    def __init__(self, size: TrunkSize, *, planes: int = SLICES, heads: int = SLICES, outputs: int = 2) -> None:
        super().__init__(
            size.channels, planes=planes, heads=heads, outputs=outputs, squeeze=size.squeeze, hidden=size.hidden
        )

    def forward(self, labels: Tensor) -> Tensor:
        """(B, 1, 128, 128, planes) float32 labels 0, 1, 2 -> (B, heads, outputs)."""
        return self.read(labels)
