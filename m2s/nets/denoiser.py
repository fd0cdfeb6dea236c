"""The denoiser: MONAI's diffusion U-Net, conditioned by concatenation of the encoder's quantised latent (Eq. 3)."""

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn

from m2s.nets.presets import DenoiserSize
from m2s_runtime.ddim import alpha_bars


class Denoiser(nn.Module):
    """Estimates the noise in a latent.

    With target `noise` the U-Net returns the noise itself, as in the paper. With target `residual` it returns what the
    clean latent has more than the condition, and the noise follows from z_t = sqrt(a) z_0 + sqrt(1 - a) noise: an
    untrained network then answers "the condition", which is already close.
    """

    signal: Tensor
    spread: Tensor

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
        bars = torch.from_numpy(alpha_bars())
        self.register_buffer("signal", bars.sqrt().float(), persistent=False)
        self.register_buffer("spread", (1 - bars).sqrt().float(), persistent=False)

    def forward(self, z: Tensor, zc: Tensor, t: Tensor) -> Tensor:
        """Noise (B, D, X, Y, Z) in latent `z` at steps `t` (B,) int64 in 0..999, given the condition `zc`."""
        answer = self.unet(torch.cat([z, zc], 1), t)
        if self.size.target == "noise":
            return answer
        signal, spread = self.levels(t)
        return (z - signal * (zc + answer)) / spread

    def clean(self, z: Tensor, zc: Tensor, t: Tensor) -> Tensor:
        """Estimate of the clean latent z_0, the same information as the noise."""
        answer = self.unet(torch.cat([z, zc], 1), t)
        if self.size.target == "residual":
            return zc + answer
        signal, spread = self.levels(t)
        return (z - spread * answer) / signal

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha-bar) and sqrt(1 - alpha-bar) at steps t, shaped (B, 1, 1, 1, 1)."""
        signal, spread = self.signal[t], self.spread[t]
        return signal.reshape(-1, 1, 1, 1, 1), spread.reshape(-1, 1, 1, 1, 1)
