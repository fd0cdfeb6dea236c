"""Pairs of an acquired stack and a high-resolution mask of the same heart, for fine-tuning and for tests of it.

The layout is the paper's data set's, `<id>/{LR,HR}_{ED,ES}.nii.gz`. Nobody knows how far the slices of a real stack
moved: a pair holds no shifts, neither in memory nor on disk.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s.data.labelmaps import POOL, WALL, LabelMap, LabelMaps, Phase
from m2s.data.simulate import MotionLaw, draw_rng, simulate_stack
from m2s_runtime.edge_distance import edge_distance
from m2s_runtime.errors import CaseError
from m2s_runtime.grid import CENTRE, GRID, MASK_GRID, NOMINAL_STEP, PADDING, PLANES, SPACING, UPSAMPLING
from m2s_runtime.placement import Canonical
from m2s_runtime.slices import pool_centre, wall_slices

Masks = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]

_PARALLEL: Final = np.cos(np.radians(15.0))
_LEAST_SHARED: Final = 0.5
"""Share of the stack's slices that have to meet the wall of the map."""
_AREAS: Final = 2.5
"""Largest ratio of the wall's area in both, over the slices that they share."""
_FAR_MM: Final = 100.0


class PairMismatch(CaseError):
    """A stack and a high-resolution map that cannot be of the same heart and phase."""

    code = "pair"


@dataclass(frozen=True)
class Pair:
    """One heart as it was acquired, and as it is.

    Attributes:
        id: subject and phase.
        slices: (128, 128, 12) bool, the canonical stack, its slices where breathing left them.
        mask: (128, 128, 60) bool, the high-resolution wall on the stack's planes (a fifth of its step apart), its pool
            centred as the networks' answers are.
    """

    id: str
    slices: Masks
    mask: Masks

    @property
    def clean(self) -> Masks:
        """(128, 128, 12) bool, what the stack's slices would show had they not moved; none where it holds no wall."""
        return self.mask[:, :, UPSAMPLING // 2 :: UPSAMPLING] & wall_slices(self.slices)


def read_pair(maps: LabelMaps, subject: int, phase: Phase) -> Pair:
    """Read both files of a pair and bring the map to the stack's planes.

    Raises:
        CaseError: a file cannot be read or used.
        PairMismatch: the two are not of one heart, or their headers do not say how they lie to each other.
    """
    low, high = maps.low(subject, phase), maps.high(subject, phase)
    try:
        return Pair(high.id, low.masks, _on_planes(high, low))
    except PairMismatch as error:
        raise PairMismatch(
            f"subject {subject}: LR_{phase}.nii.gz and HR_{phase}.nii.gz {error}: check that they are of one heart and"
            " phase and that both headers keep the scanner's position"
        ) from None


def _on_planes(high: LabelMap, low: Canonical) -> Masks:
    """The map's wall sampled on the planes of the stack, its pool centred over the slices that the stack holds."""
    to_map = np.linalg.inv(high.affine) @ low.placement.affine
    _check_direction(to_map)
    distance, step = edge_distance(high.mask, SPACING).astype(np.float32), low.placement.step_mm
    planes = _grid_planes(step)
    middle = np.array([CENTRE, CENTRE, (GRID[2] - 1) / 2])
    # In-plane, scanner positions of two breath-holds say nothing: start with the pool of the map in the middle.
    in_plane = to_map[:2, :2]
    away = np.full(2, CENTRE) - (to_map[:3, :3] @ middle + to_map[:3, 3])[:2]
    offset: Doubles = np.asarray(np.linalg.solve(in_plane, away), np.float64)
    held = wall_slices(low.masks)
    for _ in range(3):
        slices = _sample(distance, to_map, planes[UPSAMPLING // 2 :: UPSAMPLING], offset) < 0
        _check_shared(slices, low.masks)
        offset = np.asarray(offset + pool_centre(slices[:, :, held]) - CENTRE, np.float64)
    return np.asarray(_sample(distance, to_map, planes, offset) < 0)


def _grid_planes(step_mm: float) -> Doubles:
    """Where the 60 planes, `step_mm / 5` apart, lie among the 64 of the grid: the middles of both coincide."""
    return np.asarray((GRID[2] - 1) / 2 + (np.arange(PLANES) - (PLANES - 1) / 2) * step_mm / NOMINAL_STEP, np.float64)


def _sample(distance: npt.NDArray[np.float32], to_map: Doubles, planes: Doubles, offset: Doubles) -> Doubles:
    """Trilinear samples (128, 128, len(planes)) mm at stack positions moved by `offset` (x, y); far outside the map."""
    x, y, z = np.meshgrid(
        np.arange(MASK_GRID[0]) + offset[0], np.arange(MASK_GRID[1]) + offset[1], planes, indexing="ij"
    )
    points = np.einsum("ij,jxyz->ixyz", to_map[:3, :3], np.stack([x, y, z])) + to_map[:3, 3, None, None, None]
    return np.asarray(ndimage.map_coordinates(distance, points, order=1, mode="constant", cval=_FAR_MM))


def _check_direction(to_map: Doubles) -> None:
    turn = to_map[:3, :3] * np.array(SPACING)[:, None] / np.array(SPACING)
    along = turn[2, 2] / np.linalg.norm(turn[:, 2])
    if along <= -_PARALLEL:
        raise PairMismatch("run from base to apex in opposite directions")
    if along < _PARALLEL:
        raise PairMismatch(f"are cut {np.degrees(np.arccos(along)):.0f} degrees apart")


def _check_shared(slices: Masks, acquired: Masks) -> None:
    held = wall_slices(acquired)
    shared = held & wall_slices(slices)
    if shared.sum() < _LEAST_SHARED * held.sum():
        raise PairMismatch(f"lie apart along the stack ({shared.sum()} of {held.sum()} slices meet the map's wall)")
    ratio = acquired[:, :, shared].sum() / slices[:, :, shared].sum()
    if not 1 / _AREAS <= ratio <= _AREAS:
        raise PairMismatch(f"differ in size (the wall's area in the stack is {ratio:.2g} times the map's)")


def write_pairs(folder: Path, hearts: Iterable[tuple[int, str, Masks]], law: MotionLaw, seed: int) -> None:
    """Write simulated pairs, to test fine-tuning on motion that training never saw. The motion itself is not kept.

    Args:
        folder: gets `<subject>/LR_ED.nii.gz` and `<subject>/HR_ED.nii.gz`.
        hearts: subject number (its part of the committed split is the part of the pair), id and mask (128, 128, 60)
            of each heart, planes 2 mm apart.
        law: how far slices move.
        seed: of the motion.
    """
    for subject, identity, mask in hearts:
        stack = simulate_stack(mask, draw_rng(identity, 0, seed), law)
        place = folder / str(subject)
        place.mkdir(parents=True, exist_ok=True)
        write_labels(place / "HR_ED.nii.gz", mask, _along_z(SPACING[2], PADDING * SPACING[2]))
        start = (PADDING + UPSAMPLING // 2) * SPACING[2]
        write_labels(place / "LR_ED.nii.gz", stack.slices, _along_z(NOMINAL_STEP, start))


def _along_z(step: float, start: float) -> Doubles:
    affine = np.diag([1.0, 1.0, step, 1.0])
    affine[2, 3] = start
    return affine


def write_labels(path: Path, wall: Masks, affine: Doubles) -> None:
    """Write a wall (X, Y, Z) bool, and what it encloses in each slice as the pool, as a label map of the data set."""
    labels = np.where(wall, WALL, 0).astype(np.uint8)
    for s in np.flatnonzero(wall_slices(wall)):
        labels[:, :, s][np.asarray(ndimage.binary_fill_holes(wall[:, :, s])) & ~wall[:, :, s]] = POOL
    nib.save(nib.Nifti1Image(labels, affine), path)  # pyright: ignore[reportPrivateImportUsage]
