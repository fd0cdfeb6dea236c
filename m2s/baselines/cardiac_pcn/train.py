"""Training of the point completion network on the stacks that every method is trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor, nn

from m2s.baselines.cardiac_pcn.chamfer import chamfer
from m2s.baselines.cardiac_pcn.cloud import SCALE_MM, CloudSource, sample_of
from m2s.baselines.cardiac_pcn.net import SIZES, Pcn, PcnSize
from m2s.data.heart import keyed_rng
from m2s.train.baselines import facts_of
from m2s.train.loop import Batch, Facts, Figures, Recipe, Source, device_of
from m2s.train.stacks import selection_stacks, stack_source

if TYPE_CHECKING:
    from m2s.baselines.registry import Size
    from m2s.data.clinical import Pair
    from m2s.train.job import Job

STAGES: Final[Mapping[str, float]] = {"pcn": 1.0}

_RAMP: Final = ((1 / 30, 0.01), (1 / 15, 0.1), (1 / 6, 0.5))
"""Weight of the fine points until a share of the training: PCN's steps 10,000, 20,000 and 50,000 of 300,000; then 1."""


def fine_weight(share: float) -> float:
    """Weight of the fine points in the loss once a `share` of the steps is done."""
    return next((weight for end, weight in _RAMP if share < end), 1.0)


class PcnStage:
    """Coarse and fine points against the true surface, by PCN's chamfer distance.

    Args:
        size: of the network.
        source: of clouds.
        selection: stacks to choose weights by.
        facts: for the checkpoint.
        steps: over which the weight of the fine points rises; 0 for trained weights, where it is 1 at once.
        seed: of the nodes that a step folds.
    """

    name = "pcn"
    monitor = "chamfer_mm"

    def __init__(
        self, size: PcnSize, source: Source, selection: "list[Pair]", facts: Facts, steps: int, seed: int
    ) -> None:
        self.size, self.source, self.facts = size, source, facts
        self.net = Pcn(size)
        self.model: nn.Module = self.net
        self._steps, self._seed = steps, seed
        samples = [
            sample_of(pair.slices, pair.mask, size.points, keyed_rng("cardiac-pcn", pair.id))[0] for pair in selection
        ]
        self._selection = [{name: torch.from_numpy(a[None]) for name, a in sample.items()} for sample in samples]

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:
        """d(coarse, truth) + weight x d(fine, truth)."""
        coarse, fine = self.net.complete(self.net.encode(batch["points"]), self._nodes(step))
        truth = batch["truth"][:, : self.size.truth]  # strewn at random, so any of them stand for all
        far, near = chamfer(coarse, truth), chamfer(fine, truth)
        weight = fine_weight(step / self._steps) if self._steps else 1.0
        figures = {"coarse_mm": SCALE_MM * float(far.detach()), "fine_mm": SCALE_MM * float(near.detach())}
        return far + weight * near, figures

    def _nodes(self, step: int) -> Tensor | None:
        """The nodes of the folding grid that this step learns from."""
        every = self.size.side**2
        if self.size.nodes == every:
            return None
        chosen = keyed_rng("folding", self._seed, step).choice(every, self.size.nodes, replace=False)
        return torch.from_numpy(chosen).to(device_of(self.net))

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """PCN's distance of all fine points, and of the coarse ones, mm; mean over the selection stacks."""
        net: Pcn = model  # pyright: ignore[reportAssignmentType]
        rows = [self._score(net, {k: t.to(device_of(net)) for k, t in sample.items()}) for sample in self._selection]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def _score(self, net: Pcn, sample: Batch) -> Figures:
        clouds = dict(zip(("chamfer_coarse_mm", "chamfer_mm"), net(sample["points"]), strict=True))
        return {name: SCALE_MM * float(chamfer(cloud, sample["truth"])) for name, cloud in clouds.items()}

    def metadata(self) -> Facts:
        """Size and origin of the data."""
        return self.facts


def stage_of(name: str, job: "Job", size: "Size", folder: Path) -> PcnStage:  # noqa: ARG001
    """The one training, its hearts or pairs opened.

    Raises:
        Stop: no such hearts or pairs.
    """
    made = SIZES[size]
    source = CloudSource(stack_source(job), made.points, job.seed)
    steps = 0 if job.init else job.steps or recipe_of(name, size).steps
    return PcnStage(made, source, selection_stacks(job), facts_of(job, size), steps, job.seed)


def recipe_of(name: str, size: "Size") -> Recipe:  # noqa: ARG001
    """PCN's constants (Adam 1e-4 throughout, batch 32, 300,000 steps), or what two cores learn most from."""
    if size == "published":
        return Recipe(steps=300_000, batch=32, rate=1e-4, patience=300_000, validate_every=2000, clip=1e9)
    if size == "tiny":
        return Recipe(steps=10, batch=2, rate=1e-3, schedule="cosine", validate_every=5)
    return Recipe(steps=5000, batch=4, rate=5e-4, schedule="cosine", average=0.99, validate_every=200)
