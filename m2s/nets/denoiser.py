"""The denoiser: MONAI's diffusion U-Net, conditioned by concatenation of the encoder's quantised latent (Eq. 3)."""

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn

from m2s.nets.presets import DenoiserSize
from m2s_runtime.ddim import alpha_bars


class Denoiser(nn.Module):
    """Estimates the noise in a latent.

    With target `noise` the U-Net returns the noise itself, as in the paper. With target `residual` the clean latent is
    taken to be the condition plus a residual of known spread, for which the best estimate from z_t alone is linear.
    The U-Net sees how far z_t is from what the condition leads to expect, in units of that expectation's spread, and
    returns what the linear estimate lacks, in units of its error (the preconditioning of Karras et al. 2022, around
    the condition instead of zero). An untrained network so is already the right one for Gaussian residuals.
    """

    signal: Tensor
    spread: Tensor
    residual: Tensor

    def __init__(self, size: DenoiserSize, dim: int) -> None:
        super().__init__()
        self.size = size
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=2 * dim,
            out_channels=dim,
            channels=size.channels,
            num_res_blocks=size.res_blocks,
            attention_levels=size.attention,
            num_head_channels=size.head_channels,
            norm_num_groups=size.groups,
        )
        # Standard deviation of z_0 - zc over the training pairs; part of the weights.
        self.register_buffer("residual", torch.ones(()))
        bars = torch.from_numpy(alpha_bars())
        self.register_buffer("signal", bars.sqrt().float(), persistent=False)
        self.register_buffer("spread", (1 - bars).sqrt().float(), persistent=False)

    def forward(self, z: Tensor, zc: Tensor, t: Tensor) -> Tensor:
        """Noise (B, D, X, Y, Z) in latent `z` at steps `t` (B,) int64 in 0..999, given the condition `zc`."""
        if self.size.target == "noise":
            return self.unet(torch.cat([z, zc], 1), t)
        signal, spread = self.levels(t)
        return (z - signal * self.clean(z, zc, t)) / spread

    def clean(self, z: Tensor, zc: Tensor, t: Tensor) -> Tensor:
        """Estimate of the clean latent z_0, the same information as the noise."""
        signal, spread = self.levels(t)
        if self.size.target == "noise":
            return (z - spread * self.unet(torch.cat([z, zc], 1), t)) / signal
        off, expected = z - signal * zc, self._expected(signal, spread)
        linear = zc + signal * self.residual.square() / expected.square() * off
        return linear + self.uncertainty(t) * self.unet(torch.cat([off / expected, zc], 1), t)

    def uncertainty(self, t: Tensor) -> Tensor:
        """Standard deviation of z_0 given z_t and the condition, were residuals Gaussian; (B, 1, 1, 1, 1)."""
        signal, spread = self.levels(t)
        return self.residual * spread / self._expected(signal, spread)

    def _expected(self, signal: Tensor, spread: Tensor) -> Tensor:
        """Standard deviation of z_t about the scaled condition."""
        return (signal.square() * self.residual.square() + spread.square()).sqrt()

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha-bar) and sqrt(1 - alpha-bar) at steps t, shaped (B, 1, 1, 1, 1)."""
        signal, spread = self.signal[t], self.spread[t]
        return signal.reshape(-1, 1, 1, 1, 1), spread.reshape(-1, 1, 1, 1, 1)
