"""The denoiser with a learnt encoder of its condition.

Paper section 3.3: without C-SDGs "the conditional encoders demand training from scratch with the diffusion models". The
encoder is the VQ-VAE's without its quantiser, on binary masks; its answer takes the place of the quantised latent of
the C-SDG, channels concatenated. With target `residual` it takes that place there too: the clean latent is the
encoder's answer plus what the U-Net adds, so that the encoder learns to name the latent itself. That is fair to it:
ours starts from a latent that says where the surface is, and so may this. Only the expected size of what is left is not
known before the encoder is; it stays at 1, the spread of the latents, where ours measures it on its pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from torch import Tensor, nn

from m2s.nets.blocks import fold_patches
from m2s.nets.denoiser import Denoiser
from m2s.nets.presets import PRESETS, VqVaeSize
from m2s.nets.vqvae import encoder_of

if TYPE_CHECKING:
    from m2s.baselines.registry import Size


@dataclass(frozen=True)
class EncoderSize:
    """Widths and blocks before and behind the last down-sampling; the strides are those of the run's VQ-VAE."""

    channels: tuple[int, int]
    blocks: tuple[int, int]

    def of(self, vqvae: VqVaeSize) -> VqVaeSize:
        """Size of the VQ-VAE whose encoder it is."""
        return replace(vqvae, channels=self.channels, blocks=self.blocks)


SIZES: Final[Mapping["Size", EncoderSize]] = {
    "published": EncoderSize(PRESETS["paper"].vqvae.channels, PRESETS["paper"].vqvae.blocks),
    "cpu": EncoderSize((16, 64), (1, 1)),
    "tiny": EncoderSize(PRESETS["tiny"].vqvae.channels, PRESETS["tiny"].vqvae.blocks),
}
"""`published` has the encoder of preset `paper`. `cpu` is narrower than the one of `compact`, (48, 128) and (1, 2):
that would take more time than the denoiser that it is trained with."""


class ConditionedDenoiser(nn.Module):
    """An encoder of masks and the denoiser that is conditioned on what it says."""

    def __init__(self, denoiser: Denoiser, encoder: VqVaeSize) -> None:
        super().__init__()
        self.patch = encoder.patch
        self.encoder = encoder_of(encoder, encoder.dim)
        self.denoiser = denoiser

    def condition(self, mask: Tensor) -> Tensor:
        """Condition (B, D, X', Y', Z') of masks (B, 1, 128, 128, 64); inside is -1, outside 1, as clamped distances."""
        return self.encoder(fold_patches(1 - 2 * mask.float(), self.patch))
