"""The paper's data set, "Cardiac super-resolution label maps" (Savioli et al., doi 10.17632/pw87p286yx.1).

One folder a subject, named by its number: `<id>/{HR,LR}_{ED,ES}.nii.gz`, labels 0 background, 1 left pool, 2 wall of
the left ventricle, 4 right pool (3 in some files). High-resolution maps become canonical masks here; the real short
axis stacks (`LR`) go the way of every stack that the runtime reads.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s.data.heart import Heart, keyed_rng
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.edge_distance import edge_distance
from m2s_runtime.errors import BadHeader, BadLabels, CaseError, EmptyWall, NoInputs, WallOutOfRange
from m2s_runtime.grid import CENTRE, GRID, MASK_GRID, MIN_SLICES, PADDING, PLANES, SPACING, UPSAMPLING
from m2s_runtime.placement import CLEAR_TAPER, Canonical, canonicalise, slice_axis, taper_of
from m2s_runtime.slices import pool_centre
from m2s_runtime.surface import extract_surface
from m2s_runtime.volume import read_study

Phase = Literal["ED", "ES"]
Kind = Literal["HR", "LR"]
"""A high-resolution map, or an acquired stack."""
Part = Literal["training", "selection", "validation"]
Masks = npt.NDArray[np.bool_]
Affine = npt.NDArray[np.float64]

POOL: Final = 1
WALL: Final = 2
LABELS: Final = (0, POOL, WALL, 3, 4)

KINDS: Final[tuple[Kind, ...]] = ("HR", "LR")

SUBJECTS: Final = 1331
PART_SIZES: Final = {"training": 1024, "selection": 72, "validation": 235}
SPLIT_SEED: Final = 1331
SPLIT_FILE: Final = Path(__file__).with_name("label_map_split.json")

_SMOOTHING_MM = 1.0
_SUBPIXEL_MM = 0.7
_MARGIN = 2
_FAR_MM = 100.0


@dataclass(frozen=True)
class LabelMap:
    """A high-resolution wall mask on the canonical grid.

    Attributes:
        id: subject and phase, or the file's name.
        mask: (128, 128, 60) bool, 1 x 1 x 2 mm, base at z index 0, pool centred in-plane at (63.5, 63.5).
        affine: (4, 4) float64, voxel index of `mask` to world mm (RAS).
        flipped: whether the file ran from apex to base.
    """

    id: str
    mask: Masks
    affine: Affine
    flipped: bool

    def heart(self) -> Heart:
        """The mask with a surface: distances to its own boundary, smoothed by 1 mm to take out the voxel steps."""
        padded = np.zeros(GRID, np.bool_)
        padded[:, :, PADDING : PADDING + PLANES] = self.mask
        smooth = ndimage.gaussian_filter(coarse_sdg(padded), [_SMOOTHING_MM / s for s in SPACING], mode="nearest")
        mesh = extract_surface(np.asarray(smooth, np.float32), np.diag([*SPACING, 1.0]))
        vertices = mesh.vertices - (0.0, 0.0, PADDING * SPACING[2])
        return Heart(self.id, self.mask, vertices, mesh.faces, SPACING[2])


class LabelMaps:
    """The data set on disk."""

    def __init__(self, folder: str | Path) -> None:
        """Find the subjects.

        Raises:
            NoInputs: no numbered folder with a high-resolution map in it.
        """
        self._folder = Path(folder)
        found = [p.name for p in self._folder.glob("*") if p.name.isdecimal() and any(p.glob("HR_E[DS].nii.gz"))]
        # By number: as text 10 comes before 2.
        self.subjects: tuple[int, ...] = tuple(sorted(map(int, found)))
        if not found:
            raise NoInputs(f"{folder}: no <id>/HR_ED.nii.gz; give the folder that holds the numbered subjects")

    def part(self, name: Part) -> tuple[int, ...]:
        """The subjects of one part of the committed split that are on disk; both phases of each belong to it."""
        wanted = set(split()[name])
        return tuple(s for s in self.subjects if s in wanted)

    def cases(self, name: Part) -> tuple[tuple[int, Phase], ...]:
        """Subject and phase of every high-resolution map of one part."""
        phases: tuple[Phase, ...] = ("ED", "ES")
        return tuple((s, p) for s in self.part(name) for p in phases if self._path(s, p, "HR").is_file())

    def pairs(self, name: Part) -> tuple[tuple[int, Phase], ...]:
        """Subject and phase of every pair of an acquired stack and a high-resolution map of one part.

        Raises:
            NoInputs: there is none, or a file has no partner.
        """
        phases: tuple[Phase, ...] = ("ED", "ES")
        cases: list[tuple[int, Phase]] = [(subject, phase) for subject in split()[name] for phase in phases]
        found: list[list[Kind]] = [[kind for kind in KINDS if self._path(*case, kind).is_file()] for case in cases]
        for (subject, phase), kinds in zip(cases, found, strict=True):
            if len(kinds) == 1:
                missing: Kind = "LR" if kinds[0] == "HR" else "HR"
                raise NoInputs(
                    f"{self._path(subject, phase, missing)}: missing; add it, or remove {kinds[0]}_{phase}.nii.gz"
                )
        whole = tuple(case for case, kinds in zip(cases, found, strict=True) if kinds)
        if not whole:
            raise NoInputs(
                f"{self._folder}: no pair <id>/LR_ED.nii.gz and <id>/HR_ED.nii.gz in the {name} part of the split;"
                f" its numbers are {', '.join(map(str, split()[name][:3]))} … (m2s/data/{SPLIT_FILE.name})"
            )
        return whole

    def file(self, subject: int, phase: Phase) -> Path:
        """Where the high-resolution map of one subject is, or would be."""
        return self._path(subject, phase, "HR")

    def high(self, subject: int, phase: Phase) -> LabelMap:
        """The high-resolution map of one subject; errors as `read_label_map`."""
        path = self.file(subject, phase)
        return read_label_map(path, identity=case_name(subject, phase))

    def low(self, subject: int, phase: Phase) -> Canonical:
        """The acquired short-axis stack of one subject, canonicalised as the runtime does.

        Raises:
            CaseError: the file cannot be read, holds no such labels, or no wall that fits.
        """
        path = self._path(subject, phase, "LR")
        labels, affine = _read(path)
        try:
            return canonicalise(labels == WALL, affine)
        except CaseError as error:
            raise type(error)(f"{path}: {error}") from None

    def _path(self, subject: int, phase: Phase, kind: Kind) -> Path:
        return case_file(self._folder, subject, phase, kind)


def case_file(folder: Path, subject: int, phase: Phase, kind: Kind) -> Path:
    """Where the acquired stack (LR) or the high-resolution map (HR) of a case is, or would be."""
    return folder / str(subject) / f"{kind}_{phase}.nii.gz"


def case_name(subject: int, phase: Phase) -> str:
    """`LabelMap.id` of a high-resolution map of the data set."""
    return f"labelmap-{subject}-{phase}"


def read_label_map(path: Path, *, identity: str | None = None) -> LabelMap:
    """Read one high-resolution map and bring it to the canonical grid.

    Raises:
        UnreadableVolume, BadHeader, BadAffine: the file cannot be used.
        BadLabels: other labels than 0 to 4, or base and apex cannot be told apart.
        EmptyWall: no voxel of the wall.
        WallOutOfRange: the wall does not fit 128 x 128 x 60 voxels.
    """
    labels, affine = _read(path)
    try:
        return canonical_label_map(labels, affine, identity or path.name.removesuffix(".gz").removesuffix(".nii"))
    except CaseError as error:
        raise type(error)(f"{path}: {error}") from None


def canonical_label_map(labels: npt.NDArray[np.integer], affine: Affine, identity: str) -> LabelMap:
    """Resample a label map to 1 x 1 x 2 mm, base first, wall in the middle of the planes, pool in the middle of each.

    Along z the nearest plane is taken. In-plane the distance to the wall's edge is interpolated: nearest pixels would
    leave the pool up to half a millimetre off-centre, which alone costs three points of Dice.

    Args:
        labels: (X, Y, Z), see `LABELS`.
        affine: (4, 4) voxel index to world mm.
        identity: becomes `LabelMap.id`.

    Raises:
        BadLabels, EmptyWall, WallOutOfRange: as `read_label_map`.
    """
    if not (labels == WALL).any():
        raise EmptyWall(f"no voxel has label {WALL}, the wall: check which labels the file uses")
    axis = slice_axis(affine)
    order = [a for a in range(3) if a != axis] + [axis]
    labels, affine = np.transpose(labels, order), affine[:, [*order, 3]]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    count = _plane_count(labels == WALL, float(spacing[2]))
    flipped = _apex_first(labels == WALL, spacing)
    if flipped:
        labels, affine = labels[:, :, ::-1], affine @ _reversal(labels.shape[2])
    planes, height = _planes(labels == WALL, float(spacing[2]), count)
    mask, corner = _centred(planes, spacing[:2])
    to_source = np.diag([*(np.array(SPACING) / spacing), 1.0])
    to_source[:3, 3] = *corner, height
    return LabelMap(identity, mask, affine @ to_source, flipped)


def split() -> dict[str, list[int]]:
    """The committed split: subject numbers of `training`, `selection` and `validation`.

    The paper gives its sizes (1024, 72, 235), not its members.
    """
    return json.loads(SPLIT_FILE.read_text())


def make_split(seed: int = SPLIT_SEED) -> dict[str, list[int]]:
    """Draw the split anew: all 1331 numbers shuffled and cut in three, each part sorted."""
    shuffled = keyed_rng("label map split", seed).permutation(SUBJECTS)
    ends = np.cumsum(list(PART_SIZES.values()))
    parts = np.split(shuffled, ends[:-1])
    return {name: sorted(map(int, part)) for name, part in zip(PART_SIZES, parts, strict=True)}


def _read(path: Path) -> tuple[npt.NDArray[np.integer], Affine]:
    study = read_study(path)
    if study.labels.shape[3] != 1:
        raise BadHeader(f"{path}: {study.labels.shape[3]} frames in a file of one phase: store each phase apart")
    unknown = sorted(set(map(int, np.unique(study.labels))) - set(LABELS))
    if unknown:
        raise BadLabels(f"{path}: labels {unknown} are none of {list(LABELS)}: not a map of this data set")
    return study.labels[..., 0], study.affine


def _apex_first(wall: Masks, spacing: npt.NDArray[np.float64]) -> bool:
    """Whether the stack runs from apex to base: the runtime's rule, so that both files of a pair are read alike."""
    taper = taper_of(wall, spacing)
    if abs(taper) <= CLEAR_TAPER:
        raise BadLabels("base and apex cannot be told apart, both ends of the wall are equally large: check the map")
    return taper < 0


def _reversal(planes: int) -> Affine:
    """Index along a reversed axis to index along the axis itself, as (4, 4)."""
    matrix = np.diag([1.0, 1.0, -1.0, 1.0])
    matrix[2, 3] = planes - 1
    return matrix


def _plane_count(wall: Masks, spacing: float) -> int:
    """Planes of 2 mm that the wall takes up."""
    held = np.flatnonzero(wall.any(axis=(0, 1)))
    count = round((held[-1] - held[0] + 1) * spacing / SPACING[2])
    if not (MIN_SLICES - 1) * UPSAMPLING < count <= PLANES:
        raise WallOutOfRange(
            f"the wall is {count * SPACING[2]:.0f} mm long; {((MIN_SLICES - 1) * UPSAMPLING + 1) * SPACING[2]:.0f} to"
            f" {PLANES * SPACING[2]:.0f} mm fit: check the plane spacing in the header"
        )
    return count


def _planes(wall: Masks, spacing: float, count: int) -> tuple[Masks, float]:
    """Nearest planes 2 mm apart, (X, Y, 60), the wall in the middle; and the source index of plane 0 (real).

    With the wall in the middle of the planes, the slices that hold it are in the middle of the twelve.
    """
    held = np.flatnonzero(wall.any(axis=(0, 1)))
    first = (PLANES - count) // 2
    step = SPACING[2] / spacing
    height = float((held[0] + held[-1]) / 2 - (first + (count - 1) / 2) * step)
    source = np.floor(height + np.arange(PLANES) * step + 0.5).astype(int)
    # Planes beyond the file are empty: one empty plane on either side stands for all of them.
    padded = np.pad(wall, ((0, 0), (0, 0), (1, 1)))
    return padded[:, :, np.clip(source + 1, 0, padded.shape[2] - 1)], height


def _centred(planes: Masks, spacing: npt.NDArray[np.float64]) -> tuple[Masks, npt.NDArray[np.float64]]:
    """Resample in-plane about the pool: (X, Y, 60) to (128, 128, 60), and the source index (2,) of pixel (0, 0)."""
    points = np.argwhere(planes.any(axis=2))
    low, high = points.min(axis=0), points.max(axis=0) + 1
    box = np.pad(planes[low[0] : high[0], low[1] : high[1]], ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)))
    corner = low - _MARGIN
    distance = _smooth_distance(box, spacing)
    middle = _pool_middle(distance, spacing)
    reach = float((np.abs(points - corner - middle) * spacing).max())
    if reach > CENTRE:
        raise WallOutOfRange(
            f"the wall reaches {reach:.0f} mm from the middle of the pool, {CENTRE:.0f} mm fit: check the pixel spacing"
        )
    return _sample(distance, middle, spacing), middle + corner - CENTRE / spacing


def _smooth_distance(planes: Masks, spacing: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """In-plane signed distance to the edge between pixels, (n, X, Y) mm, smoothed by less than a pixel.

    Unsmoothed it has the pixels' corners in it: shifts below a third of a pixel would then change nothing.
    """
    field = np.full((planes.shape[2], *planes.shape[:2]), _FAR_MM)
    for s in np.flatnonzero(planes.any(axis=(0, 1))):
        signed = edge_distance(planes[:, :, s], spacing)
        field[s] = ndimage.gaussian_filter(signed, _SUBPIXEL_MM / spacing, mode="nearest")
    return field


def _pool_middle(distance: npt.NDArray[np.float64], spacing: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Source index (2,) about which the resampled slices have their pool nearest to the grid's centre."""
    slices = distance[UPSAMPLING // 2 :: UPSAMPLING]
    middle = np.array(distance.shape[1:]) / 2
    best, least = middle, np.inf
    # The pixels of the result make the centroid a staircase in `middle`: half steps, and the best of them all.
    for step in (1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.0):
        offset = pool_centre(_sample(slices, middle, spacing)) - CENTRE
        if float(np.abs(offset).max()) < least:
            best, least = middle, float(np.abs(offset).max())
        middle = middle + step * offset / spacing
    return best


def _sample(
    distance: npt.NDArray[np.float64], middle: npt.NDArray[np.float64], spacing: npt.NDArray[np.float64]
) -> Masks:
    """Wall where the bilinear samples, 1 mm apart about `middle`, are negative: (n, X, Y) to (128, 128, n)."""
    along_x, along_y = (
        np.maximum(0, 1 - np.abs(middle[a] + (np.arange(size) - CENTRE)[:, None] / spacing[a] - np.arange(given)))
        for a, (size, given) in enumerate(zip(MASK_GRID[:2], distance.shape[1:], strict=True))
    )
    sampled = along_x @ (distance - _FAR_MM) @ along_y.T + _FAR_MM
    return np.ascontiguousarray(np.moveaxis(sampled, 0, 2) < 0)
