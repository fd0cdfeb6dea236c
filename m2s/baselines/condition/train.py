"""Trains the denoiser and the encoder of its condition together, on the pairs of the run's own diffusion.

Everything else is ours: frozen VQ-VAE, latents, loss, share of the batch that learns the mean of the posterior, and
sampling (`m2s.train.diffusion`). The folder's name says which of both ablations it is.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor, nn

from m2s.baselines.condition.net import SIZES, ConditionedDenoiser
from m2s.baselines.front import PRESET_OF, open_vqvae
from m2s.baselines.latent_pairs import LatentPairs, latent_pairs
from m2s.nets.denoiser import Denoiser
from m2s.nets.vqvae import VqVae
from m2s.train.baselines import facts_of
from m2s.train.condition_pairs import Condition, ConditionSource, make_conditions, repeated
from m2s.train.diffusion import DiffusionStage
from m2s.train.loop import Batch, Facts, Figures, Recipe, Stage, device_of
from m2s.train.pairs import Floats, PairMaker
from m2s.train.recipes import TRAINING_SUBJECTS, recipe
from m2s_runtime.grid import NOMINAL_STEP

if TYPE_CHECKING:
    from m2s.baselines.registry import Size
    from m2s.train.job import Job

STAGES: Final[Mapping[str, float]] = {"diffusion": 1.0}

CONDITIONS: Final[Mapping[str, Condition]] = {"mask-condition": "mask", "slice-condition": "slices"}

_JUDGED: Final = 6
"""Selection hearts of a validation: each takes as long as two steps of training."""


class ConditionStage(DiffusionStage):
    """`DiffusionStage` with a learnt encoder of masks in place of the frozen one of C-SDGs."""

    def __init__(
        self,
        size: "Size",
        condition: Condition,
        source: ConditionSource,
        pairs: LatentPairs,
        vqvae: VqVae,
        facts: Facts,
    ) -> None:
        preset, facts = replace(PRESET_OF[size], vqvae=vqvae.size), facts | {"condition": condition}
        super().__init__(preset, source, pairs.scale, vqvae, pairs.judge, facts, hearts=0)
        self.conditioned = ConditionedDenoiser(self.net, SIZES[size].of(vqvae.size))
        self.model: nn.Module = self.conditioned
        self._selection = [_selection_case(pairs.judge, condition, k) for k in range(min(_JUDGED, pairs.hearts))]

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:
        """That of the diffusion; the condition it is given carries gradients back to the encoder."""
        return super().loss(batch | {"zc": self.conditioned.condition(batch["mask"]).float()}, step)

    def validate(self, model: nn.Module, folder: Path) -> Figures:
        """Figures as of the diffusion; those ending in `_zc` are of the encoder's answer, decoded at once."""
        net: ConditionedDenoiser = model  # pyright: ignore[reportAssignmentType]
        return super().validate(net.denoiser, folder)

    def _condition(self, net: Denoiser, csdg: Tensor) -> Tensor:
        self._autoencoder.to(device_of(net))
        return self.conditioned.condition(csdg.to(device_of(net)))


def stage_of(name: str, job: "Job", size: "Size", folder: Path) -> Stage:  # noqa: ARG001
    """The training of the ablation that `folder` names; makes the pairs and masks of the run that are missing.

    Raises:
        FileNotFoundError: the run has no MCSR-Net or no VQ-VAE yet.
        UsageProblem: the run's pairs are of other networks, hearts or another seed.
    """
    vqvae = open_vqvae(job.run)
    pairs = latent_pairs(job, job.run / "pairs", vqvae)
    masks = make_conditions(job.run / "conditions", pairs.maker, pairs.source.count, job.workers)
    condition = CONDITIONS[folder.name]
    source = ConditionSource(job.run / "pairs", masks, condition, job.seed, pairs.scale)
    torch.manual_seed(job.seed)
    return ConditionStage(size, condition, source, pairs, vqvae, facts_of(job, size))


def recipe_of(name: str, size: "Size") -> Recipe:  # noqa: ARG001
    """Constants of our own diffusion at that size.

    `cpu` has half its batch and two and a half times its rate, for an encoder that begins with nothing in a few hundred
    steps, and is judged more often. At `published` the plateau is the surface error's, not the loss's.
    """
    ours = recipe(PRESET_OF[size].name, "diffusion", TRAINING_SUBJECTS)
    return replace(ours, batch=8, rate=1e-3, average=0.99, validate_every=150) if size == "cpu" else ours


def _selection_case(maker: PairMaker, condition: Condition, index: int) -> tuple[Tensor, Floats]:
    if condition == "mask":
        mask, truth = maker.wall(index)
    else:
        mask, truth = repeated(maker.slices(index), NOMINAL_STEP), maker.truth(index)
    return torch.from_numpy(mask.astype(np.float32))[None, None], truth
