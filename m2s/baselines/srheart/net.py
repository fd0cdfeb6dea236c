"""The beta-VAE of SRHeart on label volumes (class, depth 64, 128, 128)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from m2s.baselines.edsr import CLASSES
from m2s.baselines.registry import Size
from m2s_runtime.grid import GRID

_LEVELS: Final = 4
_COARSE: Final = (GRID[2] >> _LEVELS, GRID[0] >> _LEVELS, GRID[1] >> _LEVELS)


@dataclass(frozen=True)
class VaeSize:
    """Width of the network.

    Attributes:
        classes: 4 in the source; its right ventricle is not in our data, where the fourth stays empty.
        filters: of the first convolution; each further one has twice as many.
        codes: length of z.
    """

    classes: int
    filters: int
    codes: int


SIZES: Final[Mapping[Size, VaeSize]] = {
    "published": VaeSize(4, 4, 64),
    "cpu": VaeSize(CLASSES, 4, 64),
    "tiny": VaeSize(CLASSES, 1, 4),
}
"""The network is small: `cpu` only lacks the class that our data lack."""


class ShapeVae(nn.Module):
    """Four strided convolutions down to z, four transposed ones back; logits out."""

    def __init__(self, size: VaeSize) -> None:
        super().__init__()
        self.size = size
        widths = [size.filters << level for level in range(_LEVELS)]
        flat = widths[-1] * _COARSE[0] * _COARSE[1] * _COARSE[2]
        self.encoder = nn.Sequential()
        for inputs, outputs in zip([size.classes, *widths], widths, strict=False):
            last = outputs == widths[-1]
            activation = nn.ReLU() if last else nn.LeakyReLU(0.2)
            self.encoder.extend([nn.Conv3d(inputs, outputs, 4, 2, 1), nn.BatchNorm3d(outputs), activation])
        self.mean, self.log_variance = nn.Linear(flat, size.codes), nn.Linear(flat, size.codes)
        self.widen = nn.Linear(size.codes, flat)
        self.body = nn.Sequential()
        for inputs, outputs in zip(widths[:0:-1], widths[-2::-1], strict=True):
            layers = [nn.ConvTranspose3d(inputs, outputs, 4, 2, 1), nn.BatchNorm3d(outputs), nn.LeakyReLU(0.2)]
            self.body.extend(layers)
        self.last = nn.ConvTranspose3d(size.filters, size.classes, 4, 2, 1)

    def encode(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, each (B, codes), of labels (B, 64, 128, 128) uint8."""
        classes = torch.arange(self.size.classes, device=labels.device, dtype=labels.dtype)
        one_hot = (labels[:, None] == classes[:, None, None, None]).to(self.mean.weight.dtype)
        features = self.encoder(one_hot).flatten(1)
        return self.mean(features), self.log_variance(features)

    def features(self, z: Tensor) -> Tensor:
        """What the last layer reads: (B, filters, 32, 64, 64) of codes (B, codes)."""
        return self.body(self.widen(z).unflatten(1, (-1, *_COARSE)))

    def decode(self, z: Tensor) -> Tensor:
        """Logits (B, classes, 64, 128, 128) of codes (B, codes)."""
        return self.last(self.features(z))

    def planes(self, z: Tensor, depths: Tensor) -> Tensor:
        """Some planes of `decode` without the others: (N, classes, 128, 128), linear between two planes of the grid.

        Args:
            z: (1, codes).
            depths: (N,) float32 within 0..63.
        """
        features, below = self.features(z), depths.floor()
        found = self._whole_planes(features, below.long())
        weight = (depths - below)[:, None, None, None]
        return torch.lerp(found, self._whole_planes(features, depths.ceil().long()), weight) if weight.any() else found

    def _whole_planes(self, features: Tensor, planes: Tensor) -> Tensor:
        """The last layer along the depth: each plane takes from two of its input, so it is a layer in two dimensions.

        Even planes take with taps 3 and 1, odd ones with 2 and 0.
        """
        padded = nn.functional.pad(features[0], (0, 0, 0, 0, 1, 1))
        first = torch.div(planes + 1, 2, rounding_mode="floor")
        pairs = torch.cat([padded[:, first], padded[:, first + 1]]).transpose(0, 1)
        odd = planes % 2 == 1
        parts: list[Tensor] = []
        for chosen, taps in ((~odd, (3, 1)), (odd, (2, 0))):
            weight = torch.cat([self.last.weight[:, :, tap] for tap in taps])
            parts.append(nn.functional.conv_transpose2d(pairs[chosen], weight, self.last.bias, 2, 1))
        return torch.cat(parts)[odd.to(torch.int8).argsort(stable=True).argsort()]
