"""Short-axis stacks as a scanner would give them: the centre slice of every block of five, each moved in-plane."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from m2s.data.heart import keyed_rng
from m2s_runtime.grid import UPSAMPLING
from m2s_runtime.slices import wall_slices

Masks = npt.NDArray[np.bool_]
Shifts = npt.NDArray[np.float64]


class MotionLaw(Protocol):
    """How far slices move between breath-holds."""

    def draw(self, rng: np.random.Generator, slices: int) -> Shifts:
        """(slices, 2) mm along x and y."""
        ...


@dataclass(frozen=True)
class FoldedNormal:
    """|N(mean, sd)| mm per slice and axis, as the paper has it; `sign` random, or positive as its letter allows."""

    mean: float
    sd: float
    sign: Literal["random", "positive"] = "random"

    def draw(self, rng: np.random.Generator, slices: int) -> Shifts:
        """(slices, 2) mm."""
        size = np.abs(rng.normal(self.mean, self.sd, (slices, 2)))
        return size * rng.choice((-1.0, 1.0), (slices, 2)) if self.sign == "random" else size


@dataclass(frozen=True)
class Normal:
    """N(0, sd) mm per slice and axis."""

    sd: float

    def draw(self, rng: np.random.Generator, slices: int) -> Shifts:
        """(slices, 2) mm."""
        return rng.normal(0.0, self.sd, (slices, 2))


PAPER = FoldedNormal(3.45, 1.305)
"""The published simulation: 3.45 ± 1.305 mm per axis, with a random sign."""


@dataclass(frozen=True)
class Mixture:
    """What training sees, so that the network does not lean on the gap around zero that `PAPER` leaves.

    Attributes:
        share: part of the stacks that follow `law`; the others follow N(0, s), s uniform in `sd_mm`.
        outlier: part of those others' slices that move `outlier_mm` in a random direction instead.
        block: part of the stacks in which runs of slices have moved together besides, by up to `block_mm`: the patient
            lay differently after a pause.
    """

    law: MotionLaw = field(default=PAPER)
    share: float = 0.5
    sd_mm: tuple[float, float] = (0.5, 4.0)
    outlier: float = 0.03
    outlier_mm: tuple[float, float] = (5.0, 10.0)
    block: float = 0.0
    block_mm: float = 25.0

    def draw(self, rng: np.random.Generator, slices: int) -> Shifts:
        """(slices, 2) mm."""
        shifts = self._alone(rng, slices)
        if self.block and rng.uniform() < self.block:
            # Runs of six slices on average, every other one in place.
            run = np.cumsum(rng.uniform(size=slices) < 1 / 6)
            offsets = _directions(rng, rng.uniform(0, self.block_mm, run[-1] + 1)) * rng.choice(
                (0.0, 1.0), (run[-1] + 1, 1)
            )
            shifts = shifts + offsets[run]
        return shifts

    def _alone(self, rng: np.random.Generator, slices: int) -> Shifts:
        if rng.uniform() < self.share:
            return self.law.draw(rng, slices)
        shifts = Normal(rng.uniform(*self.sd_mm)).draw(rng, slices)
        far = rng.uniform(size=slices) < self.outlier
        return np.where(far[:, None], _directions(rng, rng.uniform(*self.outlier_mm, slices)), shifts)


def _directions(rng: np.random.Generator, size: npt.NDArray[np.float64]) -> Shifts:
    """Vectors (N, 2) of the given lengths in random directions."""
    angle = rng.uniform(0, 2 * np.pi, len(size))
    return size[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@dataclass(frozen=True)
class Stack:
    """A simulated acquisition.

    Attributes:
        slices: (128, 128, 12) bool, the moved masks.
        shifts: (12, 2) float32 mm along x and y, `clean(p) = slices(p + shift)`; 0 where a slice holds no wall.
        clean: (128, 128, 12) bool, the same slices before they moved.
    """

    slices: Masks
    shifts: npt.NDArray[np.float32]
    clean: Masks


def draw_rng(heart_id: str, draw: int, seed: int) -> np.random.Generator:
    """The generator of one simulated stack: a pure function of heart, draw and seed."""
    return keyed_rng("stack", seed, heart_id, draw)


def simulate_stack(mask: Masks, rng: np.random.Generator, law: MotionLaw = PAPER, *, noise: float = 0.0) -> Stack:
    """Sample a heart as the scanner does: centre slice of each block of five, moved by bilinear interpolation.

    Args:
        mask: (128, 128, 60) bool, 1 mm pixels.
        rng: source of the motion (and of the noise).
        law: how far slices move.
        noise: rms in mm by which the contour of each slice is jittered (correlated over 4 mm, 1.4 mm at most).

    Returns:
        The stack; pixels that come from outside the field of view are background.
    """
    clean = np.ascontiguousarray(mask[:, :, UPSAMPLING // 2 :: UPSAMPLING])
    shifts = law.draw(rng, clean.shape[2])
    moved = np.zeros_like(clean)
    for s in np.flatnonzero(wall_slices(clean)):
        soft = _translate(clean[:, :, s].astype(np.float32), shifts[s])
        moved[:, :, s] = (_jitter(soft, noise, rng) if noise > 0 else soft) >= 0.5
    shifts[~wall_slices(moved)] = 0.0
    return Stack(moved, shifts.astype(np.float32), clean)


def _translate(plane: npt.NDArray[np.float32], shift: Shifts) -> npt.NDArray[np.float32]:
    """out(p) = plane(p - shift), bilinear, zero outside."""
    for axis in (0, 1):
        whole = int(np.floor(shift[axis]))
        rest = np.float32(shift[axis] - whole)
        near, far = _roll(plane, whole, axis), _roll(plane, whole + 1, axis)
        plane = (near + rest * (far - near)).astype(np.float32)
    return plane


def _roll(plane: npt.NDArray[np.float32], by: int, axis: int) -> npt.NDArray[np.float32]:
    """Move by whole pixels, zeros coming in."""
    size = plane.shape[axis]
    by = int(np.clip(by, -size, size))
    out = np.zeros_like(plane)
    into, source = slice(max(by, 0), size + min(by, 0)), slice(max(-by, 0), size - max(by, 0))
    if axis == 0:
        out[into] = plane[source]
    else:
        out[:, into] = plane[:, source]
    return out


def _jitter(plane: npt.NDArray[np.float32], rms_mm: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Move the 0.5 contour by a smooth random field: a 3-pixel ramp across the edge turns the field into distance."""
    from scipy.ndimage import uniform_filter, zoom

    ramp = 3.0
    blurred = uniform_filter(plane, int(ramp), mode="constant")
    coarse = rng.standard_normal((plane.shape[0] // 4, plane.shape[1] // 4)).astype(np.float32)
    # Linear interpolation lowers the rms to 2/3 of the coarse field's.
    fine = np.asarray(zoom(coarse, 4, order=1, grid_mode=True, mode="nearest")) * (1.5 * rms_mm / ramp)
    # Below one half, so that nothing appears or vanishes away from the contour.
    return np.asarray(blurred + np.clip(fine, -0.45, 0.45), np.float32)
