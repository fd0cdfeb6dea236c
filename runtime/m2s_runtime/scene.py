"""What belongs into a picture of a case: its mesh, the volumes beside it, the outlines of its slices."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from m2s_runtime.errors import BadHeader, UsageProblem
from m2s_runtime.options import Space
from m2s_runtime.shifts_file import SHIFTS, read_shifts

if TYPE_CHECKING:
    from m2s_runtime.given import Given

Points = npt.NDArray[np.float64]

SHOWN: Final = (".vtp", ".ply", ".stl", ".obj")
"""Mesh formats that every viewer opens in place, the one that says most first; GLB has lost where it was."""

_VOLUMES: Final = ("_overlay.nii.gz", "_mask.nii.gz")

_TAGS: Final[dict[bytes, Space]] = {b"SPACE=LPS": "lps", b"SPACE=RAS": "ras", b"76 80 83": "lps", b"82 65 83": "ras"}
"""In the first bytes of PLY, STL and OBJ files, and as the codes of the letters in VTP."""

_HEAD: Final = 4096
_FRAME: Final = re.compile(r".+_t(\d+)")


@dataclass(frozen=True)
class Scene:
    """The files of a case, absolute paths.

    Attributes:
        mesh: one of `SHOWN`.
        space: its world axes; files that do not say are taken for LPS, as 3D Slicer does.
        volumes: what `--save` left, label volumes in scanner coordinates.
        shifts: what `--save shifts` left; None without it.
        frame: of a cine, from the name of the case; None for a single volume.
    """

    mesh: Path
    space: Space
    volumes: tuple[Path, ...]
    shifts: Path | None
    frame: int | None


def find_scene(case: Path) -> Scene:
    """The scene of a case folder that `m2s-run` left, or of one mesh file and what lies beside it.

    Raises:
        UsageProblem: neither, or a case without a mesh that can be shown.
    """
    case = case.absolute()
    mesh = next((p for p in _candidates(case) if p.is_file()), None) if case.is_dir() else case
    if mesh is None:
        kinds = ", ".join(suffix.lstrip(".") for suffix in SHOWN)
        raise UsageProblem(f"{case}: no {case.name} as {kinds} in this folder; give OUT/<case> of m2s-run, or a mesh")
    if mesh.suffix.lower() not in SHOWN or not mesh.is_file():
        told = "is made for looks and no longer lies in the scanner" if mesh.suffix.lower() == ".glb" else "is no mesh"
        raise UsageProblem(f"{mesh}: {told}; give a file that ends in {', '.join(SHOWN)}, or its folder")
    beside = [mesh.with_name(mesh.stem + name) for name in (*_VOLUMES, SHIFTS)]
    *volumes, shifts = beside
    match = _FRAME.fullmatch(mesh.stem)
    return Scene(
        mesh, space_of(mesh), tuple(p for p in volumes if p.is_file()), shifts if shifts.is_file() else None,
        int(match[1]) if match else None,
    )  # fmt: skip


def space_of(mesh: Path) -> Space:
    """World axes that a mesh file says it has; LPS when it says nothing."""
    with mesh.open("rb") as file:
        head = file.read(_HEAD)
    found: list[Space] = [space for tag, space in _TAGS.items() if tag in head]
    return found[0] if found else "lps"


def outlines(
    label_map: "Given", scheme: str, frame: int | None, shifts: Path | None
) -> tuple[list[Points], list[Points]]:
    """Outlines of the wall in the acquired slices.

    Args:
        label_map: what the case was made from.
        scheme: of its labels.
        frame: of a cine; None for the only one.
        shifts: what `--save shifts` left for this case; None when nobody knows.

    Returns:
        Closed lines (P, 3) in world mm (RAS), as acquired, and as corrected (none without `shifts`).

    Raises:
        BadHeader: no such frame.
        CaseError: as of `labels.wall_mask`.
        UsageProblem: the shifts cannot be read, or belong to another stack.
    """
    from m2s_runtime.labels import wall_mask
    from m2s_runtime.placement import slice_axis

    axis, count = slice_axis(label_map.affine), label_map.labels.shape[3]
    frame = frame or 0
    if frame >= count:
        raise BadHeader(f"{label_map.name} has {count} frame(s) and frame {frame} was asked for: add --frame")
    wall = wall_mask(label_map.labels, scheme, axis)[0][..., frame]
    moves = read_shifts(shifts).moves if shifts else None
    if moves is not None and len(moves) != wall.shape[axis]:
        raise UsageProblem(f"{shifts}: is of {len(moves)} slices, {label_map.name} of {wall.shape[axis]}")
    acquired: list[Points] = []
    corrected: list[Points] = []
    for index in np.flatnonzero(wall.any(axis=tuple(a for a in range(3) if a != axis))).tolist():
        for line in _lines(np.asarray(wall.take(index, axis)), index, axis):
            acquired.append(line @ label_map.affine[:3, :3].T + label_map.affine[:3, 3])
            if moves is not None and np.isfinite(moves[index]).all():
                corrected.append(acquired[-1] + moves[index])
    return acquired, corrected


def _candidates(folder: Path) -> list[Path]:
    return [folder / f"{folder.name}{suffix}" for suffix in SHOWN]


def _lines(plane: npt.NDArray[np.bool_], index: int, axis: int) -> list[Points]:
    """Outlines of one slice, (P, 3) voxel indices of the volume."""
    from skimage.measure import find_contours

    padded = np.pad(plane, 1).astype(np.float32)
    return [np.insert(line - 1, axis, index, axis=1) for line in find_contours(padded, 0.5)]
