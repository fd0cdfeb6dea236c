"""What the three trainings of MCSR-MS read, made of the stacks that every method is trained on."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from m2s.baselines.labels import Labels, labelled
from m2s.baselines.mcsr_ms.centre_line import Doubles, centroids, control_points
from m2s.baselines.mcsr_ms.net import POINTS
from m2s.data.heart import keyed_rng
from m2s.train.loop import Arrays, Source
from m2s.train.mcsr import Masks
from m2s_runtime.grid import IN_PLANE, SLICES, UPSAMPLING

_SYMMETRIES: Final = 8


@dataclass(frozen=True)
class LineSource:
    """Stacks as they lie, and the centre line of the same slices where they belong."""

    source: Source

    def batch(self, step: int, size: int) -> Arrays:
        """`labels` (B, 1, 128, 128, 12) uint8 and `points` (B, 6, 2) float32."""
        arrays = self.source.batch(step, size)
        pairs = [line_pair(a[0].astype(np.bool_), b[0]) for a, b in zip(arrays["slices"], arrays["clean"], strict=True)]
        labels, points = zip(*pairs, strict=True)
        return {"labels": np.stack(labels)[:, None], "points": np.stack(points).astype(np.float32)}


@dataclass(frozen=True)
class CropSource:
    """Slices where they belong, and the planes between them."""

    source: Source
    crop: tuple[int, int]
    seed: int

    def batch(self, step: int, size: int) -> Arrays:
        """`labels` (B, 1, c, c, s) uint8 and `truth` (B, c, c, 5 s) int64."""
        arrays, rng = self.source.batch(step, size), keyed_rng("crop", self.seed, step)
        stacks = zip(arrays["clean"], arrays["mask"], strict=True)
        pairs = [cut(clean[0], mask[0], self.crop, rng) for clean, mask in stacks]
        labels, truth = zip(*pairs, strict=True)
        return {"labels": np.stack(labels)[:, None], "truth": np.stack(truth).astype(np.int64)}


@dataclass(frozen=True)
class VolumeSource:
    """Stacks as they lie, and the true centroids of the planes that super-resolution makes of them."""

    source: Source
    remembered: int
    seed: int

    def batch(self, step: int, size: int) -> Arrays:
        """`slices` (B, 1, 128, 128, 12) bool, `centres` (B, 60, 2) voxels, `known` (B, 60) bool.

        Besides `which` of the remembered batches it is, -1 if none is, and the `turn` (B,) to show each sample under.
        """
        which = step % self.remembered if self.remembered else step
        arrays = self.source.batch(which, size)
        centres, known = zip(*(centroids(labelled(mask[0])) for mask in arrays["mask"]), strict=True)
        turn = keyed_rng("turn", self.seed, step).integers(_SYMMETRIES, size=size)
        if not self.remembered:
            which, turn = -1, np.zeros(size, np.int64)
        return {
            "slices": arrays["slices"].astype(np.bool_),
            "centres": np.stack(centres),
            "known": np.stack(known),
            "which": np.array(which),
            "turn": turn,
        }


def line_pair(slices: Masks, clean: Masks) -> tuple[Labels, Doubles]:
    """Labels of a stack (128, 128, 12) and the control points (6, 2) that its network learns."""
    labels = labelled(slices)
    _, held = centroids(labels)
    return labels, control_points(*centroids(labelled(clean)), held, POINTS)


def cut(clean: Masks, mask: Masks, crop: tuple[int, int], rng: np.random.Generator) -> tuple[Labels, Labels]:
    """Labels of a piece of the clean stack (128, 128, 12) about a random voxel of its wall, and those of its planes.

    Args:
        clean: (128, 128, 12) and
        mask: (128, 128, 60) of the same heart.
        crop: pixels in-plane and slices.
        rng: chooses the voxel.

    Returns:
        (c, c, s) and (c, c, 5 s).
    """
    wall = np.argwhere(clean)
    pixels, slices = crop
    size = np.array([pixels, pixels, slices])
    at = wall[rng.integers(len(wall))] if len(wall) else np.array([IN_PLANE, IN_PLANE, SLICES]) // 2
    start = np.clip(at - rng.integers(size // 4, size - size // 4), 0, np.array(clean.shape) - size)
    x, y, z = (slice(int(a), int(a + n)) for a, n in zip(start, size, strict=True))
    planes = slice(UPSAMPLING * z.start, UPSAMPLING * z.stop)
    return labelled(clean)[x, y, z], labelled(mask)[x, y, planes]


def turned(points: Doubles, turn: int) -> Doubles:
    """Vectors (..., 2) under the symmetry `turn` of the square, as `m2s.train.mcsr.symmetry` turns a volume."""
    x, y = points[..., 0], points[..., 1]
    for _ in range(turn % 4):
        x, y = -y, x
    return np.stack([-x if turn >= 4 else x, y], -1)
