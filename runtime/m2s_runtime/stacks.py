"""The canonical stacks of a study's frames, and what the frames of a cine share."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from m2s_runtime.cine import Shifts, Vectors, by_source, by_stack, shared_shifts
from m2s_runtime.errors import CaseError
from m2s_runtime.placement import Affine, Canonical, canonicalise
from m2s_runtime.slices import BoolArray

Estimate = Callable[[Canonical, str], Shifts]
"""Shifts (12, 2) mm of a stack by itself, its noise drawn by a key: `Pipeline.estimate`."""

Each = Callable[[Callable[[int], "tuple[int, Vectors | None]"], Sequence[int]], "Iterator[tuple[int, Vectors | None]]"]
"""Calls a function for each frame, like `map`, in any order: `Seats.spread`."""


class Stacks:
    """Canonical stacks of a study's frames, each made once."""

    def __init__(
        self, wall: BoolArray, affine: Affine, key: str, estimate: Estimate | None, right: BoolArray | None = None
    ) -> None:
        """With `estimate`, the frames of a cine are given the same shifts, which it finds in each.

        Args:
            wall: (X, Y, Z, T) bool.
            affine: (4, 4) voxel index to world mm.
            key: sha256 (hex) that the noise is drawn by.
            estimate: None leaves each frame its own shifts.
            right: (X, Y, Z, T) bool, cavity of the right ventricle; None where the mask tells of none.
        """
        self._wall, self._affine, self._key, self._right = wall, affine, key, right
        self._estimate = estimate if wall.shape[3] > 1 else None
        self._made: dict[int, Canonical] = {}
        self._shifts: Vectors | None = None

    def holds_wall(self) -> list[bool]:
        """For each frame, whether any voxel is wall."""
        return [bool(self._wall[..., frame].any()) for frame in range(self._wall.shape[3])]

    def canonical(self, frame: int) -> Canonical:
        """The stack of a frame; errors as of `canonicalise`."""
        if frame not in self._made:
            right = None if self._right is None else self._right[..., frame]
            self._made[frame] = canonicalise(self._wall[..., frame], self._affine, right)
        return self._made[frame]

    def volumes(self, frame: int) -> tuple[float, float] | None:
        """Volumes in mm³ of what the wall encloses, slice by slice, and of the wall; None when the frame is refused."""
        try:
            canonical = self.canonical(frame)
        except CaseError:
            return None
        cavity, wall = float(canonical.pool[:, 2].sum()), float(np.count_nonzero(canonical.masks))
        return cavity * canonical.placement.step_mm, wall * canonical.placement.step_mm

    def shared(self, frame: int) -> Shifts | None:
        """Shifts (12, 2) mm of a frame, from all frames of the study whichever are chosen; None: it has its own."""
        if self._estimate is None:
            return None
        if self._shifts is None:
            self.share(map)
        return None if self._shifts is None else by_stack(self._shifts, self.canonical(frame))

    def share(self, each: Each) -> None:
        """Find the shifts that the frames share, if they do; `each` may go through the frames side by side."""
        if self._estimate is None:
            return
        frames = [int(frame) for frame in np.flatnonzero(self.holds_wall())]
        found = dict(each(partial(self._estimated, self._estimate), frames))
        known = [shifts for frame in frames if (shifts := found[frame]) is not None]
        self._shifts = shared_shifts(known) if known else None

    def _estimated(self, estimate: Estimate, frame: int) -> tuple[int, Vectors | None]:
        try:
            canonical = self.canonical(frame)
            count = self._wall.shape[canonical.placement.slice_axis]
            return frame, by_source(estimate(canonical, self._key), canonical, count)
        except CaseError:  # that frame's own affair
            return frame, None
