"""The one training of MCSR-ETE: MC-Net and SR-Net jointly; losses and constants from its code (method.md, 2.2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from m2s.baselines.labels import WALL, Labels, labelled_batch, one_hot
from m2s.baselines.mcsr_ete.method import reconstructed
from m2s.baselines.mcsr_ete.net import SIZES, EteNet, EteSize
from m2s.baselines.registry import Size
from m2s.data.heart import keyed_rng
from m2s.train.baselines import facts_of
from m2s.train.job import Job
from m2s.train.loop import Arrays, Batch, Facts, Figures, Recipe, Source, device_of
from m2s.train.mcsr import soft_dice
from m2s.train.published import micro_dice, weight_penalty
from m2s.train.recipes import STACKS_A_MASK, TRAINING_SUBJECTS
from m2s.train.stacks import centroid_shifts, pair_batch, selection_stacks, stack_source
from m2s_runtime.grid import UPSAMPLING

STAGES: Final[Mapping[str, float]] = {"joint": 1.0}

JUDGED: Final = 4
"""Selection stacks of a validation: SR-Net takes seconds for each."""
_LEAST_PIXELS: Final = 20
"""Slices with less heart count as unmoved."""
_EPOCHS: Final = 200

_RECIPES: Final[Mapping[Size, Recipe]] = {
    "published": Recipe(
        steps=_EPOCHS * TRAINING_SUBJECTS * STACKS_A_MASK,
        batch=1,
        rate=1e-4,
        schedule="hyperbolic",
        validate_every=1000,
    ),
    "cpu": Recipe(steps=100_000, batch=1, rate=5e-4, schedule="cosine", average=0.98, validate_every=150),
    "tiny": Recipe(steps=20, batch=1, rate=1e-3, schedule="cosine", average=0.9, validate_every=10),
}


def recipe_of(name: str, size: Size) -> Recipe:  # noqa: ARG001  (one training)
    """Published: 200 epochs, batch 1, Adam at 1e-4 / (1 + 0.01 epoch); an epoch as Mask2Surface has it, 1024 x 12."""
    return _RECIPES[size]


def stage_of(name: str, job: Job, size: Size, folder: Path) -> "JointStage":  # noqa: ARG001
    """The joint training; on real pairs the same, since the loss takes its shifts from centroids."""
    source = LabelSource(stack_source(job), SIZES[size], job.seed)
    return JointStage(SIZES[size], source, _judged(job), facts_of(job, size))


def _judged(job: Job) -> list[Batch]:
    pairs = [pair_batch(pair) for pair in selection_stacks(job, JUDGED)]
    arrays = [labelled_batch({name: t.numpy() for name, t in pair.items()}) for pair in pairs]
    return [{name: torch.from_numpy(a) for name, a in sample.items()} for sample in arrays]


class LabelSource:
    """Stacks as labels, input and targets moved together by whole pixels, with a place to crop them at."""

    def __init__(self, stacks: Source, size: EteSize, seed: int) -> None:
        self._stacks, self._size, self._seed = stacks, size, seed

    def batch(self, step: int, size: int) -> Arrays:
        """`slices`, `clean` (B, 1, 128, 128, 12) and `mask` (B, 1, 128, 128, 60) uint8, `corner` (B, 3) int64."""
        rng = keyed_rng("mcsr-ete", self._seed, step)
        arrays = labelled_batch(self._stacks.batch(step, size))
        if self._size.moved:
            by = rng.integers(-self._size.moved, self._size.moved + 1, 2).tolist()
            arrays = {name: ndimage.shift(a, (0, 0, *by, 0), order=0) for name, a in arrays.items()}
        corners = [self._corner(clean, rng) for clean in arrays["clean"][:, 0]]
        return arrays | {"corner": np.array(corners, np.int64)}

    def _corner(self, clean: Labels, rng: np.random.Generator) -> tuple[int, ...]:
        """Lowest x, y and slice of a crop about a random voxel of the wall (X, Y, S), moved into the grid."""
        if self._size.crop is None:
            return (0, 0, 0)
        pixels, slices = self._size.crop
        wall = np.argwhere(clean == WALL)
        at = wall[rng.integers(len(wall))] if len(wall) else np.array(clean.shape) // 2
        side = np.array((pixels, pixels, slices))
        return tuple(np.clip(at - side // 2, 0, clean.shape - side).tolist())


class JointStage:
    """MAE of the shifts + Dice of the re-aligned slices + Dice of the super-resolved volume, weights 1; penalty."""

    name = "joint"
    monitor = "dice_loss"

    def __init__(self, size: EteSize, source: LabelSource, selection: list[Batch], facts: Facts) -> None:
        self.size, self.source, self.facts = size, source, facts
        self.net = EteNet(size)
        self.model: nn.Module = self.net
        self._selection = selection

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """As published; slices with too little heart to have a centroid count with a shift of 0."""
        shifts, corrected = self.net(batch["slices"])
        error = (shifts - told_shifts(batch["slices"], batch["clean"])).abs().mean()
        low = micro_dice(corrected, one_hot(batch["clean"]))
        seen, truth = self._crops(corrected, one_hot(batch["mask"]), batch["corner"])
        high = micro_dice(self.net.super_resolution(seen).float().softmax(1), truth)
        figures = {"shift": float(error.detach()), "low": float(low.detach()), "high": float(high.detach())}
        return error + low + high + weight_penalty(self.net, dense=self.size.dense), figures

    def _crops(self, corrected: Tensor, truth: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, x, y, s) and (B, 3, x, y, 5 s): what SR-Net sees of the step, and what it has to find there."""
        if self.size.crop is None:
            return corrected, truth
        pixels, slices = self.size.crop
        seen, wanted = list[Tensor](), list[Tensor]()
        for k, (x, y, s) in enumerate(corners.tolist()):
            plane = (slice(None), slice(x, x + pixels), slice(y, y + pixels))
            seen.append(corrected[k][(*plane, slice(s, s + slices))])
            wanted.append(truth[k][(*plane, slice(UPSAMPLING * s, UPSAMPLING * (s + slices)))])
        return torch.stack(seen), torch.stack(wanted)

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Shift error and hard Dice of the wall at full resolution over the selection stacks."""
        net: EteNet = model  # pyright: ignore[reportAssignmentType]
        device = device_of(net)
        with torch.autocast(device.type, torch.bfloat16):  # as in training; a third of the time on a CPU
            figures = [_score(net, {k: t.to(device) for k, t in sample.items()}) for sample in self._selection]
        return {name: float(np.mean([f[name] for f in figures])) for name in figures[0]}

    def metadata(self) -> Facts:
        """Size and origin of the data."""
        return self.facts


def told_shifts(slices: Tensor, clean: Tensor) -> Tensor:
    """Shifts (B, S, 2) mm that the centroids of heart (B, 1, X, Y, S) labels tell, 0 where there is too little."""
    shifts, _ = centroid_shifts(slices > 0, clean > 0)
    enough = (slices > 0).sum((1, 2, 3)) >= _LEAST_PIXELS
    return shifts * enough[..., None]


def _score(net: EteNet, sample: Batch) -> Figures:
    """As `EndToEnd` predicts, so that weights are chosen by what they are used for."""
    shifts, labels = reconstructed(net, sample["slices"])
    held = (sample["slices"] > 0).flatten(1, 3).any(1)
    residual = (shifts - told_shifts(sample["slices"], sample["clean"]))[held]
    dice_loss = float(soft_dice((labels == WALL)[None, None], sample["mask"].cpu() == WALL))
    return {
        "dice_loss": dice_loss,
        "shift_raw": float(residual.abs().mean()),
        "shift_residual": float((residual - residual.mean(0)).abs().mean()),
    }
