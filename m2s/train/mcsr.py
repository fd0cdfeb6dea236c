"""Stage 1, MCSR-Net: joint motion correction and super-resolution on simulated stacks (paper section 2.2).

Loss as in MCSR-ETE: mean absolute shift error + soft Dice of the re-aligned slices + soft Dice of the super-resolved
mask. The re-alignment is soft, so unlike there the Dice terms reach MC-Net.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from m2s.data.heart import keyed_rng
from m2s.data.simulate import PAPER, Mixture, MotionLaw, Stack, draw_rng, simulate_stack
from m2s.data.store import HeartStore, StoredHearts, StoreSpec
from m2s.nets.mcsr import McsrNet, TrackMotionNet, track_features
from m2s.nets.presets import McsrSize
from m2s.train.checkpoint import load_state, load_weights, save_state, save_weights
from m2s.train.loop import Arrays, Batch, Facts, Figures, device_of
from m2s_runtime.grid import CENTRE, SLICES, UPSAMPLING
from m2s_runtime.slices import centre_shifts, pool_features, signed_distance

Masks = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]


def stack_inputs(slices: Masks, size: McsrSize) -> Arrays:
    """What the graphs `mc` and `sr` see of a stack (128, 128, 12): `slices` (1, 128, 128, 12), `pool` (12, 3)."""
    seen = signed_distance(slices, size.clip_mm) if size.slices == "signed_distance" else slices.astype(np.float32)
    return {"slices": seen[None], "pool": pool_features(slices)}


class StackSource(StoredHearts):
    """Simulated stacks of stored hearts under the eight symmetries of the square."""

    def __init__(
        self, folder: Path, spec: StoreSpec, size: McsrSize, seed: int, law: MotionLaw, noise_mm: float
    ) -> None:
        super().__init__(folder, spec)
        self._size, self._seed, self._law, self._noise = size, seed, law, noise_mm

    def batch(self, step: int, size: int) -> Arrays:
        """Inputs, shifts (B, 12, 2), clean slices (B, 1, 128, 128, 12) and masks (B, 1, 128, 128, 60)."""
        rng = keyed_rng("mcsr", self._seed, step)
        return stack_samples([self._sample(rng) for _ in range(size)])

    def _sample(self, rng: np.random.Generator) -> Arrays:
        mask = symmetry(self.store.mask(int(rng.integers(len(self.store)))), int(rng.integers(8)))
        noise = self._noise * rng.uniform() if rng.uniform() < 0.5 else 0.0
        stack = simulate_stack(mask, rng, self._law, noise=noise)
        return sample_arrays(stack, mask, self._size)


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
    """Joint training of MC-Net and SR-Net."""

    name = "mcsr"
    monitor = "dice_loss"

    def __init__(self, size: McsrSize, source: StackSource, selection: HeartStore, facts: Facts) -> None:
        self.size, self.source, self.facts = size, source, facts
        self.model: nn.Module = McsrNet(size)
        self._selection_store = selection
        self._selection = [_selection_sample(selection, k, size) for k in range(min(len(selection), 24))]

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """Sum of the three published terms; earlier passes count half."""
        net: McsrNet = self.model  # pyright: ignore[reportAssignmentType]
        passes = net.shifts(batch["slices"], batch["pool"])
        held = batch["clean"].flatten(1, 3).any(1)
        truth = centre_shifts(batch["shifts"], batch["pool"])
        errors = [_shift_error(t, truth, held) for t in passes]
        corrected, logits = net.logits(batch["slices"], passes[-1].float())
        low = soft_dice(self._soft_mask(corrected), batch["clean"])
        high = soft_dice(torch.sigmoid(logits.float()), batch["mask"])
        total = 0.5 * sum(errors[:-1], low.new_zeros(())) + errors[-1] + low + high
        return total, {"shift": float(errors[-1].detach()), "low": float(low.detach()), "high": float(high.detach())}

    def _soft_mask(self, corrected: Tensor) -> Tensor:
        return torch.sigmoid(-2 * corrected) if self.size.slices == "signed_distance" else corrected

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Shift error and hard Dice over the selection hearts, one published draw each."""
        net: McsrNet = model  # pyright: ignore[reportAssignmentType]
        device = device_of(net)
        figures = [_score(net, {k: t.to(device) for k, t in sample.items()}) for sample in self._selection]
        return {name: float(np.mean([f[name] for f in figures])) for name in figures[0]}

    def metadata(self) -> Facts:
        """Preset and origin of the data."""
        return self.facts

    def train_track(self, steps: int, rate: float = 1e-3, batch: int = 256, seed: int = 0) -> float:
        """Trains the centroid track alone on motion added in closed form, no images.

        Keeps the weights that do best on the selection hearts, and returns their error in mm.
        """
        motion = self.model.motion
        if not isinstance(motion, TrackMotionNet):
            return float("nan")
        tracks, unseen = Tracks(self.source.store, seed), Tracks(self._selection_store, seed)
        optimiser = torch.optim.Adam(motion.track.parameters(), rate)
        best, kept = math.inf, motion.track.state_dict()
        for step in range(steps + 1):
            if step % _TRACK_CHECK == 0 or step == steps:
                with torch.no_grad():
                    error = float(_track_error(motion, unseen.batch(0, 1024, PAPER, vary=False)))
                if error < best:
                    best, kept = error, {name: t.clone() for name, t in motion.track.state_dict().items()}
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 - step / (steps + 1))
            loss = _track_error(motion, tracks.batch(step, batch, Mixture(), vary=True))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        motion.track.load_state_dict(kept)
        return best


_TRACK_CHECK = 250
_STACKS_A_DRAW = 8


class Tracks:
    """Centroids and areas of the stored hearts' clean slices, turned, varied and moved in closed form."""

    def __init__(self, store: HeartStore, seed: int) -> None:
        self.seed = seed
        rows = [_track(store.mask(k)) for k in range(len(store))]
        self.wall, self.area, self.pool = (np.stack(part) for part in zip(*rows, strict=True))

    def batch(self, step: int, size: int, law: MotionLaw, *, vary: bool) -> tuple[Tensor, ...]:
        """Wall centroids, areas, pool features, true shifts, and which slices hold wall.

        With `vary` tracks are blended in pairs and bent by smooth curves: a perceptron learns 1500 tracks by heart.
        """
        rng = keyed_rng("tracks", self.seed, step)
        wall, area, pool = self._turned(rng, size)
        held = area > 0
        if vary:
            other = self._turned(rng, size)
            part = rng.uniform(0, 0.5, (size, 1)) * (held & (other[1] > 0))
            area = area + part * (other[1] - area)
            wall, pool = (a + part[..., None] * (b - a) for a, b in ((wall, other[0]), (pool, other[2])))
            bend = _bends(rng, size) * held[..., None]
            wall, pool[..., :2] = wall + bend, pool[..., :2] + bend
        # A draw of the law serves several stacks: they share its kind and spread, never its numbers.
        draws = [law.draw(rng, SLICES * _STACKS_A_DRAW) for _ in range(-(-size // _STACKS_A_DRAW))]
        shifts = np.concatenate(draws).reshape(-1, SLICES, 2)[:size] * held[..., None]
        jitter = 0.15 * rng.standard_normal((2, *shifts.shape)) * held[..., None]
        pool[..., :2] += shifts + jitter[1]
        arrays = (wall + shifts + jitter[0], area, pool, shifts)
        return *(torch.from_numpy(a.astype(np.float32)) for a in arrays), torch.from_numpy(held)

    def _turned(self, rng: np.random.Generator, size: int) -> tuple[Doubles, Doubles, Doubles]:
        pick, turn = rng.integers(len(self.wall), size=size), _turns(rng, size)
        pool = self.pool[pick].copy()
        pool[..., :2] = np.einsum("bij,bsj->bsi", turn, pool[..., :2] - CENTRE) + CENTRE
        return np.einsum("bij,bsj->bsi", turn, self.wall[pick] - CENTRE) + CENTRE, self.area[pick], pool


def _bends(rng: np.random.Generator, size: int) -> Doubles:
    """Random cubic curves along the stack, (size, 12, 2) mm."""
    z = np.linspace(-1, 1, SLICES)
    powers = np.stack([z, z * z, z**3], -1)
    return np.einsum("sk,bka->bsa", powers, rng.normal(0, 1, (size, 3, 2)) * np.array([1.0, 0.7, 0.5])[:, None])


def _track_error(motion: TrackMotionNet, arrays: tuple[Tensor, ...]) -> Tensor:
    wall, area, pool, truth, held = (a.to(device_of(motion)) for a in arrays)
    shifts = centre_shifts(motion.prior(track_features(wall, area, pool), wall), pool)
    return _shift_error(shifts, centre_shifts(truth, pool), held)


def _track(mask: Masks) -> tuple[Doubles, Doubles, Doubles]:
    clean = mask[:, :, UPSAMPLING // 2 :: UPSAMPLING]
    area = clean.sum((0, 1)).astype(np.float64)
    index = np.arange(len(mask)) - CENTRE
    moments = np.stack([clean.sum(1).T @ index, clean.sum(0).T @ index], -1)
    return moments / np.maximum(area, 1)[:, None] + CENTRE, area, pool_features(clean).astype(np.float64)


def _turns(rng: np.random.Generator, size: int) -> Doubles:
    """Random in-plane rotations, half of them mirrored: (size, 2, 2)."""
    angle = rng.uniform(0, 2 * np.pi, size)
    flip = rng.choice((-1.0, 1.0), size)
    rows = [[np.cos(angle), -flip * np.sin(angle)], [np.sin(angle), flip * np.cos(angle)]]
    return np.moveaxis(np.array(rows), -1, 0)


def _shift_error(found: Tensor, truth: Tensor, held: Tensor) -> Tensor:
    """Mean |component| in mm over the slices that hold wall."""
    error = (found.float() - truth).abs().mean(-1)
    return (error * held).sum() / held.sum().clamp(min=1)


def _selection_sample(store: HeartStore, index: int, size: McsrSize) -> Batch:
    mask = store.mask(index)
    stack = simulate_stack(mask, draw_rng(store.id(index), 0, 0), PAPER)
    return {name: torch.from_numpy(a[None]) for name, a in sample_arrays(stack, mask, size).items()}


def _score(net: McsrNet, sample: Batch) -> Figures:
    passes = net.shifts(sample["slices"], sample["pool"])
    held = sample["clean"].flatten(1, 3).any(1)
    residual = (passes[-1] - sample["shifts"])[held]
    probability = net.probability(sample["slices"], passes[-1])
    dice = 1 - float(soft_dice((probability >= 0.5).float(), sample["mask"]))
    return {
        "dice_loss": 1 - dice,
        "shift_first": float(_shift_error(passes[0], centre_shifts(sample["shifts"], sample["pool"]), held)),
        "shift_raw": float(residual.abs().mean()),
        "shift_residual": float((residual - residual.mean(0)).abs().mean()),
    }


def polish(stage: McsrStage, folder: Path, steps: int) -> Figures:
    """Trains the track of the best weights once more, alone, and keeps it if the selection hearts gain.

    Images are what makes the joint training slow; the track needs none and is still learning when that ends. Weights
    that have been polished are left as they are.
    """
    best = folder / "best.safetensors"
    weights, metadata = load_weights(best)
    if "polish" in metadata:
        return json.loads(metadata["validation"])
    stage.model.load_state_dict(weights)
    stage.train_track(steps, rate=7e-4, seed=1)
    stage.model.eval()
    with torch.no_grad():
        figures, before = stage.validate(stage.model, folder), json.loads(metadata["validation"])
    if figures[stage.monitor] < before[stage.monitor]:
        told = {"validation": json.dumps(figures), "polish": str(steps)}
        save_weights(best, stage.model.state_dict(), metadata | told)
        # A training that goes on has to beat the polished weights.
        tensors, progression = load_state(folder / "last.safetensors")
        save_state(folder / "last.safetensors", tensors, progression | {"best": figures[stage.monitor]})
        return figures
    return before
