"""The clinical numbers of one reconstruction; every definition, with its unit, is in docs/measurements.md."""

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from m2s_runtime.aha import SEGMENTS, Segments, segment_means, segments_of
from m2s_runtime.cavity import Cavity, find_cavity
from m2s_runtime.grid import SPACING
from m2s_runtime.septum import find_septum
from m2s_runtime.slices import wall_slices
from m2s_runtime.thickness import Thickness, wall_thickness

if TYPE_CHECKING:
    from m2s_runtime.placement import Canonical
    from m2s_runtime.result import Reconstruction
    from m2s_runtime.shifts_file import Origin

MEASUREMENTS: Final = "_measurements.json"
"""How the names of these files end."""

GRAMS_PER_ML: Final = 1.05
"""Density of myocardium."""

OPEN_MM: Final = 10.0
"""A wall that is not closed all round this far below the base plane bounds no cavity there."""

CUT_OFF: Final = 1 / 3
"""A cavity whose last plane is this large, compared to its largest, does not taper to an end: it is cut off."""

_CAPPED: Final = "apex_closed"


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """None where a number is withheld or does not apply; `withheld` says why.

    Attributes:
        volume_ml: volume of the wall.
        mass_g: its mass.
        cavity_ml: volume of the cavity, closed at the base plane.
        length_mm: from the middle of the base plane to the farthest point of the wall.
        thickness_mean_mm: wall thickness, mean over the area of both of its surfaces.
        thickness_max_mm: its 99th percentile.
        segments_mm: mean wall thickness of the AHA segments 1 to 17.
        mean_shift_mm: mean |component| of the slices' shifts, without what they have in common.
        max_shift_mm: length of the longest of them.
        shift_right_mm: mean |move| of the slices along the scanner's axis from left to right.
        shift_anterior_mm: the same from posterior to anterior.
        shift_superior_mm: the same from inferior to superior.
        agreement_mean: Dice of re-aligned slice and reconstruction in its plane, mean over the slices with wall.
        agreement_least: the same of the worst slice.
        volume_sd_ml: standard deviation of `volume_ml` over the posterior samples.
        mass_sd_g: the same of `mass_g`.
        withheld: name of a field, or of a segment (`segments_mm.17`), to the reason why it is None.
    """

    volume_ml: float
    mass_g: float
    cavity_ml: float | None = None
    length_mm: float | None = None
    thickness_mean_mm: float | None = None
    thickness_max_mm: float | None = None
    segments_mm: tuple[float | None, ...] | None = None
    mean_shift_mm: float
    max_shift_mm: float
    shift_right_mm: float
    shift_anterior_mm: float
    shift_superior_mm: float
    agreement_mean: float
    agreement_least: float
    volume_sd_ml: float | None = None
    mass_sd_g: float | None = None
    withheld: dict[str, str] = field(default_factory=dict[str, str])

    def columns(self) -> dict[str, Any]:
        """The fields as `cases.csv` has them: lists, and the names of what is withheld, separated by blanks."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        segments = self.segments_mm
        found["segments_mm"] = segments and " ".join("NA" if mm is None else f"{mm:.2f}" for mm in segments)
        found["withheld"] = " ".join(self.withheld) or None
        return found


@dataclass(frozen=True)
class MeasurementsFile:
    """The document `<case>_measurements.json`.

    Attributes:
        schema: of this format.
        source: the label map, relative to the folder that was given, or the name that stands for it.
        source_sha256: of that file.
        frame: of a cine, from 0; None for a single volume.
        measurements: the numbers.
    """

    schema: Literal[1]
    source: str
    source_sha256: str
    frame: int | None
    measurements: Measurements


@dataclass(frozen=True, eq=False)
class Measured:
    """What was found of one reconstruction.

    Attributes:
        measurements: the numbers.
        wall_thickness: (V,) float32 mm at each vertex of the mesh, NaN at the rim; None where withheld.
        regions: (V,) uint8, AHA segment 1 to 17 of each vertex, 0 above the base plane; None where withheld.
    """

    measurements: Measurements
    wall_thickness: npt.NDArray[np.float32] | None
    regions: Segments | None

    def document(self, origin: "Origin") -> MeasurementsFile:
        """The numbers, to four decimals, with their origin."""
        found = {f.name: _rounded(getattr(self.measurements, f.name)) for f in fields(self.measurements)}
        return MeasurementsFile(1, origin.source, origin.sha256, origin.frame, Measurements(**found))


def measure(canonical: "Canonical", reconstruction: "Reconstruction") -> Measured:
    """Measure one reconstruction.

    Args:
        canonical: the stack it was made from.
        reconstruction: what became of it.
    """
    found = _of_shifts(canonical, reconstruction)
    to_grid = np.linalg.inv(reconstruction.affine)
    vertices = reconstruction.mesh.vertices @ to_grid[:3, :3].T + to_grid[:3, 3]
    cavity = find_cavity(reconstruction.sdg, vertices)
    if cavity is None:
        names = ("cavity_ml", "length_mm", "thickness_mean_mm", "thickness_max_mm", "segments_mm")
        reasons = dict.fromkeys(names, "the wall closes in no plane, so it has no inside")
        return Measured(replace(found, withheld=reasons), None, None)
    capped = _CAPPED in reconstruction.flags
    found = _with_cavity(found, cavity, vertices)
    thickness = wall_thickness(reconstruction.sdg, vertices, reconstruction.mesh.faces, cavity)
    if thickness is None:
        names = ("thickness_mean_mm", "thickness_max_mm", "segments_mm")
        return Measured(_without(found, names, "the wall is closed in too few planes"), None, None)
    found = replace(found, thickness_mean_mm=thickness.mean, thickness_max_mm=thickness.largest)
    found, regions = _with_segments(found, canonical, cavity, thickness, vertices, capped=capped)
    return Measured(found, thickness.thickness, regions)


def _of_shifts(canonical: "Canonical", reconstruction: "Reconstruction") -> Measurements:
    """What needs no cavity."""
    held = wall_slices(canonical.masks)
    shifts = (reconstruction.shifts.astype(np.float64) - reconstruction.common_shift)[held]
    # The first two columns of the grid's affine are the in-plane axes of the source, 1 mm long.
    moves = abs(shifts @ canonical.placement.affine[:3, :2].T).mean(axis=0)
    agreement = reconstruction.agreement[held]
    volume = reconstruction.mesh.volume / 1000
    volumes = reconstruction.sample_volumes_ml
    sd = float(np.std(volumes, ddof=1)) if len(volumes) > 1 else None
    return Measurements(
        volume_ml=float(volume),
        mass_g=GRAMS_PER_ML * float(volume),
        mean_shift_mm=float(abs(shifts).mean()),
        max_shift_mm=float(np.linalg.norm(shifts, axis=1).max()),
        shift_right_mm=float(moves[0]),
        shift_anterior_mm=float(moves[1]),
        shift_superior_mm=float(moves[2]),
        agreement_mean=float(agreement.mean()),
        agreement_least=float(agreement.min()),
        volume_sd_ml=sd,
        mass_sd_g=None if sd is None else GRAMS_PER_ML * sd,
    )


def _with_cavity(found: Measurements, cavity: Cavity, vertices: npt.NDArray[np.float64]) -> Measurements:
    if cavity.open_mm > OPEN_MM:
        reason = f"the wall is not closed all round in the {cavity.open_mm:.0f} mm below the base plane"
        return _without(found, ("cavity_ml", "length_mm"), reason)
    if cavity.cut_off > CUT_OFF:
        reason = f"the cavity is cut off at the apex, where it still has {cavity.cut_off:.0%} of its largest area"
        return _without(found, ("cavity_ml", "length_mm"), reason)
    middle = np.array([*cavity.centres[cavity.first], cavity.base]) * SPACING
    below = vertices[vertices[:, 2] > cavity.base] * SPACING
    return replace(found, cavity_ml=cavity.volume_ml, length_mm=float(np.linalg.norm(below - middle, axis=1).max()))


def _with_segments(
    found: Measurements, canonical: "Canonical", cavity: Cavity, thickness: Thickness,
    vertices: npt.NDArray[np.float64], *, capped: bool,
) -> tuple[Measurements, Segments | None]:  # fmt: skip
    """Add the segments, for which the cavity must have both of its ends and the septum must be known."""
    septum = find_septum(canonical)
    reason = septum if isinstance(septum, str) else found.withheld.get("length_mm")
    if reason is not None or isinstance(septum, str):
        return _without(found, ("segments_mm",), reason or ""), None
    regions = segments_of(vertices, cavity, thickness.apex, septum)
    means = segment_means(regions, thickness)
    reasons = {f"segments_mm.{n}": "too few points" for n, mean in enumerate(means, 1) if mean is None}
    if capped:
        means = (*means[:-1], None)
        reasons[f"segments_mm.{SEGMENTS}"] = "the stack ends above the apex, which was closed 4 mm thick"
    return replace(found, segments_mm=means, withheld={**found.withheld, **reasons}), regions


def _without(found: Measurements, names: tuple[str, ...], reason: str) -> Measurements:
    return replace(found, withheld={**found.withheld, **dict.fromkeys(names, reason)})


def _rounded(value: Any) -> Any:  # noqa: ANN401 - a field of any type
    """Its numbers to four decimals, other values as they are."""
    if isinstance(value, tuple):
        return tuple(map(_rounded, cast(tuple[Any, ...], value)))
    return round(value, 4) if isinstance(value, float) else value
