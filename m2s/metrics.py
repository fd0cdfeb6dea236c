"""Measures of agreement between a reconstruction and the truth.

Every length is in millimetres. The paper prints its Chamfer distance in mm, but its numbers are sums of squared
distances: `cd_paper` is in mm² and is reported beside its floor.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.spatial import KDTree

from m2s.triangles import TriangleIndex, sample_surface
from m2s_runtime.surface import Mesh, surface_area

CD_SAMPLES: Final = 5000
"""Points a surface in `cd_paper`: the count that fits the paper's nearest-neighbour row."""

DISTANCE_SAMPLES: Final = 10_000
"""Points a surface for ASSD and HD95; their distances are exact, so this sets the scatter and no floor."""

Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]


def dice(a: Mask, b: Mask) -> float:
    """Dice overlap of two masks of one shape, 0 to 1; two empty masks agree perfectly.

    Raises:
        ValueError: if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"masks of different shapes: {a.shape} and {b.shape}")
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / total if total else 1.0


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Index ranges of one axis that meet when the first array moves by `shift`."""
    moved = slice(max(0, -shift), min(size, size - shift))
    return moved, slice(max(0, shift), min(size, size + shift))


def best_inplane_shift_dice(a: Mask, b: Mask, radius: int) -> tuple[float, tuple[int, int]]:
    """Dice after the integer in-plane translation of `a` that serves it best.

    Slices of a patient are shifted against each other, so a slice that was not shown to the method can only be judged
    up to its own translation. What a translation pushes over the edge still counts in the denominator.

    Args:
        a: (X, Y) or (X, Y, Z) mask that is moved.
        b: mask of the same shape.
        radius: greatest translation tried along x and along y, pixels.

    Returns:
        The best Dice and the translation (x, y) in pixels that reaches it; of several, the shortest.

    Raises:
        ValueError: if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"masks of different shapes: {a.shape} and {b.shape}")
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    if not total:
        return 1.0, (0, 0)
    steps = range(-radius, radius + 1)
    best, where = -1, (0, 0)
    for x, y in sorted(((x, y) for x in steps for y in steps), key=lambda s: s[0] ** 2 + s[1] ** 2):
        (from_x, to_x), (from_y, to_y) = _overlap(x, a.shape[0]), _overlap(y, a.shape[1])
        common = int(np.count_nonzero(a[from_x, from_y] & b[to_x, to_y]))
        if common > best:
            best, where = common, (x, y)
    return 2 * best / total, where


@dataclass(frozen=True)
class SampledSurface:
    """A surface with all that the distances need, so that the truth is prepared once for many predictions."""

    points: Array
    """(10000, 3) mm, uniform by area; `cd_paper` takes the first 5000."""
    cd_tree: Any
    index: TriangleIndex
    area: float

    @classmethod
    def of(cls, mesh: Mesh, role: Literal["prediction", "truth"]) -> "SampledSurface":
        """Sample a mesh with the fixed seed of its role.

        The two roles use different streams: with one stream a surface against itself would score zero instead of the
        floor that every other pair carries.

        Raises:
            ValueError: if the mesh has no area.
        """
        rng = np.random.default_rng([0, 0 if role == "prediction" else 1])
        points = sample_surface(mesh, DISTANCE_SAMPLES, rng)
        return cls(points, KDTree(points[:CD_SAMPLES]), TriangleIndex.of(mesh), surface_area(mesh))


def cd_paper(prediction: SampledSurface, truth: SampledSurface) -> float:
    """Chamfer distance as the paper must have computed it: squared, both directions summed, in mm².

    5000 area-weighted samples a surface, mean squared distance to the nearest sample of the other, added up.
    """
    there = truth.cd_tree.query(prediction.points[:CD_SAMPLES])[0]
    back = prediction.cd_tree.query(truth.points[:CD_SAMPLES])[0]
    return float(np.mean(there**2) + np.mean(back**2))


def cd_of_points(points: Array, truth: SampledSurface) -> float:
    """`cd_paper` of points as they are, before any surface is made of them: 5000 of them against 5000 of the truth.

    Args:
        points: (N, 3) mm, N >= 5000.
        truth: of role `truth`.
    """
    chosen = points[np.random.default_rng(0).permutation(len(points))[:CD_SAMPLES]]
    there = truth.cd_tree.query(chosen)[0]
    back = KDTree(chosen).query(truth.points[:CD_SAMPLES])[0]
    return float(np.mean(there**2) + np.mean(back**2))


def cd_floor(area: float, samples: int = CD_SAMPLES) -> float:
    """What `cd_paper` of a surface with an independent sample of itself is expected to be, in mm².

    The nearest of n points strewn over an area A lies at a mean squared distance A / (pi n); two directions.

    Args:
        area: mm² of the true surface.
        samples: points a surface.
    """
    return 2 * area / (np.pi * samples)


@dataclass(frozen=True)
class SurfaceDistance:
    """Symmetric distances between two surfaces, mm."""

    assd: float
    """Mean of the two directed mean distances."""
    hd95: float
    """Greater of the two directed 95th percentiles."""


def surface_distance(prediction: SampledSurface, truth: SampledSurface) -> SurfaceDistance:
    """ASSD and HD95 in mm: 10,000 area-weighted samples of each surface, exact distances to the other's triangles."""
    there = truth.index.distance(prediction.points)
    back = prediction.index.distance(truth.points)
    return SurfaceDistance(
        assd=float(there.mean() + back.mean()) / 2,
        hd95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
    )


@dataclass(frozen=True)
class ShiftError:
    """Errors of predicted slice shifts over the wall slices of one stack, mm."""

    raw: float
    """Mean absolute component."""
    relative: float
    """The same after removing the translation that all slices share: what remains is misalignment."""
    common: float
    """Mean absolute component of that shared translation."""


def shift_error(predicted: npt.ArrayLike, true: npt.ArrayLike, wall: Mask) -> ShiftError:
    """Compare slice shifts over the slices that hold wall.

    Args:
        predicted: (S, 2) mm along x and y.
        true: (S, 2) mm.
        wall: (S,) which slices hold wall.

    Raises:
        ValueError: if the shapes differ or no slice holds wall.
    """
    difference = np.asarray(predicted, dtype=np.float64) - np.asarray(true, dtype=np.float64)
    if difference.shape != (len(wall), 2) or not wall.any():
        raise ValueError(
            f"need (S, 2) shifts and a slice that holds wall, got {difference.shape} for {len(wall)} slices"
        )
    difference = difference[wall]
    common = difference.mean(axis=0)
    return ShiftError(
        raw=float(np.abs(difference).mean()),
        relative=float(np.abs(difference - common).mean()),
        common=float(np.abs(common).mean()),
    )


def spearman(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Rank correlation; 0 where either does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])
