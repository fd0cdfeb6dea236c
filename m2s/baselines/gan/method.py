"""The trained variant as a method."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from m2s.baselines.front import Front, as_batch, decoded, open_vqvae
from m2s.baselines.gan.net import SIZES, Discriminator, Gan, generated
from m2s.baselines.method import BoolArray, Prediction, Spacing, stack_key
from m2s.nets.denoiser import Denoiser
from m2s.nets.vqvae import VqVae
from m2s.train.checkpoint import load_weights
from m2s.train.loop import device_of
from m2s_runtime import ddim

if TYPE_CHECKING:
    from m2s.baselines.registry import Size


@dataclass(frozen=True)
class ConditionalGan:
    """C-SDG to latent to surface.

    Attributes:
        front: MCSR-Net of the run.
        vqvae: encodes the condition and decodes.
        generator: makes one latent of the other.
        scale: between latents and unit variance.
    """

    front: Front
    vqvae: VqVae
    generator: Denoiser
    scale: float

    @torch.no_grad()
    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Reconstruct one stack, see `Method.predict`.

        Raises:
            EmptyWall: nothing is left after super-resolution or decoding.
            NotFinite: a network returned NaN or infinity.
        """
        csdg, shifts = self.front.csdg(mask, spacing)
        zc = self.scale * self.vqvae.latent(as_batch(csdg, device_of(self.vqvae)))
        noise = torch.from_numpy(ddim.draw_noise(stack_key(mask), 0, 0, zc.shape[1:]))[None].to(zc.device)
        z = generated(self.generator, noise, zc)
        return decoded(self.vqvae, z / self.scale, shifts)


def load(folder: Path, device: str) -> ConditionalGan:
    """The variant of `RUN/gan`; the run also holds `mcsr` and `vqvae`.

    Raises:
        FileNotFoundError: it, or what it builds on, was not trained yet.
    """
    weights, told = load_weights(folder / "gan" / "best.safetensors")
    vqvae, size = open_vqvae(folder.parent), SIZES[cast("Size", told["size"])]
    dim = vqvae.size.dim
    gan = Gan(Denoiser(size.preset.denoiser, dim), Discriminator(dim, size.discriminator))
    gan.load_state_dict(weights)
    generator = gan.generator.eval().to(device)
    return ConditionalGan(Front.load(folder.parent, device), vqvae.to(device), generator, float(told["scale_factor"]))
