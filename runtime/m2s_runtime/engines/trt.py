"""TensorRT: engines from the private cache on one stream, the sampling loop as one CUDA graph.

Both modules, `tensorrt` and `tensorrt_rtx`, are driven by the same calls. The choice of engines and profiles, the
checks of names, shapes and dtypes, padding and the order of calls run in the tests on a stand-in for module and card;
no card has run this file yet.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.blend import Blend
from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import Arrays, Floats
from m2s_runtime.engines.cache import EngineCache, EngineKey
from m2s_runtime.engines.cuda import Cuda, addresses, cuda_index
from m2s_runtime.engines.flavours import choose_flavour, engine_key, installed_flavours, load_flavour
from m2s_runtime.engines.profiles import fitting
from m2s_runtime.engines.resident import Resident, Work
from m2s_runtime.errors import EngineError
from m2s_runtime.machine import usable_cores
from m2s_runtime.manifest import GRAPHS, BatchProfile, GraphSpec, TensorSpec

_LOG: Final = logging.getLogger(__name__)
_DTYPES: Final = {"FLOAT": "float32", "INT64": "int64"}


class TrtEngine:
    """The five graphs as TensorRT engines on one GPU, where everything from the C-SDG to the SDG stays."""

    def __init__(
        self, bundle: Bundle, device: str, threads: int, *, precision: str = "float32", folder: Path | None = None
    ) -> None:
        """Load the engines that `m2s-export --engine trt` put into the cache at `folder`.

        Raises:
            EngineError: TensorRT, CuPy or the GPU is missing, or an engine was never built or is not whole.
        """
        if device == "cpu":
            raise EngineError("--engine trt needs an NVIDIA GPU: add --device cuda:0, or take --engine onnx")
        installed_flavours()  # a machine without TensorRT most likely lacks CuPy too, and one command brings both
        index = cuda_index(device) or 0
        cuda = Cuda(index)
        flavour = choose_flavour(cuda.arch)
        module = load_flavour(flavour)
        self.name: Final = "trt"
        self.threads: Final = threads or usable_cores()
        self.device: Final = f"cuda:{index}"
        self.description = f"{flavour} {module.__version__} {precision} for {cuda.arch} on {self.device}"
        keys = {
            graph: engine_key(
                bundle.manifest, graph, precision, flavour=flavour, version=module.__version__, arch=cuda.arch
            )
            for graph in GRAPHS
        }
        built = find_engines(bundle, keys, EngineCache(folder), precision)
        profiles = tuple(bundle.manifest.profiles.values())
        with cuda.scope():
            executor = TrtExecutor(module, built, bundle.manifest.graphs, profiles, cuda)
        self.resident: Final = Resident(cuda, executor, bundle.manifest.graphs, Blend.of(bundle.manifest))

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        return self.resident.run(graph, inputs)

    def generate(self, csdg: Floats, noise: Floats, levels: Sequence[int], bars: NDArray[np.float64]) -> Floats:
        """See `m2s_runtime.engines.base.Generates`."""
        return self.resident.generate(csdg, noise, levels, bars)


def find_engines(
    bundle: Bundle, keys: Mapping[str, EngineKey], cache: EngineCache, precision: str = "float32"
) -> dict[str, bytes]:
    """Serialised engines of all graphs.

    Raises:
        EngineError: one was never built, with the command that builds it, or is not whole.
    """
    found = {graph: cache.find(key) for graph, key in keys.items()}
    missing = [graph for graph, engine in found.items() if engine is None]
    if missing:
        key = keys[missing[0]]
        raise EngineError(
            f"no {key.flavour} {key.version} engine for {key.arch} of graph {', '.join(missing)} in {cache.folder}; "
            f"run `{build_command(bundle, cache, precision)}` first"
        )
    return {graph: engine for graph, engine in found.items() if engine is not None}


def build_command(bundle: Bundle, cache: EngineCache, precision: str) -> str:
    """The command that builds a bundle's engines on this machine into this cache."""
    words = ["m2s-export", str(bundle.path), "--engine", "trt"]
    words += ["--precision", precision] if precision != "float32" else []
    words += ["--engine-dir", str(cache.folder)] if cache.folder != EngineCache().folder else []
    return shlex.join(words)


class TrtExecutor:
    """Deserialised engines, checked against the signatures, and their execution contexts on one stream."""

    def __init__(
        self,
        module: ModuleType,
        built: Mapping[str, bytes],
        specs: Mapping[str, GraphSpec],
        profiles: Sequence[BatchProfile],
        memory: Cuda,
    ) -> None:
        """Deserialise; host code in engines stays disabled.

        Args:
            module: `tensorrt` or `tensorrt_rtx`.
            built: engine of each graph, from the cache.
            specs: signatures that they must have.
            profiles: that they must have, in this order.
            memory: GPU and stream to run on.

        Raises:
            EngineError: TensorRT refuses one, or it is not the engine of this graph.
        """
        self.recordable = True
        self._module, self._memory, self._stream = module, memory, memory.stream
        self._specs, self._profiles = specs, profiles
        self._log = _log(module)
        self._runtime = module.Runtime(self._log)  # has to outlive the engines
        self._runtime.engine_host_code_allowed = False
        self._engines = {graph: self._deserialised(graph, engine) for graph, engine in built.items()}

    def rows(self, wanted: int) -> int:
        """See `m2s_runtime.engines.resident.Executor.rows`."""
        return fitting(wanted, self._profiles)[1]

    def bind(self, graph: str, tensors: Mapping[str, Any]) -> Work:
        """See `m2s_runtime.engines.resident.Executor.bind`; each call has a context, and so scratch memory, of its own.

        Raises:
            EngineError: TensorRT refuses.
        """
        spec = self._specs[graph]
        _check_arrays(graph, spec, tensors)
        context = self._context(graph)
        number, _ = fitting(len(tensors[spec.inputs[0].name]), self._profiles)
        done = [context.set_optimization_profile_async(number, self._stream)]
        done += [context.set_input_shape(t.name, tuple(tensors[t.name].shape)) for t in spec.inputs]
        done += [context.set_tensor_address(name, address) for name, address in addresses(tensors).items()]
        if not all(done) or not _complete(context):
            raise self._refusal(graph, "these shapes are refused")
        scratch = self._memory.scratch(context.update_device_memory_size_for_shapes())
        context.set_device_memory(addresses({"scratch": scratch})["scratch"], scratch.nbytes)
        # Only TensorRT for RTX has engines that cannot be recorded, and asks for the question.
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self._stream):
            _LOG.warning("graph %s cannot be part of a CUDA graph: slower, the same result; build it anew", graph)
            self.recordable = False
        return partial(self._enqueue, graph, context, scratch)

    def _enqueue(self, graph: str, context: Any, _scratch: object) -> None:  # noqa: ANN401 - TensorRT has no types
        """Run once; the scratch memory, of which TensorRT knows the address only, is held as long as the call."""
        if not context.execute_async_v3(self._stream):
            raise self._refusal(graph, "execution failed")

    def _context(self, graph: str) -> Any:  # noqa: ANN401
        """An execution context whose scratch memory is ours, as large as the batch needs and no larger."""
        module, engine = self._module, self._engines[graph]
        ours = module.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(module, "DynamicShapesKernelSpecializationStrategy"):
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(ours)
            # The default compiles kernels in the background, which a recorded loop would never come to use.
            config.dynamic_shapes_kernel_specialization_strategy = (
                module.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED  # the whole loop is recorded outside
            ours = config
        context = engine.create_execution_context(ours)
        if context is None:
            raise self._refusal(graph, "no execution context")
        context.nvtx_verbosity = module.ProfilingVerbosity.NONE  # layer names for profilers slow every launch
        return context

    def _deserialised(self, graph: str, built: bytes) -> Any:  # noqa: ANN401 - TensorRT has no type information
        engine = self._runtime.deserialize_cuda_engine(built)
        if engine is None:
            raise self._refusal(graph, "the engine is refused")
        wrong = engine_faults(engine, self._specs[graph], self._profiles)
        if wrong:
            raise self._refusal(graph, "; ".join(wrong))
        return engine

    def _refusal(self, graph: str, what: str) -> EngineError:
        said = f" ({self._log.last})" if self._log.last else ""
        return EngineError(f"TensorRT, graph {graph}: {what}{said}; build anew with `m2s-export --engine trt`")


def engine_faults(engine: Any, spec: GraphSpec, profiles: Sequence[BatchProfile]) -> list[str]:  # noqa: ANN401
    """Where an `ICudaEngine` differs from the signature of its graph or from the profiles; empty when nowhere."""
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    modes = {name: engine.get_tensor_mode(name).name for name in names}
    wanted = {t.name: "INPUT" for t in spec.inputs} | {t.name: "OUTPUT" for t in spec.outputs}
    if modes != wanted:
        return [f"its tensors are {modes}, not {wanted}"]
    wrong = [told for tensor in (*spec.inputs, *spec.outputs) if (told := _tensor_fault(engine, tensor))]
    if engine.num_optimization_profiles != len(profiles):
        return [*wrong, f"it has {engine.num_optimization_profiles} profiles, not {len(profiles)}"]
    for number, profile in enumerate(profiles):
        for tensor in spec.inputs:
            shapes = [tuple(shape) for shape in engine.get_tensor_profile_shape(tensor.name, number)]
            if shapes != [(rows, *tensor.shape[1:]) for rows in (profile.min, profile.opt, profile.max)]:
                wrong.append(f"profile {number} of {tensor.name} is {shapes}")
    return wrong


def _tensor_fault(engine: Any, tensor: TensorSpec) -> str | None:  # noqa: ANN401
    shape = tuple(engine.get_tensor_shape(tensor.name))
    dtype = engine.get_tensor_dtype(tensor.name).name
    if shape == (-1, *tensor.shape[1:]) and _DTYPES.get(dtype) == tensor.dtype:
        return None
    return f"{tensor.name} is {dtype}{shape}, not {tensor.dtype}{tensor.shape}"


def _complete(context: Any) -> bool:  # noqa: ANN401
    """Whether all shapes are known and fit each other."""
    try:
        return not context.infer_shapes()
    except RuntimeError:
        return False


def _check_arrays(graph: str, spec: GraphSpec, tensors: Mapping[str, Any]) -> None:
    """Addresses carry neither shape nor dtype: what is handed over by address is checked first.

    Raises:
        ValueError: an array that does not fit.
    """
    rows = len(tensors[spec.inputs[0].name])
    for tensor in (*spec.inputs, *spec.outputs):
        array = tensors[tensor.name]
        if array.dtype != tensor.dtype or array.shape != (rows, *tensor.shape[1:]) or not array.flags.c_contiguous:
            raise ValueError(f"graph {graph}: {tensor.name} is {array.dtype}{array.shape}, not {tensor}")


def _log(module: ModuleType) -> Any:  # noqa: ANN401
    """Keeps what TensorRT complains of, for error messages, in place of printing it."""

    class Log(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: object, message: str) -> None:
            if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                self.last = message.splitlines()[0][:300] if message else self.last

    return Log()
