"""Real stacks without a three-dimensional truth: slices held back, slices given, and the topology of the surfaces.

Patients move between slices, so a cross-section of the reconstruction is compared with an acquired slice after the best
integer in-plane translation of it (1 mm pixels).
"""

import csv
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s.baselines.method import Method, Prediction
from m2s.data.content import content_mark
from m2s.evaluate.methods import Network, spacing_of
from m2s.evaluate.scores import Row, markdown, soundness
from m2s.evaluate.work import EVERY_METHOD, spaced
from m2s.metrics import best_inplane_shift_dice, spearman
from m2s_runtime.edge_distance import edge_distance
from m2s_runtime.errors import CaseError, NoInputs, UsageProblem
from m2s_runtime.grid import IN_PLANE
from m2s_runtime.labels import wall_mask
from m2s_runtime.placement import Canonical, Placement, canonicalise, slice_axis
from m2s_runtime.slices import pool_features, wall_slices
from m2s_runtime.surface import signed_volume
from m2s_runtime.volume import read_study

BoolArray = npt.NDArray[np.bool_]
Affine = npt.NDArray[np.float64]

SHIFT_RADIUS: Final = 20
"""mm; slices of real stacks lie up to 5 mm off a smooth axis, and a method may straighten a tilted one besides."""

WITHHOLD_UP_TO_MM: Final = 5.5
"""Stacks this fine keep a step of 10 mm or so when every second slice is held back."""

_FEWEST_RANKED: Final = 5
"""Stacks; of fewer a rank correlation says nothing."""

LEFT_OUT: Final = 3
"""Slices left out of a stack one at a time; each costs a reconstruction."""

RING_SLICES: Final = 4
"""Closed rings from which on a stack must give a sound surface."""


@dataclass(frozen=True)
class WallStack:
    """A wall mask with its slices along the last axis, and where it lies."""

    wall: BoolArray
    affine: Affine

    @property
    def step_mm(self) -> float:
        """Distance between slices."""
        return float(np.linalg.norm(self.affine[:3, 2]))

    def every_second(self, first: int) -> "WallStack":
        """The slices first, first + 2, ... as a stack of its own, in the same place."""
        affine = self.affine.copy()
        affine[:, 3] = self.affine @ (0, 0, first, 1)
        affine[:, 2] *= 2
        return WallStack(self.wall[:, :, first::2], affine)


def read_stack(path: Path, scheme: str) -> WallStack:
    """Read the first frame of a file whose slices are stacked along its third axis, as in ACDC.

    Raises:
        CaseError: the file or its labels cannot be used.
    """
    study = read_study(path)
    wall, _ = wall_mask(study.labels[..., 0], scheme, slice_axis(study.affine))
    return WallStack(wall, study.affine)


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
    sampled = ndimage.map_coordinates(edge_distance(wall, spacing), where[:2] + 1, order=1, mode="nearest")
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
    prediction = _predict(method, canonical)
    seconds = time.perf_counter() - started
    used = [s for s in canonical.placement.slices if s >= 0 and stack.wall[:, :, s].any()]
    voxel = abs(float(np.linalg.det(stack.affine[:3, :3])))
    return {
        "slices": len(used),
        "step_mm": canonical.placement.step_mm,
        "flags": " ".join((*canonical.flags, *prediction.flags)),
        "expected_dice": prediction.expected_dice,
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
        prediction = _predict(method, canonical)
        shown = wall_slices(fed.wall)
        for index in range(first + 1, first + 2 * len(shown) - 1, 2):
            before = (index - first) // 2
            if stack.wall[:, :, index].any() and shown[before] and shown[before + 1]:
                found.append(section_dice(prediction, stack, index, canonical.placement))
    return float(np.mean(found)) if found else None


def left_out(method: Method, stack: WallStack) -> float | None:
    """Dice on slices left out one at a time: the stack then has a gap, and all its other slices.

    The runtime fills a gap before the networks see the stack; other methods are shown the gap.

    Returns:
        Mean over up to `LEFT_OUT` slices with wall on both sides, spread over the stack; None where there is none.
    """
    shown = wall_slices(stack.wall)
    inner = [s for s in range(1, len(shown) - 1) if shown[s - 1 : s + 2].all()]
    found: list[float] = []
    for index in spaced(inner, LEFT_OUT):
        wall = stack.wall.copy()
        wall[:, :, index] = False
        canonical = canonicalise(wall, stack.affine)
        if index not in canonical.placement.slices:  # thinned out anyway
            continue
        shown_stack = canonical if isinstance(method, Network) else _hollow(canonical, index)
        prediction = _predict(method, shown_stack)
        found.append(section_dice(prediction, stack, index, canonical.placement))
    return float(np.mean(found)) if found else None


def _predict(method: Method, canonical: Canonical) -> Prediction:
    return method.predict(canonical.masks, spacing_of(canonical.placement.step_mm))


def _hollow(canonical: Canonical, source: int) -> Canonical:
    """The stack without what was put into the place of a source slice."""
    masks = canonical.masks.copy()
    masks[:, :, canonical.placement.slices.index(source)] = False
    return replace(canonical, masks=masks, pool=pool_features(masks))


@dataclass(frozen=True)
class StackFile:
    """One file as a unit of work; `group` is the diagnosis, empty where it is not known."""

    path: Path
    scheme: str = "acdc"
    group: str = ""

    @property
    def name(self) -> str:
        """The subject, which file it was, and what its labels were said to mean."""
        return f"{self.subject}, {self.scheme}, {content_mark(self.path)}"

    @property
    def subject(self) -> str:
        """File name without its ending."""
        return self.path.name.removesuffix(".gz").removesuffix(".nii")

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """One row a method; a refused file gives a row with `error`."""
        row: Row = {"subject": self.subject, "group": self.group}
        try:
            stack = read_stack(self.path, self.scheme)
        except CaseError as error:
            yield row | {"method": EVERY_METHOD, "error": f"{error.code}: {error}"}
            return
        for name, method in methods.items():
            try:
                yield row | {"method": name} | _measure(method, stack)
            except CaseError as error:
                yield row | {"method": name, "error": f"{error.code}: {error}"}


def _measure(method: Method, stack: WallStack) -> Row:
    row = recut(method, stack)
    column, measure = ("withheld", withheld) if stack.step_mm <= WITHHOLD_UP_TO_MM else ("left_out", left_out)
    # Half the slices may be too few where all of them are enough: the other figures stand.
    try:
        row[column] = measure(method, stack)
    except CaseError as error:
        row |= {column: None, f"{column}_error": f"{error.code}: {error}"}
    return row


def find_stacks(folder: Path, scheme: str = "acdc") -> list[StackFile]:
    """The NIfTI files of a folder, sorted; a `cases.csv` beside them may give each `file` its `group`.

    Raises:
        NoInputs: there are none.
        UsageProblem: `cases.csv` cannot be read.
    """
    paths = sorted(p for p in folder.glob("*.nii*") if p.is_file())
    if not paths:
        raise NoInputs(f"{folder}: no .nii or .nii.gz file; give the folder that holds the stacks")
    diagnoses = _diagnoses(folder / "cases.csv")
    return [StackFile(path, scheme, diagnoses.get(path.name, "")) for path in paths]


def _diagnoses(table: Path) -> dict[str, str]:
    if not table.is_file():
        return {}
    try:
        with table.open(newline="", encoding="utf-8") as file:
            return {str(row.get("file")): str(row.get("group") or "") for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageProblem(f"{table}: cannot be read ({error}); columns `file` and `group` are looked for") from error


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """Lines of the table, one a method; files that could not be read count against each."""
    unread = [row for row in rows if row["method"] == EVERY_METHOD]
    names = dict.fromkeys(str(row["method"]) for row in rows if row["method"] != EVERY_METHOD)
    return {name: [row for row in rows if row["method"] == name] + unread for name in names}


def _flagged(rows: list[Row]) -> str:
    """How many stacks carry a flag, and which."""
    flags = [str(row.get("flags") or "").split() for row in rows]
    counts = Counter(flag for found in flags for flag in found)
    which = ", ".join(f"{flag} {count}" for flag, count in counts.most_common())
    return f"{sum(map(bool, flags))} of {len(rows)} stacks flagged" + (f" ({which})" if which else "")


def _ranked(rows: list[Row]) -> str:
    """How well the Dice that was expected of a stack ranks those that were found; empty where none was."""
    told: list[str] = []
    for key, what in (("withheld", "withheld"), ("left_out", "left-out"), ("recut", "re-cut")):
        pairs = [(float(row["expected_dice"] or 0), float(row[key] or 0)) for row in rows
                 if row.get("expected_dice") and row.get(key) is not None]  # fmt: skip
        if len(pairs) >= _FEWEST_RANKED:
            told.append(f"{what} {spearman(*np.array(pairs).T):.2f} ({len(pairs)} stacks)")
    return f"Spearman of expected Dice and that of slices: {', '.join(told)}" if told else ""


def summary(rows: list[Row]) -> str:
    """Medians, the topology of the stacks that must come out sound (enough closed rings), and a table by diagnosis."""
    lines = [""]
    for name, mine in groups(rows).items():
        done = [row for row in mine if not row.get("error")]
        ringed = [row for row in done if float(row["ring_slices"] or 0) >= RING_SLICES]
        sound, medians = sum(bool(row["sound"]) for row in ringed), [float(row["recut"] or 0) for row in done]
        lines.append(
            f"{name}: median re-cut Dice {100 * float(np.median(medians)) if medians else float('nan'):.2f} %; "
            f"{sound} of {len(ringed)} stacks with {RING_SLICES} closed rings or more: closed, one component, genus 0"
        )
        lines.append(f"{name}: {_flagged(done)}")
        lines += [f"{name}: {ranked}"] if (ranked := _ranked(done)) else []
    by_group = {
        f"{name}, {group}": [row for row in mine if row.get("group") == group]
        for name, mine in groups(rows).items()
        for group in sorted({str(row.get("group") or "") for row in mine} - {""})
    }
    if by_group:
        lines += ["", markdown(by_group, ("withheld", "left_out", "recut", "sound"))]
    return "\n".join(lines)
