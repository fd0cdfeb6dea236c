"""Trains generator and discriminator on the pairs of the run's own diffusion."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from m2s.baselines.front import PRESET_OF, open_vqvae
from m2s.baselines.gan.net import SIZES, Discriminator, Gan, GanSize, generated
from m2s.baselines.latent_pairs import LatentPairs, latent_pairs
from m2s.nets.denoiser import Denoiser
from m2s.nets.vqvae import VqVae
from m2s.train.baselines import facts_of
from m2s.train.diffusion import DiffusionStage
from m2s.train.loop import Batch, Facts, Figures, Recipe, Stage
from m2s.train.pairs import Floats
from m2s.train.recipes import TRAINING_SUBJECTS, recipe
from m2s_runtime import ddim

if TYPE_CHECKING:
    from m2s.baselines.registry import Size
    from m2s.train.job import Job

STAGES: Final[Mapping[str, float]] = {"gan": 1.0}

L1_WEIGHT: Final = 100.0
"""pix2pix's, against the adversarial term."""


class GanStage(DiffusionStage):
    """pix2pix's losses on latent pairs; encoder and decoder stay frozen.

    Both networks learn in every step, each from a loss that gives the other no gradient, so that the one optimiser of
    the loop is two and a resumed training needs nothing more.
    """

    name = "gan"

    def __init__(self, size: GanSize, pairs: LatentPairs, vqvae: VqVae, facts: Facts) -> None:
        super().__init__(size.preset, pairs.source, pairs.scale, vqvae, pairs.judge, facts, pairs.hearts)
        self.gan = Gan(self.net, Discriminator(vqvae.size.dim, size.discriminator))
        self.model: nn.Module = self.gan

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """The sum of both losses."""
        zs, zc = batch["zs"], batch["zc"]
        found = generated(self.gan.generator, batch["noise"], zc)
        judging, making = self.judging(found.detach(), zs, zc), self.making(found, zs, zc)
        figures = {"left": (found.detach() - zs).square().mean() / (zc - zs).square().mean().clamp(min=1e-6)}
        figures |= {"discriminator": judging.detach(), "generator": making.detach()}
        return judging + making, {name: float(value) for name, value in figures.items()}

    def judging(self, found: Tensor, zs: Tensor, zc: Tensor) -> Tensor:
        """The discriminator's loss; half of the sum, as in pix2pix."""
        true, false = self.gan.discriminator(zs, zc), self.gan.discriminator(found, zc)
        return 0.5 * (_entropy(true, 1.0) + _entropy(false, 0.0))

    def making(self, found: Tensor, zs: Tensor, zc: Tensor) -> Tensor:
        """The generator's loss over `L1_WEIGHT`, which leaves both losses of one size to the clipping of gradients."""
        return (found - zs).abs().mean() + _entropy(self.gan.discriminator.frozen(found, zc), 1.0) / L1_WEIGHT

    def validate(self, model: nn.Module, folder: Path) -> Figures:
        """Surface figures of the generator, and of the decoded condition alone."""
        gan: Gan = model  # pyright: ignore[reportAssignmentType]
        return super().validate(gan.generator, folder)

    def sample(self, net: Denoiser, zc: Tensor, seed: int) -> Floats:
        """One generated latent, decoded: (128, 128, 64) mm."""
        noise = torch.from_numpy(ddim.draw_noise("0", seed, 0, zc.shape[1:]))[None].to(zc.device)
        return self._decode(generated(net, noise, zc))


def stage_of(name: str, job: "Job", size: "Size", folder: Path) -> Stage:  # noqa: ARG001
    """The training; makes the pairs of the run that are missing.

    Raises:
        FileNotFoundError: the run has no MCSR-Net or no VQ-VAE yet.
        UsageProblem: the run's pairs are of other networks, hearts or another seed.
    """
    vqvae = open_vqvae(job.run)
    pairs = latent_pairs(job, job.run / "pairs", vqvae)
    torch.manual_seed(job.seed)
    return GanStage(SIZES[size], pairs, vqvae, facts_of(job, size))


def recipe_of(name: str, size: "Size") -> Recipe:  # noqa: ARG001
    """Constants of our own diffusion at that size; in `cpu` half its batch, for twice the steps in the same minutes."""
    ours = recipe(PRESET_OF[size].name, "diffusion", TRAINING_SUBJECTS)
    return replace(ours, batch=8, validate_every=150) if size == "cpu" else ours


def _entropy(logits: Tensor, true: float) -> Tensor:
    """Cross-entropy of patches that are all true (1) or all generated (0)."""
    return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, true))
