"""The conditional GAN of image-to-image translation (Isola et al., CVPR 2017, pix2pix) on latents.

The paper cites Mirza and Osindero (2014) for its GAN and does not say how it is built. Here the generator is our
denoiser, asked once where all is noise: the same network with the same inputs (noise, condition) and the same answer
(the condition plus a residual of known spread), so that beside the batch that `recipe_of` names loss and sampling alone
differ from ours. pix2pix gives its generator noise by dropout; ours has an input for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch
from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from torch import Tensor, nn
from torch.func import functional_call

from m2s.baselines.front import PRESET_OF
from m2s.nets.denoiser import Denoiser
from m2s.nets.presets import Preset
from m2s_runtime.ddim import TRAIN_STEPS

if TYPE_CHECKING:
    from m2s.baselines.registry import Size


@dataclass(frozen=True)
class GanSize:
    """Preset of the generator, and the channels of the discriminator's first layer, doubled in the second."""

    preset: Preset
    discriminator: int


def _around_the_condition(preset: Preset) -> Preset:
    """A clean latent cannot be had from an estimate of the noise where all is noise: the residual is estimated."""
    return replace(preset, denoiser=replace(preset.denoiser, target="residual"))


SIZES: Final[Mapping["Size", GanSize]] = {
    size: GanSize(_around_the_condition(preset), preset.denoiser.channels[0]) for size, preset in PRESET_OF.items()
}


class Gan(nn.Module):
    """Generator and discriminator, saved as one."""

    def __init__(self, generator: Denoiser, discriminator: "Discriminator") -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator


class Discriminator(nn.Module):
    """Tells patches of true latents from generated ones beside their condition.

    pix2pix's discriminator with one layer between the first and the last, for latents of 16 or 32 cells: a patch is
    11 cells wide. Normalisation by instance, which pix2pix's by batch is at its batch of 1.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.patches = PatchDiscriminator(3, channels, 2 * dim, num_layers_d=1, kernel_size=3, norm="INSTANCE")

    def forward(self, z: Tensor, zc: Tensor) -> Tensor:
        """Logits (B, 1, X'/2, Y'/2, Z'/2) of being true, of latents and conditions (B, D, X', Y', Z')."""
        return self.patches(torch.cat([z, zc], 1))[-1].float()

    def frozen(self, z: Tensor, zc: Tensor) -> Tensor:
        """The same, with weights that get no gradient; the latents do."""
        return functional_call(self, {name: p.detach() for name, p in self.named_parameters()}, (z, zc))


def generated(net: Denoiser, noise: Tensor, zc: Tensor) -> Tensor:
    """Latents (B, D, X', Y', Z') for conditions of the same shape."""
    last = torch.full((len(zc),), TRAIN_STEPS - 1, device=zc.device)
    return net.clean(noise, zc, last).float()
