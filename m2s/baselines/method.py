"""The one protocol of everything that is compared: a stack of slices and its spacing in, a shape out."""

import hashlib
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from m2s.data.sdg import voxelise
from m2s_runtime.csdg import to_grid
from m2s_runtime.errors import BadMesh, EmptyWall, NotFinite, UsageProblem
from m2s_runtime.grid import GRID, MASK_GRID, PADDING, PLANES, SLICES, SPACING
from m2s_runtime.surface import Mesh, contour, extract_surface, signed_volume, surface_area

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
Spacing = tuple[float, float, float]

_ANY: Final = -1

GRID_TO_MM: Final = np.diag([*SPACING, 1.0])
"""Grid voxel index to mm of the grid's own frame, in which simulations are scored."""


@dataclass(frozen=True)
class Prediction:
    """What a method makes of one stack, in the grid's own frame."""

    level: FloatArray | None
    """(128, 128, 64) on the 2 mm grid, negative inside; None of an open surface, which has no inside."""
    surface: Mesh
    """mm; voxel i of the grid has its centre at i times the spacing."""
    shifts: FloatArray | None
    """(12, 2) mm, zeros for a method that corrects nothing, None where they are not known."""
    binary: bool
    """Whether `level` only knows inside and outside, so that blending two planes means nothing."""
    remembered: bool = False
    """Whether another method had paid for the run already, so that the time this one took means nothing."""
    flags: tuple[str, ...] = ()
    """What the method itself has to say about the result."""
    expected_dice: float | None = None
    """What Dice the method itself expects the result to have."""
    points: npt.NDArray[np.float64] | None = None
    """(N, 3) mm, what the surface was made of by a method that completes points."""

    @property
    def mask(self) -> BoolArray:
        """(128, 128, 60): the planes that the figures are counted on.

        Raises:
            BadMesh: the surface is open.
        """
        return np.asarray(self._inside[:, :, PADDING : PADDING + PLANES] < 0)

    def sections(self, plane: float) -> list[BoolArray]:
        """The (128, 128) cross-sections that stand for a plane between two of the grid's.

        One, from blended distances; of a binary method the two neighbours, whose scores the caller averages.

        Raises:
            BadMesh: the surface is open.
        """
        level = self._inside
        below = int(np.clip(np.floor(plane), 0, level.shape[2] - 1))
        above = min(below + 1, level.shape[2] - 1)
        weight = plane - below
        if weight < 1e-6:
            return [level[:, :, below] < 0]
        if self.binary:
            return [level[:, :, below] < 0, level[:, :, above] < 0]
        return [np.asarray((1 - weight) * level[:, :, below] + weight * level[:, :, above] < 0)]

    @property
    def _inside(self) -> FloatArray:
        if self.level is None:
            raise BadMesh("the surface is open, so it has no inside and no Dice: only its distances count")
        return self.level


def stack_key(mask: BoolArray) -> str:
    """Keys the noise of a prediction: sha256 (hex) of the stack's bytes, so that a stack always has one answer."""
    return hashlib.sha256(np.ascontiguousarray(mask, np.bool_).tobytes()).hexdigest()


class Method(Protocol):
    """A way to reconstruct a wall from the slices of it; the answer depends on the arguments alone."""

    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Reconstruct one stack.

        Args:
            mask: (128, 128, 12) wall, one slice per acquired slice, base first, as `canonicalise` returns it.
            spacing: mm along x, y and the stack; in-plane always 1.

        Raises:
            CaseError: the stack cannot be used.
        """
        ...


def mask_surface(mask: BoolArray) -> Mesh:
    """Marching cubes of a (128, 128, 64) mask at 0.5, every component kept, closed by one voxel of padding.

    The runtime's surfaces keep the largest component; a method that returns a mask is shown with all its crumbs.

    Raises:
        EmptyWall: if the mask is empty.
    """
    vertices, faces = contour(mask.astype(np.float32), mask, 0.5, 0.0, "lorensen")
    mesh = Mesh(vertices * SPACING, faces)
    return mesh if signed_volume(mesh) > 0 else Mesh(mesh.vertices, np.ascontiguousarray(mesh.faces[:, ::-1]))


def from_mask(mask: BoolArray, step_mm: float, shifts: FloatArray | None) -> Prediction:
    """Wrap a (128, 128, 60) mask whose planes are `step_mm / 5` apart."""
    level = (0.5 - to_grid(mask.astype(np.float32), step_mm)).astype(np.float32)
    return Prediction(level, mask_surface(level < 0), shifts, binary=True)


def from_sdg(sdg: FloatArray, shifts: FloatArray | None) -> Prediction:
    """Wrap signed distances (128, 128, 64) in mm on the 2 mm grid; the surface is their zero set.

    Raises:
        EmptyWall: nothing is inside.
    """
    return Prediction(sdg, extract_surface(sdg, GRID_TO_MM), shifts, binary=False)


def from_mesh(mesh: Mesh, shifts: FloatArray | None, flags: tuple[str, ...] = ()) -> Prediction:
    """Wrap a mesh in mm of the grid's own frame; what it encloses is known only if it is closed.

    Raises:
        EmptyWall: it has no triangle, or none with an area.
        NotFinite: a vertex is NaN or infinite.
        BadMesh: a face names a vertex that does not exist.
    """
    if not len(mesh.faces):
        raise EmptyWall.after_networks()
    if not np.isfinite(mesh.vertices).all():
        raise NotFinite("a vertex of the mesh is NaN or infinite")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise BadMesh("a face names a vertex that does not exist")
    if not surface_area(mesh) > 0:
        raise EmptyWall("the surface has no area")
    if not mesh.topology.closed:
        return Prediction(None, mesh, shifts, binary=True, flags=flags)
    if mesh.volume < 0:
        mesh = Mesh(mesh.vertices, np.ascontiguousarray(mesh.faces[:, ::-1]))
    inside = voxelise(mesh.vertices, mesh.faces, GRID, SPACING)
    return Prediction((0.5 - inside).astype(np.float32), mesh, shifts, binary=True, flags=flags)


def as_prediction(answer: object, spacing: Spacing, name: str) -> Prediction:
    """What a method of somebody else's answered, as a prediction without known shifts.

    Args:
        answer: a `Prediction`; a bool mask (128, 128, 60) whose planes are `spacing[2] / 5` apart; float distances
            (128, 128, 64) mm on the 2 mm grid, negative inside; or a `Mesh` in mm of the grid's own frame.
        spacing: of the stack, mm.
        name: of the method, for the message.

    Raises:
        UsageProblem: it is none of these.
        CaseError: it is, and holds nothing that can be scored.
    """
    if isinstance(answer, Prediction) and _is_prediction(answer):
        return answer
    if isinstance(answer, Mesh) and _is_mesh(answer):
        return from_mesh(answer, None)
    if isinstance(answer, np.ndarray) and not isinstance(answer, np.ma.MaskedArray):
        if answer.dtype == np.bool_ and answer.shape == MASK_GRID:
            return from_mask(answer, spacing[2], None)
        if np.issubdtype(answer.dtype, np.floating) and answer.shape == GRID:
            return from_sdg(answer.astype(np.float32), None)
    told = f"an array {answer.shape} of {answer.dtype}" if isinstance(answer, np.ndarray) else f"{type(answer)}"
    raise UsageProblem(
        f"{name} answered {told}: return a bool mask {MASK_GRID}, float distances {GRID} in mm, a Mesh of float"
        " vertices (N, 3) in mm and int faces (M, 3), or a Prediction of such parts"
    )


def _is_prediction(answer: Prediction) -> bool:
    level, shifts = answer.level, answer.shifts
    known = level is None or (_is_array(level, np.floating, GRID) and bool(np.isfinite(level).all()))
    return known and (shifts is None or _is_array(shifts, np.floating, (SLICES, 2))) and _is_mesh(answer.surface)


def _is_mesh(mesh: Mesh) -> bool:
    return _is_array(mesh.vertices, np.floating, (_ANY, 3)) and _is_array(mesh.faces, np.integer, (_ANY, 3))


def _is_array(part: object, kind: type[np.generic], shape: tuple[int, ...]) -> bool:
    if not isinstance(part, np.ndarray) or part.ndim != len(shape):
        return False
    fits = all(length in (size, _ANY) for size, length in zip(part.shape, shape, strict=True))
    return fits and np.issubdtype(part.dtype, kind)
