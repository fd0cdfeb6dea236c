"""The hearts that simulations are made of, and the same hearts cut at other slice steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import numpy as np

from m2s.data.atlas import (
    SELECTION_ROWS,
    TRAINING,
    VALIDATION,
    VALIDATION_ROWS,
    VALIDATION_SEED,
    AtlasCohort,
    Phase,
    atlas_files,
)
from m2s.data.content import content_mark
from m2s.data.heart import Heart, keyed_rng, seat
from m2s.data.sdg import voxelise
from m2s.evaluate.scores import Truth
from m2s_runtime.grid import GRID, NOMINAL_STEP, PADDING, PLANES, SPACING, UPSAMPLING
from m2s_runtime.surface import Mesh

CohortName = Literal["validation", "wide", "selection", "wide-selection"]

WIDE_SEED: Final = 20241
SELECTION_SEED: Final = 20242
WIDE_SELECTION_SEED: Final = 20243
_SEEDS: Final[dict[CohortName, int]] = {
    "validation": VALIDATION_SEED,
    "wide": WIDE_SEED,
    "selection": SELECTION_SEED,
    "wide-selection": WIDE_SELECTION_SEED,
}
_LONGEST: Final = PLANES - 2
"""Longest wall in planes that `seat` takes as it is."""


@dataclass(frozen=True)
class Cohort:
    """People of the atlas, varied in one way.

    `validation` is the headline cohort, `wide` the same people varied as in training (they stand in for patients),
    `selection` are other people varied as in `validation`, `wide-selection` the same people varied as in training: what
    is fitted, is fitted on them.
    """

    atlas: Path
    name: CohortName = "validation"

    @property
    def mark(self) -> str:
        """Of the atlas's files, so that rows which another atlas gave are never taken for this one's."""
        return content_mark(*atlas_files(self.atlas).values())

    @property
    def rows(self) -> Sequence[int]:
        """Their rows in the atlas."""
        return SELECTION_ROWS if self.name in ("selection", "wide-selection") else VALIDATION_ROWS

    def heart(self, row: int) -> Heart:
        """One heart, end-diastolic for even rows and end-systolic for odd ones, in planes of 2 mm.

        Raises:
            NoInputs: the folder lacks a file of the atlas.
            UsageProblem: a file does not hold the atlas, or the row is another cohort's.
        """
        augment = TRAINING if self.name in ("wide", "wide-selection") else VALIDATION
        phase: Phase = "ES" if row % 2 else "ED"
        return AtlasCohort(self.atlas, self.rows, _SEEDS[self.name], augment=augment).heart(row, phase)


def thinning(heart: Heart, step_mm: float) -> int:
    """The smallest k for which every k-th of the slices acquired every `step_mm` still hold the whole wall."""
    length = float(np.ptp(heart.vertices[:, 2]))
    return int(np.ceil(length * UPSAMPLING / (_LONGEST * step_mm) - 1e-9))


def at_step(heart: Heart, step_mm: float) -> Heart:
    """The same surface cut at another slice step, its slices in the middle of the twelve.

    Args:
        heart: whose `thinning` at this step is 1, or it would be shrunk.
        step_mm: distance between slices; at that of the heart nothing changes.
    """
    plane_mm = step_mm / UPSAMPLING
    if plane_mm == heart.plane_mm:
        return heart
    name = f"{heart.id}-at-{step_mm:g}"
    return seat(name, heart.vertices, heart.faces, keyed_rng("step", name), plane_mm=plane_mm)


def heart_truth(heart: Heart) -> Truth:
    """A heart as the truth, in the grid's frame: figures are counted on planes 2 mm apart, whatever the slice step."""
    mask = heart.mask
    if heart.plane_mm != SPACING[2]:
        mask = voxelise(heart.grid_vertices, heart.faces, GRID, SPACING)[:, :, PADDING : PADDING + PLANES]
    return Truth.of(mask, Mesh(heart.grid_vertices, heart.faces))


@dataclass(frozen=True)
class Subject:
    """A heart with its truth, and what it is called whatever the slice step."""

    id: str
    heart: Heart
    truth: Truth


@lru_cache(maxsize=2)
def base_heart(cohort: Cohort, row: int) -> Heart:
    """`Cohort.heart`, the last ones remembered."""
    return cohort.heart(row)


@lru_cache(maxsize=1)
def subject(cohort: Cohort, row: int, step_mm: float = NOMINAL_STEP) -> Subject:
    """A heart with its truth at a slice step that it can be cut at (`cuttable`), the last one remembered."""
    base = base_heart(cohort, row)
    heart = at_step(base, step_mm)
    return Subject(base.id, heart, heart_truth(heart))


def cuttable(cohort: Cohort, row: int, step_mm: float) -> bool:
    """Whether twelve slices a step apart hold the whole heart, so that none has to be left out."""
    return step_mm == NOMINAL_STEP or thinning(base_heart(cohort, row), step_mm) <= 1
