"""VQ-VAE of signed distance grids (paper section 2.1, Eq. 1): encoder, vector quantiser, decoder.

Distances enter and leave in millimetres; clamping to +-`clamp_mm` and division by it happen inside. No transposed
convolutions and no normalisation layers: sub-voxels come from a depth-to-space step, which every engine runs alike.
"""

from math import prod
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from m2s.nets.blocks import ResBlock, Triple, fold_patches, full_precision, unfold_patches
from m2s.nets.presets import VqVaeSize

DEAD: Final = 0.03
"""A code taken fewer times a step than this, on the running mean, is dead."""


class Quantised(NamedTuple):
    """What the quantiser returns: latents with straight-through gradient (B, D, ...), codes (B, ...), Eq. 1's loss."""

    latent: Tensor
    codes: Tensor
    loss: Tensor


class VectorQuantiser(nn.Module):
    """Nearest code of a codebook of `codes` vectors; learnt by Eq. 1's gradient or by exponential moving averages.

    In either mode `hits` is the running mean of how often each code is taken in a training step.
    """

    hits: Tensor
    sums: Tensor

    def __init__(self, size: VqVaeSize) -> None:
        super().__init__()
        self.mode, self.decay = size.codebook, 0.99
        table = torch.randn(size.codes, size.dim) * 0.1
        self.codebook = nn.Parameter(table, requires_grad=size.codebook == "gradient")
        self.register_buffer("hits", torch.ones(size.codes))
        self.register_buffer("sums", table.clone())

    def nearest(self, latent: Tensor) -> Tensor:
        """Codes (B, ...) of latents (B, D, ...): argmin |e|^2 - 2 z.e in float32, the first index on a tie."""
        flat = latent.flatten(2).transpose(1, 2).float()
        table = self.codebook.float()
        with full_precision(flat):
            distance = (table * table).sum(1) - 2 * flat @ table.T
        return distance.argmin(-1).reshape(latent.shape[0], *latent.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """Latents (B, D, X, Y, Z) of codes (B, X, Y, Z)."""
        return self.codebook[codes].permute(0, 4, 1, 2, 3)

    def forward(self, latent: Tensor) -> Quantised:
        """Quantises (B, D, X, Y, Z); in training mode the moving averages follow.

        The loss is the sum of Eq. 1's codebook and commitment terms, both as means over all numbers; with moving
        averages the commitment alone, at van den Oord's weight of a quarter.
        """
        latent = latent.float()
        codes = self.nearest(latent)
        chosen = self.lookup(codes)
        commitment = (chosen.detach() - latent).square().mean()
        gradient = self.mode == "gradient"
        loss = commitment + (chosen - latent.detach()).square().mean() if gradient else 0.25 * commitment
        if self.training:
            self._count(codes)
            if not gradient:
                self._follow(latent.detach(), codes)
        return Quantised(latent + (chosen - latent).detach(), codes, loss)

    @torch.no_grad()
    def _count(self, codes: Tensor) -> None:
        self.hits.lerp_(torch.bincount(codes.flatten(), minlength=len(self.hits)).to(self.hits), 1 - self.decay)

    @torch.no_grad()
    def _follow(self, latent: Tensor, codes: Tensor) -> None:
        """Puts each code on the mean of the latents that took it; after `_count`."""
        flat = latent.permute(0, 2, 3, 4, 1).flatten(0, 3)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes.flatten(), flat), 1 - self.decay)
        self.codebook.copy_(self.sums / self.hits.clamp(min=1e-5)[:, None])

    def dead(self) -> Tensor:
        """Rows of the codes that training hardly takes any more."""
        return (self.hits < DEAD).nonzero().flatten()

    @torch.no_grad()
    def restart_dead(self, latent: Tensor, generator: torch.Generator) -> int:
        """Moves dead codes onto badly quantised latents (B, D, ...); returns how many moved."""
        dead = self.dead()
        if len(dead) == 0:
            return 0
        flat = latent.detach().float().permute(0, 2, 3, 4, 1).flatten(0, 3)
        error = (self.lookup(self.nearest(latent)) - latent).square().sum(1).flatten().cpu()
        # Drawn on the CPU: the generator lives there, and so the same codes restart on every device.
        pick = torch.multinomial(error + 1e-12, len(dead), replacement=len(dead) > len(error), generator=generator)
        self._place(dead, flat[pick.to(flat.device)])
        return len(dead)

    @torch.no_grad()
    def seed(self, latents: Tensor, generator: torch.Generator) -> None:
        """k-means++ start of the codebook from latents (N, D)."""
        first = int(torch.randint(len(latents), (1,), generator=generator))
        chosen, distance = [first], (latents - latents[first]).square().sum(1)
        for _ in range(len(self.codebook) - 1):
            index = int(torch.multinomial(distance.cpu() + 1e-12, 1, generator=generator))
            chosen.append(index)
            distance = torch.minimum(distance, (latents - latents[index]).square().sum(1))
        self._place(torch.arange(len(chosen), device=latents.device), latents[chosen])

    @torch.no_grad()
    def merge_twins(self, distance: float) -> int:
        """Makes codes closer than `distance` to a more frequent one its copies; returns how many were.

        Twins crowd where latents hardly vary, as in the clamped background. They say the same, and rounding decides
        between them, which no two engines do alike.
        """
        free = torch.ones(len(self.codebook), dtype=torch.bool)
        for keeper in self.hits.argsort(descending=True).tolist():
            if free[keeper]:
                near = free & ((self.codebook - self.codebook[keeper]).norm(dim=1).cpu() < distance)
                free &= ~near
                self.codebook.data[near] = self.codebook[keeper].clone()
        return len(self.codebook) - len(torch.unique(self.codebook, dim=0))

    def _place(self, rows: Tensor, vectors: Tensor) -> None:
        self.codebook.data[rows] = vectors
        self.sums[rows] = vectors
        self.hits[rows] = 1.0


class Autoencoder(nn.Module):
    """Encoder and decoder of signed distance grids (B, 1, 128, 128, 64) in mm, whatever stands between the two."""

    size: VqVaeSize
    encoder: nn.Sequential
    decoder_low: nn.Sequential
    decoder_top: nn.Sequential

    def encode(self, sdg: Tensor) -> Tensor:
        """What the encoder makes of distances in mm, (B, C, X', Y', Z'): of the VQ-VAE the latent before its codes."""
        clamp = self.size.clamp_mm
        return self.encoder(fold_patches(sdg.clamp(-clamp, clamp) / clamp, self.size.patch))

    def latent(self, sdg: Tensor) -> Tensor:
        """The latents (B, D, X', Y', Z') that Eq. 3 diffuses and is conditioned on."""
        raise NotImplementedError

    def decode(self, latent: Tensor) -> Tensor:
        """Distances in mm (B, 1, 128, 128, 64); does not re-quantise."""
        x = unfold_patches(self.decoder_low(latent), self.size.down)
        return self.size.clamp_mm * unfold_patches(self.decoder_top(x), self.size.patch)

    def latent_shape(self, grid: Triple) -> tuple[int, int, int, int]:
        """(D, X', Y', Z') for a grid; raises ValueError where the stride does not divide it."""
        stride = self.size.stride
        if any(n % s for n, s in zip(grid, stride, strict=True)):
            raise ValueError(f"strides {stride} do not divide the grid {grid}")
        x, y, z = (n // s for n, s in zip(grid, stride, strict=True))
        return self.size.dim, x, y, z


def encoder_of(size: VqVaeSize, outputs: int) -> nn.Sequential:
    """Folded patches to `outputs` channels on the strided grid."""
    top, low = size.channels
    return nn.Sequential(
        nn.Conv3d(prod(size.patch), top, 3, padding=1),
        *(ResBlock(top, top, norm=False) for _ in range(size.blocks[0])),
        nn.Conv3d(top, low, 3, size.down, 1),
        *(ResBlock(low, low, norm=False) for _ in range(size.blocks[1])),
        nn.Conv3d(low, outputs, 1),
    )


def decoder_of(size: VqVaeSize) -> tuple[nn.Sequential, nn.Sequential]:
    """The part of the decoder on the strided grid, and the part on that of the patches."""
    top, low = size.channels
    return nn.Sequential(
        nn.Conv3d(size.dim, low, 3, padding=1),
        *(ResBlock(low, low, norm=False) for _ in range(size.blocks[1])),
        nn.Conv3d(low, top * prod(size.down), 1),
    ), nn.Sequential(
        *(ResBlock(top, top, norm=False) for _ in range(size.blocks[0])),
        nn.LeakyReLU(0.1),
        nn.Conv3d(top, prod(size.patch), 3, padding=1),
    )


class VqVae(Autoencoder):
    """Compresses a signed distance grid to codes on the strided grid and back."""

    def __init__(self, size: VqVaeSize) -> None:
        super().__init__()
        self.size = size
        self.encoder = encoder_of(size, size.dim)
        self.quantiser = VectorQuantiser(size)
        self.decoder_low, self.decoder_top = decoder_of(size)

    def latent(self, sdg: Tensor) -> Tensor:
        """The codes' vectors."""
        return self.quantise(sdg).latent

    def quantise(self, sdg: Tensor) -> Quantised:
        """Encodes and quantises: the latents that Eq. 3 diffuses and is conditioned on."""
        return self.quantiser(self.encode(sdg))

    def forward(self, sdg: Tensor) -> tuple[Tensor, Quantised]:
        """Reconstruction in mm and the quantiser's answer."""
        quantised = self.quantise(sdg)
        return self.decode(quantised.latent), quantised
