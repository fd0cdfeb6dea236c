"""Fills the tunnels of a reconstructed wall, and nothing else: the surface of a left ventricle has no handle.

A block of voxels is carved from outside towards the wall, the voxel farthest from it first, and only voxels are taken
whose loss changes no topology (simple points; Bertrand and Malandain 1994). What is left is the wall without tunnels:
a skin, one voxel thin, where the carving from both ends of a tunnel met at its narrowest place.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s_runtime.slices import BoolArray
from m2s_runtime.surface import Mesh, around, extract_surface

try:
    from m2s_runtime import _voxels as _native
except ImportError:
    _native = None

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

MOST_FILLED: Final = 0.02
"""Share of the wall's voxels beyond which a filling would be invention: the wall then stays as it is."""
MOST_TUNNELS: Final = 50
"""A surface with more handles is no heart, and carving it would take minutes; clinical stacks gave four at most."""
_SKIN_MM: Final = -0.5
_LEVEL_MM: Final = 0.5
"""Voxels whose distances differ by less may be carved in any order."""

_OFFSETS: Final = np.array([o for o in np.ndindex(3, 3, 3) if o != (1, 1, 1)]) - 1
_REACH: Final = np.abs(_OFFSETS).sum(axis=1)
_FACES: Final = _REACH == 1
_NEAR: Final = _REACH <= 2
_BETWEEN: Final = np.abs(_OFFSETS[:, None] - _OFFSETS[None])
_TOUCHING: Final = (_BETWEEN.max(axis=-1) == 1).astype(np.float32)
"""(26, 26) neighbours of a voxel that touch each other; 1 or 0."""
_SHARING_FACES: Final = ((_BETWEEN.sum(axis=-1) == 1) & _NEAR & _NEAR[:, None]).astype(np.float32)


@dataclass(frozen=True)
class Surface:
    """A mesh, the (X, Y, Z) mm that it is the zero level of, and whether tunnels were filled to get it."""

    mesh: Mesh
    sdg: Floats
    filled: bool


def surface_without_handles(sdg: Floats, affine: npt.ArrayLike) -> Surface:
    """The surface of `surface.extract_surface`, with its tunnels filled where that takes little.

    Args:
        sdg: (X, Y, Z) float32 mm, negative inside.
        affine: (4, 4) from voxel index to world mm.

    Raises:
        NotFinite, EmptyWall, BadAffine: as `extract_surface` does.
    """
    plain = _surface(sdg, affine, filled=False)
    tunnels = plain.mesh.topology.genus or 0
    if not 0 < tunnels <= MOST_TUNNELS:
        return plain
    wall = _largest(sdg < 0)
    skin = carve(np.where(wall, sdg, np.maximum(sdg, -_SKIN_MM))) & ~wall
    if np.count_nonzero(skin) > MOST_FILLED * np.count_nonzero(wall):
        return plain
    mended = _surface(np.where(skin, np.float32(_SKIN_MM), sdg), affine, filled=True)
    left = mended.mesh.topology.genus
    return mended if left is not None and left < tunnels else plain


def carve(sdg: Floats) -> BoolArray:
    """The wall with every tunnel filled by a skin.

    Args:
        sdg: (X, Y, Z) float32 mm, negative inside.

    Returns:
        (X, Y, Z) bool: the negative voxels and those that no carving from outside can take without changing topology
        (wall connected by corners, the rest by faces). A cavity without any way out counts as wall.
    """
    box = around(sdg < 0)
    distance = np.pad(sdg[box], 1, constant_values=-1.0)
    block = np.pad(np.ones(sdg[box].shape, np.bool_), 1)
    if _native is not None:
        x, y, z = block.shape
        _native.carve(block, distance.astype(np.float32, copy=False), (x, y, z), _LEVEL_MM)
    else:
        _carve(block.ravel(), distance.ravel(), block.shape)
    left = np.zeros(sdg.shape, np.bool_)
    left[box] = block[1:-1, 1:-1, 1:-1]
    return left


def _carve(block: npt.NDArray[np.bool_], distance: Floats, shape: tuple[int, ...]) -> None:
    """Takes what may go out of `block`, flat views of (X, Y, Z) with a border of background."""
    where = np.flatnonzero(block & (distance >= 0))
    if not len(where):
        return
    around = np.asarray(_OFFSETS @ np.array([shape[1] * shape[2], shape[2], 1]), np.intp)
    # No two voxels of a class touch, so all simple ones among them can go at once.
    parity = (np.stack(np.unravel_index(where, shape)) % 2 * np.array([[4], [2], [1]])).sum(axis=0)
    for level in np.arange(np.floor(distance[where].max() / _LEVEL_MM), -1, -1) * _LEVEL_MM:
        reached = distance[where] >= level
        classes = [where[reached & (parity == k)] for k in range(8)]
        while sum(_take(block, voxels, around) for voxels in classes):
            pass


def _take(block: npt.NDArray[np.bool_], voxels: Indices, around: Indices) -> int:
    """Takes the simple ones of `voxels`, no two of which touch; how many these were."""
    voxels = voxels[block[voxels]]
    beside = block[voxels[:, None] + around]
    shore = ~beside.all(axis=1)
    voxels, beside = voxels[shore], beside[shore]
    taken = voxels[simple(beside)] if len(voxels) else voxels
    block[taken] = False
    return len(taken)


def simple(beside: BoolArray) -> BoolArray:
    """(N,) whether taking a voxel changes no topology, from which of its 26 neighbours are wall, (N, 26).

    That is so when its wall neighbours hang together, and so do the others that share a face with it.
    """
    outside = ~beside
    apart = _together(outside & _NEAR, outside & _FACES, _SHARING_FACES)
    return apart & _together(beside, beside, _TOUCHING)


def _together(members: BoolArray, seeds: BoolArray, links: Floats) -> BoolArray:
    """(N,) whether a row has seeds, and all of them in one piece of its members."""
    reached = np.zeros_like(members)
    rows = np.arange(len(members))
    reached[rows, seeds.argmax(axis=1)] = seeds.any(axis=1)
    size = -1
    while size != (size := int(np.count_nonzero(reached))):
        reached |= (reached.astype(np.float32) @ links > 0) & members
    return np.asarray(seeds.any(axis=1) & ~(seeds & ~reached).any(axis=1))


def _surface(sdg: Floats, affine: npt.ArrayLike, *, filled: bool) -> Surface:
    return Surface(extract_surface(sdg, affine), sdg, filled)


def _largest(wall: BoolArray) -> BoolArray:
    from scipy import ndimage

    pieces = np.zeros(wall.shape, np.int32)
    ndimage.label(wall, np.ones((3, 3, 3)), output=pieces)
    return wall & (pieces == np.bincount(pieces[wall]).argmax())
