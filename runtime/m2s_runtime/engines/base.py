"""What the pipeline needs of an engine, and the checks that every engine shares."""

import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.errors import NotFinite
from m2s_runtime.manifest import GraphSpec

Arrays = dict[str, NDArray[Any]]


class Engine(Protocol):
    """Runs the graphs of one bundle.

    Attributes:
        name: `onnx`.
        device: what was really bound: `cpu` or `cuda:N`.
        threads: cores per inference.
        description: one line for people: engine, version, device, threads.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def threads(self) -> int: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Runs one graph of the bundle.

        Args:
            graph: one of `m2s_runtime.manifest.GRAPHS`.
            inputs: by name, of the dtypes and shapes in the manifest, all of one batch size. `mc` of a published-style
                bundle takes no `pool` and leaves it aside.

        Returns:
            Outputs by name.

        Raises:
            ValueError: inputs that do not fit the signature.
            NotFinite: NaN or infinity in an output.
        """
        ...


def usable_cores() -> int:
    """Cores that this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fitted_inputs(graph: str, spec: GraphSpec, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """The inputs that the graph takes, checked against its signature and made contiguous.

    Raises:
        ValueError: one is missing, or of another dtype, shape or batch size.
    """
    fitted: Arrays = {}
    batch: int | None = None
    for tensor in spec.inputs:
        if tensor.name not in inputs:
            raise ValueError(f"graph {graph}: input {tensor.name} is missing")
        array = np.ascontiguousarray(inputs[tensor.name])
        batch = len(array) if batch is None and array.ndim else batch
        if array.dtype != tensor.dtype or array.shape != (batch, *tensor.shape[1:]) or not batch:
            raise ValueError(
                f"graph {graph}: input {tensor.name} is {array.dtype}{array.shape}, "
                f"not {tensor.dtype}{(batch or 'batch', *tensor.shape[1:])}"
            )
        fitted[tensor.name] = array
    return fitted


def finite_outputs(graph: str, outputs: Arrays) -> Arrays:
    """The outputs, when every number in them is one.

    Raises:
        NotFinite: else.
    """
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise NotFinite(
                f"network {graph} returned NaN or infinity in {name}: try --device cpu, and report the case"
            )
    return outputs
