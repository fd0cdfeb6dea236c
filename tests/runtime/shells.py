"""A left ventricle given by a formula in scanner millimetres, to be sampled with any affine."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np

BASE = np.array([12.0, -31.0, 47.0])
AXIS = np.array([-0.55, 0.62, -0.56]) / np.linalg.norm([-0.55, 0.62, -0.56])
LENGTH, WALL, RADIUS = 85.0, 9.0, 34.0
ACROSS = np.cross(AXIS, [0.0, 0.0, 1.0]) / np.linalg.norm(np.cross(AXIS, [0.0, 0.0, 1.0]))
FRAME = np.stack([ACROSS, np.cross(AXIS, ACROSS), AXIS], axis=1)
"""Columns: two directions across the heart and one along it, base to apex, right-handed."""

AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])


@dataclass(frozen=True)
class Shell:
    """Half an ellipsoid, cut flat at the base, with a bulge on one side and the cavity off its middle."""

    bulge: float = 0.18

    def labels(self, points: np.ndarray) -> np.ndarray:
        """1 in the cavity, 2 in the wall, 0 elsewhere, for (..., 3) world mm."""
        x, y, h = np.moveaxis((points - BASE) @ FRAME, -1, 0)
        angle = np.arctan2(y, x)
        outer = (np.hypot(x, y) / (RADIUS * (1 + self.bulge * np.cos(angle)))) ** 2 + (h / LENGTH) ** 2
        inner = np.hypot(x, y - 2.0) ** 2 / (RADIUS - WALL) ** 2 + (h / (LENGTH - WALL)) ** 2
        return np.where((h < 0) | (outer > 1), 0, np.where(inner < 1, 1, 2)).astype(np.uint8)

    def sample(self, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        return self.labels(world_points(affine, shape))


def world_points(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """World mm of every voxel centre, shape + (3,)."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def scan(
    spacing: tuple[float, float, float] = (1.4, 1.4, 10.0),
    shape: tuple[int, int, int] = (90, 100, 11),
    directions: np.ndarray = FRAME,
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """An affine and a shape whose volume has the heart in its middle, index axes along the columns of `directions`."""
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    middle = BASE + AXIS * LENGTH / 2
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine, shape


def reoriented(array: np.ndarray, affine: np.ndarray, flips: tuple[int, ...], order: tuple[int, ...]):
    """The same scan stored otherwise: axes in `flips` reversed, then permuted by `order`."""
    turned = affine.copy()
    for a in flips:
        turned[:3, 3] += turned[:3, a] * (array.shape[a] - 1)
        turned[:3, a] *= -1
    return np.flip(array, flips).transpose(order), turned[:, [*order, 3]]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def write(path, array: np.ndarray, affine: np.ndarray = AFFINE, **header: float):
    """Write a NIfTI file, header fields set last, and return its path."""
    image = nib.Nifti1Image(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path
