"""One subject of the paper's own data set: own simulations of its mask, and the two stacks given with it.

The given stacks are planes 5k of the clean mask, where everything here takes the centre planes 5k + 2 of each block:
the truth is moved along z by that phase. Truth and input both have their pool centred, as in the cohort. The first of
the given slices lies in the very plane in which the clean mask ends, where stacks usually leave half a step of wall
beyond it: what of a reconstruction lies there counts as wrong, and Dice is told without these planes, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s.baselines.method import GRID_TO_MM, Method, Prediction, from_mask
from m2s.data.content import content_mark
from m2s.data.sdg import voxelise
from m2s.data.simulate import draw_rng, simulate_stack
from m2s.evaluate.acdc import read_stack
from m2s.evaluate.laws import motion_law
from m2s.evaluate.methods import spacing_of
from m2s.evaluate.scores import Row, Truth, score, score_shifts
from m2s.metrics import dice
from m2s_runtime.edge_distance import edge_distance
from m2s_runtime.errors import CaseError, NoInputs, UsageProblem
from m2s_runtime.grid import CENTRE, GRID, NOMINAL_STEP, PADDING, PLANES, SLICES, SPACING, UPSAMPLING
from m2s_runtime.placement import canonicalise
from m2s_runtime.slices import pool_centre, wall_slices
from m2s_runtime.surface import Mesh, extract_surface

BoolArray = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

SUBJECT: Final = "1081"
TRUTH: Final = "HR_flip_clean"
WALL: Final = "myo=2"
PUBLISHED: Final = "published MCSR-ETE"
SMOOTHING_MM: Final = 1.0
"""Of the signed distance before the true surface is drawn, or its voxel steps would count as error."""


@dataclass(frozen=True)
class Seated:
    """The truth where the canonical grid expects it."""

    mask: BoolArray
    """(128, 128, 60)."""
    surface: Mesh
    """mm in the grid's frame; `mask` are the voxels whose centres it encloses."""
    offset: Floats
    """(x, y, z) mm that it moved."""


def seat(mask: BoolArray, phase: int) -> Seated:
    """Move a heart so that its acquired slices and its pool sit as `canonicalise` puts them.

    What moves is the smooth surface: a mask cannot move by a fraction of a voxel.

    Args:
        mask: (128, 128, 60), base at index 0, 1x1x2 mm.
        phase: planes phase, phase + 5, ... are the acquired ones.

    Raises:
        UsageProblem: if wall would leave the grid.
    """
    held = np.flatnonzero(wall_slices(mask[:, :, phase::UPSAMPLING]))
    roll = UPSAMPLING * int((SLICES - len(held)) // 2 - held[0]) + UPSAMPLING // 2 - phase
    planes = np.flatnonzero(wall_slices(mask)) + roll
    if planes.min() < 0 or planes.max() >= PLANES:
        raise UsageProblem(f"the wall comes to lie in planes {planes.min()} to {planes.max()}, outside the grid")
    surface, offset = smooth_surface(mask), np.array([0.0, 0.0, roll * SPACING[2]])
    # Once more, because the voxels that switch move the centroid by a little.
    for _ in range(2):
        offset[:2] += CENTRE - pool_middle(enclosed(surface, offset))
    return Seated(enclosed(surface, offset), Mesh(surface.vertices + offset, surface.faces), offset)


def enclosed(surface: Mesh, offset: Floats) -> BoolArray:
    """(128, 128, 60) voxels within a surface of the grid's frame that moves by `offset` mm."""
    inside = voxelise(surface.vertices + offset, surface.faces, GRID, SPACING)
    return inside[:, :, PADDING : PADDING + PLANES]


def pool_middle(mask: BoolArray) -> Floats:
    """`pool_centre` of the centre planes of a (128, 128, 60) mask."""
    return pool_centre(mask[:, :, UPSAMPLING // 2 :: UPSAMPLING])


def smooth_surface(mask: BoolArray) -> Mesh:
    """Surface of a (128, 128, 60) mask by marching cubes of its smoothed signed distance, in the grid's frame."""
    padded = np.pad(mask, ((0, 0), (0, 0), (PADDING, PADDING)))
    smooth = ndimage.gaussian_filter(
        edge_distance(padded, SPACING), [SMOOTHING_MM / s for s in SPACING], mode="nearest"
    )
    return extract_surface(np.asarray(smooth, np.float32), GRID_TO_MM)


def recentred_dice(level: npt.NDArray[np.float32], mask: BoolArray, truth: Truth) -> float:
    """Dice once the prediction's own pool is centred too: what is left is error of shape."""
    centre = pool_middle(mask)
    by = (*(CENTRE - centre), 0.0)
    moved = ndimage.shift(level.astype(np.float64), by, order=1, mode="nearest")
    return dice(np.asarray(moved[:, :, PADDING : PADDING + PLANES] < 0), truth.mask)


@dataclass(frozen=True)
class OwnSimulation:
    """One stack simulated from the subject's mask, as a unit of work."""

    folder: Path
    draw: int
    seed: int = 0
    law: str = "paper"

    @property
    def name(self) -> str:
        """What it is."""
        return f"{SUBJECT}, {self.law}, draw {self.draw}, {content_mark(_path(self.folder, TRUTH))}"

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """One row a method, `setting` "simulated".

        Raises:
            NoInputs: if the file of the subject is missing.
            CaseError: if it cannot be read.
        """
        seated, truth = _truth(self.folder, UPSAMPLING // 2)
        law = motion_law(self.law, seated.mask)
        stack = simulate_stack(seated.mask, draw_rng(SUBJECT, self.draw, self.seed), law)
        extra: Row = {"setting": "simulated", "draw": self.draw, "law": self.law}
        for row, prediction in _score_all(methods, stack.slices, NOMINAL_STEP, truth):
            shifts = score_shifts(prediction.shifts, stack.shifts, stack.slices) if prediction else {}
            yield row | extra | shifts


@dataclass(frozen=True)
class GivenStack:
    """One of the two stacks that came with the subject, as a unit of work."""

    folder: Path
    number: int

    @property
    def name(self) -> str:
        """What it is."""
        files = (_path(self.folder, name) for name in (TRUTH, f"sim_motion_{self.number}"))
        return f"{SUBJECT}, given {self.number}, {content_mark(*files)}"

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """One row a method, `setting` "given 1" or "given 2", and one for the published prediction.

        Raises:
            NoInputs: if a file of the subject is missing.
            CaseError: if one cannot be read.
        """
        seated, truth = _truth(self.folder, 0)
        stack = read_stack(_file(self.folder, f"sim_motion_{self.number}"), WALL)
        canonical = canonicalise(stack.wall, stack.affine)
        true = _true_shifts(canonical.masks, seated.mask)
        setting: Row = {"setting": f"given {self.number}", "draw": 0}
        for row, prediction in _score_all(methods, canonical.masks, canonical.placement.step_mm, truth):
            shifts = score_shifts(prediction.shifts, true, canonical.masks) if prediction else {}
            # Where the whole stack lies is what canonicalising took away: only the relative error means anything.
            yield row | setting | {k: v for k, v in shifts.items() if k == "shift_relative"}
        published = smooth_surface(_load(self.folder, f"end2end_pred_motion_{self.number}"))
        prediction = from_mask(enclosed(published, seated.offset), NOMINAL_STEP, None)
        yield {"subject": SUBJECT, "method": PUBLISHED, **_figures(prediction, truth), **setting}


@lru_cache(maxsize=2)
def _truth(folder: Path, phase: int) -> tuple[Seated, Truth]:
    seated = seat(_load(folder, TRUTH), phase)
    return seated, Truth.of(seated.mask, seated.surface)


def _score_all(
    methods: Mapping[str, Method], slices: BoolArray, step_mm: float, truth: Truth
) -> Iterator[tuple[Row, Prediction | None]]:
    for name, method in methods.items():
        row: Row = {"subject": SUBJECT, "method": name}
        try:
            prediction = method.predict(slices, spacing_of(step_mm))
        except CaseError as error:
            yield row | {"error": f"{error.code}: {error}"}, None
            continue
        yield row | _figures(prediction, truth), prediction


def _figures(prediction: Prediction, truth: Truth) -> Row:
    found = score(prediction, truth)
    if prediction.level is None:
        return found | {"dice_recentred": None, "dice_within": None}
    held = wall_slices(truth.mask)
    within = dice(prediction.mask[:, :, held], truth.mask[:, :, held])
    return found | {"dice_recentred": recentred_dice(prediction.level, prediction.mask, truth), "dice_within": within}


def _true_shifts(moved: BoolArray, truth: BoolArray) -> npt.NDArray[np.float32]:
    """How far the wall of each slice lies from that of the truth's centre plane, (12, 2) mm, up to a common part."""
    planes = truth[:, :, UPSAMPLING // 2 :: UPSAMPLING]
    shifts = np.zeros((SLICES, 2), np.float32)
    for s in np.flatnonzero(wall_slices(moved) & wall_slices(planes)):
        shifts[s] = np.argwhere(moved[:, :, s]).mean(axis=0) - np.argwhere(planes[:, :, s]).mean(axis=0)
    return shifts


def _load(folder: Path, name: str) -> BoolArray:
    return read_stack(_file(folder, name), WALL).wall


def _path(folder: Path, name: str) -> Path:
    return folder / f"{SUBJECT}_ED_{name}.nii.gz"


def _file(folder: Path, name: str) -> Path:
    path = _path(folder, name)
    if not path.is_file():
        raise NoInputs(f"{path} is not there: give the folder with the files of subject {SUBJECT}")
    return path


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """Lines of the table: each method in each setting, draws of the simulation as the sample."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(f"{row['method']}, {row.get('setting')}", []).append({**row, "subject": row.get("draw")})
    return lines
