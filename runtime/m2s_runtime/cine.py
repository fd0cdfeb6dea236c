"""What the frames of a cine share: a slice is scanned in one breath-hold, so one shift holds for all of its frames.

Frames are canonicalised apart (the base leaves the first slices in systole), so their shifts are brought together by
source slice. Each frame's own shifts lack their mean, and over other slices the mean is another: the heart would jump
from frame to frame. Tukey's median polish separates what belongs to a slice from what belongs to a frame.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from m2s_runtime.placement import Canonical
from m2s_runtime.slices import wall_slices

Vectors = npt.NDArray[np.float64]
Shifts = npt.NDArray[np.float32]

_ROUNDS = 20


def by_source(shifts: Shifts, canonical: Canonical, count: int) -> Vectors:
    """Shifts (12, 2) mm of a canonical stack as (`count`, 2) by source slice; NaN where a slice was not used."""
    found = np.full((count, 2), np.nan)
    for index in np.flatnonzero(wall_slices(canonical.masks)):
        found[canonical.placement.slices[index]] = shifts[index]
    return found


def by_stack(shifts: Vectors, canonical: Canonical) -> Shifts:
    """The inverse of `by_source`; 0 where a canonical slice holds nothing."""
    sources = np.array(canonical.placement.slices)
    return np.where((sources >= 0)[:, None], np.nan_to_num(shifts[sources]), 0.0).astype(np.float32)


def shared_shifts(frames: Sequence[Vectors]) -> Vectors:
    """One shift for each slice from those of the frames, each up to a shift of the whole frame.

    Args:
        frames: (S, 2) mm from `by_source`, a frame each.

    Returns:
        (S, 2) mm, NaN where no frame has the slice; the frames' own offsets from it are zero in the mean.
    """
    table = np.stack(frames)
    seen = np.isfinite(table[..., 0]).any(axis=0)
    known, shared = table[:, seen], np.full(table.shape[1:], np.nan)
    offsets = np.zeros((len(table), 1, 2))
    for _ in range(_ROUNDS):
        shared[seen] = np.nanmedian(known - offsets, axis=0)
        offsets = np.nanmedian(known - shared[seen], axis=1, keepdims=True)
        offsets -= offsets.mean(axis=0)
    return shared
