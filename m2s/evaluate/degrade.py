"""What can be wrong with a stack: ways to spoil a simulated one, each with a strength drawn at random."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s.data.heart import Heart, Vertices
from m2s.data.simulate import PAPER, Masks, MotionLaw, Normal, Shifts, simulate_stack
from m2s_runtime.edge_distance import edge_distance
from m2s_runtime.grid import CENTRE, IN_PLANE, UPSAMPLING
from m2s_runtime.slices import wall_slices

Affine = npt.NDArray[np.float64]
Random = np.random.Generator


@dataclass(frozen=True)
class Spoilt:
    """A stack as a file would hold it, and what it should have become.

    Attributes:
        wall: (128, 128, 12) bool.
        affine: (4, 4) voxel index to mm, as the header has it.
        truth: (V, 3) mm, vertices of the true surface in the same frame.
    """

    wall: Masks
    affine: Affine
    truth: Vertices


Spoiler = Callable[[Heart, Random], Spoilt]


def scanned(heart: Heart, rng: Random, law: MotionLaw = PAPER) -> Spoilt:
    """Nothing wrong but the motion."""
    affine = np.diag([1.0, 1.0, UPSAMPLING * heart.plane_mm, 1.0])
    affine[2, 3] = UPSAMPLING // 2 * heart.plane_mm
    return Spoilt(simulate_stack(heart.mask, rng, law).slices, affine, heart.vertices)


def _held(stack: Spoilt) -> npt.NDArray[np.intp]:
    return np.flatnonzero(wall_slices(stack.wall))


def _without(stack: Spoilt, slices: npt.NDArray[np.intp]) -> Spoilt:
    wall = stack.wall.copy()
    wall[:, :, slices] = False
    return replace(stack, wall=wall)


def apex_missing(heart: Heart, rng: Random) -> Spoilt:
    """The last one to four slices are not there."""
    stack = scanned(heart, rng)
    return _without(stack, _held(stack)[-int(rng.integers(1, 5)) :])


def base_missing(heart: Heart, rng: Random) -> Spoilt:
    """The first one to four slices are not there."""
    stack = scanned(heart, rng)
    return _without(stack, _held(stack)[: int(rng.integers(1, 5))])


def slices_missing(heart: Heart, rng: Random) -> Spoilt:
    """One to four slices inside the stack are not there."""
    stack = scanned(heart, rng)
    inner = _held(stack)[1:-1]
    return _without(stack, rng.choice(inner, min(int(rng.integers(1, 5)), len(inner)), replace=False))


def torn(heart: Heart, rng: Random) -> Spoilt:
    """A sector of 45 to 200 degrees is erased from a third of the slices or more on average."""
    stack = scanned(heart, rng)
    wall = stack.wall.copy()
    x, y = np.meshgrid(np.arange(IN_PLANE) - CENTRE, np.arange(IN_PLANE) - CENTRE, indexing="ij")
    towards, width = rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(45, 200))
    hit = _held(stack)[rng.uniform(size=len(_held(stack))) < rng.uniform(0.33, 1.0)]
    turned = (np.arctan2(y, x) - towards + np.pi) % (2 * np.pi) - np.pi
    wall[:, :, hit] &= (abs(turned) > width / 2)[:, :, None]
    return replace(stack, wall=wall)


def _regrown(stack: Spoilt, by_mm: float) -> Spoilt:
    """Move the outline of every slice outwards by so much (inwards where negative)."""
    wall = stack.wall.copy()
    for s in _held(stack):
        wall[:, :, s] = edge_distance(wall[:, :, s], (1.0, 1.0)) <= by_mm
    return replace(stack, wall=wall)


def eroded(heart: Heart, rng: Random) -> Spoilt:
    """The outlines lie 1 to 3 mm too far inside the wall."""
    return _regrown(scanned(heart, rng), -rng.uniform(1.0, 3.0))


def dilated(heart: Heart, rng: Random) -> Spoilt:
    """The outlines lie 1 to 4 mm outside the wall."""
    return _regrown(scanned(heart, rng), rng.uniform(1.0, 4.0))


def giant(heart: Heart, rng: Random) -> Spoilt:
    """The heart is 1.25 to 1.7 times as large, truly."""
    stack, size = scanned(heart, rng), rng.uniform(1.25, 1.7)
    return Spoilt(stack.wall, np.diag([size, size, size, 1.0]) @ stack.affine, size * stack.truth)


def large_motion(heart: Heart, rng: Random) -> Spoilt:
    """Slices move by N(0, sd), sd 6 to 10 mm."""
    return scanned(heart, rng, Normal(rng.uniform(6.0, 10.0)))


@dataclass(frozen=True)
class _Jump:
    """A block of two to four slices lies 10 to 25 mm off, beside the usual motion."""

    first: int
    count: int

    def draw(self, rng: Random, slices: int) -> Shifts:
        """(slices, 2) mm."""
        shifts = PAPER.draw(rng, slices)
        angle, size = rng.uniform(0, 2 * np.pi), rng.uniform(10.0, 25.0)
        shifts[self.first : self.first + self.count] += size * np.array([np.cos(angle), np.sin(angle)])
        return shifts


def jump(heart: Heart, rng: Random) -> Spoilt:
    """A block of two to four slices lies 10 to 25 mm off."""
    held = np.flatnonzero(wall_slices(heart.mask[:, :, UPSAMPLING // 2 :: UPSAMPLING]))
    count = int(rng.integers(2, 5))
    first = int(rng.integers(held[0], max(held[-1] - count + 2, held[0] + 1)))
    return scanned(heart, rng, _Jump(first, count))


def wrong_step(heart: Heart, rng: Random) -> Spoilt:
    """The header claims 0.5 to 0.8 or 1.25 to 2 times the slice step."""
    stack = scanned(heart, rng)
    factor = rng.uniform(0.5, 0.8) if rng.uniform() < 0.5 else rng.uniform(1.25, 2.0)
    middle = float(stack.truth[:, 2].min() + stack.truth[:, 2].max()) / 2
    stretch = np.diag([1.0, 1.0, factor, 1.0])
    stretch[2, 3] = middle * (1 - factor)
    return replace(stack, affine=stretch @ stack.affine)


SPOILERS: Final[Mapping[str, Spoiler]] = {
    "none": scanned,
    "apex missing": apex_missing,
    "base missing": base_missing,
    "slices missing": slices_missing,
    "torn": torn,
    "eroded": eroded,
    "dilated": dilated,
    "giant": giant,
    "large motion": large_motion,
    "jump": jump,
    "wrong step": wrong_step,
}
