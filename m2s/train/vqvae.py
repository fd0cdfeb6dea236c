"""Stage 2, the VQ-VAE of signed distance grids (paper section 2.1, Eq. 1)."""

import json
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from m2s.data.heart import keyed_rng
from m2s.data.store import HeartStore, StoredHearts, StoreSpec
from m2s.nets.presets import VqVaeSize
from m2s.nets.vqvae import VqVae
from m2s.train.checkpoint import load_weights, save_weights
from m2s.train.figures import surface_figures
from m2s.train.loop import Arrays, Batch, Facts, Figures, device_of
from m2s.train.mcsr import symmetry
from m2s_runtime.grid import GRID

TWINS: Final = 0.1
"""Codes closer than this are one: about a twentieth of the latents' standard deviation."""

NEAR_MM: Final = 2.0
"""Width of the band about the surface that counts most in the loss."""


class GridSource(StoredHearts):
    """Signed distance grids of stored hearts under the eight symmetries of the square, moved a little along z.

    With `crop` each is a random in-plane square of that side: the networks are convolutional, what is cut off is mostly
    clamped distance, and a crop of 96 costs 0.56 of the whole.
    """

    def __init__(self, folder: Path, spec: StoreSpec, seed: int, crop: int = GRID[0]) -> None:
        super().__init__(folder, spec)
        self._seed, self._crop = seed, crop

    def batch(self, step: int, size: int) -> Arrays:
        """`sdg` (B, 1, crop, crop, 64) float32 mm."""
        rng = keyed_rng("vqvae", self._seed, step)
        return {"sdg": np.stack([self._sample(rng) for _ in range(size)])[:, None]}

    def _sample(self, rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        sdg = symmetry(self.store.distance(int(rng.integers(len(self.store)))), int(rng.integers(8)))
        # Planes that come in keep the outermost distances, which the clamp cuts off anyway.
        planes = np.clip(np.arange(sdg.shape[2]) + int(rng.integers(-2, 3)), 0, sdg.shape[2] - 1)
        x, y = rng.integers(sdg.shape[0] - self._crop + 1, size=2)
        return sdg[x : x + self._crop, y : y + self._crop, planes]


def weighted_l1(found: Tensor, truth: Tensor, clamp_mm: float, near_weight: float) -> Tensor:
    """Mean absolute error in units of the clamp; voxels within `NEAR_MM` of the surface weigh `near_weight` more.

    Weight 0 is Eq. 1's plain L1, most of which is spent on clamped voxels.
    """
    truth = truth.clamp(-clamp_mm, clamp_mm)
    weight = 1 + near_weight * torch.exp(-0.5 * (truth / NEAR_MM).square())
    return ((found.float() - truth).abs() * weight).sum() / (weight.sum() * clamp_mm)


class VqVaeStage:
    """Eq. 1 with the codebook learnt as the preset says; starts as a plain autoencoder, then seeds the codes.

    Args:
        size: of the network.
        source: where the grids come from.
        selection: hearts to choose the best weights by.
        facts: preset and origin of the data, for export.
        near_weight: see `weighted_l1`.
        warm_up: steps as a plain autoencoder.
        seed: of the code restarts.
    """

    name = "vqvae"
    monitor = "assd"

    def __init__(
        self,
        size: VqVaeSize,
        source: GridSource,
        selection: HeartStore,
        facts: Facts,
        *,
        near_weight: float = 4.0,
        warm_up: int = 100,
        seed: int = 0,
    ) -> None:
        self.size, self.source, self.facts = size, source, facts
        self.net = VqVae(size)
        self.model: nn.Module = self.net
        self._near, self._warm_up, self._selection = near_weight, warm_up, selection
        self._seed = seed

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:
        """Reconstruction plus the quantiser's terms."""
        sdg = batch["sdg"]
        latent = self.net.encode(sdg).float()
        if step < self._warm_up:
            found = self.net.decode(latent)
            return weighted_l1(found, sdg, self.size.clamp_mm, self._near), {}
        if step == self._warm_up:
            flat = latent.detach().permute(0, 2, 3, 4, 1).flatten(0, 3)
            self.net.quantiser.seed(flat, self._generator(step))
        quantised = self.net.quantiser(latent)
        moved = 0
        if step % 10 == 0:
            moved = self.net.quantiser.restart_dead(latent, self._generator(step))
        near = weighted_l1(self.net.decode(quantised.latent), sdg, self.size.clamp_mm, self._near)
        spread = latent.detach().square().mean().clamp(min=1e-6)
        figures = {"l1_mm": float(near.detach()) * self.size.clamp_mm, "restarted": float(moved)}
        return near + quantised.loss / spread, figures

    def _generator(self, step: int) -> torch.Generator:
        """A function of the step, so that a resumed run restarts the same codes."""
        return torch.Generator().manual_seed(1_000_003 * self._seed + step)

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Dice and ASSD of the reconstructed surface, and how many codes carry it."""
        net: VqVae = model  # pyright: ignore[reportAssignmentType]
        rows = [self._score(net, k) for k in range(min(len(self._selection), 12))]
        figures = {name: float(np.mean([r[0][name] for r in rows])) for name in rows[0][0]}
        near = torch.cat([r[1] for r in rows])
        return figures | {"perplexity_near": _perplexity(near, self.size.codes)}

    def _score(self, net: VqVae, index: int) -> tuple[Figures, Tensor]:
        truth = self._selection.distance(index)
        found, quantised = net(torch.from_numpy(truth)[None, None].to(device_of(net)))
        sdg = found[0, 0].cpu().numpy()
        cells = nn.functional.max_pool3d(-torch.from_numpy(truth).abs()[None, None], self.size.stride)[0] > -NEAR_MM
        return surface_figures(sdg, truth), quantised.codes.cpu()[cells]

    def metadata(self) -> Facts:
        """Preset and origin of the data."""
        return self.facts


def settle(stage: VqVaeStage, folder: Path) -> Figures:
    """Merges the twin codes of the best weights, validates and saves them."""
    best = folder / "best.safetensors"
    weights, metadata = load_weights(best)
    stage.net.load_state_dict(weights)
    stage.net.eval()
    merged = stage.net.quantiser.merge_twins(TWINS)
    with torch.no_grad():
        figures = stage.validate(stage.net, folder) | {"merged_codes": float(merged)}
    save_weights(best, stage.net.state_dict(), metadata | {"validation": json.dumps(figures)})
    return figures


def _perplexity(codes: Tensor, size: int) -> float:
    share = torch.bincount(codes, minlength=size).double() / max(len(codes), 1)
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))
