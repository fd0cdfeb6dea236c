"""Last stage of `compact`: the decoder learns to read what the denoiser writes.

Codes are as exact as the codebook lets them be, latents from the denoiser are means of what could be true: softer, and
no code at all. The decoder of stage 2 has never seen such latents. Encoder, codebook and denoiser stay as they are, so
conditions and latents keep their meaning, and so do the pairs made with them.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from m2s.data.heart import keyed_rng
from m2s.nets.denoiser import Denoiser
from m2s.nets.vqvae import VqVae
from m2s.train.figures import surface_figures
from m2s.train.loop import Arrays, Batch, Facts, Figures, device_of
from m2s.train.pairs import Floats, PairMaker, PairSource
from m2s.train.vqvae import weighted_l1
from m2s_runtime import ddim

_CODES: Final = 0.25
"""Share of a batch that decodes true codes: samples from many steps end close to those."""
_NEAR_WEIGHT: Final = 8.0


class SurfaceSource(PairSource):
    """Pairs with the true distances beside the latents."""

    def __init__(self, folder: Path, maker: PairMaker, seed: int, scale: float) -> None:
        super().__init__(folder, seed, scale)
        self._maker = maker

    def batch(self, step: int, size: int) -> Arrays:
        """`zc`, `zs` (B, D, X', Y', Z'), scaled, and `sdg` (B, 1, 128, 128, 64) mm."""
        rng = keyed_rng("decoder", self._seed, step)
        pick = [int(k) for k in rng.integers(self.count, size=size)]
        pairs = self.pairs(pick)
        return {"zc": pairs[:, 0], "zs": pairs[:, 1], "sdg": np.stack([self._maker.truth(k) for k in pick])[:, None]}


class DecoderStage:
    """Near-weighted L1 of the decoded distances, see `vqvae.weighted_l1`; everything but the decoder is frozen."""

    name = "decoder"
    monitor = "assd"

    def __init__(
        self,
        vqvae: VqVae,
        denoiser: Denoiser,
        scale: float,
        source: SurfaceSource,
        selection: PairMaker,
        facts: Facts,
        hearts: int = 20,
    ) -> None:
        self.source, self.scale, self.facts = source, scale, facts
        self.net = vqvae
        for part in (vqvae.encoder, vqvae.quantiser):
            part.requires_grad_(requires_grad=False)
        self.model: nn.Module = vqvae
        self._denoiser = denoiser.eval().requires_grad_(requires_grad=False)
        self._selection = [self._case(selection, k) for k in range(hearts)]

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """Error of what the decoder makes of codes and of means, in units of the clamp."""
        exact = max(int(_CODES * len(batch["zs"])), 1)
        with torch.no_grad():
            means = self.mean(batch["zc"][exact:])
        found = self.net.decode(torch.cat([batch["zs"][:exact], means]) / self.scale)
        return weighted_l1(found, batch["sdg"], self.net.size.clamp_mm, _NEAR_WEIGHT), {}

    def mean(self, zc: Tensor) -> Tensor:
        """Latents of the posterior's mean: one step of the denoiser from no noise at all, as the runtime takes it."""
        denoiser = self._denoiser.to(zc.device)
        return ddim.sample(
            lambda z, t: denoiser(z, zc, torch.full((len(z),), t, device=z.device)).float(),
            torch.zeros_like(zc),
            ddim.timesteps(1),
            ddim.alpha_bars(),
        )

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Surface figures of the whole method on selection hearts, and of the decoded condition alone."""
        net: VqVae = model  # pyright: ignore[reportAssignmentType]
        rows = [self._score(net, *case) for case in self._selection]
        return {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}

    def _score(self, net: VqVae, zc: Tensor, truth: Floats) -> Figures:
        zc = zc.to(device_of(net))
        found, plain = (net.decode(z / self.scale)[0, 0].cpu().numpy() for z in (self.mean(zc), zc))
        condition = {f"{name}_zc": value for name, value in surface_figures(plain, truth).items()}
        return surface_figures(found, truth) | condition

    def _case(self, maker: PairMaker, index: int) -> tuple[Tensor, Floats]:
        csdg, truth = maker.grids(index)
        with torch.no_grad():
            return self.scale * self.net.quantise(torch.from_numpy(csdg)[None, None]).latent, truth

    def metadata(self) -> Facts:
        """Preset and origin of the data."""
        return self.facts
