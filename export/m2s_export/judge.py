"""All parity gates of one bundle against one reference, whose answers are computed once for every engine judged."""

import importlib.util
from collections.abc import Iterator
from functools import cached_property
from typing import Final

from m2s_export.parity import check_graph
from m2s_export.references import Remembering
from m2s_export.samples import phantom_hearts, phantom_stack, random_inputs, realistic_inputs
from m2s_export.surfaces import compare_surfaces, surfaces
from m2s_runtime.bundle import Bundle
from m2s_runtime.engines import Engine
from m2s_runtime.engines.base import Arrays
from m2s_runtime.manifest import GraphParity, Parity
from m2s_runtime.placement import Canonical
from m2s_runtime.surface import Mesh

_SPARE: Final = {"openvino": ("float32", "bfloat16"), "tensorrt": ("float32",), "tensorrt_rtx": ("float32",)}
"""Installed module -> precisions to judge it in, beside those of ONNX Runtime."""


class Judge:
    """Compares engines with `reference` on random inputs, simulated stacks and the surfaces of procedural hearts."""

    def __init__(self, bundle: Bundle, reference: Engine, cases: int) -> None:
        """Take `cases` hearts; with none, only graphs are compared."""
        self.bundle, self.reference, self.cases = bundle, reference, cases
        real = realistic_inputs(reference, bundle.manifest)
        specs = bundle.manifest.graphs
        self._asked = Remembering(reference)
        self._samples: dict[str, list[Arrays]] = {g: [random_inputs(s), real[g]] for g, s in specs.items()}

    def graph(self, graph: str, engine: Engine, precision: str) -> GraphParity:
        """Deviation of one graph.

        Raises:
            ParityError: beyond its gate.
        """
        return check_graph(graph, self._asked, engine, self._samples[graph], precision=precision)

    def surface_p95(self, engine: Engine) -> float | None:
        """Largest 95th percentile of the distance between the surfaces of a heart in mm; None without hearts.

        Raises:
            ParityError: beyond its gate, or no surface.
        """
        return compare_surfaces(self._wanted, surfaces(self.bundle, engine, self._stacks)) if self.cases else None

    def parity(self, engine: Engine, precision: str, torch: str) -> Parity:
        """Every gate; `torch` is the version of the reference.

        Raises:
            ParityError: one does not hold.
        """
        graphs = {name: self.graph(name, engine, precision) for name in self.bundle.manifest.graphs}
        return Parity(engine.description, torch, graphs, self.surface_p95(engine), self.cases)

    @cached_property
    def _stacks(self) -> list[Canonical]:
        return [phantom_stack(heart) for heart in phantom_hearts(self.cases)]

    @cached_property
    def _wanted(self) -> list[Mesh]:
        return surfaces(self.bundle, self.reference, self._stacks)


def candidates(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Engine and precision of everything installed here that could run this bundle, ONNX Runtime in float32 first."""
    yield "onnx", "float32"
    halves = tuple(bundle.manifest.flavours)
    yield from (("onnx", precision) for precision in halves)
    for module, precisions in _SPARE.items():
        if importlib.util.find_spec(module):
            engine = "openvino" if module == "openvino" else "trt"
            yield from ((engine, p) for p in (*precisions, *(halves if engine == "trt" else ())))
