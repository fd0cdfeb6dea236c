"""The VQ-VAE's encoder and decoder about a Gaussian instead of a codebook (Kingma and Welling 2014)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from torch import Tensor

from m2s.baselines.front import PRESET_OF
from m2s.nets.presets import VqVaeSize
from m2s.nets.vqvae import Autoencoder, decoder_of, encoder_of

if TYPE_CHECKING:
    from m2s.baselines.registry import Size

SIZES: Final[Mapping["Size", VqVaeSize]] = {size: preset.vqvae for size, preset in PRESET_OF.items()}
"""Those of the VQ-VAE; `codes` and `codebook` mean nothing here."""

_LOG_VARIANCES: Final = (-30.0, 20.0)
"""Bounds against overflow, as in latent diffusion's autoencoders."""


class Vae(Autoencoder):
    """Mean and log variance take the place of the codes.

    The encoder's last convolution has twice the outputs; everything else has the sizes of the VQ-VAE. Decoded in
    training is a draw; condition and target of the diffusion are means, so that a grid has one latent as it has one
    set of codes.
    """

    def __init__(self, size: VqVaeSize) -> None:
        super().__init__()
        self.size = size
        self.encoder = encoder_of(size, 2 * size.dim)
        self.decoder_low, self.decoder_top = decoder_of(size)

    def moments(self, sdg: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent, each (B, D, X', Y', Z') float32, of distances in mm."""
        mean, log_variance = self.encode(sdg).float().chunk(2, 1)
        return mean, log_variance.clamp(*_LOG_VARIANCES)

    def latent(self, sdg: Tensor) -> Tensor:
        """The mean."""
        return self.moments(sdg)[0]


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the standard normal in nats, summed over a latent: (B, ...) to (B,)."""
    each = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return each.flatten(1).sum(1)
