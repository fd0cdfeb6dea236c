"""Stage 1, MCSR-Net on simulated stacks (paper section 2.2): SR-Net on the shifts of an MC-Net that is trained before.

The paper trains both jointly (`m2s.train.published`). MC-Net of `compact` sees no image and gains nothing from the
Dice terms, so it comes first and stays as it is; SR-Net then learns on its shifts, and on true ones with errors of
every size, so that it knows what a residual misalignment looks like.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from m2s.data.heart import keyed_rng
from m2s.data.lost_slices import lose_apex
from m2s.data.simulate import PAPER, MotionLaw, Stack, draw_rng, simulate_stack
from m2s.data.store import HeartStore, StoredHearts, StoreSpec
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import McsrSize
from m2s.train.loop import Arrays, Batch, Facts, Figures, device_of
from m2s_runtime.grid import SLICES
from m2s_runtime.slices import centre_shifts, pool_features, signed_distance

Masks = npt.NDArray[np.bool_]

NO_APEX: Final = 0.25
"""Share of the stacks of `compact` that end above the apex."""
NOISE_MM: Final = 0.6
"""Largest rms of the contour noise of `compact`."""
_TOLD: Final = 0.5
"""Share of stacks whose shifts are true ones with an error instead of MC-Net's."""


def stack_inputs(slices: Masks, size: McsrSize) -> Arrays:
    """What the graphs `mc` and `sr` see of a stack (128, 128, 12): `slices` (1, 128, 128, 12), `pool` (12, 3)."""
    seen = signed_distance(slices, size.clip_mm) if size.slices == "signed_distance" else slices.astype(np.float32)
    return {"slices": seen[None], "pool": pool_features(slices)}


class StackSource(StoredHearts):
    """Simulated stacks of stored hearts under the eight symmetries of the square."""

    def __init__(
        self,
        folder: Path,
        spec: StoreSpec,
        size: McsrSize,
        seed: int,
        law: MotionLaw,
        noise_mm: float,
        no_apex: float = 0.0,
    ) -> None:
        """`noise_mm` is the largest rms of the contour noise, `no_apex` the share of stacks that end above the apex."""
        super().__init__(folder, spec)
        self._size, self._seed, self._law, self._noise, self._no_apex = size, seed, law, noise_mm, no_apex

    def batch(self, step: int, size: int) -> Arrays:
        """Inputs, shifts (B, 12, 2), clean slices (B, 1, 128, 128, 12) and masks (B, 1, 128, 128, 60).

        Besides `guess` (B, 12, 2), shifts with a random error, and `told` (B,), whether SR-Net is to use them.
        """
        rng = keyed_rng("mcsr", self._seed, step)
        return stack_samples([self._sample(rng) for _ in range(size)])

    def _sample(self, rng: np.random.Generator) -> Arrays:
        mask = symmetry(self.store.mask(int(rng.integers(len(self.store)))), int(rng.integers(8)))
        noise = self._noise * rng.uniform() if rng.uniform() < 0.5 else 0.0
        stack = simulate_stack(mask, rng, self._law, noise=noise)
        if rng.uniform() < self._no_apex:
            stack, mask = lose_apex(stack, mask, int(rng.choice((1, 2), p=(0.75, 0.25))))
        guess: Arrays = {"guess": stack.shifts + stray(rng), "told": np.array(rng.uniform() < _TOLD)}
        return sample_arrays(stack, mask, self._size) | guess


def stray(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Errors that a motion correction might leave, (12, 2) mm: a smooth curve along the stack and noise."""
    z = np.linspace(-1, 1, SLICES)
    powers = np.stack([z, z * z - 1 / 3, z**3], -1)
    curve = powers @ (rng.normal(0, 1, (3, 2)) * np.array([1.0, 0.7, 0.5])[:, None]) * rng.uniform(0, 0.8)
    return (curve + rng.normal(0, rng.uniform(0, 1.1), (SLICES, 2))).astype(np.float32)


def sample_arrays(stack: Stack, mask: Masks, size: McsrSize) -> Arrays:
    """Everything a stack and its heart give to the loss."""
    truth = {"shifts": stack.shifts, "clean": stack.clean[None], "mask": mask[None]}
    return stack_inputs(stack.slices, size) | truth


def stack_samples(samples: list[Arrays]) -> Arrays:
    """Samples to a batch."""
    return {name: np.stack([s[name] for s in samples]) for name in samples[0]}


def symmetry(volume: npt.NDArray[Any], which: int) -> npt.NDArray[Any]:
    """One of the eight symmetries of the square, in-plane, exact about (63.5, 63.5)."""
    volume = np.rot90(volume, which % 4)
    return np.ascontiguousarray(volume[::-1] if which >= 4 else volume)


def soft_dice(probability: Tensor, truth: Tensor) -> Tensor:
    """1 - Dice of the foreground, per sample, then the mean."""
    p, t = probability.float().flatten(1), truth.float().flatten(1)
    return (1 - (2 * (p * t).sum(1) + 1e-5) / (p.sum(1) + t.sum(1) + 1e-5)).mean()


class McsrStage:
    """SR-Net; MC-Net is given and stays."""

    name = "mcsr"
    monitor = "dice_loss"

    def __init__(self, size: McsrSize, source: StackSource, selection: HeartStore, facts: Facts) -> None:
        self.size, self.source, self.facts = size, source, facts
        self.model: nn.Module = McsrNet(size)
        self._selection = [_selection_sample(selection, k, size) for k in range(min(len(selection), 24))]

    def adopt_motion(self, weights: dict[str, Tensor], metadata: Facts) -> None:
        """Takes a trained MC-Net, keeps it from changing and notes where it comes from."""
        net: McsrNet = self.model  # pyright: ignore[reportAssignmentType]
        hearts = f" on {metadata['hearts']} hearts" if "hearts" in metadata else ""
        note = f"MC-Net before it, alone: {metadata['step']} steps{hearts}, {metadata['seconds']} s"
        self.facts = self.facts | {"note": note}
        net.motion.load_state_dict(weights)
        net.motion.requires_grad_(requires_grad=False)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """Soft Dice and cross-entropy of the super-resolved mask."""
        net: McsrNet = self.model  # pyright: ignore[reportAssignmentType]
        with torch.no_grad():
            found = net.shifts(batch["slices"], batch["pool"]).float()
            guess = centre_shifts(batch["guess"], batch["pool"])
            shifts = torch.where(batch["told"][:, None, None], guess, found)
        _, logits = net.logits(batch["slices"], shifts)
        high = soft_dice(torch.sigmoid(logits.float()), batch["mask"])
        entropy = nn.functional.binary_cross_entropy_with_logits(logits.float(), batch["mask"].float())
        return high + 0.5 * entropy, {"high": float(high.detach())}

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Shift error and hard Dice over the selection hearts, one published draw each."""
        net: McsrNet = model  # pyright: ignore[reportAssignmentType]
        device = device_of(net)
        figures = [_score(net, {k: t.to(device) for k, t in sample.items()}) for sample in self._selection]
        return {name: float(np.mean([f[name] for f in figures])) for name in figures[0]}

    def metadata(self) -> Facts:
        """Preset and origin of the data."""
        return self.facts


def _selection_sample(store: HeartStore, index: int, size: McsrSize) -> Batch:
    mask = store.mask(index)
    stack = simulate_stack(mask, draw_rng(store.id(index), 0, 0), PAPER)
    return {name: torch.from_numpy(a[None]) for name, a in sample_arrays(stack, mask, size).items()}


def _score(net: McsrNet, sample: Batch) -> Figures:
    found = net.shifts(sample["slices"], sample["pool"])
    held = sample["clean"].flatten(1, 3).any(1)
    residual = (found - sample["shifts"])[held]
    probability = net.probability(sample["slices"], found)
    dice = 1 - float(soft_dice((probability >= 0.5).float(), sample["mask"]))
    return {
        "dice_loss": 1 - dice,
        "shift_raw": float(residual.abs().mean()),
        "shift_residual": float((residual - residual.mean(0)).abs().mean()),
    }
