"""Slice shifts as JSON: how far to move each slice of the source file, in scanner millimetres, to re-align it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from m2s_runtime import strict_json
from m2s_runtime.errors import UsageProblem
from m2s_runtime.slices import wall_slices

if TYPE_CHECKING:
    from m2s_runtime.placement import Canonical

Vectors = npt.NDArray[np.float64]
Matrix = tuple[tuple[float, ...], ...]

SHIFTS: Final = "_shifts.json"
"""How the names of these files end."""

_CONVENTION: Final = (
    "What the file shows in slice `slice` (index from 0 along axis `slice_axis` of the array) at p mm belongs at "
    "p + move_mm; millimetres along right, anterior, superior. Slices that are not listed stay."
)


@dataclass(frozen=True)
class SliceMove:
    """Where one slice belongs.

    Attributes:
        slice: its index in the source file, from 0.
        move_mm: (3,) mm, right, anterior, superior; within the plane of the slice.
        estimated: False where the slice itself was not used and its neighbours' moves are interpolated.
    """

    slice: int
    move_mm: tuple[float, float, float]
    estimated: bool


@dataclass(frozen=True)
class SliceShifts:
    """The document.

    Attributes:
        schema: of this format.
        convention: what the numbers mean, in words.
        source: the label map, relative to the folder that was given, or the name that stands for it.
        source_sha256: of that file.
        frame: of a cine, from 0; None for a single volume.
        unit: of `move_mm` and `affine`.
        space: axes of `move_mm` and `affine`: right, anterior, superior, as in NIfTI.
        shape: of the source array, without time.
        affine: (4, 4) voxel index to world, of the source.
        slice_axis: axis of the source array along which slices are stacked.
        slices: those that move.
    """

    schema: Literal[1]
    convention: str
    source: str
    source_sha256: str
    frame: int | None
    unit: Literal["mm"]
    space: Literal["RAS"]
    shape: tuple[int, int, int]
    affine: Matrix
    slice_axis: int
    slices: tuple[SliceMove, ...]

    @property
    def moves(self) -> Vectors:
        """(S, 3) mm for every slice of the source, NaN where a slice is not listed."""
        moves = np.full((self.shape[self.slice_axis], 3), np.nan)
        for one in self.slices:
            moves[one.slice] = one.move_mm
        return moves


@dataclass(frozen=True)
class Origin:
    """Where a stack came from.

    Attributes:
        source: its name in reports.
        sha256: of the file.
        frame: of a cine, from 0; None for a single volume.
        shape: of the array, without time.
        affine: (4, 4) voxel index to world mm (RAS).
    """

    source: str
    sha256: str
    frame: int | None
    shape: tuple[int, int, int]
    affine: Vectors


def slice_shifts(shifts: npt.NDArray[np.floating[Any]], canonical: "Canonical", origin: Origin) -> SliceShifts:
    """The document of one reconstruction.

    Args:
        shifts: (12, 2) mm along the canonical x and y with `corrected(p) = slice(p + shift)`, less the common part
            that the placement adds back.
        canonical: the stack.
        origin: the file it was made from.
    """
    placement = canonical.placement
    held = [int(k) for k in np.flatnonzero(wall_slices(canonical.masks))]
    # The first two columns of the grid's affine are the in-plane axes of the source, 1 mm long.
    found = {placement.slices[k]: -placement.affine[:3, :2] @ shifts[k].astype(np.float64) for k in held}
    known = sorted(found)
    between = range(known[0], known[-1] + 1)
    moves = np.stack([np.interp(between, known, [found[s][a] for s in known]) for a in range(3)], axis=1)
    return SliceShifts(
        schema=1, convention=_CONVENTION, source=origin.source, source_sha256=origin.sha256, frame=origin.frame,
        unit="mm", space="RAS", shape=origin.shape, affine=tuple(tuple(row) for row in origin.affine.tolist()),
        slice_axis=placement.slice_axis,
        slices=tuple(SliceMove(s, _rounded(move), s in found) for s, move in zip(between, moves, strict=True)),
    )  # fmt: skip


def read_shifts(path: Path) -> SliceShifts:
    """Read a document back.

    Raises:
        UsageProblem: it cannot be read, or is none.
    """
    try:
        found = strict_json.loads(SliceShifts, path.read_bytes())
    except OSError as error:
        raise UsageProblem(f"{path}: cannot be read ({error.strerror})") from error
    except strict_json.Misfit as error:
        raise UsageProblem(f"{path}: holds no slice shifts ({error}); give a file that --save shifts wrote") from error
    axis, stack = found.slice_axis, found.shape
    square = len(found.affine) == 4 and all(len(row) == 4 for row in found.affine)
    possible = square and 0 <= axis < 3 and all(0 < size < 2**15 for size in stack)
    if not (possible and all(0 <= one.slice < stack[axis] for one in found.slices)):
        raise UsageProblem(f"{path}: describes a grid or a slice that cannot be; save the shifts anew")
    return found


def _rounded(move: Vectors) -> tuple[float, float, float]:
    # Adding zero turns -0.0 into 0.0.
    x, y, z = (round(float(value), 4) + 0.0 for value in move)
    return x, y, z
