"""Whether flags tell bad reconstructions from good ones, on stacks that were spoilt on purpose.

What Dice to expect is fitted on the selection hearts and judged on the validation hearts. Dice is taken after the best
in-plane translation of the whole heart: what all slices share cannot be known and is no fault.
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
from m2s.evaluate.dice_model import Fitted, columns, expected
from m2s.evaluate.hearts import Cohort, base_heart
from m2s.evaluate.networks import pipeline_behind
from m2s.evaluate.scores import Row
from m2s.evaluate.simulation import noise_key
from m2s.metrics import best_inplane_shift_dice, spearman
from m2s_runtime.errors import CaseError
from m2s_runtime.expected_dice import DOUBTFUL, UNTOLD, traits
from m2s_runtime.flags import LIMITS, measures, raised, step_flags
from m2s_runtime.grid import GRID, PADDING, PLANES, SPACING
from m2s_runtime.placement import Placement, canonicalise

BAD: Final = 0.85
GOOD: Final = 0.90
_RADIUS: Final = 3
"""mm about the translation that brings both centroids together."""

NOTES: Final = frozenset({"specks_removed"})
"""What is told of a stack and warns of nothing: not counted here, no more than what was done to its surface."""


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
        return f"flags, {self.cohort.name} {self.row}, {self.spoiler}, draw {self.draw}, {self.cohort.mark}"

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """One row with Dice, what has limits, the flags that have none, and traits; refusals in `error`."""
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
        seen = traits(canonical, found, result.mesh.volume / 1000)
        fixed = (*canonical.flags, *step_flags(canonical.placement.step_mm, pipeline.manifest.step_range_mm))
        truth = true_mask(stack, heart.faces, canonical.placement)
        predicted = np.asarray(result.sdg[:, :, PADDING : PADDING + PLANES] < 0)
        limits = json.dumps(pipeline.manifest.flag_limits)
        row |= {"dice": placed_dice(truth, predicted), "fixed": " ".join(fixed), "limits": limits}
        told = pipeline.manifest.dice_model is not None
        yield row | found | {"told": told, "expected_dice": result.expected_dice} | columns(seen)


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
    flags = (*fixed, *raised(found, limits))
    return (*flags, DOUBTFUL) if row.get("told") and set(UNTOLD) & set(flags) else flags


@dataclass(frozen=True)
class Caught:
    """How many of the bad and of the good reconstructions carry a flag."""

    bad: int
    bad_flagged: int
    good: int
    good_flagged: int

    @classmethod
    def of(cls, rows: Sequence[Row], limits: Mapping[str, float], only: str | None = None) -> "Caught":
        """Count over rows with a Dice, any flag or one alone."""
        judged = [row for row in rows if not row.get("error")]
        raised = [row_flags(row, limits) for row in judged]
        flagged = [only in flags if only else bool(flags) for flags in raised]
        done = [(float(row["dice"] or 0), flag) for row, flag in zip(judged, flagged, strict=True)]
        bad, good = [f for d, f in done if d < BAD], [f for d, f in done if d > GOOD]
        return cls(len(bad), sum(bad), len(good), sum(good))


def tellable(row: Row, limits: Mapping[str, float]) -> bool:
    """Whether a Dice is expected of a row at all."""
    return not row.get("error") and not set(UNTOLD) & set(row_flags(row, limits))


def refitted(rows: Sequence[Row], fitted: Fitted, limits: Mapping[str, float]) -> list[Row]:
    """The rows with the Dice that another model expects of them."""
    told = (expected(row, fitted.dice_model) if tellable(row, limits) else None for row in rows)
    return [row | {"told": True, "expected_dice": dice} for row, dice in zip(rows, told, strict=True)]


def report(rows: Sequence[Row], limits: Mapping[str, float]) -> str:
    """Markdown: all flags, the fitted one alone, and how well the expected Dice ranks the stacks."""
    parts = [table(rows, limits)]
    pairs = [(float(row["expected_dice"] or 0), float(row["dice"] or 0)) for row in rows if row.get("expected_dice")]
    if pairs:
        parts += [f"`{DOUBTFUL}` alone:", table(rows, limits, DOUBTFUL)]
        rank = spearman(*np.array(pairs).T)
        parts += [f"Spearman of expected and true Dice: {rank:.3f}, {len(pairs)} stacks"]
    return "\n\n".join(parts)


def table(rows: Sequence[Row], limits: Mapping[str, float], only: str | None = None) -> str:
    """Markdown: per kind of damage, how many of the bad and of the good are flagged, by any flag or by one alone."""
    kinds = list(dict.fromkeys(str(row["spoilt"]) for row in rows if row.get("spoilt")))
    lines = [
        f"| damage | stacks | refused | median Dice % | Dice < {BAD:.0%}: flagged | Dice > {GOOD:.0%}: flagged |",
        "|---" * 6 + "|",
        *(_line(kind, [row for row in rows if row.get("spoilt") == kind], limits, only) for kind in kinds),
        _line("all", rows, limits, only),
    ]
    if only:
        return "\n".join(lines)
    counts: dict[str, list[int]] = {}
    for row in rows:
        for flag in dict.fromkeys(row_flags(row, limits)):
            cell = counts.setdefault(flag, [0, 0])
            dice = float(row.get("dice") or 0)
            cell[0] += dice < BAD
            cell[1] += dice > GOOD
    lines += ["", f"| flag | raised with Dice < {BAD:.0%} | with Dice > {GOOD:.0%} |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {bad} | {good} |" for name, (bad, good) in counts.items())])


def _line(name: str, rows: Sequence[Row], limits: Mapping[str, float], only: str | None) -> str:
    done = [float(row["dice"] or 0) for row in rows if not row.get("error")]
    found = Caught.of(rows, limits, only)
    median = f"{100 * float(np.median(done)):.1f}" if done else "-"
    bad, good = _of(found.bad_flagged, found.bad), _of(found.good_flagged, found.good)
    return f"| {name} | {len(rows)} | {len(rows) - len(done)} | {median} | {bad} | {good} |"


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)" if whole else "-"
