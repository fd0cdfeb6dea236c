"""From a wall mask as it was scanned to the canonical stack, and the one affine that leads back to the scanner.

Order of events: slice axis last, base first, every k-th slice, each slice resampled to 1 mm about the pool's centre.
In-plane axes are never turned or mirrored (training covers every turn); what is done to the indices is composed into
`Placement.affine`, so that oblique, permuted and mirrored volumes come back where they were.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s_runtime.errors import EmptyWall, WallOutOfRange
from m2s_runtime.grid import GRID, MAX_WALL_MM, MIN_SLICES, SLICES, SPACING
from m2s_runtime.inplane import Vector, resample, sample_nearest
from m2s_runtime.slices import BoolArray, FloatArray, bounding_box, pool_features, signed_distance, wall_slices

Affine = npt.NDArray[np.float64]

CLEARLY_THICKER = 1.2
"""An axis whose spacing is this many times that of both others is the slice axis."""

SPECK = 0.02
"""A piece of wall smaller than this share of the largest piece in its slice is taken for a slip of the segmentation."""

CLEAR_TAPER = 0.1
"""Relative loss of size along the stack below which the order of the file is kept and flagged.

Right, and above this, in all of 100 clinical stacks and 324 hearts of the atlas, slanting bases among them.
"""


@dataclass(frozen=True)
class Placement:
    """Where the canonical grid lies in the scanner, and which acquired slices it holds.

    Attributes:
        affine: (4, 4) float64, voxel index of the (128, 128, 64) grid to world mm (RAS), shifts not yet counted.
        step_mm: distance between canonical slices, mm.
        slices: for each of the 12 canonical slices its index in the source volume, or -1.
        flipped: whether the source ran from apex to base.
        every: k when every k-th acquired slice was taken.
        slice_axis: axis of the source array along which its slices are stacked.
        base_mm: how far basal of the grid's middle the most basal acquired slice with wall lies, taken or not.
    """

    affine: Affine
    step_mm: float
    slices: tuple[int, ...]
    flipped: bool
    every: int
    slice_axis: int
    base_mm: float

    def world(self, common_shift: npt.ArrayLike = (0.0, 0.0)) -> Affine:
        """Grid voxel index to world mm, (4, 4), for a surface that lies `common_shift` mm (x, y) off in the grid."""
        moved = np.eye(4)
        moved[:2, 3] = np.asarray(common_shift, np.float64) / SPACING[:2]
        return self.affine @ moved


@dataclass(frozen=True)
class Canonical:
    """A stack as the networks take it.

    Attributes:
        masks: (128, 128, 12) bool, 1 mm pixels, base at index 0.
        placement: the way back to the scanner.
        pool: (12, 3) float32, see `slices.pool_features`.
        flags: what a reader of the result should know: `open_ring` (the wall closes in no slice), `gap` (a slice
            without wall inside the stack, filled from its neighbours), `slice_axis_unclear` (no axis is clearly the
            thickest: the last was taken), `base_unclear` (the order of the file was kept), `specks_removed`.
        right: (128, 128, 12) bool, cavity of the right ventricle in the same slices; None where the mask tells of none.
    """

    masks: BoolArray
    placement: Placement
    pool: FloatArray
    flags: tuple[str, ...]
    right: BoolArray | None = None


@dataclass(frozen=True)
class _Chosen:
    """The acquired slices that are used: source indices from base to apex and the canonical index of the first."""

    source: npt.NDArray[np.int64]
    start: int
    every: int
    step_mm: float
    base_mm: float
    """As of `Placement`."""


def canonicalise(wall: BoolArray, affine: Affine, right: BoolArray | None = None) -> Canonical:
    """Bring a wall mask of any orientation and spacing to the canonical stack.

    Args:
        wall: (X, Y, Z) bool, the wall as it was scanned.
        affine: (4, 4) voxel index to world mm, without shear.
        right: (X, Y, Z) bool, the cavity of the right ventricle, to come along.

    Raises:
        EmptyWall: no voxel is set.
        WallOutOfRange: fewer than 3 slices, a wall longer than 126 mm, or one wider than the 128 mm field of view.
    """
    if not wall.any():
        raise EmptyWall("no voxel of the wall in this volume: check the labels, or leave this frame out (--frames)")
    axis = slice_axis(affine)
    order = [a for a in range(3) if a != axis] + [axis]
    stack, placed = np.transpose(wall, order), affine[:, [*order, 3]]
    spacing = np.linalg.norm(placed[:3, :3], axis=0)
    # Neither specks nor direction change which slices hold wall: what has too many goes before they cost time.
    _choose(stack, float(spacing[2]), flipped=False)

    stack = _without_specks(stack)
    taper = taper_of(stack, spacing)
    chosen = _choose(stack, float(spacing[2]), flipped=taper < -CLEAR_TAPER)
    masks, middle = resample(stack[:, :, chosen.source], spacing[:2], chosen.start)
    held = np.flatnonzero(wall_slices(masks))
    if len(held) < MIN_SLICES:
        raise WallOutOfRange(_too_few(len(held)))

    sources = np.full(SLICES, -1)
    sources[chosen.start : chosen.start + len(chosen.source)] = chosen.source
    placement = Placement(
        affine=placed @ _grid_to_source(chosen, middle, spacing),
        step_mm=chosen.step_mm,
        slices=tuple(int(s) for s in sources),
        flipped=taper < -CLEAR_TAPER,
        every=chosen.every,
        slice_axis=axis,
        base_mm=chosen.base_mm,
    )
    masks = _without_gaps(masks, held)
    pool = pool_features(masks)
    flags = {
        "open_ring": not pool[:, 2].any(),
        "gap": len(held) <= held[-1] - held[0],
        "base_unclear": abs(taper) <= CLEAR_TAPER,
        "slice_axis_unclear": not _clearly_thickest(spacing),
        "specks_removed": np.count_nonzero(stack) < np.count_nonzero(wall),
    }
    raised = tuple(name for name, is_so in flags.items() if is_so)
    if right is None:
        return Canonical(masks, placement, pool, raised)
    beside = sample_nearest(np.transpose(right, order)[:, :, chosen.source], middle, spacing[:2], chosen.start)
    return Canonical(masks, placement, pool, raised, beside)


def slice_axis(affine: Affine) -> int:
    """Tell the axis along which slices are stacked: the one clearly coarser than both others, else the last."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    coarsest = int(spacing.argmax())
    return coarsest if _clearly_thickest(np.roll(spacing, 2 - coarsest)) else 2


def _clearly_thickest(spacing: npt.NDArray[np.float64]) -> bool:
    """Whether the last of three spacings is clearly larger than the others."""
    return bool(spacing[2] >= CLEARLY_THICKER * spacing[:2].max())


_NO_CAVITY_MM = 20.0
"""Distance, clipped there, that stands for a cavity where a slice encloses none: it fades out on the way."""


def _without_gaps(masks: BoolArray, held: npt.NDArray[np.intp]) -> BoolArray:
    """Fill slices that lack wall between two that hold it, or the heart would fall in two.

    Outline and cavity are interpolated apart, each by its signed distance, moved onto the line between the centroids:
    two thin rings of different size have little wall in common, and a blend of wall distances would be empty.
    """
    filled = masks.copy()
    for low, high in pairwise(held.tolist()):
        if high == low + 1:
            continue
        ends = masks[:, :, [low, high]]
        centres = np.array([np.argwhere(ends[:, :, k]).mean(axis=0) for k in (0, 1)])
        outlines = np.stack([np.asarray(ndimage.binary_fill_holes(ends[:, :, k])) for k in (0, 1)], axis=2)
        parts = [signed_distance(region, _NO_CAVITY_MM) for region in (outlines, outlines & ~ends)]
        for gap in range(low + 1, high):
            outline, cavity = (_blend(distances, centres, (gap - low) / (high - low)) < 0 for distances in parts)
            filled[:, :, gap] = outline & ~cavity
    return filled


def _blend(
    distances: npt.NDArray[np.float32], centres: npt.NDArray[np.float64], part: float
) -> npt.NDArray[np.float32]:
    """Distances (X, Y) mm between the planes of (X, Y, 2), `part` of the way, as are their `centres` (2, 2)."""
    centre = (1 - part) * centres[0] + part * centres[1]
    near, far = (ndimage.shift(distances[:, :, k], centre - centres[k], order=1, mode="nearest") for k in (0, 1))
    return np.asarray((1 - part) * near + part * far, np.float32)


def _without_specks(stack: BoolArray) -> BoolArray:
    """Drop from each slice the pieces that are tiny beside its largest; they would widen outline and distances."""
    box = bounding_box(np.asarray(stack.any(axis=2)))
    kept = stack
    for s in np.flatnonzero(wall_slices(stack)):
        plane = stack[(*box, s)]
        pieces = np.zeros(plane.shape, np.int32)
        ndimage.label(plane, np.ones((3, 3)), output=pieces)
        areas = np.bincount(pieces[plane])
        large = areas >= SPECK * areas.max()
        if not large[areas > 0].all():
            # A copy only where one is needed: the volume may be as large as the reader lets through.
            kept = stack.copy() if kept is stack else kept
            kept[(*box, s)] = plane & large[pieces]
    return kept


def taper_of(stack: BoolArray, spacing: Vector) -> float:
    """How much the wall narrows from the start of the stack to its end, relative to its mean; negative when it widens.

    Mean of two losses, each from a straight line fitted over the slices where the ring is closed (arcs are what is
    left of the wall at a slanting base): the wall's area, which an aneurysm at the apex hardly changes, and the radius
    of the pool, which a thick wall hardly changes. With fewer than three closed slices: the wall's area and outline
    in all of them.
    """
    held = np.flatnonzero(wall_slices(stack))
    pool_area = pool_features(stack)[:, 2] * spacing[0] * spacing[1]
    closed = np.flatnonzero(pool_area)
    if len(closed) >= MIN_SLICES:
        return (_loss(closed, _wall_area(stack, closed)) + _loss(closed, np.sqrt(pool_area[closed]))) / 2
    if len(held) >= MIN_SLICES:
        outline = np.array([_outline_radius(stack[:, :, s], spacing) for s in held])
        return (_loss(held, _wall_area(stack, held)) + _loss(held, outline)) / 2
    return 0.0


def _loss(slices: npt.NDArray[np.intp], sizes: Vector) -> float:
    slope, mean = np.polyfit(slices - slices.mean(), sizes, 1)
    return float(-slope * (slices[-1] - slices[0]) / mean)


def _wall_area(stack: BoolArray, slices: npt.NDArray[np.intp]) -> Vector:
    return np.count_nonzero(stack, axis=(0, 1))[slices].astype(np.float64)


def _outline_radius(plane: BoolArray, spacing: Vector) -> float:
    points = np.argwhere(plane) * spacing[:2]
    # A slice of a single voxel has no radius: the mean over the stack must not vanish.
    return float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean())) + 1e-6


def _choose(stack: BoolArray, step: float, *, flipped: bool) -> _Chosen:
    """Pick every k-th slice from base to apex, with the smallest k that fits, and centre them in the 12."""
    held = np.flatnonzero(wall_slices(stack))
    if len(held) < MIN_SLICES:
        raise WallOutOfRange(_too_few(len(held)))
    span = np.arange(held[0], held[-1] + 1)[:: -1 if flipped else 1]
    every = -(-len(span) // SLICES)
    # What k does not divide is left out evenly at both ends: for k = 5 this is the centre slice of each block of five.
    left_out = (len(span) - 1) % every // 2
    source = span[left_out::every]
    start = (SLICES - len(source)) // 2
    reach = 2 * max((SLICES - 1) / 2 - start, start + len(source) - 1 - (SLICES - 1) / 2) * every * step
    if reach > MAX_WALL_MM + 1e-6:
        raise WallOutOfRange(
            f"the wall needs {reach:.0f} mm along the stack ({len(span)} slices, {step:g} mm apart) and the grid holds"
            f" {MAX_WALL_MM:.0f}: check the slice spacing in the header, or crop slices beyond base and apex"
        )
    base_mm = ((SLICES - 1) / 2 - start) * every * step + left_out * step
    return _Chosen(source, start, every, every * step, base_mm)


def _too_few(count: int) -> str:
    return (
        f"the wall is in {count} slice{'s' * (count != 1)} and at least {MIN_SLICES} are needed: give the whole stack"
    )


def _grid_to_source(chosen: _Chosen, middle: Vector, spacing: Vector) -> Affine:
    """(4, 4) voxel index of the (128, 128, 64) grid to voxel index of the source, slice axis last."""
    direction = 1.0 if chosen.source[-1] > chosen.source[0] else -1.0
    scale = np.array([*(SPACING[:2] / spacing[:2]), direction * SPACING[2] / spacing[2]])
    # The middle plane of the grid is the middle of the 12 slices, half-way between the sixth and the seventh.
    half_way = chosen.source[0] + direction * chosen.every * ((SLICES - 1) / 2 - chosen.start)
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = np.array([*middle, half_way]) - scale * (np.array(GRID) - 1) / 2
    return matrix
