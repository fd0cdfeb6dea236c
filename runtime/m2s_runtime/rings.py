"""Which labels of a map ring which others, slice by slice: the one thing that tells a wall from a cavity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m2s_runtime.slices import bounding_box, divided_planes

Labels = npt.NDArray[np.integer[Any]]

MOST_SLICES: Final = 32
"""Of a stack with more, this many are looked at, evenly spread."""


@dataclass(frozen=True)
class Shares:
    """For pairs of labels (a, b) the share of b's voxels that lie in holes of a; pairs without any are left out."""

    of: Mapping[tuple[int, int], float]

    def pairs(self, least: float) -> list[tuple[int, int]]:
        """The pairs with at least that share, in ascending order."""
        return sorted(pair for pair, share in self.of.items() if share >= least)

    def inside(self, ring: int, least: float) -> list[int]:
        """The labels of which at least that share lies in holes of `ring`, in ascending order."""
        return [b for a, b in self.pairs(least) if a == ring]


def ring_shares(labels: Labels, found: Sequence[int], axis: int | None) -> Shares:
    """Count what lies in whose holes, in the frame with the most labelled voxels.

    Args:
        labels: (X, Y, Z) or (X, Y, Z, T) integers, 0 is background.
        found: the labels to look for, ascending.
        axis: the one along which slices are stacked; None takes the shortest.
    """
    frame = _fullest_frame(labels, axis)
    values = np.array([0, *found])
    held = np.flatnonzero(frame.any(axis=(0, 1)))
    looked = held[np.linspace(0, len(held) - 1, min(len(held), MOST_SLICES)).round().astype(int)]
    # Labels as indices into `values`, within the smallest box, planes first.
    stack = np.moveaxis(frame[bounding_box(np.asarray(frame.any(axis=2)))][:, :, looked], 2, 0)
    codes = np.searchsorted(values, stack)
    inside, total = np.zeros((len(values), len(values)), np.int64), np.bincount(codes.ravel(), minlength=len(values))
    for a in np.flatnonzero(total[1:]) + 1:
        inside[a] = _in_holes(codes, int(a), len(values))
    share = inside / np.maximum(total, 1)
    return Shares({(int(values[a]), int(values[b])): float(share[a, b]) for a, b in np.argwhere(share) if b and a != b})


def _in_holes(codes: npt.NDArray[np.intp], ring: int, count: int) -> npt.NDArray[np.intp]:
    """How many pixels of each code (count,) lie in holes of one, over all planes of (S, X, Y)."""
    codes = codes[:, *bounding_box(np.asarray((codes == ring).any(axis=0)))]
    parts, outside = divided_planes(codes == ring)
    return np.bincount(codes[(parts > 0) & (parts != outside[:, None, None])], minlength=count)


def _fullest_frame(labels: Labels, axis: int | None) -> Labels:
    """The (X, Y, Z) frame with the most labelled voxels, slices last."""
    if labels.ndim == 4:
        labels = labels[..., int(np.count_nonzero(labels, axis=(0, 1, 2)).argmax())]
    return np.moveaxis(labels, 2 - int(np.argmin(labels.shape[::-1])) if axis is None else axis, 2)
