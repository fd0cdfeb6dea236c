"""ONNX Runtime: the engine that runs everywhere."""

import importlib
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, Final, Literal, Protocol, cast

from numpy.typing import NDArray

from m2s_runtime.blend import Blend
from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import Arrays, finite_outputs, first_line, fitted_inputs, graph_bytes
from m2s_runtime.engines.cuda import Cuda, cuda_index
from m2s_runtime.engines.winograd import with_fewer_products
from m2s_runtime.errors import BundleError, EngineError
from m2s_runtime.machine import usable_cores
from m2s_runtime.manifest import GRAPHS, GraphSpec, TensorSpec

_LOG: Final = logging.getLogger(__name__)
_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_DTYPES: Final[dict[str, Literal["float32", "int64"]]] = {"tensor(float)": "float32", "tensor(int64)": "int64"}
_INSTALL: Final = {"cpu": 'pip install "mask2surface[cpu]"', "cuda": 'pip install "mask2surface[gpu]"'}


class _Node(Protocol):
    name: str
    shape: Sequence[str | int]
    type: str


class Session(Protocol):
    """What of an `onnxruntime.InferenceSession` is used."""

    def get_inputs(self) -> Sequence[_Node]: ...  # noqa: D102
    def get_outputs(self) -> Sequence[_Node]: ...  # noqa: D102
    def get_providers(self) -> Sequence[str]: ...  # noqa: D102
    def run(self, names: None, inputs: Arrays, /) -> Sequence[NDArray[Any]]: ...  # noqa: D102
    def io_binding(self) -> Any: ...  # noqa: ANN401, D102
    def run_with_iobinding(self, binding: Any, options: Any) -> None: ...  # noqa: ANN401, D102


class OnnxEngine:
    """One session a graph, all on the same device with the same options, fixed here and not by the bundle."""

    def __init__(self, bundle: Bundle, device: str, threads: int, precision: str = "float32") -> None:
        """Verify the graphs and bind them.

        Raises:
            UsageProblem: a device that cannot mean anything.
            EngineError: onnxruntime is not installed, or a device asked for by name cannot be had.
            BundleError: a graph is not what the manifest says.
        """
        self._ort = _onnxruntime()
        self.name: Final = "onnx"
        self.threads: Final = threads or usable_cores()
        self.specs: Final = bundle.manifest.graphs
        self.blend: Final = Blend.of(bundle.manifest)
        self._precision = precision
        provider, index = self._choose(device)
        self._reason = "no such GPU, or CUDA libraries that do not fit"
        self.cuda: Final = _stream(index) if provider == _CUDA else None
        self.sessions = self._bind(bundle, provider, index)
        if provider == _CUDA and any(session.get_providers()[0] != _CUDA for session in self.sessions.values()):
            self._refuse_cuda(device)
            provider = _CPU
            self.sessions = self._bind(bundle, provider, index)
        self.device: Final = f"cuda:{index}" if provider == _CUDA else "cpu"
        named = "" if precision == "float32" else f" {precision}"
        self.description = f"onnxruntime {self._ort.__version__}{named} on {self.device}, {self.threads} thread(s)"

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        spec = self.specs[graph]
        fitted = fitted_inputs(graph, spec, inputs)
        try:
            outputs = self.sessions[graph].run(None, fitted)
        except Exception as error:  # onnxruntime's own exceptions share no public base
            raise EngineError(
                f"network {graph} failed on {self.device} ({first_line(error)}); with too little memory, ask for fewer "
                "--samples or --jobs"
            ) from error
        return finite_outputs(graph, {t.name: o for t, o in zip(spec.outputs, outputs, strict=True)})

    def _choose(self, device: str) -> tuple[str, int]:
        """Provider and device index for what the user asked for."""
        cuda = cuda_index(device)
        available = lists_cuda()
        if cuda is not None and not available:
            raise EngineError(
                f"--device {device}: this onnxruntime has no CUDA; run `pip uninstall onnxruntime` "
                f"and `{_INSTALL['cuda']}`, or use --device cpu"
            )
        if device == "cpu" or not available:
            return _CPU, 0
        if hasattr(self._ort, "preload_dlls"):  # CUDA and cuDNN as installed by pip lie where the loader does not look
            self._ort.preload_dlls()
        return _CUDA, cuda or 0

    def _refuse_cuda(self, device: str) -> None:
        if device != "auto":
            raise EngineError(
                f"--device {device}: onnxruntime could not bind it ({self._reason}); "
                f"check nvidia-smi, run `{_INSTALL['cuda']}` anew, or use --device cpu"
            )
        _LOG.warning("onnxruntime has CUDA but could not bind a GPU: running on the CPU")

    def _bind(self, bundle: Bundle, provider: str, index: int) -> dict[str, Session]:
        return {graph: self._session(bundle, graph, provider, index) for graph in GRAPHS}

    def _session(self, bundle: Bundle, graph: str, provider: str, index: int) -> Session:
        where, model = graph_bytes(bundle, graph, self._precision)
        session = self._cuda_session(model, index) if provider == _CUDA else None
        try:
            if provider == _CPU and self._precision == "float32":
                model = with_fewer_products(model)
            session = session or self._create(model, [_CPU])
        except Exception as error:  # onnxruntime's own exceptions share no public base
            raise BundleError(
                f"{where}: onnxruntime {self._ort.__version__} cannot load it "
                f"({first_line(error)}); update onnxruntime or export the bundle anew"
            ) from error
        _check_signature(where, session, self.specs[graph])
        return session

    def _cuda_session(self, model: bytes, index: int) -> Session | None:
        """None, with the reason kept, when it fails; whether GPU or file is to blame, the CPU will tell."""
        # TF32 would cost three decimal digits on the distances.
        options = {"device_id": str(index), "use_tf32": "0"}
        if self.cuda:
            options["user_compute_stream"] = str(self.cuda.stream)
        try:
            return self._create(model, [(_CUDA, options), _CPU])
        except Exception as error:  # noqa: BLE001 - onnxruntime's own exceptions share no public base
            self._reason = first_line(error)
            return None

    def _create(self, model: bytes, providers: Sequence[object]) -> Session:
        # onnxruntime's own fallback to other providers would print to stdout.
        made = self._ort.InferenceSession(
            model, self._options(on_cpu=_CPU in providers[:1]), providers=providers, enable_fallback=0
        )
        return cast(Session, made)

    def _options(self, *, on_cpu: bool) -> object:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        if on_cpu:  # sessions run in turn: one pool of memory serves them all, and no plan keeps another for each
            _share_memory()
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.enable_mem_pattern = False
            # Each session has threads of its own, which would go on spinning while the next one computes.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


def lists_cuda() -> bool:
    """Whether the installed onnxruntime was built for CUDA; whether that binds, only a session tells."""
    try:
        return _CUDA in importlib.import_module("onnxruntime").get_available_providers()
    except ImportError:
        return False


@cache
def _share_memory() -> None:
    """Once a process: an allocator for all sessions that grows by what is asked for, not by doubling."""
    ort = _onnxruntime()
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def _onnxruntime() -> ModuleType:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EngineError(
            f"no inference engine (onnxruntime: {error}); run `{_INSTALL['cpu']}`, "
            f"or for an NVIDIA GPU `{_INSTALL['cuda']}`"
        ) from error


def _stream(index: int) -> Cuda | None:
    """The GPU's memory and a stream for all sessions; without CuPy every stage copies to the host and back."""
    try:
        return Cuda(index)
    except EngineError as error:
        _LOG.info("results travel to the host between stages: %s", error)
        return None


def _check_signature(where: str, session: Session, spec: GraphSpec) -> None:
    if not (_agree(session.get_inputs(), spec.inputs) and _agree(session.get_outputs(), spec.outputs)):
        raise BundleError(f"{where}: its inputs or outputs are not those in the manifest; export the bundle anew")


def _agree(nodes: Sequence[_Node], tensors: tuple[TensorSpec, ...]) -> bool:
    found = [(n.name, tuple(n.shape), _DTYPES.get(n.type)) for n in nodes]
    return found == [(t.name, t.shape, t.dtype) for t in tensors]
