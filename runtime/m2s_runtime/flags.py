"""What deserves a look: measures of a case that leave the range in which the networks can be trusted.

The one table of limits is here; a bundle's manifest may move any of them (`flag_limits`), because how far a network
can be trusted is learnt with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from m2s_runtime.grid import SPACING
from m2s_runtime.placement import Canonical
from m2s_runtime.slices import BoolArray, wall_slices
from m2s_runtime.surface import Mesh

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Limit:
    """A flag, the side of the limit on which it is raised, and the limit unless the bundle has another."""

    flag: str
    side: Literal["below", "above"]
    value: float

    def broken(self, measure: float, value: float) -> bool:
        """Whether a measure lies on the wrong side; one that is not a number (not measured) does not."""
        return measure < value if self.side == "below" else measure > value


LIMITS: Final = {
    "expected_dice": Limit("doubtful", "below", 0.85),
    "few_slices": Limit("few_slices", "below", 5),
    "torn_wall": Limit("torn_wall", "above", 0.3),
    "small_wall_ml": Limit("small_wall", "below", 45),
    "large_wall_ml": Limit("large_wall", "above", 430),
    "large_outline_mm2": Limit("large_wall", "above", 8750),
    "short_wall": Limit("short_wall", "below", 0.85),
    "slices_disagree": Limit("slices_disagree", "below", 0.85),
    "slice_disagrees": Limit("slices_disagree", "below", 0.6),
    "spread_high_mm": Limit("spread_high", "above", 1.5),
    "pieces_dropped": Limit("pieces_dropped", "below", 0.95),
}
"""By the names that `flag_limits` may use; what each limits is told at `measures`.

Sizes: 1st and 99th percentile of 658 training hearts. Torn: twice the most in 100 clinical stacks of good quality.
Short: told of 3 % of the training hearts that stand in for patients and of three of the 100 clinical stacks, many of
which end above the apex. An upper limit caught nothing that was wrong. Doubtful: bundles have their own, under which
few good reconstructions of spoilt stacks lie.
"""

_SOLID: Final = 1.25
"""RMS radius over that of a disc of the same area: 1 for a disc, 1.12 for an ellipse twice as long as wide, 1.6 for
rings and arcs of normal thickness."""


def unknown(names: Iterable[str]) -> list[str]:
    """The names that `flag_limits` must not use."""
    return sorted(set(names) - set(LIMITS))


def measures(
    canonical: Canonical, mesh: Mesh, sdg: Floats, agreement: Floats, spread: Floats | None
) -> dict[str, float]:
    """What the limits are for, by their names; all but `expected_dice`, for which see `expected_dice.traits`.

    Returns:
        `few_slices`: slices that hold wall. `torn_wall`: the share of these whose ring is open (a solid cap is not).
        `small_wall_ml`, `large_wall_ml`: volume of the wall in the slices. `large_outline_mm2`: wall and cavity in the
        slice where they are largest, for a dilated heart has a thin wall. `short_wall`: see `length_to_width`.
        `slices_disagree`: mean Dice of slices and reconstruction. `slice_disagrees`: that of the worst slice.
        `spread_high_mm`: 95th percentile of the spread over the vertices. `pieces_dropped`: share of the reconstructed
        wall that its largest piece, the surface, holds.
    """
    areas = np.count_nonzero(canonical.masks, axis=(0, 1))
    volume = float(areas.sum()) * canonical.placement.step_mm / 1000
    return {
        "few_slices": float(np.count_nonzero(areas)),
        "torn_wall": open_share(canonical.masks, canonical.pool),
        "small_wall_ml": volume,
        "large_wall_ml": volume,
        "large_outline_mm2": float((areas + canonical.pool[:, 2]).max()),
        "short_wall": length_to_width(canonical.masks, canonical.placement.step_mm),
        "slices_disagree": float(np.nanmean(agreement)),
        "slice_disagrees": float(np.nanmin(agreement)),
        "spread_high_mm": np.nan if spread is None else float(np.percentile(spread, 95)),
        "pieces_dropped": mesh.volume / (np.count_nonzero(sdg < 0) * float(np.prod(SPACING))),
    }


def raised(measured: Mapping[str, float], limits: Mapping[str, float]) -> tuple[str, ...]:
    """Flags whose limit is broken, each once, in the order of `LIMITS`; `limits` overrides its values."""
    broken = (
        limit.flag
        for name, limit in LIMITS.items()
        if limit.broken(measured.get(name, np.nan), limits.get(name, limit.value))
    )
    return tuple(dict.fromkeys(broken))


def step_flags(step_mm: float, trained: tuple[float, float]) -> tuple[str, ...]:
    """`step_out_of_range` when the slices lie closer together or farther apart than those seen in training (mm)."""
    return () if trained[0] - 1e-3 <= step_mm <= trained[1] + 1e-3 else ("step_out_of_range",)


def open_share(masks: BoolArray, pool: Floats) -> float:
    """Share of the slices with wall whose ring is open: no cavity is enclosed, and it is no solid cap either.

    Args:
        masks: (X, Y, S) bool, 1 mm pixels.
        pool: (S, 3) from `slices.pool_features`.
    """
    held = np.flatnonzero(wall_slices(masks))
    torn = [s for s in held if pool[s, 2] == 0 and not _solid(masks[:, :, s])]
    return len(torn) / max(len(held), 1)


def length_to_width(masks: BoolArray, step_mm: float) -> float:
    """Length of a stack over the width of its widest slice; small where an end is missing or the step is wrong.

    The width is the geometric mean of the sides of the rectangle around the wall: a small tear of the ring leaves it as
    it is, half a ring missing does not.

    Args:
        masks: (X, Y, S) bool, 1 mm pixels, not empty.
        step_mm: between slices.
    """
    held = np.flatnonzero(masks.any(axis=(0, 1)))
    sides = [np.ptp(np.argwhere(masks[:, :, s]), axis=0) + 1 for s in held]
    width = max(float(np.sqrt(np.prod(side, dtype=np.float64))) for side in sides)
    return float(np.ptp(held) + 1) * step_mm / width


def _solid(plane: npt.NDArray[Any]) -> bool:
    points = np.argwhere(plane)
    mean_square = float(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean())
    return mean_square <= _SOLID**2 * (len(points) / (2 * np.pi) + 1e-9)
