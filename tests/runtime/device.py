"""A CPU that behaves like a GPU: memory apart from the host's, kernels, recorded work, and TensorRT on top."""

import ctypes
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from m2s_runtime.engines.resident import Staged
from m2s_runtime.errors import EngineError
from runtime import host_kernels


class HostMemory:
    """Stands in for `Cuda`; counts what is asked of it."""

    arch, stream = "sm89", 7

    def __init__(self, _index=0):
        self.calls, self.inside, self.scratches = [], False, {}

    @contextmanager
    def scope(self):
        assert not self.inside
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def staged(self, shape, dtype):
        assert self.inside
        return Staged(np.zeros(shape, dtype), np.zeros(shape, dtype))

    def scratch(self, size):
        assert self.inside
        made = np.empty(size, np.uint8)
        self.scratches[made.ctypes.data] = weakref.ref(made)
        HostMemory.last = self
        return made

    def compiled(self, source):
        assert self.inside
        if not host_kernels.COMPILER:
            raise EngineError("no C compiler")
        return host_kernels.compiled(source)

    def held(self, array):
        assert self.inside
        return array.copy()

    def fetched(self, array):
        assert self.inside
        return array.copy()

    def push(self, staged):
        self.calls.append("push")
        staged.array[...] = staged.host

    def pull(self, staged):
        self.calls.append("pull")
        staged.host[...] = staged.array

    def wait(self):
        assert self.inside
        self.calls.append("wait")

    def record(self, work):
        self.calls.append("record")

        def replay():
            self.calls.append("replay")
            work()

        work()  # as Cuda does, to warm up
        return replay


class FakeTensorRT:
    """Looks like the module `tensorrt`; an "engine" is the name of a graph, which onnxruntime runs on raw addresses."""

    __version__ = "11.4.0.106"
    __spec__ = object()

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = "error", "internal", "warning"

        def __init__(self):
            self.made = True

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")
    ProfilingVerbosity = SimpleNamespace(NONE="none")

    def __init__(self, sessions, specs, profiles, *, spoil=None):
        self.sessions, self.specs, self.profiles, self.spoil = sessions, specs, profiles, spoil or {}
        self.contexts, self.runtimes = [], []

    def Runtime(self, logger):  # noqa: N802
        assert logger.made
        self.runtimes.append(
            SimpleNamespace(engine_host_code_allowed=None, deserialize_cuda_engine=self._engine(logger))
        )
        return self.runtimes[-1]

    def _engine(self, logger):
        def deserialise(built):
            assert self.runtimes[-1].engine_host_code_allowed is False
            graph = built.decode(errors="replace")
            if graph not in self.specs:
                logger.log("warning", "never mind")
                logger.log("error", "magic tag is wrong\nmore")
                return None
            return FakeEngine(self, graph)

        return deserialise


class FakeTensorRTX(FakeTensorRT):
    """Looks like the module `tensorrt_rtx`."""

    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled")


class FakeEngine:
    def __init__(self, trt, graph):
        self.trt, self.graph, self.spec = trt, graph, trt.specs[graph]
        self.tensors = [*self.spec.inputs, *self.spec.outputs]
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = trt.spoil.get("profiles", len(trt.profiles))

    def _tensor(self, name):
        return next(t for t in self.tensors if t.name == name)

    def get_tensor_name(self, number):
        return self.trt.spoil.get("name", self.tensors[number].name)

    def get_tensor_mode(self, name):
        known = any(t.name == name for t in self.spec.inputs)
        return SimpleNamespace(name="INPUT" if known else "OUTPUT")

    def get_tensor_shape(self, name):
        return self.trt.spoil.get("shape", [-1, *self._tensor(name).shape[1:]])

    def get_tensor_dtype(self, name):
        dtype = {"float32": "FLOAT", "int64": "INT64"}[self._tensor(name).dtype]
        return SimpleNamespace(name=self.trt.spoil.get("dtype", dtype))

    def get_tensor_profile_shape(self, name, number):
        profile = self.trt.profiles[number]
        most = self.trt.spoil.get("most", profile.max)
        return [[rows, *self._tensor(name).shape[1:]] for rows in (profile.min, profile.opt, most)]

    def create_runtime_config(self):
        config = SimpleNamespace()
        config.set_execution_context_allocation_strategy = lambda told: setattr(config, "allocation", told)
        return config

    def create_execution_context(self, asked):
        if self.trt.spoil.get("context"):
            return None
        made = FakeContext(self)
        if isinstance(self.trt, FakeTensorRTX):
            assert (asked.allocation, asked.cuda_graph_strategy) == ("ours", "disabled")
            assert asked.dynamic_shapes_kernel_specialization_strategy == "eager"
            made.is_stream_capturable = lambda stream: stream == HostMemory.stream and not self.trt.spoil.get("fixed")
        else:
            assert asked == "ours"
        self.trt.contexts.append(made)
        return self.trt.contexts[-1]


class FakeContext:
    """Reads and writes memory at the addresses that it was told, as the real one does."""

    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.profile, self.runs = engine, {}, {}, None, 0
        self.memory, self.nvtx_verbosity = None, "detailed"

    def set_optimization_profile_async(self, number, stream):
        assert stream == HostMemory.stream
        self.profile = self.engine.trt.profiles[number]
        return True

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return self.profile.min <= shape[0] <= self.profile.max

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address != 0

    def update_device_memory_size_for_shapes(self):
        assert not self.infer_shapes()
        return 64 * self.shapes[self.engine.spec.inputs[0].name][0]

    def set_device_memory(self, address, size):
        assert size == self.update_device_memory_size_for_shapes()
        self.memory = address

    def infer_shapes(self):
        if self.engine.trt.spoil.get("shapes"):
            raise RuntimeError("shape inference failed")
        return [t.name for t in self.engine.spec.inputs if t.name not in self.shapes]

    def execute_async_v3(self, stream):
        assert stream == HostMemory.stream
        assert HostMemory.last.scratches[self.memory]() is not None, "its scratch memory is gone"
        assert self.nvtx_verbosity == "none"
        if self.engine.trt.spoil.get("run"):
            return False
        self.runs += 1
        spec = self.engine.spec
        rows = self.shapes[spec.inputs[0].name][0]
        given = {t.name: self._at(t, rows) for t in spec.inputs}
        answers = self.engine.trt.sessions[self.engine.graph].run(None, given)
        for tensor, answer in zip(spec.outputs, answers, strict=True):
            self._at(tensor, rows)[...] = answer
        return True

    def _at(self, tensor, rows):
        shape = (rows, *tensor.shape[1:])
        kind = {"float32": ctypes.c_float, "int64": ctypes.c_int64}[tensor.dtype]
        return np.ctypeslib.as_array((kind * int(np.prod(shape))).from_address(self.addresses[tensor.name])).reshape(
            shape
        )
