"""All that the report shows of one case, as `<case>/<case>_report.json.gz`: a coarse surface, the slices, the numbers.

The page cuts and colours the surface itself, so nothing is drawn here. Arrays are base64 of little-endian integers.
"""

import base64
import gzip
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from m2s_runtime.grid import GRID, SLICES, SPACING
from m2s_runtime.report.coarse import coarse
from m2s_runtime.slices import BoolArray, bounding_box, wall_slices
from m2s_runtime.text import clean, without_folders

if TYPE_CHECKING:
    from m2s_runtime.measurements import Measured
    from m2s_runtime.placement import Canonical
    from m2s_runtime.result import Reconstruction

REPORT: Final = "_report.json.gz"
"""How the names of these files end."""

SCHEMA: Final[Literal[1]] = 1

POINT_MM: Final = 0.02
"""Unit of the vertices."""

FIELD_MM: Final = {"spread_mm": 0.02, "thickness_mm": 0.1}
"""Units of what the vertices carry in a byte each; 254 of them are the most, 255 stands for nothing known."""

Document = dict[str, Any]


def case_report(canonical: "Canonical", result: "Reconstruction", measured: "Measured | None" = None) -> bytes:
    """The file of one case; the same bytes for the same input.

    Points are in mm along the axes of the canonical grid, its voxel (0, 0, 0) at the origin; `axes` holds what these
    are in the scanner. A slice is shown where it was acquired after a move of `-common_mm`, and re-aligned after a
    move of `-shift_mm`.

    Args:
        canonical: the stack.
        result: what became of it.
        measured: its measurements; None leaves them out.
    """
    try:
        text = _json(_document(canonical, result, measured))
    except Exception as error:  # noqa: BLE001 - for want of a picture no mesh is lost: the page tells why there is none
        text = _json({"schema": SCHEMA, "failed": clean(without_folders(f"{type(error).__name__}: {error}"))})
    return gzip.compress(text.encode(), compresslevel=4, mtime=0)


def _document(canonical: "Canonical", result: "Reconstruction", measured: "Measured | None") -> Document:
    return {
        "schema": SCHEMA,
        "axes": (result.affine[:3, :3] / SPACING).T.round(6).tolist(),
        "step_mm": canonical.placement.step_mm,
        "common_mm": _rounded(result.common_shift),
        "slices": [_slice(canonical, result, int(k)) for k in np.flatnonzero(wall_slices(canonical.masks))],
        "surface": _surface(result, None if measured is None else measured.wall_thickness),
        "measurements": None if measured is None else asdict(measured.measurements),
    }


def _json(document: Document) -> str:
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def _surface(result: "Reconstruction", thickness: npt.NDArray[np.float32] | None) -> Document:
    inverse = np.linalg.inv(result.affine)
    points = (result.mesh.vertices @ inverse[:3, :3].T + inverse[:3, 3]) * SPACING
    given = {"spread_mm": result.spread, "thickness_mm": thickness}
    fields = {name: values for name, values in given.items() if values is not None}
    found = coarse(points.astype(np.float32), result.mesh.faces, fields)
    # In 16 bits differences wrap round, and so does their sum: neighbours differ little, which packs well.
    steps = np.round((found.points - found.points.min(axis=0)) / POINT_MM).astype(np.uint16)
    first, *others = found.faces.astype(np.uint16).T
    return {
        "unit_mm": POINT_MM,
        "origin_mm": _rounded(found.points.min(axis=0)),
        "points": _packed(np.diff(steps, axis=0, prepend=np.uint16(0)).T),
        "faces": _packed(np.stack([np.diff(first, prepend=np.uint16(0)), *(other - first for other in others)])),
        "fields": {
            name: {"unit_mm": FIELD_MM[name], "values": _packed(_bytes(values / FIELD_MM[name]))}
            for name, values in found.fields.items()
        },
    }


def _slice(canonical: "Canonical", result: "Reconstruction", index: int) -> Document:
    plane: BoolArray = canonical.masks[:, :, index]
    box = bounding_box(plane)
    agreement = float(result.agreement[index])
    return {
        "source": canonical.placement.slices[index],
        "z_mm": (GRID[2] - 1) / 2 * SPACING[2] + (index - (SLICES - 1) / 2) * canonical.placement.step_mm,
        "shift_mm": _rounded(result.shifts[index]),
        "agreement": round(agreement, 4) if np.isfinite(agreement) else None,
        "corner": [side.start for side in box],
        "shape": [side.stop - side.start for side in box],
        "mask": _packed(np.packbits(plane[box])),
    }


def _rounded(values: npt.NDArray[np.floating[Any]]) -> list[float]:
    # Adding zero turns -0.0 into 0.0.
    return [round(float(value), 4) + 0.0 for value in values]


def _bytes(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    return np.where(np.isfinite(values), np.round(values).clip(0, 254), 255).astype(np.uint8)


def _packed(values: npt.NDArray[np.unsignedinteger[Any]]) -> str:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(little.tobytes()).decode()
