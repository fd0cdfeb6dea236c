"""What ours and its variants share: MCSR-Net, the coarse signed distance grid, and the last steps to the surface.

An ablation exchanges one part and leaves the rest as the runtime has it, so the rest stands here once. Two things
besides are not as in a bundle of `compact`. Ablations decode with the VQ-VAE (or VAE) as it was trained, for each would
need a decoder taught to read its own latents; and their distances are not averaged with the C-SDG, which would hide a
part of what they differ in. To be compared with them is ours without `m2s-train decoder`, exported with
`--csdg-share 0`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from m2s.baselines.method import GRID_TO_MM, BoolArray, FloatArray, Prediction, Spacing, from_sdg
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS, Preset
from m2s.nets.vqvae import Autoencoder, VqVae
from m2s.train.checkpoint import load_weights
from m2s.train.pairs import super_resolved
from m2s_runtime.apex import close_apex
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.handles import surface_without_handles

if TYPE_CHECKING:
    from m2s.baselines.registry import Size

PRESET_OF: Final[Mapping["Size", Preset]] = {
    "published": PRESETS["paper"],
    "cpu": PRESETS["compact"],
    "tiny": PRESETS["tiny"],
}
"""Whose widths the networks of a variant have; MCSR-Net and VQ-VAE are those of the run, whatever their preset."""


def open_mcsr(run: Path) -> McsrNet:
    """MCSR-Net of a run, on the CPU.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    weights, told = load_weights(run / "mcsr" / "best.safetensors")
    net = McsrNet(PRESETS[told["preset"]].mcsr)
    net.load_state_dict(weights)
    return net.eval()


def open_vqvae(run: Path) -> VqVae:
    """VQ-VAE of a run, on the CPU.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    weights, told = load_weights(run / "vqvae" / "best.safetensors")
    net = VqVae(PRESETS[told["preset"]].vqvae)
    net.load_state_dict(weights)
    return net.eval()


@dataclass(frozen=True)
class Front:
    """From a stack to the condition of the diffusion, as the runtime's pipeline has it, in PyTorch."""

    mcsr: McsrNet

    @classmethod
    def load(cls, run: Path, device: str) -> "Front":
        """Open MCSR-Net of a run.

        Raises:
            FileNotFoundError: it was not trained yet.
        """
        return cls(open_mcsr(run).to(device))

    def super_resolved(self, mask: BoolArray, spacing: Spacing) -> tuple[BoolArray, FloatArray]:
        """The wall on the grid and the shifts that were taken out.

        Args:
            mask: (128, 128, 12) wall, base first.
            spacing: mm along x, y and the stack.

        Returns:
            (128, 128, 64) on planes 2 mm apart whatever the slice step, and (12, 2) mm, centred.

        Raises:
            NotFinite: the network returned NaN or infinity.
        """
        return super_resolved(self.mcsr, mask, spacing[2])

    def csdg(self, mask: BoolArray, spacing: Spacing) -> tuple[FloatArray, FloatArray]:
        """The C-SDG (128, 128, 64) mm and the shifts (12, 2) mm of a stack, see `super_resolved`.

        Raises:
            EmptyWall: nothing is left after super-resolution.
            NotFinite: the network returned NaN or infinity.
        """
        wall, shifts = self.super_resolved(mask, spacing)
        return coarse_sdg(wall), shifts


def decoded(autoencoder: Autoencoder, z: torch.Tensor, shifts: FloatArray | None) -> Prediction:
    """One unscaled latent (1, D, X', Y', Z') as a prediction: apex closed and tunnels filled as in the pipeline.

    Raises:
        EmptyWall: nothing is inside.
        NotFinite: a network returned NaN or infinity.
    """
    sdg = autoencoder.decode(z)[0, 0].cpu().numpy()
    return from_sdg(surface_without_handles(close_apex(sdg)[0], GRID_TO_MM).sdg, shifts)


def as_batch(grid: FloatArray | BoolArray, device: torch.device) -> torch.Tensor:
    """(X, Y, Z) to (1, 1, X, Y, Z)."""
    return torch.from_numpy(grid)[None, None].to(device)
