"""A ground-truth heart: the closed wall surface and its mask, seated in the canonical grid."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2s.data.sdg import voxelise
from m2s_runtime.errors import WallOutOfRange
from m2s_runtime.grid import CENTRE, IN_PLANE, MASK_GRID, MIN_SLICES, PADDING, PLANES, SLICES, SPACING, UPSAMPLING
from m2s_runtime.slices import pool_centre, wall_slices

Vertices = npt.NDArray[np.float64]
Faces = npt.NDArray[np.int32]
Masks = npt.NDArray[np.bool_]

_FIELD_MM = 108.0
"""Widest wall that is let in: it leaves room for the pool's centroid beside the middle of the wall."""
_LONGEST = PLANES - 2
"""Longest wall, in planes."""
_EDGE = 0.5
"""Steps between the first (last) slice and the edge of the sixty planes, when it has index 0 (11)."""
_WELL_CENTRED_MM = 0.05


@dataclass(frozen=True)
class Heart:
    """One wall, base at z index 0, its pool centred in-plane at (63.5, 63.5).

    Attributes:
        id: unique name of the shape; it keys the random numbers of everything drawn for this heart.
        mask: (128, 128, 60) bool, axes (x, y, z), 1 x 1 x `plane_mm` mm; True where the voxel centre is in the wall.
        vertices: (V, 3) float64 mm in the mask's frame: voxel i has its centre at i times the spacing.
        faces: (F, 3) int32, outward winding, closed.
        plane_mm: distance between planes, a fifth of the slice step.
    """

    id: str
    mask: Masks
    vertices: Vertices
    faces: Faces
    plane_mm: float

    @property
    def grid_vertices(self) -> Vertices:
        """(V, 3) float64 mm in the frame of the (128, 128, 64) grid at 2 mm; the mid-planes of both coincide."""
        middle = (PLANES - 1) / 2
        return self.vertices + np.array([0.0, 0.0, (middle + PADDING) * SPACING[2] - middle * self.plane_mm])

    @property
    def digest(self) -> str:
        """SHA-256 of the mask, one bit a voxel in C order: two machines that agree on it have the same heart."""
        return hashlib.sha256(np.packbits(self.mask).tobytes()).hexdigest()


def keyed_rng(*key: object) -> np.random.Generator:
    """Philox generator keyed by the SHA-256 of the parts: the same parts give the same numbers on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def seat(
    identity: str,
    vertices: Vertices,
    faces: Faces,
    rng: np.random.Generator,
    *,
    plane_mm: float = SPACING[2],
    roll: int = 0,
) -> Heart:
    """Put a wall with its long axis along z and its base at low z into the mask grid.

    The base lies a random part of a slice step above the first slice that holds wall; the n slices that hold wall sit
    at (12 - n) // 2 onward, `roll` slices further where there is room. A wall too large for the grid is shrunk.

    Args:
        identity: becomes `Heart.id`.
        vertices: (V, 3) mm, any position.
        faces: (F, 3), closed, outward winding.
        rng: draws the phase of the slices.
        plane_mm: distance between planes.
        roll: slices to move along z.

    Returns:
        The seated heart.

    Raises:
        WallOutOfRange: fewer than three slices hold wall.
    """
    vertices = _fit(vertices, plane_mm)
    step = plane_mm * UPSAMPLING
    length = float(np.ptp(vertices[:, 2]))
    phase = _phase(length / step, rng)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    middle = (low + high) / 2
    # In the frame of the slices (one "plane" a slice), the first of which lies `phase` of a step below the base.
    vertices = vertices + np.array([CENTRE - middle[0], CENTRE - middle[1], -low[2] - phase * step])
    stack = _stack(vertices, faces, step)
    start = _start(stack, roll, phase, length / step)
    offset = _pool_offset(stack)
    vertices = vertices - (offset[0], offset[1], -(start * UPSAMPLING + UPSAMPLING // 2) * plane_mm)
    return _centred(identity, vertices, faces, plane_mm)


def _centred(identity: str, vertices: Vertices, faces: Faces, plane_mm: float) -> Heart:
    """Voxelise; once more where the pool's centroid moved with the voxels."""
    mask, offset = _mask(vertices, faces, plane_mm)
    if np.abs(offset).max() > _WELL_CENTRED_MM:
        vertices = vertices - (offset[0], offset[1], 0.0)
        mask, _ = _mask(vertices, faces, plane_mm)
    return Heart(identity, mask, vertices, faces, plane_mm)


def _mask(vertices: Vertices, faces: Faces, plane_mm: float) -> tuple[Masks, Vertices]:
    mask = voxelise(vertices, faces, MASK_GRID, (*SPACING[:2], plane_mm))
    return mask, _pool_offset(mask[:, :, UPSAMPLING // 2 :: UPSAMPLING])


def _stack(vertices: Vertices, faces: Faces, step: float) -> Masks:
    return voxelise(vertices, faces, (IN_PLANE, IN_PLANE, SLICES), (*SPACING[:2], step))


def _fit(vertices: Vertices, plane_mm: float) -> Vertices:
    """Shrink about the origin what is too wide or too long for the grid."""
    extent = np.ptp(vertices, axis=0)
    return vertices * min(1.0, _FIELD_MM / extent[:2].max(), _LONGEST * plane_mm / extent[2])


def _phase(length: float, rng: np.random.Generator) -> float:
    """Part of a slice step between base and first slice; `length` of the wall in steps.

    Eleven slices or more start at index 0, which leaves half a step above the first and below the last slice.
    """
    phase = float(rng.uniform())
    if int(length - phase) + 1 < SLICES - 1:
        return phase
    least = max(0.0, length - (SLICES - _EDGE))
    return least + phase * (_EDGE - least)


def _start(stack: Masks, roll: int, phase: float, length: float) -> int:
    """Index where slice 0 of `stack` goes so that the slices with wall are in the middle of the twelve."""
    wall = np.flatnonzero(wall_slices(stack))
    count = int(wall[-1] - wall[0]) + 1 if len(wall) else 0
    if count < MIN_SLICES:
        raise WallOutOfRange(f"{count} slices of this heart hold wall, fewer than {MIN_SLICES}: use a smaller plane_mm")
    start = max((SLICES - count) // 2 - int(wall[0]), 0)
    moved = start + roll
    fits = moved >= 0 and moved + _EDGE >= phase and moved + length - phase <= SLICES - _EDGE
    return moved if fits else start


def _pool_offset(stack: Masks) -> Vertices:
    """(2,) how far the area-weighted mean pool centroid of the slices is from the centre."""
    return pool_centre(stack) - CENTRE
