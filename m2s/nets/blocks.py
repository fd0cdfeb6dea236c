"""Shared building blocks: residual block, patch (un)folding, re-alignment by hat-function matrices."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

Triple = tuple[int, int, int]


class ResBlock(nn.Module):
    """Two 3x3x3 convolutions and a 1x1x1 shortcut, plain addition (the block of MCSR-ETE).

    With `norm`, batch normalisation follows each convolution, as published. Without, the second convolution starts at
    zero, so that a deep stack starts as the identity and trains at batch sizes where batch statistics mean little.
    `identity` leaves the shortcut's convolution out where widths allow it (MCSR-MS).
    """

    def __init__(self, inputs: int, outputs: int, *, norm: bool, slope: float = 0.1, identity: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, 3, padding=1, bias=not norm)
        self.second = nn.Conv3d(outputs, outputs, 3, padding=1, bias=not norm)
        self.norms = nn.ModuleList([nn.BatchNorm3d(outputs), nn.BatchNorm3d(outputs)] if norm else [nn.Identity()] * 2)
        self.activation = nn.LeakyReLU(slope)
        same = inputs == outputs and (identity or not norm)
        self.shortcut = nn.Identity() if same else nn.Conv3d(inputs, outputs, 1, bias=False)
        if not norm:
            nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, X, Y, Z) -> (B, outputs, X, Y, Z)."""
        y = x if isinstance(self.norms[0], nn.BatchNorm3d) else self.activation(x)
        y = self.activation(self.norms[0](self.first(y)))
        return self.norms[1](self.second(y)) + self.shortcut(x)


def fold_patches(x: Tensor, patch: Triple) -> Tensor:
    """Space to depth: (B, C, X, Y, Z) -> (B, C*px*py*pz, X/px, Y/py, Z/pz)."""
    b, c, *size = x.shape
    (px, py, pz), (nx, ny, nz) = patch, (s // p for s, p in zip(size, patch, strict=True))
    # Rows first, then the matrix in each: engines take a quarter of the time that moving single voxels takes.
    x = x.reshape(b, c, nx, px, ny, py, nz * pz).permute(0, 1, 3, 5, 2, 4, 6)
    x = x.reshape(b, c * px * py, nx * ny * nz, pz).transpose(2, 3)
    return x.reshape(b, c * px * py * pz, nx, ny, nz)


def unfold_patches(x: Tensor, patch: Triple) -> Tensor:
    """Depth to space, the inverse of `fold_patches`: (B, C*px*py*pz, X, Y, Z) -> (B, C, X*px, Y*py, Z*pz)."""
    b, c, nx, ny, nz = x.shape
    px, py, pz = patch
    x = x.reshape(b, c // pz, pz, nx * ny * nz).transpose(2, 3)  # as in fold_patches
    x = x.reshape(b, c // (px * py * pz), px, py, nx, ny, nz * pz).permute(0, 1, 4, 2, 5, 3, 6)
    return x.reshape(b, -1, nx * px, ny * py, nz * pz)


def upsample_nearest(x: Tensor, factor: Triple) -> Tensor:
    """Repeats voxels per axis by broadcasting: the same on every engine, unlike resize modes."""
    b, c, nx, ny, nz = x.shape
    fx, fy, fz = factor
    x = x.reshape(b, c, nx, 1, ny, 1, nz, 1).expand(b, c, nx, fx, ny, fy, nz, fz)
    return x.reshape(b, c, nx * fx, ny * fy, nz * fz)


def hat_matrix(shift: Tensor, size: int) -> Tensor:
    """Bilinear translation as a matrix: W[i, j] = max(0, 1 - |j - i - t|).

    Args:
        shift: (...) translations t in voxels; row i of W reads the input at i + t.
        size: length of the axis.

    Returns:
        (..., size, size); rows whose source lies outside sum to less than one, so the fill is zero.
    """
    index = torch.arange(size, device=shift.device, dtype=shift.dtype)
    offset = index[None, :] - index[:, None]
    return torch.relu(1 - (offset - shift[..., None, None]).abs())


def realign(slices: Tensor, shifts: Tensor, fill: float = 0.0) -> Tensor:
    """Undoes slice motion: corrected(p) = in(p + t), exactly bilinear, as two matrix products a slice.

    Args:
        slices: (B, 1, X, Y, S) masks or in-plane signed distances.
        shifts: (B, S, 2) translations t along x and y in voxels (= mm on the canonical grid).
        fill: value outside the field of view.

    Returns:
        (B, 1, X, Y, S), differentiable in both arguments.
    """
    x = slices[:, 0].permute(0, 3, 1, 2) - fill
    wx, wy = hat_matrix(shifts[..., 0], x.shape[2]), hat_matrix(shifts[..., 1], x.shape[3])
    with full_precision(x):
        moved = wx @ x @ wy.transpose(-1, -2) + fill
    return moved.permute(0, 2, 3, 1)[:, None]


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Switches mixed precision off for products of millimetres, where bfloat16 would cost 0.05 mm."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
