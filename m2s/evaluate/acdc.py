"""Real stacks without a three-dimensional truth: slices held back, slices given, and the topology of the surfaces.

Patients move between slices, so a cross-section of the reconstruction is compared with an acquired slice after the best
integer in-plane translation of it (1 mm pixels).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s.evaluate.methods import Method, Prediction
from m2s.evaluate.scores import Row, soundness
from m2s.metrics import best_inplane_shift_dice
from m2s_runtime.errors import CaseError, NoInputs
from m2s_runtime.grid import IN_PLANE
from m2s_runtime.labels import wall_mask
from m2s_runtime.placement import Placement, canonicalise
from m2s_runtime.slices import wall_slices
from m2s_runtime.surface import signed_volume
from m2s_runtime.volume import read_study

BoolArray = npt.NDArray[np.bool_]
Affine = npt.NDArray[np.float64]

SHIFT_RADIUS: Final = 20
"""mm; slices of real stacks lie up to 5 mm off a smooth axis, and a method may straighten a tilted one besides."""

WITHHOLD_UP_TO_MM: Final = 5.5
"""Stacks this fine keep a step of 10 mm or so when every second slice is held back."""


RING_SLICES: Final = 4
"""Closed rings from which on a stack must give a sound surface."""


@dataclass(frozen=True)
class WallStack:
    """A wall mask with its slices along the last axis, and where it lies."""

    wall: BoolArray
    affine: Affine
    key: str

    @property
    def step_mm(self) -> float:
        """Distance between slices."""
        return float(np.linalg.norm(self.affine[:3, 2]))

    def every_second(self, first: int) -> "WallStack":
        """The slices first, first + 2, ... as a stack of its own, in the same place."""
        affine = self.affine.copy()
        affine[:, 3] = self.affine @ (0, 0, first, 1)
        affine[:, 2] *= 2
        return WallStack(self.wall[:, :, first::2], affine, self.key)


def read_stack(path: Path, scheme: str) -> WallStack:
    """Read the first frame of a file whose slices are stacked along its third axis, as in ACDC.

    Raises:
        CaseError: the file or its labels cannot be used.
    """
    study = read_study(path)
    wall, _ = wall_mask(study.labels[..., 0], scheme)
    return WallStack(wall, study.affine, study.sha256)


def acquired_section(stack: WallStack, index: int, placement: Placement) -> tuple[BoolArray, float]:
    """An acquired slice on the canonical in-plane grid, and the grid plane (a real number) that it lies in.

    Args:
        stack: source slices.
        index: slice.
        placement: of a canonical stack made from slices of `stack`, so that the planes are parallel.

    Returns:
        (128, 128) mask, and the z index in the (128, 128, 64) grid.
    """
    to_source = np.linalg.inv(stack.affine) @ placement.affine
    plane = float((np.linalg.inv(to_source) @ (0, 0, index, 1))[2])
    pixels = np.indices((IN_PLANE, IN_PLANE)).reshape(2, -1)
    where = to_source @ np.stack([pixels[0], pixels[1], np.full(pixels.shape[1], plane), np.ones(pixels.shape[1])])
    spacing = np.linalg.norm(stack.affine[:3, :2], axis=0)
    wall = np.pad(stack.wall[:, :, index], 1)
    inside = ndimage.distance_transform_edt(wall, sampling=spacing)
    signed = np.asarray(ndimage.distance_transform_edt(~wall, sampling=spacing)) - np.asarray(inside)
    sampled = ndimage.map_coordinates(signed, where[:2] + 1, order=1, mode="nearest")
    return np.asarray(sampled).reshape(IN_PLANE, IN_PLANE) < 0, plane


def section_dice(prediction: Prediction, stack: WallStack, index: int, placement: Placement) -> float:
    """Dice of the reconstruction with one acquired slice, after the best in-plane translation of the slice."""
    truth, plane = acquired_section(stack, index, placement)
    cuts = prediction.sections(plane)
    return float(np.mean([best_inplane_shift_dice(truth, cut, SHIFT_RADIUS)[0] for cut in cuts]))


def recut(method: Method, stack: WallStack) -> Row:
    """Reconstruct from all slices, cut at the slices that were given, and look at the surface.

    The volume ratio compares the surface with area times step of the slices, which no interpolation is needed for.
    """
    canonical = canonicalise(stack.wall, stack.affine)
    started = time.perf_counter()
    prediction = method(canonical, stack.key)
    seconds = time.perf_counter() - started
    used = [s for s in canonical.placement.slices if s >= 0 and stack.wall[:, :, s].any()]
    voxel = abs(float(np.linalg.det(stack.affine[:3, :3])))
    return {
        "slices": len(used),
        "step_mm": canonical.placement.step_mm,
        "flags": " ".join(canonical.flags),
        "ring_slices": int((canonical.pool[:, 2] > 0).sum()),
        "recut": float(np.mean([section_dice(prediction, stack, s, canonical.placement) for s in used])),
        "volume_ml": signed_volume(prediction.surface) / 1000,
        "volume_ratio": signed_volume(prediction.surface) / (voxel * np.count_nonzero(stack.wall)),
        "seconds": None if prediction.remembered else seconds,
        **soundness(prediction.surface),
    }


def withheld(method: Method, stack: WallStack) -> float | None:
    """Dice on slices held back: every second one is fed, the others are cut from the reconstruction.

    Both ways of taking every second slice are run. Scored are the slices with wall between two fed slices with wall:
    beyond the last of those the method is not told that there is a heart.

    Returns:
        Mean over the held-back slices, None where there are none.
    """
    found: list[float] = []
    for first in (0, 1):
        fed = stack.every_second(first)
        canonical = canonicalise(fed.wall, fed.affine)
        prediction = method(canonical, fed.key)
        shown = wall_slices(fed.wall)
        for index in range(first + 1, first + 2 * len(shown) - 1, 2):
            before = (index - first) // 2
            if stack.wall[:, :, index].any() and shown[before] and shown[before + 1]:
                found.append(section_dice(prediction, stack, index, canonical.placement))
    return float(np.mean(found)) if found else None


def evaluate_stack(path: Path, methods: dict[str, Method], scheme: str) -> Iterator[Row]:
    """Rows of one file, one a method; a refused file gives a row with `error`."""
    row: Row = {"subject": path.name.removesuffix(".gz").removesuffix(".nii")}
    try:
        stack = read_stack(path, scheme)
    except CaseError as error:
        yield row | {"method": "-", "error": f"{error.code}: {error}"}
        return
    for name, method in methods.items():
        try:
            yield row | {"method": name} | _measure(method, stack)
        except CaseError as error:
            yield row | {"method": name, "error": f"{error.code}: {error}"}


def _measure(method: Method, stack: WallStack) -> Row:
    row = recut(method, stack)
    if stack.step_mm <= WITHHOLD_UP_TO_MM:
        # Half the slices may be too few where all of them are enough: the other figures stand.
        try:
            row["withheld"] = withheld(method, stack)
        except CaseError as error:
            row |= {"withheld": None, "withheld_error": f"{error.code}: {error}"}
    return row


def find_stacks(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, sorted.

    Raises:
        NoInputs: there are none.
    """
    paths = sorted(p for p in folder.glob("*.nii*") if p.is_file())
    if not paths:
        raise NoInputs(f"{folder}: no .nii or .nii.gz file; give the folder that holds the stacks")
    return paths


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """Lines of the table, one a method; files that could not be read count against each."""
    unread = [row for row in rows if row["method"] == "-"]
    names = dict.fromkeys(str(row["method"]) for row in rows if row["method"] != "-")
    return {name: [row for row in rows if row["method"] == name] + unread for name in names}


def summary(rows: list[Row]) -> str:
    """Medians, and the topology of the stacks that must come out sound: those with enough closed rings."""
    lines = [""]
    for name, mine in groups(rows).items():
        done = [row for row in mine if not row.get("error")]
        ringed = [row for row in done if float(row["ring_slices"] or 0) >= RING_SLICES]
        sound, medians = sum(bool(row["sound"]) for row in ringed), [float(row["recut"] or 0) for row in done]
        lines.append(
            f"{name}: median re-cut Dice {100 * float(np.median(medians)) if medians else float('nan'):.2f} %; "
            f"{sound} of {len(ringed)} stacks with {RING_SLICES} closed rings or more: closed, one component, genus 0"
        )
    return "\n".join(lines)
