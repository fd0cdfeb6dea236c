"""The two trainings of the variant: the VAE, and our diffusion in its latents."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor, nn

from m2s.baselines.front import PRESET_OF
from m2s.baselines.latent_pairs import as_the_run, latent_pairs
from m2s.baselines.vae.net import SIZES, Vae, kl_divergence
from m2s.data.store import HeartStore
from m2s.nets.presets import VqVaeSize
from m2s.train.baselines import facts_of
from m2s.train.checkpoint import load_weights
from m2s.train.diffusion import DiffusionStage
from m2s.train.figures import surface_figures
from m2s.train.loop import Batch, Facts, Figures, Recipe, Stage, device_of
from m2s.train.published import PublishedDiffusionStage
from m2s.train.recipes import TRAINING_SUBJECTS, recipe
from m2s.train.vqvae import JUDGED_HEARTS, GridSource, weighted_l1
from m2s_runtime.grid import GRID

if TYPE_CHECKING:
    from m2s.baselines.registry import Size
    from m2s.train.job import Job

STAGES: Final[Mapping[str, float]] = {"autoencoder": 0.5, "diffusion": 0.5}

KL_WEIGHT: Final = 1e-6
"""Of the divergence summed over a latent, beside an error that is a mean over voxels.

Latent diffusion's autoencoders (Rombach et al., CVPR 2022) and the 3-D ones of MONAI Generative, whose U-Net the paper
takes, use this weight, the latter with the same sum and mean. In a latent of 16 x 16 x 8 cells of 8 numbers a nat a
number then costs as much as an error of 0.16 mm.
"""


class VaeStage:
    """The VQ-VAE's reconstruction loss, and the divergence in place of the quantiser's terms."""

    name = "autoencoder"

    def __init__(
        self,
        size: VqVaeSize,
        source: GridSource,
        selection: HeartStore,
        facts: Facts,
        *,
        near_weight: float,
        monitor: str,
        seed: int = 0,
    ) -> None:
        self.size, self.source, self.facts, self.monitor = size, source, facts, monitor
        self.net = Vae(size)
        self.model: nn.Module = self.net
        self._near, self._selection, self._seed = near_weight, selection, seed

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:
        """Error of a decoded draw in units of the clamp, see `weighted_l1`, and the weighted divergence."""
        sdg = batch["sdg"]
        mean, log_variance = self.net.moments(sdg)
        # On the CPU and by the step, so that a resumed run draws the same on every device.
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + step)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        found = self.net.decode(mean + (0.5 * log_variance).exp() * noise)
        reconstruction = weighted_l1(found, sdg, self.size.clamp_mm, self._near)
        divergence = kl_divergence(mean, log_variance).mean()
        figures = {
            "l1_mm": float(reconstruction.detach()) * self.size.clamp_mm,
            "nats_a_number": float(divergence.detach()) / mean[0].numel(),
            "deviation": float((0.5 * log_variance.detach()).exp().mean()),
        }
        return reconstruction + KL_WEIGHT * divergence, figures

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Dice and ASSD of the surface decoded from the mean, and the reconstruction loss."""
        net: Vae = model  # pyright: ignore[reportAssignmentType]
        rows = [self._score(net, k) for k in range(min(len(self._selection), JUDGED_HEARTS))]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def _score(self, net: Vae, index: int) -> Figures:
        truth = self._selection.distance(index)
        sdg = torch.from_numpy(truth)[None, None].to(device_of(net))
        found = net.decode(net.latent(sdg))
        loss = weighted_l1(found, sdg, self.size.clamp_mm, self._near)
        return surface_figures(found[0, 0].cpu().numpy(), truth) | {"validation_loss": float(loss)}

    def metadata(self) -> Facts:
        """Size and origin of the data, and the weight of the divergence."""
        return self.facts | {"kl_weight": repr(KL_WEIGHT)}


def stage_of(name: str, job: "Job", size: "Size", folder: Path) -> Stage:
    """One of the two trainings; the second makes its pairs of latents in `folder / "pairs"`.

    Raises:
        FileNotFoundError: the run has no MCSR-Net yet; its VQ-VAE is not asked for.
    """
    return _autoencoder(job, size) if name == "autoencoder" else _diffusion(job, size, folder)


def recipe_of(name: str, size: "Size") -> Recipe:
    """Constants of our own VQ-VAE and diffusion at that size; `cpu` has a learning curve of minutes, not of hours."""
    if name == "autoencoder":
        return recipe(PRESET_OF[size].name, "vqvae", TRAINING_SUBJECTS)
    ours = recipe(PRESET_OF[size].name, "diffusion", TRAINING_SUBJECTS)
    return replace(ours, validate_every=100) if size == "cpu" else ours


def open_vae(folder: Path) -> Vae:
    """The trained VAE of `RUN/vae`, on the CPU.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    weights, told = load_weights(folder / "autoencoder" / "best.safetensors")
    net = Vae(SIZES[told["size"]])  # pyright: ignore[reportArgumentType]
    net.load_state_dict(weights)
    return net.eval()


def _autoencoder(job: "Job", size: "Size") -> VaeStage:
    told, published = as_the_run(job), size == "published"
    store, selection = told.store("training", distances=True), told.store("selection", distances=True)
    folder = told.folder("training", distances=True)
    source = GridSource(folder, store.spec, job.seed, GRID[0] if published else 96)
    torch.manual_seed(job.seed)
    return VaeStage(
        SIZES[size],
        source,
        selection,
        facts_of(job, size),
        near_weight=0.0 if published else 4.0,
        monitor="validation_loss" if published else "assd",
        seed=job.seed,
    )


def _diffusion(job: "Job", size: "Size", folder: Path) -> DiffusionStage:
    vae = open_vae(folder)
    pairs = latent_pairs(job, folder / "pairs", vae)
    torch.manual_seed(job.seed)
    kind = PublishedDiffusionStage if size == "published" else DiffusionStage
    facts = facts_of(job, size)
    return kind(PRESET_OF[size], pairs.source, pairs.scale, vae, pairs.judge, facts, pairs.hearts)
