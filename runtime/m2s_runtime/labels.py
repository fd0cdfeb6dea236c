"""Which voxels of a label map are the wall of the left ventricle: by a named scheme, or found by what rings what."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s_runtime.errors import AmbiguousLabels, BadLabels, EmptyWall, UsageProblem
from m2s_runtime.slices import BoolArray, bounding_box

Labels = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Scheme:
    """The numbers that a data set gives to the wall, the left cavity and (each of) the right cavity."""

    wall: int
    left: int
    right: tuple[int, ...]


SCHEMES: Final = {
    "acdc": Scheme(wall=2, left=3, right=(1,)),
    "ukbb": Scheme(wall=2, left=1, right=(3,)),
    "mnms": Scheme(wall=2, left=1, right=(3,)),
    # The label maps of the paper; some releases of them give the right ventricle 3.
    "label_maps": Scheme(wall=2, left=1, right=(3, 4)),
}

MOSTLY: Final = 0.5
"""One label rings another when this share of the other's voxels lies in its holes, slice by slice."""

MOST_LABELS: Final = 32
"""A volume with more distinct values is an image."""


@dataclass(frozen=True)
class LabelDecision:
    """What was taken for the wall, and why.

    Attributes:
        scheme: `auto`, `binary`, `myo` or the name of a data set's scheme.
        wall_label: the label taken, None when every label was.
        text: one clause for people, without a full stop.
        warnings: what contradicts the decision.
    """

    scheme: str
    wall_label: int | None
    text: str
    warnings: tuple[str, ...] = ()


def check_scheme(scheme: str) -> None:
    """Refuse a scheme that nobody knows before any file is opened.

    Raises:
        UsageProblem: neither `auto`, `binary`, a data set's name nor `myo=` with a positive whole number.
    """
    if scheme not in ("auto", "binary", *SCHEMES) and _chosen_label(scheme) is None:
        raise UsageProblem(f"--labels {scheme}: choose one of auto, binary, {', '.join(SCHEMES)}, or myo=NUMBER")


def wall_mask(labels: Labels, scheme: str, axis: int | None = None) -> tuple[BoolArray, LabelDecision]:
    """Find the wall in a label map.

    Args:
        labels: (X, Y, Z) or (X, Y, Z, T) integers, 0 is background. One decision holds for all frames.
        scheme: `auto`, `binary`, `acdc`, `ukbb`, `mnms`, `label_maps` or `myo=NUMBER`.
        axis: the one along which slices are stacked (`placement.slice_axis`); None takes the shortest.

    Returns:
        Mask of the same shape, and what was decided.

    Raises:
        UsageProblem: the scheme is none of these.
        EmptyWall: every voxel is background.
        AmbiguousLabels: `auto` cannot tell the wall; the message holds the flag to add.
        BadLabels: the scheme's wall is absent, or there are labels that the scheme does not know.
    """
    check_scheme(scheme)
    found = _distinct(labels)
    if not found:
        raise EmptyWall("every voxel is background: the segmentation of this case is empty")
    if len(found) > MOST_LABELS:
        raise BadLabels(f"{len(found)} distinct values: this is an image, give its segmentation")
    if scheme == "binary":
        return labels != 0, LabelDecision("binary", None, f"every label ({_listed(found)}) is the wall")
    if scheme == "auto":
        decision = _find_wall(labels, found, axis)
    elif scheme in SCHEMES:
        decision = _by_scheme(labels, found, scheme, axis)
    else:
        decision = _by_number(found, _chosen_label(scheme) or 0)
    return labels == decision.wall_label, decision


def _distinct(labels: Labels) -> list[int]:
    """The labels in use, background aside; counted piece by piece, for counting makes 64-bit copies."""
    pieces = (labels[..., last] for last in range(labels.shape[-1]))
    return sorted({int(v) for piece in pieces for v in np.flatnonzero(np.bincount(piece.ravel()))} - {0})


def _chosen_label(scheme: str) -> int | None:
    name, _, number = scheme.partition("=")
    return int(number) if name == "myo" and number.isdecimal() and int(number) > 0 else None


def _by_number(found: Sequence[int], number: int) -> LabelDecision:
    if number not in found:
        raise BadLabels(f"no voxel has label {number}; found {_listed(found)}: choose one of these with --labels myo=")
    return LabelDecision("myo", number, f"label {number} is the wall, as asked")


def _by_scheme(labels: Labels, found: Sequence[int], name: str, axis: int | None) -> LabelDecision:
    scheme = SCHEMES[name]
    unknown = set(found) - {scheme.wall, scheme.left, *scheme.right}
    if unknown:
        raise BadLabels(f"scheme {name} has no label {_listed(sorted(unknown))}: add --labels auto, or myo=NUMBER")
    if scheme.wall not in found:
        raise BadLabels(
            f"label {scheme.wall}, the wall in scheme {name}, is absent; found {_listed(found)}: add --labels auto"
        )
    frame = _fullest_frame(labels, axis)
    warnings = [
        f"label {other} lies inside the wall, where scheme {name} has label {scheme.left}: is it another scheme?"
        for other in scheme.right
        if other in found and _ringed_share(frame, scheme.wall, other) >= MOSTLY
    ]
    warnings += [
        f"label {other} rings the wall's label {scheme.wall} of scheme {name}: try --labels myo={other}"
        for other in found
        if other != scheme.wall and _ringed_share(frame, other, scheme.wall) >= MOSTLY
    ]
    return LabelDecision(name, scheme.wall, f"label {scheme.wall} is the wall in scheme {name}", tuple(warnings))


def _find_wall(labels: Labels, found: Sequence[int], axis: int | None) -> LabelDecision:
    if len(found) == 1:
        return LabelDecision("auto", found[0], f"label {found[0]} is the only one")
    frame = _fullest_frame(labels, axis)
    rings = {a: [b for b in found if b != a and _ringed_share(frame, a, b) >= MOSTLY] for a in found}
    walls = [a for a, inside in rings.items() if inside]
    if len(walls) == 1 and len(rings[walls[0]]) == 1:
        (wall,), (pool,) = walls, rings[walls[0]]
        return LabelDecision("auto", wall, f"label {wall} is the wall because it rings label {pool}")
    options = " or ".join(f"--labels myo={a}" for a in walls or found)
    told = "; ".join(f"label {a} rings {_listed(rings[a])}" for a in walls) or "no label rings another"
    raise AmbiguousLabels(f"labels {_listed(found)}: {told}. Say which is the wall: add {options}")


def _fullest_frame(labels: Labels, axis: int | None) -> Labels:
    """The (X, Y, Z) frame with the most labelled voxels, slices last."""
    if labels.ndim == 4:
        labels = labels[..., int(np.count_nonzero(labels, axis=(0, 1, 2)).argmax())]
    return np.moveaxis(labels, 2 - int(np.argmin(labels.shape[::-1])) if axis is None else axis, 2)


def _ringed_share(frame: Labels, ring: int, other: int) -> float:
    """Share of the voxels of `other` that lie in holes of `ring`, counted slice by slice."""
    inside = 0
    for s in range(frame.shape[2]):
        plane = frame[:, :, s] == ring
        if plane.any():
            box = bounding_box(plane)
            filled = np.asarray(ndimage.binary_fill_holes(plane[box]))
            inside += np.count_nonzero(filled & (frame[(*box, s)] == other))
    return inside / max(np.count_nonzero(frame == other), 1)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
