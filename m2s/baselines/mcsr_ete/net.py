"""MC-Net, the bridge and SR-Net of MCSR-ETE; facts from its published code, which method.md section 2.1 lists.

The label of a voxel is one number, 0 background, 1 pool, 2 wall. The source has pools as they were drawn; here they are
the holes of the wall (`m2s.baselines.labels`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor, nn

from m2s.baselines.edsr import WIDTHS, Edsr, EdsrSize
from m2s.baselines.labels import one_hot
from m2s.baselines.motion_trunk import TRUNKS, MotionTrunk, TrunkSize
from m2s.baselines.registry import Size
from m2s.nets.blocks import realign


@dataclass(frozen=True)
class EteSize:
    """Widths, and what belongs to them in training.

    Attributes:
        motion: of MC-Net.
        high: of SR-Net.
        bridge: `hard` rounds the re-aligned labels, as published, so that Dice teaches MC-Net nothing; `soft` blends.
        crop: pixels along x and y, and slices, that SR-Net is trained on, around the wall; None for all.
        moved: pixels by which input and targets are moved together at most.
        dense: whether the weight penalty covers the heads.
    """

    motion: TrunkSize
    high: EdsrSize
    bridge: Literal["hard", "soft"]
    crop: tuple[int, int] | None
    moved: int
    dense: bool


SIZES: Final[Mapping[Size, EteSize]] = {
    "published": EteSize(TRUNKS["published"], WIDTHS["published"], "hard", None, 5, dense=True),
    "cpu": EteSize(replace(TRUNKS["cpu"], squeeze=4), WIDTHS["cpu"], "soft", (32, 4), 0, dense=False),
    "tiny": EteSize(TRUNKS["tiny"], WIDTHS["tiny"], "soft", (32, 4), 0, dense=False),
}
"""What `cpu` does otherwise: SR-Net has 32 channels of 128 and is trained on crops; MC-Net has the widths of
Mask2Surface and 4 channels before its heads, a quarter of their weights; the bridge lets the Dice terms through; and
nothing is moved, for no stack tells how far all of it has moved together unless hearts are known to be centred."""


class EteNet(nn.Module):
    """MC-Net and SR-Net."""

    def __init__(self, size: EteSize) -> None:
        super().__init__()
        self.bridge = hard_bridge if size.bridge == "hard" else soft_bridge
        self.motion = MotionTrunk(size.motion)
        self.super_resolution = Edsr(size.high)

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (B, 1, 128, 128, 12) -> shifts (B, 12, 2) mm and the re-aligned slices (B, 3, 128, 128, 12)."""
        shifts = self.motion(labels.float()).float()
        return shifts, self.bridge(labels, shifts)


def hard_bridge(labels: Tensor, shifts: Tensor) -> Tensor:
    """Nearest re-alignment, cast to integers, one-hot, as published: corrected(p) = labels(round(p + t)).

    Args:
        labels: (B, 1, X, Y, S).
        shifts: (B, S, 2) mm; gets no gradient.

    Returns:
        (B, 3, X, Y, S) zeros and ones.
    """
    # By whole voxels the bilinear matrices hold zeros and ones: the nearest neighbour.
    return one_hot(realign(labels.float(), shifts.detach().round()).round())


def soft_bridge(labels: Tensor, shifts: Tensor) -> Tensor:
    """Bilinear re-alignment of each class; what comes from outside the field of view is background.

    Args:
        labels: (B, 1, X, Y, S).
        shifts: (B, S, 2) mm.

    Returns:
        (B, 3, X, Y, S) shares that add up to one, differentiable in the shifts.
    """
    inside = one_hot(labels)[:, 1:]
    moved = torch.cat([realign(inside[:, k : k + 1], shifts) for k in range(inside.shape[1])], 1)
    return torch.cat([1 - moved.sum(1, keepdim=True), moved], 1)
