"""What is asked of CuPy, on a stand-in for it: order of calls, error types, messages."""

import gc
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from m2s_runtime.engines.cuda import Cuda, addresses, cuda_index
from m2s_runtime.errors import EngineError, UsageProblem


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class OnCard(np.ndarray):
    """Copies like a CuPy array."""

    def set(self, host, stream):
        stream.did.append("up")
        self[...] = host

    def get(self, stream, out, blocking):
        assert not blocking
        stream.did.append("down")
        out[...] = self


class FakeCupy:
    def __init__(self, count=2, *, captures=True):
        self.did, self.captures = [], captures
        self.cuda = SimpleNamespace(
            Device=lambda index: _Device(self, index),
            Stream=lambda **_: self,
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(getDeviceCount=lambda: self._count(count), CUDARuntimeError=CUDARuntimeError),
        )
        self.ptr = 4711

    @staticmethod
    def _count(count):
        if count is None:
            raise CUDARuntimeError("cudaErrorInsufficientDriver")
        return count

    def zeros(self, shape, dtype):
        return np.zeros(shape, dtype).view(OnCard)

    def empty(self, shape, dtype):
        return np.empty(shape, dtype).view(OnCard)

    def asarray(self, array):
        return array.copy().view(OnCard)

    def asnumpy(self, array):
        return np.array(array)

    def RawModule(self, code, options, backend):  # noqa: N802
        assert backend == "nvrtc"
        self.code, self.options = code, options

        def compiled():
            if "nonsense" in code:
                raise SyntaxError("kernels(3): error: identifier is undefined\nmore")

        def get_function(name):
            return lambda *call: self.did.append((name, *call))

        return SimpleNamespace(compile=compiled, get_function=get_function)

    def synchronize(self):
        self.did.append("wait")

    def begin_capture(self):
        self.did.append("begin")

    def end_capture(self):
        self.did.append("end")
        if not self.captures:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated")
        return SimpleNamespace(launch=lambda stream: stream.did.append("launch"))

    def __enter__(self):
        self.did.append("stream")

    def __exit__(self, *_):
        self.did.append("out")


class _Device:
    def __init__(self, cupy, index):
        self.cupy, self.index, self.compute_capability = cupy, index, "89"

    def __enter__(self):
        self.cupy.did.append(f"device {self.index}")

    def __exit__(self, *_):
        pass


@pytest.fixture
def install(monkeypatch):
    def make(**options):
        cupy = FakeCupy(**options)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setitem(sys.modules, "cupyx", SimpleNamespace(zeros_pinned=np.zeros))
        return cupy

    return make


def test_a_card_is_bound_with_a_stream_of_its_own(install):
    install()
    cuda = Cuda(1)
    assert (cuda.index, cuda.arch, cuda.stream) == (1, "sm89", 4711)


def test_copies_go_through_the_stream(install):
    cupy = install()
    cuda = Cuda(0)
    cupy.did.clear()
    with cuda.scope():
        staged = cuda.staged((2, 3), "float32")
        staged.host[...] = 5
        cuda.push(staged)
        np.add(staged.array, 1, out=staged.array)
        cuda.pull(staged)
        cuda.wait()
    assert (staged.host == 6).all()
    assert cupy.did == ["device 0", "stream", "up", "down", "wait", "out"]


def test_work_is_warmed_up_captured_and_launched(install):
    cupy = install()
    cuda = Cuda(0)
    cupy.did.clear()
    go = cuda.record(lambda: cupy.did.append("work"))
    assert cupy.did == ["work", "wait", "begin", "work", "end"]
    go()
    assert cupy.did[-1] == "launch"


def test_what_recorded_work_reads_and_writes_lives_as_long_as_the_recording(install):
    install()

    def made():
        buffer = np.zeros(3).view(OnCard)
        return weakref.ref(buffer), Cuda(0).record(lambda: buffer.fill(1))

    alive, go = made()
    gc.collect()
    assert alive() is not None
    go()
    del go
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    "error", [EngineError("TensorRT, graph denoise: execution failed"), CUDADriverError("not permitted")]
)
def test_work_that_fails_while_it_is_captured_is_done_step_by_step(install, caplog, error):
    cupy = install()

    def work():
        if cupy.did[-1] == "begin":
            raise error
        cupy.did.append("work")

    go = Cuda(0).record(work)
    assert "no CUDA graph" in caplog.text
    go()
    assert cupy.did[-2:] == ["end", "work"]


def test_a_card_that_lets_nobody_in_is_an_engine_error(install):
    cupy = install()

    def refuse(**_):
        raise CUDARuntimeError("cudaErrorDevicesUnavailable")

    cupy.cuda.Stream = refuse
    with pytest.raises(EngineError, match=r"cuda:0 cannot be used.*DevicesUnavailable.*--device cpu"):
        Cuda(0)


def test_kernels_are_compiled_without_fused_multiply_adds_and_launched(install):
    cupy = install()
    cuda = Cuda(0)
    launch = cuda.compiled("KERNEL sizes(int *out) {}\n")
    assert cupy.code.endswith("KERNEL sizes(int *out) {}\n")
    assert all(f"#define {name} " in cupy.code for name in ("KERNEL", "DEVICE", "THREAD"))
    assert cupy.options == ("--fmad=false",)
    array = cuda.held(np.arange(3))
    launch("sizes", 129, 5, array)
    name, blocks, threads, given = cupy.did[-1]
    assert (name, blocks, threads) == ("sizes", (2,), (128,))
    assert given[1] is array
    assert isinstance(given[0], np.int32)  # a plain int would take 64 bits
    assert cuda.fetched(array).tolist() == [0, 1, 2]


def test_kernels_that_do_not_compile_are_an_engine_error(install):
    install()
    with pytest.raises(EngineError, match=r"cuda:1 cannot compile.*identifier is undefined\)"):
        Cuda(1).compiled("nonsense")


def test_scratch_memory_is_bytes(install):
    install()
    assert Cuda(0).scratch(5).nbytes == 5


def test_work_that_cannot_be_captured_is_done_step_by_step(install, caplog):
    cupy = install(captures=False)
    go = Cuda(0).record(lambda: cupy.did.append("work"))
    assert "no CUDA graph" in caplog.text
    cupy.did.clear()
    go()
    assert cupy.did == ["work"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OutOfMemoryError("4 GB"), "out of memory.*--samples"),
        (CUDARuntimeError("boom"), "boom.*nvidia-smi"),
        (CUDADriverError("CUDA_ERROR_LAUNCH_FAILED"), "LAUNCH_FAILED.*nvidia-smi"),
    ],
)
def test_what_cuda_finds_wrong_is_an_engine_error(install, error, told):
    install()
    cuda = Cuda(1)
    with pytest.raises(EngineError, match=f"cuda:1 .*{told}"), cuda.scope():
        raise error


def test_no_such_card(install):
    install(count=2)
    with pytest.raises(EngineError, match="cuda:2: there are 2"):
        Cuda(2)
    install(count=None)
    with pytest.raises(EngineError, match=r"no NVIDIA GPU.*InsufficientDriver.*--device cpu"):
        Cuda(0)


def test_addresses_of_host_memory():
    array = np.zeros(3)
    assert addresses({"a": array}) == {"a": array.ctypes.data}


@pytest.mark.parametrize(
    ("told", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:12", 12), ("auto", None), ("cpu", None)]
)
def test_devices(told, index):
    assert cuda_index(told) == index


@pytest.mark.parametrize("told", ["gpu", "cuda:", "cuda:-1", "cuda:1234", "", "CUDA:0"])
def test_devices_that_mean_nothing(told):
    with pytest.raises(UsageProblem, match="choose auto, cpu or cuda:N"):
        cuda_index(told)
