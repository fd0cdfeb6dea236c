"""Everything that is compared, behind one call: a canonical stack in, a level set and its surface out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from m2s.baselines.nni import nearest_neighbour
from m2s.baselines.shape_based import shape_based
from m2s.data.simulate import Stack
from m2s_runtime.csdg import to_grid
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import NOMINAL_STEP, PADDING, PLANES, SLICES, SPACING
from m2s_runtime.placement import Canonical, Placement
from m2s_runtime.slices import pool_features, wall_slices
from m2s_runtime.surface import Mesh, contour, extract_surface, signed_volume

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]

GRID_TO_MM: Final = np.diag([*SPACING, 1.0])
"""Grid voxel index to mm of the grid's own frame, in which simulations are scored."""

NETWORK_METHODS: Final = ("ours", "mcsr", "decode-zc", "unconditioned")
"""`ours` is the whole method, `mcsr` its super-resolved mask alone, `decode-zc` the decoded condition, no diffusion,
`unconditioned` the diffusion without its condition."""

METHODS: Final = (*NETWORK_METHODS, "nni", "shape-based", "shape-based-line", "shape-based-uncorrected")
"""`shape-based` puts centroids on one point, `-line` on a straight line, `-uncorrected` leaves the slices alone."""


@dataclass(frozen=True)
class Prediction:
    """What a method makes of one stack, in the grid's own frame."""

    level: FloatArray
    """(128, 128, 64) on the 2 mm grid, negative inside."""
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

    @property
    def mask(self) -> BoolArray:
        """(128, 128, 60): the planes that the figures are counted on."""
        return np.asarray(self.level[:, :, PADDING : PADDING + PLANES] < 0)

    def sections(self, plane: float) -> list[BoolArray]:
        """The (128, 128) cross-sections that stand for a plane between two of the grid's.

        One, from blended distances; of a binary method the two neighbours, whose scores the caller averages.
        """
        below = int(np.clip(np.floor(plane), 0, self.level.shape[2] - 1))
        above = min(below + 1, self.level.shape[2] - 1)
        weight = plane - below
        if weight < 1e-6:
            return [self.level[:, :, below] < 0]
        if self.binary:
            return [self.level[:, :, below] < 0, self.level[:, :, above] < 0]
        return [np.asarray((1 - weight) * self.level[:, :, below] + weight * self.level[:, :, above] < 0)]


class Method(Protocol):
    """A way to reconstruct."""

    def __call__(self, canonical: Canonical, noise_key: str) -> Prediction:
        """Reconstruct one stack; `noise_key` seeds what is random, the same key gives the same answer."""
        ...


class Reconstruction(Protocol):
    """The part of the runtime's result that is scored."""

    @property
    def sdg(self) -> FloatArray:
        """(128, 128, 64) mm."""
        ...

    @property
    def probability(self) -> FloatArray:
        """(128, 128, 64)."""
        ...

    @property
    def shifts(self) -> FloatArray:
        """(12, 2) mm, centred."""
        ...


class Reconstructor(Protocol):
    """The runtime's pipeline."""

    def reconstruct(self, canonical: Canonical, noise_key: str) -> Reconstruction:
        """Reconstruct one stack."""
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


def canonical_from_stack(stack: Stack, step_mm: float = NOMINAL_STEP) -> Canonical:
    """Present a simulated stack to a method as if it had been read from a file that lies in the grid's own frame."""
    slices = tuple(s if held else -1 for s, held in enumerate(wall_slices(stack.slices)))
    placement = Placement(GRID_TO_MM, step_mm, slices, flipped=False, every=1, slice_axis=2)
    return Canonical(stack.slices, placement, pool_features(stack.slices), ())


def from_mask(mask: BoolArray, step_mm: float, shifts: FloatArray | None) -> Prediction:
    """Wrap a (128, 128, 60) mask whose planes are `step_mm / 5` apart."""
    level = (0.5 - to_grid(mask.astype(np.float32), step_mm)).astype(np.float32)
    return Prediction(level, mask_surface(level < 0), shifts, binary=True)


def nearest(canonical: Canonical, noise_key: str) -> Prediction:  # noqa: ARG001
    """Nearest neighbour, no motion correction."""
    none = np.zeros((SLICES, 2), np.float32)
    return from_mask(nearest_neighbour(canonical.masks), canonical.placement.step_mm, none)


@dataclass(frozen=True)
class Classical:
    """Centroids and shape-based interpolation with one set of options."""

    options: Mapping[str, Any]

    def __call__(self, canonical: Canonical, noise_key: str) -> Prediction:  # noqa: ARG002
        """Reconstruct; nothing is random."""
        found = shape_based(canonical.masks, **self.options)
        return from_mask(found.mask, canonical.placement.step_mm, found.shifts)


class Shared(Protocol):
    """A run that several methods share."""

    @property
    def repeated(self) -> bool:
        """Whether the last answer was a remembered one."""
        ...


@dataclass(frozen=True)
class Network:
    """The networks; `mcsr` scores the super-resolved mask, any other name the final signed distances."""

    name: str
    reconstructor: Reconstructor
    shared: Shared | None = None

    def __call__(self, canonical: Canonical, noise_key: str) -> Prediction:
        """Reconstruct, and bring the result back into the grid's own frame, where nothing is placed in a scanner."""
        result = self.reconstructor.reconstruct(canonical, noise_key)
        again = self.shared is not None and self.shared.repeated
        told = tuple(getattr(result, "flags", ()))  # those of the whole method; what was decoded otherwise has none
        if self.name == "mcsr":
            level = (0.5 - result.probability).astype(np.float32)
            return Prediction(level, mask_surface(level <= 0), result.shifts, binary=False, remembered=again)
        surface = extract_surface(result.sdg, GRID_TO_MM)
        return Prediction(result.sdg, surface, result.shifts, binary=False, remembered=again, flags=told)


CLASSICAL: Final[Mapping[str, Mapping[str, Any]]] = {
    "shape-based": {"degree": 0},
    "shape-based-line": {"degree": 1},
    "shape-based-uncorrected": {"corrected": False, "centred": False},
}


def classical_method(name: str) -> Method:
    """A method that needs no model, by its name.

    Raises:
        UsageProblem: if the name is not one of them.
    """
    if name == "nni":
        return nearest
    if name in CLASSICAL:
        return Classical(CLASSICAL[name])
    raise UsageProblem(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
