"""Laws of motion by their names on the command line; only the first two resemble what training draws from."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from m2s.data.simulate import PAPER, Masks, MotionLaw, Normal, Shifts
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import UPSAMPLING
from m2s_runtime.slices import wall_slices

LAWS = "paper, positive, normal:SD or one-off:MM"


@dataclass(frozen=True)
class OneOff:
    """One slice lies `mm` off in a random direction, all others where they belong.

    Attributes:
        mm: how far.
        among: indices of the slices that it may be.
    """

    mm: float
    among: tuple[int, ...]

    def draw(self, rng: np.random.Generator, slices: int) -> Shifts:
        """(slices, 2) mm."""
        shifts: npt.NDArray[np.float64] = np.zeros((slices, 2))
        angle = rng.uniform(0, 2 * np.pi)
        shifts[rng.choice(self.among)] = self.mm * np.cos(angle), self.mm * np.sin(angle)
        return shifts


def motion_law(name: str, mask: Masks) -> MotionLaw:
    """The law of a name.

    Args:
        name: `paper` (|N(3.45, 1.305)| mm, random sign), `positive` (the same, no sign), `normal:SD`, `one-off:MM`.
        mask: (128, 128, 60) heart that moves: what is off must hold wall.

    Raises:
        UsageProblem: no such law.
    """
    kind, _, size = name.partition(":")
    if name in ("paper", "positive"):
        return PAPER if name == "paper" else replace(PAPER, sign="positive")
    try:
        mm = float(size)
    except ValueError:
        mm = -1.0
    if kind not in ("normal", "one-off") or not 0 <= mm < np.inf:
        raise UsageProblem(f"--law {name}: choose {LAWS}, the size in mm")
    if kind == "normal":
        return Normal(mm)
    held = np.flatnonzero(wall_slices(mask[:, :, UPSAMPLING // 2 :: UPSAMPLING]))
    return OneOff(mm, tuple(int(s) for s in held))
