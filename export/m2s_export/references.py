"""What exported graphs are compared with, behind the runtime's engine protocol, so that one pipeline runs on either."""

import hashlib
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import Arrays, Engine, finite_outputs, fitted_inputs, graph_bytes
from m2s_runtime.errors import EngineError
from m2s_runtime.manifest import GRAPHS

if TYPE_CHECKING:
    from m2s_export.graphs import Graph


class Remembering:
    """An engine that gives the same answer to the same inputs without computing it again."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self.description = engine.description
        self._engine = engine
        self._answers = dict[tuple[str, ...], Arrays]()

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        key = (graph, *(hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest() for a in inputs.values()))
        if key not in self._answers:
            self._answers[key] = self._engine.run(graph, inputs)
        return self._answers[key]


class TorchEngine:
    """The modules that a bundle was, or is to be, exported from."""

    def __init__(self, graphs: "Mapping[str, Graph]", bundle: Bundle) -> None:
        import torch

        self._torch = torch
        self.name, self.device, self.threads = "torch", "cpu", torch.get_num_threads()
        self.description = f"PyTorch {torch.__version__} on cpu, {self.threads} thread(s)"
        self._modules = {name: graph.module.eval() for name, graph in graphs.items()}
        self._specs = bundle.manifest.graphs

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        spec = self._specs[graph]
        tensors = {name: self._torch.from_numpy(a) for name, a in fitted_inputs(graph, spec, inputs).items()}
        with self._torch.inference_mode():
            answer = self._modules[graph](**tensors)
        return finite_outputs(graph, {spec.outputs[0].name: answer.numpy()})


class Patched:
    """Some graphs on one engine, the others on another."""

    def __init__(self, patch: Engine, graphs: Collection[str], rest: Engine) -> None:
        self.name, self.device, self.threads = patch.name, patch.device, patch.threads
        self.description = f"{patch.description} and {rest.description}"
        self._patch, self._graphs, self._rest = patch, frozenset(graphs), rest

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        return (self._patch if graph in self._graphs else self._rest).run(graph, inputs)


class NumpyEngine:
    """The bundle's own float32 graphs by the evaluator that defines ONNX's operators, in NumPy and without PyTorch.

    It shares no kernel with any engine. Convolutions are unrolled in memory: several gigabytes for preset `paper`.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Load all graphs.

        Raises:
            EngineError: the package onnx is not installed.
            BundleError: a graph is altered or keeps weights elsewhere.
        """
        try:
            onnx: Any = import_module("onnx")
            evaluator: Any = import_module("onnx.reference").ReferenceEvaluator
        except ImportError as error:
            raise EngineError(f'onnx is not installed ({error}); run `pip install "mask2surface[export]"`') from error
        self.name, self.device, self.threads = "numpy", "cpu", 1
        self.description: Final = f"onnx {onnx.__version__} reference evaluator (NumPy)"
        self._specs = bundle.manifest.graphs
        self._graphs = {g: evaluator(onnx.load_from_string(graph_bytes(bundle, g)[1])) for g in GRAPHS}

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        spec = self._specs[graph]
        with np.errstate(all="ignore"):
            outputs = self._graphs[graph].run(None, fitted_inputs(graph, spec, inputs))
        return finite_outputs(graph, {t.name: o for t, o in zip(spec.outputs, outputs, strict=True)})
