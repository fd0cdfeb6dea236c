"""Stacks that end before the heart does: apical slices that were never acquired or never labelled."""

from typing import Final

import numpy as np
import numpy.typing as npt

from m2s.data.simulate import Stack
from m2s_runtime.grid import PLANES, SLICES, UPSAMPLING
from m2s_runtime.slices import wall_slices

Masks = npt.NDArray[np.bool_]

LEAST_LEFT: Final = 5
"""Slices that are always left."""


def lose_apex(stack: Stack, mask: Masks, count: int) -> tuple[Stack, Masks]:
    """Takes the last `count` slices away and seats stack and truth as the runtime would seat what is left.

    The truth keeps its apex, so that a network learns to close walls that the stack leaves open. A stack that would be
    left with fewer than `LEAST_LEFT` slices, or a truth that would leave the planes, stays as it is.

    Args:
        stack: the acquisition.
        mask: (128, 128, 60) bool, the truth.
        count: slices to take.

    Returns:
        Stack and truth, both moved by the same whole number of slices.
    """
    held = np.flatnonzero(wall_slices(stack.slices))
    if len(held) < LEAST_LEFT + count:
        return stack, mask
    left = held[:-count]
    move = (SLICES - int(left[-1] - left[0] + 1)) // 2 - int(left[0])
    wall = np.flatnonzero(mask.any((0, 1)))
    if wall[0] + move * UPSAMPLING < 0 or wall[-1] + move * UPSAMPLING >= PLANES:
        return stack, mask
    parts = [_without(part, held[-count:]) for part in (stack.slices, stack.clean)]
    shifts = stack.shifts.copy()
    shifts[held[-count:]] = 0.0
    slices, clean = (np.roll(part, move, axis=2) for part in parts)
    return Stack(slices, np.roll(shifts, move, axis=0), clean), np.roll(mask, move * UPSAMPLING, axis=2)


def _without(slices: Masks, lost: npt.NDArray[np.intp]) -> Masks:
    left = slices.copy()
    left[:, :, lost] = False
    return left
