"""The full-resolution super-resolution network of MCSR-MS and MCSR-ETE, after EDSR; facts from MCSR-ETE's code.

Slices are repeated five times along z; then one convolution, residual blocks, one convolution with batch norm, a skip
over all of them, and one convolution to the classes. Nothing is sampled down in-plane: at the published width of 128
one forward of a stack takes about 10 TFLOP, and each of its activations 0.5 GB.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from m2s.baselines.registry import Size
from m2s.nets.blocks import ResBlock, upsample_nearest
from m2s.nets.motion import orthogonal
from m2s_runtime.grid import UPSAMPLING

CLASSES: Final = 3
"""Background, pool, wall."""
MARGIN_MM: Final = 4
"""How far beyond the slices' bounding box wall is looked for."""


@dataclass(frozen=True)
class EdsrSize:
    """Channels and residual blocks; slope of the activations, and whether shortcuts are plain (both as in MCSR-MS).

    `orthogonal` weights are published; the narrow stand-ins begin as PyTorch's layers do.
    """

    width: int
    blocks: int = 5
    slope: float = 0.1
    identity: bool = False
    orthogonal: bool = False

    @property
    def reach(self) -> int:
        """Voxels to either side that an output depends on: half the receptive field, less the voxel itself."""
        return 2 * self.blocks + 3


WIDTHS: Final[Mapping[Size, EdsrSize]] = {
    "published": EdsrSize(128, orthogonal=True),
    "cpu": EdsrSize(32),
    "tiny": EdsrSize(4, blocks=1),
}


class Edsr(nn.Module):
    """Repetition along z and convolutions at full resolution; no in-plane down-sampling."""

    def __init__(self, size: EdsrSize) -> None:
        super().__init__()
        self.size = size
        width = size.width
        self.first = nn.Conv3d(CLASSES, width, 3, padding=1, bias=False)
        self.activation = nn.LeakyReLU(size.slope)
        self.blocks = nn.Sequential(
            *(ResBlock(width, width, norm=True, slope=size.slope, identity=size.identity) for _ in range(size.blocks))
        )
        self.gather = nn.Sequential(nn.Conv3d(width, width, 3, padding=1, bias=False), nn.BatchNorm3d(width))
        self.last = nn.Conv3d(width, CLASSES, 3, padding=1, bias=False)
        if size.orthogonal:
            self.apply(orthogonal)

    def forward(self, classes: Tensor) -> Tensor:
        """(B, 3, X, Y, S) share of each class -> logits (B, 3, X, Y, 5 S)."""
        first = self.activation(self.first(upsample_nearest(classes, (1, 1, UPSAMPLING))))
        return self.last(self.gather(self.blocks(first)) + first)


@torch.no_grad()
def super_resolve(net: Edsr, classes: Tensor) -> Tensor:
    """Labels (X, Y, 5 S) uint8 of one stack (1, 3, X, Y, S), computed no farther out than they can be wall.

    The network only sees the bounding box of what is no background, `MARGIN_MM` beyond it and what those voxels depend
    on, so there the labels are those that it finds from the whole plane; outside they are background.
    """
    _, _, x, y, s = classes.shape
    labels = torch.zeros((x, y, UPSAMPLING * s), dtype=torch.uint8)
    held = (classes[0, 0] < 0.5).any(2).cpu().numpy()  # pyright: ignore[reportUnknownMemberType]
    if not held.any():
        return labels
    ends = [np.flatnonzero(held.any(1 - axis))[[0, -1]].tolist() for axis in (0, 1)]
    inner = [_around(first, last, MARGIN_MM, n) for (first, last), n in zip(ends, (x, y), strict=True)]
    outer = [_around(r.start, r.stop - 1, net.size.reach, n) for r, n in zip(inner, (x, y), strict=True)]
    found = net(classes[:, :, outer[0], outer[1]])[0].argmax(0).to("cpu", torch.uint8)
    rows, columns = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
    labels[inner[0], inner[1]] = found[rows, columns]
    return labels


def _around(first: int, last: int, margin: int, size: int) -> slice:
    return slice(max(first - margin, 0), min(last + margin + 1, size))
