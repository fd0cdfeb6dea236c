"""Training of SRHeart's beta-VAE on the high-resolution hearts of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from m2s.baselines.labels import WALL, Labels, labelled
from m2s.baselines.registry import Size
from m2s.baselines.srheart.net import SIZES, ShapeVae, VaeSize
from m2s.data.heart import keyed_rng
from m2s.data.store import HeartStore, StoredHearts, StoreSpec
from m2s.train.baselines import facts_of
from m2s.train.loop import Arrays, Batch, Facts, Figures, Recipe, device_of
from m2s.train.mcsr import soft_dice, symmetry
from m2s.train.recipes import TRAINING_SUBJECTS
from m2s_runtime.csdg import to_grid
from m2s_runtime.grid import NOMINAL_STEP, UPSAMPLING

if TYPE_CHECKING:
    from m2s.train.job import Job

STAGES: Final[Mapping[str, float]] = {"vae": 1.0}

BETA: Final = 1e-3
"""Of the source; see `VaeStage.loss` for what it weighs."""
_JUDGED: Final = 12
_EPOCHS: Final = 100


def stage_of(name: str, job: "Job", size: Size, folder: Path) -> "VaeStage":  # noqa: ARG001
    """The one training; its hearts are opened."""
    store, selection = job.store("training", distances=False), job.store("selection", distances=False)
    source = HeartSource(job.folder("training", distances=False), store.spec, job.seed, SIZES[size].codes)
    return VaeStage(SIZES[size], source, selection, facts_of(job, size))


def recipe_of(name: str, size: Size) -> Recipe:  # noqa: ARG001
    """Constants of the training.

    Published are 100 epochs. Not published are optimiser, rate and batch, for which Adam at a constant 1e-4 and 8 stand
    here. `cpu` takes the small batches and the annealed rate that make most of twenty minutes.
    """
    if size == "published":
        epoch = TRAINING_SUBJECTS // 8
        return Recipe(_EPOCHS * epoch, 8, 1e-4, patience=_EPOCHS, validate_every=epoch)
    return Recipe(20_000, 2, 2e-3, "cosine", average=0.998, validate_every=250)


class HeartSource(StoredHearts):
    """Label volumes of stored hearts under the eight symmetries of the square."""

    def __init__(self, folder: Path, spec: StoreSpec, seed: int, codes: int) -> None:
        super().__init__(folder, spec)
        self._seed, self._codes = seed, codes

    def batch(self, step: int, size: int) -> Arrays:
        """`labels` (B, 64, 128, 128) uint8 and `noise` (B, codes) float32."""
        rng = keyed_rng("srheart", self._seed, step)
        labels = [self._heart(rng) for _ in range(size)]
        return {"labels": np.stack(labels), "noise": rng.standard_normal((size, self._codes), dtype=np.float32)}

    def _heart(self, rng: np.random.Generator) -> Labels:
        index = int(rng.integers(len(self.store)))
        return heart_labels(symmetry(self.store.mask(index), int(rng.integers(8))), slice_step(self.store, index))


def heart_labels(mask: npt.NDArray[np.bool_], step_mm: float) -> Labels:
    """Classes on the grid of 1 x 1 x 2 mm, (64, 128, 128) depth first, of a heart's (128, 128, 60) planes."""
    return np.ascontiguousarray(np.moveaxis(labelled(to_grid(mask.astype(np.float32), step_mm) >= 0.5), 2, 0))


def slice_step(store: HeartStore, index: int) -> float:
    """Slice step of a heart in mm; in a store with varied steps its id ends with the distance of its planes."""
    return UPSAMPLING * float(store.id(index).rsplit("-", 1)[1]) if store.spec.varied_steps else NOMINAL_STEP


class VaeStage:
    """Cross-entropy of the labels and the divergence of the codes from a standard normal."""

    name = "vae"
    monitor = "dice_loss"

    def __init__(self, size: VaeSize, source: HeartSource, selection: HeartStore, facts: Facts) -> None:
        self.source, self.facts = source, facts
        self.model: nn.Module = ShapeVae(size)
        count = min(len(selection), _JUDGED)
        self._selection = [torch.from_numpy(heart_labels(selection.mask(k), NOMINAL_STEP))[None] for k in range(count)]

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """Cross-entropy + beta KL, both means: over voxels, over codes, over the batch.

        Which of them are sums in the source is not published. Summed over 64 codes the divergence would weigh 64
        times as much; were the cross-entropy a sum over voxels, it would weigh next to nothing.
        """
        net: ShapeVae = self.model  # pyright: ignore[reportAssignmentType]
        mean, log_variance = (part.float() for part in net.encode(batch["labels"]))
        logits = net.decode(mean + (0.5 * log_variance).exp() * batch["noise"])
        entropy = nn.functional.cross_entropy(logits.float(), batch["labels"].long())
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        figures = {"entropy": float(entropy.detach()), "divergence": float(divergence.detach())}
        return entropy + BETA * divergence, figures

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Hard Dice of the wall that the mean code of a selection heart decodes to."""
        net: ShapeVae = model  # pyright: ignore[reportAssignmentType]
        device = device_of(net)
        losses = [_wall_loss(net, labels.to(device)) for labels in self._selection]
        return {"dice_loss": float(np.mean(losses))}

    def metadata(self) -> Facts:
        """Size and origin of the data."""
        return self.facts


def _wall_loss(net: ShapeVae, labels: Tensor) -> float:
    found = net.decode(net.encode(labels)[0]).argmax(1)
    return float(soft_dice((found == WALL).float(), labels == WALL))
