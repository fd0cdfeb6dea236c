"""Score one prediction against one truth, and tables of many."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s.baselines.method import GRID_TO_MM, Prediction
from m2s.curvature import mean_absolute_curvature
from m2s.data.sdg import signed_distance_grid
from m2s.metrics import SampledSurface, cd_floor, cd_of_points, cd_paper, dice, shift_error, surface_distance
from m2s_runtime.errors import Stop
from m2s_runtime.grid import SPACING
from m2s_runtime.slices import wall_slices
from m2s_runtime.surface import Mesh, extract_surface, signed_volume, topology

Row = dict[str, str | int | float | bool | None]

COLUMNS: Final[Mapping[str, tuple[str, float, int]]] = {
    "dice": ("Dice %", 100, 2),
    "dice_recentred": ("Dice % re-centred", 100, 2),
    "dice_within": ("Dice % in planes of the true wall", 100, 2),
    "cd": ("cd mm²", 1, 2),
    "cd_over_floor": ("cd over floor mm²", 1, 2),
    "cd_points": ("cd of the points mm²", 1, 2),
    "assd": ("ASSD mm", 1, 3),
    "hd95": ("HD95 mm", 1, 2),
    "roughness": ("roughness 1/m", 1000, 1),
    "roughness_error": ("roughness error 1/m", 1000, 1),
    "volume_error": ("volume error %", 100, 1),
    "shift_raw": ("shift error mm", 1, 2),
    "shift_relative": ("less the common part mm", 1, 2),
    "withheld": ("withheld slices Dice %", 100, 2),
    "left_out": ("left-out slices Dice %", 100, 2),
    "recut": ("re-cut Dice %", 100, 2),
    "volume_ratio": ("volume / slice sum", 1, 3),
    "sound": ("closed, one component, genus 0 %", 100, 1),
    "seconds": ("s", 1, 2),
    "sampling_seconds": ("sampling CPU s", 1, 3),
    "csdg_error": ("C-SDG error mm", 1, 3),
    "csdg_seconds": ("C-SDG CPU s", 1, 3),
}
"""Figures of the tables: heading, factor, digits."""


@dataclass(frozen=True)
class Truth:
    """A heart whose shape is known, prepared once for all its stacks."""

    mask: npt.NDArray[np.bool_]
    """(128, 128, 60)."""
    surface: SampledSurface
    volume: float
    """mm³ that the surface encloses."""
    roughness: float
    """Mean absolute curvature, 1/mm, drawn by marching cubes of its distances as a prediction is: no mesh is favoured
    for its triangles."""

    @classmethod
    def of(cls, mask: npt.NDArray[np.bool_], surface: Mesh) -> "Truth":
        """Prepare a truth from its mask and its surface in the grid's frame."""
        drawn = extract_surface(signed_distance_grid(surface.vertices, surface.faces), GRID_TO_MM)
        rough = mean_absolute_curvature(drawn)
        return cls(mask, SampledSurface.of(surface, "truth"), signed_volume(surface), rough)

    @property
    def covered(self) -> float:
        """Share of the volume that lies in the planes of `mask`."""
        return float(np.count_nonzero(self.mask) * np.prod(SPACING) / self.volume)


def score(prediction: Prediction, truth: Truth) -> Row:
    """All figures of shape: Dice as a fraction, lengths in mm, curvature in 1/mm, Chamfer distance in mm².

    An open surface encloses nothing: it has no Dice and no volume.
    """
    surface = SampledSurface.of(prediction.surface, "prediction")
    distance = surface_distance(surface, truth.surface)
    cd, floor = cd_paper(surface, truth.surface), cd_floor(truth.surface.area)
    rough = mean_absolute_curvature(prediction.surface)
    closed = prediction.level is not None
    points = {} if prediction.points is None else {"cd_points": cd_of_points(prediction.points, truth.surface)}
    return {
        "dice": dice(prediction.mask, truth.mask) if closed else None,
        "cd": cd,
        "cd_over_floor": cd - floor,
        "cd_floor": floor,
        **points,
        "assd": distance.assd,
        "hd95": distance.hd95,
        "roughness": rough,
        "roughness_error": abs(rough - truth.roughness),
        "volume_error": signed_volume(prediction.surface) / truth.volume - 1 if closed else None,
        **soundness(prediction.surface),
    }


def soundness(surface: Mesh) -> Row:
    """Topology of a surface; `sound` is closed, in one piece and without handles."""
    found = topology(surface)
    return {
        "closed": found.closed,
        "components": found.components,
        "genus": found.genus,
        "sound": found.closed and found.components == 1 and found.genus == 0,
    }


def score_shifts(
    predicted: npt.NDArray[np.float32] | None, true: npt.NDArray[np.float32], slices: npt.NDArray[np.bool_]
) -> Row:
    """Shift errors in mm over the wall slices; nothing where the predicted ones are not known."""
    if predicted is None:
        return {}
    error = shift_error(predicted, true, wall_slices(slices))
    return {"shift_raw": error.raw, "shift_relative": error.relative, "shift_common": error.common}


class NoFigures(Stop):
    """Not one stack gave a figure."""

    exit_code = 8


def check_usable(rows: Sequence[Row]) -> None:
    """Refuse an evaluation that measured nothing.

    Raises:
        NoFigures: no row has a figure.
    """
    if any(isinstance(row.get(c), int | float) for row in rows if not row.get("error") for c in COLUMNS):
        return
    errors = [str(row["error"]) for row in rows if row.get("error")]
    raise NoFigures(f"not one stack gave a figure{': ' + errors[0] if errors else ''}; check inputs and options")


def per_subject(rows: Sequence[Row], column: str) -> npt.NDArray[np.float64]:
    """Mean of a column over the draws of each subject: the spread is then between people, not between draws."""
    values: dict[object, list[float]] = {}
    for row in rows:
        value = row.get(column)
        if isinstance(value, int | float):
            values.setdefault(row["subject"], []).append(float(value))
    return np.array([np.mean(v) for v in values.values()], np.float64)


def markdown(groups: Mapping[str, Sequence[Row]], only: Collection[str] = tuple(COLUMNS)) -> str:
    """Table of mean ± sd over subjects, one line a group; columns that no row has are left out.

    Args:
        groups: heading of each line and its rows, of which those with an `error` count as failed.
        only: names of the columns that are wanted.
    """
    rows = [row for group in groups.values() for row in group]
    columns = [c for c in COLUMNS if c in only and any(isinstance(row.get(c), int | float) for row in rows)]
    lines = [
        "| | subjects | failed | " + " | ".join(COLUMNS[c][0] for c in columns) + " |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name, group in groups.items():
        subjects = {row["subject"] for row in group if not row.get("error")}
        failed = sum(1 for row in group if row.get("error"))
        cells = " | ".join(mean_cell(per_subject(group, c), *COLUMNS[c][1:]) for c in columns)
        lines.append(f"| {name} | {len(subjects)} | {failed} | {cells} |")
    return "\n".join(lines)


def mean_cell(values: npt.NDArray[np.float64], factor: float, digits: int) -> str:
    """Mean ± sd of one value a subject, times `factor`; the value alone of one subject, a dash without any."""
    if not values.size:
        return "-"
    mean = f"{values.mean() * factor:.{digits}f}"
    return mean if values.size == 1 else f"{mean} ± {values.std(ddof=1) * factor:.{digits}f}"
