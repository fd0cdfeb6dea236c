"""MCSR-Net: motion correction (MC-Net) and super-resolution (SR-Net) of a stack of slices.

The paper (section 2.2) takes MC-Net from MCSR-ETE with 16/32/64/64 channels and gives SR-Net in-plane down- and
up-sampling. `ImageMotionNet` with `MaskSrNet` is that; `TrackMotionNet` with `DistanceSrNet` is what preset `compact`
uses: shifts from the shapes of the slices, distance fields through the re-alignment and as a skip.
"""

import torch
from torch import Tensor, nn

from m2s.nets.blocks import ResBlock, fold_patches, full_precision, realign, unfold_patches, upsample_nearest
from m2s.nets.motion import ImageMotionNet, TrackMotionNet
from m2s.nets.presets import McsrSize
from m2s_runtime.grid import PLANES, SLICES, UPSAMPLING
from m2s_runtime.slices import centre_shifts


class MaskSrNet(nn.Module):
    """SR-Net as the paper has it: fivefold repetition in z, in-plane down- and up-sampling, batch norm, sigmoid."""

    def __init__(self, size: McsrSize) -> None:
        super().__init__()
        top, low = size.sr_channels
        self.first = nn.Conv3d(1, top, 3, padding=1)
        self.down = nn.ModuleList(
            [nn.Conv3d(top, low, 3, (2, 2, 1), 1), nn.Conv3d(low, low, 3, (2, 2, 1), 1)],
        )
        self.blocks = nn.Sequential(*(ResBlock(low, low, norm=True) for _ in range(size.sr_blocks)))
        self.up = nn.ModuleList([nn.Conv3d(low, low, 3, padding=1), nn.Conv3d(low, top, 3, padding=1)])
        self.last = nn.Conv3d(top, 1, 3, padding=1)

    def forward(self, corrected: Tensor) -> Tensor:
        """Logits (B, 1, 128, 128, 60) of the re-aligned masks (B, 1, 128, 128, 12)."""
        act = nn.functional.leaky_relu
        full = act(self.first(upsample_nearest(corrected, (1, 1, UPSAMPLING))), 0.1)
        half = act(self.down[0](full), 0.1)
        x = self.blocks(act(self.down[1](half), 0.1))
        x = act(self.up[0](upsample_nearest(x, (2, 2, 1))), 0.1) + half
        x = act(self.up[1](upsample_nearest(x, (2, 2, 1))), 0.1) + full
        return self.last(x)


class DistanceSrNet(nn.Module):
    """SR-Net of `compact`: corrects the linear interpolation of the slice distances along z.

    Works on 4x4 patches, one in-plane level down, and returns sub-voxels; the interpolation enters as a skip, so an
    untrained network already is shape-based interpolation.
    """

    interpolation: Tensor

    def __init__(self, size: McsrSize) -> None:
        super().__init__()
        top, low = size.sr_channels
        self.clip_mm = size.clip_mm
        self.first = nn.Sequential(nn.Conv3d(16, top, 3, padding=1), ResBlock(top, top, norm=False))
        self.down = nn.Conv3d(top, low, 3, (2, 2, 1), 1)
        self.blocks = nn.Sequential(*(ResBlock(low, low, norm=False) for _ in range(size.sr_blocks)))
        self.up = nn.Conv3d(low, top, 1)
        self.last = nn.Sequential(
            ResBlock(top, top, norm=False), nn.LeakyReLU(0.1), nn.Conv3d(top, 16 * UPSAMPLING, 3, padding=1)
        )
        nn.init.zeros_(self.last[-1].weight)  # pyright: ignore[reportArgumentType]
        self.register_buffer("interpolation", _interpolation_matrix(), persistent=False)

    def forward(self, corrected: Tensor) -> Tensor:
        """Logits (B, 1, 128, 128, 60) of the re-aligned distances (B, 1, 128, 128, 12) in mm: minus the distance."""
        full = self.first(fold_patches(corrected / self.clip_mm, (4, 4, 1)))
        low = self.blocks(self.down(full))
        x = self.last(full + self.up(upsample_nearest(low, (2, 2, 1))))
        with full_precision(corrected):
            linear = corrected @ self.interpolation
        return -(linear + self.clip_mm * unfold_patches(x, (4, 4, UPSAMPLING)))


class McsrNet(nn.Module):
    """MC-Net and SR-Net; exported as the graphs `mc` and `sr`."""

    def __init__(self, size: McsrSize) -> None:
        super().__init__()
        track = size.motion == "track"
        self.size = size
        self.motion: TrackMotionNet | ImageMotionNet = TrackMotionNet(size) if track else ImageMotionNet(size)
        self.super_resolution = DistanceSrNet(size) if track else MaskSrNet(size)
        self.fill = size.clip_mm if size.slices == "signed_distance" else 0.0

    def shifts(self, slices: Tensor, pool: Tensor) -> Tensor:
        """Centred shifts (B, 12, 2) in mm."""
        return centre_shifts(self.motion(slices, pool), pool)

    def logits(self, slices: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """Re-aligned slices (B, 1, 128, 128, 12) and super-resolved logits (B, 1, 128, 128, 60)."""
        corrected = realign(slices, shifts, self.fill)
        return corrected, self.super_resolution(corrected)

    def probability(self, slices: Tensor, shifts: Tensor) -> Tensor:
        """Probability of wall (B, 1, 128, 128, 60), planes step / 5 mm apart."""
        return torch.sigmoid(self.logits(slices, shifts)[1])


def _interpolation_matrix() -> Tensor:
    """(12, 60): linear in z, slice k at plane 5k + 2, held constant beyond the first and last slice."""
    position = ((torch.arange(PLANES) - UPSAMPLING // 2) / UPSAMPLING).clamp(0, SLICES - 1)
    return torch.relu(1 - (position[None, :] - torch.arange(SLICES)[:, None]).abs())
