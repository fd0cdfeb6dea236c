"""What every method that reads slices is trained on: the same stacks for all, simulated or real, as binary masks."""

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click
import numpy as np
import torch

from m2s.data.clinical import Pair
from m2s.data.labelmaps import Part
from m2s.data.pair_files import load_pair, prepare_pairs
from m2s.data.simulate import PAPER, Masks, Mixture, MotionLaw, draw_rng, simulate_stack
from m2s.nets.presets import PRESETS
from m2s.train.finetune import PairStacks
from m2s.train.loop import Arrays, Batch
from m2s.train.mcsr import NO_APEX, NOISE_MM, StackSource

if TYPE_CHECKING:
    from m2s.train.job import Job
    from m2s.train.loop import Source

MASKS: Final = PRESETS["paper"].mcsr
"""Slices as binary masks, which is what the published methods read."""
JUDGED_STACKS: Final = 12


class Acquisition(NamedTuple):
    """How stacks are simulated of hearts for a training.

    Attributes:
        law: of the slices' motion.
        noise_mm: largest rms of the contour noise.
        no_apex: share of the stacks that end above the apex.
    """

    law: MotionLaw
    noise_mm: float
    no_apex: float


def acquisition(job: "Job") -> Acquisition:
    """Of a job's preset, for SR-Net and for every method that reads stacks."""
    return Acquisition(PAPER, 0.0, 0.0) if job.published else Acquisition(Mixture(), NOISE_MM, NO_APEX)


def stack_source(job: "Job") -> "Source":
    """Stacks under the motion and noise that ours is trained on, or the job's real pairs.

    A batch has `slices` (B, 1, 128, 128, 12) float32, `pool` (B, 12, 3), `clean` (B, 1, 128, 128, 12) bool and `mask`
    (B, 1, 128, 128, 60) bool. Simulated stacks also tell `shifts` (B, 12, 2) mm; of real ones nobody knows them, see
    `centroid_shifts`.

    Raises:
        Stop: no such hearts or pairs.
    """
    if job.data is not None:
        return PairStacks(_real_pairs(job, job.data, "training"), MASKS, job.seed)
    store = job.store("training", distances=False)
    folder = job.folder("training", distances=False)
    return StackSource(folder, store.spec, MASKS, job.seed, *acquisition(job))


def selection_stacks(job: "Job", count: int = JUDGED_STACKS) -> list[Pair]:
    """Stacks to choose weights by: selection hearts under the published motion, or the job's selection pairs."""
    if job.data is not None:
        return [load_pair(file) for file in _real_pairs(job, job.data, "selection")[:count]]
    store = job.store("selection", distances=False)
    return [_moved(store.id(k), store.mask(k)) for k in range(min(len(store), count))]


def centroid_shifts(slices: torch.Tensor, clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shifts as MCSR-ETE's published code takes them: centroid of the moved slice less that of the clean one.

    Args:
        slices: (B, 1, 128, 128, S) moved masks.
        clean: (B, 1, 128, 128, S) masks where they belong.

    Returns:
        (B, S, 2) mm along x and y, 0 where a slice is empty, and (B, S) which slices hold wall in both.
    """
    (moved, a), (still, b) = (_centroids(x.float()) for x in (slices, clean))
    held = (a > 0) & (b > 0)
    return (moved - still) * held[..., None], held


def pair_batch(pair: Pair) -> Batch:
    """One selection stack as a batch of one: `slices`, `clean`, `mask` as in `stack_source`."""
    arrays: Arrays = {"slices": pair.slices.astype(np.float32), "clean": pair.clean, "mask": pair.mask}
    return {name: torch.from_numpy(a)[None, None] for name, a in arrays.items()}


def _real_pairs(job: "Job", data: Path, part: Part) -> tuple[Path, ...]:
    """Prepared pairs; those that cannot be used are named."""
    found = prepare_pairs(job.run / "real-pairs" / part, data, part, job.workers)
    for name, reason in found.refused.items():
        click.echo(f"left out {name}: {reason}", err=True)
    return found.files


def _moved(identity: str, mask: Masks) -> Pair:
    return Pair(identity, simulate_stack(mask, draw_rng(identity, 0, 0), PAPER).slices, mask)


def _centroids(slices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, S, 2) voxels and areas (B, S)."""
    mass = slices[:, 0]
    area = mass.sum((1, 2))
    index = torch.arange(mass.shape[1], device=mass.device, dtype=mass.dtype)
    x, y = (mass.sum(2) * index[:, None]).sum(1), (mass.sum(1) * index[:, None]).sum(1)
    return torch.stack([x, y], -1) / area.clamp(min=1)[..., None], area
