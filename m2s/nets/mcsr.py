"""MCSR-Net: motion correction (MC-Net) and super-resolution (SR-Net) of a stack of slices.

The paper (section 2.2) takes MC-Net from MCSR-ETE with 16/32/64/64 channels and gives SR-Net in-plane down- and
up-sampling. `ImageMotionNet` with `MaskSrNet` is that; `TrackMotionNet` with `DistanceSrNet` is what preset `compact`
uses: distance fields through the re-alignment, the centroid track as a prior, several passes of estimate and re-align.
"""

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from m2s.nets.blocks import ResBlock, fold_patches, full_precision, mlp, realign, unfold_patches, upsample_nearest
from m2s.nets.presets import McsrSize
from m2s_runtime.grid import CENTRE, IN_PLANE, PLANES, SLICES, UPSAMPLING
from m2s_runtime.slices import centre_shifts

_POOL: Final = (2, 2, 1)
"""Down-sampling stays in-plane: twelve slices are few enough."""


class ImageMotionNet(nn.Module):
    """MC-Net as published: the image alone, one head for each slice (37.7 M weights in the heads)."""

    def __init__(self, size: McsrSize) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 8, 2, bias=False)
        self.stem_norm = nn.BatchNorm3d(8)
        widths = (8, *size.motion_channels)
        self.blocks = nn.ModuleList(ResBlock(a, b, norm=True) for a, b in pairwise(widths))
        self.squeeze = nn.Conv3d(widths[-1], 16, 1, bias=False)
        features = 16 * (IN_PLANE // 8) ** 2 * SLICES
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features, 64, bias=False), nn.LeakyReLU(0.1), nn.Dropout(0.2), nn.Linear(64, 2, bias=False)
            )
            for _ in range(SLICES)
        )
        self.dropout = nn.Dropout(0.2)
        self.apply(_orthogonal)

    def forward(self, slices: Tensor, pool: Tensor) -> Tensor:  # noqa: ARG002  (one signature for both MC-Nets)
        """(B, 1, 128, 128, 12) masks -> shifts (B, 12, 2) in mm along x and y."""
        x = nn.functional.pad(slices, (0, 1, 0, 1, 0, 1))
        x = nn.functional.leaky_relu(self.stem_norm(self.stem(x)), 0.1)
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k < len(self.blocks) - 1:
                x = nn.functional.max_pool3d(x, _POOL)
        features = self.dropout(self.squeeze(x).flatten(1))
        return torch.stack([head(features) for head in self.heads], 1)


class TrackMotionNet(nn.Module):
    """MC-Net of `compact`: where the wall centroid of each slice ought to be, and so how far the slice has moved.

    A multilayer perceptron over the centroids of all slices gives a first estimate; each pass then re-aligns the stack
    with it and lets a small 3-D network see what is still out of line.
    """

    def __init__(self, size: McsrSize) -> None:
        super().__init__()
        width, channels = size.track_width, size.motion_channels
        self.clip_mm, self.passes = size.clip_mm, size.passes
        self.track = mlp((SLICES * _TRACK_FEATURES, 2 * width, 2 * width, width, 2 * SLICES), last_zero=True)
        self.stem = nn.Conv3d(16, channels[0], 3, padding=1)
        pairs = zip(channels, (*channels[1:], channels[-1]), strict=True)
        self.blocks = nn.ModuleList(ResBlock(a, b, norm=False) for a, b in pairs)
        self.squeeze = nn.Linear(16 * channels[-1], 64)
        self.head = mlp((SLICES * (64 + 2 + _TRACK_FEATURES), width, width, 2 * SLICES), last_zero=True)

    def forward(self, slices: Tensor, pool: Tensor) -> Tensor:
        """Shifts (B, 12, 2) in mm from signed slice distances (B, 1, 128, 128, 12) and pool features (B, 12, 3)."""
        return self.estimates(slices, pool)[-1]

    def estimates(self, slices: Tensor, pool: Tensor) -> list[Tensor]:
        """The shifts after the track and after each pass, all (B, 12, 2), the last one best."""
        wall, area = wall_centroids(slices)
        features = track_features(wall, area, pool)
        shifts = self.prior(features, wall)
        found = [shifts]
        for _ in range(self.passes):
            shifts = centre_shifts(shifts, pool).detach()
            seen = self._look(realign(slices, shifts, self.clip_mm))
            state = torch.cat([seen, (wall - CENTRE - shifts) / _TRACK_SCALE, features], -1).flatten(1)
            shifts = shifts + _TRACK_SCALE * self.head(state).unflatten(1, (SLICES, 2))
            found.append(shifts)
        return found

    def prior(self, features: Tensor, wall: Tensor) -> Tensor:
        """First estimate (B, 12, 2): centroid found minus centroid expected from all the centroids."""
        expected = _TRACK_SCALE * self.track(features.flatten(1)).unflatten(1, (SLICES, 2))
        return wall - CENTRE - expected

    def _look(self, aligned: Tensor) -> Tensor:
        x = self.stem(fold_patches(aligned / self.clip_mm, (4, 4, 1)))
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k < len(self.blocks) - 1:
                x = nn.functional.max_pool3d(x, _POOL)
        return self.squeeze(x.permute(0, 4, 1, 2, 3).flatten(2))


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
    """MC-Net and SR-Net, trained jointly; exported as the graphs `mc` and `sr`."""

    def __init__(self, size: McsrSize) -> None:
        super().__init__()
        track = size.motion == "track"
        self.size = size
        self.motion: TrackMotionNet | ImageMotionNet = TrackMotionNet(size) if track else ImageMotionNet(size)
        self.super_resolution = DistanceSrNet(size) if track else MaskSrNet(size)
        self.fill = size.clip_mm if size.slices == "signed_distance" else 0.0

    def shifts(self, slices: Tensor, pool: Tensor) -> list[Tensor]:
        """Centred shifts (B, 12, 2) in mm after each pass, the last one best."""
        if isinstance(self.motion, TrackMotionNet):
            found = self.motion.estimates(slices, pool)
        else:
            found = [self.motion(slices, pool)]
        return [centre_shifts(t, pool) for t in found]

    def logits(self, slices: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """Re-aligned slices (B, 1, 128, 128, 12) and super-resolved logits (B, 1, 128, 128, 60)."""
        corrected = realign(slices, shifts, self.fill)
        return corrected, self.super_resolution(corrected)

    def probability(self, slices: Tensor, shifts: Tensor) -> Tensor:
        """Probability of wall (B, 1, 128, 128, 60), planes step / 5 mm apart."""
        return torch.sigmoid(self.logits(slices, shifts)[1])


_TRACK_FEATURES: Final = 6
_TRACK_SCALE: Final = 4.0
"""Millimetres: about the rms of the motion laws, so that the perceptrons see and return numbers near one."""


def wall_centroids(slices: Tensor) -> tuple[Tensor, Tensor]:
    """Centroid (B, 12, 2) in mm and area (B, 12) in mm^2 of the wall, from signed distances (B, 1, X, Y, 12).

    A pixel counts by the part of it that lies inside (the distance clipped to half a pixel); an empty slice sits at
    the centre with area zero.
    """
    inside = (0.5 - slices[:, 0]).clamp(0, 1)
    x = torch.arange(slices.shape[2], device=slices.device, dtype=slices.dtype)
    along_x, along_y = inside.sum(2), inside.sum(1)
    area = along_x.sum(1)
    safe = area.clamp(min=1.0)
    cx = (along_x * (x - CENTRE)[:, None]).sum(1) / safe
    cy = (along_y * (x - CENTRE)[:, None]).sum(1) / safe
    return torch.stack([cx, cy], -1) + CENTRE, area


def track_features(wall: Tensor, area: Tensor, pool: Tensor) -> Tensor:
    """(B, 12, 6): wall centroid, pool centroid against it, both areas; all near one."""
    held = (area > 0).to(wall.dtype)[..., None]
    track = (wall - CENTRE) / _TRACK_SCALE
    eccentric = (pool[..., :2] - wall) * held
    return torch.cat([track, eccentric, area[..., None] / 1500, pool[..., 2:] / 1500], -1)


def _interpolation_matrix() -> Tensor:
    """(12, 60): linear in z, slice k at plane 5k + 2, held constant beyond the first and last slice."""
    position = ((torch.arange(PLANES) - UPSAMPLING // 2) / UPSAMPLING).clamp(0, SLICES - 1)
    return torch.relu(1 - (position[None, :] - torch.arange(SLICES)[:, None]).abs())


def _orthogonal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d | nn.Linear):
        nn.init.orthogonal_(module.weight)
