"""Which voxels of a label map are the wall of the left ventricle: by a named scheme, or found by what rings what."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from m2s_runtime.errors import AmbiguousLabels, BadLabels, EmptyWall, UsageProblem
from m2s_runtime.rings import Labels, Shares, ring_shares
from m2s_runtime.slices import BoolArray


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

CONTRADICTED: Final = "labels_contradict"
"""Flag of a mask that does not look as its scheme says: a cavity outside the wall, a wall inside another label."""

MOST_LABELS: Final = 32
"""A volume with more distinct values is an image."""

_PIECE: Final = 2**20


@dataclass(frozen=True)
class LabelDecision:
    """What was taken for the wall, and why.

    Attributes:
        scheme: `auto`, `binary`, `myo` or the name of a data set's scheme.
        wall_label: the label taken, None when every label was.
        text: one clause for people, without a full stop.
        warnings: what contradicts the decision.
        right_labels: those of the right cavity; none where the mask has none, or nothing says which they are.
    """

    scheme: str
    wall_label: int | None
    text: str
    warnings: tuple[str, ...] = ()
    right_labels: tuple[int, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """`CONTRADICTED` when something contradicts the decision."""
        return (CONTRADICTED,) if self.warnings else ()


def check_scheme(scheme: str) -> None:
    """Refuse a scheme that nobody knows before any file is opened; capitals do not matter.

    Raises:
        UsageProblem: neither `auto`, `binary`, a data set's name nor `myo=` with a positive whole number.
    """
    if scheme.lower() not in ("auto", "binary", *SCHEMES) and _chosen_label(scheme.lower()) is None:
        raise UsageProblem(f"--labels {scheme}: choose one of auto, binary, {', '.join(SCHEMES)}, or myo=NUMBER")


def wall_mask(labels: Labels, scheme: str, axis: int | None = None) -> tuple[BoolArray, LabelDecision]:
    """Find the wall in a label map.

    Args:
        labels: (X, Y, Z) or (X, Y, Z, T) integers, 0 is background. One decision holds for all frames.
        scheme: `auto`, `binary`, `acdc`, `ukbb`, `mnms`, `label_maps` or `myo=NUMBER`; capitals do not matter.
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
    scheme = scheme.lower()
    found = _distinct(labels)
    if not found:
        raise EmptyWall("every voxel is background: the segmentation of this case is empty")
    if len(found) > MOST_LABELS:
        raise BadLabels(f"{len(found)} distinct values: this is an image, give its segmentation")
    if scheme in SCHEMES:
        _check_known(found, scheme)
    shares = ring_shares(labels, found, axis) if len(found) > 1 else Shares({})
    if scheme == "binary":
        decision = _all_together(found, shares)
    elif scheme == "auto":
        decision = _find_wall(found, shares)
    elif scheme in SCHEMES:
        decision = _by_scheme(found, scheme, shares)
    else:
        decision = _by_number(found, _chosen_label(scheme) or 0, shares)
    return labels == decision.wall_label if decision.wall_label else labels != 0, decision


def right_mask(labels: Labels, decision: LabelDecision) -> BoolArray | None:
    """Find the cavity of the right ventricle in a label map, for which `wall_mask` decided; None where there is none.

    Args:
        labels: integers of any shape.
        decision: what was decided.
    """
    masks = [labels == label for label in decision.right_labels]
    return np.logical_or.reduce(masks) if masks else None


def _distinct(labels: Labels) -> list[int]:
    """The labels in use, background aside; counted piece by piece, for counting makes 64-bit copies."""
    flat = labels.ravel(order="K")
    pieces = (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))
    return sorted({int(v) for piece in pieces for v in np.flatnonzero(np.bincount(piece[piece != 0]))})


def _chosen_label(scheme: str) -> int | None:
    name, _, number = scheme.partition("=")
    return int(number) if name == "myo" and number.isdecimal() and int(number) > 0 else None


def _all_together(found: Sequence[int], shares: Shares) -> LabelDecision:
    warnings = [
        f"label {a} rings label {b} and both are taken for wall: if {b} is the cavity, add --labels myo={a}"
        for a, b in shares.pairs(MOSTLY)
    ]
    return LabelDecision("binary", None, f"every label ({_listed(found)}) is the wall", tuple(warnings))


def _by_number(found: Sequence[int], number: int, shares: Shares) -> LabelDecision:
    if number not in found:
        raise BadLabels(f"no voxel has label {number}; found {_listed(found)}: choose one of these with --labels myo=")
    return LabelDecision("myo", number, f"label {number} is the wall, as asked", tuple(_better_walls(number, shares)))


def _check_known(found: Sequence[int], name: str) -> None:
    scheme = SCHEMES[name]
    unknown = set(found) - {scheme.wall, scheme.left, *scheme.right}
    if unknown:
        raise BadLabels(f"scheme {name} has no label {_listed(sorted(unknown))}: add --labels auto, or myo=NUMBER")
    if scheme.wall not in found:
        raise BadLabels(
            f"label {scheme.wall}, the wall in scheme {name}, is absent; found {_listed(found)}: add --labels auto"
        )


def _by_scheme(found: Sequence[int], name: str, shares: Shares) -> LabelDecision:
    scheme = SCHEMES[name]
    inside = shares.inside(scheme.wall, MOSTLY)
    warnings = [
        f"label {other} lies inside the wall, where scheme {name} has label {scheme.left}: is it another scheme?"
        for other in scheme.right
        if other in inside
    ]
    warnings += _better_walls(scheme.wall, shares)
    if scheme.left in found and scheme.left not in inside and not warnings:
        asked = "is it another scheme, or a torn wall?"
        warnings.append(f"label {scheme.wall} does not ring label {scheme.left}, the cavity in scheme {name}: {asked}")
    right = () if warnings else tuple(label for label in scheme.right if label in found)
    return LabelDecision(name, scheme.wall, f"label {scheme.wall} is the wall in scheme {name}", tuple(warnings), right)


def _better_walls(wall: int, shares: Shares) -> list[str]:
    """Labels that ring another are more likely the wall than one that rings nothing."""
    if shares.inside(wall, MOSTLY):
        return []
    return [
        f"label {wall}, taken for the wall, rings nothing and label {a} rings label {b}: try --labels myo={a}"
        for a, b in shares.pairs(MOSTLY)
    ]


def _find_wall(found: Sequence[int], shares: Shares) -> LabelDecision:
    if len(found) == 1:
        return LabelDecision("auto", found[0], f"label {found[0]} is the only one")
    rings = {a: shares.inside(a, MOSTLY) for a in found}
    walls = [a for a, inside in rings.items() if inside]
    if len(walls) == 1 and len(rings[walls[0]]) == 1:
        (wall,), (pool,) = walls, rings[walls[0]]
        text = f"label {wall} is the wall because it rings label {pool}"
        return LabelDecision("auto", wall, text, right_labels=_right_of(wall, pool, set(found) - {wall, pool}))
    options = " or ".join(f"--labels myo={a}" for a in walls or found)
    told = "; ".join(f"label {a} rings {_listed(rings[a])}" for a in walls) or "no label rings another"
    raise AmbiguousLabels(f"labels {_listed(found)}: {told}. Say which is the wall: add {options}")


def _right_of(wall: int, left: int, others: set[int]) -> tuple[int, ...]:
    """The labels left over, if in some scheme wall, left cavity and right cavity go by these very numbers."""
    known = any((s.wall, s.left) == (wall, left) and others <= set(s.right) for s in SCHEMES.values())
    return tuple(sorted(others)) if known else ()


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
