"""The point completion network (Yuan et al., 3DV 2018, variant CD), without normalisation, as published.

Encoder: points through an MLP 128, 256, the maximum over points beside each, then 512, 1024 and the maximum again.
Decoder: 1024, 1024, 3 x 1024 gives the coarse points; each is the anchor of a 4 x 4 grid that an MLP 512, 512, 3 folds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from m2s.baselines.registry import Size

_EXTENT: Final = 0.05
"""Half the side of the folding grid, in units of the normalised frame."""


@dataclass(frozen=True)
class PcnSize:
    """Sizes of the network, and how much of it a training step runs through.

    Attributes:
        points: of the input.
        local: widths of the first point MLP.
        code: widths of the second; the last is that of the code.
        dense: width of the two layers between the code and the coarse points.
        coarse: coarse points.
        fold: width of the folding MLP.
        side: of the folding grid.
        nodes: of the grid's side² nodes that a training step folds, drawn anew each step.
        truth: points of the true surface that a training step is compared with.
    """

    points: int = 3000
    local: tuple[int, int] = (128, 256)
    code: tuple[int, int] = (512, 1024)
    dense: int = 1024
    coarse: int = 1024
    fold: int = 512
    side: int = 4
    nodes: int = 16
    truth: int = 16384


SIZES: Final[Mapping["Size", PcnSize]] = {
    "published": PcnSize(),
    # The published network on fewer points of the contours; a step learns from an eighth of the fine points.
    "cpu": PcnSize(points=1024, nodes=2, truth=4096),
    "tiny": PcnSize(points=256, local=(8, 16), code=(16, 32), dense=32, coarse=64, fold=16, truth=1024),
}


class Pcn(nn.Module):
    """Points of the contours to points of the whole surface, both in the normalised frame."""

    grid: Tensor

    def __init__(self, size: PcnSize) -> None:
        super().__init__()
        (a, b), (c, d) = size.local, size.code
        self.size = size
        self.local = nn.Sequential(nn.Linear(3, a), nn.ReLU(), nn.Linear(a, b))
        self.beside = nn.Linear(2 * b, c)
        self.last = nn.Linear(c, d)
        layers = nn.Linear(d, size.dense), nn.ReLU(), nn.Linear(size.dense, size.dense), nn.ReLU()
        self.anchors = nn.Sequential(*layers, nn.Linear(size.dense, 3 * size.coarse))
        self.unfold = nn.Linear(2 + 3 + d, size.fold)
        self.folds = nn.Linear(size.fold, size.fold)
        self.moves = nn.Linear(size.fold, 3)
        line = torch.linspace(-_EXTENT, _EXTENT, size.side)
        self.register_buffer("grid", torch.cartesian_prod(line, line), persistent=False)

    def encode(self, points: Tensor) -> Tensor:
        """(B, P, 3) to the code (B, 1024), which does not depend on the order of the points."""
        with exact(points):
            local = self.local(points)
        near = functional.relu(of_parts(self.beside, local, local.amax(1)))
        return self.last(near).amax(1)

    def complete(self, code: Tensor, nodes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Coarse points (B, 1024, 3) and, at the chosen nodes of the grid (all by default), fine ones (B, 16384, 3).

        Of each coarse point the fine ones follow one another.
        """
        code = code.float()
        grid = self.grid if nodes is None else self.grid[nodes]
        with exact(code):
            coarse = self.anchors(code).unflatten(1, (-1, 3))
            anchors = coarse.repeat_interleave(len(grid), dim=1)
            where = torch.cat([grid.repeat(coarse.shape[1], 1).expand(len(coarse), -1, -1), anchors], dim=2)
            unfolded = functional.relu(of_parts(self.unfold, where, code))
        folded = functional.relu(self.folds(unfolded))
        with exact(code):
            return coarse, anchors + self.moves(folded.float())

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(B, P, 3) to coarse and fine points."""
        return self.complete(self.encode(points))


def exact(points: Tensor) -> torch.autocast:
    """Single precision for layers that read or write coordinates: half of it rounds them to a quarter millimetre."""
    return torch.autocast(points.device.type, enabled=False)


def of_parts(layer: nn.Linear, own: Tensor, shared: Tensor) -> Tensor:
    """A layer on (B, N, a) beside (B, b), which all N points share, without repeating that: (B, N, c)."""
    wide = own.shape[-1]
    every = functional.linear(shared, layer.weight[:, wide:], layer.bias)
    return functional.linear(own, layer.weight[:, :wide]) + every[:, None]
