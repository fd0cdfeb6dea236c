"""Stage 3, the conditional latent diffusion (paper section 2.1, Eq. 3): T = 1000, linear betas, t uniform."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from m2s.nets.denoiser import Denoiser
from m2s.nets.presets import Preset
from m2s.nets.vqvae import Autoencoder
from m2s.train.figures import contours, surface_figures
from m2s.train.loop import Batch, Facts, Figures, device_of
from m2s.train.pairs import Floats, PairMaker, PairSource
from m2s_runtime import ddim

_MEAN_SHARE = 0.75
"""Part of a batch that learns the mean of the posterior; the rest learns to sample from it."""


class DiffusionStage:
    """Denoiser training on latent pairs; encoder and decoder stay frozen.

    With target `noise` the loss is Eq. 3. With target `residual` it is the squared error of the clean latent in units
    of what a Gaussian residual would leave open, times that uncertainty: the last steps, where nearly all is noise
    that nobody can tell, weigh little. Most of each batch then starts from no noise at all: there the best answer is
    the mean of the posterior, which is what a single sample of temperature zero takes in one step.
    """

    name = "diffusion"
    monitor = "assd"

    def __init__(
        self,
        preset: Preset,
        source: PairSource,
        scale: float,
        autoencoder: Autoencoder,
        selection: PairMaker,
        facts: Facts,
        hearts: int = 10,
    ) -> None:
        self.preset, self.source, self.scale, self.facts = preset, source, scale, facts
        self.net = Denoiser(preset.denoiser, preset.vqvae.dim)
        if preset.denoiser.target == "residual":
            _start_at_zero(self.net)
            self.net.residual.fill_(source.residual)
        self.model: nn.Module = self.net
        self._autoencoder = autoencoder.eval()
        self._selection = [_selection_case(selection, k) for k in range(hearts)]

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """Eq. 3, or its bounded form."""
        zs, zc, t, noise = batch["zs"], batch["zc"], batch["t"], batch["noise"]
        signal, spread = self.net.levels(t)
        noised = signal * zs + spread * noise
        if self.preset.denoiser.target == "residual":
            means = int(_MEAN_SHARE * len(zs))
            noised[:means], t[:means] = 0.0, ddim.TRAIN_STEPS - 1
        if self.preset.denoiser.target == "noise":
            return (self.net(noised, zc, t).float() - noise).square().mean(), {}
        error = (self.net.clean(noised, zc, t).float() - zs).square()
        gain = error.mean() / (zc - zs).square().mean().clamp(min=1e-6)
        return (error / self.net.uncertainty(t)).mean() / self.net.residual, {"left": float(gain.detach())}

    def validate(self, model: nn.Module, folder: Path) -> Figures:
        """Surface figures of the ten-step reconstruction, and of the decoded condition alone."""
        net: Denoiser = model  # pyright: ignore[reportAssignmentType]
        rows = [self._score(net, *case) for case in self._selection]
        self._picture(net, folder)
        return {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}

    def _score(self, net: Denoiser, csdg: Tensor, truth: Floats) -> Figures:
        zc = self._condition(net, csdg)
        found, plain = self.sample(net, zc, 0), self._decode(zc)
        condition = {f"{name}_zc": value for name, value in surface_figures(plain, truth).items()}
        return surface_figures(found, truth) | condition

    def sample(self, net: Denoiser, zc: Tensor, seed: int) -> Floats:
        """As the runtime samples once, decoded: (128, 128, 64) mm."""
        return self._decode(sampled(net, zc, "0", seed))

    def _decode(self, z: Tensor) -> Floats:
        return self._autoencoder.decode(z / self.scale)[0, 0].cpu().numpy()

    def _condition(self, net: Denoiser, csdg: Tensor) -> Tensor:
        device = device_of(net)
        return self.scale * self._autoencoder.to(device).latent(csdg.to(device))

    def _picture(self, net: Denoiser, folder: Path) -> None:
        """Mid-slice of truth, condition and reconstruction of the first selection heart."""
        csdg, truth = self._selection[0]
        found = self.sample(net, self._condition(net, csdg), 0)
        contours(folder / "validation.png", {"truth": truth, "condition": csdg[0, 0].numpy(), "reconstruction": found})

    def metadata(self) -> Facts:
        """Preset, origin of the data, and the factor between quantised latents and unit variance."""
        return self.facts | {"scale_factor": repr(self.scale)}


def sampled(net: Denoiser, zc: Tensor, key: str, seed: int = 0) -> Tensor:
    """A latent (1, D, X', Y', Z') as the runtime samples once: with target `residual` one step from no noise.

    Args:
        net: the denoiser.
        zc: condition, of the same shape.
        key: hexadecimal, as in `ddim.draw_noise`.
        seed: of the noise.
    """
    noise = torch.from_numpy(ddim.draw_noise(key, seed, 0, zc.shape[1:]))[None].to(zc.device)
    mean = net.size.target == "residual"
    noise, levels = noise * (not mean), ddim.timesteps(1 if mean else ddim.DEFAULT_STEPS)
    return ddim.sample(lambda z, t: net(z, zc, torch.full((1,), t, device=z.device)), noise, levels, ddim.alpha_bars())


def _selection_case(maker: PairMaker, index: int) -> tuple[Tensor, Floats]:
    csdg, truth = maker.grids(index)
    return torch.from_numpy(csdg)[None, None], truth


def _start_at_zero(net: Denoiser) -> None:
    last = [m for m in net.unet.out.modules() if isinstance(m, nn.Conv3d)][-1]
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
