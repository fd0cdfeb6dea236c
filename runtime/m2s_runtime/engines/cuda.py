"""An NVIDIA GPU without torch: memory, copies and recorded work, by CuPy.

What is in here has run on no card yet; the parts of `resident` and `trt` that use it run in the tests on NumPy arrays.
"""

import importlib
import logging
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.device_csdg import Launch
from m2s_runtime.engines.base import first_line
from m2s_runtime.engines.resident import Staged, Work
from m2s_runtime.errors import EngineError, UsageProblem

_LOG: Final = logging.getLogger(__name__)

_THREADS: Final = 128
"""Threads of a block: four warps."""

QUALIFIERS: Final = """
#define KERNEL extern "C" __global__ void
#define DEVICE static __device__ __forceinline__
#define THREAD (int)(blockIdx.x * blockDim.x + threadIdx.x)
"""
"""What kernels leave open, in CUDA; see `m2s_runtime.device_csdg.Device`."""

OPTIONS: Final = ("--fmad=false",)
"""For NVRTC: without fused multiply-adds a GPU rounds like any CPU, which is what the tests compute on. CuPy adds
`-ftz=true`, which matters below 1e-38 only."""


class Cuda:
    """One GPU with a stream of its own; what is allocated and enqueued inside `scope` belongs to them."""

    def __init__(self, index: int) -> None:
        """Bind GPU number `index`.

        Raises:
            EngineError: no CuPy, or no such GPU, or one that does not let us in.
        """
        self._cupy = load_cupy()
        count = _gpus(self._cupy)
        if index >= count:
            raise EngineError(f"--device cuda:{index}: there are {count} NVIDIA GPU(s) here; check nvidia-smi")
        self.index: Final = index
        self._device = self._cupy.cuda.Device(index)
        # Kernels are launched by the driver, which has errors of its own.
        self._failures: Final = (self._cupy.cuda.runtime.CUDARuntimeError, self._cupy.cuda.driver.CUDADriverError)
        try:
            self.arch: Final = f"sm{self._device.compute_capability}"
            with self._device:
                self._stream = self._cupy.cuda.Stream(non_blocking=True)
        except self._failures as error:
            raise EngineError(
                f"cuda:{index} cannot be used ({error}); check nvidia-smi, or use --device cpu"
            ) from error
        self.stream: Final[int] = self._stream.ptr

    @contextmanager
    def scope(self) -> Generator[None]:
        """Make device and stream the current ones; what CUDA finds wrong inside comes out as an EngineError."""
        try:
            with self._device, self._stream:
                yield
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise EngineError(f"cuda:{self.index} is out of memory; ask for fewer --samples or --device cpu") from error
        except self._failures as error:
            raise EngineError(f"cuda:{self.index} failed ({error}); check nvidia-smi, or use --device cpu") from error

    def staged(self, shape: tuple[int, ...], dtype: str) -> Staged:
        """Zeros on the GPU, and their twin in page-locked memory."""
        cupyx = importlib.import_module("cupyx")
        return Staged(cupyx.zeros_pinned(shape, dtype), self._cupy.zeros(shape, dtype))

    def compiled(self, source: str) -> Launch:
        """Kernels of this text; see `m2s_runtime.device_csdg.Device`.

        Raises:
            EngineError: it cannot be compiled for this GPU.
        """
        module = self._cupy.RawModule(code=QUALIFIERS + source, options=OPTIONS, backend="nvrtc")
        try:
            module.compile()
        except Exception as error:  # its own compiler, loader and driver errors share no public base
            raise EngineError(f"cuda:{self.index} cannot compile the distance kernels ({first_line(error)})") from error

        def launch(name: str, threads: int, *arguments: Any) -> None:  # noqa: ANN401
            blocks = -(-threads // _THREADS)
            # A plain int would be passed in 64 bits.
            given = tuple(np.int32(one) if isinstance(one, int) else one for one in arguments)
            module.get_function(name)((blocks,), (_THREADS,), given)

        return launch

    def held(self, array: NDArray[Any]) -> Any:  # noqa: ANN401 - CuPy is imported when needed
        """A copy on the GPU."""
        return self._cupy.asarray(array)

    def fetched(self, array: Any) -> NDArray[Any]:  # noqa: ANN401
        """A copy on the host, once everything enqueued is done."""
        return self._cupy.asnumpy(array)

    def scratch(self, size: int) -> Any:  # noqa: ANN401
        """So many bytes on the GPU, with anything in them."""
        return self._cupy.empty(size, "uint8")

    def push(self, staged: Staged) -> None:
        """Enqueue the copy to the GPU."""
        staged.array.set(staged.host, stream=self._stream)

    def pull(self, staged: Staged) -> None:
        """Enqueue the copy from the GPU."""
        staged.array.get(stream=self._stream, out=staged.host, blocking=False)

    def wait(self) -> None:
        """Until everything enqueued is done."""
        self._stream.synchronize()

    def record(self, work: Work) -> Work:
        """A CUDA graph of the work, which spares the launches of its several hundred kernels."""
        work()  # compiles kernels and lets libraries allocate, neither of which may happen while recording
        self.wait()
        try:
            self._stream.begin_capture()
            try:
                work()
            finally:
                graph = self._stream.end_capture()
        except (*self._failures, EngineError) as error:
            _LOG.warning("no CUDA graph of the sampling loop (%s): slower, the same result", error)
            return work
        return partial(_replay, graph, self._stream, work)


def _replay(graph: Any, stream: Any, _work: Work) -> None:  # noqa: ANN401 - CuPy is imported when needed
    """Launch; a graph knows addresses only, so the work that holds the memory behind them is held here."""
    graph.launch(stream)


def cuda_index(device: str) -> int | None:
    """Number of the GPU that `--device` names; None for `auto` and `cpu`.

    Raises:
        UsageProblem: none of these.
    """
    cuda = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if not cuda and device not in ("auto", "cpu"):
        raise UsageProblem(f"--device {device}: choose auto, cpu or cuda:N")
    return int(cuda[1] or 0) if cuda else None


def load_cupy() -> ModuleType:
    """Import CuPy.

    Raises:
        EngineError: it is not installed or does not load.
    """
    try:
        return importlib.import_module("cupy")
    except Exception as error:  # its own loader raises what it likes about missing CUDA libraries
        reason = str(error).partition("\n")[0] or repr(error)
        raise EngineError(f'CuPy cannot be loaded ({reason}); run `pip install "cupy-cuda13x[ctk]"`') from error


def addresses(tensors: Mapping[str, Any]) -> dict[str, int]:
    """Where arrays lie, on a GPU (CuPy) or, in tests, in host memory (NumPy)."""
    return {
        name: array.data.ptr if hasattr(array.data, "ptr") else array.ctypes.data for name, array in tensors.items()
    }


def _gpus(cupy: ModuleType) -> int:
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise EngineError(f"no NVIDIA GPU can be used here ({error}); check nvidia-smi, or use --device cpu") from error
