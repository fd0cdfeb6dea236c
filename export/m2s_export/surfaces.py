"""Parity end to end: the same stacks through the whole method on PyTorch and on the exported graphs."""

from collections.abc import Iterable

import numpy as np

from m2s.triangles import TriangleIndex
from m2s_export.parity import SURFACE_P95_MM, ParityError
from m2s_runtime.bundle import Bundle
from m2s_runtime.engines import Engine
from m2s_runtime.errors import CaseError
from m2s_runtime.pipeline import Reconstructor
from m2s_runtime.placement import Canonical
from m2s_runtime.surface import Mesh

_NOISE_KEY = "0" * 64


def check_surfaces(bundle: Bundle, reference: Engine, exported: Engine, stacks: Iterable[Canonical]) -> float:
    """Largest symmetric 95th percentile of the distance between the two surfaces of a stack, mm.

    Raises:
        ParityError: more than `SURFACE_P95_MM`, or no surface at all.
    """
    worst = 0.0
    for number, stack in enumerate(stacks):
        meshes = [_surface(bundle, engine, stack) for engine in (reference, exported)]
        worst = max(worst, surface_p95(*meshes))
        if worst > SURFACE_P95_MM:
            raise ParityError(f"surface of stack {number} is {worst:.3g} mm (95th percentile) off that of PyTorch")
    return worst


def surface_p95(a: Mesh, b: Mesh) -> float:
    """Greater of the two directed 95th percentiles of vertex to surface distance, mm."""
    there = TriangleIndex.of(b).distance(a.vertices)
    back = TriangleIndex.of(a).distance(b.vertices)
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _surface(bundle: Bundle, engine: Engine, stack: Canonical) -> Mesh:
    try:
        return Reconstructor(bundle, engine, seed=0, threads=engine.threads).reconstruct(stack, _NOISE_KEY).mesh
    except CaseError as error:
        raise ParityError(f"no surface from a procedural heart on {engine.description}: {error}") from error
