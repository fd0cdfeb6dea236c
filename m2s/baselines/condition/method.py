"""The trained ablations of the condition as methods."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from m2s.baselines.condition.net import SIZES, ConditionedDenoiser
from m2s.baselines.condition.train import CONDITIONS
from m2s.baselines.front import PRESET_OF, Front, as_batch, decoded, open_vqvae
from m2s.baselines.method import BoolArray, FloatArray, Prediction, Spacing, stack_key
from m2s.nets.denoiser import Denoiser
from m2s.nets.vqvae import VqVae
from m2s.train.checkpoint import load_weights
from m2s.train.condition_pairs import repeated
from m2s.train.diffusion import sampled
from m2s.train.loop import device_of
from m2s_runtime.errors import EmptyWall

if TYPE_CHECKING:
    from m2s.baselines.registry import Size


@dataclass(frozen=True)
class Conditioned:
    """Mask to latent to surface.

    Attributes:
        net: denoiser and encoder.
        vqvae: of the run; only its decoder is asked.
        scale: between quantised latents and unit variance.
        front: MCSR-Net for the super-resolved mask; None where the raw slices are the condition.
    """

    net: ConditionedDenoiser
    vqvae: VqVae
    scale: float
    front: Front | None

    @torch.no_grad()
    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Reconstruct one stack, see `Method.predict`; the shifts of raw slices are not known.

        Raises:
            EmptyWall: nothing is left of the condition or after decoding.
            NotFinite: a network returned NaN or infinity.
        """
        wall, shifts = self._seen(mask, spacing)
        if not wall.any():  # as a C-SDG refuses it
            raise EmptyWall.after_networks()
        zc = self.net.condition(as_batch(wall, device_of(self.net)))
        z = sampled(self.net.denoiser, zc, stack_key(mask))
        return decoded(self.vqvae, z / self.scale, shifts)

    def _seen(self, mask: BoolArray, spacing: Spacing) -> tuple[BoolArray, FloatArray | None]:
        if self.front is None:
            return repeated(mask, spacing[2]), None
        return self.front.super_resolved(mask, spacing)


def load(folder: Path, device: str) -> Conditioned:
    """The ablation of a run's folder.

    Args:
        folder: `RUN/mask-condition` or `RUN/slice-condition`; the run also holds `vqvae`, and `mcsr` for the former.
        device: of the networks.

    Raises:
        FileNotFoundError: it, or what it builds on, was not trained yet.
    """
    weights, told = load_weights(folder / "diffusion" / "best.safetensors")
    vqvae = open_vqvae(folder.parent)
    size = cast("Size", told["size"])
    denoiser = Denoiser(PRESET_OF[size].denoiser, vqvae.size.dim)
    net = ConditionedDenoiser(denoiser, SIZES[size].of(vqvae.size))
    net.load_state_dict(weights)
    front = Front.load(folder.parent, device) if CONDITIONS[folder.name] == "mask" else None
    return Conditioned(net.eval().to(device), vqvae.to(device), float(told["scale_factor"]), front)
