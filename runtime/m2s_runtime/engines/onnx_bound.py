"""ONNX Runtime on arrays that already lie on the device: what turns an `OnnxEngine` on a GPU into one that `Generates`.

The binding runs in the tests on NumPy arrays and the CPU provider; no card has run it yet.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from numpy.typing import NDArray

from m2s_runtime.engines.base import Arrays, Floats, first_line
from m2s_runtime.engines.cuda import addresses
from m2s_runtime.engines.onnx import OnnxEngine, Session
from m2s_runtime.engines.resident import Memory, Resident, Work
from m2s_runtime.errors import EngineError
from m2s_runtime.manifest import GraphSpec


class BoundOnnxEngine:
    """An `OnnxEngine` whose sampling loop stays where `memory` is; single graphs run as before."""

    def __init__(self, engine: OnnxEngine, memory: Memory) -> None:
        """Wrap an engine whose sessions run on the stream of `memory`."""
        self._engine = engine
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self.description = engine.description
        executor = OnnxExecutor(engine.sessions, engine.specs, engine.device)
        self.resident: Final = Resident(memory, executor, engine.specs, engine.blend)

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        return self._engine.run(graph, inputs)

    def generate(self, csdg: Floats, noise: Floats, levels: Sequence[int], bars: NDArray[Any]) -> Floats:
        """See `m2s_runtime.engines.base.Generates`."""
        return self.resident.generate(csdg, noise, levels, bars)


class OnnxExecutor:
    """Binds sessions to addresses."""

    def __init__(self, sessions: Mapping[str, Session], specs: Mapping[str, GraphSpec], device: str) -> None:
        """Take sessions that were bound to `device`, `cpu` or `cuda:N`."""
        self.recordable: Final = False  # a session may allocate at any time, which a CUDA graph forbids
        self._sessions, self._specs = sessions, specs
        self._kind, _, index = device.partition(":")
        self._index = int(index or 0)
        self._options = importlib.import_module("onnxruntime").RunOptions()
        # One wait at the end of a batch is enough.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def rows(self, wanted: int) -> int:
        """All of them."""
        return wanted

    def bind(self, graph: str, tensors: Mapping[str, Any]) -> Work:
        """See `m2s_runtime.engines.resident.Executor.bind`."""
        session, spec, where = self._sessions[graph], self._specs[graph], addresses(tensors)
        binding = session.io_binding()
        for ours, bind in ((spec.inputs, binding.bind_input), (spec.outputs, binding.bind_output)):
            for tensor in ours:
                shape = tuple(tensors[tensor.name].shape)
                bind(tensor.name, self._kind, self._index, tensor.dtype, shape, where[tensor.name])

        def enqueue() -> None:
            try:
                session.run_with_iobinding(binding, self._options)
            except Exception as error:  # onnxruntime's own exceptions share no public base
                raise EngineError(f"network {graph} failed on {self._kind} ({first_line(error)})") from error

        return enqueue
