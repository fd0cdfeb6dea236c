"""Whether the spread of posterior samples tells how wrong the surface is, vertex by vertex.

The factor that makes a spread a standard deviation is fitted on the selection hearts and judged on the validation
hearts. Nothing but it is fitted, and it leaves the rank correlation alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from m2s.baselines.method import Method
from m2s.evaluate.coarse import shared
from m2s.evaluate.hearts import Cohort
from m2s.evaluate.scores import Row, Truth
from m2s.evaluate.shift_error import deviations
from m2s.metrics import spearman
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import SPACING
from m2s_runtime.result import Reconstruction
from m2s_runtime.slices import wall_slices

Floats = npt.NDArray[np.float64]

SAMPLES: Final = 8
"""Posterior samples unless the user says otherwise."""

BAND: Final = 0.9
_NORMAL: Final = float(stats.norm.ppf((1 + BAND) / 2))
"""Standard deviations either side that hold `BAND` of a normal distribution."""

_MEASURED: Final = 2000
_KEPT: Final = 300
"""Vertices a stack of which the distance is measured, and which are kept for what is pooled over stacks."""


@dataclass(frozen=True)
class SpreadStack:
    """One stack of one heart, as a unit of work for the method `ours` with several samples."""

    cohort: Cohort
    row: int
    draw: int
    seed: int = 0
    law: str = "paper"

    @property
    def name(self) -> str:
        """What it is."""
        return f"spread, {self.cohort.name} {self.row}, {self.law}, draw {self.draw}, {self.cohort.mark}"

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """One row with the rank correlation, and pairs of spread and error (mm) in the column `pairs`.

        `shift_errors` holds x and y of what the shifts are wrong by, mm, slice by slice.

        Raises:
            UsageProblem: the runtime drew a single sample.
        """
        found = shared(methods, self.cohort, self.row, self.draw, self.seed, self.law)
        spread, error = pairs(found.result, found.subject.truth, found.pipeline.manifest.spread_scale)
        kept = _spelt(np.stack([spread, error], axis=1)[:_KEPT])
        yield {
            "subject": found.subject.heart.id,
            "draw": self.draw,
            "method": "ours",
            "law": self.law,
            "cohort": self.cohort.name,
            "spearman": spearman(spread, error),
            "error_mm": float(error.mean()),
            "pairs": kept,
            "shift_errors": _spelt((found.result.shifts - found.stack.shifts)[wall_slices(found.stack.slices)]),
        }


def pairs(result: Reconstruction, truth: Truth, scale: float = 1.0) -> tuple[Floats, Floats]:
    """Spread and distance to the true surface at vertices drawn at random.

    Args:
        result: with a spread, of a stack in the grid's own frame.
        truth: in that frame.
        scale: of the bundle, already in the spread; it is taken off.

    Returns:
        Spread (N,) mm as sampled, and error (N,) mm.

    Raises:
        UsageProblem: there is no spread.
    """
    if result.spread is None:
        raise UsageProblem("the spread needs two samples at least: give --samples")
    count = len(result.mesh.vertices)
    chosen = np.random.default_rng(0).permutation(count)[:_MEASURED]
    to_grid = np.linalg.inv(result.affine)
    voxels = result.mesh.vertices[chosen] @ to_grid[:3, :3].T + to_grid[:3, 3]
    error = truth.surface.index.distance(voxels * SPACING)
    return result.spread[chosen].astype(np.float64) / scale, error


def fitted_scale(spread: Floats, error: Floats) -> float:
    """The factor with which `BAND` of the errors lie within the band.

    Raises:
        UsageProblem: there is nothing to fit on, or spreads that are zero.
    """
    if not len(spread) or np.count_nonzero(spread) < BAND * len(spread):
        raise UsageProblem("no spread to fit a scale on: the samples do not differ, or every stack failed")
    ratio = error / (_NORMAL * np.maximum(spread, 1e-9))
    return float(np.quantile(ratio, BAND))


def coverage(spread: Floats, error: Floats, scale: float) -> float:
    """Share of the errors within the band of a scaled spread."""
    return float(np.mean(error <= _NORMAL * scale * spread))


def table(rows: Sequence[Row]) -> str:
    """Markdown: correlation and coverage of both cohorts, with the scale fitted on the selection hearts below.

    Raises:
        UsageProblem: see `fitted_scale`.
    """
    fitting = [row for row in rows if row.get("cohort") == "selection"]
    scale = fitted_scale(*_pooled(fitting))
    heading = f"Spearman, pooled | Spearman in a stack | {BAND:.0%} band holds, unscaled | scaled by {scale:.3f}"
    lines = [f"| hearts | stacks | error mm | {heading} |", "|---" * 7 + "|"]
    for name, role in (("selection", "fitted on"), ("validation", "scored on")):
        mine = [row for row in rows if row.get("cohort") == name and row.get("pairs")]
        if mine:
            spread, error = _pooled(mine)
            inner = np.array([float(row["spearman"] or 0) for row in mine])
            cells = [
                f"{np.mean([float(row['error_mm'] or 0) for row in mine]):.3f}",
                f"{spearman(spread, error):.3f}",
                f"{inner.mean():.3f} ± {inner.std():.3f}",
                *(f"{100 * coverage(spread, error, s):.1f} %" for s in (1.0, scale)),
            ]
            lines.append(f"| {name} ({role}) | {len(mine)} | {' | '.join(cells)} |")
    shifts = ",".join(f"{mm:.2f}" for mm in deviations(_read(row.get("shift_errors")) for row in fitting))
    told = [f"--shift-error for the manifest: {shifts}", f"--spread-scale, once the samples have it: {scale:.3f}"]
    return "\n\n".join(["\n".join(lines), *told])


def _pooled(rows: Sequence[Row]) -> tuple[Floats, Floats]:
    values = np.concatenate([_read(row.get("pairs")) for row in rows] or [np.zeros((0, 2))])
    return values[:, 0], values[:, 1]


def _spelt(pairs: npt.NDArray[np.floating[Any]]) -> str:
    """(N, 2) numbers for a cell of the table."""
    return " ".join(f"{a:.3g}:{b:.3g}" for a, b in pairs)


def _read(cell: object) -> Floats:
    return np.array([pair.split(":") for pair in str(cell or "").split()], np.float64).reshape(-1, 2)
