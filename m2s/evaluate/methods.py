"""What is compared with nothing to open, and the trained networks behind the one protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np

from m2s.baselines.method import (
    GRID_TO_MM,
    BoolArray,
    FloatArray,
    Method,
    Prediction,
    Spacing,
    from_mask,
    from_sdg,
    mask_surface,
    stack_key,
)
from m2s.baselines.nni import nearest_neighbour
from m2s.baselines.shape_based import shape_based
from m2s.data.simulate import Stack
from m2s.evaluate.names import METHODS
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import NOMINAL_STEP, SLICES, SPACING
from m2s_runtime.placement import Canonical, Placement
from m2s_runtime.slices import pool_features, wall_slices


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


def spacing_of(step_mm: float) -> Spacing:
    """Of a canonical stack, mm."""
    return SPACING[0], SPACING[1], step_mm


def canonical_of(mask: BoolArray, spacing: Spacing) -> Canonical:
    """Slices (128, 128, 12) as if they had been read from a file that lies in the grid's own frame."""
    held = wall_slices(mask)
    slices = tuple(s if is_held else -1 for s, is_held in enumerate(held))
    base_mm = ((SLICES - 1) / 2 - int(held.argmax())) * spacing[2]
    placement = Placement(GRID_TO_MM, spacing[2], slices, flipped=False, every=1, slice_axis=2, base_mm=base_mm)
    return Canonical(mask, placement, pool_features(mask), ())


def canonical_from_stack(stack: Stack, step_mm: float = NOMINAL_STEP) -> Canonical:
    """`canonical_of` for a simulated stack."""
    return canonical_of(stack.slices, spacing_of(step_mm))


@dataclass(frozen=True)
class Nearest:
    """Nearest neighbour, no motion correction."""

    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Repeat the slices."""
        return from_mask(nearest_neighbour(mask), spacing[2], np.zeros((SLICES, 2), np.float32))


@dataclass(frozen=True)
class Classical:
    """Centroids and shape-based interpolation with one set of options."""

    options: Mapping[str, Any]

    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Reconstruct; nothing is random."""
        found = shape_based(mask, **self.options)
        return from_mask(found.mask, spacing[2], found.shifts)


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

    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Reconstruct in the grid's own frame; noise is keyed by the sha256 of the mask's bytes."""
        key = stack_key(mask)
        result = self.reconstructor.reconstruct(canonical_of(mask, spacing), key)
        again = self.shared is not None and self.shared.repeated
        if self.name == "mcsr":
            level = (0.5 - result.probability).astype(np.float32)
            return Prediction(level, mask_surface(level <= 0), result.shifts, binary=False, remembered=again)
        told = tuple(getattr(result, "flags", ()))  # those of the whole method; what was decoded otherwise has none
        expected: float | None = getattr(result, "expected_dice", None)
        return replace(from_sdg(result.sdg, result.shifts), remembered=again, flags=told, expected_dice=expected)


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
        return Nearest()
    if name in CLASSICAL:
        return Classical(CLASSICAL[name])
    raise UsageProblem(f"unknown method {name!r}: choose one of {', '.join(METHODS)}, or package.module:Class")
