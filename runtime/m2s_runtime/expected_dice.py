"""The Dice that a reconstruction can be expected to have: linear in what is seen of the stack and of its answer.

No limit of a single measure tells poor reconstructions from good ones: a wall outlined too thin is no thinner than some
healthy ones, but is so for its length, width and cavity. The weights are fitted by `m2s-eval flags --fit` on
stacks that were spoilt on purpose, and lie in the manifest.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s_runtime.placement import Canonical
from m2s_runtime.slices import wall_slices

ERRORS: Final = (0.02, 0.6)
"""Least and greatest 1 - Dice that is ever expected."""
DOUBTFUL: Final = "doubtful"
"""The flag of cases of which too little is to be expected."""
UNTOLD: Final = ("few_slices", "step_out_of_range")
"""Flags of stacks unlike any that the weights were fitted on: no Dice is expected of these, and they are doubtful."""
_GREATEST: Final = 1e6

_HEIGHTS: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Where the outline is looked at, from the base (0) to the apex (1)."""
_FACTS: Final = ("gap", "open_ring", "base_unclear")
"""Flags of `Canonical` that count."""

TRAITS: Final = (
    *("length", "width", "volume", "thickness", "slenderness"),
    *(f"outer_{height:g}" for height in _HEIGHTS),
    *(f"inner_{height:g}" for height in _HEIGHTS),
    *(f"elongation_{height:g}" for height in _HEIGHTS[1:-1]),
    *("torn", "disagreement", "worst_disagreement", "pieces", "growth", *_FACTS),
)
"""Names of what is looked at, see `traits`."""


@dataclass(frozen=True)
class DiceModel:
    """log(1 - Dice) = `intercept` + sum of `weights` times `traits`, by name."""

    intercept: float
    weights: dict[str, float]

    def dice(self, found: Mapping[str, float]) -> float:
        """The Dice expected of a stack with these traits, within 1 - `ERRORS`."""
        logarithm = self.intercept + sum(weight * found[name] for name, weight in self.weights.items())
        least, most = map(math.log, ERRORS)
        return 1 - math.exp(min(max(logarithm, least), most))


def traits(canonical: Canonical, measured: Mapping[str, float], volume_ml: float) -> dict[str, float]:
    """What a `DiceModel` looks at.

    Args:
        canonical: the stack.
        measured: of `flags.measures`.
        volume_ml: of the reconstructed wall.

    Returns:
        By the names in `TRAITS`. Logarithms: `length` mm from the first slice to the last, `width` mm (radius of the
        widest outline), `volume` ml of the wall in the slices, `thickness` mm in its middle, `outer_h`
        (radius of the outline at height h over the widest), `growth` (reconstructed volume over that of the slices).
        As they are: `slenderness` (length over width), `inner_h` (radius of the cavity over that of the outline),
        `elongation_h` (long over short axis), `torn`, `disagreement`, `worst_disagreement`, `pieces`; 1 or 0
        for the flags of the stack. Radii are those of discs of the same area. How far slices were moved is left out:
        simulated slices move by more than those of patients do. So are the slice step and the number of slices, which
        simulations spoil together; where these leave the range of the training nothing is expected (`UNTOLD`).
    """
    held = np.flatnonzero(wall_slices(canonical.masks))
    step, span = canonical.placement.step_mm, float(np.ptp(held) + 1)
    heights = (held - held[0] + 0.5) / span
    walls = np.count_nonzero(canonical.masks[:, :, held], axis=(0, 1))
    pools = canonical.pool[held, 2].astype(np.float64)
    outer, inner = (np.interp(_HEIGHTS, heights, np.sqrt(a / np.pi)) for a in (walls + pools, pools))
    widest = float(np.sqrt((walls + pools).max() / np.pi))
    long = np.interp(_HEIGHTS[1:-1], heights, [_elongation(canonical.masks[:, :, s]) for s in held])
    slices_ml = measured["small_wall_ml"]
    values = (
        *np.log((span * step, widest, slices_ml, (outer - inner)[1:-1].mean())),
        span * step / widest,
        *np.log(outer / widest), *(inner / outer), *long,
        *(measured["torn_wall"], 1 - measured["slices_disagree"], 1 - measured["slice_disagrees"]),
        *(measured["pieces_dropped"], math.log(volume_ml / slices_ml)),
        *(flag in canonical.flags for flag in _FACTS),
    )  # fmt: skip
    return {name: float(value) for name, value in zip(TRAITS, values, strict=True)}


def faults(model: DiceModel) -> list[str]:
    """Why this runtime cannot use a model; empty when it can."""
    if wrong := sorted(set(model.weights) ^ set(TRAITS)):
        return [f"dice_model is of another version: {', '.join(wrong)}"]
    if max(map(abs, (model.intercept, *model.weights.values()))) > _GREATEST:
        return [f"dice_model has a weight beyond {_GREATEST:g}"]
    return []


def _elongation(plane: npt.NDArray[np.bool_]) -> float:
    """Long over short axis of the wall's second moments; a pixel counts as a square, or a line would be endless."""
    points = np.argwhere(plane)
    centred = points - points.mean(axis=0)
    short, long = np.linalg.eigvalsh(centred.T @ centred / len(points)) + 1 / 12
    return float(np.sqrt(long / short))
