"""ONNX Runtime: the engine that runs everywhere."""

import importlib
import logging
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Final, Literal, Protocol, cast

from numpy.typing import NDArray

from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import Arrays, finite_outputs, fitted_inputs, usable_cores
from m2s_runtime.engines.onnx_file import keeps_data_elsewhere
from m2s_runtime.errors import BundleError, EngineError, UsageProblem
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


class _Session(Protocol):
    def get_inputs(self) -> Sequence[_Node]: ...
    def get_outputs(self) -> Sequence[_Node]: ...
    def get_providers(self) -> Sequence[str]: ...
    def run(self, names: None, inputs: Arrays, /) -> Sequence[NDArray[Any]]: ...


class OnnxEngine:
    """One session a graph, all on the same device with the same options, fixed here and not by the bundle."""

    def __init__(self, bundle: Bundle, device: str, threads: int) -> None:
        self._ort = _onnxruntime()
        self.name: Final = "onnx"
        self.threads: Final = threads or usable_cores()
        self._specs = bundle.manifest.graphs
        provider, index = self._choose(device)
        self._reason = "no such GPU, or CUDA libraries that do not fit"
        self._sessions = self._bind(bundle, provider, index)
        if provider == _CUDA and any(session.get_providers()[0] != _CUDA for session in self._sessions.values()):
            self._refuse_cuda(device)
            provider = _CPU
            self._sessions = self._bind(bundle, provider, index)
        self.device: Final = f"cuda:{index}" if provider == _CUDA else "cpu"
        self.description: Final = f"onnxruntime {self._ort.__version__} on {self.device}, {self.threads} thread(s)"

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        spec = self._specs[graph]
        outputs = self._sessions[graph].run(None, fitted_inputs(graph, spec, inputs))
        return finite_outputs(graph, {t.name: o for t, o in zip(spec.outputs, outputs, strict=True)})

    def _choose(self, device: str) -> tuple[str, int]:
        """Provider and device index for what the user asked for."""
        cuda = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
        if not cuda and device not in ("auto", "cpu"):
            raise UsageProblem(f"--device {device}: choose auto, cpu or cuda:N")
        available = _CUDA in self._ort.get_available_providers()
        if cuda and not available:
            raise EngineError(
                f"--device {device}: this onnxruntime has no CUDA; run `pip uninstall onnxruntime` "
                f"and `{_INSTALL['cuda']}`, or use --device cpu"
            )
        if device == "cpu" or not available:
            return _CPU, 0
        if hasattr(self._ort, "preload_dlls"):  # CUDA and cuDNN as installed by pip lie where the loader does not look
            self._ort.preload_dlls()
        return _CUDA, int(cuda[1] or 0) if cuda else 0

    def _refuse_cuda(self, device: str) -> None:
        if device != "auto":
            raise EngineError(
                f"--device {device}: onnxruntime could not bind it ({self._reason}); "
                f"check nvidia-smi, run `{_INSTALL['cuda']}` anew, or use --device cpu"
            )
        _LOG.warning("onnxruntime has CUDA but could not bind a GPU: running on the CPU")

    def _bind(self, bundle: Bundle, provider: str, index: int) -> dict[str, _Session]:
        return {graph: self._session(bundle, graph, provider, index) for graph in GRAPHS}

    def _session(self, bundle: Bundle, graph: str, provider: str, index: int) -> _Session:
        file = f"{graph}.onnx"
        model = bundle.read(file)
        _refuse_external_data(bundle, file, model)
        session = self._cuda_session(model, index) if provider == _CUDA else None
        try:
            session = session or self._create(model, [_CPU])
        except Exception as error:  # onnxruntime's own exceptions share no public base
            raise BundleError(
                f"{bundle.path / file}: onnxruntime {self._ort.__version__} cannot load it "
                f"({_first_line(error)}); update onnxruntime or export the bundle anew"
            ) from error
        _check_signature(f"{bundle.path / file}", session, bundle.manifest.graphs[graph])
        return session

    def _cuda_session(self, model: bytes, index: int) -> _Session | None:
        """None, with the reason kept, when it fails; whether GPU or file is to blame, the CPU will tell."""
        # TF32 would cost three decimal digits on the distances.
        try:
            return self._create(model, [(_CUDA, {"device_id": str(index), "use_tf32": "0"}), _CPU])
        except Exception as error:  # noqa: BLE001 - onnxruntime's own exceptions share no public base
            self._reason = _first_line(error)
            return None

    def _create(self, model: bytes, providers: Sequence[object]) -> _Session:
        # onnxruntime's own fallback to other providers would print to stdout.
        made = self._ort.InferenceSession(model, self._options(), providers=providers, enable_fallback=0)
        return cast(_Session, made)

    def _options(self) -> object:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        return options


def _onnxruntime() -> ModuleType:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EngineError(
            f"no inference engine (onnxruntime: {error}); run `{_INSTALL['cpu']}`, "
            f"or for an NVIDIA GPU `{_INSTALL['cuda']}`"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _refuse_external_data(bundle: Bundle, file: str, model: bytes) -> None:
    try:
        external = keeps_data_elsewhere(model)
    except ValueError as error:
        raise BundleError(f"{bundle.path / file}: not an ONNX file ({error}); export the bundle anew") from error
    if external:
        raise BundleError(f"{bundle.path / file}: names weights outside the file; export it without external data")


def _check_signature(where: str, session: _Session, spec: GraphSpec) -> None:
    if not (_agree(session.get_inputs(), spec.inputs) and _agree(session.get_outputs(), spec.outputs)):
        raise BundleError(f"{where}: its inputs or outputs are not those in the manifest; export the bundle anew")


def _agree(nodes: Sequence[_Node], tensors: tuple[TensorSpec, ...]) -> bool:
    found = [(n.name, tuple(n.shape), _DTYPES.get(n.type)) for n in nodes]
    return found == [(t.name, t.shape, t.dtype) for t in tensors]
