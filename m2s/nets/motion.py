"""MC-Net: how far each slice has moved (paper section 2.2).

`ImageMotionNet` is the published one of MCSR-ETE. `TrackMotionNet`, which preset `compact` uses, sees no image: it
learns where the wall centroid of each slice ought to be from the centroids and the shapes of all slices, so that it
can be trained on motion in closed form, a thousand times faster than through images.
"""

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from m2s.nets.blocks import ResBlock, full_precision
from m2s.nets.presets import McsrSize
from m2s.nets.slice_moments import FEATURES, SCALE_MM, slice_features, square_group, wall_centroids, wall_moments
from m2s_runtime.grid import CENTRE, IN_PLANE, SLICES
from m2s_runtime.slices import centre_shifts

_POOL: Final = (2, 2, 1)
"""Down-sampling stays in-plane: twelve slices are few enough."""


class ImageTrunk(nn.Module):
    """Residual blocks over a stack of images, and heads without bias that each see all of it (MC-Net of MCSR-ETE)."""

    def __init__(
        self,
        channels: tuple[int, ...],
        *,
        planes: int = SLICES,
        heads: int = SLICES,
        outputs: int = 2,
        squeeze: int = 16,
        hidden: int = 64,
    ) -> None:
        """In-plane size is halved after every block but the last; `planes` is the depth, which stays."""
        super().__init__()
        self.stem = nn.Conv3d(1, 8, 2, bias=False)
        self.stem_norm = nn.BatchNorm3d(8)
        self.blocks = nn.ModuleList(ResBlock(a, b, norm=True) for a, b in pairwise((8, *channels)))
        self.squeeze = nn.Conv3d(channels[-1], squeeze, 1, bias=False)
        features = squeeze * (IN_PLANE >> (len(channels) - 1)) ** 2 * planes
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features, hidden, bias=False),
                nn.LeakyReLU(0.1),
                nn.Dropout(0.2),
                nn.Linear(hidden, outputs, bias=False),
            )
            for _ in range(heads)
        )
        self.dropout = nn.Dropout(0.2)
        self.apply(orthogonal)

    def read(self, images: Tensor) -> Tensor:
        """(B, 1, 128, 128, planes) -> (B, heads, outputs)."""
        x = nn.functional.pad(images, (0, 1, 0, 1, 0, 1))
        x = nn.functional.leaky_relu(self.stem_norm(self.stem(x)), 0.1)
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k < len(self.blocks) - 1:
                x = nn.functional.max_pool3d(x, _POOL)
        features = self.dropout(self.squeeze(x).flatten(1))
        return torch.stack([head(features) for head in self.heads], 1)


class ImageMotionNet(ImageTrunk):
    """MC-Net as published: the image alone, one head for each slice (37.7 M weights in the heads)."""

    def __init__(self, size: McsrSize) -> None:
        super().__init__(size.motion_channels)

    def forward(self, slices: Tensor, pool: Tensor) -> Tensor:  # noqa: ARG002  (one signature for both MC-Nets)
        """(B, 1, 128, 128, 12) masks -> shifts (B, 12, 2) in mm along x and y."""
        return self.read(slices)


class TrackMotionNet(nn.Module):
    """MC-Net of `compact`: centroid found minus centroid expected.

    What is expected is the mean over the eight symmetries of the square of one perceptron with residual blocks, so a
    turned or mirrored stack gets exactly the turned or mirrored shifts.
    """

    mean: Tensor
    deviation: Tensor
    turns: Tensor
    back: Tensor

    def __init__(self, size: McsrSize) -> None:
        super().__init__()
        width = size.track_width
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("deviation", torch.ones(FEATURES))
        turns, back = square_group()
        self.register_buffer("turns", turns, persistent=False)
        self.register_buffer("back", back, persistent=False)
        self.enter = nn.Linear(SLICES * FEATURES, width)
        self.blocks = nn.ModuleList(_PerceptronBlock(width) for _ in range(size.track_blocks))
        self.leave = nn.Linear(width, 2 * SLICES)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, slices: Tensor, pool: Tensor) -> Tensor:
        """Shifts (B, 12, 2) in mm from signed slice distances (B, 1, 128, 128, 12) and pool features (B, 12, 3)."""
        with full_precision(slices):
            centroid, area = wall_centroids(slices)
            moments = wall_moments(slices, centroid, area)
            features = slice_features(centroid, area, pool, moments)
            return centre_shifts(centroid - CENTRE - self.expected(features), pool)

    def expected(self, features: Tensor) -> Tensor:
        """Where the wall centroids ought to be, (B, 12, 2) mm from the grid's centre, symmetric."""
        # (B, 1, 12, F) @ (8, F, F): every symmetry of every stack.
        seen = features[:, None] @ self.turns
        found = self.track(seen.flatten(0, 1)).unflatten(0, (-1, len(self.turns)))
        return (found @ self.back).mean(1)

    def track(self, features: Tensor) -> Tensor:
        """The same by one run of the perceptron, not symmetric: what the training minimises the error of."""
        x = self.enter(((features - self.mean) / self.deviation).flatten(1))
        for block in self.blocks:
            x = block(x)
        return SCALE_MM * self.leave(x).unflatten(1, (SLICES, 2))


class _PerceptronBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.gelu(self.first(self.norm(x))))


def orthogonal(module: nn.Module) -> None:
    """Orthogonal weights for a convolution or a linear layer, as MCSR-ETE has them everywhere."""
    if isinstance(module, nn.Conv3d | nn.Linear):
        nn.init.orthogonal_(module.weight)
