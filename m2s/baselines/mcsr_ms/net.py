"""The two kinds of network of MCSR-MS and their sizes; see `m2s.baselines.motion_trunk` and `m2s.baselines.edsr`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from m2s.baselines.edsr import Edsr, EdsrSize, super_resolve
from m2s.baselines.labels import WALL, Labels, labelled, one_hot
from m2s.baselines.mcsr_ms.centre_line import BoolArray, Doubles, centroids, line_shifts
from m2s.baselines.motion_trunk import TRUNKS, MotionTrunk, TrunkSize
from m2s.baselines.registry import Size
from m2s.nets.blocks import realign
from m2s.train.loop import device_of
from m2s_runtime.errors import EmptyWall, NotFinite
from m2s_runtime.grid import PLANES, SLICES

POINTS: Final = 7
"""Control points of the slices' centre line, the first of which is the origin."""
POINTS_HIGH: Final = 10
"""Those of the super-resolved volume's."""


@dataclass(frozen=True)
class MsSize:
    """Networks, and what makes their training affordable.

    Attributes:
        trunk: of the network that reads the stack and of the one that reads the super-resolved volume.
        edsr: of the super-resolution.
        crop: pixels in-plane and slices that it is trained on; all where they are 128 and 12.
        remembered: how many batches of super-resolved stacks the third training makes; it then repeats them under the
            symmetries of the square. With 0 every step has new ones.
        straight: whether the last layer of the centre lines starts at zero, so that an untrained network expects a
            straight line along z, instead of orthogonal.
        joined: whether the centre lines are read from pool and wall as one label, as in the source.
    """

    trunk: TrunkSize
    edsr: EdsrSize
    crop: tuple[int, int]
    remembered: int
    straight: bool
    joined: bool


def _edsr(width: int, blocks: int, *, orthogonal: bool = False) -> EdsrSize:
    return EdsrSize(width, blocks, slope=0.3, identity=True, orthogonal=orthogonal)


SIZES: Final[Mapping[Size, MsSize]] = {
    "published": MsSize(
        TRUNKS["published"], _edsr(128, 5, orthogonal=True), (128, 12), remembered=0, straight=False, joined=True
    ),
    "cpu": MsSize(TrunkSize((8, 16, 32, 64)), _edsr(32, 5), (40, 8), remembered=16, straight=True, joined=False),
    "tiny": MsSize(TRUNKS["tiny"], _edsr(4, 1), (16, 6), remembered=2, straight=True, joined=False),
}
"""`cpu` is a quarter as wide throughout, its centre lines start straight and see three labels, its super-resolution
learns on crops round the wall, and its second correction on 32 super-resolved stacks in eight symmetries."""


class LineNet(nn.Module):
    """Labels of a stack to the control points of its centre line."""

    def __init__(self, size: MsSize, planes: int, points: int) -> None:
        super().__init__()
        self.joined = size.joined
        self.trunk = MotionTrunk(size.trunk, planes=planes, heads=1, outputs=2 * (points - 1))
        if size.straight:
            nn.init.zeros_(self.trunk.heads[0][-1].weight)  # pyright: ignore[reportArgumentType, reportIndexIssue]

    def forward(self, labels: Tensor) -> Tensor:
        """(B, 1, 128, 128, planes) float32 labels 0, 1, 2 -> (B, points - 1, 2), see `centre_line.control_points`."""
        seen = labels.clamp(max=1) if self.joined else labels
        return self.trunk(seen)[:, 0].unflatten(1, (2, -1)).transpose(1, 2)


def centre_line_net(size: MsSize) -> LineNet:
    """Of the first stage."""
    return LineNet(size, SLICES, POINTS)


def second_net(size: MsSize) -> LineNet:
    """Of the third stage."""
    return LineNet(size, PLANES, POINTS_HIGH)


@torch.no_grad()
def found_shifts(net: LineNet, labels: Labels) -> Doubles:
    """How far each slice of (128, 128, S) lies off the centre line that the network expects, see `line_shifts`.

    Raises:
        EmptyWall: no slice holds any wall.
        NotFinite: the network returned NaN or infinity.
    """
    centres, held = centroids(labels)
    if not held.any():
        raise EmptyWall.after_networks()
    points = net(torch.from_numpy(labels).float()[None, None].to(device_of(net)))[0].float().cpu().numpy()
    if not np.isfinite(points).all():
        raise NotFinite("the network of the centre line returned values that are not finite")
    return line_shifts(centres, held, points.astype(np.float64))


def moved_back(wall: BoolArray, shifts: Doubles) -> BoolArray:
    """A wall (X, Y, S) whose slices are moved by -`shifts` (S, 2), bilinear; the published code moves whole pixels."""
    stack = torch.from_numpy(wall).float()[None, None]
    return (realign(stack, torch.from_numpy(shifts).float()[None])[0, 0] >= 0.5).numpy()


def super_resolved(net: Edsr, wall: BoolArray) -> Labels:
    """(128, 128, 60) labels of a re-aligned stack (128, 128, 12)."""
    classes = one_hot(torch.from_numpy(labelled(wall))[None, None].to(device_of(net)))
    return super_resolve(net, classes).numpy()


def is_wall(labels: Labels) -> BoolArray:
    """The wall of labels."""
    return np.asarray(labels == WALL)
