"""Whether flags tell bad reconstructions from good ones, on stacks that were spoilt on purpose.

Limits are fitted on the selection hearts and judged on the validation hearts. Dice is taken after the best in-plane
translation of the whole heart: what all slices share cannot be known and is no fault.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s.baselines.method import Method
from m2s.data.heart import keyed_rng
from m2s.data.sdg import voxelise
from m2s.evaluate.degrade import SPOILERS, Spoilt
from m2s.evaluate.hearts import Cohort, base_heart
from m2s.evaluate.networks import pipeline_behind
from m2s.evaluate.scores import Row
from m2s.evaluate.simulation import noise_key
from m2s.metrics import best_inplane_shift_dice
from m2s_runtime.errors import CaseError
from m2s_runtime.flags import LIMITS, measures, raised, step_flags
from m2s_runtime.grid import GRID, PADDING, PLANES, SPACING
from m2s_runtime.placement import Placement, canonicalise

BAD: Final = 0.85
GOOD: Final = 0.90
_RADIUS: Final = 3
"""mm about the translation that brings both centroids together."""

NOTES: Final = frozenset({"specks_removed"})
"""What is told about a stack and warns of nothing: not counted here."""

FITTED: Final[Mapping[str, tuple[float, ...]]] = {
    "slices_disagree": tuple(round(0.70 + 0.01 * k, 2) for k in range(28)),
    "slice_disagrees": tuple(round(0.10 + 0.02 * k, 2) for k in range(44)),
}
"""Limits that are fitted and the values tried."""

_FALSE_ALARMS: Final = 0.08
"""Share of good stacks that may be flagged where limits are fitted; the bar is 10 % on other hearts."""


@dataclass(frozen=True)
class SpoiltStack:
    """One spoilt stack of one heart, as a unit of work for the method `ours`."""

    cohort: Cohort
    row: int
    spoiler: str
    draw: int
    seed: int = 0

    @property
    def name(self) -> str:
        """What it is."""
        return f"flags, {self.cohort.name} {self.row}, {self.spoiler}, draw {self.draw}"

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """One row with Dice, the measures that have limits, and the flags that have none; refusals in `error`."""
        heart = base_heart(self.cohort, self.row)
        stack = SPOILERS[self.spoiler](heart, keyed_rng("spoilt", self.seed, heart.id, self.spoiler, self.draw))
        row: Row = {
            "subject": heart.id,
            "draw": self.draw,
            "method": "ours",
            "cohort": self.cohort.name,
            "spoilt": self.spoiler,
        }
        pipeline = pipeline_behind(methods["ours"])
        try:
            canonical = canonicalise(stack.wall, stack.affine)
            result = pipeline.reconstruct(canonical, noise_key(heart.id, self.spoiler, self.draw, self.seed))
        except CaseError as error:
            yield row | {"error": f"{error.code}: {error}"}
            return
        found = measures(canonical, result.mesh, result.sdg, result.agreement, result.spread)
        fixed = (*canonical.flags, *step_flags(canonical.placement.step_mm, pipeline.manifest.step_range_mm))
        truth = true_mask(stack, heart.faces, canonical.placement)
        predicted = np.asarray(result.sdg[:, :, PADDING : PADDING + PLANES] < 0)
        limits = json.dumps(pipeline.manifest.flag_limits)
        yield row | {"dice": placed_dice(truth, predicted), "fixed": " ".join(fixed), "limits": limits} | found


def true_mask(stack: Spoilt, faces: npt.NDArray[np.int32], placement: Placement) -> npt.NDArray[np.bool_]:
    """The true heart where the canonical grid of a stack has it, (128, 128, 60)."""
    to_grid = np.linalg.inv(placement.affine)
    vertices = (stack.truth @ to_grid[:3, :3].T + to_grid[:3, 3]) * SPACING
    return voxelise(vertices, faces, GRID, SPACING)[:, :, PADDING : PADDING + PLANES]


def placed_dice(truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> float:
    """Dice after the in-plane translation of the true heart that serves best, whole pixels; 0 where one is empty."""
    if not truth.any() or not predicted.any():
        return 0.0
    centres = [np.argwhere(mask).mean(axis=0)[:2] for mask in (truth, predicted)]
    x, y = np.round(centres[1] - centres[0]).astype(int)
    return best_inplane_shift_dice(np.roll(truth, (x, y), (0, 1)), predicted, _RADIUS)[0]


def row_flags(row: Row, limits: Mapping[str, float]) -> tuple[str, ...]:
    """All flags of a row under some limits."""
    found = {name: float(row[name] or 0) for name in LIMITS if isinstance(row.get(name), int | float)}
    fixed = [flag for flag in str(row.get("fixed") or "").split() if flag not in NOTES]
    return (*fixed, *raised(found, limits))


@dataclass(frozen=True)
class Caught:
    """How many of the bad and of the good reconstructions carry a flag."""

    bad: int
    bad_flagged: int
    good: int
    good_flagged: int

    @classmethod
    def of(cls, rows: Sequence[Row], limits: Mapping[str, float]) -> "Caught":
        """Count over rows with a Dice."""
        done = [(float(row["dice"] or 0), bool(row_flags(row, limits))) for row in rows if not row.get("error")]
        bad, good = [f for d, f in done if d < BAD], [f for d, f in done if d > GOOD]
        return cls(len(bad), sum(bad), len(good), sum(good))


def fit_limits(rows: Sequence[Row], limits: Mapping[str, float]) -> dict[str, float]:
    """Limits that catch most of the bad stacks while at most 8 % of the good are flagged; of equals, fewest of these.

    Args:
        rows: of `SpoiltStack`.
        limits: what the bundle has; those in `FITTED` are replaced.

    Returns:
        All limits that differ from the runtime's own.
    """
    rows = [row for row in rows if not row.get("error")]
    without: dict[str, float] = dict(limits) | dict.fromkeys(FITTED, -1.0)  # below which nothing lies
    dice = np.array([float(row["dice"] or 0) for row in rows])
    others = np.array([bool(row_flags(row, without)) for row in rows], np.bool_)
    first, second = ([float(row[name] or 0) for row in rows] for name in FITTED)
    best, chosen = (-1.0, 0.0), dict(limits)
    for a in FITTED["slices_disagree"]:
        for b in FITTED["slice_disagrees"]:
            flagged = others | (np.array(first) < a) | (np.array(second) < b)
            caught, alarms = _share(flagged[dice < BAD]), _share(flagged[dice > GOOD])
            if alarms <= max(_FALSE_ALARMS, _share(others[dice > GOOD])) and (caught, -alarms) > best:
                best, chosen = (caught, -alarms), dict(limits) | {"slices_disagree": a, "slice_disagrees": b}
    return chosen


def table(rows: Sequence[Row], limits: Mapping[str, float]) -> str:
    """Markdown: per kind of damage, how many of the bad and of the good are flagged."""
    kinds = list(dict.fromkeys(str(row["spoilt"]) for row in rows if row.get("spoilt")))
    lines = [
        f"| damage | stacks | refused | median Dice % | Dice < {BAD:.0%}: flagged | Dice > {GOOD:.0%}: flagged |",
        "|---" * 6 + "|",
        *(_line(kind, [row for row in rows if row.get("spoilt") == kind], limits) for kind in kinds),
        _line("all", rows, limits),
    ]
    counts: dict[str, list[int]] = {}
    for row in rows:
        for flag in dict.fromkeys(row_flags(row, limits)):
            cell = counts.setdefault(flag, [0, 0])
            dice = float(row.get("dice") or 0)
            cell[0] += dice < BAD
            cell[1] += dice > GOOD
    lines += ["", f"| flag | raised with Dice < {BAD:.0%} | with Dice > {GOOD:.0%} |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {bad} | {good} |" for name, (bad, good) in counts.items())])


def _line(name: str, rows: Sequence[Row], limits: Mapping[str, float]) -> str:
    done = [float(row["dice"] or 0) for row in rows if not row.get("error")]
    found = Caught.of(rows, limits)
    median = f"{100 * float(np.median(done)):.1f}" if done else "-"
    bad, good = _of(found.bad_flagged, found.bad), _of(found.good_flagged, found.good)
    return f"| {name} | {len(rows)} | {len(rows) - len(done)} | {median} | {bad} | {good} |"


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)" if whole else "-"


def _share(values: npt.NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else 0.0
