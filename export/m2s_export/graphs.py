"""The five graphs of a bundle as modules: the deployed signatures, and nothing else.

Units and layout are those of design section 2: millimetres and unit-variance latents cross the border of a graph,
clamping and scaling stay inside.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from m2s.nets.denoiser import Denoiser
from m2s.nets.mcsr import McsrNet
from m2s.nets.motion import ImageMotionNet
from m2s.nets.presets import Preset
from m2s.nets.vqvae import VqVae
from m2s_runtime.grid import GRID, IN_PLANE, SLICES


class MotionGraph(nn.Module):
    """`mc`: slices (B, 1, 128, 128, 12) and pool (B, 12, 3) -> shifts (B, 12, 2) mm, not yet centred."""

    def __init__(self, net: McsrNet) -> None:
        super().__init__()
        self.motion = net.motion

    def forward(self, slices: Tensor, pool: Tensor) -> Tensor:
        """Shifts t with corrected(p) = slice(p + t)."""
        return self.motion(slices, pool)


class ImageMotionGraph(nn.Module):
    """`mc` of the published MC-Net, which sees the slices alone."""

    def __init__(self, net: McsrNet) -> None:
        super().__init__()
        self.motion = net.motion

    def forward(self, slices: Tensor) -> Tensor:
        """Shifts t with corrected(p) = slice(p + t)."""
        return self.motion(slices, slices[:, 0, 0, :SLICES, :3])


class SuperResolutionGraph(nn.Module):
    """`sr`: slices and shifts (B, 12, 2) mm -> prob (B, 1, 128, 128, 60); re-aligns inside."""

    def __init__(self, net: McsrNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, slices: Tensor, shifts: Tensor) -> Tensor:
        """Probability of wall on planes step / 5 mm apart."""
        return self.net.probability(slices, shifts)


class EncodeGraph(nn.Module):
    """`encode`: csdg (B, 1, 128, 128, 64) mm -> zc (B, D, X', Y', Z'), quantised, times the scale factor."""

    def __init__(self, net: VqVae, scale_factor: float) -> None:
        super().__init__()
        self.net, self.scale_factor = net, scale_factor

    def forward(self, csdg: Tensor) -> Tensor:
        """The codebook's own vectors, scaled: no straight-through arithmetic, which would round them anew."""
        codes = self.net.quantiser.nearest(self.net.encode(csdg))
        return self.net.quantiser.lookup(codes) * self.scale_factor


class DenoiseGraph(nn.Module):
    """`denoise`: z, zc (B, D, X', Y', Z') and t (B,) int64 -> eps, the noise in z at level t."""

    def __init__(self, net: Denoiser) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, zc: Tensor, t: Tensor) -> Tensor:
        """The noise, whatever the network itself estimates."""
        return self.net(z, zc, t)


class DecodeGraph(nn.Module):
    """`decode`: z (B, D, X', Y', Z') of unit variance -> sdg (B, 1, 128, 128, 64) mm; does not re-quantise."""

    def __init__(self, net: VqVae, scale_factor: float) -> None:
        super().__init__()
        self.net, self.scale_factor = net, scale_factor

    def forward(self, z: Tensor) -> Tensor:
        """Signed distances, negative inside the wall."""
        return self.net.decode(z / self.scale_factor)


@dataclass(frozen=True)
class Nets:
    """What one training run produced."""

    preset: Preset
    mcsr: McsrNet
    vqvae: VqVae
    denoiser: Denoiser
    scale_factor: float

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(D, X', Y', Z')."""
        return self.vqvae.latent_shape(GRID)


@dataclass(frozen=True)
class Graph:
    """One graph: the module in eval mode and example inputs of batch 2, whose keys are the names of the inputs."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    output: str


def mcsr_graphs(net: McsrNet, generator: torch.Generator | None = None) -> dict[str, Graph]:
    """The two graphs of MCSR-Net, with random example inputs."""
    track = not isinstance(net.motion, ImageMotionNet)
    slices = torch.randn(2, 1, IN_PLANE, IN_PLANE, SLICES, generator=generator)
    shifts = 3 * torch.randn(2, SLICES, 2, generator=generator)
    pool = torch.tensor([60.0, 67.0, 900.0]).repeat(2, SLICES, 1)
    return {
        "mc": Graph("mc", MotionGraph(net), {"slices": slices, "pool": pool}, "shifts")
        if track
        else Graph("mc", ImageMotionGraph(net), {"slices": slices}, "shifts"),
        "sr": Graph("sr", SuperResolutionGraph(net), {"slices": slices, "shifts": shifts}, "prob"),
    }


def graphs(nets: Nets, generator: torch.Generator | None = None) -> dict[str, Graph]:
    """All graphs of a bundle in the order of the data flow, with random example inputs."""
    motion = mcsr_graphs(nets.mcsr, generator)
    latent = (2, *nets.latent_shape)
    z, zc = (torch.randn(latent, generator=generator) for _ in range(2))
    t = torch.tensor([999, 111])
    made = (
        Graph(
            "encode",
            EncodeGraph(nets.vqvae, nets.scale_factor),
            {"csdg": 8 * torch.randn(2, 1, *GRID, generator=generator)},
            "zc",
        ),
        Graph("denoise", DenoiseGraph(nets.denoiser), {"z": z, "zc": zc, "t": t}, "eps"),
        Graph("decode", DecodeGraph(nets.vqvae, nets.scale_factor), {"z": z}, "sdg"),
    )
    return motion | {graph.name: graph for graph in made}
