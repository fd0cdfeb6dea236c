"""Where the right ventricle meets the left one, from its label: what the 17 segments are counted from.

Angles are those of the grid, in the plane of the slices about the middle of the cavity, so that the shift of a slice
does not change them.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s_runtime.placement import Affine, Canonical
from m2s_runtime.slices import bounding_box

TOUCH_MM: Final = 3
"""Blood of the right ventricle this near to the wall touches it."""

LEAST_SLICES: Final = 2
"""Slices in which the ventricles must touch."""

SCATTER_DEG: Final = 30.0
"""Slices whose anterior insertions scatter more (standard deviation) do not agree on a septum."""

ARC_DEG: Final = (30.0, 220.0)
"""How much of the wall the right ventricle can touch."""

_UNCLEAR: Final = ("base_unclear", "slice_axis_unclear")
"""Flags of a stack that may lie otherwise than it was taken."""

_SCANNER_AXIS: Final = 0.985
"""Cosine of 10 degrees: short-axis slices are oblique to all axes of the scanner."""

_APEXWARD: Final = np.array([-1.0, 1.0, -1.0]) / np.sqrt(3)
"""Left, anterior, inferior (RAS)."""

_APEX_COSINE: Final = 0.4
"""How far the apex may point from there: 66 degrees."""


@dataclass(frozen=True)
class Septum:
    """What the right ventricle tells of the orientation.

    Attributes:
        insertion: angle (rad) of the anterior insertion, from the grid's x axis towards its y axis.
        turn: +1 if from there the anterior wall lies towards larger angles, -1 if towards smaller ones.
    """

    insertion: float
    turn: int


def find_septum(canonical: Canonical) -> Septum | str:
    """Look for the anterior insertion of the right ventricle; the reason in words where it cannot be told.

    Insertions are the ends of the arc in which the right ventricle touches the wall, in the slices of the basal two
    thirds. Which end is the anterior one follows from the handedness of the scanner's axes (RAS): the cross product of
    the directions from the cavity to the septum and to the apex points to the anterior wall. A header that does not
    hold the patient's orientation says nothing about that.
    """
    if canonical.right is None:
        return "the mask has no label that is known to be the right ventricle: name its scheme with --labels"
    unclear = [flag for flag in _UNCLEAR if flag in canonical.flags]
    if unclear:
        return f"which way the apex lies is not certain ({', '.join(unclear)})"
    turn = _turn(canonical.placement.affine)
    arcs = [arc for s in _basal_two_thirds(canonical) if (arc := _contact(canonical, s, turn)) is not None]
    if len(arcs) < LEAST_SLICES:
        return f"the right ventricle touches the wall in fewer than {LEAST_SLICES} slices of its basal two thirds"
    ends, middles = np.exp(1j * np.array([[a.insertion, a.middle] for a in arcs])).mean(axis=0)
    scatter = np.degrees(np.sqrt(-2 * np.log(max(abs(ends), 1e-9))))
    if scatter > SCATTER_DEG:
        return f"the insertion of the right ventricle scatters by {scatter:.0f} degrees from slice to slice"
    fault = _lies_otherwise(canonical.placement.affine, float(np.angle(middles)))
    return fault or Septum(float(np.angle(ends)), turn)


@dataclass(frozen=True)
class _Arc:
    """Angles (rad) of one slice: the anterior insertion, and the middle of the septum."""

    insertion: float
    middle: float


def _turn(affine: Affine) -> int:
    """Sense in which angles grow from the septum towards the anterior wall."""
    return -1 if np.linalg.det(affine[:3, :3]) > 0 else 1


def _basal_two_thirds(canonical: Canonical) -> npt.NDArray[np.intp]:
    """The slices with a closed ring, less the third nearest to the apex."""
    closed = np.flatnonzero(canonical.pool[:, 2])
    return closed[: -(-2 * len(closed) // 3)]


def _contact(canonical: Canonical, s: int, turn: int) -> _Arc | None:
    """The arc of one slice; None where the right ventricle does not touch the wall, or does so all round."""
    assert canonical.right is not None  # noqa: S101 - for the type checker
    wall, right = canonical.masks[:, :, s], canonical.right[:, :, s]
    if not right.any():
        return None
    box = bounding_box(wall | right, TOUCH_MM)
    near = np.asarray(ndimage.binary_dilation(wall[box], iterations=TOUCH_MM), np.bool_) & right[box]
    x, y = np.nonzero(near)
    if not len(x):
        return None
    centre = canonical.pool[s, :2]
    direction = (x + box[0].start - centre[0]) + 1j * (y + box[1].start - centre[1])
    middle = np.angle((direction / abs(direction)).mean())
    angles = np.angle(direction * np.exp(-1j * middle))
    low, high = np.percentile(angles, (0.5, 99.5))
    if not ARC_DEG[0] <= np.degrees(high - low) <= ARC_DEG[1]:
        return None
    middle += (low + high) / 2
    return _Arc(float(middle + turn * (high - low) / 2), float(middle))


def _lies_otherwise(affine: Affine, septum: float) -> str | None:
    """Why a header cannot hold the orientation of a patient; None where it may."""
    x, y, apexward = (affine[:3, a] / np.linalg.norm(affine[:3, a]) for a in range(3))
    if abs(apexward).max() > _SCANNER_AXIS:
        return "slices along an axis of the scanner: the header has lost the patient's orientation"
    right = np.cos(septum) * x + np.sin(septum) * y
    if apexward @ _APEXWARD < _APEX_COSINE or right[0] + right[1] < 0:
        return "by the header the apex does not point left, forward and down with the right ventricle on the right"
    return None
