"""Parity end to end: the same stacks through the whole method on two engines."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from m2s.triangles import TriangleIndex
from m2s_export.parity import SURFACE_P95_MM, ParityError
from m2s_runtime.bundle import Bundle
from m2s_runtime.engines import Engine
from m2s_runtime.errors import CaseError
from m2s_runtime.pipeline import Pipeline
from m2s_runtime.placement import Canonical
from m2s_runtime.surface import Mesh

_NOISE_KEY = "0" * 64


def as_drawn(bundle: Bundle) -> Bundle:
    """The bundle without its share of the C-SDG, which would hide errors of the networks.

    Engines are opened on it, too: those that work on a device blend by themselves.
    """
    return replace(bundle, manifest=replace(bundle.manifest, csdg_share=0.0))


def surfaces(bundle: Bundle, engine: Engine, stacks: Iterable[Canonical]) -> list[Mesh]:
    """The surface of every stack, of what the networks draw alone.

    Args:
        bundle: any share of the C-SDG is left out.
        engine: opened on `as_drawn(bundle)`.
        stacks: what is reconstructed.

    Raises:
        ParityError: there is none.
    """
    drawn = as_drawn(bundle)
    return [_surface(drawn, engine, stack) for stack in stacks]


def compare_surfaces(wanted: Sequence[Mesh], found: Sequence[Mesh]) -> float:
    """Largest `surface_p95` of pairs of surfaces, mm.

    Raises:
        ParityError: more than `SURFACE_P95_MM`.
    """
    p95 = [surface_p95(a, b) for a, b in zip(wanted, found, strict=True)]
    worst = int(np.argmax(p95))
    if not p95[worst] <= SURFACE_P95_MM:
        raise ParityError(
            f"surface of stack {worst} is {p95[worst]:.3g} mm (95th percentile) off, not {SURFACE_P95_MM}"
        )
    return p95[worst]


def surface_p95(a: Mesh, b: Mesh) -> float:
    """Greater of the two directed 95th percentiles of vertex to surface distance, mm."""
    there = TriangleIndex.of(b).distance(a.vertices)
    back = TriangleIndex.of(a).distance(b.vertices)
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _surface(bundle: Bundle, engine: Engine, stack: Canonical) -> Mesh:
    try:
        return Pipeline(bundle, engine, seed=0, threads=engine.threads).reconstruct(stack, _NOISE_KEY).mesh
    except CaseError as error:
        raise ParityError(
            f"no surface from a procedural heart on {engine.description} ({error}): the networks know too little; "
            "train on, or export with --surfaces 0, which compares graphs only"
        ) from error
