"""Hearts from the CAP MESA left-ventricular shape atlas: the scores of real people, varied and cut as scans show them.

The atlas (Cardiac Atlas Project, 1991 asymptomatic MESA subjects, GPL-3.0) is not part of this project; the folder
holds `PCA_ED.mat` and `PCA_ES.mat`. Its long axis is x, the base at low x. Row i of both is the same person.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.io

from m2s.data.heart import Heart, keyed_rng, seat
from m2s.data.wall_mesh import Refinement, Sheet, at_least, closed_wall, cut, square_rim, warp
from m2s_runtime.errors import NoInputs, UsageProblem
from m2s_runtime.grid import SPACING, UPSAMPLING

Phase = Literal["ED", "ES"]
Range = tuple[float, float]
Floats = npt.NDArray[np.float64]

TRAINING_ROWS: Final = range(1300)
SELECTION_ROWS: Final = range(1300, 1400)
VALIDATION_ROWS: Final = range(1400, 1591, 3)
VALIDATION_SEED: Final = 20240

_MERIDIANS = 28
_RINGS = 28
_POINTS = 841
_REFINEMENT = (3, 2)
"""Around the axis and along it: edges below 3 mm, 0.03 mm between facets and curve."""
_LEAST_WALL_MM = 2.5


@dataclass(frozen=True)
class Augmentation:
    """How far a heart may leave its atlas shape. Ranges are uniform; a `part` is the share of hearts concerned.

    Attributes:
        jitter: standard deviation added to the scores, in standard deviations of each mode.
        blend: how far towards the same person's other phase, 0 to 1; and its part.
        scale: global scale.
        stretch: extra scale along the long axis.
        dilation: radial scale of the cavity at unchanged wall thickness; and its part.
        thickness: factor on the wall; and its part.
        asymmetry: how much thicker one side's wall is than the mean, as a fraction.
        warp_mm: rms of the smooth displacement per component; and its part.
        tilt_deg: standard deviation of the angle between long axis and z.
        base: shares of bases cut flat, cut tilted, and left natural.
        base_tilt_deg: angle of the tilted cuts.
        base_cut_mm: height of the cut above the first plane that crosses the whole rim.
        roll: share of hearts that sit one slice off the middle of the stack.
    """

    scale: Range
    thickness: Range
    thickness_part: float
    warp_mm: Range
    warp_part: float
    tilt_deg: float
    base: tuple[float, float, float] = (0.5, 0.25, 0.25)
    base_tilt_deg: Range = (2.0, 8.0)
    base_cut_mm: Range = (0.5, 6.0)
    jitter: float = 0.0
    blend: Range = (0.0, 0.0)
    blend_part: float = 0.0
    stretch: Range = (1.0, 1.0)
    dilation: Range = (1.0, 1.0)
    dilation_part: float = 0.0
    asymmetry: Range = (0.0, 0.0)
    roll: float = 0.0


VALIDATION: Final = Augmentation(
    scale=(0.85, 1.3),
    thickness=(0.7, 1.25),
    thickness_part=0.5,
    warp_mm=(0.8, 1.2),
    warp_part=0.6,
    tilt_deg=3.0,
)
"""The headline cohort: healthy shapes, no widening towards pathology."""

TRAINING: Final = Augmentation(
    scale=(0.8, 1.35),
    thickness=(0.6, 1.5),
    thickness_part=0.75,
    warp_mm=(0.0, 3.0),
    warp_part=0.85,
    tilt_deg=4.0,
    base_tilt_deg=(0.5, 8.0),
    base_cut_mm=(-6.0, 14.0),
    jitter=0.25,
    blend=(0.0, 0.6),
    blend_part=0.3,
    stretch=(0.92, 1.08),
    dilation=(1.05, 1.5),
    dilation_part=0.3,
    asymmetry=(0.0, 0.35),
    roll=0.15,
)
"""Wide enough for patients: dilated, thick, thin and lop-sided walls, ragged bases."""


def atlas_files(folder: Path) -> dict[Phase, Path]:
    """The file of each phase."""
    return {phase: folder / f"PCA_{phase}.mat" for phase in get_args(Phase)}


class Atlas:
    """The shape model: means, modes and scores of both phases on one grid of meridians and rings."""

    def __init__(self, folder: str | Path) -> None:
        """Read both phases.

        Raises:
            NoInputs: the folder lacks a file of the atlas.
            UsageProblem: a file does not hold the atlas.
        """
        models = {phase: _read(file, file.stem) for phase, file in atlas_files(Path(folder)).items()}
        self._mean = {phase: np.asarray(m["MEAN"], np.float64).ravel() for phase, m in models.items()}
        self._modes = {phase: np.asarray(m["COEFF"], np.float64) for phase, m in models.items()}
        self._scores = {phase: np.asarray(m["SCORE"], np.float64) for phase, m in models.items()}
        self._sd = {phase: np.sqrt(np.asarray(m["LATENT"], np.float64).ravel()) for phase, m in models.items()}
        self._apex, self._grid = _meridians(self._mean["ED"].reshape(-1, 3)[:_POINTS])

    def __len__(self) -> int:
        """Number of people."""
        return len(self._scores["ED"])

    def sheets(self, row: int, phase: Phase, jitter: Floats | None = None) -> tuple[Sheet, Sheet]:
        """Endo- and epicardium of one person, mm, long axis along z with the base at low z.

        Args:
            row: person.
            phase: end-diastole or end-systole.
            jitter: (10,) added to the scores, in standard deviations of each mode.
        """
        score = self._scores[phase][row] + (0.0 if jitter is None else jitter * self._sd[phase])
        points = (self._mean[phase] + self._modes[phase] @ score).reshape(-1, 3)[:, [1, 2, 0]]
        endo, epi = points[:_POINTS], points[_POINTS:]
        return Sheet(endo[self._grid], endo[self._apex]), Sheet(epi[self._grid], epi[self._apex])


class AtlasCohort:
    """Hearts of some of the atlas's people; each is a pure function of (seed, row, phase, draw, plane distance)."""

    def __init__(self, folder: str | Path, rows: Sequence[int], seed: int, *, augment: Augmentation) -> None:
        self.rows = tuple(rows)
        self._atlas = _load(str(folder))
        self._seed = seed
        self._augment = augment

    def heart(self, row: int, phase: Phase, draw: int = 0, plane_mm: float = SPACING[2]) -> Heart:
        """One heart of the cohort.

        Args:
            row: person, one of `rows`.
            phase: end-diastole or end-systole.
            draw: number of the variation.
            plane_mm: distance between planes, a fifth of the slice step; the shape itself does not depend on it,
                but a heart too long for 60 planes is shrunk (`fitting_plane` avoids that).

        Raises:
            UsageProblem: `row` belongs to another part of the split.
        """
        vertices, faces, rng = self._shape(row, phase, draw)
        roll = int(rng.choice((-1, 1))) if rng.uniform() < self._augment.roll else 0
        return seat(f"mesa-{row:04d}-{phase}-{draw}-{plane_mm:g}", vertices, faces, rng, plane_mm=plane_mm, roll=roll)

    def fitting_plane(self, row: int, phase: Phase, draw: int, least_mm: float, most_mm: float) -> float:
        """A plane distance in mm, uniform between those bounds and never so small that this heart would be shrunk."""
        vertices, _, _ = self._shape(row, phase, draw)
        least = max(least_mm, float(np.ptp(vertices[:, 2])) / (11 * UPSAMPLING))
        return float(keyed_rng("plane", self._seed, row, phase, draw).uniform(min(least, most_mm), most_mm))

    def _shape(self, row: int, phase: Phase, draw: int) -> tuple[Floats, npt.NDArray[np.int32], np.random.Generator]:
        if row not in self.rows:
            raise UsageProblem(f"atlas row {row} is not in this part of the split")
        rng = keyed_rng("atlas", self._seed, row, phase, draw)
        scale = rng.uniform(*self._augment.scale)
        endo, epi = self._sheets(row, phase, rng, _LEAST_WALL_MM / scale)
        refine = _refinement()
        vertices, faces = closed_wall(refine(endo), refine(epi))
        if rng.uniform() < self._augment.warp_part:
            vertices = warp(vertices, rng.uniform(*self._augment.warp_mm), rng)
        rim = self._rim()
        vertices = vertices * (scale, scale, scale * rng.uniform(*self._augment.stretch))
        vertices = vertices @ _tilt(rng.normal(0, self._augment.tilt_deg), rng.uniform(0, 360)).T
        vertices = vertices @ _turn(rng.uniform(0, 360)).T
        if rng.uniform() < 0.5:
            vertices, faces = vertices * (-1, 1, 1), faces[:, ::-1]
        vertices, faces = _cut_base(vertices, faces, rim, self._augment, rng)
        return vertices, faces, rng

    def _rim(self) -> npt.NDArray[np.intp]:
        """Numbers of the rim's vertices, both sheets."""
        meridians, rings = _MERIDIANS * _REFINEMENT[0], _RINGS * _REFINEMENT[1]
        rim = np.arange(meridians) * rings + rings - 1
        return np.concatenate([rim, rim + meridians * rings + 1])

    def _sheets(self, row: int, phase: Phase, rng: np.random.Generator, least_mm: float) -> tuple[Sheet, Sheet]:
        """The person's sheets, varied before they are refined."""
        a = self._augment
        other: Phase = "ES" if phase == "ED" else "ED"
        jitter = a.jitter * rng.standard_normal(10)
        endo, epi = self._atlas.sheets(row, phase, jitter)
        if rng.uniform() < a.blend_part:
            part = rng.uniform(*a.blend)
            endo, epi = (
                _mix(s, o, part) for s, o in zip((endo, epi), self._atlas.sheets(row, other, jitter), strict=True)
            )
        epi = square_rim(endo, epi)
        wall = Sheet(epi.points - endo.points, epi.apex - endo.apex)
        if rng.uniform() < a.dilation_part:
            endo = _dilated(endo, rng.uniform(*a.dilation))
        thicker = rng.uniform(*a.thickness) if rng.uniform() < a.thickness_part else 1.0
        around = 2 * np.pi * np.arange(_MERIDIANS) / _MERIDIANS + rng.uniform(0, 2 * np.pi)
        factor = thicker * (1 + rng.uniform(*a.asymmetry) * np.cos(around))[:, None, None]
        # The asymmetry fades towards the apex, where all meridians meet.
        fade = np.minimum(np.arange(1, _RINGS + 1) / 8, 1.0)[None, :, None]
        factor = thicker + (factor - thicker) * fade
        epi = Sheet(endo.points + factor * wall.points, endo.apex + thicker * wall.apex)
        return endo, at_least(endo, epi, least_mm)


def validation_hearts(folder: str | Path) -> Iterator[Heart]:
    """The 64 hearts of the headline cohort: end-diastole for even rows, end-systole for odd ones."""
    cohort = AtlasCohort(folder, VALIDATION_ROWS, VALIDATION_SEED, augment=VALIDATION)
    for row in cohort.rows:
        yield cohort.heart(row, "ES" if row % 2 else "ED")


def recorded_validation() -> dict[str, str]:
    """Id and `Heart.digest` of the hearts of the headline cohort, as committed."""
    return json.loads(Path(__file__).with_name("validation_cohort.json").read_text())


@cache
def _load(folder: str) -> Atlas:
    """One copy for all cohorts: reading takes as long as making a heart."""
    return Atlas(folder)


@cache
def _refinement() -> Refinement:
    return Refinement(_MERIDIANS, _RINGS, _REFINEMENT)


def _read(path: Path, name: str) -> dict[str, npt.NDArray[np.float64]]:
    """The MATLAB struct of one phase."""
    if not path.is_file():
        raise NoInputs(f"{path}: the shape atlas is not there; give the folder that holds PCA_ED.mat and PCA_ES.mat")
    try:
        struct = scipy.io.loadmat(path)[name][0, 0]
        fields = {field: struct[field] for field in ("MEAN", "COEFF", "SCORE", "LATENT")}
    except (ValueError, KeyError, TypeError, IndexError, NotImplementedError) as error:
        raise UsageProblem(f"{path}: not the CAP MESA atlas ({error}); download the file again") from error
    if fields["MEAN"].size != 2 * 3 * _POINTS or fields["COEFF"].shape != (2 * 3 * _POINTS, fields["LATENT"].size):
        raise UsageProblem(f"{path}: the atlas holds {fields['MEAN'].size} coordinates instead of {6 * _POINTS}")
    return fields


def _meridians(endo: Floats) -> tuple[int, npt.NDArray[np.intp]]:
    """Index of the apex, and the (28, 28) grid of the other points: meridian, ring from the apex.

    The file orders points by finite-element patch, with seam and apex repeated. In the mean shape every meridian lies
    at one angle about the long axis x, and on each the polar angle seen from within the cavity grows from the apex.
    """
    radius = np.hypot(endo[:, 1], endo[:, 2])
    coincident = ((endo[:, None] - endo[None]) ** 2).sum(-1) < 0.05**2
    first = np.unique(coincident.argmax(axis=1))
    body = first[radius[first] > 1]
    meridian = np.round(np.arctan2(endo[body, 2], endo[body, 1]) * _MERIDIANS / (2 * np.pi)).astype(int) % _MERIDIANS
    polar = np.arctan2(radius[body], endo[body, 0] - 10)
    order = np.lexsort((polar, meridian))
    return int(first[radius[first] <= 1][0]), body[order].reshape(_MERIDIANS, _RINGS)


def _mix(one: Sheet, other: Sheet, part: float) -> Sheet:
    return Sheet(one.points + part * (other.points - one.points), one.apex + part * (other.apex - one.apex))


def _dilated(endo: Sheet, factor: float) -> Sheet:
    """Widen about the axis through the mean of each ring; the apex stays."""
    middle = endo.points.mean(axis=0, keepdims=True)
    return Sheet(middle + (endo.points - middle) * (factor, factor, 1.0), endo.apex)


def _turn(degrees: float) -> Floats:
    """Rotation about z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _tilt(degrees: float, towards: float) -> Floats:
    """Rotation that tilts z by `degrees` towards an in-plane direction."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = _turn(towards)
    return turn @ np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]]) @ turn.T


def _cut_base(
    vertices: Floats, faces: npt.NDArray[np.int32], rim: npt.NDArray[np.intp], a: Augmentation, rng: np.random.Generator
) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Cut the base flat, tilted, or leave it."""
    kind = rng.choice(3, p=a.base)
    height, angle, towards = rng.uniform(*a.base_cut_mm), rng.uniform(*a.base_tilt_deg), rng.uniform(0, 360)
    if kind == 2:
        return vertices, faces
    normal = _tilt(angle if kind == 1 else 0.0, towards) @ (0.0, 0.0, 1.0)
    return cut(vertices, faces, normal, float((vertices[rim] @ normal).max()) + height)
