"""Stage 2, the VQ-VAE of signed distance grids (paper section 2.1, Eq. 1)."""

import json
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from m2s.data.heart import keyed_rng
from m2s.data.store import HeartStore, StoredHearts, StoreSpec
from m2s.nets.presets import VqVaeSize
from m2s.nets.vqvae import Quantised, VqVae
from m2s.train.checkpoint import load_weights, save_weights
from m2s.train.figures import surface_figures
from m2s.train.loop import Arrays, Batch, Facts, Figures, device_of
from m2s.train.mcsr import symmetry
from m2s_runtime.grid import GRID

TWINS: Final = 0.1
"""Codes closer than this are one: about a twentieth of the latents' standard deviation."""

NEAR_MM: Final = 2.0
"""Half the width of the band about the surface: it counts most in the loss, and its cells carry the surface."""

JUDGED_HEARTS: Final = 12
"""Selection hearts of a validation."""


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


def near_cells(sdg: Tensor, size: VqVaeSize) -> Tensor:
    """Which latent cells have the surface within `NEAR_MM`: (B, 1, X, Y, Z) mm to (B, X', Y', Z') bool."""
    return nn.functional.max_pool3d(-sdg.abs(), size.stride)[:, 0] > -NEAR_MM


def perplexity(codes: Tensor, size: int) -> float:
    """Exp of the entropy in nats of how often each of `size` codes occurs: 1 for one code, `size` for all alike."""
    share = torch.bincount(codes.flatten(), minlength=size).double() / max(codes.numel(), 1)
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


class VqVaeStage:
    """Eq. 1 with the codebook learnt as the size says; starts as a plain autoencoder, then seeds the codes.

    Args:
        size: of the network.
        source: where the grids come from.
        selection: hearts to choose the best weights by.
        facts: preset and origin of the data, for export.
        near_weight: see `weighted_l1`; 0 for Eq. 1.
        balanced: divide the quantiser's terms by the latents' mean square, so that their weight does not hang on the
            scale that the encoder happens to choose; False for Eq. 1.
        monitor: the validation figure that picks the best weights and that the plateau schedule watches.
        warm_up: steps as a plain autoencoder.
        judged: selection hearts of a validation, at most.
        seed: of the code restarts.
    """

    name = "vqvae"

    def __init__(
        self,
        size: VqVaeSize,
        source: GridSource,
        selection: HeartStore,
        facts: Facts,
        *,
        near_weight: float = 4.0,
        balanced: bool = True,
        monitor: Literal["assd", "validation_loss"] = "assd",
        warm_up: int = 100,
        judged: int = JUDGED_HEARTS,
        seed: int = 0,
    ) -> None:
        self.size, self.source, self.facts = size, source, facts | {"codebook": size.codebook}
        self.monitor: str = monitor
        self.net = VqVae(size)
        self.model: nn.Module = self.net
        self._near, self._balanced, self._warm_up = near_weight, balanced, warm_up
        self._selection, self._judged, self._seed = selection, min(len(selection), judged), seed

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
        reconstruction = weighted_l1(self.net.decode(quantised.latent), sdg, self.size.clamp_mm, self._near)
        figures = {"l1_mm": float(reconstruction.detach()) * self.size.clamp_mm, "restarted": float(moved)}
        return reconstruction + self._terms(latent, quantised), figures | self._codebook_figures(sdg, quantised.codes)

    def _terms(self, latent: Tensor, quantised: Quantised) -> Tensor:
        return quantised.loss / latent.detach().square().mean().clamp(min=1e-6) if self._balanced else quantised.loss

    def _codebook_figures(self, sdg: Tensor, codes: Tensor) -> Figures:
        """Perplexity of one batch, and the codes that training hardly takes any more."""
        size = self.size.codes
        return {
            "batch_perplexity": perplexity(codes, size),
            "batch_perplexity_near": perplexity(codes[near_cells(sdg, self.size)], size),
            "hardly_used": float(len(self.net.quantiser.dead())),
        }

    def _generator(self, step: int) -> torch.Generator:
        """A function of the step, so that a resumed run restarts the same codes."""
        return torch.Generator().manual_seed(1_000_003 * self._seed + step)

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Dice and ASSD of the reconstructed surface, the loss, and how many codes carry it.

        `perplexity` counts all latent cells, `perplexity_near` those of `near_cells`, `dead_codes` the codes that no
        cell of the hearts takes.
        """
        net: VqVae = model  # pyright: ignore[reportAssignmentType]
        rows = [self._score(net, k) for k in range(self._judged)]
        figures = {name: float(np.mean([r[0][name] for r in rows])) for name in rows[0][0]}
        codes, near = torch.cat([r[1] for r in rows]), torch.cat([r[2] for r in rows])
        return figures | {
            "perplexity": perplexity(codes, self.size.codes),
            "perplexity_near": perplexity(near, self.size.codes),
            "dead_codes": float(self.size.codes - len(codes.unique())),
        }

    def _score(self, net: VqVae, index: int) -> tuple[Figures, Tensor, Tensor]:
        """Figures of one heart, its codes, and those of its cells near the surface."""
        truth = self._selection.distance(index)
        sdg = torch.from_numpy(truth)[None, None].to(device_of(net))
        latent = net.encode(sdg)
        quantised = net.quantiser(latent)
        found = net.decode(quantised.latent)
        loss = weighted_l1(found, sdg, self.size.clamp_mm, self._near) + self._terms(latent, quantised)
        figures = surface_figures(found[0, 0].cpu().numpy(), truth) | {"validation_loss": float(loss)}
        return figures, quantised.codes.flatten().cpu(), quantised.codes[near_cells(sdg, self.size)].cpu()

    def metadata(self) -> Facts:
        """Preset, origin of the data, and how the codebook is learnt."""
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
