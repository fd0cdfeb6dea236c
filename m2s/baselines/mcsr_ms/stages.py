"""Losses and validations of the three trainings of MCSR-MS."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from m2s.baselines.edsr import Edsr
from m2s.baselines.labels import WALL, Labels, labelled, one_hot
from m2s.baselines.mcsr_ms.centre_line import Doubles, centroids, control_points
from m2s.baselines.mcsr_ms.method import FirstTwo, second_correction
from m2s.baselines.mcsr_ms.net import POINTS_HIGH, LineNet, MsSize, centre_line_net, found_shifts, second_net
from m2s.baselines.mcsr_ms.sources import CropSource, LineSource, VolumeSource, cut, turned
from m2s.data.clinical import Pair
from m2s.data.heart import keyed_rng
from m2s.metrics import dice
from m2s.train.loop import Batch, Facts, Figures, Source, device_of
from m2s.train.mcsr import Masks, symmetry
from m2s.train.published import weight_penalty

Sample = tuple[Labels, Doubles]
"""Labels of a super-resolved volume and the control points that its network is to find."""


class _MsStage:
    """What the three have in common."""

    monitor = "dice_loss"

    def __init__(self, name: str, model: nn.Module, source: Source, facts: Facts, *, penalised: bool) -> None:
        self.name, self.model, self.source = name, model, source
        self._facts, self._penalised = facts, penalised

    def metadata(self) -> Facts:
        """Size and origin of the data."""
        return self._facts

    def _total(self, loss: Tensor) -> Tensor:
        return loss + weight_penalty(self.model, dense=True) if self._penalised else loss


class CentreLineStage(_MsStage):
    """First correction: the control points of the centre line, from the stack."""

    monitor = "shift_residual"

    def __init__(self, size: MsSize, source: Source, judged: list[Pair], facts: Facts, *, penalised: bool) -> None:
        super().__init__("centreline", centre_line_net(size), LineSource(source), facts, penalised=penalised)
        self._judged = judged

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """Squared error of the x plus that of the y of the control points."""
        error = _line_error(self.model(batch["labels"].float()), batch["points"])
        return self._total(error), {"line": float(error.detach())}

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Mean absolute component of the error of the shifts, less its mean over the stack, in mm."""
        return {"shift_residual": float(np.mean([_residual(model, pair) for pair in self._judged]))}  # pyright: ignore[reportArgumentType]


class SuperResolutionStage(_MsStage):
    """Super-resolution of stacks without motion."""

    def __init__(
        self, size: MsSize, source: Source, judged: list[Pair], facts: Facts, *, seed: int, penalised: bool
    ) -> None:
        crops = CropSource(source, size.crop, seed)
        super().__init__("super_resolution", Edsr(size.edsr), crops, facts, penalised=penalised)
        cuts = [cut(pair.clean, pair.mask, size.crop, keyed_rng("judged", pair.id)) for pair in judged]
        self._judged = [tuple(torch.from_numpy(a)[None] for a in pieces) for pieces in cuts]

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """Cross-entropy over background, pool and wall."""
        logits = self.model(one_hot(batch["labels"])).float()
        entropy = nn.functional.cross_entropy(logits, batch["truth"])
        return self._total(entropy), {"entropy": float(entropy.detach())}

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Dice of the wall in one piece of each selection heart."""
        found = [self._dice(model, labels, truth) for labels, truth in self._judged]
        return {"dice_loss": 1 - float(np.mean(found)), "dice": float(np.mean(found))}

    def _dice(self, model: nn.Module, labels: Tensor, truth: Tensor) -> float:
        found = model(one_hot(labels[None]).to(device_of(model))).argmax(1).cpu()
        return dice((found == WALL).numpy(), (truth == WALL).numpy())


class SecondStage(_MsStage):
    """Second correction: the control points of the centre line, from what the first two stages make of the stack."""

    def __init__(
        self,
        size: MsSize,
        source: Source,
        judged: list[Pair],
        facts: Facts,
        *,
        earlier: FirstTwo,
        seed: int,
        penalised: bool,
    ) -> None:
        volumes = VolumeSource(source, size.remembered, seed)
        super().__init__("second_correction", second_net(size), volumes, facts, penalised=penalised)
        self._earlier = earlier
        self._judged, self._volumes = judged, list[tuple[Labels, Doubles]]()
        self._memory: dict[int, list[Sample]] = {}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """Squared error of the x plus that of the y of the control points."""
        turns = batch["turn"].tolist()
        shown = [
            (symmetry(labels, turn), turned(points, turn))
            for (labels, points), turn in zip(self._samples(batch), turns, strict=True)
        ]
        device = device_of(self.model)
        labels = torch.from_numpy(np.stack([labels for labels, _ in shown]))[:, None].to(device).float()
        truth = torch.from_numpy(np.stack([points for _, points in shown])).to(device).float()
        error = _line_error(self.model(labels), truth)
        return self._total(error), {"line": float(error.detach())}

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Dice of the final wall, and of the super-resolved one before the second correction."""
        if not self._volumes:
            self._volumes = [self._earlier(pair.slices) for pair in self._judged]
        scores: list[tuple[float, float]] = []
        for pair, (volume, first) in zip(self._judged, self._volumes, strict=True):
            wall = volume == WALL
            before = dice(wall, pair.mask)
            if volume.any():  # a super-resolution at its beginning may find nothing
                wall, _ = second_correction(model, volume, first, pair.slices)  # pyright: ignore[reportArgumentType]
            scores.append((dice(wall, pair.mask), before))
        after, first_two = np.mean(scores, axis=0).tolist()
        return {"dice_loss": 1 - after, "dice": after, "dice_before": first_two}

    def _samples(self, batch: Batch) -> list[Sample]:
        which = int(batch["which"])
        if which in self._memory:
            return self._memory[which]
        parts = (batch[name].cpu().numpy() for name in ("slices", "centres", "known"))
        samples = [self._sample(slices[0], centres, known) for slices, centres, known in zip(*parts, strict=True)]
        if which >= 0:
            self._memory[which] = samples
        return samples

    def _sample(self, slices: Masks, centres: Doubles, known: Masks) -> Sample:
        labels, _ = self._earlier(slices)
        _, held = centroids(labels)
        if not held.any():  # a super-resolution at its beginning may find nothing: the curve then is that of the truth
            held = known
        return labels, control_points(centres, known, held, POINTS_HIGH)


def _line_error(found: Tensor, truth: Tensor) -> Tensor:
    """Mean squared errors of the x and of the y of (B, n, 2), added."""
    return (found.float() - truth).square().mean((0, 1)).sum()


def _residual(net: LineNet, pair: Pair) -> float:
    labels = labelled(pair.slices)
    moved, held = centroids(labels)
    true, known = centroids(labelled(pair.clean))
    both = held & known
    error = (found_shifts(net, labels) - (moved - true))[both]
    return float(np.abs(error - error.mean(0)).mean())
