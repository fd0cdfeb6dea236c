"""The trained variant as a method."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from m2s.baselines.front import PRESET_OF, Front, as_batch, decoded
from m2s.baselines.method import BoolArray, Prediction, Spacing, stack_key
from m2s.baselines.vae.net import Vae
from m2s.baselines.vae.train import open_vae
from m2s.nets.denoiser import Denoiser
from m2s.train.checkpoint import load_weights
from m2s.train.diffusion import sampled
from m2s.train.loop import device_of

if TYPE_CHECKING:
    from m2s.baselines.registry import Size


@dataclass(frozen=True)
class VaeDiffusion:
    """C-SDG to latent to surface.

    Attributes:
        front: MCSR-Net of the run.
        vae: encodes the condition and decodes.
        denoiser: of its latents.
        scale: between latents and unit variance.
    """

    front: Front
    vae: Vae
    denoiser: Denoiser
    scale: float

    @torch.no_grad()
    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Reconstruct one stack, see `Method.predict`.

        Raises:
            EmptyWall: nothing is left after super-resolution or decoding.
            NotFinite: a network returned NaN or infinity.
        """
        csdg, shifts = self.front.csdg(mask, spacing)
        zc = self.scale * self.vae.latent(as_batch(csdg, device_of(self.vae)))
        z = sampled(self.denoiser, zc, stack_key(mask))
        return decoded(self.vae, z / self.scale, shifts)


def load(folder: Path, device: str) -> VaeDiffusion:
    """The variant of `RUN/vae`; the run also holds `mcsr`.

    Raises:
        FileNotFoundError: it, or what it builds on, was not trained yet.
    """
    weights, told = load_weights(folder / "diffusion" / "best.safetensors")
    vae = open_vae(folder)
    denoiser = Denoiser(PRESET_OF[cast("Size", told["size"])].denoiser, vae.size.dim)
    denoiser.load_state_dict(weights)
    front = Front.load(folder.parent, device)
    return VaeDiffusion(front, vae.to(device), denoiser.eval().to(device), float(told["scale_factor"]))
