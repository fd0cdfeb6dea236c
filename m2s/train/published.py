"""What preset `paper` does otherwise than the other presets; which of it is published stands in `recipes`."""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from m2s.nets.denoiser import Denoiser
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import Preset
from m2s.nets.vqvae import Autoencoder
from m2s.train.diffusion import DiffusionStage
from m2s.train.loop import Batch, Facts, Figures, device_of
from m2s.train.mcsr import McsrStage
from m2s.train.pairs import PairMaker, PairSource
from m2s_runtime.ddim import TRAIN_STEPS
from m2s_runtime.slices import centre_shifts

WEIGHT_PENALTY: Final = 1e-4
"""MCSR-ETE: on the sum of squares of every convolution's weights."""

_SMALL: Final = 1e-5
_LEVELS: Final = 10
"""Noise levels at which the validation loss of the diffusion is taken; fixed, so that it compares between epochs."""


def micro_dice(probability: Tensor, truth: Tensor) -> Tensor:
    """1 - Dice as MCSR-ETE takes it: sums over all voxels, all classes and the whole batch.

    Background dominates: of 128 x 128 x 60 voxels less than a tenth are wall.

    Args:
        probability: (B, classes, X, Y, Z), or one channel, of the foreground.
        truth: of the same shape.
    """
    p, t = probability.float(), truth.float()
    both = (p * t).sum()
    if t.shape[1] == 1:
        both = both + ((1 - p) * (1 - t)).sum()
    # Of the classes every voxel holds one in all, in the prediction and in the truth.
    voxels = t.numel() / t.shape[1]
    return 1 - (2 * both + _SMALL) / (2 * voxels + _SMALL)


def weight_penalty(net: nn.Module, *, dense: bool = False) -> Tensor:
    """L2 penalty of MCSR-ETE on all convolutions, biases left out; its code has it on the `dense` layers too."""
    kinds = (nn.Conv3d, nn.Linear) if dense else nn.Conv3d
    squares = [m.weight.square().sum() for m in net.modules() if isinstance(m, kinds)]
    return WEIGHT_PENALTY * torch.stack(squares).sum()


class PublishedMcsrStage(McsrStage):
    """Joint training of MC-Net and SR-Net with the loss of MCSR-ETE, which the paper follows."""

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """MAE over all slices (0 where one holds no wall) + both Dice terms + weight penalty."""
        net: McsrNet = self.model  # pyright: ignore[reportAssignmentType]
        found = net.shifts(batch["slices"], batch["pool"]).float()
        held = batch["clean"].flatten(1, 3).any(1)[..., None]
        error = (held * (found - centre_shifts(batch["shifts"], batch["pool"]))).abs().mean()
        corrected, logits = net.logits(batch["slices"], found)
        low = micro_dice(corrected, batch["clean"])
        high = micro_dice(torch.sigmoid(logits.float()), batch["mask"])
        figures = {"shift": float(error.detach()), "low": float(low.detach()), "high": float(high.detach())}
        return error + low + high + weight_penalty(net), figures


class PublishedDiffusionStage(DiffusionStage):
    """Eq. 3, judged by its own value on the selection hearts, which the paper's schedule watches."""

    monitor = "validation_loss"

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
        super().__init__(preset, source, scale, autoencoder, selection, facts, hearts)
        pairs = [selection.latents(k) for k in range(hearts)]
        self._latents = [torch.from_numpy(scale * np.stack(pair))[:, None] for pair in pairs]

    def validate(self, model: nn.Module, folder: Path) -> Figures:
        """Surface figures as ever, and Eq. 3 at ten noise levels of each heart."""
        net: Denoiser = model  # pyright: ignore[reportAssignmentType]
        losses = [self._error(net, *pair, seed=k) for k, pair in enumerate(self._latents)]
        return super().validate(model, folder) | {"validation_loss": float(np.mean(losses))}

    def _error(self, net: Denoiser, zc: Tensor, zs: Tensor, seed: int) -> float:
        generator, device = torch.Generator().manual_seed(seed), device_of(net)
        found: list[float] = []
        for t in np.linspace(0, TRAIN_STEPS - 1, _LEVELS).round().astype(int).tolist():
            noise = torch.randn(zs.shape, generator=generator)
            batch = {"zc": zc, "zs": zs, "t": torch.tensor([t]), "noise": noise}
            found.append(float(self.loss({name: a.to(device) for name, a in batch.items()}, 0)[0]))
        return float(np.mean(found))
